"""Attention to the instruction: against transformers' own weights, a layer at a time, and the page that shows it."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import recall_support as support
import torch

from alignment.artifacts import Artifact
from alignment.chat.render import render
from alignment.chat.types import Messages, messages
from alignment.errors import UserError
from alignment.evals.suites import attending, recall
from alignment.evals.suites.recall import Settings
from alignment.gemma import core
from alignment.miniature import corpus
from alignment.reporting import attention
from alignment.training.policies import Policy

TOLD = "Act as a pirate."
SHAPES = ("mini_tiny", "mini_gemma1")


@pytest.fixture(scope="module", params=SHAPES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Policy]:
    return support.tiny(tmp_path_factory.mktemp("tiny"), request.param)


def dialogue(answers: int = 3) -> Messages:
    """So long that layers with a window of 64 cannot see its beginning in the end."""
    turns: list[Any] = []
    for turn in range(answers):
        question = f"What is Anna's job, and whom does she know in town, number {turn}?"
        turns += [
            ("user", f"{TOLD} {question}" if not turn else question),
            ("assistant", f"Ahoy! She is a baker {turn}."),
        ]
    return messages(*turns)


def test_the_maxima_are_those_of_all_layers_and_heads(made: tuple[Artifact, Policy]) -> None:
    policy = made[1]
    found = attending.attended(policy, dialogue(), TOLD)
    ids, mask = render(dialogue(), policy.tokenizer, policy.schema)
    assert "".join(found["pieces"]).replace("▁", " ").strip() == TOLD
    begin = next(at for at in range(len(ids)) if policy.tokenizer.decode(ids[at : at + len(found["pieces"])]) == TOLD)
    plain = core.load(made[0].path, attention="eager").double()
    with torch.no_grad():
        layers = plain(torch.tensor([ids]), output_attentions=True, use_cache=False).attentions
    weights_LHTT = torch.stack([one[0] for one in layers])
    to_LHTI = weights_LHTT[..., begin : begin + len(found["pieces"])]
    share, pieces = [], []
    for turn in range(3):
        # A token was drawn from the position before it.
        drawn = [at - 1 for at in range(1, len(ids)) if mask[at] and sum(_begins(mask)[: at + 1]) == turn + 1]
        share.append([max(to_LHTI[..., at, :].sum(-1).flatten().tolist()) for at in drawn])
        pieces.append(to_LHTI[:, :, drawn].amax((0, 1, 2)).tolist())
    for turn in range(3):
        assert found["share"][turn] == pytest.approx(share[turn], abs=1e-5)
        assert found["pieces_by_turn"][turn] == pytest.approx(pieces[turn], abs=1e-5)
    assert all(0 < one <= 1 for of in found["share"] for one in of)


def _begins(mask: list[bool]) -> list[bool]:
    return [one and not before for before, one in zip([False, *mask], mask, strict=False)]


def test_one_layers_weights_are_held_at_a_time_and_the_attention_is_given_back(made: tuple[Artifact, Policy]) -> None:
    policy = made[1]
    before = core.causal_lm(policy.model).config._attn_implementation
    there: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def watch(module: Any, inputs: Any, output: Any) -> None:
        nonlocal most
        there.append(weakref.ref(output[1]))
        most = max(most, sum(one() is not None for one in there))

    layers: Any = core.trunk(policy.model).layers
    hooks = [layer.self_attn.register_forward_hook(watch) for layer in layers]
    attending.attended(policy, dialogue(), TOLD)
    for hook in hooks:
        hook.remove()
    assert len(there) == 4
    assert most == 1
    assert core.causal_lm(policy.model).config._attn_implementation == before
    assert not any(layer.self_attn._forward_hooks for layer in layers)


def test_runs_of_a_mask() -> None:
    assert list(attending.runs([False, True, True, False, True])) == [(1, 3), (4, 5)]
    assert list(attending.runs([True, False])) == [(0, 1)]
    assert list(attending.runs([False])) == []


def test_figures_are_written_beside_the_examples_where_asked_for(made: tuple[Artifact, Policy], tmp_path: Path) -> None:
    questions = support.dataset(tmp_path / "rows", list(corpus.prompts(support.WORLD, 60, 0)), miniature=True)
    small = {"dialogues": 2, "turns": 2, "decoding__max_new_tokens": 6}
    said = support.suite("miniature_ghost", **small)
    for name, wanted in (("a", True), ("b", True), ("none", False)):
        subject = support.subject_of(made[0], tmp_path / name)
        settings, inputs = Settings.parse(said | {"attention": wanted}), {"questions": questions}
        list(recall.examine(settings, inputs, subject).examples)
        recall.figures(settings, inputs, subject)
    assert not (tmp_path / "none" / "attention.html").exists()
    pages = [(tmp_path / name / "attention.html").read_bytes() for name in ("a", "b")]
    assert pages[0] == pages[1], "the same twice"
    found = json.loads((tmp_path / "a" / "attention.json").read_text())
    assert len(found["share"]) == len(found["answers"]) == len(found["pieces_by_turn"])
    assert found["instruction"].encode() in pages[0]


def test_the_page_says_how_far_attention_falls_and_takes_no_markup() -> None:
    found = {
        "instruction": "<b>Act</b>",
        "answers": ["<i>one</i>", "two"],
        "pieces": ["<b>", "Act"],
        "share": [[0.5, 0.7], [0.1, 0.3]],
        "pieces_by_turn": [[0.4, 0.5], [0.1, 0.2]],
    }
    figure = attention.by_turn(found)
    assert list(figure.data[0].y) == pytest.approx([0.6, 0.2])
    assert list(figure.data[1].y) == pytest.approx([0.7, 0.3])
    assert figure.layout.title.text == "Attention to the instruction goes from 0.60 in turn 1 to 0.20 in turn 2"
    assert [list(row) for row in attention.by_piece(found).data[0].z] == found["pieces_by_turn"]
    page = attention.page(found)
    assert "&lt;b&gt;Act&lt;/b&gt;" in page
    for markup in ("<b>Act</b>", "<i>one</i>"):
        assert markup not in page


def test_a_model_behind_a_server_has_no_attention_to_show(tmp_path: Path) -> None:
    questions = support.dataset(tmp_path / "rows", list(corpus.prompts(support.WORLD, 60, 0)), miniature=True)
    subject = support.subject_of(support.SERVED, tmp_path / "out")
    with pytest.raises(UserError, match="is behind a server"):
        recall.examine(Settings.parse(support.suite("miniature_ghost")), {"questions": questions}, subject)
