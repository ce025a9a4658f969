"""KL and perplexity of tiny models against float64 written apart."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import suite_support as support
import torch
from stages import drawing

from alignment.artifacts import Artifact, named
from alignment.chat import tokenizers
from alignment.chat.render import prompt_ids, render
from alignment.chat.types import Conversation, Prompt, Text, messages
from alignment.errors import UserError
from alignment.evals.suites import subject
from alignment.gemma import core
from alignment.training import held_out

PROMPTS = [Prompt(messages(("user", f"what is the answer to question {n}?")), f"p{n}") for n in range(5)]
TALK = [
    Conversation(messages(("user", f"question {n}"), ("assistant", f"the answer is {n}, said the friend")), f"c{n}")
    for n in range(4)
]
DECODING = {"samples": 2, "temperature": 0.7, "top_p": 1.0, "max_new_tokens": 12, "seed": 0}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Artifact]:
    return [support.policy(tmp_path_factory.mktemp(f"tiny{seed}"), seed=seed) for seed in (1, 2)]


@pytest.fixture
def inputs(models: list[Artifact], tmp_path: Path) -> dict[str, Artifact]:
    text = [Text(" ".join(support.LINES[:5]), "t:0"), Text("the friend of the town", "t:1")]
    named_ = {
        "prompts": drawing.dataset(tmp_path / "p", "prompts", {"test": PROMPTS}),
        "data.0": drawing.dataset(tmp_path / "talk", "conversations", {"test": TALK}),
        "data.1": drawing.dataset(tmp_path / "prose", "text", {"test": text}),
        "reference": models[1],
    }
    return {key: one if key == "reference" else _called(one, key) for key, one in named_.items()}


def _called(artifact: Artifact, key: str) -> Artifact:
    from dataclasses import replace

    return replace(artifact, step={"data.0": "talk", "data.1": "prose"}.get(key, key))


def settings(**changes: Any) -> Any:
    values = {"prompts": "run:p", "reference": "run:r", "data": ["run:t", "run:x"], "decoding": DECODING, "block": 64}
    return support.settings("kl", **values | changes)


def logits(model: Artifact, ids: list[int], temperature: float) -> torch.Tensor:
    """``logprobs_TV`` of what follows each id, in float64."""
    with torch.no_grad():
        found_TV = core.load(model.path)(torch.tensor([ids])).logits[0].double()
    return torch.log_softmax(found_TV / temperature, -1)


def test_kl_is_that_of_the_models_own_answers_at_their_temperature(
    models: list[Artifact], inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    from alignment.sampling.model_respondent import ModelRespondent

    only = {key: one for key, one in inputs.items() if not key.startswith("data")}
    found = support.examined(settings(data=[]), only, models[0], tmp_path / "out")
    assert [one.name for one in found.measures] == ["kl", "kl_token", "tokens", "finished"]
    rows = support.rows(found, tmp_path / "out")
    told = support.estimates(support.examined(settings(data=[]), only, models[0], tmp_path / "out"), tmp_path / "out")
    tokenizer = tokenizers.load(models[0].path)
    said = settings().decoding
    respondent = ModelRespondent("m", core.load(models[0].path), tokenizer)
    drawn = respondent.reply([one.messages for one in PROMPTS], [one.id for one in PROMPTS], said)
    totals, tokens = [], []
    for prompt, samples, row in zip(PROMPTS, drawn, rows, strict=True):
        of = []
        for reply in samples:
            asked = prompt_ids(prompt.messages, tokenizer)
            assert reply.ids is not None
            p_TV, q_TV = (logits(model, [*asked, *reply.ids], 0.7)[len(asked) - 1 : -1] for model in models)
            of.append(float((p_TV.exp() * (p_TV - q_TV)).sum()))
        assert row["kl"] == pytest.approx(sum(of) / 2, rel=1e-4)
        assert row["tokens"] == sum(len(reply.ids or ()) for reply in samples) / 2
        totals.append(sum(of) / 2)
        tokens.append(row["tokens"])
    assert told["kl"] == pytest.approx(sum(totals) / 5, rel=1e-4)
    assert told["kl_token"] == pytest.approx(sum(totals) / sum(tokens), rel=1e-4)
    assert told["kl"] > 1.0


def test_a_model_is_as_near_as_can_be_to_itself(
    models: list[Artifact], inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    found = support.examined(settings(data=[]), inputs | {"reference": models[0]}, models[0], tmp_path / "out")
    assert all(abs(row["kl"]) < 1e-9 for row in support.rows(found, tmp_path / "out"))


def test_perplexity_is_the_exponential_of_the_mean_over_tokens(
    models: list[Artifact], inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    said = settings(prompts=None, reference=None)
    only = {key: one for key, one in inputs.items() if key.startswith("data")}
    found = support.examined(said, only, models[0], tmp_path / "out")
    told = support.estimates(found, tmp_path / "out")
    tokenizer = tokenizers.load(models[0].path)
    nll, count = 0.0, 0
    for row in TALK:
        ids, mask = render(row.messages, tokenizer, "gemma2")
        logprobs_TV = logits(models[0], ids, 1.0)
        nll -= sum(float(logprobs_TV[place - 1, ids[place]]) for place in range(1, len(ids)) if mask[place])
        count += sum(mask)
    talk = told["groups"]["data"]["talk"]
    assert talk["perplexity"] == pytest.approx(math.exp(nll / count), rel=1e-4)
    assert talk["nll"] == pytest.approx(nll / count, rel=1e-5)
    assert told["groups"]["data"]["prose"]["perplexity"] != pytest.approx(talk["perplexity"])
    assert found.notes["held_out_rows"]["talk"] == 4
    assert found.notes["held_out_rows"]["prose"] > 2, "a long text is cut into rows"


def test_sizes_of_parts_and_batches_and_their_order_change_no_score(
    monkeypatch: pytest.MonkeyPatch, models: list[Artifact], inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    wanted = support.rows(support.examined(settings(), inputs, models[0], tmp_path / "a"), tmp_path / "a")
    monkeypatch.setattr(subject.Subject.in_parts, "__defaults__", (2,))
    monkeypatch.setattr(held_out, "TOKENS_A_BATCH", 100)
    turned = {
        "prompts": drawing.dataset(tmp_path / "turned_p", "prompts", {"test": PROMPTS[::-1]}),
        "data.0": _called(drawing.dataset(tmp_path / "turned", "conversations", {"test": TALK[::-1]}), "data.0"),
    }
    found = support.rows(support.examined(settings(), inputs | turned, models[0], tmp_path / "b"), tmp_path / "b")
    assert [row["id"] for row in found] != [row["id"] for row in wanted]
    by_id = {row["id"]: row for row in found}
    assert by_id.keys() == {row["id"] for row in wanted}
    for other in wanted:
        one = by_id[other["id"]]
        assert one.keys() == other.keys()
        assert json.loads(one["shown"]) == json.loads(other["shown"])
        name, tokens = ("kl", "tokens") if "kl" in other else ("nll", "held_out")
        assert one[tokens] == other[tokens]
        assert one[name] / one[tokens] == pytest.approx(other[name] / one[tokens], abs=1e-5, rel=0)
        assert one[name] == pytest.approx(other[name], abs=1e-4, rel=1e-5)


def test_another_tokenizer_is_refused(models: list[Artifact], inputs: dict[str, Artifact], tmp_path: Path) -> None:
    stranger = support.policy(tmp_path / "stranger", [line.upper() for line in support.LINES])
    with pytest.raises(UserError, match="has another tokenizer than the model"):
        support.examined(settings(), inputs | {"reference": stranger}, models[0], tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"decoding": DECODING | {"temperature": 0.0}}, "temperature=0"),
        ({"decoding": DECODING | {"top_p": 0.9}}, r"top_p=0\.9"),
        ({"reference": None}, "reference=null: a KL needs a reference and prompts"),
        ({"prompts": None}, "prompts=null: a KL needs a reference and prompts"),
        ({"prompts": None, "reference": None, "data": []}, "there is nothing to measure"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        settings(**changes)


def test_served_models_and_seen_prompts_are_refused(
    models: list[Artifact], inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    from alignment.chat.types import prompt_key
    from alignment.data import seen

    with pytest.raises(UserError, match="is behind a server"):
        support.examined(settings(), inputs, named("endpoint", "m"), tmp_path / "out")
    trained = support.policy(tmp_path / "trained", seed=1)
    seen.write(trained.path, [prompt_key(TALK[2].messages)], [])
    only = {key: one for key, one in inputs.items() if key.startswith("data")}
    with pytest.raises(UserError, match="has been trained on"):
        support.examined(settings(prompts=None, reference=None), only, trained, tmp_path / "out")
