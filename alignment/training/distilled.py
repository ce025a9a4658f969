"""The adapter to TRL's SFTTrainer for distillation: our rows, a teacher beside them, our loss.

TRL's DistillationTrainer learns from the student's answers alone, which it draws with one stream of random numbers and
tokenises itself; it cannot be killed and go on to the same bits, knows no stored teacher, and computes its tiles again
in the backward pass. Here the rows of a step are put together when it begins (``lessons.py``), by the
one sampler or TRL's client of a vLLM server, and the loss is ``objectives/imitation.py``: summed over the tokens that
carry loss, divided by their number in the *global* batch.

Axes: B rows, T tokens, S tokens that carry loss, D width, E the teacher's width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, PreTrainedModel
from trl import SFTConfig, SFTTrainer

from alignment.gemma import core
from alignment.objectives.imitation import Imitated, chunked_imitation
from alignment.objectives.minillm import long_term_loss
from alignment.objectives.tokens import gather_logprobs
from alignment.training import checkpoints, loop, team, zero
from alignment.training.engine import Engine, autocast, batch_arithmetic
from alignment.training.lessons import NumberedBatches, Places, Plan, Row, Source, collated
from alignment.training.loop import Course, Trained, Watcher
from alignment.training.optimisation import Optimisation
from alignment.training.rows import IGNORE, Collator, TokenRows
from alignment.training.teachers import Live, Telling, columns, need_finite, taught_by
from alignment.training.tracking import Tracker


@dataclass(frozen=True)
class Objective:
    """The numbers of ``objectives.imitation.chunked_imitation``; what a student has said is no text to learn as such,
    and has no share of NLL.

    ``clip`` is MiniLLM's, whose single-step part is the divergence; None elsewhere. ``single_step=False`` leaves that
    part to the policy's gradient.
    """

    divergence: Literal["forward_kl", "reverse_kl", "jsd"]
    beta: float
    temperature: float
    nll_weight: float
    clip: float | None = None
    single_step: bool = True


def train(
    model: nn.Module,
    rows: TokenRows,
    *,
    plan: Callable[[int], Plan],
    source: Source,
    teacher: Live | Telling,
    objective: Objective,
    title: str,
    out: Path,
    tokenizer_folder: Path,
    pad_id: int,
    collate: Collator,
    numbers: Optimisation,
    engine: Engine,
    tracker: Tracker,
    seed: int,
) -> Trained:
    """Train a student in place; resumes from the last whole checkpoint below ``out``.

    ``rows`` are counted, and ``source`` has them with their names. ``plan`` gives for a number of steps the rows of
    each. Raises :class:`UserError` where the loss stops being a number, or a teacher gives none.
    """
    course = Course(title, out, numbers, engine, tracker, seed, len(rows))
    # Digests are checked here as they are when the trainer reads its part.
    last = team.from_main(lambda: checkpoints.last_whole(course.folder))
    if last is not None:
        source.load(last)

    def build(course: Course, watcher: Watcher) -> DistillTrainer:
        trainer = DistillTrainer(
            model=cast(PreTrainedModel, model),
            args=course.arguments(
                SFTConfig,
                max_length=None,
                packing=False,
                average_tokens_across_devices=True,
                **loop.computing_again(model, engine),
                dataset_kwargs={"skip_prepare_dataset": True},
            ),
            # What TRL looks at before training; the rows come from elsewhere.
            train_dataset=Dataset.from_dict({"input_ids": [[pad_id]], "labels": [[pad_id]]}),
            data_collator=cast(Any, torch.tensor),
            processing_class=AutoTokenizer.from_pretrained(tokenizer_folder, trust_remote_code=False),
            callbacks=[watcher],
        )
        micro, _ = batch_arithmetic(numbers.batch, engine)
        batches = NumberedBatches(
            plan(course.steps), count=source.count, batch=numbers.batch, steps=course.steps, micro=micro
        )
        trainer.adopt(course, batches)
        trainer.learn_from(source, teacher, collate, watcher, Places(source.count * numbers.batch))
        trainer.model_accepts_loss_kwargs = True
        live = teacher if isinstance(teacher, Live) else None
        _install_imitation(core.causal_lm(cast(nn.Module, trainer.model)), live, objective, engine)
        return trainer

    trained = loop.conduct(course, build)
    core.causal_lm(model).__dict__.pop("forward", None)
    return trained


class DistillTrainer(loop.Planned, SFTTrainer):
    """SFTTrainer with everything of ours in the places that its authors left for it."""

    def learn_from(
        self, source: Source, teacher: Live | Telling, collate: Collator, watcher: Watcher, places: Places
    ) -> None:
        """Take what the rows come from, and who teaches."""
        self._source, self._teacher, self._collate = source, teacher, collate
        self._watcher, self._places = watcher, places

    def get_train_dataloader(self) -> DataLoader:
        """One pass over the planned batches is the whole run; they are numbers of rows."""
        loader: DataLoader = DataLoader(self._places, batch_sampler=self._batches, collate_fn=self.data_collator)
        return self.accelerator.prepare(loader)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> Any:
        """The micro-batches of a step, put together now, and the trained tokens of the global batch."""
        groups = [next(epoch_iterator).tolist() for _ in range(num_batches)]
        rows = self._source.rows(self.state.global_step, groups, self._acting)
        self._watcher.amount += sum(len(row.ids) for some in rows for row in some)
        batches = [self._lesson(some) for some in rows]
        counts = torch.stack([(batch["shift_labels"] != IGNORE).sum() for batch in batches])
        self._to_come, self._step_sums = len(batches), torch.zeros((), device=device)
        return batches, self.accelerator.gather(counts.sum().to(device)).sum()

    def _lesson(self, rows: Sequence[Row]) -> dict[str, Any]:
        """What the student reads, and what the teacher tells of it where it is not in memory."""
        if not isinstance(self._teacher, Live):
            told = columns(self._teacher.tell(rows))
            rows = [
                replace(row, told={name: values[start:end] for name, values in told.items()})
                for row, start, end in _spans(rows)
            ]
        batch, _ = collated(rows, self._collate)
        return batch | {"names": [row.name for row in rows], "drawn": rows[0].drawn}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of this micro-batch over the trained tokens of the global batch."""
        assert num_items_in_batch is not None, "the loop counts the global batch's tokens"
        assert not return_outputs, "evaluation does not go through the trainer"
        names, drawn = inputs.pop("names"), inputs.pop("drawn")
        if isinstance(self._teacher, Live):
            inputs["teacher_hidden"] = self._teacher.read(inputs, names)
        else:
            need_finite(inputs["teacher_logprobs"], names)
        found = model(**inputs, imitation=True, drawn=drawn)
        self.need_finite(found["loss"], inputs)
        self._note({name: total for name, total in found.items() if name != "loss"}, inputs["shift_labels"])
        # Gradients are averaged over the processes, and the count is already global.
        return found["loss"] * (self.accelerator.num_processes / num_items_in_batch)

    def _note(self, totals: dict[str, Tensor], labels_BT: Tensor) -> None:
        """Have the means over the tokens of a whole step, of all processes, logged; called for each micro-batch."""
        sums = torch.stack([(labels_BT != IGNORE).sum().float(), *(one.detach().float() for one in totals.values())])
        self._step_sums = self._step_sums + sums
        self._to_come -= 1
        if not self._to_come:
            tokens, *rest = self.accelerator.gather(self._step_sums[None]).sum(0).tolist()
            for name, total in zip(totals, rest, strict=True):
                self._metrics["train"][name].append(total / tokens)

    @contextmanager
    def _acting(self) -> Iterator[nn.Module]:
        wrapped: Any = self.model_wrapped
        with zero.whole(wrapped) if self._engine.settings.zero == 3 else _as_it_is():
            yield cast(nn.Module, self.model)

    def keep_besides(self, folder: Path) -> None:
        """As the source says."""
        self._source.save(self.state.global_step, folder)


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


def _spans(rows: Sequence[Row]) -> Iterator[tuple[Row, int, int]]:
    """Each row with where its tokens that carry loss begin and end among those of all."""
    start = 0
    for row in rows:
        end = start + int(row.trained.sum())
        yield row, start, end
        start = end


def _install_imitation(model: nn.Module, live: Live | None, objective: Objective, engine: Engine) -> None:
    """Let ``model(..., imitation=True)`` return the summed loss: inside DDP's and DeepSpeed's forward, that is."""
    original: Callable[..., Any] = model.forward

    @functools.wraps(original)
    def forward(*args: Any, imitation: bool = False, drawn: bool = False, **inputs: Any) -> Any:
        if not imitation:
            return original(*args, **inputs)
        with autocast(engine):
            numbers = replace(objective, nll_weight=0.0) if drawn else objective
            return _imitated(model, inputs, live, numbers, engine.settings.loss_chunk)

    model.forward = forward


def _imitated(
    model: nn.Module, batch: dict[str, Tensor], live: Live | None, objective: Objective, chunk: int
) -> dict[str, Tensor]:
    """The summed loss of a batch, and beside it what is logged, summed."""
    hidden_BTD = core.hidden_states(model, batch["input_ids"], position_ids=batch.get("position_ids"))
    weight_VD, softcap = core.head(model)
    hidden_ND, labels_N = hidden_BTD.flatten(0, 1), batch["shift_labels"].flatten()
    # Where the policy's gradient does it all, the divergence is looked at and not learned from.
    with torch.set_grad_enabled(torch.is_grad_enabled() and objective.single_step):
        found: Imitated = chunked_imitation(
            hidden_ND,
            weight_VD,
            labels_N,
            taught_by(batch, live),
            divergence=objective.divergence,
            beta=objective.beta,
            temperature=objective.temperature,
            nll_weight=objective.nll_weight,
            softcap=softcap,
            weights_S=batch.get("weights"),
            chunk_tokens=chunk,
        )
    said = {"divergence": found.divergence_S.sum(), "nll": found.nll_S.sum()}
    if objective.clip is None:
        return said | {"loss": found.loss}
    here_N = labels_N != IGNORE
    logprobs_S = gather_logprobs(hidden_ND[here_N], weight_VD, labels_N[here_N], softcap=softcap, chunk_tokens=chunk)
    columns_S1 = (logprobs_S, batch["drawn_logprobs"], batch["futures"], torch.ones_like(logprobs_S, dtype=torch.bool))
    policy = long_term_loss(*(one[:, None] for one in columns_S1), clip=objective.clip)
    loss = found.loss + policy.loss if objective.single_step else policy.loss
    return said | {"loss": loss, "clipped": policy.clipped.float()}
