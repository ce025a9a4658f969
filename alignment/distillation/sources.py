"""Sources of a step's rows (``training.lessons.Source``): what is written, or what the student answers on the way.

GKD (arXiv 2306.13649, algorithm 1): with chance λ a step learns from answers of the student as it is, else from what is
written. MiniLLM (arXiv 2306.08543): answers are drawn from a mixture of teacher and student, and gone through several
times in small steps; each of their tokens has an importance weight, w ≈ q / p̃, and what it leads to: the teacher's
opinion of the tokens behind it. No gradient goes through the drawing.

Axes: B rows, T tokens of an answer, S tokens of all answers of a batch.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import nn

from alignment import ranks
from alignment.gemma import core
from alignment.objectives import minillm
from alignment.objectives.tokens import gather_logprobs
from alignment.sampling.drawer import Drawer
from alignment.sampling.sampler import Answer, Beside, Sampler
from alignment.training import team
from alignment.training.engine import Engine, autocast
from alignment.training.lessons import Acting, Matter, Row, answered, collated, phase_rows
from alignment.training.rows import IGNORE, Collator
from alignment.training.teachers import Live

STEPS_A_SEED = 1_000_003
"""Every step draws with noise of its own: a prompt that comes again gets other answers."""
TOKENS_A_BATCH = 8_192
FILE = "rollouts.safetensors"


@dataclass(frozen=True)
class Written:
    """What is written, and nothing else."""

    matter: Matter

    @property
    def count(self) -> int:
        """As :class:`Source` says."""
        return len(self.matter)

    def rows(self, step: int, groups: Sequence[Sequence[int]], acting: Acting) -> list[list[Row]]:
        """As :class:`Source` says."""
        return [[self.matter.row(number % len(self.matter)) for number in group] for group in groups]

    def save(self, step: int, folder: Path) -> None:
        """Nothing is kept."""

    def load(self, folder: Path) -> None:
        """Nothing is needed."""


@dataclass(frozen=True)
class OnPolicy(Written):
    """GKD: with chance ``share`` all rows of a step are answers that the student draws to their prompts."""

    drawer: Drawer
    share: float
    temperature: float
    max_new_tokens: int
    seed: int

    def is_drawn(self, step: int) -> bool:
        """Whether the student answers in this step; the same in all processes."""
        return bool(np.random.default_rng([self.seed, step, 3]).random() < self.share)

    def rows(self, step: int, groups: Sequence[Sequence[int]], acting: Acting) -> list[list[Row]]:
        """As :class:`Source` says."""
        if not self.is_drawn(step):
            return super().rows(step, groups, acting)
        count = self.count
        numbers = [number for group in groups for number in group]
        with acting() as model:
            answers = self.drawer.draw(
                model,
                [self.matter.prompts[number % count] for number in numbers],
                [_key(self.matter.names[number % count], number // count) for number in numbers],
                samples=1,
                temperature=self.temperature,
                max_new_tokens=self.max_new_tokens,
                seed=self.seed * STEPS_A_SEED + step,
            )
        drawn = iter(
            answered(self.matter.names[number % count], self.matter.prompts[number % count], answer.ids)
            for number, answer in zip(numbers, answers, strict=True)
        )
        return [[next(drawn) for _ in group] for group in groups]


class Phases:
    """MiniLLM: ``rollouts`` answers are drawn, and learned from ``epochs`` times in batches; then the next ones."""

    def __init__(
        self,
        matter: Matter,
        teacher: Live,
        collate: Collator,
        engine: Engine,
        stop_ids: tuple[int, ...],
        *,
        teacher_share: float,
        rollouts: int,
        steps_a_phase: int,
        max_new_tokens: int,
        length_normalised: bool,
        single_step: bool,
        seed: int,
    ) -> None:
        self.matter, self.teacher, self.collate, self.engine = matter, teacher, collate, engine
        self.stop_ids, self.teacher_share, self.rollouts = stop_ids, teacher_share, rollouts
        self.steps_a_phase, self.max_new_tokens, self.seed = steps_a_phase, max_new_tokens, seed
        self.length_normalised, self.single_step = length_normalised, single_step
        self.phase = -1
        self._drawn: list[Row] = []

    @property
    def count(self) -> int:
        """As :class:`Source` says: numbers are those of a phase's answers."""
        return self.rollouts

    def rows(self, step: int, groups: Sequence[Sequence[int]], acting: Acting) -> list[list[Row]]:
        """As :class:`Source` says."""
        phase = step // self.steps_a_phase
        if phase != self.phase:
            with acting() as model, self.teacher.whole():
                self._drawn = self._together(phase, model)
            self.phase = phase
        return [[self._drawn[number] for number in group] for group in groups]

    def _together(self, phase: int, model: nn.Module) -> list[Row]:
        """All rows of a phase; each process draws its share."""
        places = phase_rows(phase, count=len(self.matter), rollouts=self.rollouts, seed=self.seed)
        seen: Counter[int] = Counter()
        keys = []
        for place in places:
            keys.append(_key(self.matter.names[place], seen[place]))
            seen[place] += 1
        share = slice(ranks.rank(), None, ranks.world())
        rows = self._draw(model, places[share], keys[share], phase)
        shares = team.exchange(rows)
        found: list[Row | None] = [None] * self.rollouts
        for rank, theirs in enumerate(shares):
            found[rank :: len(shares)] = theirs
        return [row for row in found if row is not None]

    def _draw(self, model: nn.Module, places: Sequence[int], keys: Sequence[str], phase: int) -> list[Row]:
        beside = Beside(self.teacher.model, self.teacher_share) if self.teacher_share else None
        sampler = Sampler(model, stop_ids=self.stop_ids, pad_id=self.collate.pad_id, beside=beside)
        answers = sampler.draw(
            [self.matter.prompts[place] for place in places],
            keys,
            temperature=1.0,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed * STEPS_A_SEED + phase,
        )
        rows = [
            answered(self.matter.names[place], self.matter.prompts[place], answer.ids)
            for place, answer in zip(places, answers, strict=True)
        ]
        return self._weighed(model, rows, answers)

    def _weighed(self, model: nn.Module, rows: list[Row], answers: Sequence[Answer]) -> list[Row]:
        """The rows with what each of their tokens was drawn with, weighs, and leads to."""
        own, theirs = (logprobs(one, rows, self.collate, self.engine) for one in (model, self.teacher.model))
        weighed = []
        for row, answer, own_T, theirs_T in zip(rows, answers, own, theirs, strict=True):
            own_1T, theirs_1T = (torch.from_numpy(one)[None] for one in (own_T, theirs_T))
            drawn_1T = torch.tensor([answer.logprobs], dtype=torch.float32)
            inside_1T = torch.ones_like(own_1T, dtype=torch.bool)
            futures_1T = minillm.future_rewards(
                theirs_1T - own_1T, inside_1T, normalised=self.length_normalised, own=not self.single_step
            )
            weights_1T = minillm.importance_weights(own_1T, drawn_1T, inside_1T)
            told = {"drawn_logprobs": drawn_1T, "weights": weights_1T, "futures": futures_1T}
            weighed.append(replace(row, told={name: values[0].numpy() for name, values in told.items()}))
        return weighed

    # ── between two steps of a phase ─────────────────────────────────────────────────────────────

    def save(self, step: int, folder: Path) -> None:
        """Write what the rest of the phase needs, where it is not over with ``step``."""
        if step % self.steps_a_phase == 0:
            return
        columns = {name: np.concatenate([row.told[name] for row in self._drawn]) for name in self._drawn[0].told}
        lengths = np.array([(len(row.ids), int(row.trained.sum())) for row in self._drawn], dtype=np.int64)
        ids = np.concatenate([row.ids for row in self._drawn])
        names = {"phase": self.phase, "rows": [row.name for row in self._drawn]}
        save_file({"ids": ids, "lengths": lengths, **columns}, folder / FILE, {"names": json.dumps(names)})

    def load(self, folder: Path) -> None:
        """Take it back."""
        if not (folder / FILE).is_file():
            return
        with safe_open(folder / FILE, framework="np") as kept:
            names = json.loads(kept.metadata()["names"])
            found = {name: kept.get_tensor(name) for name in kept.keys()}  # noqa: SIM118
        ids, lengths = found.pop("ids"), found.pop("lengths")
        bounds = np.cumsum(np.vstack([[0, 0], lengths]), axis=0)
        self._drawn = []
        for name, (start, first), (end, last) in zip(names["rows"], bounds[:-1], bounds[1:], strict=True):
            prompt_end = end - (last - first)
            told = {column: values[first:last] for column, values in found.items()}
            row = answered(name, ids[start:prompt_end], ids[prompt_end:end])
            self._drawn.append(replace(row, told=told))
        self.phase = names["phase"]


@torch.no_grad()
def logprobs(model: nn.Module, rows: Sequence[Row], collate: Collator, engine: Engine) -> list[np.ndarray]:
    """``logprobs_T`` of every row's tokens that carry loss, in nats, in the arithmetic of training."""
    found: list[np.ndarray] = [np.zeros(0)] * len(rows)
    weight_VD, softcap = core.head(model)
    chunk, was_training = engine.settings.loss_chunk, model.training
    model.eval()
    by_length = sorted(range(len(rows)), key=lambda place: len(rows[place].ids))
    while by_length:
        many = max(1, TOKENS_A_BATCH // len(rows[by_length[-1]].ids))
        some, by_length = by_length[-many:], by_length[:-many]
        batch, order_S = collated([replace(rows[place], told={}) for place in some], collate)
        placed = {name: values.to(engine.device) for name, values in batch.items()}
        here_BT = placed["shift_labels"] != IGNORE
        with autocast(engine):
            hidden_BTD = core.hidden_states(model, placed["input_ids"], position_ids=placed.get("position_ids"))
            said_S = gather_logprobs(
                hidden_BTD[here_BT], weight_VD, placed["shift_labels"][here_BT], softcap=softcap, chunk_tokens=chunk
            )
        in_order = np.empty(len(order_S), dtype=np.float32)
        in_order[order_S] = said_S.float().cpu().numpy()
        ends = np.cumsum([int(rows[place].trained.sum()) for place in some])[:-1]
        for place, values in zip(some, np.split(in_order, ends), strict=True):
            found[place] = values
    model.train(was_training)
    return found


def _key(name: str, occurrence: int) -> str:
    """The name of a draw: a row that comes to a step twice gets another answer."""
    return f"{name}#{occurrence}" if occurrence else name
