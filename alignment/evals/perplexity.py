"""Loss on held-out rows: of arms of several seeds, of one arm less another, and the share of a gain that one keeps.

Losses are nats a token: Σ NLL / Σ tokens over all rows, never a mean of rows' means; perplexity is their exponential,
and so are its bounds. Everything that is asked is a function of arms' losses, answered for every seed. Several seeds
give Student's interval over them, differences and shares being taken seed by seed. One seed gives the percentile
bootstrap over documents, all arms resampled together. Axes: R rows, A arms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from alignment.evals.fronts import over_seeds, pair_name, verdict
from alignment.evals.intervals import Bootstrap, Interval
from alignment.gemma import core
from alignment.objectives.imitation import TeacherHead, chunked_imitation
from alignment.training.engine import Engine
from alignment.training.held_out import by_length, held_out, labelled
from alignment.training.rows import IGNORE, Collator, TokenRows

Told = dict[str, Any]

LOSS, KL, PERPLEXITY = "loss", "kl", "perplexity"
KEPT_BYTES = 2**28
"""Of a teacher's hidden states that are kept from one model to the next."""


class Losses(NamedTuple):
    """One model on one dataset, by row: NLL and KL(teacher ‖ model) summed over its trained tokens, in nats.

    ``kl_R`` is None where there is no teacher.
    """

    nll_R: np.ndarray
    kl_R: np.ndarray | None = None

    @property
    def finite(self) -> bool:
        """Whether all of it are numbers."""
        return bool(np.isfinite(self.nll_R).all() and (self.kl_R is None or np.isfinite(self.kl_R).all()))

    def columns(self) -> dict[str, list[float] | None]:
        """As JSON holds them."""
        return {"nll": self.nll_R.tolist(), "kl": None if self.kl_R is None else self.kl_R.tolist()}

    @classmethod
    def of(cls, nll: Sequence[float], kl: Sequence[float] | None) -> Losses:
        """From :meth:`columns`."""
        return cls(np.array(nll), None if kl is None else np.array(kl))


@dataclass(frozen=True)
class HeldOutRows:
    """The rows of a dataset: ``names``, ``documents`` (rows of one are drawn together) and trained ``tokens_R``."""

    names: Sequence[str]
    documents: Sequence[Hashable]
    tokens_R: np.ndarray


@dataclass(frozen=True)
class Measured:
    """One model: what it is called, the arm whose seed it is, its ``parameters``, its losses by dataset."""

    label: str
    arm: str
    parameters: int
    losses: Mapping[str, Losses]


class Share(NamedTuple):
    """What share of the gain of ``whole`` over ``base`` the arm ``part`` keeps."""

    part: str
    whole: str
    base: str


class Asked(NamedTuple):
    """Which arms are compared, at which confidence, with which seed of the bootstrap."""

    pairs: Sequence[tuple[str, str]]
    shares: Sequence[Share]
    confidence: float
    seed: int


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


class Teaching:
    """A teacher that reads the same rows beside one model after the other; what it gave is kept while it is little."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._kept: dict[int, Tensor] = {}
        self._free = KEPT_BYTES

    def told(self, number: int, ids_BT: Tensor, asked_BT: Tensor) -> TeacherHead:
        """Of batch ``number``, which is the same each time, at the positions that carry loss."""
        hidden_SE = self._kept.get(number)
        if hidden_SE is None:
            hidden_SE = core.hidden_states(self._model, ids_BT)[asked_BT]
            size = hidden_SE.numel() * hidden_SE.element_size()
            if size <= self._free:
                self._kept[number] = hidden_SE
                self._free -= size
        return TeacherHead(hidden_SE, *core.head(self._model))


def read(model: nn.Module, rows: TokenRows, *, pad_id: int, engine: Engine, teacher: Teaching | None) -> Losses:
    """Read every row with the model, and beside it with the teacher where there is one."""
    if teacher is None:
        return Losses(held_out(model, rows, pad_id=pad_id, engine=engine).nll)
    return _beside(model, teacher, rows, pad_id=pad_id, engine=engine)


@torch.no_grad()
def _beside(model: nn.Module, teacher: Teaching, rows: TokenRows, *, pad_id: int, engine: Engine) -> Losses:
    """NLL and KL(teacher ‖ model) of every row in fp32, rows of like length together.

    Vocabularies that are padded to different sizes are compared as ``objectives/imitation.py`` says.
    """
    collate = Collator(pad_id)
    nll_R, kl_R = np.zeros(len(rows)), np.zeros(len(rows))
    weight_VD, softcap = core.head(model)
    for number, members in enumerate(by_length(rows.lengths)):
        batch = collate([labelled(*rows.row(index)) for index in members])
        ids_BT, labels_BT = batch["input_ids"].to(engine.device), batch["shift_labels"].to(engine.device)
        asked_BT = labels_BT != IGNORE
        found = chunked_imitation(
            core.hidden_states(model, ids_BT).flatten(0, 1),
            weight_VD,
            labels_BT.flatten(),
            teacher.told(number, ids_BT, asked_BT),
            divergence="forward_kl",
            beta=0.0,
            temperature=1.0,
            nll_weight=0.0,
            softcap=softcap,
            chunk_tokens=engine.settings.loss_chunk,
        )
        row_S = asked_BT.nonzero()[:, 0].cpu().numpy()
        for sums_R, value_S in ((nll_R, found.nll_S), (kl_R, found.divergence_S)):
            sums_R[members] = np.bincount(row_S, value_S.double().cpu().numpy(), minlength=len(members))
    return Losses(nll_R, kl_R)


# ── what is asked ────────────────────────────────────────────────────────────────────────────────

Ask = Callable[[np.ndarray], np.ndarray]
"""From nats a token by arm, ``[…, A]``, to a value, ``[…]``."""


def _itself(nats_A: np.ndarray) -> np.ndarray:
    return nats_A[..., 0]


def _less(nats_A: np.ndarray) -> np.ndarray:
    return nats_A[..., 0] - nats_A[..., 1]


def _share(nats_A: np.ndarray) -> np.ndarray:
    """(base − part) / (base − whole) of part, whole, base; NaN where there is no gain to keep."""
    part, whole, base = np.moveaxis(nats_A, -1, 0)
    gain = base - whole
    return np.where(gain == 0, math.nan, (base - part) / np.where(gain == 0, 1.0, gain))


class Answers:
    """What is known of every arm on one dataset: the sums of its seeds' rows, in the order of the seeds."""

    def __init__(self, arms: Mapping[str, Sequence[np.ndarray]], rows: HeldOutRows, asked: Asked) -> None:
        """``arms[name]`` holds nats by row of every seed."""
        self._arms, self._rows, self._asked = arms, rows, asked
        self._resamples: Bootstrap | None = None

    def ask(self, ask: Ask, *arms: str) -> Told | None:
        """An estimate with ``low``, ``high`` (null where nothing tells them) and ``seeds``; None where undefined.

        The arms have equally many seeds.
        """
        seeds = zip(*(self._arms[arm] for arm in arms), strict=True)
        tokens = self._rows.tokens_R.sum()
        values = [float(ask(np.array([nats_R.sum() for nats_R in some]) / tokens)) for some in seeds]
        found = over_seeds(values, self._asked.confidence)
        if found is None or len(values) > 1:
            return found
        return found | self._over_documents(ask, [self._arms[arm][0] for arm in arms])

    def _over_documents(self, ask: Ask, arms: Sequence[np.ndarray]) -> Told:
        if self._resamples is None:
            self._resamples = Bootstrap(self._rows.documents, self._asked.confidence, self._asked.seed)
        columns_RA = np.stack([*arms, self._rows.tokens_R.astype(float)], axis=1)
        (bounds,) = self._resamples.interval(columns_RA, lambda sums: ask(sums[..., :-1] / sums[..., -1:])[..., None])
        return {} if bounds is None else {"low": bounds.low, "high": bounds.high}


# ── what is told ─────────────────────────────────────────────────────────────────────────────────


def results(
    measured: Sequence[Measured], teacher: Measured | None, datasets: Mapping[str, HeldOutRows], asked: Asked
) -> Told:
    """Everything as ``stages/perplexity.py`` says ``results.json`` holds it, but for what its settings know."""
    arms: dict[str, list[Measured]] = {}
    for one in measured:
        arms.setdefault(one.arm, []).append(one)
    told: Told = {
        "datasets": {
            name: {"rows": len(rows.names), "tokens": int(rows.tokens_R.sum())} for name, rows in datasets.items()
        },
        "models": {one.label: _model(one, datasets, asked) for one in measured},
        "parameters": {arm: seeds[0].parameters for arm, seeds in arms.items()},
        "arms": {},
        "differences": {},
        "shares": {},
        "teacher": None,
    }
    for name, rows in datasets.items():
        nll = Answers({arm: [one.losses[name].nll_R for one in seeds] for arm, seeds in arms.items()}, rows, asked)
        told["arms"][name] = {arm: _arm(nll, arm) for arm in arms}
        told["differences"][name] = {pair_name(a, b): _difference(nll, a, b) for a, b in asked.pairs}
        told["shares"][name] = [_kept(nll, share) for share in asked.shares]
        if teacher is not None:
            kl = Answers({arm: _divergences(seeds, name) for arm, seeds in arms.items()}, rows, asked)
            for arm in arms:
                told["arms"][name][arm][KL] = kl.ask(_itself, arm)
    if teacher is not None:
        told["teacher"] = {
            "name": teacher.label,
            "parameters": teacher.parameters,
            "measures": {
                name: _arm(Answers({teacher.label: [teacher.losses[name].nll_R]}, rows, asked), teacher.label)
                for name, rows in datasets.items()
            },
        }
    return told


def metrics(told: Told) -> dict[str, float]:
    """The record's numbers: perplexities by arm and dataset, shares, the teacher's perplexity."""
    found = {
        f"{arm}/{name}/{PERPLEXITY}": one[PERPLEXITY]["estimate"]
        for name, arms in told["arms"].items()
        for arm, one in arms.items()
    }
    for name, shares in told["shares"].items():
        found |= {f"{one['part']}/{name}/share": one["estimate"] for one in shares if one["estimate"] is not None}
    if told["teacher"] is not None:
        for name, one in told["teacher"]["measures"].items():
            found[f"teacher/{name}/{PERPLEXITY}"] = one[PERPLEXITY]["estimate"]
    return found


def _model(one: Measured, datasets: Mapping[str, HeldOutRows], asked: Asked) -> Told:
    """Each measure with the interval of chance among documents, whatever the other seeds say."""
    told: Told = {}
    for name, rows in datasets.items():
        alone = Answers({one.label: [one.losses[name].nll_R]}, rows, asked)
        told[f"{PERPLEXITY} on {name}"] = _bounds(_arm(alone, one.label)[PERPLEXITY])
        kl_R = one.losses[name].kl_R
        if kl_R is not None:
            told[f"KL from the teacher on {name}"] = _bounds(
                Answers({one.label: [kl_R]}, rows, asked).ask(_itself, one.label)
            )
    return told


def _bounds(told: Told | None) -> Told:
    assert told is not None, "rows have tokens"
    return {key: told[key] for key in Interval._fields}


def _arm(answers: Answers, arm: str) -> Told:
    loss = answers.ask(_itself, arm)
    assert loss is not None, "an arm has a model, and rows have tokens"
    return {LOSS: loss, PERPLEXITY: exponential(loss)}


def exponential(loss: Mapping[str, Any]) -> Told:
    """The perplexity of a loss: of its estimate, of its bounds and of every seed."""
    told: Told = {key: None if loss[key] is None else _exp(loss[key]) for key in Interval._fields}
    return told | {"seeds": [_exp(one) for one in loss["seeds"]]}


def _exp(nats: float) -> float:
    """Of more than 700 nats, which no JSON could hold, as of 700."""
    return math.exp(min(nats, 700.0))


def _difference(answers: Answers, a: str, b: str) -> Told:
    """Nats a token of ``a`` less those of ``b``: below 0 where ``a`` is the better one."""
    found = answers.ask(_less, a, b)
    assert found is not None, "both arms have a loss"
    return found | {"verdict": verdict(found)}


def _kept(answers: Answers, share: Share) -> Told:
    found = answers.ask(_share, *share) or dict.fromkeys((*Interval._fields, "seeds"))
    return share._asdict() | found


def _divergences(seeds: Sequence[Measured], dataset: str) -> list[np.ndarray]:
    found = [one.losses[dataset].kl_R for one in seeds]
    return [kl_R for kl_R in found if kl_R is not None]
