"""A classifier in Hugging Face's layout (``*ForSequenceClassification``) as a scorer.

The score is that of one label. ``raw`` is a logit: the label's own where the labels are independent of each
other or there is only one, and ln p / (1 − p) where they exclude each other; ``reported`` and ``probability`` are
the label's probability, σ(raw). A reward model from elsewhere has one label: its reward is ``raw``, and its
probability is not absolute.

An answer that is longer than the model's window is read in pieces that overlap, and its score is the highest of
theirs: for a label such as ``toxic``, that of the worst passage. A dialogue that is longer is refused, since the best
passage says nothing of the whole. Nothing is cut off.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alignment.artifacts import Artifact
from alignment.chat.types import Message, Messages
from alignment.errors import UserError, nearest
from alignment.scoring.scorer import Scores, name_of, sigmoid

if TYPE_CHECKING:
    from alignment.training.engine import Engine

HEAD = "ForSequenceClassification"
TOKENS_A_BATCH = 8_192
OVERLAP = 0.25
"""The share of a piece that the next one repeats."""
_ENDLESS = 1_000_000
"""What a tokenizer says of its window where it knows none is larger than this."""

Part = Literal["answer", "dialogue"]


class Classifier:
    """Judges the last answer of each dialogue, ``text="answer"``, or that answer with what came before it.

    With ``dialogue`` a tokenizer's own chat template renders the turns; without one, what came before and the
    answer are the two texts of a pair, as in classifiers of sentence pairs.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any, *, label: int, text: Part, engine: Engine) -> None:
        self.name, self.model, self.tokenizer, self.text = name, model, tokenizer, text
        self._label, self._engine, self._window = label, engine, _window(model, tokenizer)
        independent = model.config.problem_type in ("multi_label_classification", "regression")
        self.absolute = model.config.num_labels > 1 or model.config.problem_type == "multi_label_classification"
        self._exclusive = model.config.num_labels > 1 and not independent

    @classmethod
    def load(cls, artifact: Artifact, engine: Engine, label: str | None, text: Part) -> Classifier:
        """Open a directory. ``label`` names the label that counts; null takes the only one.

        Raises :class:`UserError` for what is no such classifier, has no weights in safetensors, or has several
        labels of which none is named.
        """
        from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

        _check(artifact.path)
        try:
            tokenizer = AutoTokenizer.from_pretrained(artifact.path, local_files_only=True, trust_remote_code=False)
            config = AutoConfig.from_pretrained(artifact.path, local_files_only=True, trust_remote_code=False)
            # A config may name attention that is fetched as code; what transformers itself chooses is taken.
            config._attn_implementation = None
            model, told = AutoModelForSequenceClassification.from_pretrained(
                artifact.path,
                config=config,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype="float32",
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise UserError(
                f"{artifact.path}: the classifier cannot be opened",
                cause=str(error).strip().splitlines()[0],
                remedy="It needs config.json, a tokenizer and weights in safetensors, of an architecture that "
                "transformers itself has.",
            ) from None
        if told["missing_keys"]:
            raise UserError(
                f"{artifact.path}: weights are missing: {', '.join(sorted(told['missing_keys'])[:3])}",
                cause="What is missing would be drawn at random.",
                remedy="Name a classifier that was trained to its end.",
            )
        place = _label(artifact.path, model.config, label)
        name = name_of(artifact) if label is None else f"{name_of(artifact)}:{label}"
        return cls(name, model.to(engine.device).eval(), tokenizer, label=place, text=text, engine=engine)

    def score(self, dialogues: Sequence[Messages]) -> Scores:
        """As the protocol says. Raises :class:`UserError` for a dialogue that is longer than the window."""
        pieces: list[tuple[int, dict[str, list[int]]]] = []
        for row, turns in enumerate(dialogues):
            pieces += [(row, piece) for piece in self._encode(row, turns)]
        raw = [-math.inf] * len(dialogues)
        for (row, _), value in zip(pieces, self._logits([piece for _, piece in pieces]), strict=True):
            raw[row] = max(raw[row], value)
        probability = [sigmoid(value) for value in raw]
        return Scores(raw, probability, probability)

    def _encode(self, row: int, turns: Messages) -> list[dict[str, list[int]]]:
        """The pieces of one dialogue: their ids, and token types where the model has them; none is empty."""
        if self.text == "dialogue":
            return [self._whole(row, turns)]
        answer = turns[-1].content
        whole = self.tokenizer(answer, return_attention_mask=False, verbose=False)
        length = len(whole["input_ids"])
        if self._window is None or length <= self._window:
            return [_not_empty(dict(whole), self.tokenizer)]
        if not self.tokenizer.is_fast:
            raise UserError(
                f"{self.name}: answer {row} has {length:,} tokens, and the model reads {self._window:,} at once",
                cause="Its tokenizer cuts no text to pieces.",
                remedy="Leave such answers out, or choose a scorer with a longer window.",
            )
        words = len(self.tokenizer(answer, add_special_tokens=False, verbose=False)["input_ids"])
        encoded = self.tokenizer(
            answer,
            truncation=True,
            max_length=self._window,
            stride=int(OVERLAP * (self._window - (length - words))),
            return_overflowing_tokens=True,
            return_attention_mask=False,
        )
        kept = [name for name in ("input_ids", "token_type_ids") if name in encoded]
        return [{name: encoded[name][place] for name in kept} for place in range(len(encoded["input_ids"]))]

    def _whole(self, row: int, turns: Messages) -> dict[str, list[int]]:
        """A dialogue in one piece."""
        if self.tokenizer.chat_template:
            said = [{"role": turn.role, "content": turn.content} for turn in turns]
            rendered = self._rendered(row, said)
            piece = {"input_ids": rendered["input_ids"]}
        else:
            texts = _told(turns[:-1]), turns[-1].content
            piece = dict(self.tokenizer(*texts, return_attention_mask=False, verbose=False))
        length = len(piece["input_ids"])
        if self._window is not None and length > self._window:
            raise UserError(
                f"{self.name}: dialogue {row} has {length:,} tokens, and the model reads {self._window:,} at once",
                cause="It is to judge the dialogue, and not a passage of it.",
                remedy="Leave such dialogues out, choose a scorer with a longer window, or say classifier.text=answer.",
            )
        return _not_empty(piece, self.tokenizer)

    def _rendered(self, row: int, said: list[dict[str, str]]) -> Any:
        """By the model's own template, which transformers runs in Jinja's sandbox; what it refuses is told."""
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template(said, tokenize=True, return_dict=True)
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
            raise UserError(
                f"{self.name}: its chat template does not render dialogue {row}",
                cause=f"{type(error).__name__}: {error}",
                remedy="Take a classifier whose template takes such dialogues, or say classifier.text=answer.",
            ) from None

    def _logits(self, pieces: Sequence[dict[str, list[int]]]) -> list[float]:
        """The label's logit of every piece. Only pieces of one length share a batch, so that none is padded."""
        import torch

        from alignment.training.engine import autocast

        found = [0.0] * len(pieces)
        for places in _batches([len(piece["input_ids"]) for piece in pieces], self.model.config.pad_token_id):
            batch = {
                name: torch.tensor([pieces[place][name] for place in places], device=self._engine.device)
                for name in pieces[places[0]]
            }
            with torch.inference_mode(), autocast(self._engine):
                logits = self.model(**batch).logits
            values = self._of_label(logits.double())
            for place, value in zip(places, values.tolist(), strict=True):
                found[place] = value
        return found

    def _of_label(self, logits: Any) -> Any:
        """(rows, labels) → the logit of the label's probability, (rows)."""
        import torch

        own = logits[:, self._label]
        if not self._exclusive:
            return own
        others = torch.arange(logits.shape[1], device=logits.device) != self._label
        return own - logits[:, others].logsumexp(dim=1)


def is_classifier(directory: Path) -> bool:
    """Whether a directory's ``config.json`` says that it is a classifier."""
    path = directory / "config.json"
    return path.is_file() and any(name.endswith(HEAD) for name in _architectures(path))


def _architectures(path: Path) -> list[str]:
    """What a config.json names. Raises :class:`UserError` for what is none."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read", cause=f"{type(error).__name__}: {error}") from None
    named = config.get("architectures") if isinstance(config, dict) else None
    return [str(name) for name in named] if isinstance(named, list) else []


def _check(directory: Path) -> None:
    """Refuse by ``config.json`` what is no classifier, before any weight is read."""
    path = directory / "config.json"
    if not path.is_file():
        raise UserError(f"{directory}: is no model directory", cause="It has no config.json.")
    if (directory / "adapter_config.json").is_file():
        raise UserError(
            f"{directory}: holds a model and an adapter",
            cause="transformers would load both, from wherever the adapter says.",
            remedy="Move adapter_config.json and its weights to a folder of their own.",
        )
    named = _architectures(path)
    _need_bounded(path)
    if not any(name.endswith(HEAD) for name in named):
        raise UserError(
            f"{directory}: is no classifier",
            cause=f"Its config.json names {', '.join(named) or 'no architecture'}; *{HEAD} is wanted.",
        )


def _need_bounded(path: Path) -> None:
    from alignment.gemma.directory import need_bounded

    need_bounded(json.loads(path.read_text(encoding="utf-8")), path)


def _label(directory: Path, config: Any, label: str | None) -> int:
    """The place of the label that counts."""
    names = [str(config.id2label[place]) for place in range(config.num_labels)]
    if label is None and len(names) == 1:
        return 0
    if label is None:
        raise UserError(
            f"{directory}: has {len(names)} labels, and none is named",
            cause=f"Labels: {', '.join(names)}.",
            remedy="Name the one whose probability counts.",
        )
    if label not in names:
        raise UserError(f"{directory}: has no label {label!r}", remedy=nearest(label, names))
    return names.index(label)


def _window(model: Any, tokenizer: Any) -> int | None:
    """The most tokens that the model can read at once; None where neither it nor its tokenizer says."""
    known = [tokenizer.model_max_length] if tokenizer.model_max_length < _ENDLESS else []
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions and positions > 0:
        known.append(positions - _positions_lost(model))
    return min(known) if known else None


def _positions_lost(model: Any) -> int:
    """RoBERTa and its kin count positions from the padding id on: 512 tokens of 514 positions."""
    for name, part in model.named_modules():
        if name.endswith("position_embeddings") and getattr(part, "padding_idx", None) is not None:
            return part.padding_idx + 1
    return 0


def _batches(lengths: Sequence[int], pad_id: int | None) -> list[list[int]]:
    """Places of equal length, longest first, about ``TOKENS_A_BATCH`` tokens together."""
    order = sorted(range(len(lengths)), key=lambda place: (-lengths[place], place))
    batches: list[list[int]] = []
    for place in order:
        last = batches[-1] if batches else []
        # Decoders that know no padding refuse more than one row.
        full = pad_id is None or (len(last) + 1) * lengths[place] > TOKENS_A_BATCH
        if last and not full and lengths[last[0]] == lengths[place]:
            last.append(place)
        else:
            batches.append([place])
    return batches


def _told(turns: Sequence[Message]) -> str:
    """What came before an answer: one message as it is, several with a blank line between them."""
    return "\n\n".join(turn.content for turn in turns)


def _not_empty(piece: dict[str, list[int]], tokenizer: Any) -> dict[str, list[int]]:
    """An empty answer is scored like any other: where a tokenizer adds nothing of its own, it is its end token."""
    return piece if piece["input_ids"] else {"input_ids": [tokenizer.eos_token_id]}
