"""The memory that `stage=estimate` predicts beside what the same training needs, at shapes that fit a small machine.

    python benchmarks/estimate.py [--only rl] [--json results.json]

Measured is the most that PyTorch's allocator had given out at one moment: its profiler is told of every allocation and
release, those inside of kernels too, from before the model is built until training has ended. That is what a GPU has to
have room for; the resident memory of a process would count libraries, threads and what malloc keeps. Every case trains
in a process of its own (two for DDP and ZeRO) through the trainers and the learner that the stages use, and takes two
steps: AdamW's moments are there from the second. The worst cases are printed first.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from estimate_runs import MOMENTS, SAMPLES, SHAPES, TOP_K, Case, measured

from alignment.estimate import memory
from alignment.estimate.arithmetic import ARITHMETIC, Model
from alignment.estimate.distillation import Teaching, distilled
from alignment.estimate.memory import Pass, Phase, Way
from alignment.estimate.roles import Drawing, Roles, reinforced

TARGET = 0.15
CASES = (
    Case("sft", "small", "fp32", False, 2, 128),
    Case("sft", "deep", "fp32", False, 4, 256),
    Case("sft", "deep", "fp32", True, 4, 256, passes=2),
    Case("sft", "deep", "bf16", False, 1, 1024, passes=2, chunk=512),
    Case("sft", "wide", "bf16", True, 4, 256, chunk=1024),
    Case("sft", "wordy", "bf16", True, 2, 256, passes=2),
    Case("sft", "wordy", "fp32", True, 1, 64, chunk=64),
    Case("sft", "gemma1", "bf16", False, 4, 256),
    Case("sft", "gemma1", "fp32", True, 2, 512, passes=2),
    Case("sft", "wide", "bf16", False, 4, 256, rank=16),
    Case("sft", "wide", "fp32", True, 4, 256, rank=16),
    Case("distill", "deep", "fp32", False, 4, 256, teacher="wide"),
    Case("distill", "wordy", "bf16", True, 2, 256, passes=2, teacher="wordy"),
    Case("distill", "wordy", "fp32", True, 2, 512),
    Case("distill", "deep", "bf16", True, 8, 192, teacher="wide", mode="on_policy"),
    Case("distill", "wordy", "fp32", True, 4, 192, teacher="wordy", mode="minillm"),
    Case("reward", "deep", "fp32", False, 2, 384),
    Case("reward", "deep", "bf16", True, 4, 384, passes=2),
    Case("reward", "wide", "bf16", False, 2, 384, rank=16),
    Case("dpo", "deep", "bf16", False, 2, 384),
    Case("dpo", "wordy", "fp32", True, 4, 192),
    Case("rl", "deep", "fp32", False, 4, 192),
    Case("rl", "deep", "bf16", True, 8, 192, passes=2),
    Case("rl", "wordy", "fp32", True, 4, 384, follows=True),
    Case("rl", "deep", "fp32", False, 2, 192, critic=True, passes=2),
    Case("rl", "wide", "bf16", True, 4, 192, critic=True),
    Case("rl", "deep", "fp32", False, 4, 192, critic=True, rank=16, roles="shared"),
    Case("rl", "wide", "bf16", True, 4, 192, critic=True, rank=16, roles="shared", follows=True),
    Case("rl", "deep", "bf16", False, 4, 384, rank=16, roles="shared"),
    Case("sft", "wide", "fp32", True, 1, 256, processes=2),
    Case("sft", "wide", "bf16", True, 1, 256, processes=2, zero=1),
    Case("sft", "wide", "bf16", True, 1, 256, passes=2, processes=2, zero=2),
    Case("sft", "wide", "bf16", True, 1, 256, processes=2, zero=3),
    Case("distill", "deep", "bf16", True, 1, 256, teacher="wide", processes=2, zero=3),
    Case("dpo", "deep", "bf16", True, 2, 384, processes=2, zero=2),
    Case("dpo", "deep", "bf16", True, 2, 384, processes=2, zero=3),
    Case("rl", "wide", "fp32", True, 2, 192, processes=2),
    Case("rl", "wide", "bf16", True, 2, 192, processes=2, zero=1),
    Case("rl", "wide", "bf16", True, 2, 192, passes=2, critic=True, processes=2, zero=2),
    Case("rl", "wide", "bf16", True, 2, 192, processes=2, zero=3),
    Case("rl", "wide", "bf16", True, 2, 192, critic=True, follows=True, processes=2, zero=3),
)


# ── predicted ────────────────────────────────────────────────────────────────────────────────────


def predicted(case: Case) -> list[Phase]:
    """The phases that the estimate sees."""
    shape, vocabulary = SHAPES[case.shape]
    way = Way(
        ARITHMETIC["autocast" if case.precision == "bf16" else "fp32"],
        "eager" if shape.family == "gemma2" else "sdpa",
        case.checkpointing,
        case.chunk,
        device="cpu",
        gpus=case.processes,
        zero=case.zero,
    )
    more = case.passes > 1
    model = Model(shape, vocabulary, case.rank, score=case.stage == "reward")
    if case.stage == "sft":
        return memory.supervised(
            model, way, Pass(case.rows, case.tokens, case.rows * (case.tokens - 1), more=more), "nll"
        )
    if case.stage == "distill":
        return distilled(model, way, *distillation(case))
    answer = case.tokens // 3
    learned = case.rows * 2 * answer
    one = Pass(case.rows, case.tokens, learned, trees=True, more=more)
    if case.stage != "rl":
        return memory.supervised(model, way, one, "score" if case.stage == "reward" else "logprobs")
    critic = Model(shape, vocabulary, case.rank, score=True) if case.critic else None
    judge = Model(shape, vocabulary, score=True)
    roles = Roles(model, critic, (judge,), shared=case.roles == "shared", follows=case.follows)
    prompts = case.rows * case.passes
    drawing = Drawing(prompts, SAMPLES, answer, answer, prompts * SAMPLES)
    return reinforced(roles, way, one, drawing)


def distillation(case: Case) -> tuple[Pass, Teaching]:
    """A forward pass, and who teaches; of what is drawn a third is the prompt's."""
    teacher = None if case.teacher is None else Model(*SHAPES[case.teacher])
    answer, rows = case.tokens - case.tokens // 3, case.rows * case.passes
    drawing = None if case.mode is None else Drawing(rows, 1, case.tokens // 3, answer, rows)
    learned = case.rows * (case.tokens - 1 if drawing is None else answer)
    teaching = Teaching(teacher, TOP_K, 0, drawing, together=case.mode == "minillm")
    return Pass(case.rows, case.tokens, learned, more=case.passes > 1), teaching


class Pair(NamedTuple):
    """What was predicted and measured of a case at a moment; ``step`` is wherever it needed the most."""

    case: str
    moment: str
    predicted: int
    measured: int

    @property
    def apart(self) -> float:
        """How much more was predicted, as a share."""
        return self.predicted / self.measured - 1


# ── both ─────────────────────────────────────────────────────────────────────────────────────────


def compared(case: Case) -> list[Pair]:
    """The pairs of a case, the whole step last."""
    by_name = {phase.name: phase.total for phase in predicted(case)}
    by_name["step"] = max(by_name.values())
    most = in_processes(case)
    return [Pair(shown(case), name, round(by_name[name]), most[name]) for name in (*MOMENTS, "step") if name in most]


def in_processes(case: Case) -> dict[str, int]:
    """Measure a case where nothing else has been; of several processes the first is asked."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())} if case.processes > 1 else {}
    common |= {"PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}
    with tempfile.TemporaryDirectory() as folder, started(case, common, folder) as processes:
        said, complaints = processes[0].communicate()
        if processes[0].returncode:
            raise SystemExit(f"{case}\n{complaints[-3000:]}")
    return json.loads(said.splitlines()[-1])


@contextmanager
def started(case: Case, common: dict[str, str], folder: str) -> Iterator[list[subprocess.Popen]]:
    """The processes of a case, which do not outlive the block."""
    processes = []
    for rank in range(case.processes):
        environment = {**os.environ, **common}
        if case.processes > 1:
            world = str(case.processes)
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        command = [sys.executable, __file__, "--case", json.dumps(case), "--folder", folder]
        output = subprocess.PIPE if rank == 0 else subprocess.DEVNULL
        processes.append(subprocess.Popen(command, env=environment, stdout=output, stderr=output, text=True))
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()


def free_port() -> int:
    """One that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def shown(case: Case) -> str:
    """A case in words."""
    words = [case.stage, case.shape, case.precision, f"{case.passes}x{case.rows}x{case.tokens}"]
    words += ["checkpointing"] * case.checkpointing + [f"rank {case.rank}"] * bool(case.rank)
    if case.stage == "distill":
        words += [f"from {case.teacher or 'what is stored'}"] + ([case.mode] if case.mode else [])
    words += [case.roles] * (case.stage == "rl") + ["critic"] * case.critic + ["moving anchor"] * case.follows
    if case.processes > 1:
        words.append(f"zero{case.zero}" if case.zero else "ddp")
    return " ".join(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="cases with this in their name")
    parser.add_argument("--json", type=Path, help="write the pairs into a file as well")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.case:
        print(json.dumps(measured(Case(*json.loads(asked.case)), asked.folder)))
        return
    pairs: list[Pair] = []
    for case in CASES:
        if asked.only is None or asked.only in shown(case):
            pairs += compared(case)
            print(f"  {shown(case)}: {pairs[-1].measured / 1e6:,.0f} MB", flush=True)
    pairs.sort(key=lambda pair: -abs(pair.apart))
    print(f"predicted beside measured, the worst first (target {TARGET:.0%})")
    for pair in pairs:
        sizes = f"{pair.predicted / 1e6:8,.1f} MB  measured {pair.measured / 1e6:8,.1f} MB"
        print(f"  {pair.apart:+7.1%}  {pair.case:<66} {sizes}  {pair.moment}")
    if asked.json:
        asked.json.write_text(json.dumps([pair._asdict() for pair in pairs], indent=1) + "\n")
    if any(abs(pair.apart) > TARGET for pair in pairs):
        raise SystemExit(f"further apart than {TARGET:.0%}")


if __name__ == "__main__":
    main()
