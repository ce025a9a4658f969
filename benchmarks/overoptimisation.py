"""Is the miniature world a world in which a reward model can be over-optimised? A test of the world, not of a stage.

    python benchmarks/overoptimisation.py [--store runs] [--seeds 0 1 2] [--steps 80]

From the SFT model of `pipeline=mini` in the store: a Bradley–Terry reward model is trained on the world's
comparisons (their raters are noisy and like to be chatted to), then a plain RLOO loop (4 answers a prompt,
KL to the SFT model at β = 0.02 in the reward) maximises it. Every `--every` steps the same held-out prompts are
answered: the proxy should go on rising while gold, after a peak, falls. Everything here is deliberately
plain; the stages `reward` and `rl` have their own tests.

So that it ends in minutes, only dialogues of at most LONGEST tokens take part.

Axes: B rows, T tokens, D width.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from alignment.chat.render import answer_text, prompt_ids, render
from alignment.chat.types import Comparison, Message, Prompt
from alignment.data import store as datasets
from alignment.gemma import core
from alignment.gemma.divergence import sequence_kl
from alignment.sampling.sampler import Answer, Sampler
from alignment.scoring.gold import Gold
from alignment.store import Store
from alignment.training.engine import EngineSettings, autocast, resolve
from alignment.training.policies import Policy, open_policy
from alignment.training.rows import IGNORE, Collator

ENGINE = resolve(
    EngineSettings(
        device="cpu",
        precision="auto",
        micro_batch=None,
        layout="auto",
        gradient_checkpointing=False,
        zero=0,
        processes="any",
        offload=False,
        gather=True,
        loss_chunk=1024,
        watchdog_minutes=None,
    )
)
GROUP, PROMPTS, BETA, ANSWER = 4, 32, 0.02, 48
LONGEST = 56


class Reward(nn.Module):
    """A scalar head on the last token of a dialogue."""

    def __init__(self, trunk: nn.Module, width: int) -> None:
        super().__init__()
        self.trunk, self.head = trunk, nn.Linear(width, 1, bias=False)
        nn.init.normal_(self.head.weight, std=(width + 1) ** -0.5)

    def forward(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Scores for rows of ids, in the order given."""
        ids_BT, last_B = padded(rows)
        hidden_BTD = core.hidden_states(self.trunk, ids_BT)
        return self.head(hidden_BTD[torch.arange(len(rows)), last_B].float()).squeeze(-1)


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(row) for row in rows])
    ids_BT = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for place, row in enumerate(rows):
        ids_BT[place, : len(row)] = torch.tensor(row)
    return ids_BT, lengths - 1


def train_reward(
    policy: Policy, comparisons: list[Comparison], held_out: list[Comparison], seed: int
) -> tuple[Reward, float]:
    """One epoch of −log σ(r_c − r_r); returns the model and its accuracy on held-out pairs."""
    torch.manual_seed(seed)
    reward = Reward(policy.model, core.causal_lm(policy.model).config.hidden_size)
    optimiser = torch.optim.AdamW(reward.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1)

    def rows(pairs: list[Comparison]) -> list[list[int]]:
        sides = [(*one.prompt, Message("assistant", one.chosen)) for one in pairs]
        sides += [(*one.prompt, Message("assistant", one.rejected)) for one in pairs]
        return [render(turns, policy.tokenizer, policy.schema).ids for turns in sides]

    order = list(comparisons)
    random.Random(seed).shuffle(order)
    batches = [order[start : start + 64] for start in range(0, len(order) - 63, 64)]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, len(batches), eta_min=3e-5)
    reward.train()
    for batch in batches:
        with autocast(ENGINE):
            chosen_B, rejected_B = reward(rows(batch)).chunk(2)
        loss = -nn.functional.logsigmoid(chosen_B - rejected_B).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(reward.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    reward.eval()
    with torch.no_grad():
        right = [(a > b).tolist() for start in range(0, len(held_out), 128)
                 for a, b in [reward(rows(held_out[start : start + 128])).chunk(2)]]  # fmt: skip
    return reward, float(np.mean([one for part in right for one in part]))


def logprobs(model: nn.Module, prompts: list[list[int]], answers: list[Answer]) -> Tensor:
    """Σ log π over each answer's tokens: ``[B]``."""
    rows = [
        {"input_ids": [*prompt, *answer.ids], "labels": [IGNORE] * len(prompt) + answer.ids}
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    batch = Collator(0)(rows)
    hidden_BTD = core.hidden_states(model, batch["input_ids"])
    weight_VD, softcap = core.head(model)
    asked_BT = batch["shift_labels"] != IGNORE
    logits_SV = (hidden_BTD[asked_BT] @ weight_VD.T).float()
    logits_SV = logits_SV if softcap is None else softcap * torch.tanh(logits_SV / softcap)
    picked_S = logits_SV.log_softmax(-1).gather(-1, batch["shift_labels"][asked_BT][:, None]).squeeze(-1)
    return torch.zeros(len(rows)).index_add(0, asked_BT.nonzero()[:, 0], picked_S)


class Loop:
    """Plain RLOO on one policy."""

    def __init__(
        self, policy: Policy, anchor: Policy, reward: Reward, prompts: list[Prompt], gold: Gold, seed: int
    ) -> None:
        self.policy, self.anchor, self.reward, self.gold, self.seed = policy, anchor, reward, gold, seed
        self.prompts = prompts
        self.sampler = Sampler(policy.model, stop_ids=policy.stop_ids, pad_id=policy.tokenizer.pad_id)
        self.optimiser = torch.optim.AdamW(policy.model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.0)

    def draw(self, prompts: list[Prompt], samples: int, seed: int) -> tuple[list[list[int]], list[Answer]]:
        ids = [prompt_ids(prompt.messages, self.policy.tokenizer) for prompt in prompts]
        answers = self.sampler.draw(ids, [p.id for p in prompts], samples=samples, max_new_tokens=ANSWER, seed=seed)
        return [ids[answer.prompt] for answer in answers], answers

    @torch.no_grad()
    def proxy(self, prompts: list[list[int]], answers: list[Answer]) -> Tensor:
        """The reward model's score; 1 less for an answer that did not end."""
        rows = [[*prompt, *answer.ids] for prompt, answer in zip(prompts, answers, strict=True)]
        scores = torch.cat([self.reward(rows[start : start + 256]) for start in range(0, len(rows), 256)])
        return scores - torch.tensor([0.0 if answer.finished else 1.0 for answer in answers])

    def step(self, number: int) -> None:
        chosen = random.Random(f"{self.seed}:{number}").sample(self.prompts, PROMPTS)
        prompts, answers = self.draw(chosen, GROUP, self.seed * 100_000 + number)
        proxy_B = self.proxy(prompts, answers)
        with torch.no_grad(), autocast(ENGINE):
            anchor_B = logprobs(self.anchor.model, prompts, answers)
        with autocast(ENGINE):
            policy_B = logprobs(self.policy.model, prompts, answers)
        reward_GB = (proxy_B - BETA * (policy_B.detach() - anchor_B)).view(PROMPTS, GROUP)
        advantage_GB = (reward_GB - reward_GB.mean(1, keepdim=True)) * GROUP / (GROUP - 1)
        loss = -(advantage_GB.flatten() * policy_B).mean() / 10
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.policy.model.parameters(), 1.0)
        self.optimiser.step()

    def measure(self, prompts: list[Prompt], number: int) -> dict[str, float]:
        ids, answers = self.draw(prompts, 1, 7)
        dialogues = [
            (*prompts[answer.prompt].messages, Message("assistant", answer_text(answer.ids, self.policy.tokenizer)))
            for answer in answers
        ]
        kl = sequence_kl(self.policy.model, self.anchor.model, ids, [answer.ids for answer in answers], "cpu")
        return {
            "step": number,
            "proxy": float(self.proxy(ids, answers).mean()),
            "gold": float(np.mean(self.gold.score(dialogues).raw)),
            "kl": float(kl.mean()),
            "tokens": float(np.mean([len(answer.ids) for answer in answers])),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, default=Path("runs"))
    parser.add_argument(
        "--comparisons", type=Path, required=True, help="a dataset made with recipe=miniature_comparisons"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--every", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=None)
    chosen = parser.parse_args()
    store = Store(chosen.store)
    sft, asked = store.latest("sft"), store.latest("prompts")
    world = datasets.world_of(asked.path)
    assert world is not None, "the prompts are the miniature's"
    gold = Gold(world)
    training = [row for row in datasets.read(asked.path, "train") if isinstance(row, Prompt)]
    held_out = [row for row in datasets.read(asked.path, "test") if isinstance(row, Prompt)][: chosen.prompts]
    pairs, test_pairs = (
        [row for row in datasets.read(chosen.comparisons, split) if isinstance(row, Comparison)]
        for split in ("train", "test")
    )
    opened = open_policy(sft, ENGINE)

    def short(row: Prompt | Comparison) -> bool:
        turns = row.messages if isinstance(row, Prompt) else row.prompt
        return len(prompt_ids(turns, opened.tokenizer)) <= LONGEST - 16

    training, pairs, test_pairs = ([row for row in part if short(row)] for part in (training, pairs, test_pairs))
    held_out = [row for row in held_out if short(row)]
    print(f"{len(pairs):,} comparisons, {len(training):,} prompts, {len(held_out):,} held out", flush=True)
    curves = []
    for seed in chosen.seeds:
        began = time.monotonic()
        reward, accuracy = train_reward(open_policy(sft, ENGINE), pairs, test_pairs, seed)
        print(
            f"seed {seed}: reward model right on {accuracy:.3f} of held-out pairs ({time.monotonic() - began:.0f} s)",
            flush=True,
        )
        loop = Loop(open_policy(sft, ENGINE), open_policy(sft, ENGINE), reward, training, gold, seed)
        curve = [loop.measure(held_out, 0)]
        for number in range(1, chosen.steps + 1):
            loop.step(number)
            if number % chosen.every == 0:
                curve.append(loop.measure(held_out, number))
                print("  " + "  ".join(f"{name} {value:.3f}" for name, value in curve[-1].items()), flush=True)
        curves.append({"seed": seed, "accuracy": accuracy, "curve": curve})
        print(f"  {time.monotonic() - began:.0f} s", flush=True)
    print("\nseed   accuracy  gold: start   peak  at step    end  proxy: at peak    end")
    for one in curves:
        curve = one["curve"]
        peak = max(curve, key=lambda point: point["gold"])
        print(
            f"{one['seed']:<6}{one['accuracy']:>9.3f}{curve[0]['gold']:>13.3f}{peak['gold']:>7.3f}{peak['step']:>9}"
            f"{curve[-1]['gold']:>7.3f}{peak['proxy']:>16.2f}{curve[-1]['proxy']:>7.2f}"
        )
    if chosen.out:
        chosen.out.write_text(json.dumps(curves, indent=1))


if __name__ == "__main__":
    main()
