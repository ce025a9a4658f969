"""Reward training throughput beside TRL's own RewardTrainer, on the same pairs, in one run.

    python benchmarks/reward.py [--steps 12] [--repeats 5]

Both arms train the same miniature reward model on the same comparisons with the same batch, margins and precision:
ours (a prompt computed once for both answers, pairs of like length together) and TRL's (its collator and order, each
answer in a row behind its prompt). They take turns, `repeats` times, on two sets of pairs: those of the miniature as
they come, and dialogues of several turns, whose prompts are longer. What is printed is pairs per second, the median of
the ratios, and the share of each arm's batches that is padding.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from transformers import AutoTokenizer, PrinterCallback
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from alignment.chat.tokenizers import Tokenizer, load, padded_vocab
from alignment.chat.train import train as train_tokenizer
from alignment.chat.types import Comparison, Conversation
from alignment.gemma import branches, core, heads
from alignment.gemma.presets import SHAPES, TokenIds
from alignment.miniature import corpus
from alignment.miniature.world import World
from alignment.stages.reward import TABLES
from alignment.training import policies, preferences
from alignment.training.comparisons import Renderer
from alignment.training.engine import EngineSettings, resolve
from alignment.training.optimisation import Optimisation
from alignment.training.pair_rows import PairCollator, PairRow, PairRows
from alignment.training.rows import PlannedBatches
from alignment.training.tracking import Tracker, TrackerSettings

PAIRS, BATCH, WINDOW, TURNS = 4_000, 64, 32, 8
SHAPE = SHAPES["mini"]


class Turn(NamedTuple):
    """What one arm did in its turn."""

    pairs_a_second: float
    padding: float


def comparisons(world: World) -> list[Comparison]:
    """Pairs of the miniature as they come."""
    return list(corpus.comparisons(world, PAIRS, 0, rater_noise=0.1, rater_taste=0.2))


def long_comparisons(world: World) -> list[Comparison]:
    """The same answers at the end of longer dialogues."""
    histories: Iterator[Conversation] = corpus.long_dialogues(world, PAIRS, 0, 0.0, turns=TURNS, split="comparisons")
    return [
        replace(one, prompt=(*before.messages, *one.prompt))
        for one, before in zip(comparisons(world), histories, strict=True)
    ]


def material(pairs: Sequence[Comparison], folder: Path) -> tuple[Tokenizer, list[PairRow]]:
    """A tokenizer and the pairs as ids."""
    texts = [text for one in pairs for text in (*(turn.content for turn in one.prompt), one.chosen, one.rejected)]
    tokenizer = load(train_tokenizer(texts, 768, folder))
    policies.save_tokenizer(tokenizer, "gemma2", folder)
    margins: Any = TABLES["small"]
    renderer = Renderer(tokenizer, "gemma2", SHAPE.context, margins, "refuse")
    rows = [row for _, row in renderer.rows(pairs)]
    assert not renderer.fits, "a pair is longer than the context"
    return tokenizer, rows


def fresh(tokenizer: Tokenizer) -> heads.RewardModel:
    ids = TokenIds(tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id)
    return heads.with_head(core.build(SHAPE, padded_vocab(tokenizer.vocab_size), ids, 0), 0)


def ours(tokenizer: Tokenizer, rows: list[PairRow], steps: int, folder: Path) -> Turn:
    """Our adapter."""
    numbers = Optimisation(
        batch=BATCH, epochs=None, steps=steps, learning_rate=5e-4, final_rate=0.1, warmup_share=0.0, warmup_at_least=1,
        weight_decay=0.1, beta1=0.9, beta2=0.95, epsilon=1e-5, clip_norm=1.0, length_window=WINDOW,
        snapshots=None,
        checkpoint_steps=10_000,
    )  # fmt: skip
    gathered = PairRows.gather(rows)
    with tempfile.TemporaryDirectory() as out:
        trained = preferences.train(
            fresh(tokenizer),
            gathered,
            safety_weight=0.0,
            title="ours",
            out=Path(out),
            tokenizer_folder=folder,
            pad_id=tokenizer.pad_id,
            numbers=numbers,
            engine=resolve(engine_settings()),
            tracker=Tracker(
                TrackerSettings(wandb="off", project="benchmark", every=1000, upload="none"), Path(out), {}
            ),
            seed=0,
        )
    return Turn(trained.amount / trained.seconds, _padding(tokenizer, gathered, rows, steps))


def _padding(tokenizer: Tokenizer, gathered: PairRows, rows: list[PairRow], steps: int) -> float:
    """Of the very batches that were trained on."""
    collate, shares = PairCollator(tokenizer.pad_id, share=True), []
    for places in PlannedBatches(gathered.lengths, BATCH, steps, 0, WINDOW, BATCH):
        lines = collate([gathered.dataset[place] for place in places])
        shares.append(branches.padding(lines, [rows[place].tree for place in places]))
    return statistics.fmean(shares)


class Watching(DataCollatorForPreference):
    """TRL's collator, looked at: how much of what it gives is padding."""

    def __init__(self, pad_id: int) -> None:
        super().__init__(pad_token_id=pad_id)
        self.shares: list[float] = []

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        self.shares.append(1 - batch["attention_mask"].float().mean().item())
        return batch


def theirs(tokenizer: Tokenizer, rows: list[PairRow], steps: int, folder: Path) -> Turn:
    """TRL's trainer with its own collator, loss and order; its rows are whole dialogues."""
    dataset = Dataset.from_dict(
        {
            "chosen_ids": [[*row.prompt, *row.chosen] for row in rows],
            "rejected_ids": [[*row.prompt, *row.rejected] for row in rows],
            "margin": [row.margin for row in rows],
        }
    )
    collate = Watching(tokenizer.pad_id)
    with tempfile.TemporaryDirectory() as out:
        arguments = RewardConfig(
            output_dir=out,
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            learning_rate=5e-4,
            max_length=None,
            optim="adamw_torch_fused",
            bf16=resolve(engine_settings()).bf16,
            use_cpu=True,
            activation_checkpointing=False,
            report_to="none",
            save_strategy="no",
            logging_steps=steps,
            disable_tqdm=True,
        )
        trainer = RewardTrainer(
            model=fresh(tokenizer),
            args=arguments,
            data_collator=collate,
            train_dataset=dataset,
            processing_class=AutoTokenizer.from_pretrained(folder),
        )
        trainer.remove_callback(PrinterCallback)
        seconds = trainer.train().metrics["train_runtime"]
    return Turn(steps * BATCH / seconds, statistics.fmean(collate.shares))


def engine_settings() -> EngineSettings:
    """One CPU process, bf16 where the processor has it: the same arithmetic for both arms."""
    return EngineSettings(
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


def compare(name: str, pairs: Sequence[Comparison], steps: int, repeats: int) -> None:
    """Both arms in turn on one set of pairs."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        tokenizer, rows = material(pairs, folder)
        turns = [(ours(tokenizer, rows, steps, folder), theirs(tokenizer, rows, steps, folder)) for _ in range(repeats)]
    prompt = statistics.fmean(len(row.prompt) for row in rows)
    answer = statistics.fmean(len(ids) for row in rows for ids in (row.chosen, row.rejected))
    print(f"\n{name}: {len(rows):,} pairs, {prompt:.0f} tokens a prompt, {answer:.0f} an answer")
    for arm, some in zip(("ours", "trl"), zip(*turns, strict=True), strict=True):
        rate, padded = (statistics.median(values) for values in zip(*some, strict=True))
        print(f"  {arm:<6}{rate:>8,.0f} pairs/s{padded:>8.1%} padding")
    ratios = [mine.pairs_a_second / other.pairs_a_second for mine, other in turns]
    print(f"  ours / trl {statistics.median(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    world = World(0, 40)
    print(f"{torch.get_num_threads()} threads, {chosen.repeats} turns of {chosen.steps} steps, {BATCH} pairs a step")
    compare("miniature pairs", comparisons(world), chosen.steps, chosen.repeats)
    compare("longer dialogues", long_comparisons(world), chosen.steps, chosen.repeats)


if __name__ == "__main__":
    main()
