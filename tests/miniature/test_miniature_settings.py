"""The knobs: strict, bounded, part of the identity."""

from __future__ import annotations

import pytest

from alignment.errors import UserError
from alignment.miniature.dialogues import MIX
from alignment.miniature.settings import Miniature
from alignment.settings import describe, identity_values

VALUES = {"seed": 0, "residents": 40, "noise": 0.5, "rater_noise": 0.15, "rater_taste": 0.3, "mixture": dict(MIX)}


def test_knobs_make_a_world_and_a_mixture():
    knobs = Miniature.parse(VALUES)
    assert (knobs.world().seed, len(knobs.world().people)) == (0, 40)
    assert knobs.mixture.weights() == MIX
    assert identity_values(knobs) == VALUES
    assert {info.role for info in describe(Miniature)} == {"identity"}


@pytest.mark.parametrize(
    ("key", "value"), [("residents", 3), ("residents", 61), ("noise", 1.5), ("rater_taste", -0.1), ("seed", -1)]
)
def test_what_is_out_of_bounds_is_refused(key, value):
    with pytest.raises(UserError, match=f"{key}={value}"):
        Miniature.parse({**VALUES, key: value})


def test_an_unknown_kind_or_an_empty_mixture_is_refused():
    with pytest.raises(UserError, match=r"mixture\.facts: there is no such key"):
        Miniature.parse({**VALUES, "mixture": {**MIX, "facts": 1.0}})
    with pytest.raises(UserError, match="at least one weight"):
        Miniature.parse({**VALUES, "mixture": dict.fromkeys(MIX, 0.0)})
