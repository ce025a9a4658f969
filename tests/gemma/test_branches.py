"""Answers that share a prompt in a line: the scores and the gradients of rows of their own, and little padding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from alignment.chat import tokenizers
from alignment.chat.render import answer_ids, prompt_ids
from alignment.chat.train import train
from alignment.gemma import branches, heads
from alignment.gemma.branches import Tree
from alignment.miniature import corpus
from alignment.miniature.world import World
from alignment.training.rows import PlannedBatches

FAMILIES = ["gemma1", "gemma2"]
# Gemma 2's window is 5: some of these prompts and answers are shorter, others several windows long.
SHAPES = [
    (9, (4,)),
    (3, (2, 6)),
    (14, (1, 12, 3)),
    (1, (7, 7)),
    (0, (5, 2)),
    (6, (1, 1, 1, 1, 1)),
    (12, (9, 2)),
]  # fmt: skip


def trees(shapes: Sequence[tuple[int, Sequence[int]]] = SHAPES, seed: int = 0) -> list[Tree]:
    """Trees of random ids: the length of each prompt, and of its answers."""
    generator = torch.Generator().manual_seed(seed)

    def draw(length: int) -> list[int]:
        return torch.randint(3, tiny.VOCABULARY, (length,), generator=generator).tolist()

    return [Tree(draw(prompt), [draw(answer) for answer in answers]) for prompt, answers in shapes]


def reward(family: str, attention: str | None = None) -> heads.RewardModel:
    model = tiny.model(tiny.SHAPES[family])
    if attention:
        model.set_attn_implementation(attention)
    return heads.with_head(model, 0)


def alone(model: nn.Module, some: Sequence[Tree]) -> Tensor:
    """The vanilla logit of every answer in a row of its own, behind its prompt."""
    rows = [[*tree.prompt, *answer] for tree in some for answer in tree.answers]
    return torch.stack([model(input_ids=torch.tensor([row]), use_cache=False).logits[0, 0] for row in rows])


def together(model: nn.Module, some: Sequence[Tree], *, share: bool = True) -> Tensor:
    return branches.scores(model, branches.lay_out(some, pad_id=0, share=share))


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize(("family", "attention"), [("gemma1", "sdpa"), ("gemma1", "eager"), ("gemma2", "eager")])
@torch.no_grad()
def test_an_answers_score_is_that_of_a_row_of_its_own(family: str, attention: str, share: bool) -> None:
    model = reward(family, attention)
    assert model.config._attn_implementation == attention
    wanted, found = alone(reward(family), trees()), together(model, trees(), share=share)
    assert found.shape == (sum(len(answers) for _, answers in SHAPES),)
    assert found.dtype == torch.float32
    assert wanted.std() > 0.3, "scores that hardly differ would show nothing"
    assert torch.allclose(found, wanted, atol=1e-5), (found - wanted).abs().max()


@pytest.mark.slow
@torch.no_grad()
def test_flex_attention_scores_as_eager_does() -> None:
    """Forward alone: on a CPU flex_attention has no backward, and is compiled for half a minute and more."""
    found, wanted = together(reward("gemma2", "flex_attention"), trees()), together(reward("gemma2"), trees())
    assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("window", [None, 3])
def test_flex_attention_is_told_what_the_other_kernels_are_told(window: int | None) -> None:
    from torch.nn.attention.flex_attention import create_mask

    lines = branches.lay_out(trees(), pad_id=0)
    count, width = lines["input_ids"].shape
    rule = branches._mask("flex_attention", lines, window).mask_mod
    told = create_mask(rule, count, 1, width, width, device="cpu")
    seen = branches._mask("sdpa", lines, window)
    assert torch.equal(told, seen)
    added = branches._mask("eager", lines, window)
    assert torch.equal(added == 0, seen)
    assert added.min() == torch.finfo(torch.float32).min
    assert seen.any(-1).all(), "no row of the softmax is empty"


@pytest.mark.parametrize("place", range(len(SHAPES)))
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_so_does_every_tree_by_itself(family: str, place: int) -> None:
    model, some = reward(family), trees()[place : place + 1]
    assert torch.allclose(together(model, some), alone(model, some), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("share", [True, False])
def test_gradients_are_those_of_rows_of_their_own(family: str, share: bool) -> None:
    def gradients(scores) -> list[Tensor]:
        model = reward(family)
        values = scores(model)
        # Another weight on every score, so that one in another's place shows.
        (values * torch.linspace(-1, 1, len(values))).sum().backward()
        return [parameter.grad for parameter in model.parameters()]

    wanted = gradients(lambda model: alone(model, trees()))
    found = gradients(lambda model: together(model, trees(), share=share))
    largest = max(gradient.abs().max() for gradient in wanted)
    assert largest > 0.1
    for one, other in zip(wanted, found, strict=True):
        assert torch.allclose(one, other, atol=1e-5 * largest), (one - other).abs().max() / largest


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_no_answer_and_no_tree_sees_another(family: str) -> None:
    """When one answer changes, the scores of the others stay the same bits; its prompt moves all of them."""
    model, some = reward(family), trees([(7, (4, 4, 4)), (9, (3, 5)), (2, (6,))])
    before = together(model, some)
    assert len(branches.lay_out(some, pad_id=0)["input_ids"]) < 3, "trees share a line"
    for place, number in ((0, 0), (0, 2), (1, 1), (2, 0)):
        answers = [list(answer) for answer in some[place].answers]
        answers[number] = [(one + 11) % 40 + 3 for one in answers[number]]
        changed = [*some[:place], Tree(some[place].prompt, answers), *some[place + 1 :]]
        moved = (together(model, changed) != before).tolist()
        expected = sum(len(tree.answers) for tree in some[:place]) + number
        assert [index for index, differs in enumerate(moved) if differs] == [expected]
    prompt = [(some[0].prompt[0] + 11) % 40 + 3, *some[0].prompt[1:]]
    moved = together(model, [Tree(prompt, some[0].answers), *some[1:]]) != before
    # A Gemma 2 passes it on from window to window: the prompt is 7 tokens and the window 5, in two of four layers.
    assert moved.tolist() == [True] * 3 + [False] * 3


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_neither_the_order_of_trees_nor_that_of_answers_changes_a_score(family: str) -> None:
    model, some = reward(family), trees()
    sizes = [len(tree.answers) for tree in some]
    pieces = together(model, some).split(sizes)
    turned = together(model, some[::-1]).split(sizes[::-1])
    for one, other in zip(pieces, turned[::-1], strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    flipped = together(model, [Tree(tree.prompt, list(tree.answers)[::-1]) for tree in some]).split(sizes)
    for one, other in zip(pieces, flipped, strict=True):
        assert torch.allclose(one, other.flip(0), atol=1e-5)


def test_a_line_holds_the_prompt_once_and_positions_go_on_behind_it() -> None:
    some = [Tree([10, 11, 12], [[20, 21], [30]]), Tree([40], [[50, 51]])]
    lines = branches.lay_out(some, pad_id=0)
    assert lines["input_ids"].tolist() == [[10, 11, 12, 20, 21, 30, 0, 0], [40, 50, 51, 0, 0, 0, 0, 0]] or lines[
        "input_ids"
    ].tolist() == [[10, 11, 12, 20, 21, 30, 40, 50, 51, 0, 0, 0, 0, 0, 0, 0]]
    width = lines["input_ids"].shape[1]
    flat = {name: lines[name].flatten().tolist() for name in ("input_ids", "position_ids", "tree", "branch")}
    first = flat["input_ids"].index(10)
    assert flat["position_ids"][first : first + 6] == [0, 1, 2, 3, 4, 3]
    assert flat["branch"][first : first + 6] == [0, 0, 0, 1, 1, 2]
    second = flat["input_ids"].index(40)
    assert flat["position_ids"][second : second + 3] == [0, 1, 2]
    assert {tree for tree, one in zip(flat["tree"], flat["input_ids"], strict=True) if one == 0} == {-1}
    ends = (lines["line"] * width + lines["column"]).tolist()
    assert [flat["input_ids"][end] for end in ends] == [21, 30, 51]


def test_without_sharing_every_answer_has_its_prompt_and_all_stand_in_one_line() -> None:
    """Flash kernels find the texts of a batch by their positions, and only where it is one line."""
    from transformers.modeling_flash_attention_utils import _is_packed_sequence

    lines = branches.lay_out(trees(), pad_id=0, share=False)
    assert "tree" not in lines
    rows = sum(len(answers) for _, answers in SHAPES)
    ids_BT, positions_BT = lines["input_ids"], lines["position_ids"]
    assert len(ids_BT) == 1
    assert _is_packed_sequence(positions_BT, len(ids_BT))
    tokens = sum(prompt + answer for prompt, answers in SHAPES for answer in answers)
    assert ids_BT.numel() - tokens < branches.MULTIPLE
    assert (positions_BT == 0).sum() == rows + (ids_BT.numel() > tokens)
    assert branches.padding(lines, trees()) == pytest.approx(1 - tokens / ids_BT.numel())


def test_flash_kernels_take_no_trees() -> None:
    model = reward("gemma2")
    assert branches.shares_prompts(model)
    model.model.config._attn_implementation = "flash_attention_2"
    assert not branches.shares_prompts(model)


def test_an_answer_of_nothing_is_a_mistake() -> None:
    with pytest.raises(AssertionError, match="at least what closes it"):
        branches.lay_out([Tree([5, 6], [[7], []])], pad_id=0)


@torch.no_grad()
def test_scores_are_fp32_under_autocast_and_near_those_without() -> None:
    for family in FAMILIES:
        model, wanted = reward(family), together(reward(family), trees())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = together(model, trees())
        assert found.dtype == torch.float32
        # bf16 has 8 bits of mantissa; through a few layers of wild weights the scores stay near, and are not the same.
        assert (found - wanted).abs().mean() < 0.2 * wanted.std()
        assert not torch.equal(found, wanted)


# ── padding ──────────────────────────────────────────────────────────────────────────────────────


def padding_of(lengths: Sequence[int]) -> float:
    some = [Tree([5] * (length - 2), [[6], [7]]) for length in lengths]
    return branches.padding(branches.lay_out(some, pad_id=0), some)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    st.one_of(
        st.lists(st.integers(8, 400), min_size=8, max_size=40),
        st.lists(st.sampled_from([11, 17, 25, 52, 99, 101, 160, 301]), min_size=8, max_size=24),
        st.tuples(st.lists(st.integers(8, 40), min_size=8, max_size=20), st.integers(100, 1000)).map(
            lambda drawn: [*drawn[0], drawn[1]]
        ),
    )
)
# Each of these once padded a fifth and more: a bit over half the longest, ten tokens each, one long among short ones.
@example([941, 941, 941, 629, 629, 629, 629, 629])
@example([17] * 8)
@example([13, 13, 13, 16, 16, 17, 17, 22])
@example([20, 40, 227, 240, 251, 268, 269, 386])
@example([129, 43, 43, 43, 43, 43, 43, 43])
@example([51] * 7 + [100])
def test_no_batch_of_eight_pairs_or_more_is_padded_beyond_a_tenth(lengths: list[int]) -> None:
    # A single line, the last resort, pads at most 7 tokens, and eight pairs have 64 of them or more.
    assert padding_of(lengths) <= max(branches.LITTLE, 7 / sum(lengths)) <= 0.15


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.integers(3, 300), min_size=1, max_size=30))
def test_every_tree_has_a_place_and_no_two_overlap(lengths: list[int]) -> None:
    some = [Tree([5] * (length - 2), [[6], [7]]) for length in lengths]
    lines = branches.lay_out(some, pad_id=0)
    tree_BT = lines["tree"]
    assert torch.bincount(tree_BT[tree_BT >= 0], minlength=len(some)).tolist() == lengths
    assert tree_BT.shape[1] % branches.MULTIPLE == 0
    ends = lines["input_ids"][lines["line"], lines["column"]]
    assert ends.tolist() == [6, 7] * len(some)
    assert len(set(zip(lines["line"].tolist(), lines["column"].tolist(), strict=True))) == 2 * len(some)


def test_lines_are_no_wider_than_they_must_be() -> None:
    """Attention is quadratic in the width: what fills lines of the longest tree's width is not joined further."""
    even = [Tree([5] * 62, [[6], [7]])] * 12
    assert branches.lay_out(even, pad_id=0)["input_ids"].shape == (12, 64)
    halves = [Tree([5] * 98, [[6], [7]])] * 3 + [Tree([5] * 48, [[6], [7]])] * 6
    assert branches.lay_out(halves, pad_id=0)["input_ids"].shape == (6, 104)


@pytest.mark.parametrize("mix", [None, {"follow_up": 0.5, "context": 0.25, "instruction": 0.25}])
def test_miniature_pairs_are_padded_little(mix: dict[str, float] | None, tmp_path: Path) -> None:
    extra = {} if mix is None else {"mix": mix}
    pairs = list(corpus.comparisons(World(0, 40), 320, 0, rater_noise=0.1, rater_taste=0.2, **extra))
    texts = [one.chosen for one in pairs] + [turn.content for one in pairs for turn in one.prompt]
    tokenizer = tokenizers.load(train(texts, 480, tmp_path))
    some = [
        Tree(prompt_ids(one.prompt, tokenizer), [answer_ids(text, tokenizer) for text in (one.chosen, one.rejected)])
        for one in pairs
    ]
    lengths = torch.tensor([tree.tokens for tree in some]).numpy()
    assert lengths.max() > 2 * lengths.mean(), "lengths differ"
    for batch, window in ((64, 32), (16, 32), (8, 1)):
        for places in PlannedBatches(lengths, batch, len(some) // batch, 0, window, batch):
            members = [some[place] for place in places]
            assert branches.padding(branches.lay_out(members, pad_id=0), members) <= 0.1
