"""Episodes and their forward passes: every number of a token comes to the token's place, however a batch is divided."""

from __future__ import annotations

import pytest
import rl_support as support
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from alignment.rl.episodes import Episodes, Pass, padded, passes


def divided(
    one: Episodes,
    groups: list[int] | None = None,
    *,
    answers: int | None = None,
    tokens: int = 2**62,
    share: bool = True,
) -> list[Pass]:
    groups = list(range(len(one.prompts))) if groups is None else groups
    return list(passes(one, groups, answers=answers, tokens=tokens, pad_id=0, share=share, device="cpu"))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(1, 3).flatmap(
        lambda samples: st.tuples(
            st.just(samples),
            st.lists(st.lists(st.integers(1, 9), min_size=samples, max_size=samples), min_size=1, max_size=6),
        )
    ),
    st.sampled_from([None, 1, 2, 4, 5]),
    st.sampled_from([40, 80, 2**62]),
    st.booleans(),
)
@example((2, [[1, 1]]), None, 2**62, True)
@example((3, [[9, 1, 4], [2, 2, 2], [5, 9, 1]]), 4, 80, False)
def test_every_token_has_its_place_whatever_the_division(
    shape: tuple[int, list[list[int]]], answers: int | None, tokens: int, share: bool
) -> None:
    """What lies at a token's place is its own number, and 0 behind an answer's end."""
    samples, lengths = shape
    one = support.episodes([length for group in lengths for length in group], samples, width=11)
    found_BT = torch.full(one.mask_BT.shape, -1)
    for some in divided(one, answers=answers, tokens=tokens, share=share):
        assert some.rows == [group * samples + sample for group in some.groups for sample in range(samples)]
        assert bool((found_BT[some.rows] == -1).all()), "no answer is in two passes"
        found_BT[some.rows] = some.padded(some.where.ids_S, 11)
    wanted = [answer + [0] * (11 - len(answer)) for answer in one.answers]
    assert found_BT.tolist() == wanted
    assert [len(answer) for answer in one.answers] == one.mask_BT.sum(-1).tolist() == one.lengths


def test_gradients_go_through_to_the_tokens_and_to_no_other_place() -> None:
    one = support.episodes()
    (some,) = divided(one)
    values_S = torch.zeros(sum(one.lengths), requires_grad=True)
    padded_BT = some.padded(values_S, 9)
    weights_BT = torch.arange(float(padded_BT.numel())).view_as(padded_BT)
    (padded_BT * weights_BT).sum().backward()
    wanted = [weights_BT[row, step] for row, answer in enumerate(some.rows) for step in range(one.lengths[answer])]
    assert values_S.grad is not None
    assert values_S.grad.tolist() == [float(weight) for weight in wanted]


def test_passes_hold_what_is_asked_for_and_groups_alike_in_length() -> None:
    one = support.episodes([9, 9, 1, 1, 8, 9, 2, 1, 9, 8, 1, 2], 2)
    sizes = {group: one.tree(group).tokens for group in range(6)}
    assert [some.groups for some in divided(one, answers=4)] == [
        sorted(range(6), key=lambda group: (-sizes[group], group))[start : start + 2] for start in (0, 2, 4)
    ]
    for some in divided(one, tokens=80):
        assert sum(sizes[group] for group in some.groups) <= 80
    assert len(divided(one, tokens=80)) > 2
    # One group is never divided, however small a pass is to be.
    assert [len(some.groups) for some in divided(one, answers=1)] == [1] * 6
    assert [len(some.groups) for some in divided(one, tokens=1)] == [1] * 6
    assert sorted(group for some in divided(one, [4, 1]) for group in some.groups) == [1, 4]


def test_a_group_is_a_prompt_with_its_answers_in_order() -> None:
    one = support.episodes(samples=4)
    assert one.tree(1).prompt == one.prompt_ids[1]
    assert one.tree(1).answers == one.answers[4:8]
    assert one.rows([1, 0]) == [4, 5, 6, 7, 0, 1, 2, 3]
    assert [prompt.id for prompt in one.prompts_of_answers] == ["q-0"] * 4 + ["q-1"] * 4


@pytest.mark.parametrize("width", [3, 5])
def test_rows_are_padded_on_the_right(width: int) -> None:
    rows = padded([[1.5], [2.0, -3.0, 4.0]], width, "cpu")
    assert rows.dtype == torch.float32
    assert rows.tolist() == [[1.5] + [0.0] * (width - 1), [2.0, -3.0, 4.0] + [0.0] * (width - 3)]
