"""Training throughput beside TRL's own SFTTrainer, on the same conversations, in one run.

    python benchmarks/sft.py [--steps 12] [--repeats 3]

Three arms train the same miniature shape on the same rows with the same batch and precision: ours
(bucketed by length, loss on answers only), TRL unpacked (its collator, rows in random order) and TRL
packed (its default for packing, `bfd`). They take turns, `repeats` times; what is printed is real
(non-padding) tokens per second of each and the median of the ratios.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoTokenizer, PrinterCallback
from trl import SFTConfig, SFTTrainer

from alignment.chat.render import render
from alignment.chat.tokenizers import Tokenizer, load, padded_vocab
from alignment.chat.train import train as train_tokenizer
from alignment.gemma import core
from alignment.gemma.presets import SHAPES, TokenIds
from alignment.miniature import corpus
from alignment.miniature.world import World
from alignment.training import policies, supervised
from alignment.training.engine import EngineSettings, resolve
from alignment.training.optimisation import Optimisation
from alignment.training.rows import TokenRows
from alignment.training.tracking import Tracker, TrackerSettings

BATCH = 64


def material(folder: Path) -> tuple[Tokenizer, TokenRows]:
    """A tokenizer and 4,000 conversations of the miniature world."""
    world = World(0, 40)
    conversations = list(corpus.conversations(world, 4000, 0, 0.5))
    texts = [turn.content for one in conversations for turn in one.messages]
    tokenizer = load(train_tokenizer(texts, 768, folder))
    policies.save_tokenizer(tokenizer, "gemma2", folder)
    return tokenizer, TokenRows.gather(render(one.messages, tokenizer) for one in conversations)


def fresh(tokenizer: Tokenizer) -> core.CausalLM:
    ids = TokenIds(tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id)
    return core.build(SHAPES["mini"], padded_vocab(tokenizer.vocab_size), ids, 0)


def ours(tokenizer: Tokenizer, rows: TokenRows, steps: int, folder: Path) -> float:
    """Real tokens per second of our adapter."""
    settings = engine_settings()
    numbers = Optimisation(
        batch=BATCH, epochs=None, steps=steps, learning_rate=1e-3, final_rate=0.1, warmup_share=0.0, warmup_at_least=1,
        weight_decay=0.1, beta1=0.9, beta2=0.95, epsilon=1e-8, clip_norm=1.0, length_window=16, snapshots=None,
        checkpoint_steps=10_000,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as out:
        trained = supervised.train(
            fresh(tokenizer),
            rows,
            title="ours",
            out=Path(out),
            tokenizer_folder=folder,
            pad_id=tokenizer.pad_id,
            numbers=numbers,
            engine=resolve(settings),
            tracker=Tracker(
                TrackerSettings(wandb="off", project="benchmark", every=1000, upload="none"), Path(out), {}
            ),
            seed=0,
        )
    return trained.amount / trained.seconds


def theirs(tokenizer: Tokenizer, rows: TokenRows, steps: int, folder: Path, *, packed: bool) -> float:
    """Real tokens per second of TRL's trainer with its own collator, loss and order."""
    dataset = rows.dataset()
    batch = BATCH
    if packed:
        # As many tokens a step as the unpacked arms: one packed row of 4,096.
        batch = 1
    with tempfile.TemporaryDirectory() as out:
        arguments = SFTConfig(
            output_dir=out,
            max_steps=steps,
            per_device_train_batch_size=batch,
            learning_rate=1e-3,
            optim="adamw_torch_fused",
            bf16=resolve(engine_settings()).bf16,
            use_cpu=True,
            activation_checkpointing=False,
            packing=packed,
            max_length=4096 if packed else None,
            report_to="none",
            save_strategy="no",
            logging_steps=steps,
            disable_tqdm=True,
        )
        trainer = SFTTrainer(
            model=fresh(tokenizer),
            args=arguments,
            train_dataset=dataset,
            processing_class=AutoTokenizer.from_pretrained(folder),
        )
        trainer.remove_callback(PrinterCallback)
        began = time.monotonic()
        trainer.train()
        seconds = time.monotonic() - began
        return trainer._total_train_tokens / seconds


def engine_settings() -> EngineSettings:
    """One CPU process, bf16 where the processor has it: the same arithmetic for every arm."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    arms: dict[str, list[float]] = {"ours": [], "trl unpacked": [], "trl packed": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer, rows = material(folder)
        for _ in range(chosen.repeats):
            arms["ours"].append(ours(tokenizer, rows, chosen.steps, folder))
            arms["trl unpacked"].append(theirs(tokenizer, rows, chosen.steps, folder, packed=False))
            arms["trl packed"].append(theirs(tokenizer, rows, max(2, chosen.steps // 4), folder, packed=True))
    print(f"\n{torch.get_num_threads()} threads, {chosen.repeats} turns of {chosen.steps} steps, batch {BATCH}")
    for arm, rates in arms.items():
        ratios = [mine / other for mine, other in zip(arms["ours"], rates, strict=True)]
        print(
            f"{arm:<14}{statistics.median(rates):>10,.0f} real tokens/s    ours / this {statistics.median(ratios):.2f}"
        )


if __name__ == "__main__":
    main()
