"""Reinforcement learning beside TRL: its last PPOTrainer and its RLOOTrainer, on the same prompts, in one run.

    python benchmarks/rl.py [--steps 20] [--repeats 5] [--threads 2] [--only ppo|rloo] [--natural]

Two comparisons, each on the same miniature policy and reward model, prompts of 24 tokens, 64 answers an update, one
epoch and one optimiser step: PPO (one answer to a prompt) beside the PPOTrainer of TRL 0.24, the last release that has
it outside of its experiments; RLOO (four answers) beside the RLOOTrainer of the TRL installed here. Both sides draw
exactly 32 tokens; with ``--natural`` they are also seen stopping at the end of a turn.

Every turn of a side is a process of its own (``benchmarks/peers/``); the sides take turns, ``repeats`` times. What is
printed is episodes per second after one update that warms up, and the median of the ratios with their range. TRL 0.24
lives in an environment that is built once, below ``--cache``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from peers.job import Job, Result

if TYPE_CHECKING:
    from alignment.chat.tokenizers import Tokenizer
    from alignment.chat.types import Conversation
    from alignment.training.engine import Engine
    from alignment.training.policies import Policy

PEERS = Path(__file__).resolve().parent / "peers"
CACHE = PEERS.parent.parent / ".cache" / "benchmarks"
PACKAGES = ("torch==2.13.0", "trl==0.24.0", "transformers==4.57.6", "accelerate==1.15.0", "datasets==5.0.1")
"""Of the environment for the last PPOTrainer: versions that work together."""

PROMPT_TOKENS, ANSWER_TOKENS, BATCH = 24, 32, 64
VOCABULARY, CONVERSATIONS, LONGEST, LESSONS = 768, 20_000, 64, 150
"""Pieces of the tokenizer; conversations drawn; tokens of those that the policy learns from; steps it does so."""


class Comparison(NamedTuple):
    """Two sides and what differs from the other comparison."""

    name: str
    peer: str
    script: str
    samples: int


COMPARISONS = (
    Comparison("ppo", "TRL 0.24 PPOTrainer", "ppo.py", 1),
    Comparison("rloo", "TRL RLOOTrainer", "rloo.py", 4),
)


def main() -> None:
    chosen = arguments()
    pythons = {"rloo": Path(sys.executable)}
    wanted = [one for one in COMPARISONS if chosen.only in (None, one.name)]
    if any(one.name == "ppo" for one in wanted):
        pythons["ppo"] = environment(chosen.cache / "trl-0.24")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        job = material(folder, steps=chosen.steps, threads=chosen.threads, precision=chosen.precision)
        arithmetic = "bf16 autocast" if job.bf16 else "fp32"
        print(
            f"{job.threads} threads, {arithmetic}, {chosen.repeats} turns of {job.updates} updates of {BATCH} answers"
        )
        for one in wanted:
            for stop_id in (None, job.stop_id) if chosen.natural else (None,):
                compare(
                    one, replace(job, samples=one.samples, stop_id=stop_id), pythons[one.name], chosen.repeats, folder
                )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="updates that are timed, in every turn")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=[one.name for one in COMPARISONS])
    parser.add_argument("--natural", action="store_true", help="beside it, answers that stop by themselves")
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto", help="of both sides")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where the peer's environment lies")
    return parser.parse_args()


# ── what both sides are given ────────────────────────────────────────────────────────────────────


def material(folder: Path, *, steps: int, threads: int, precision: Any) -> Job:
    """A policy that has learned to end its turns, a reward model on its trunk, and prompts of one length."""
    import torch

    from alignment.chat.render import prompt_ids
    from alignment.chat.tokenizers import load
    from alignment.chat.train import train as train_tokenizer
    from alignment.gemma import core, heads
    from alignment.miniature import corpus
    from alignment.miniature.world import World
    from alignment.training import policies
    from alignment.training.engine import EngineSettings, resolve

    torch.set_num_threads(threads)
    settings = EngineSettings(
        device="cpu", precision=precision, micro_batch=None, layout="auto", gradient_checkpointing=False, zero=0,
        processes="any", offload=False, gather=True, loss_chunk=1024, watchdog_minutes=None,
    )  # fmt: skip
    engine = resolve(settings)
    conversations = [one for one in corpus.conversations(World(0, 40), CONVERSATIONS, 0, 0.5) if len(one.messages) == 2]
    tokenizer = load(
        train_tokenizer([turn.content for one in conversations for turn in one.messages], VOCABULARY, folder)
    )
    policy = educated(tokenizer, conversations, engine, folder)
    policies.save_policy(policy, folder / "policy")
    policies.save_tokenizer(tokenizer, policy.schema, folder / "reward")
    reward = heads.with_head(core.causal_lm(policy.model), 0)
    heads.save_reward(reward, folder / "reward", heads.Scale(0.0, False, policy.schema))
    questions = {one.messages[0].content: prompt_ids(one.messages[:1], tokenizer) for one in conversations}
    prompts = {text: ids for text, ids in questions.items() if len(ids) == PROMPT_TOKENS}
    assert len(prompts) >= BATCH, "a batch has a prompt for every answer"
    return Job(
        policy=str(folder / "policy"), reward=str(folder / "reward"), questions=list(prompts),
        prompts=list(prompts.values()), batch=BATCH, samples=1, answer_tokens=ANSWER_TOKENS,
        stop_id=tokenizer.end_of_turn_id, updates=steps, threads=threads, bf16=engine.bf16, learning_rate=1e-6,
        beta=0.05, seed=0,
    )  # fmt: skip


def educated(tokenizer: Tokenizer, conversations: Sequence[Conversation], engine: Engine, folder: Path) -> Policy:
    """A policy that answers shortly and ends its turns: some steps on conversations of one turn."""
    from alignment.chat.render import render
    from alignment.chat.tokenizers import padded_vocab
    from alignment.gemma import core
    from alignment.gemma.presets import SHAPES, TokenIds
    from alignment.training import supervised
    from alignment.training.optimisation import Optimisation
    from alignment.training.policies import Policy, save_tokenizer
    from alignment.training.rows import TokenRows
    from alignment.training.tracking import Tracker, TrackerSettings

    ids = TokenIds(tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id)
    model = core.build(SHAPES["mini"], padded_vocab(tokenizer.vocab_size), ids, 0)
    rendered = (render(one.messages, tokenizer) for one in conversations)
    save_tokenizer(tokenizer, "gemma2", folder)
    supervised.train(
        model,
        TokenRows.gather(row for row in rendered if len(row.ids) <= LONGEST),
        title="a policy to begin with",
        out=folder / "sft",
        tokenizer_folder=folder,
        pad_id=tokenizer.pad_id,
        numbers=Optimisation(
            batch=64, epochs=None, steps=LESSONS, learning_rate=3e-3, final_rate=0.1, warmup_share=0.1,
            warmup_at_least=1, weight_decay=0.1, beta1=0.9, beta2=0.95, epsilon=1e-8, clip_norm=1.0, length_window=16,
            snapshots=None,
            checkpoint_steps=10_000,
        ),
        engine=engine,
        tracker=Tracker(TrackerSettings(wandb="off", project="benchmark", every=1000, upload="none"), folder, {}),
        seed=0,
    )  # fmt: skip
    return Policy(model.eval(), tokenizer, "gemma2")


# ── turns ────────────────────────────────────────────────────────────────────────────────────────


def compare(one: Comparison, job: Job, python: Path, repeats: int, folder: Path) -> None:
    """Both sides in turn, and what came of it."""
    turns: list[tuple[Result, Result]] = []
    for repeat in range(repeats):
        again = replace(job, seed=repeat)
        turns.append((turn("ours.py", Path(sys.executable), again, folder), turn(one.script, python, again, folder)))
    ending = "all tokens drawn" if job.stop_id is None else "answers stop by themselves"
    print(f"\n{one.name}, {job.samples} answers to a prompt, {PROMPT_TOKENS} + {ANSWER_TOKENS} tokens, {ending}")
    for name, results in zip(("ours", one.peer), zip(*turns, strict=True), strict=True):
        if job.stop_id is None:
            assert all(result.tokens == ANSWER_TOKENS for result in results), f"{name} did not draw all tokens"
        rate = statistics.median(episodes(job) / result.seconds for result in results)
        tokens = statistics.fmean(result.tokens for result in results)
        versions = ", ".join(f"{library} {version}" for library, version in results[0].versions.items())
        print(f"  {name:<20}{rate:>7.1f} episodes/s{tokens:>7.1f} tokens   {versions}")
    print(f"  {'  seconds an update':<20} {phases(job, [mine for mine, _ in turns])}")
    ratios = [theirs.seconds / mine.seconds for mine, theirs in turns]
    print(f"  ours / {one.peer} {statistics.median(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f})", flush=True)


def episodes(job: Job) -> int:
    """Answers in the updates that are timed."""
    return job.updates * job.batch


def phases(job: Job, results: Sequence[Result]) -> str:
    """Medians of our seconds an update: by phase, and what lies between them."""
    rows = [one.phases | {"rest": one.seconds / job.updates - sum(one.phases.values())} for one in results]
    return ", ".join(f"{name} {statistics.median(row[name] for row in rows):.3f}" for name in rows[0])


def turn(script: str, python: Path, job: Job, folder: Path) -> Result:
    """One side in a process of its own."""
    given, told = folder / "job.json", folder / "result.json"
    job.write(given)
    told.unlink(missing_ok=True)
    limits = {"OMP_NUM_THREADS": str(job.threads), "RAYON_NUM_THREADS": str(job.threads), "CUDA_VISIBLE_DEVICES": ""}
    offline = {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "DS_ACCELERATOR": "cpu"}
    command = [str(python), str(PEERS / script), str(given), str(told)]
    done = subprocess.run(command, env=os.environ | limits | offline, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{script} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return Result.read(told)


def environment(folder: Path) -> Path:
    """The Python of an environment with ``PACKAGES``, built where it is not there yet."""
    python, built = folder / "bin" / "python", folder / "packages.txt"
    wanted = "\n".join(PACKAGES) + "\n"
    if not built.is_file() or built.read_text(encoding="utf-8") != wanted:
        print(f"building {folder}: {', '.join(PACKAGES)}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        # Nothing in it is for a repository, wherever the cache lies.
        (folder / ".gitignore").write_text("*\n", encoding="utf-8")
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES]
        subprocess.run([str(python), *install], check=True)
        built.write_text(wanted, encoding="utf-8")
    return python


if __name__ == "__main__":
    main()
