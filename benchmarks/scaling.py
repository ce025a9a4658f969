"""Tokens per second of fine-tuning in one process and in several, and how much of several is left of their number.

    python benchmarks/scaling.py [--processes 2] [--steps 40] [--repeats 3] [--engine ddp]
    python benchmarks/scaling.py <run with one process> <the same run with n>

The first form makes the same step of ``stage=sft`` in 1 and in n processes, through the door and in turns. A process
has a GPU, or one thread of arithmetic on a CPU. The scaling efficiency is T₁ / (n · Tₙ), with T the time of the same
work: 1 where n processes are n times as fast. The second form states it for two artifacts.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from alignment import artifacts
from alignment.artifacts import Artifact
from alignment.errors import UserError

ROOT = Path(__file__).parents[1]
BATCH = 64


def rate(artifact: Artifact) -> float:
    """Real tokens per second, of all processes of a training run together."""
    found = artifact.notes.get("tokens_per_second")
    if not found:
        raise UserError(f"{artifact.path}: its record tells no tokens per second", remedy="Name runs of stage=sft.")
    return float(found)


def efficiency(one: Artifact, several: Artifact) -> float:
    """T₁ / (n · Tₙ) of two runs of the same step, of which the second had n times as many processes."""
    if one.fingerprint != several.fingerprint:
        raise UserError(
            f"{one.path} and {several.path} are not the same step",
            cause=f"Their fingerprints are {one.fingerprint[:8]} and {several.fingerprint[:8]}.",
            remedy="Make one step in two stores, with another engine or another number of processes.",
        )
    return rate(several) * one.notes["processes"] / (rate(one) * several.notes["processes"])


def material(folder: Path) -> tuple[Path, Path]:
    """The folders of a fresh chat model of the miniature's shape and of 4,000 conversations of its world."""
    from alignment.chat import tokenizers
    from alignment.chat.train import train
    from alignment.data import store
    from alignment.gemma import core
    from alignment.gemma.presets import SHAPES, TokenIds
    from alignment.miniature import corpus
    from alignment.miniature.world import World
    from alignment.training.policies import Policy, save_policy

    conversations = list(corpus.conversations(World(0, 40), 4000, 0, 0.5))
    texts = [turn.content for one in conversations for turn in one.messages]
    tokenizer = tokenizers.load(train(texts, 768, folder / "pieces"))
    model = core.build(SHAPES["mini"], tokenizers.padded_vocab(tokenizer.vocab_size), TokenIds(), 0)
    save_policy(Policy(model, tokenizer, "gemma2"), folder / "model")
    with store.Writer(folder / "conversations", "conversations") as writer:
        for one in conversations:
            writer.add("train", one)
        counts = writer.rows
    store.write_card(folder / "conversations", store.Card("conversations", counts, {}, 0.0, {}, ("MIT",), "benchmark"))
    return folder / "model", folder / "conversations"


def tuned(folder: Path, name: str, processes: int, engine: str, steps: int) -> Artifact:
    """One run of the step, in a store of its own."""
    arguments = [
        "stage=sft",
        f"store={folder / name}",
        f"model=dir:{folder / 'model'}",
        f"data=dir:{folder / 'conversations'}",
        f"optimisation={{steps: {steps}, epochs: null, batch: {BATCH}, checkpoint_steps: {10 * steps}}}",
        f"engine={engine if processes > 1 else 'single'}",
        f"engine.micro_batch={BATCH // processes}",
        "engine.gradient_checkpointing=false",
        "tracker=off",
    ]
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={_free_port()}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CI": "true", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*launcher, "-m", "alignment.run", *arguments], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    (record,) = (folder / name).glob(f"*/*/{artifacts.RECORD}")
    return artifacts.load(record.parent)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def measured(processes: int, engine: str, steps: int, repeats: int) -> None:
    """Print tokens per second of both, turn by turn, and the median efficiency."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        material(folder)
        for turn in range(repeats):
            one = tuned(folder, f"one_{turn}", 1, engine, steps)
            several = tuned(folder, f"several_{turn}", processes, engine, steps)
            found.append(efficiency(one, several))
            told = f"1 process {rate(one):>9,.0f} tokens/s    {processes} processes {rate(several):>9,.0f}"
            print(f"{told}    T1/({processes}·T{processes}) {found[-1]:.2f}", flush=True)
    print(f"\nengine={engine}, {steps} steps of {BATCH} rows, {os.cpu_count()} cores: {statistics.median(found):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--engine", default="ddp")
    chosen = parser.parse_args()
    if len(chosen.runs) == 2:
        one, several = map(artifacts.load, chosen.runs)
        print(f"T1/(n·Tn) {efficiency(one, several):.2f}: {rate(one):,.0f} and {rate(several):,.0f} tokens/s")
    elif chosen.runs:
        parser.error("name two runs, or none")
    else:
        measured(chosen.processes, chosen.engine, chosen.steps, chosen.repeats)


if __name__ == "__main__":
    main()
