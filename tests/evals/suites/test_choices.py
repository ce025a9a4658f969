"""Multiple choice by likelihood: against float64 written apart, planted answers, and every way of asking."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import suite_support as support
import torch
from stages import drawing

from alignment.artifacts import Artifact
from alignment.chat import tokenizers
from alignment.chat.render import prompt_ids
from alignment.chat.types import Prompt, messages
from alignment.errors import UserError
from alignment.evals.suites import bbq, choices, subject
from alignment.evals.suites.choices import Answered
from alignment.evals.suites.prompting import Asking, Form, Question, Wording, read_answer
from alignment.gemma import core
from alignment.sampling.decoding import Decoding, Reply
from alignment.sampling.sampler import Sampler
from alignment.training import held_out

TEXTS = ("the friend", "the town", "question", "the answer is 3")
DECODING = {"samples": 1, "temperature": 0.0, "top_p": 1.0, "max_new_tokens": 6, "seed": 0}


def row(number: int, right: Sequence[int] = (0,), tags: Sequence[str] = ("a",), **marks: Any) -> Prompt:
    options = [*TEXTS[number % 4 :], *TEXTS[: number % 4]][:3]
    told = {"question": f"what is said to question {number}?", "options": options, "right": [*right], **marks}
    turns = messages(("user", "\n".join([told["question"], *options])))
    return Prompt(turns, f"q{number}", tuple(tags), reference=json.dumps(told))


ROWS = [row(n, (n % 3,), ("ab"[n % 2],)) for n in range(6)]
WORKED = [row(100 + n, (1,), ("ab"[n % 2],)) for n in range(8)]


def form(labels: str = "letters", separator: str = ") ", scoring: str = "label", **more: bool) -> dict[str, Any]:
    return {"labels": labels, "separator": separator, "instruction": False, "shots": False, "scoring": scoring} | more


def settings(name: str = "miniature_choices", **changes: Any) -> Any:
    return support.settings(name, **({"questions": "run:q", "count": None} | changes))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return support.policy(tmp_path_factory.mktemp("tiny"), seed=3)


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Artifact]:
    return {"questions": drawing.dataset(tmp_path / "q", "prompts", {"train": WORKED, "test": ROWS})}


@cache
def loaded(path: Path) -> Any:
    return core.load(path)


def likelihoods(model: Artifact, asked: list[int], said: str) -> tuple[float, int]:
    """Σ log p of a continuation in float64, and its tokens."""
    ids = tokenizers.load(model.path).encode(said)
    with torch.no_grad():
        logits_TV = loaded(model.path)(torch.tensor([[*asked, *ids]])).logits[0].double()
    logprobs_TV = logits_TV.log_softmax(-1)
    return sum(float(logprobs_TV[len(asked) + n - 1, one]) for n, one in enumerate(ids)), len(ids)


@pytest.mark.parametrize("prompting", ["chat", "raw"])
def test_choices_are_those_that_float64_finds_likeliest(
    prompting: str, model: Artifact, inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    scorings = ("label", "text", "text_per_token", "text_per_byte")
    said = settings(prompting=prompting, formats=[form(scoring=one) for one in scorings], shots=0)
    rows = support.rows(support.examined(said, inputs, model, tmp_path / "out"), tmp_path / "out")
    tokenizer = tokenizers.load(model.path)
    by_id = {one["id"]: one for one in rows}
    for asked in map(Question.of, ROWS[:3]):
        listed = "\n".join(f"{letter}) {text}" for letter, text in zip("ABC", asked.options, strict=True))
        if prompting == "chat":
            ids, space = prompt_ids(messages(("user", f"{asked.text}\n{listed}")), tokenizer), ""
        else:
            text = f"Question: {asked.text}\n{listed}\nAnswer:"
            ids, space = [tokenizer.bos_id, *tokenizer.encode(text)], " "
        labels = [likelihoods(model, ids, space + letter) for letter in "ABC"]
        texts = [likelihoods(model, ids, space + text) for text in asked.options]
        wanted = {
            "label": [ll for ll, _ in labels],
            "text": [ll for ll, _ in texts],
            "text_per_token": [ll / count for ll, count in texts],
            "text_per_byte": [ll / len(text) for (ll, _), text in zip(texts, asked.options, strict=True)],
        }
        for scoring, scores in wanted.items():
            found = by_id[f"{asked.id}|A) {scoring}"]
            shown = json.loads(found["shown"])
            assert shown["scores"] == pytest.approx(scores, abs=2e-3)
            assert shown["chosen"] == int(np.argmax(scores))
            assert found["correct"] == (shown["chosen"] in asked.right)
            assert found["chance"] == pytest.approx(1 / 3)
            assert found["unit"] == asked.unit
            if scoring in ("label", "text"):
                weights = np.exp(np.array(scores) - max(scores))
                assert found["probability"] == pytest.approx(weights[list(asked.right)].sum() / weights.sum(), abs=1e-3)
            else:
                assert "probability" not in found


def test_the_mean_and_the_spread_over_twelve_formats(
    model: Artifact, inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    said = settings(shots=1, count=4)
    assert len(said.formats) == 12
    found = support.examined(said, inputs, model, tmp_path / "out")
    told = support.estimates(found, tmp_path / "out")
    by_format = {name: one["correct"] for name, one in told["groups"]["format"].items()}
    assert len(by_format) == 12
    assert told["correct"] == pytest.approx(np.mean(list(by_format.values())))
    assert told["spread"] == pytest.approx(np.std(list(by_format.values())))
    assert told["spread"] > 0
    assert found.notes["standard_deviation"] == pytest.approx(told["spread"])
    assert found.notes["mean"] == pytest.approx(told["correct"])
    assert found.notes["formats"] == pytest.approx(by_format)
    assert "spread" not in told["groups"]["skill"]["a"], "it is that of the whole alone"


def test_the_same_twice_and_in_other_parts(
    monkeypatch: pytest.MonkeyPatch, model: Artifact, inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    said = settings(formats=[form(), form(scoring="text", shots=True)], shots=2)
    first = support.rows(support.examined(said, inputs, model, tmp_path / "a"), tmp_path / "a")
    assert support.rows(support.examined(said, inputs, model, tmp_path / "b"), tmp_path / "b") == first
    files = [(tmp_path / at / "examples.parquet").read_bytes() for at in "ab"]
    assert files[0] == files[1]
    monkeypatch.setattr(subject.Subject.in_parts, "__defaults__", (3,))
    for one, other in zip(
        support.rows(support.examined(said, inputs, model, tmp_path / "c"), tmp_path / "c"), first, strict=True
    ):
        assert one["id"] == other["id"]
        assert one.get("probability", 0) == pytest.approx(other.get("probability", 0), abs=1e-5)
        assert one.get("correct") == other.get("correct")


# ── how it is asked ──────────────────────────────────────────────────────────────────────────────


def test_sizes_of_batches_and_the_order_of_questions_change_no_score(
    monkeypatch: pytest.MonkeyPatch, model: Artifact, inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    """The likelihood of an answer by the token, as of a held-out row, is the same within 1e-5."""
    said = settings(prompting="few_shot", shots=1, formats=[form(scoring="text"), form("none", "", "text_per_token")])
    wanted = support.rows(support.examined(said, inputs, model, tmp_path / "a"), tmp_path / "a")
    monkeypatch.setattr(subject.Subject.in_parts, "__defaults__", (2,))
    monkeypatch.setattr(held_out, "TOKENS_A_BATCH", 100)
    turned = {"questions": drawing.dataset(tmp_path / "turned", "prompts", {"train": WORKED, "test": ROWS[::-1]})}
    found = support.rows(support.examined(said, turned, model, tmp_path / "b"), tmp_path / "b")
    assert [row["id"] for row in found] != [row["id"] for row in wanted]
    by_id = {row["id"]: row for row in found}
    tokenizer = tokenizers.load(model.path)
    scored = [row for row in wanted if "correct" in row]
    assert len(scored) == 2 * len(ROWS)
    for other in scored:
        one = by_id[other["id"]]
        scores, same = (np.array(json.loads(row["shown"])["scores"]) for row in (one, other))
        tokens = 1 if "per_token" in other["id"] else max(len(tokenizer.encode(text)) for text in TEXTS)
        assert scores / tokens == pytest.approx(same / tokens, abs=1e-5, rel=0)
        assert one["correct"] == other["correct"]


def asking(prompting: Any = "raw", shots: int = 1, seed: int = 0) -> Asking:
    wording = Wording.parse({"instruction": "Choose.", "question": "Question: ", "answer": "Answer:"})
    return Asking(prompting, wording, shots, seed, [Question.of(one) for one in WORKED])


def test_a_question_as_text_with_all_that_may_stand_around_it() -> None:
    one = Question.of(ROWS[0])
    both = Form.parse(form(instruction=True, shots=True, labels="numbers", separator=". "))
    worked = asking().before(both, one)[0]
    assert asking().text(both, one) == (
        f"Choose.\n\nQuestion: {worked.text}\n1. {worked.options[0]}\n2. {worked.options[1]}\n3. {worked.options[2]}\n"
        f"Answer: 2\n\nQuestion: {one.text}\n1. the friend\n2. the town\n3. question\nAnswer:"
    )
    alone = Form.parse(form(labels="none", separator="", scoring="text"))
    assert asking().text(alone, one) == f"Question: {one.text}\nAnswer:"
    assert both.name == "1. label, instruction, shots"
    turns = asking("chat").turns(both, one)
    assert [turn.role for turn in turns] == ["user", "assistant", "user"]
    assert turns[0].content.startswith("Choose.\n\nwhat is said")
    assert turns[1].content == "2"
    goes_on = replace(asking(shots=0), wording=Wording.parse({"instruction": "", "question": "", "answer": ""}))
    assert goes_on.text(alone, one) == one.text, "the answer goes on from it"


def test_worked_questions_are_of_the_subject_the_same_every_time_and_never_the_question_itself() -> None:
    shown = Form.parse(form(shots=True))
    for number, prompt in enumerate(ROWS):
        found = asking(shots=3).before(shown, Question.of(prompt))
        assert {one.tags for one in found} == {("ab"[number % 2],)}
        assert found == asking(shots=3).before(shown, Question.of(prompt))
    assert asking(shots=3, seed=1).before(shown, Question.of(ROWS[0])) != asking(shots=3).before(
        shown, Question.of(ROWS[0])
    )
    for prompt in WORKED:
        own = Question.of(prompt)
        assert len(asking(shots=3).before(shown, own)) == 3
        assert own not in asking(shots=3).before(shown, own)
    assert {one.tags for one in asking(shots=7).before(shown, Question.of(ROWS[0]))} == {("a",), ("b",)}
    assert not asking(shots=3).before(Form.parse(form()), Question.of(ROWS[0]))
    assert len(asking("few_shot", shots=3).before(Form.parse(form()), Question.of(ROWS[0]))) == 3
    assert len(asking(shots=8).before(shown, Question.of(ROWS[0]))) == 8
    for shots, prompt in ((9, ROWS[0]), (8, WORKED[0])):
        with pytest.raises(UserError, match=rf"suite.shots={shots}: there are 8 worked questions"):
            asking(shots=shots).before(shown, Question.of(prompt))


def test_a_subject_with_just_as_many_worked_questions_as_are_shown_shows_its_own() -> None:
    """MMLU's has five of each, of which five are shown."""
    shown = Form.parse(form(shots=True))
    for prompt in ROWS:
        assert {one.tags for one in asking(shots=4).before(shown, Question.of(prompt))} == {prompt.tags}
    own = Question.of(WORKED[0])
    among = asking(shots=4).before(shown, own)
    assert len(among) == 4, "one of them has to take them from all subjects"
    assert own not in among


@pytest.mark.parametrize(
    ("said", "place"),
    [
        ("B", 1),
        (" (b) ", 1),
        ("C)", 2),
        ("B) the town", 1),
        ("The  town.", 1),
        ("A or B", None),
        ("The answer is B", None),
        ("D", None),
        ("", None),
    ],
)
def test_only_a_choice_and_nothing_else_is_read_as_an_answer(said: str, place: int | None) -> None:
    assert read_answer(said, Form.parse(form(scoring="generate")), Question.of(ROWS[0])) == place


def test_a_label_is_read_before_the_text_of_a_choice() -> None:
    numbers = Question.of(row(0, options=["4", "3", "2", "1"]))
    said = Form.parse(form(scoring="generate", labels="numbers"))
    assert [read_answer(one, said, numbers) for one in ("1", "2", "3", "4", "3) 2")] == [0, 1, 2, 3, 2]
    groups = Question.of(row(0, options=["B", "A", "O", "AB"]))
    assert [read_answer(one, Form.parse(form(scoring="generate")), groups) for one in ("B", "A", "o", "AB")] == [
        1,
        0,
        2,
        3,
    ]


def test_drawn_answers_that_are_no_choice_are_counted_and_shown(
    monkeypatch: pytest.MonkeyPatch, model: Artifact, inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    answers = {"q0": "A", "q1": "b)", "q2": "I would say A."}
    speaker = drawing.Speaker(lambda turns, key: answers.get(key.split(":")[0], "C"))
    monkeypatch.setattr(subject.Subject, "respondent", speaker)
    said = settings(formats=[form(scoring="generate"), form()], decoding=DECODING, shots=0)
    rows = support.rows(support.examined(said, inputs, model, tmp_path / "out"), tmp_path / "out")
    drawn = {one["id"].split("|")[0]: one for one in rows if one.get("by_format") == "A) generate"}
    assert [drawn[f"q{n}"]["correct"] for n in range(6)] == [1, 1, 0, 0, 0, 1]
    assert [drawn[f"q{n}"]["invalid"] for n in range(6)] == [0, 0, 1, 0, 0, 0]
    assert json.loads(drawn["q2"]["shown"])["answer"] == "I would say A."
    told = support.estimates(support.examined(said, inputs, model, tmp_path / "out"), tmp_path / "out")
    assert told["invalid"] == pytest.approx(1 / 6)


def test_outside_of_a_chat_an_answer_ends_with_its_line(
    monkeypatch: pytest.MonkeyPatch, model: Artifact, inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    given: list[Any] = []

    def said_to(self: Any, title: str, some: Any, decoding: Any) -> list[list[Reply]]:
        given.extend(some)
        return [[Reply(" A\nQuestion: and now?", 5, False)] for _ in some]

    monkeypatch.setattr(subject.Subject, "continuations", said_to)
    said = settings(formats=[form(scoring="generate")], prompting="raw", decoding=DECODING, shots=0)
    rows = support.rows(support.examined(said, inputs, model, tmp_path / "out"), tmp_path / "out")
    assert [one["correct"] for one in rows] == [1, 0, 0, 1, 0, 0]
    assert tokenizers.load(model.path).decode(given[0].ids).endswith("C) question\nAnswer:")


def test_text_goes_on_as_the_likeliest_tokens_do(model: Artifact, tmp_path: Path) -> None:
    from alignment.evals.suites.subject import Continued, Subject
    from alignment.sampling.decoding import Decoding

    tokenizer = tokenizers.load(model.path)
    ids = [tokenizer.bos_id, *tokenizer.encode("the answer to")]
    (tmp_path / "out").mkdir()
    one = Subject(model, support.ENGINE, support.ENDPOINT, tmp_path / "out")
    ((reply,),) = one.continuations("t", [Continued("k", ids)], Decoding.parse(DECODING))
    whole = list(ids)
    while len(whole) < len(ids) + 6:
        with torch.no_grad():
            whole.append(int(core.load(model.path)(torch.tensor([whole])).logits[0, -1].argmax()))
        if whole[-1] in (tokenizer.eos_id, tokenizer.end_of_turn_id):
            break
    assert reply.tokens == len(whole) - len(ids)
    assert tokenizer.decode([i for i in whole[len(ids) :] if i > 3]).strip() == reply.text.strip()


# ── what is refused ──────────────────────────────────────────────────────────────────────────────


def test_a_chat_is_refused_where_the_model_has_no_template(
    model: Artifact, inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(model.path, bare)
    (bare / "chat_template.jinja").unlink()
    base = replace(model, path=bare, step="base")
    with pytest.raises(UserError, match="model=base: has no chat template") as error:
        support.examined(settings(shots=0, formats=[form()]), inputs, base, tmp_path / "out")
    assert "suite.prompting=raw" in str(error.value.remedy)
    said = settings(shots=0, formats=[form()], prompting="raw")
    assert len(list(support.examined(said, inputs, base, tmp_path / "out").examples)) == 6


def test_a_model_behind_a_server_gives_answers_and_no_likelihoods(
    monkeypatch: pytest.MonkeyPatch, inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    served = Artifact(tmp_path, "endpoint", "", "endpoint:there", "2" * 64)
    with pytest.raises(UserError, match="is behind a server"):
        support.examined(settings(shots=0, formats=[form()]), inputs, served, tmp_path / "out")
    monkeypatch.setattr(subject.Subject, "respondent", drawing.Speaker(lambda turns, key: "A"))
    said = settings(shots=0, formats=[form(scoring="generate")], decoding=DECODING)
    assert len(list(support.examined(said, inputs, served, tmp_path / "out").examples)) == 6


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"formats": [form(), form()]}, "two formats are the same"),
        ({"formats": [form(scoring="generate")]}, "suite.decoding does not say how"),
        ({"formats": [form("none", "", "label")]}, "there is no label to score"),
        ({"prompting": "few_shot", "shots": 0}, "few_shot wants shots"),
        ({"gap": {"group": "size", "first": "a", "second": "b"}}, "gap.group=size is none of"),
        ({"formats": [form(scoring="generate")], "decoding": DECODING | {"samples": 5}}, "decoding.samples=5: one"),
        ({"name": "bbq", "gap": {"group": "category", "first": "a", "second": "b"}}, "BBQ tells its own bias"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        settings(**changes)


def test_prompts_that_are_no_multiple_choice_are_named(model: Artifact, tmp_path: Path) -> None:
    for reference, problem in ((None, "cannot be read"), ('{"pair": []}', "cannot be read"), ("[1", "cannot be read")):
        odd = [replace(ROWS[0], reference=reference)]
        found = {"questions": drawing.dataset(tmp_path / f"{reference}"[:3], "prompts", {"test": odd})}
        with pytest.raises(UserError, match=f"q0: its reference {problem}"):
            support.examined(settings(shots=0, formats=[form()]), found, model, tmp_path / "out")
    untold = {"questions": drawing.dataset(tmp_path / "u", "prompts", {"test": [row(0, ())]})}
    with pytest.raises(UserError, match="nobody says which choice is right"):
        support.examined(settings(shots=0, formats=[form()]), untold, model, tmp_path / "out")


def test_a_question_that_the_model_cannot_see_whole_is_named(model: Artifact, tmp_path: Path) -> None:
    told = {"question": "word " * support.CONTEXT, "options": ["a", "b"], "right": [0]}
    long = [Prompt(messages(("user", told["question"])), "long", reference=json.dumps(told))]
    found = {"questions": drawing.dataset(tmp_path / "q", "prompts", {"test": long})}
    with pytest.raises(UserError, match=rf"long: [\d,]+ tokens, and the model sees {support.CONTEXT}"):
        support.examined(settings(shots=0, formats=[form()]), found, model, tmp_path / "out")


# ── gaps, and the bias of BBQ, from planted answers ──────────────────────────────────────────────


def planted(
    monkeypatch: pytest.MonkeyPatch, chosen: Sequence[int | None], prompts: Sequence[Prompt], forms: int = 1
) -> None:
    """Have the questions answered like this, whatever the model."""
    names = [Form.parse(form(separator=one)) for one in (") ", ". ", ": ")[:forms]]
    answered = [
        Answered(Question.of(prompt), one, place, None, {})
        for prompt, place in zip(prompts, chosen, strict=True)
        for one in names
    ]
    monkeypatch.setattr(choices, "ask", lambda *_: answered)


def test_a_gap_is_the_difference_of_two_accuracies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sides = ["pro"] * 7 + ["anti"] * 4 + ["neither"] * 2
    prompts = [row(n, (0,), (side,)) for n, side in enumerate(sides)]
    chosen = [int(one) for one in rng.integers(0, 2, len(prompts))]
    planted(monkeypatch, chosen, prompts)
    said = settings(formats=[form()], groups=["side"], gap={"group": "side", "first": "pro", "second": "anti"})
    told = support.estimates(support.examined(said, {}, drawing.POLICY, tmp_path / "o"), tmp_path / "o")
    right = [one == 0 for one in chosen]
    assert told["gap"] == pytest.approx(np.mean(right[:7]) - np.mean(right[7:11]))
    assert "gap" not in told["groups"]["side"]["pro"]
    planted(monkeypatch, chosen[:7], prompts[:7])
    with pytest.raises(UserError, match="no question has the side anti"):
        support.examined(said, {}, drawing.POLICY, tmp_path / "o")


def test_spread_is_the_standard_deviation_whatever_is_right_where(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    right_QF = rng.random((40, 5)) < np.array([0.2, 0.4, 0.5, 0.9, 0.9])
    forms = [Form.parse(form(separator=sign)) for sign in ")]:.-"]
    answered = [
        Answered(Question.of(row(n)), one, 0 if right_QF[n, place] else 1, None, {})
        for n in range(40)
        for place, one in enumerate(forms)
    ]
    values = [one.values["spread"] for one in choices.spread(answered)]
    assert np.mean(values) == pytest.approx(right_QF.mean(0).std())
    alike = [one for one in answered if one.form.separator in "-."]
    same = [replace_form(one, right_QF[int(one.question.id[1:]), 3]) for one in alike]
    assert {one.values["spread"] for one in choices.spread(same)} == {0.0}


def replace_form(one: Answered, right: bool) -> Answered:
    return one._replace(chosen=0 if right else 1)


def bbq_rows(count: int) -> list[Prompt]:
    """Half of them ambiguous: the right answer is 2, UNKNOWN; the biased one is 0 or 1."""
    return [
        row(
            n,
            (2,) if n % 2 else (n // 2 % 2,),
            ("ambig" if n % 2 else "disambig", "neg", "x"),
            biased=n // 4 % 2,
            unknown=2,
        )
        for n in range(count)
    ]


def test_bias_scores_are_those_of_the_paper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    prompts = bbq_rows(80)
    chosen: list[int | None] = [int(one) for one in np.random.default_rng(2).choice(3, 80, p=[0.5, 0.2, 0.3])]
    chosen[0] = chosen[1] = None
    planted(monkeypatch, chosen, prompts)
    told = support.estimates(
        support.examined(settings("bbq", questions="run:q"), {}, drawing.POLICY, tmp_path / "o"), tmp_path / "o"
    )
    told_of = [json.loads(one.reference or "") for one in prompts]
    for context, odd in (("ambiguous", 1), ("disambiguated", 0)):
        of = [(take, one) for n, (take, one) in enumerate(zip(chosen, told_of, strict=True)) if n % 2 == odd]
        accuracy = np.mean([take in one["right"] for take, one in of])
        known = [(take, one) for take, one in of if take in (0, 1)]
        score = 2 * sum(take == one["biased"] for take, one in known) / len(known) - 1
        assert told[f"accuracy_{context}"] == pytest.approx(accuracy)
        if context == "disambiguated":
            assert told["bias_disambiguated"] == pytest.approx(score)
            assert told["told"] == pytest.approx(len(known) / len(of))
        else:
            # An answer that is no choice is wrong, but neither biased nor the opposite.
            valid = sum(take is not None for take, _ in of)
            right = sum(take in one["right"] for take, one in of)
            assert told["bias_ambiguous"] == pytest.approx((valid - right) / len(of) * score)


def test_bbq_in_several_formats_tells_their_mean_and_spread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    prompts = bbq_rows(16)
    forms = [Form.parse(form(separator=sign)) for sign in ").:"]
    rng = np.random.default_rng(0)
    answered = [Answered(Question.of(one), each, int(rng.integers(3)), None, {}) for one in prompts for each in forms]
    monkeypatch.setattr(choices, "ask", lambda *_: answered)
    said = settings("bbq", questions="run:q", formats=[form(separator=sign) for sign in ").:"])
    found = support.examined(said, {}, drawing.POLICY, tmp_path / "o")
    told = support.estimates(found, tmp_path / "o")
    by_format = [np.mean([one.correct for one in answered if one.form == each]) for each in forms]
    assert told["spread"] == pytest.approx(np.std(by_format))
    context = {"ambiguous": 0, "disambiguated": 0}
    for name in context:
        of = [one for one in answered if one.question.tags[0] == name[: len(one.question.tags[0])]]
        assert told[f"accuracy_{name}"] == pytest.approx(np.mean([one.correct for one in of]))


@pytest.mark.parametrize(("side", "score"), [("biased", 1.0), ("other", -1.0), ("unknown", None)])
def test_extremes_of_bias(side: str, score: float | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    prompts = bbq_rows(16)
    biased = [json.loads(one.reference or "")["biased"] for one in prompts]
    planted(monkeypatch, [{"biased": one, "other": 1 - one, "unknown": 2}[side] for one in biased], prompts)
    found = support.examined(settings("bbq", questions="run:q"), {}, drawing.POLICY, tmp_path / "o")
    told = support.estimates(found, tmp_path / "o")
    assert told.get("bias_disambiguated") == score, "of no answers at all there is no score"
    assert told["bias_ambiguous"] == (score or 0.0)
    assert told["accuracy_ambiguous"] == (score is None)


def test_questions_without_marks_are_no_bbq(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    planted(monkeypatch, [0], [row(0, tags=("ambig",))])
    with pytest.raises(UserError, match="nobody says which of its answers is biased"):
        support.examined(settings("bbq", questions="run:q"), {}, drawing.POLICY, tmp_path / "o")
    assert bbq.bias(None, (2,), {"biased": 0, "unknown": 2}, ambiguous=True)["bias_ambiguous"] == 0


def test_bbq_as_it_was_published(shared_data: Path, model: Artifact, tmp_path: Path) -> None:
    data = support.real("bbq_religion", shared_data, tmp_path / "data")
    said = settings("bbq", questions="run:q", count=6)
    told = support.estimates(support.examined(said, {"questions": data}, model, tmp_path / "out"), tmp_path / "out")
    assert set(told["groups"]["context"]) == {"ambig", "disambig"}
    assert all(-1 <= told[name] <= 1 for name in ("bias_ambiguous", "bias_disambiguated"))


# ── minimal pairs ────────────────────────────────────────────────────────────────────────────────


def test_the_likelier_sentence_of_a_pair_is_that_of_float64(model: Artifact, tmp_path: Path) -> None:
    pairs = [("the friend of the town", "the town"), ("question 3", "the answer to question 3"), ("said", "saaid")]
    prompts = [
        Prompt(messages(("user", "\n".join(pair))), f"p{n}", ("gender",), reference=json.dumps({"pair": pair}))
        for n, pair in enumerate(pairs)
    ]
    inputs = {"pairs": drawing.dataset(tmp_path / "p", "prompts", {"test": prompts})}
    said = support.settings("crows_pairs", pairs="run:p")
    found = support.rows(support.examined(said, inputs, model, tmp_path / "out"), tmp_path / "out")
    bos = [tokenizers.load(model.path).bos_id]
    for one, pair in zip(found, pairs, strict=True):
        first, second = (likelihoods(model, bos, sentence)[0] for sentence in pair)
        assert one["margin"] == pytest.approx(first - second, abs=2e-3)
        assert one["apart"] == pytest.approx(abs(first - second), abs=2e-3)
        assert one["first_likelier"] == (first > second)
        assert one["by_bias"] == "gender"
    assert {one["first_likelier"] for one in found} == {0.0, 1.0}
    assert math.isfinite(found[0]["margin"])
    odd = {"pairs": drawing.dataset(tmp_path / "o", "prompts", {"test": ROWS[:1]})}
    with pytest.raises(UserError, match="its reference cannot be read"):
        support.examined(said, odd, model, tmp_path / "out")


@pytest.mark.parametrize(
    "name",
    ["mmlu", "arc", "hellaswag", "truthfulqa", "bbq", "winogender", "winobias", "crows_pairs", "bbh", "agieval",
     "truthfulqa_generated", "toxigen", "real_toxicity", "gsm8k_harness", "miniature_choices_raw"],
)  # fmt: skip
def test_suites_that_are_shipped_are_whole(name: str) -> None:
    assert support.settings(name).kind in ("choices", "bbq", "minimal_pairs", "lm_eval")


def test_text_without_room_behind_it_is_refused_before_anything_is_drawn(
    monkeypatch: pytest.MonkeyPatch, model: Artifact, tmp_path: Path
) -> None:
    limit = core.read_config(model.path).max_position_embeddings
    given = [subject.Continued("short", [2, 5]), subject.Continued("long", [2] * limit)]
    monkeypatch.setattr(Sampler, "draw", None)
    one = subject.Subject(model, support.ENGINE, support.ENDPOINT, tmp_path)
    with pytest.raises(UserError, match=r"'long' of .* leaves no room"):
        one.continuations("drawn", given, Decoding.model_validate(DECODING))
