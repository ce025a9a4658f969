"""A SentencePiece model as a ``tokenizers`` pipeline: same pieces, same ids, same text in and out.

One engine encodes for training, for sampling and for whoever loads a saved model, so they cannot disagree. What
SentencePiece does and how it is said here:

* spaces are spelled U+2581; a U+2581 in the text itself therefore reads back as a space (true of SentencePiece too);
* user-defined pieces are found in the text before the model sees it, the longest first;
* byte-pair merges: a piece may be joined from any two pieces that spell it, best score first;
* a character that is no piece becomes its UTF-8 bytes (byte fallback) or ``<unk>``;
* a model that rewrites its text (NFKC, squeezed or stripped spaces, a space put in front) does so here as well.

Two readings differ from SentencePiece's own, both in models without byte fallback only: a run of unknown words is one
``<unk>`` per word in a word model, and unknown characters of a Unigram model are joined within a text section.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from alignment.errors import UserError

Proto = Any
"""A ``ModelProto`` (or one of its parts): generated code without types."""

SPACE = "\u2581"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
UNIGRAM, BPE, WORD, CHAR = 1, 2, 3, 4

BOUNDARY = "\ufdd0"
"""A noncharacter (never text) that ends a turn's header where the vocabulary would join header and content."""


def read_model(data: bytes, where: str) -> Proto:
    """Parse the bytes of a ``.model``/``.spm`` file. Raises UserError where they are not one."""
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise UserError(
            f"{where} is not a SentencePiece model",
            cause=str(error),
            remedy="Give a .model/.spm file written by SentencePiece, or a directory with a tokenizer.json.",
        ) from error
    if not proto.pieces:
        raise UserError(f"{where} is not a SentencePiece model", cause="it holds no pieces")
    return proto


def special_ids(proto: Proto) -> dict[str, int | None]:
    """Ids of ``pad``, ``eos``, ``bos`` and ``unk`` as the model itself states them; None where it has none."""
    spec = proto.trainer_spec
    stated = {"pad": spec.pad_id, "eos": spec.eos_id, "bos": spec.bos_id, "unk": spec.unk_id}
    return {name: index if 0 <= index < len(proto.pieces) else None for name, index in stated.items()}


def backend(proto: Proto, where: str) -> Tokenizer:
    """The pipeline that encodes and decodes like the model. Control pieces are marked special."""
    if proto.trainer_spec.treat_whitespace_as_suffix:
        raise UserError(f"{where} cannot be used", cause="it writes spaces behind words (treat_whitespace_as_suffix)")
    built = Tokenizer(_model(proto, where))
    normaliser = _normaliser(proto.normalizer_spec)
    if normaliser is not None:
        built.normalizer = normaliser
    if proto.trainer_spec.model_type == WORD:
        built.pre_tokenizer = pre_tokenizers.Split(SPACE, "merged_with_next")
    built.decoder = _decoder(proto.normalizer_spec)
    built.add_special_tokens([_special(piece.piece) for piece in proto.pieces if piece.type == CONTROL])
    built.add_tokens(
        [
            AddedToken(piece.piece, normalized=True, special=False)
            for piece in proto.pieces
            if piece.type == USER_DEFINED
        ]
    )
    return built


def _special(spelling: str) -> AddedToken:
    return AddedToken(spelling, normalized=False, special=True)


def _model(proto: Proto, where: str) -> models.Model:
    kind = proto.trainer_spec.model_type
    vocab = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    unknown = next((piece.piece for piece in proto.pieces if piece.type == UNKNOWN), "<unk>")
    fallback = any(piece.type == BYTE for piece in proto.pieces)
    if kind in (BPE, CHAR):
        merges = _merges(proto, vocab) if kind == BPE else []
        return models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=fallback)
    if kind == UNIGRAM:
        scored = [(piece.piece, piece.score) for piece in proto.pieces]
        return models.Unigram(scored, unk_id=vocab[unknown], byte_fallback=fallback)
    if kind == WORD:
        return models.WordLevel(vocab, unk_token=unknown)
    raise UserError(f"{where} cannot be used", cause=f"SentencePiece model type {kind} is unknown")


def _merges(proto: Proto, vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to spell a normal piece by two pieces, the best-scored piece first.

    Control, byte and unknown pieces are no result of a merge: text can never be joined into one.
    """
    joinable = {piece.piece for piece in proto.pieces if piece.type in (NORMAL, USER_DEFINED, UNUSED)}
    found = []
    for index, piece in enumerate(proto.pieces):
        if piece.type != NORMAL:
            continue
        text = piece.piece
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in joinable and right in joinable:
                found.append((-piece.score, index, vocab[left], vocab[right], left, right))
    found.sort()
    return [(left, right) for *_, left, right in found]


def _normaliser(spec: Proto) -> normalizers.Normalizer | None:
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(rf"\A +| +\z| *(?={BOUNDARY})"), ""))
        steps.append(normalizers.Replace(Regex(rf"(?<={BOUNDARY}) +"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(" "))
        steps.append(normalizers.Replace(Regex(rf"{BOUNDARY}(?!\z)"), f"{BOUNDARY} "))
    if spec.escape_whitespaces:
        steps.append(normalizers.Replace(" ", SPACE))
    return normalizers.Sequence(steps) if steps else None


def _decoder(spec: Proto) -> decoders.Decoder:
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if spec.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)
