"""How sources grade a comparison, in our four grades. One place for all of them; a recipe spells it out as options.

==================== ================ ===================== =================== ========= =============
ours                 Tulu human       HelpSteer2 preference HelpSteer2 score    OASST     HH-RLHF,
(Llama 2 §3.2.1)     evaluation       (strength)            gap (helpfulness,   rank gap  PKU-SafeRLHF
                                                            0 to 4)
==================== ================ ===================== =================== ========= =============
significantly        –                ±3, much better       3 and 4             3 or more –
better               better           ±2, better            2                   2         –
slightly             slightly better  ±1, slightly better   1                   1         –
negligibly or unsure tie, on demand   0, on demand          –                   –         –
no grade (None)      –                –                     –                   –         all of them
==================== ================ ===================== =================== ========= =============

HelpSteer2's words for a preference are Llama 2's, but for "much" and "significantly". The rest is a choice, and
a recipe may choose otherwise:

* Tulu's annotators had two strengths. The stronger one is "better" and not "significantly", so that it does not
  get the margin of pairs that annotators could set apart from the merely better.
* A helpfulness score is a mean of annotators, rounded, so that a gap of 1 may be next to nothing; a rank says who
  was before whom and nothing of the distance. The gap grades both nevertheless: the larger it is, the more
  annotators would agree. From 3 on pairs are few and share the highest grade.
* Labels (``labelled_pair``) stand in an order that the recipe declares. Like ranks they say what is before what.
* A tie has no better answer. It is dropped, or kept as "negligibly" on demand, with a side drawn by a hash.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

from pydantic import AfterValidator

from alignment.chat.types import Grade
from alignment.data.grades import Bounds, of_gap


def _falling(bounds: Bounds) -> Bounds:
    if not bounds.significantly > bounds.better > bounds.slightly:
        raise ValueError("a stronger grade needs a larger gap")
    return bounds


Gaps = Annotated[Bounds, AfterValidator(_falling)]
"""The least gap that earns a grade: ``{slightly: 1, better: 2, significantly: 3}``."""


def by_gap(gap: float, bounds: Bounds | None) -> Grade | None:
    """The grade of a gap above 0; None where the recipe gives no table."""
    assert gap > 0
    # A weighted sum of scores may fall short of its bound by a rounding error.
    return None if bounds is None else of_gap(gap + 1e-9, bounds)


def drawn_side(first: str, second: str) -> bool:
    """Whether the first of two equally good answers takes the better one's place: half of the time, always the same."""
    return hashlib.sha256(f"{first}\0{second}".encode()).digest()[0] % 2 == 0
