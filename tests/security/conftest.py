"""Helpers of other rooms' tests serve here too."""

import sys
from pathlib import Path

sys.path += [str(Path(__file__).parents[1] / room) for room in ("stages", "engines", "cluster", "scoring")]
