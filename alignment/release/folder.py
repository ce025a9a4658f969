"""What a release folder holds besides weights and card: config, tokenizer, template, generation config, checksums.

Config and tokenizer files are written anew and never copied, so that nothing travels that somebody left in them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alignment import files
from alignment.artifacts import Artifact, Tokens
from alignment.chat.render import stop_ids
from alignment.chat.template import FILE as TEMPLATE
from alignment.chat.tokenizers import Tokenizer
from alignment.errors import UserError, secrets_of_environment
from alignment.gemma import core, heads
from alignment.merging.layout import PREFIX
from alignment.release.weights import TORCH, Dtype
from alignment.training import policies

CONFIG = "config.json"
GENERATION = "generation_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SUMS = "SHA256SUMS"
MODIFICATION = "modification"
"""The key of JSON files, and of the weights' metadata, that says that Gemma was modified."""
PLAIN = (".json", ".jinja", ".md", ".txt", "")
VOCABULARY = "tokenizer.json"
"""Any word may be in its text, and no statement of ours."""
ROOTS = re.compile(
    r"(?<![\w.:/~])(?:/(?:home|root|tmp|Users|mnt|var|opt|srv|scratch|work\w*)|[A-Z]:\\Users)[/\\][\w.-]+"
)


def write_tokenizer(model: Artifact, out: Path) -> Tokens:
    """Tokenizer, chat template and, for a policy, a generation config with every id that ends an answer."""
    tokenizer, schema = policies.vocabulary_of(model, shape=None, schema="auto")
    scale = heads.read_scale(model.path)
    schema = schema if scale is None else scale.schema
    policies.save_tokenizer(tokenizer, schema, out)
    config = core.read_config(model.path)
    if not heads.is_reward(model.path):
        _write_generation(config, tokenizer, out)
    return Tokens(tokenizer.digest, tokenizer.vocab_size, config.vocab_size, schema)


def _write_generation(config: core.GemmaAnyConfig, tokenizer: Tokenizer, out: Path) -> None:
    from transformers import GenerationConfig

    GenerationConfig(
        bos_token_id=config.bos_token_id,
        pad_token_id=config.pad_token_id,
        eos_token_id=sorted(set(stop_ids(tokenizer))),
        do_sample=True,
    ).save_pretrained(out)


def write_config(model: Artifact, dtype: Dtype, out: Path) -> None:
    """The config with the release's dtype; of a reward model also what its scores mean, with the rounded head's digest.

    The weights must lie in ``out`` already.
    """
    config: dict[str, Any] = json.loads((model.path / CONFIG).read_text(encoding="utf-8"))
    # The last two name code that would be fetched where the release is loaded.
    for key in ("_name_or_path", "torch_dtype", "_commit_hash", "auto_map", "attn_implementation"):
        config.pop(key, None)
    if not heads.is_reward(model.path):
        config["use_cache"] = True  # Training turns it off.
    config["dtype"] = str(TORCH[dtype]).removeprefix("torch.")
    files.write_json(out / CONFIG, config)
    scale = heads.read_scale(model.path)
    if heads.is_reward(model.path) and scale is not None:
        heads.write_scale(out, scale)


def state_modification(out: Path, statement: str) -> list[str]:
    """Put the statement into every file whose format can carry it; the names of those, weights included."""
    for name in (CONFIG, GENERATION, TOKENIZER_CONFIG):
        if (out / name).is_file():
            told = json.loads((out / name).read_text(encoding="utf-8"))
            files.write_json(out / name, {MODIFICATION: statement, **told})
    template = out / TEMPLATE
    comment = "{#- " + statement + " -#}\n"
    if not template.read_text(encoding="utf-8").startswith(comment):
        files.write_atomic(template, comment + template.read_text(encoding="utf-8"))
    stated = [out / name for name in (CONFIG, GENERATION, TOKENIZER_CONFIG, TEMPLATE)]
    return sorted(path.name for path in (*stated, *out.glob("*.safetensors")) if path.is_file())


# ── what must not leave ──────────────────────────────────────────────────────────────────────────


def refuse_leaks(out: Path, places: Mapping[str, Path]) -> None:
    """Raise :class:`UserError` where a file tells a secret of the environment or a path of this machine.

    ``places`` are folders of this machine by what they are.
    """
    secrets = secrets_of_environment()
    for name, text in _texts(out):
        told = next((secret for secret, value in secrets.items() if value in text), None)
        if told is not None:
            raise UserError(f"{name} would tell the value of {told}", remedy="Take it out of what the model was given.")
        if Path(name).name == VOCABULARY:
            continue
        place = next((what for what, path in places.items() if len(path.parts) > 2 and str(path) in text), None)
        path = ROOTS.search(text)
        if place is not None or path is not None:
            raise UserError(
                f"{name} would tell a path of this machine: {place or (path and path[0])}",
                remedy="It stands in the licence, or in a name that a recipe or a setting gave: say it without.",
            )


def _texts(out: Path) -> Iterator[tuple[str, str]]:
    """Every text in the folder, by its file's name; of weights the header."""
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        name = path.relative_to(out).as_posix()
        if path.suffix == ".safetensors":
            with open(path, "rb") as file:
                yield name, file.read(int.from_bytes(file.read(PREFIX), "little")).decode()
        elif path.suffix in PLAIN:
            yield name, path.read_text(encoding="utf-8")


# ── checksums ────────────────────────────────────────────────────────────────────────────────────


def write_sums(out: Path) -> None:
    """SHA256SUMS of every other file, as ``sha256sum -c`` reads it."""
    digests = files.digest_folder(out, keep=lambda name: name != SUMS)
    files.write_atomic(out / SUMS, "".join(f"{digest}  {name}\n" for name, digest in digests.items()))


def is_whole(out: Path) -> bool:
    """Whether a folder holds exactly what its SHA256SUMS tells."""
    if not (out / SUMS).is_file():
        return False
    lines = (out / SUMS).read_text(encoding="utf-8").splitlines()
    promised = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    return files.digest_folder(out, keep=lambda name: name != SUMS) == promised
