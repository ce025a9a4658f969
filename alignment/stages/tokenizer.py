"""Train a SentencePiece tokenizer on a dataset, or add the control tokens of a chat to an existing one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from alignment import artifacts, files
from alignment.artifacts import Artifact, Outcome
from alignment.errors import UserError
from alignment.settings import Settings as StrictSettings
from alignment.settings import identity, reference, text

ALGORITHM_VERSION = 1


class Settings(StrictSettings):
    """``stage=tokenizer``."""

    data: str | None = reference("the dataset to learn pieces from (its training split); null with extend")
    extend: str | None = text("a .model or .spm file to add control tokens to, instead of training; null trains")
    pieces: int = identity("size of the vocabulary, the 365 pieces of Gemma's layout included", ge=366)
    seed: int = identity("of the sample of lines, where there are too many", ge=0)


def sources(settings: Settings) -> list[Path]:
    """The file to extend."""
    if settings.extend is None:
        return []
    return [files.existing(settings.extend, "extend", "Name a .model or .spm file.")]


def run(settings: Settings, inputs: dict[str, Artifact], out: Path) -> Outcome:
    """Write tokenizer.model, tokenizer.json and the chat template."""
    from alignment.chat import tokenizers, train
    from alignment.training import policies

    if settings.extend is not None:
        made = train.extend(files.typed(settings.extend), out)
    elif settings.data is not None:
        made = train.train(_texts(inputs["data"].need("dataset")), settings.pieces, out, settings.seed)
    else:
        raise UserError("data=null and extend=null", remedy="Name a dataset to train on, or a file to extend.")
    # The file, and not its folder, where an attempt that was cut off may have left half a tokenizer.json.
    tokenizer = tokenizers.load(made)
    policies.save_tokenizer(tokenizer, "gemma2", out)
    tokens = artifacts.Tokens(
        tokenizer.digest, tokenizer.vocab_size, tokenizers.padded_vocab(tokenizer.vocab_size), "gemma2"
    )
    return Outcome("tokenizer", {"pieces": tokenizer.vocab_size}, "pieces", tokens)


def _texts(dataset: Artifact) -> Iterator[str]:
    """Everything that is written in a dataset's training split."""
    from alignment.chat.types import Conversation, Text
    from alignment.data import store

    for row in store.stream(dataset.path, "train"):
        if isinstance(row, Text):
            yield row.text
        elif isinstance(row, Conversation):
            yield from (turn.content for turn in row.messages)
        else:
            raise UserError(f"{dataset.path}: pieces are learned from text or conversations")
