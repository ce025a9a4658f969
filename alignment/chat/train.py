"""Train a SentencePiece vocabulary laid out like Gemma's, or add the control tokens a chat needs to an existing one."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece

from alignment import console
from alignment.chat import convert
from alignment.chat.tokenizers import TURN_END, TURN_START
from alignment.errors import UserError

RESERVED = ["<mask>", "[multimodal]", "[@BOS@]", *(f"<unused{n}>" for n in range(99)), TURN_START, TURN_END, "\n"]
"""Ids 4 to 108 of Gemma's layout, behind pad, eos, bos and unk; all found in text before anything else.

The 256 bytes follow, then the pieces that are learned.
"""

SMALLEST = 4 + len(RESERVED) + 256
"""Pieces that every vocabulary has, before its first letter."""

SAMPLED_LINES = 2_000_000
"""Lines that take part in training; of more, a sample drawn with the seed."""

LONGEST_LINE = 1 << 24
"""Bytes of a line beyond which SentencePiece leaves it out."""

RESERVED_SIGN = "\u2585"
"""SentencePiece leaves out lines with it: it stands for what is unknown there."""


def train(texts: Iterable[str], pieces: int, out: Path, seed: int = 0) -> Path:
    """Byte-pair pieces for ``texts``: byte fallback, single digits, whitespace kept, text left as it is.

    ``out`` is a directory (the model becomes its tokenizer.model) or a .model/.spm file. The same texts, number of
    pieces and seed give the same file, byte for byte. Raises UserError where the text is too small for that many
    pieces, or the number too small for the text's letters.
    """
    if pieces <= SMALLEST:
        raise UserError(
            f"a vocabulary of {pieces} pieces is too small",
            cause=f"{SMALLEST} are taken by control tokens, reserved pieces and the 256 bytes",
            remedy=f"Ask for more than {SMALLEST}, for example {SMALLEST + 150}.",
        )
    model, lines = io.BytesIO(), _Lines(texts)
    sentencepiece.set_random_generator_seed(seed)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=pieces,
            pad_id=0,
            eos_id=1,
            bos_id=2,
            unk_id=3,
            pad_piece="<pad>",
            eos_piece="<eos>",
            bos_piece="<bos>",
            unk_piece="<unk>",
            user_defined_symbols=RESERVED,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            add_dummy_prefix=False,
            character_coverage=0.9995,
            max_sentence_length=LONGEST_LINE,
            input_sentence_size=SAMPLED_LINES,
            shuffle_input_sentence=True,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _told(str(error), pieces) from error
    lines.say()
    return _write(model.getvalue(), out)


def extend(model_file: Path, out: Path) -> Path:
    """Append the control pieces that a chat needs and ``model_file`` lacks; every id that exists stays what it is.

    ``out`` as in ``train``. A model of ours was built for its vocabulary: after this, its embedding needs more rows.
    """
    if not Path(model_file).is_file():
        raise UserError(f"there is no SentencePiece model at {model_file}", remedy="Give a .model or .spm file.")
    proto = convert.read_model(Path(model_file).read_bytes(), str(model_file))
    spec, present = proto.trainer_spec, {piece.piece for piece in proto.pieces}
    for name, index in convert.special_ids(proto).items():
        if index is None:
            spelled = f"<{name}>"
            if spelled in present:
                raise UserError(
                    f"{model_file} has a piece {spelled} that it does not use as its {name}",
                    remedy="Use another model, or mark the piece in it first.",
                )
            setattr(spec, f"{name}_id", _append(proto, spelled, convert.CONTROL))
            setattr(spec, f"{name}_piece", spelled)
    for marker in (TURN_START, TURN_END):
        if marker not in present:
            _append(proto, marker, convert.USER_DEFINED)
    spec.vocab_size = len(proto.pieces)
    return _write(proto.SerializeToString(deterministic=True), out)


def _append(proto: convert.Proto, spelled: str, kind: int) -> int:
    proto.pieces.add(piece=spelled, score=0.0, type=kind)
    return len(proto.pieces) - 1


class _Lines:
    """Lines without their end: a newline is a piece of its own, so nothing is learned across it."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts, self._all, self._unread = texts, 0, 0

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            for line in filter(None, text.split("\n")):
                if RESERVED_SIGN in line or len(line.encode()) > LONGEST_LINE:
                    self._unread += 1
                self._all += 1
                yield line

    def say(self) -> None:
        """Tell of lines from which SentencePiece has learned nothing; it does not say so itself."""
        if self._unread:
            console.say(
                f"  {self._unread:,} of {self._all:,} lines teach no pieces: they hold {RESERVED_SIGN} (U+2585), which "
                f"SentencePiece keeps for itself, or more than {LONGEST_LINE >> 20} MiB",
                style="yellow",
            )
        if self._all > SAMPLED_LINES:
            console.say(f"  pieces are learned from a sample of {SAMPLED_LINES:,} of {self._all:,} lines", style="dim")


def _told(message: str, pieces: int) -> UserError:
    """SentencePiece's complaint in the words of whoever asked."""
    most = re.search(r"set it to a value <= (\d+)", message)
    least = re.search(r"required_chars\. \d+ vs (\d+)", message)
    problem = f"a vocabulary of {pieces} pieces cannot be trained on this text"
    if most:
        cause = f"the text is too small: it yields {most[1]} pieces at most"
        return UserError(problem, cause=cause, remedy=f"Give more text, or ask for {most[1]} pieces or fewer.")
    if least:
        cause = f"its letters, the bytes and the reserved pieces alone are {least[1]}"
        return UserError(problem, cause=cause, remedy=f"Ask for more than {least[1]} pieces.")
    if "sentences_.empty()" in message:
        return UserError(problem, cause="there is no text", remedy="Give some lines of text.")
    return UserError(problem, cause=message)


def _write(data: bytes, out: Path) -> Path:
    file = out if out.suffix in (".model", ".spm") else out / "tokenizer.model"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file
