"""Stages: each reads artifacts and writes one artifact. None imports another.

A stage is a module of this folder with ``Settings`` (importable without torch), ``ALGORITHM_VERSION``
(raised when the same settings would give another result), ``run(settings, inputs, out) -> Outcome``
and, where it reads local files, ``sources(settings) -> list[Path]``;
where it writes much, ``disk_needed(settings) -> int``. ``inputs`` holds an artifact for
every reference in the settings, by dotted key.
"""

STAGES: dict[str, str] = {
    "data": "read sources by a recipe into rows, splits and a ledger of what happened to every row",
    "tokenizer": "train a SentencePiece tokenizer on a dataset, or add control tokens to an existing one",
    "pretrain": "train a model from scratch, or further, on plain text",
    "sft": "fine-tune a model on conversations, with loss on the answers alone",
    "evaluate": "measure models on held-out prompts: gold reward, KL to a reference, perplexity",
}
