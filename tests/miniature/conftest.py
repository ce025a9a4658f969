from __future__ import annotations

import pytest

from alignment.miniature.world import World


@pytest.fixture(scope="session")
def world() -> World:
    return World(seed=0, residents=40)
