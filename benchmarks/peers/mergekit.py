"""mergekit's side of ``benchmarks/merge.py``: nuslerp of task vectors, in an environment of its own.

python mergekit.py <first> <second> <start> <out> <dtype of its arithmetic>

What is written is bf16 in any case.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    # A script's folder stands first where modules are looked for, and this file is called like the library.
    own = Path(__file__).resolve().parent
    sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != own]
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    first, second, start, out, dtype = sys.argv[1:]
    config = {
        "merge_method": "nuslerp",
        "base_model": start,
        "dtype": dtype,
        "out_dtype": "bfloat16",
        "models": [{"model": model, "parameters": {"weight": 0.5}} for model in (first, second)],
    }
    options = MergeOptions(copy_tokenizer=False, quiet=True, write_model_card=False)
    run_merge(MergeConfiguration.model_validate(config), out, options=options)


if __name__ == "__main__":
    main()
