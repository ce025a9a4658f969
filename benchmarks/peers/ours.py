"""This project's loop on a job of ``benchmarks/rl.py``: PPO for one answer to a prompt, RLOO for several.

    python benchmarks/peers/ours.py <job.json> <result.json>

The numbers are those of the peers; what they do not have (whitened scores, critic warm-up, held-out prompts) is off.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from job import Job, Laps

from alignment.artifacts import foreign
from alignment.chat.types import Message, Prompt
from alignment.gemma import heads
from alignment.gemma.roles import Separate
from alignment.rl import loop
from alignment.rl.control import Beta
from alignment.rl.held_out import HeldOut
from alignment.rl.learner import Learner
from alignment.rl.settings import Anchoring, Critic, Drawing, Estimating, Updating, Watching
from alignment.rl.state import Progress
from alignment.sampling.drawer import OwnDrawer
from alignment.scoring.combine import Reward, Weighted
from alignment.scoring.reward_model import RewardScorer
from alignment.training.engine import EngineSettings, resolve
from alignment.training.policies import open_policy

NEVER = 10_000
"""A step that no run here comes to."""
PHASES = "seconds/"


def main() -> None:
    job, laps = Job.read(sys.argv[1]), Laps()
    torch.set_num_threads(job.threads)
    with tempfile.TemporaryDirectory() as out:
        course, learner = prepared(job, Path(out))
        progress = Progress(0, Beta(job.beta))
        for step in range(job.updates + 1):
            row = loop.one_step(course, learner, progress)
            progress.step = step + 1
            laps.end()
            laps.tokens.append(row["length/mean"])
            laps.phases.append({name.removeprefix(PHASES): row[name] for name in row if name.startswith(PHASES)})
    laps.tell(job, sys.argv[2], ["alignment", "transformers", "torch"])


def prepared(job: Job, out: Path) -> tuple[loop.Course, Learner]:
    """What ``stage=rl`` would lay out for these numbers."""
    engine = resolve(engine_settings(job))
    policy = open_policy(foreign(Path(job.policy), "policy"), engine)
    scorer = RewardScorer.load(foreign(Path(job.reward), "reward"), engine)
    reward = Reward(Weighted([scorer], [1.0]), whiten="none", unfinished=None, length_penalty=0.0)
    critic = heads.load_reward(job.reward)[0] if job.samples == 1 else None
    drawing, pad_id = drawing_of(job), policy.tokenizer.pad_id
    learner = Learner(
        Separate(policy.model, critic, chunk_tokens=engine.settings.loss_chunk),
        updating_of(job),
        Critic(init="reward", weights=None, learning_rate=job.learning_rate, warmup=0, coefficient=0.1, clip=0.2),
        engine,
        samples=drawing.samples,
        temperature=drawing.temperature,
        pad_id=pad_id,
        seed=job.seed,
    )
    course = loop.Course(
        policy=policy,
        prompts=[Prompt((Message("user", text),), str(place)) for place, text in enumerate(job.questions)],
        reward=reward,
        held_out=HeldOut([], reward, {}, policy.model, policy, drawing, engine.device),
        drawer=OwnDrawer(policy.stop_ids if drawing.stop else (), pad_id),
        drawing=drawing,
        estimating=estimating_of(job),
        anchoring=Anchoring(
            kind="fixed", weights=None, rate=0.0, beta=job.beta, place="reward", target=None, horizon=NEVER
        ),
        updating=updating_of(job),
        watching=Watching(
            every=NEVER, prompts=1, rewards=None, guard=None, guard_drop=0.0, patience=None, kl_bound=None, keep="last"
        ),
        guard=None,
        starts_at_anchor=True,
        seed=job.seed,
        out=out,
    )
    return course, learner


def engine_settings(job: Job) -> EngineSettings:
    """One CPU process."""
    return EngineSettings(
        device="cpu",
        precision="bf16" if job.bf16 else "fp32",
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


def drawing_of(job: Job) -> Drawing:
    """At temperature 1, to the end or to a stop id."""
    return Drawing(
        samples=job.samples,
        temperature=1.0,
        max_new_tokens=job.answer_tokens,
        largest_weight=2.0,
        stop=job.stop_id is not None,
    )


def estimating_of(job: Job) -> Estimating:
    """GAE as PPOTrainer's where a prompt has one answer, and leave-one-out as RLOOTrainer's where it has several."""
    gae = job.samples == 1
    return Estimating(
        kind="gae" if gae else "rloo",
        gamma=1.0,
        lam=0.95,
        baseline="mean",
        whiten_rewards=False,
        whiten_advantages=gae,
    )


def updating_of(job: Job) -> Updating:
    """One epoch, one optimiser step a batch."""
    return Updating(
        steps=job.updates + 1,
        batch=job.batch,
        minibatch=job.batch,
        epochs=1,
        clip=0.2,
        learning_rate=job.learning_rate,
        schedule="constant",
        warmup_steps=0,
        weight_decay=0.1,
        beta1=0.9,
        beta2=0.95,
        epsilon=1e-5,
        clip_norm=1.0,
        snapshots=None,
        checkpoint_steps=NEVER,
    )


if __name__ == "__main__":
    main()
