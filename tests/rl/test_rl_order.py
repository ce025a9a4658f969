"""Which prompts come when: every one once an epoch, nothing lost between epochs, a function of step and seed alone."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from alignment.rl.order import minibatches, prompts_of


def stream(steps: int, count: int, a_step: int, seed: int = 3) -> list[int]:
    return [place for step in range(steps) for place in prompts_of(step, count=count, a_step=a_step, seed=seed)]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 12), st.integers(1, 30))
@example(7, 3)
@example(3, 7)
@example(1, 5)
def test_every_prompt_comes_once_an_epoch_and_an_epochs_rest_begins_the_next_step(count: int, a_step: int) -> None:
    steps = 3 * count + 2
    taken = stream(steps, count, a_step)
    assert len(taken) == steps * a_step
    for start in range(0, len(taken) - count + 1, count):
        assert sorted(taken[start : start + count]) == list(range(count))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(2, 12), st.integers(1, 9), st.integers(1, 9))
def test_the_order_does_not_depend_on_how_many_a_step_takes(count: int, a_step: int, other: int) -> None:
    shorter, longer = sorted((stream(10, count, a_step), stream(10, count, other)), key=len)
    assert longer[: len(shorter)] == shorter


def test_a_step_can_be_asked_for_alone_and_again() -> None:
    assert prompts_of(41, count=9, a_step=4, seed=3) == stream(42, 9, 4)[-4:]
    assert stream(9, 10, 4) == stream(9, 10, 4)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    taken = stream(3, 20, 20)
    assert taken[:20] != taken[20:40] != taken[40:]
    assert taken[:20] != list(range(20))
    assert stream(1, 20, 20, seed=3) != stream(1, 20, 20, seed=4)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 5), st.integers(0, 3))
def test_minibatches_have_every_group_once(size: int, many: int, step: int, epoch: int) -> None:
    found = minibatches(size * many, size, step=step, epoch=epoch, seed=1)
    assert [len(some) for some in found] == [size] * many
    assert sorted(group for some in found for group in some) == list(range(size * many))


def test_minibatches_differ_by_step_epoch_and_seed_and_can_be_asked_for_again() -> None:
    asked = [(0, 0, 1), (1, 0, 1), (0, 1, 1), (0, 0, 2)]
    found = [minibatches(24, 6, step=step, epoch=epoch, seed=seed) for step, epoch, seed in asked]
    assert all(one != other for place, one in enumerate(found) for other in found[:place])
    assert found == [minibatches(24, 6, step=step, epoch=epoch, seed=seed) for step, epoch, seed in asked]
