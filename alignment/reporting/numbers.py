"""Numbers in the console's tables: so many places, a sign where one is asked for, and never −0.000."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LARGE = 10.0
"""From here on one place is enough."""


def fixed(value: float, places: int = 3, sign: str = "") -> str:
    """``0.712``; with the sign ``+`` also ``+0.712``. What rounds to zero has no minus."""
    return f"{value:{sign}z.{places}f}"


def brief(one: Mapping[str, Any] | None, sign: str = "", *, groups: int | None = None) -> str:
    """``0.712 ±0.020``, an estimate and half of its interval, or a dash where nothing was measured.

    Fewer places where numbers are large. Bounds that nobody knows (null) are not told. Of one group of rows
    (``groups``) there is no interval: resamples of it are all the same, and ±0.000 would be said of what is least sure.
    """
    if one is None:
        return "–"
    places = 3 if abs(one["estimate"]) < LARGE else 1
    estimate = fixed(one["estimate"], places, sign)
    if groups == 1 or one["low"] is None:
        return estimate
    return f"{estimate} ±{fixed((one['high'] - one['low']) / 2, places)}"
