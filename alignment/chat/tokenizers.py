"""Tokenizers: SentencePiece models and Hugging Face directories behind one class, ids read from the model.

Text is encoded by one engine (``tokenizers``), the same that a saved directory runs in vanilla transformers or vLLM;
a SentencePiece model is converted to it (``convert.py``). Text never becomes a control id, whatever it spells.

Text reads back exactly (``decode(encode(text)) == text``) where the vocabulary keeps text as it is: identity
normalisation, no space put in front, byte fallback, as in Gemma's and in what ``train.py`` makes. Not among what is
kept: U+2581, SentencePiece's own spelling of a space, and, in a vocabulary that joins newlines to other text
(``junction``), the noncharacter U+FDD0.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import tokenizers
from tokenizers import processors

from alignment.chat import convert, spelling
from alignment.errors import UserError

TURN_START, TURN_END = "<start_of_turn>", "<end_of_turn>"
Junction = Literal["clean", "newline", "always"]
Spec = dict[str, Any]


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """What the ids of one model are. Only ``unk`` may be missing (a byte-level vocabulary needs none)."""

    pad: int
    eos: int
    bos: int
    start_of_turn: int
    end_of_turn: int
    unk: int | None


class Tokenizer:
    """Text to ids and back, with the control ids apart. Made by ``load``; equal models have equal ``digest``."""

    def __init__(self, spec: Spec, ids: SpecialIds, controls: dict[str, int], sentencepiece: bytes | None) -> None:
        """``spec`` is a prepared tokenizer.json; ``controls`` maps the spellings that text may not become to ids."""
        self.pad_id, self.eos_id, self.bos_id, self.unk_id = ids.pad, ids.eos, ids.bos, ids.unk
        self.start_of_turn_id, self.end_of_turn_id = ids.start_of_turn, ids.end_of_turn
        self.ids = ids
        self.control_spellings: tuple[str, ...] = tuple(sorted(controls, key=lambda name: (controls[name], name)))
        self.control_ids = frozenset(controls.values()) - {ids.unk}
        self.junction: Junction = _junction(spec)
        self.sentencepiece = sentencepiece
        self._spellings = {index: name for name, index in controls.items()}
        self._backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
        self._backend.encode_special_tokens = True
        self.vocab_size: int = max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str) -> list[int]:
        """Ids of plain text: no BOS, never a control id."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        assert self.control_ids.isdisjoint(ids), f"text became control: {text!r}"
        return ids

    def encode_many(self, texts: list[str]) -> list[list[int]]:
        """``encode`` of each text, on all cores."""
        found = [item.ids for item in self._backend.encode_batch_fast(texts, add_special_tokens=False)]
        assert all(self.control_ids.isdisjoint(ids) for ids in found), "text became control"
        return found

    def decode(self, ids: list[int]) -> str:
        """Plain text. Control ids, and ids beyond the vocabulary (its padding), stand for no text and are left out."""
        kept = [index for index in ids if index not in self.control_ids]
        text: str = self._backend.decode(kept, skip_special_tokens=False)
        return text

    def piece(self, index: int) -> str:
        """The vocabulary's spelling of one id, for showing; ``[n]`` beyond the vocabulary."""
        return self._backend.id_to_token(index) or f"[{index}]"

    def spelling(self, index: int) -> str:
        """How a control id is written in a template."""
        return self._spellings[index]

    @cached_property
    def digest(self) -> str:
        """sha256 over what determines ids: pieces, merges, normalisation, special ids. Free of paths and of order."""
        spec = json.loads(self._backend.to_str())
        determined = {key: spec[key] for key in ("model", "normalizer", "pre_tokenizer", "added_tokens", "decoder")}
        text = json.dumps([determined, asdict(self.ids)], sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def save(self, directory: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and, where there is one, tokenizer.model.

        Loads in vanilla ``AutoTokenizer.from_pretrained``: there ``tokenizer(text)`` is BOS and ``encode(text)``.
        ``<unk>`` is not declared to transformers, which would turn the word ``<unk>`` in a text into its id.
        """
        directory.mkdir(parents=True, exist_ok=True)
        bos = self.spelling(self.bos_id)
        self._backend.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", "$B:1"], special_tokens=[(bos, self.bos_id)]
        )
        (directory / "tokenizer.json").write_text(self._backend.to_str(pretty=True), encoding="utf-8")
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": bos,
            "eos_token": self.spelling(self.eos_id),
            "pad_token": self.spelling(self.pad_id),
            "padding_side": "left",
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1_000_000_000,
        }
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")
        if self.sentencepiece is not None:
            (directory / "tokenizer.model").write_bytes(self.sentencepiece)


def padded_vocab(pieces: int, multiple: int = 64) -> int:
    """Rows of an embedding for ``pieces``: the next multiple. Compare ids with this (``config.vocab_size``)."""
    return -(-pieces // multiple) * multiple


def load(path: Path) -> Tokenizer:
    """A ``.model``/``.spm`` file or a directory: its tokenizer.json (what transformers runs), else its tokenizer.model.

    Raises UserError for what cannot be read, has no turn markers, or lacks a pad, eos or bos of its own.
    """
    try:
        return _load(Path(path))
    except UserError:
        raise
    except BaseException as error:
        # Whatever a malformed file leads to, in Python and in Rust, whose panics are no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(
            f"the tokenizer {path} cannot be used",
            cause=f"{type(error).__name__}: {error}",
            remedy="Copy it again, or give a directory with a tokenizer.json that transformers reads.",
        ) from error


def _load(path: Path) -> Tokenizer:
    if path.is_dir():
        if (path / "tokenizer.json").is_file():
            return _from_directory(path)
        models = [path / "tokenizer.model", *sorted(path.glob("*.model")), *sorted(path.glob("*.spm"))]
        found = next((model for model in models if model.is_file()), None)
        if found is None:
            raise UserError(
                f"{path} holds no tokenizer",
                cause="there is neither a tokenizer.json nor a tokenizer.model in it",
                remedy="Give a SentencePiece .model/.spm file or a Hugging Face model directory.",
            )
        path = found
    if not path.is_file():
        raise UserError(f"there is no tokenizer at {path}", remedy="Give a .model/.spm file or a directory.")
    if path.suffix == ".json":
        return _from_directory(path.parent)
    return _from_sentencepiece(path)


def _from_sentencepiece(path: Path) -> Tokenizer:
    data = path.read_bytes()
    proto = convert.read_model(data, str(path))
    spec = json.loads(convert.backend(proto, str(path)).to_str())
    named: dict[str, int | None] = convert.special_ids(proto)
    pieces = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    named |= {"start_of_turn": pieces.get(TURN_START), "end_of_turn": pieces.get(TURN_END)}
    kinds = (convert.CONTROL, convert.UNKNOWN)
    controls = {piece.piece: index for index, piece in enumerate(proto.pieces) if piece.type in kinds}
    remedy = f"Add what is missing: python -m alignment.run stage=tokenizer extend={path}"
    return _checked(spec, named, controls, sentencepiece=data, where=str(path), remedy=remedy)


def _from_directory(directory: Path) -> Tokenizer:
    where = directory / "tokenizer.json"
    try:
        spec = json.loads(tokenizers.Tokenizer.from_file(str(where)).to_str())
    except Exception as error:  # the library raises bare Exception for a malformed file
        raise UserError(f"{where} is not a tokenizer", cause=str(error)) from error
    vocab = _vocabulary(spec)
    declared = _declared(directory)
    named = {name: vocab.get(declared.get(f"{name}_token", f"<{name}>")) for name in ("pad", "eos", "bos", "unk")} | {
        "start_of_turn": vocab.get(TURN_START),
        "end_of_turn": vocab.get(TURN_END),
    }
    controls = {token["content"]: token["id"] for token in spec["added_tokens"] if token["special"]}
    model = directory / "tokenizer.model"
    data = model.read_bytes() if model.is_file() else None
    remedy = "Add them with transformers' `add_special_tokens`, or give its SentencePiece model to `stage=tokenizer`."
    return _checked(spec, named, controls, sentencepiece=data, where=str(directory), remedy=remedy)


def _declared(directory: Path) -> dict[str, str]:
    """``bos_token`` and the like, as the directory's configuration spells them."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        file = directory / name
        if not file.is_file():
            continue
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{file} is not JSON", cause=str(error)) from error
        for key, value in values.items():
            if key.endswith("_token") and value:
                found[key] = value["content"] if isinstance(value, dict) else str(value)
    return found


def _pieces(spec: Spec) -> dict[str, int]:
    """The model's own pieces: a mapping, or a list of piece and score."""
    vocab = spec["model"]["vocab"]
    return dict(vocab) if isinstance(vocab, dict) else {piece: index for index, (piece, _) in enumerate(vocab)}


def _vocabulary(spec: Spec) -> dict[str, int]:
    """All of them, those added to the model included."""
    return _pieces(spec) | {token["content"]: token["id"] for token in spec["added_tokens"]}


def _checked(
    spec: Spec,
    named: dict[str, int | None],
    controls: dict[str, int],
    *,
    sentencepiece: bytes | None,
    where: str,
    remedy: str,
) -> Tokenizer:
    """A tokenizer whose special ids are all there and all different, with its text kept away from control ids."""
    spellings = {"start_of_turn": TURN_START, "end_of_turn": TURN_END}
    needed = ("pad", "eos", "bos", "start_of_turn", "end_of_turn")
    missing = [spellings.get(name, f"{name} piece") for name in needed if named[name] is None]
    if missing:
        raise UserError(
            f"the tokenizer {where} has no {', '.join(missing)}",
            cause="a conversation is written with turn markers, and padding must differ from every other token",
            remedy=remedy,
        )
    present = {name: index for name, index in named.items() if index is not None}
    if len(set(present.values())) < len(present):
        raise UserError(
            f"the tokenizer {where} uses one id for several control tokens: {present}",
            cause="an end that is also padding would be masked away and never learned",
            remedy=remedy,
        )
    spelled = {index: piece for piece, index in _vocabulary(spec).items()}
    controls = controls | {spelled[index]: index for index in present.values()}
    spelling.check(tuple(controls), where)
    unk = named["unk"]
    _set_special(spec, {name: index for name, index in controls.items() if index != unk}, unk)
    _keep_apart(spec, controls)
    return Tokenizer(spec, SpecialIds(**{name: present[name] for name in needed}, unk=unk), controls, sentencepiece)


def _set_special(spec: Spec, controls: dict[str, int], unk: int | None) -> None:
    """Make exactly the control tokens special, matched as they are written.

    ``<unk>`` is matched nowhere: the word in a text is text. (Where it is no piece of the model, it has to stay.)
    """
    pieces = _pieces(spec)
    hidden = {token["content"] for token in spec["added_tokens"] if token["id"] == unk and token["content"] in pieces}
    others = [token for token in spec["added_tokens"] if token["content"] not in hidden | set(controls)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    special = [{"id": index, "content": name, **flags} for name, index in controls.items()]
    spec["added_tokens"] = sorted([*others, *special], key=lambda token: token["id"])
    spec["truncation"] = spec["padding"] = None


def _keep_apart(spec: Spec, controls: dict[str, int]) -> None:
    """Put the cuts that text needs in front of the model's own: at a header's end, and inside control spellings.

    A byte-pair model joins only what its merges name, and none names a control piece. Other models look a text up in
    the whole vocabulary, control and byte pieces included, and do so *after* normalisation: a full-width ``＜pad＞``
    would be found as ``<pad>``. There a cut behind the first character keeps it text.
    """
    cuts: list[Spec] = []
    if _junction(spec) != "clean":
        cuts.append(_split({"String": convert.BOUNDARY}, "Removed"))
    if spec["model"]["type"] != "BPE":
        names = [f"{re.escape(name[0])}(?={re.escape(name[1:])})" for name in sorted(controls)]
        cuts.append(_split({"Regex": "|".join([*names, "<(?=0x[0-9A-F]{2}>)"])}, "MergedWithPrevious"))
    own = spec["pre_tokenizer"]
    before = own["pretokenizers"] if own and own["type"] == "Sequence" else [own] if own else []
    chain = cuts + [step for step in before if step not in cuts]
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": chain} if chain else None


def _split(pattern: dict[str, str], behavior: str) -> Spec:
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": False}


def _junction(spec: Spec) -> Junction:
    """Whether a header's newline and the content behind it are the same ids when written as one string.

    ``clean``: the newline is a piece found before all others. ``newline``: so it is, but a run of newlines is a piece
    too (Gemma's own vocabulary), so content that begins with one would be joined. ``always``: anything may happen.
    """
    plain = {token["content"] for token in spec["added_tokens"] if not token["special"]}
    longer = [piece for piece in plain if piece.startswith("\n") and piece != "\n"]
    if "\n" not in plain or any(piece.strip("\n") for piece in longer):
        return "always"
    return "newline" if longer else "clean"
