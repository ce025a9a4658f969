"""What learns: policy and critic in one engine (Accelerate, DeepSpeed), one backward pass over their summed losses.

Axes: B answers, T tokens, S tokens of all answers of a forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignment.errors import UserError
from alignment.gemma import branches
from alignment.gemma.branches import Lines
from alignment.gemma.roles import Outputs, Roles, Separate
from alignment.gemma.shared_roles import Shared
from alignment.objectives import policy
from alignment.objectives.tokens import kl_k3, masked_sum
from alignment.rl import engines
from alignment.rl.advantages import Targets
from alignment.rl.anchor import DividedAnchor
from alignment.rl.episodes import Episodes, Pass, passes
from alignment.rl.measures import Sums, of_update
from alignment.rl.order import minibatches
from alignment.rl.settings import Critic, Updating
from alignment.training import finite, zero
from alignment.training.engine import Engine, autocast
from alignment.training.fit import check_groups

TOKENS_A_PASS = {"cpu": 2_048, "cuda": 65_536}
"""Of a forward pass without gradients; one with gradients has engine.micro_batch answers, where that is said."""


class Learner:
    """The roles in their engine, with their optimiser."""

    def __init__(
        self,
        roles: Roles,
        updating: Updating,
        critic: Critic,
        engine: Engine,
        *,
        samples: int,
        temperature: float,
        pad_id: int,
        seed: int,
    ) -> None:
        check_groups(updating, samples, engine.world)
        self.roles, self.numbers, self.critic, self.engine = roles, updating, critic, engine
        self.temperature, self.pad_id, self.seed = temperature, pad_id, seed
        self.share = all(branches.shares_prompts(model) for model in roles.children())
        self.accelerator = engines.accelerator(engine, updating)
        zero.divide_for(roles, engine)
        rates = {"policy": updating.learning_rate, "critic": critic.learning_rate}
        groups = [
            {"params": some, "lr": rates[role], "peak": rates[role], "role": role, "weight_decay": decay}
            for role, parameters in roles.groups().items()
            for some, decay in engines.by_decay(parameters, updating.weight_decay)
        ]
        optimiser = torch.optim.AdamW(
            groups, betas=(updating.beta1, updating.beta2), eps=updating.epsilon, fused=not engine.settings.zero
        )
        roles.train()
        if engine.settings.zero:
            engines.autocast_inside(roles, engine)
        self.model, self.optimiser = self.accelerator.prepare(roles, optimiser)
        zero.need_engine(self.model, engine, self.accelerator.num_processes)
        self._held = False
        self.learned_from: list[Lines] = []
        """What the forward passes of the last minibatch took in."""
        self.anchor: DividedAnchor | None = None
        if engine.settings.zero == 3 and isinstance(roles, Separate) and not isinstance(roles, Shared):
            self.anchor = DividedAnchor(roles, engine)

    # ── weights that ZeRO 3 has divided ──────────────────────────────────────────────────────────

    @contextmanager
    def rollout(self) -> Iterator[None]:
        """While the block lasts, answers are drawn, judged and read; ``engine.gather``: by weights gathered once."""
        if not (self.engine.settings.zero == 3 and self.engine.settings.gather):
            yield
            return
        with zero.whole(self.model):
            self._held = True
            try:
                yield
            finally:
                self._held = False

    @contextmanager
    def acting(self) -> Iterator[torch.nn.Module]:
        """The model from which answers are drawn while the block lasts, its weights whole."""
        with self._whole(), self.roles.acting() as model:
            yield model

    @contextmanager
    def looking(self) -> Iterator[torch.nn.Module]:
        """The same, and beside it the anchor is whole."""
        with self.acting() as model, self.anchor.whole() if self.anchor else nullcontext():
            yield model

    def judging(self) -> Any:
        """While the block lasts, a reward model that stands on the policy's trunk is whole."""
        return self._whole() if isinstance(self.roles, Shared) else nullcontext()

    def move_anchor(self, rate: float) -> None:
        """anchor ← (1 − rate) anchor + rate policy."""
        if self.anchor:
            self.anchor.move(rate)
            return
        with self._whole():
            self.roles.move_anchor(rate)

    def anchor_state(self) -> dict[str, Tensor]:
        """What a checkpoint needs of a moving anchor. All processes come here, and rank 0 has it."""
        return self.anchor.state() if self.anchor else self.roles.anchor_state()

    def load_anchor(self, state: dict[str, Tensor]) -> None:
        """Take back what :meth:`anchor_state` gave."""
        (self.anchor.load if self.anchor else self.roles.load_anchor)(state)

    def leave(self) -> None:
        """Nothing more is learned: the roles are plain again, and where ``Engine.place`` says; the anchor is gone."""
        if self.anchor:
            zero.end(self.anchor.engine, self.engine, keep=False)
            self.anchor = None
        zero.end(self.model, self.engine)

    def _whole(self) -> Any:
        divided = self.engine.settings.zero == 3 and not self._held
        return zero.whole(self.model) if divided else nullcontext()

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    @torch.no_grad()
    def read(self, episodes: Episodes, *, old: bool) -> None:
        """Fill in the anchor's log-probabilities, the critic's values, and, where ``old``, the policy's own.

        Otherwise the policy's are those at which the sampler drew: its arithmetic differs from the one here by
        rounding alone.
        """
        width = episodes.mask_BT.shape[1]
        wanted = ["anchor_BT"] + (["values_BT"] if self.roles.has_critic else []) + (["old_BT"] if old else [])
        filled = {name: torch.zeros_like(episodes.drawn_BT) for name in wanted}
        self.roles.eval()
        for one, _ in self._in_step(self._passes(episodes, range(len(episodes.prompts)), None)):
            outputs = self._read(one, old)
            found = {
                "anchor_BT": self._anchor_logprobs(one),
                "old_BT": outputs.logprobs_S,
                "values_BT": outputs.values_S,
            }
            for name, padded_BT in filled.items():
                found_S = found[name]
                assert found_S is not None, f"{name} was asked for"
                padded_BT[one.rows] = one.padded(found_S.float(), width)
        self.roles.train()
        for name, padded_BT in filled.items():
            setattr(episodes, name, padded_BT)

    def _anchor_logprobs(self, one: Pass) -> Tensor:
        if self.anchor:
            return self.anchor.logprobs(one.lines, one.where, self.temperature)
        with self._whole(), autocast(self.engine):
            return self.roles.anchor_logprobs(one.lines, one.where, self.temperature)

    def _read(self, one: Pass, old: bool) -> Outputs:
        """What the policy (where ``old``) and the critic say; what is not asked is empty."""
        divided = self.engine.settings.zero == 3 and not self._held
        with autocast(self.engine):
            if old or (self.roles.has_critic and divided):
                # DeepSpeed gathers what it has divided, layer by layer, and cannot read what is whole already.
                model = self.roles if self._held else self.model
                outputs: Outputs = model(one.lines, one.where, self.temperature)
                return outputs
            values_S = self.roles.values(one.lines, one.where) if self.roles.has_critic else None
            return Outputs(torch.empty(0), values_S)

    # ── learning ─────────────────────────────────────────────────────────────────────────────────

    def update(
        self, episodes: Episodes, targets: Targets, *, step: int, beta_in_loss: float, out: Path
    ) -> dict[str, float]:
        """Go through a batch as the numbers say. Returns measures of the whole update, over all processes.

        Raises :class:`UserError` where a loss or a gradient stops being a number; the batch is saved.
        """
        numbers, sums = self.numbers, Sums()
        self._set_rates(step)
        groups = numbers.minibatch // episodes.samples // self.engine.world
        norms: dict[str, list[float]] = {}
        for epoch in range(numbers.epochs):
            for some in minibatches(len(episodes.prompts), groups, step=step, epoch=epoch, seed=self.seed):
                self._learn(episodes, targets, some, step, beta_in_loss, sums, out, fresh=not norms)
                for role, norm in self._step(step, out).items():
                    norms.setdefault(role, []).append(norm)
        return of_update(self._total(sums)) | {
            f"gradient/{role}": float(np.mean(values)) for role, values in norms.items()
        }

    def _learn(
        self,
        episodes: Episodes,
        targets: Targets,
        groups: list[int],
        step: int,
        beta_in_loss: float,
        sums: Sums,
        out: Path,
        *,
        fresh: bool,
    ) -> None:
        """Gradients of one minibatch, a forward pass at a time. ``fresh``: the policy is still the one that drew."""
        rows = episodes.rows(groups)
        tokens, answers = float(episodes.mask_BT[rows].sum()), float(len(rows))
        # Gradients are averaged over processes, and every mean is over the global minibatch.
        tokens, answers = (float(one) / self.engine.world for one in self._sum(torch.tensor([tokens, answers])))
        terms = tokens if targets.level == "token" else answers
        learns = 0.0 if self._waits(step) else 1.0
        every = self._in_step(self._passes(episodes, groups, self.engine.settings.micro_batch))
        self.learned_from = [one.lines for one, counts in every if counts]
        for place, (one, counts) in enumerate(every):
            last = place + 1 == len(every)
            told = sums if counts else Sums()
            with self._accumulating(last), self.accelerator.autocast():
                outputs = self.model(one.lines, one.where, self.temperature)
                if fresh:
                    moved = self._moved(episodes, one, outputs.logprobs_S)
                    told["first_ratio"] = max(told["first_ratio"], moved)
                loss = (
                    self._policy_loss(episodes, targets, one, outputs.logprobs_S, beta_in_loss, told) * learns / terms
                )
                if outputs.values_S is not None:
                    loss = loss + self._value_loss(episodes, targets, one, outputs.values_S, told) / tokens
                loss = loss * float(counts)
                if not bool(torch.isfinite(loss)):
                    self._refuse(f"the loss is {loss.item()} at step {step}", [one.lines], out)
                self.accelerator.backward(loss)

    @staticmethod
    def _moved(episodes: Episodes, one: Pass, logprobs_S: Tensor) -> float:
        """The largest \|log ρ\| of a token: nothing but rounding before the first step."""
        mask_BT, old_BT = episodes.mask_BT[one.rows], episodes.old_BT[one.rows]
        return float(((one.padded(logprobs_S.detach(), mask_BT.shape[1]) - old_BT).abs() * mask_BT).amax())

    def _policy_loss(
        self, episodes: Episodes, targets: Targets, one: Pass, logprobs_S: Tensor, beta: float, sums: Sums
    ) -> Tensor:
        mask_BT, old_BT = episodes.mask_BT[one.rows], episodes.old_BT[one.rows]
        logprobs_BT = one.padded(logprobs_S, mask_BT.shape[1])
        weights_BT = None if episodes.weights_BT is None else episodes.weights_BT[one.rows]
        found = policy.clipped_policy_loss(
            logprobs_BT,
            old_BT,
            targets.advantages_BT[one.rows],
            mask_BT,
            clip=self.numbers.clip,
            level=targets.level,
            weights_BT=weights_BT,
            largest_weight=episodes.largest_weight,
        )
        loss = found.loss
        if beta:
            anchor_BT = episodes.anchor_BT
            assert anchor_BT is not None
            loss = loss + beta * masked_sum(kl_k3(logprobs_BT, anchor_BT[one.rows]), mask_BT)
        sums.add(
            policy_loss=float(loss.detach()),
            terms=float(found.terms),
            clipped=float(found.clipped),
            drift=float(found.drift),
        )
        return loss

    def _value_loss(self, episodes: Episodes, targets: Targets, one: Pass, values_S: Tensor, sums: Sums) -> Tensor:
        assert episodes.values_BT is not None, "values were read before they are learned"
        assert targets.returns_BT is not None, "a critic has something to learn"
        mask_BT = episodes.mask_BT[one.rows]
        found = policy.clipped_value_loss(
            one.padded(values_S, mask_BT.shape[1]),
            episodes.values_BT[one.rows],
            targets.returns_BT[one.rows],
            mask_BT,
            clip=self.critic.clip,
        )
        sums.add(
            value_loss=float(found.loss.detach()), value_terms=float(found.terms), value_clipped=float(found.clipped)
        )
        return self.critic.coefficient * found.loss

    def _step(self, step: int, out: Path) -> dict[str, float]:
        """One optimiser step, the gradient of each role clipped by itself. Returns the norms before."""
        norms: dict[str, float] = {}
        if self.engine.settings.zero:
            # DeepSpeed has stepped with the last backward pass, and clipped over everything.
            norm = self.model.get_global_grad_norm()
            norms = {"all": float(norm) if norm is not None else math.nan}
            if self._waits(step):
                zero.hold_count(self.model, "policy")
        else:
            for role, parameters in self.roles.groups().items():
                norms[role] = float(torch.nn.utils.clip_grad_norm_(parameters, self.numbers.clip_norm))
        if not all(math.isfinite(norm) for norm in norms.values()):
            self._refuse(f"the gradient's norm is {norms} at step {step}", self.learned_from, out)
        if self._waits(step):
            # Without gradients AdamW leaves them alone: neither its moments nor its count of steps moves.
            for parameter in self.roles.groups()["policy"]:
                parameter.grad = None
        self.optimiser.step()
        self.optimiser.zero_grad()
        return norms

    def _set_rates(self, step: int) -> None:
        numbers = self.numbers
        share = 1.0 if numbers.schedule == "constant" else 1 - step / numbers.steps
        share *= min(1.0, (step + 1) / (numbers.warmup_steps + 1))
        for group in self.optimiser.param_groups:
            waits = group["role"] == "policy" and self._waits(step)
            group["lr"] = 0.0 if waits else group["peak"] * share

    def _waits(self, step: int) -> bool:
        """Whether only the critic learns yet."""
        return self.roles.has_critic and step < self.critic.warmup

    # ── processes ────────────────────────────────────────────────────────────────────────────────

    def _passes(self, episodes: Episodes, groups: Iterable[int], answers: int | None) -> Iterator[Pass]:
        device = self.engine.device
        tokens = 2**62 if answers is not None else TOKENS_A_PASS[device]
        return passes(
            episodes,
            list(groups),
            answers=answers,
            tokens=tokens,
            pad_id=self.pad_id,
            share=self.share,
            device=device,
        )

    def _in_step(self, some: Iterator[Pass]) -> list[tuple[Pass, bool]]:
        """Forward passes, and whether each counts.

        DeepSpeed's processes go through each together: those with fewer do their last once more, for nothing.
        """
        own = list(some)
        most = int(self._largest(len(own))) if self.engine.settings.zero else len(own)
        return [(one, True) for one in own] + [(own[-1], False)] * (most - len(own))

    def _accumulating(self, last: bool) -> Any:
        """Gradients of the processes meet at the last forward pass of a minibatch."""
        self.accelerator.sync_gradients = last
        return nullcontext() if last or self.engine.settings.zero else self.accelerator.no_sync(self.model)

    def _sum(self, values: Tensor) -> Tensor:
        """Over all processes."""
        if self.engine.world == 1:
            return values
        summed = values.detach().to(self.engine.device, copy=True)
        torch.distributed.all_reduce(summed)
        return summed

    total = _sum

    def _total(self, sums: Sums) -> dict[str, float]:
        first, names = self._largest(sums.pop("first_ratio")), sorted(sums)
        summed = self._sum(torch.tensor([sums[name] for name in names], dtype=torch.float64)).tolist()
        return dict(zip(names, summed, strict=True)) | {"first_ratio": first}

    def _largest(self, value: float) -> float:
        """The largest of all processes."""
        return float(self.gather(np.array([value])).max())

    def gather(self, values: np.ndarray) -> np.ndarray:
        """Values of all processes behind each other."""
        if self.engine.world == 1:
            return values
        own = torch.from_numpy(values).to(self.engine.device)
        everyone = [torch.empty_like(own) for _ in range(self.engine.world)]
        torch.distributed.all_gather(everyone, own)
        return torch.cat(everyone).cpu().numpy()

    @staticmethod
    def _refuse(problem: str, batch: list[Lines], out: Path) -> None:
        path = finite.save_batch(out, batch)
        raise UserError(
            problem,
            cause="A learning rate that is too high, or weights that were damaged before.",
            remedy=f"Lower updating.learning_rate or critic.learning_rate; the batch is in {path}; the last checkpoint "
            "is from before.",
        )
