"""One model's answers to held-out prompts: what is kept of each, by which scorers, and what is refused beforehand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import drawing
import numpy as np
import pyarrow.parquet as pq
import pytest
from evals.suites import suite_support

from alignment.artifacts import Artifact, named
from alignment.chat import tokenizers
from alignment.chat.render import prompt_ids, render
from alignment.chat.types import Conversation, Messages, Prompt, messages, prompt_key, row_key
from alignment.data import seen
from alignment.errors import UserError
from alignment.evals import answers
from alignment.evals.suites import subject
from alignment.gemma import core
from alignment.sampling.decoding import Decoding
from alignment.sampling.model_respondent import ModelRespondent
from alignment.sampling.sampler import Sampler
from alignment.scoring import opening
from alignment.scoring.scorer import Scores
from alignment.stages import answer
from alignment.training import held_out

REWARD = Artifact(Path("/nowhere"), "reward", "reward", "helpful", "2" * 64)
SERVED = named("endpoint", "m")
COUNT = 600


class Centred:
    """Raw scores are lengths, reported ones 100 less."""

    name, absolute = "whatever", False

    def score(self, dialogues: Sequence[Messages]) -> Scores:
        raw = [float(len(turns[-1].content)) for turns in dialogues]
        return Scores(raw, [value - 100 for value in raw], [0.5] * len(raw))


def settings(**changes: Any) -> answer.Settings:
    values = drawing.values(
        "answer", **{"model": "run:m", "prompts": "run:p", "conversations": None, "reference": None} | changes
    )
    parsed: answer.Settings = answer.Settings.parse(values)
    return parsed


def prompts(count: int = COUNT) -> list[Prompt]:
    return [Prompt(messages(("user", f"Say {n}")), f"p{n}", tags=("odd" if n % 2 else "even",)) for n in range(count)]


Ask = Callable[..., Path]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ask:
    """Ask whoever answers by a function; returns the artifact's folder."""

    def ask(
        name: str,
        speaker: drawing.Speaker,
        rewards: Sequence[Artifact] = (),
        read: list[Any] | None = None,
        count: int = COUNT,
        **changes: Any,
    ) -> Path:
        def open_scorer(artifact: Artifact, *_: Any, **reading: Any) -> Centred:
            if read is not None:
                read.append(reading)
            return Centred()

        monkeypatch.setattr(opening, "open_scorer", open_scorer)
        monkeypatch.setattr(subject.Subject, "respondent", speaker)
        (out := tmp_path / name).mkdir(exist_ok=True)
        data = drawing.dataset(tmp_path / "data", "prompts", {"test": prompts(count)})
        inputs = {"model": SERVED, "prompts": data} | {f"rewards.{place}": one for place, one in enumerate(rewards)}
        answer.run(settings(rewards=["run:x"] * len(rewards) or None, **changes), inputs, out)
        return out

    return ask


def echo(turns: Messages, key: str) -> str:
    return f"it is {turns[-1].content.split()[-1]}"


# ── what is kept ─────────────────────────────────────────────────────────────────────────────────


def test_every_answer_is_kept_with_its_rewards(asked: Ask) -> None:
    out = asked("m", drawing.Speaker(echo), [REWARD, replace(REWARD, step="safety")], count=20)
    rows = pq.read_table(out / answers.ANSWERS).to_pylist()
    assert [row["answer"] for row in rows] == [f"it is {n}" for n in range(20)]
    # Answers of seven and of eight characters, centred at 100.
    assert [row["reward_safety"] for row in rows] == [-93.0] * 10 + [-92.0] * 10
    found = answers.read(out)
    assert found.ids == [f"p{n}" for n in range(20)]
    assert found.keys == [prompt_key(one.messages) for one in prompts(20)]
    assert found.tags[1] == ["odd"]
    assert found.columns.keys() == {"reward_helpful", "reward_safety", "tokens", "finished"}
    assert not (out / answers.HELD_OUT).exists()


def test_rewards_of_one_name_are_told_apart(asked: Ask) -> None:
    out = asked("m", drawing.Speaker(echo), [REWARD, replace(REWARD, fingerprint="7" * 64)], count=3)
    assert set(answers.read(out).measures) == {"reward_helpful-2222", "reward_helpful-7777"}


def test_a_classifier_is_read_as_the_settings_say(asked: Ask) -> None:
    read: list[Any] = []
    asked("a", drawing.Speaker(echo), [REWARD], read, 3, classifier__label="toxic", classifier__text="answer")
    asked("b", drawing.Speaker(echo), [REWARD], read, 3)
    assert [(one["label"], one["text"]) for one in read] == [("toxic", "answer"), (None, "dialogue")]
    assert all(one["prompts"] for one in read), "a check reads what is right from them"


def test_without_rewards_there_are_none(asked: Ask) -> None:
    assert not answers.read(asked("m", drawing.Speaker(echo), count=3)).measures


def test_one_that_was_killed_goes_on_where_it_was_and_ends_alike(asked: Ask) -> None:
    whole = asked("whole", drawing.Speaker(echo), [REWARD])
    with pytest.raises(KeyboardInterrupt):
        asked("killed", drawing.Speaker(echo, patience=1), [REWARD])
    again = drawing.Speaker(echo)
    killed = asked("killed", again, [REWARD])
    assert len(again.asked) == COUNT - subject.PART
    assert (killed / answers.ANSWERS).read_bytes() == (whole / answers.ANSWERS).read_bytes()


def test_a_score_that_is_no_number_is_refused_with_the_prompt_that_has_it(
    asked: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(self: Centred, dialogues: Sequence[Messages]) -> Scores:
        values = [float("nan") if turns[-1].content == "it is 7" else 0.0 for turns in dialogues]
        return Scores(values, values, values)

    monkeypatch.setattr(Centred, "score", score)
    with pytest.raises(UserError, match=r"^p7: its reward_helpful is nan"):
        asked("m", drawing.Speaker(echo), [REWARD], count=20)


# ── a model that lies here ───────────────────────────────────────────────────────────────────────


TALK = [
    Conversation(messages(("user", f"question {n}"), ("assistant", f"the answer is {n}, said the friend")), f"c{n}")
    for n in range(4)
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Artifact]:
    return [suite_support.policy(tmp_path_factory.mktemp(f"tiny{seed}"), seed=seed) for seed in (1, 2)]


def measured(models: list[Artifact], folder: Path, turned: int = 1, **how: float) -> Path:
    """A tiny model's answers, their KL to another, and its losses on a few conversations."""
    (out := folder / "out").mkdir(parents=True)
    inputs = {
        "model": models[0],
        "reference": models[1],
        "prompts": drawing.dataset(folder / "p", "prompts", {"test": prompts(5)[::turned]}),
        "conversations": drawing.dataset(folder / "c", "conversations", {"test": TALK[::turned]}),
    }
    said = settings(reference="run:r", conversations="run:c", max_new_tokens=12, **how)
    answer.run(said, inputs, out)
    return out


def logprobs(model: Artifact, ids: list[int], temperature: float = 1.0) -> np.ndarray:
    """``logprobs_TV`` of what follows each id, by the model's logits in float64."""
    import torch

    with torch.no_grad():
        logits_TV = core.load(model.path)(torch.tensor([ids])).logits[0].double().numpy() / temperature
    return logits_TV - np.log(np.exp(logits_TV).sum(-1, keepdims=True))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_kl_and_losses_are_those_of_the_models_themselves(
    models: list[Artifact], tmp_path: Path, temperature: float
) -> None:
    """The KL at the temperature of the answers, the perplexity at 1."""
    out = measured(models, tmp_path, temperature=temperature)
    tokenizer = tokenizers.load(models[0].path)
    rows = pq.read_table(out / answers.ANSWERS).to_pylist()
    respondent = ModelRespondent("m", core.load(models[0].path), tokenizer)
    how = Decoding(samples=1, temperature=temperature, top_p=1.0, max_new_tokens=12, seed=0)
    drawn = respondent.reply([one.messages for one in prompts(5)], [one.id for one in prompts(5)], how)
    for prompt, row, (reply,) in zip(prompts(5), rows, drawn, strict=True):
        assert (row["answer"], row["tokens"]) == (reply.text, reply.tokens)
        begin = len(prompt_ids(prompt.messages, tokenizer))
        ids = [*prompt_ids(prompt.messages, tokenizer), *(reply.ids or ())]
        p_TV, q_TV = (logprobs(model, ids, temperature)[begin - 1 : -1] for model in models)
        assert row["kl"] == pytest.approx((np.exp(p_TV) * (p_TV - q_TV)).sum(), rel=1e-4)
        of_its_own = sum(p_TV[place, one] for place, one in enumerate(reply.ids or ()))
        assert row["logprob"] == pytest.approx(of_its_own, rel=1e-4)
    losses = answers.read_held_out(out)
    assert losses is not None
    assert losses.units == [prompt_key(one.messages) for one in TALK]
    for row, nll, tokens in zip(TALK, losses.nll_N, losses.tokens_N, strict=True):
        ids, mask = render(row.messages, tokenizer, "gemma2")
        of_TV = logprobs(models[0], ids)
        wanted = -sum(of_TV[place - 1, ids[place]] for place in range(1, len(ids)) if mask[place])
        assert (nll, tokens) == (pytest.approx(wanted, rel=1e-5), sum(mask))


def test_conversations_beyond_the_context_are_listed(
    models: list[Artifact], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limit = core.read_config(models[0].path).max_position_embeddings
    long = Conversation(messages(("user", "question"), ("assistant", "answer " * limit)), "long")
    inputs = {
        "model": models[0],
        "prompts": drawing.dataset(tmp_path / "p", "prompts", {"test": prompts(2)}),
        "conversations": drawing.dataset(tmp_path / "c", "conversations", {"test": [TALK[0], long, TALK[1]]}),
    }
    outcome = answer.run(settings(conversations="run:c", max_new_tokens=4), inputs, tmp_path)
    assert (outcome.notes["conversations"], outcome.notes["left_out"]) == (2, 1)
    losses = answers.read_held_out(tmp_path)
    assert losses is not None
    assert losses.units == [prompt_key(one.messages) for one in TALK[:2]]
    (left,) = [json.loads(line) for line in (tmp_path / answer.LEFT_OUT).read_text().splitlines()]
    assert (left["id"], left["reason"]) == ("long", "too long")
    assert left["tokens"] > limit
    assert "no perplexity on 1 of 3 conversations" in capsys.readouterr().out


def test_sizes_of_parts_and_batches_and_their_order_change_no_score(
    models: list[Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = measured(models, tmp_path / "one")
    monkeypatch.setattr(subject.Subject.in_parts, "__defaults__", (2,))
    monkeypatch.setattr(held_out, "TOKENS_A_BATCH", 100)
    other = measured(models, tmp_path / "other", -1)
    first, second = answers.read(one), answers.read(other)
    assert second.ids == first.ids[::-1]
    for name, values_P in first.columns.items():
        assert second.columns[name][::-1] == pytest.approx(values_P, abs=1e-5)
    losses = [answers.read_held_out(out) for out in (one, other)]
    assert losses[1].nll_N[::-1] == pytest.approx(losses[0].nll_N, abs=1e-5)  # type: ignore[union-attr]


# ── what is refused before anything is drawn ─────────────────────────────────────────────────────


def test_a_model_without_a_chat_format_is_refused(tmp_path: Path) -> None:
    base = replace(drawing.POLICY, path=tmp_path / "base", step="base")
    with pytest.raises(UserError, match=r"^model=base: has no chat template"):
        answer.precheck(settings(), {"model": base})


def test_of_a_model_behind_a_server_neither_kl_nor_perplexity_is_asked() -> None:
    answer.precheck(settings(), {"model": SERVED})
    with pytest.raises(UserError, match="is behind a server") as error:
        answer.precheck(settings(conversations="run:c", reference="run:r"), {"model": SERVED})
    assert error.value.remedy == "Say reference=null conversations=null."


@pytest.mark.parametrize("how", [{"temperature": 0.0}, {"top_p": 0.9}])
def test_of_greedy_and_cut_answers_there_is_no_kl(how: dict[str, float]) -> None:
    settings(**how)
    with pytest.raises(UserError, match="the KL of such answers") as error:
        settings(reference="run:r", **how)
    assert "reference=null" in str(error.value.remedy)


def test_a_reference_of_another_tokenizer_is_refused(models: list[Artifact], tmp_path: Path) -> None:
    other = suite_support.policy(tmp_path, [f"{n} times {n} is {n * n}, they wrote" for n in range(200)])
    with pytest.raises(UserError, match=r"^reference: has another tokenizer"):
        answer.precheck(settings(reference="run:r"), {"model": models[0], "reference": other})


def talk(folder: Path, *splits: Any) -> Artifact:
    return drawing.dataset(folder, "conversations", dict.fromkeys(splits, TALK))


def of(model: Artifact, tmp_path: Path) -> subject.Subject:
    return subject.Subject(model, None, None, tmp_path)  # type: ignore[arg-type]


def test_conversations_that_the_model_was_trained_on_have_no_perplexity(tmp_path: Path) -> None:
    one = of(replace(drawing.POLICY, path=tmp_path / "m"), tmp_path)
    inputs = {"conversations": talk(tmp_path / "c", "train", "test")}
    found = answer._conversations(settings(), inputs, one)
    assert found == TALK
    one.artifact.path.mkdir()
    seen.write(one.artifact.path, {row_key(row) for row in found}, [])
    with pytest.raises(UserError, match="has been trained on 4 of the 4 prompts"):
        answer._conversations(settings(), inputs, one)


def test_conversations_without_the_split_are_refused_and_no_other_is_taken(tmp_path: Path) -> None:
    inputs = {"conversations": talk(tmp_path / "c", "train", "valid")}
    with pytest.raises(UserError, match="has no row in the split test") as error:
        answer._conversations(settings(), inputs, of(drawing.POLICY, tmp_path))
    assert "train, valid" in str(error.value.cause)


@pytest.mark.parametrize("what", ["prompt", "conversations"])
def test_what_is_too_long_is_refused_before_anything_is_drawn(
    models: list[Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    limit = core.read_config(models[0].path).max_position_embeddings
    words, several = "answer " * limit, prompts(3)
    long = Conversation(messages(("user", "question"), ("assistant", words)), "long")
    if what == "prompt":
        several[2] = Prompt(messages(("user", words)), "last")
    inputs = {
        "model": models[0],
        "prompts": drawing.dataset(tmp_path / "p", "prompts", {"test": several}),
        "conversations": drawing.dataset(
            tmp_path / "c", "conversations", {"test": [long, TALK[0]][: 1 + (what == "prompt")]}
        ),
    }
    monkeypatch.setattr(subject.Subject.in_parts, "__defaults__", (1,))
    monkeypatch.setattr(Sampler, "draw", None)
    said = "'last' of .* leaves no room" if what == "prompt" else "none of 1 fits"
    with pytest.raises(UserError, match=said):
        answer.run(settings(conversations="run:c", max_new_tokens=4), inputs, tmp_path)
