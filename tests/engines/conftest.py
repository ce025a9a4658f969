"""The tiny models, datasets and learners of other rooms serve here too."""

from __future__ import annotations

import sys
from pathlib import Path

for room in ("stages", "rl"):
    sys.path.append(str(Path(__file__).parents[1] / room))
