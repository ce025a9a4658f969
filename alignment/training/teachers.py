"""A teacher that a student learns from: in memory, behind a server, or in what it left beside a dataset.

One in memory gives its hidden states and its head, so that nothing of tokens × vocabulary is ever held. The others give
their likeliest tokens. Under ZeRO 3 a teacher in memory is divided among the processes, as its student is.

Axes: B rows, T tokens, S tokens that carry loss in the order of a batch, E the teacher's width, U its padded
vocabulary, K likeliest tokens, M drawn among the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from alignment.artifacts import Artifact
from alignment.data.topk import TopK
from alignment.errors import UserError
from alignment.gemma import core
from alignment.objectives.imitation import Likeliest, TeacherHead
from alignment.training import policies, zero
from alignment.training.engine import Engine, autocast
from alignment.training.lessons import Row
from alignment.training.policies import Policy
from alignment.training.rows import IGNORE


class Telling(Protocol):
    """A teacher that tells its likeliest tokens."""

    def tell(self, rows: Sequence[Row]) -> list[TopK]:
        """Of every row, at each of its tokens that carry loss."""
        ...


def columns(told: Sequence[TopK]) -> dict[str, np.ndarray]:
    """What a teacher tells of some rows, end to end, by the names that :func:`taught_by` knows."""
    found: dict[str, np.ndarray] = {
        "teacher_ids": np.concatenate([one.ids_TK for one in told]).astype(np.int64),
        "teacher_logprobs": np.concatenate([one.logprobs_TK for one in told]).astype(np.float32),
        "teacher_tail": np.concatenate([one.tail_T for one in told]).astype(np.float32),
    }
    drawn = [one.drawn_TM for one in told if one.drawn_TM is not None]
    entropies = [one.entropy_T for one in told if one.entropy_T is not None]
    if drawn:
        assert len(drawn) == len(entropies) == len(told), "a teacher draws for all rows or for none"
        found["teacher_drawn"] = np.concatenate(drawn).astype(np.int64)
        found["teacher_entropy"] = np.concatenate(entropies).astype(np.float32)
    return found


class _Trunk(nn.Module):
    """A model below its head, in the arithmetic of an engine."""

    def __init__(self, model: nn.Module, engine: Engine) -> None:
        super().__init__()
        self.model = model
        self._how = engine

    def forward(self, ids_BT: Tensor, positions_BT: Tensor | None) -> Tensor:
        with autocast(self._how):
            return core.hidden_states(self.model, ids_BT, position_ids=positions_BT)


class Live:
    """A teacher in memory."""

    def __init__(self, model: nn.Module, engine: Engine) -> None:
        model.requires_grad_(False).eval()
        self.model, self._trunk = model, _Trunk(model, engine)
        self._divided: nn.Module | None = None
        if engine.settings.zero == 3:
            self._divided = zero.divided(self._trunk, engine)
        self.weight_UE, self.softcap = core.head(model)
        if self._divided is not None:
            # It is read beside the student's head, inside of the student's forward pass: it is kept whole as well.
            with zero.gathering([cast(nn.Parameter, self.weight_UE)]):
                self.weight_UE = self.weight_UE.detach().clone()

    @torch.no_grad()
    def read(self, batch: dict[str, Tensor], names: Sequence[str]) -> Tensor:
        """``hidden_SE`` of a student's batch; under ZeRO 3 all processes come here together.

        Raises :class:`UserError` where it is not finite; ``names`` are the batch's rows.
        """
        hidden_BTE = (self._divided or self._trunk)(batch["input_ids"], batch.get("position_ids"))
        hidden_SE = hidden_BTE[batch["shift_labels"] != IGNORE]
        need_finite(hidden_SE, names)
        return hidden_SE

    def whole(self) -> Any:
        """While the block lasts, ``model`` is whole in every process."""
        return nullcontext() if self._divided is None else zero.whole(self._divided)


def need_finite(told: Tensor, names: Sequence[str]) -> None:
    """Raise :class:`UserError` where a teacher gives what is no number; −inf is a probability of 0."""
    if bool((told.isnan() | (told == float("inf"))).any()):
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
        raise UserError(
            f"the teacher gives values that are no numbers, in the rows {shown}",
            cause="Its weights hold NaN or infinity, or its activations overflow.",
            remedy="Try engine.precision=fp32, or look at the run that trained it.",
        )


def taught_by(batch: dict[str, Tensor], live: Live | None) -> TeacherHead | Likeliest:
    """What the objective needs of a teacher, from a batch that :meth:`Live.read` or :func:`columns` has added to."""
    if live is not None:
        return TeacherHead(batch["teacher_hidden"], live.weight_UE, live.softcap)
    always = batch["teacher_ids"], batch["teacher_logprobs"], batch["teacher_tail"]
    return Likeliest(*always, batch.get("teacher_drawn"), batch.get("teacher_entropy"))


def open_live(artifact: Artifact, student: Policy, engine: Engine, *, attention: str, talks: bool, named: str) -> Live:
    """A teacher in memory that reads what ``student`` reads. Raises :class:`UserError` where it cannot.

    ``talks``: whether conversations are read, which both have to open and close alike.
    """
    artifact.need("policy")
    tokenizer, schema = policies.vocabulary_of(artifact, shape=None, schema="auto")
    own = student.tokens
    if tokenizer.digest != own.digest:
        raise UserError(
            f"teacher={named} has another tokenizer than the student",
            cause="A distribution over one set of pieces says nothing about pieces that are cut otherwise; to distil "
            "across tokenizers is another method.",
            remedy="Choose a teacher of the same family, or learn from its answers: stage=teach, then stage=sft.",
        )
    if talks and schema != own.schema:
        raise UserError(
            f"teacher={named} has another chat schema than the student ({schema}, not {own.schema})",
            cause="It reads the very ids that the student is trained on.",
            remedy="Choose a teacher that opens and closes turns as the student does.",
        )
    return Live(policies.open_policy(artifact, engine, attention=attention).model, engine)
