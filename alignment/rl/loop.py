"""The loop: draw, judge, read, compare, learn, move the anchor, look.

A step is one batch of answers. Everything between two steps is in a checkpoint or is a function of step and seed, so a
run that was killed goes on to the same bits, and no answer is counted twice.

Axes: B answers, T tokens of an answer.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import load_file

from alignment import console, files, parts, ranks, signals
from alignment.chat.render import answer_text, prompt_ids
from alignment.chat.types import Prompt
from alignment.errors import UserError
from alignment.rl import measures, state
from alignment.rl.advantages import targets
from alignment.rl.episodes import Episodes, padded
from alignment.rl.held_out import HeldOut
from alignment.rl.learner import Learner
from alignment.rl.order import keys_of, prompts_of
from alignment.rl.records import Records, answers_kept
from alignment.rl.settings import Anchoring, Drawing, Estimating, Updating, Watching
from alignment.rl.state import Progress
from alignment.sampling.drawer import Drawer
from alignment.scoring.combine import Reward
from alignment.training import checkpoints, finite, preemption, snapshots, team, watchdog, zero
from alignment.training.policies import Policy

ROUNDING = {"fp32": 2e-3, "bf16": 0.25}
"""How far two computations of one log-probability may lie apart, in nats, before they are not of the same policy."""


@dataclass(frozen=True)
class Course:
    """A run that is about to begin: who learns what from which prompts, by which numbers."""

    policy: Policy
    prompts: list[Prompt]
    reward: Reward
    held_out: HeldOut
    drawer: Drawer
    drawing: Drawing
    estimating: Estimating
    anchoring: Anchoring
    updating: Updating
    watching: Watching
    guard: str | None
    """The name of the guard among the held-out scorers."""
    starts_at_anchor: bool
    """Whether the anchor is the policy that training starts from."""
    seed: int
    out: Path

    @property
    def folder(self) -> Path:
        """Where its checkpoints lie."""
        return self.out / "checkpoints"


@dataclass
class Clock:
    """Seconds by phase."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the block under ``name``."""
        begun = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun
        watchdog.alive()


def run(course: Course, learner: Learner, records: Records) -> Progress:
    """Train until the steps are done or there is a reason to end; the kept policy is in ``learner`` afterwards."""
    # What the learner has divided stays so.
    zero.everywhere(course.held_out.start, learner.engine.device)
    progress = resume(course, learner, records)
    minutes = learner.engine.settings.watchdog_minutes
    with console.progress("rl", course.updating.steps, "steps") as bar, watchdog.watching(course.out, minutes):
        bar.begin_at(progress.step)
        try:
            learn(course, learner, progress, records, bar)
        except signals.Preempted:
            # At the end of a step, or between two: a rollout that is not learned from yet is dropped whole. Where a
            # look was cut short, its step is learned from and not told, and nothing is kept.
            told = records.told == progress.step
            if told and progress.step > team.from_main(lambda: checkpoints.last_step(course.folder)):
                keep(course, learner, progress)
            raise
    if progress.judgement.ended:
        console.say(f"  ended at step {progress.step:,}: {progress.judgement.ended}", style="yellow")
    take_best(course, learner, progress)
    return progress


def learn(course: Course, learner: Learner, progress: Progress, records: Records, bar: console.Progress) -> None:
    """Step after step. Raises :class:`signals.Preempted`, in all processes, where one was asked to stop."""
    numbers = course.updating
    if progress.step == 0:
        look(course, learner, progress, records)
    while progress.step < numbers.steps and not progress.judgement.ended:
        row = one_step(course, learner, progress)
        progress.step += 1
        if progress.step % course.watching.every == 0 or progress.step == numbers.steps:
            look(course, learner, progress, records)
        records.step(progress.step, row)
        bar.advance(1, f"reward {row['score/mean']:.3f}  KL {row['kl/anchor']:.3f}")
        if snapshots.is_due(numbers.snapshots, progress.step, numbers.steps):
            snapshots.put_aside(course.out, progress.step, state.trained(learner))
        done = progress.step == numbers.steps or progress.judgement.ended
        if not done:
            preemption.heed(learner.engine.device, f"after step {progress.step:,} of {numbers.steps:,}")
        if progress.step % numbers.checkpoint_steps == 0 or done:
            keep(course, learner, progress)


def one_step(course: Course, learner: Learner, progress: Progress) -> dict[str, float]:
    """One batch from prompts to a better policy. Returns what was measured on the way."""
    clock = Clock()
    beta = progress.beta.value
    with learner.rollout():
        episodes = roll_out(course, learner, progress.step, clock)
    in_reward = course.anchoring.place == "reward"
    found = targets(
        episodes,
        course.estimating,
        beta=beta if in_reward else 0.0,
        baseline=progress.baseline,
        total=learner.total,
    )
    with clock.phase("learn"):
        learned = learner.update(
            episodes, found, step=progress.step, beta_in_loss=0.0 if in_reward else beta, out=course.out
        )
        need_same_policy(learner, learned["update/first_ratio"], progress.step)
        if course.anchoring.kind == "ema":
            learner.move_anchor(course.anchoring.rate)
    row = measures.of_batch(episodes, found, learner.gather) | learned | {"kl/beta": beta}
    progress.beta.steer(row["kl/anchor"], course.updating.batch, course.anchoring)
    progress.reward = course.reward.state()
    return row | measures.of_time(clock.seconds, row, course.updating.batch)


def roll_out(course: Course, learner: Learner, step: int, clock: Clock) -> Episodes:
    """Answers of the policy as it is, with what they are worth, and read by the models that learn from them."""
    with clock.phase("draw"):
        episodes = draw(course, learner, step)
    preemption.heed(learner.engine.device, f"after step {step:,}; what was drawn since is dropped")
    with clock.phase("judge"):
        with learner.judging(), answers_kept(course.out, episodes.prompts_of_answers, episodes.texts):
            scored = course.reward.score(
                episodes.prompts_of_answers, episodes.texts, episodes.lengths, episodes.finished
            )
        episodes.judged = course.reward.shape(scored, learner.gather)
    with clock.phase("read"):
        learner.read(episodes, old=learner.engine.bf16 or not course.drawer.exact)
        if not course.drawer.exact:
            episodes.weights_BT = (episodes.old_BT - episodes.drawn_BT).exp()
            episodes.largest_weight = course.drawing.largest_weight
        need_anchor(course, learner, episodes, step)
    return episodes


def draw(course: Course, learner: Learner, step: int) -> Episodes:
    """Answers to this process's share of the step's prompts, each with its log-probabilities."""
    engine, drawing = learner.engine, course.drawing
    a_step = course.updating.batch // drawing.samples
    places = prompts_of(step, count=len(course.prompts), a_step=a_step, seed=course.seed)
    named = keys_of([course.prompts[place].id for place in places])
    rank = learner.accelerator.process_index
    prompts = [course.prompts[place] for place in places[rank :: engine.world]]
    ids = [prompt_ids(prompt.messages, course.policy.tokenizer) for prompt in prompts]
    with learner.acting() as model:
        answers = course.drawer.draw(
            model,
            ids,
            named[rank :: engine.world],
            samples=drawing.samples,
            temperature=drawing.temperature,
            max_new_tokens=drawing.max_new_tokens,
            # Of each step its own noise: a prompt that comes again gets other answers.
            seed=course.seed * 1_000_003 + step,
        )
    width = max(len(answer.ids) for answer in answers)
    drawn_BT = padded([answer.logprobs for answer in answers], width, engine.device)
    mask_BT = padded([[1.0] * len(answer.ids) for answer in answers], width, engine.device).bool()
    return Episodes(
        prompts=prompts,
        prompt_ids=ids,
        samples=drawing.samples,
        answers=[answer.ids for answer in answers],
        texts=[answer_text(answer.ids, course.policy.tokenizer) for answer in answers],
        finished=[answer.finished for answer in answers],
        drawn_BT=drawn_BT,
        mask_BT=mask_BT,
        old_BT=drawn_BT,
    )


# ── what has to hold ─────────────────────────────────────────────────────────────────────────────


def need_anchor(course: Course, learner: Learner, episodes: Episodes, step: int) -> None:
    """At step 0 a policy lies where its anchor does: KL 0. Raises :class:`UserError` where it does not."""
    if step > 0 or not course.starts_at_anchor or episodes.anchor_BT is None:
        return
    apart = float(((episodes.old_BT - episodes.anchor_BT).abs() * episodes.mask_BT).max())
    if apart > _rounding(learner):
        raise UserError(
            f"at step 0 the policy and its anchor differ by {apart:.3g} nats in one token",
            cause="They are to be the same model; one of the two computes something else.",
            remedy="This is a fault of ours or of the attention kernel: try attention=eager engine.precision=fp32.",
        )


def need_same_policy(learner: Learner, apart: float, step: int) -> None:
    """Before its update the policy is the one that drew: ratio 1. Raises :class:`UserError` where it is not."""
    if apart > _rounding(learner):
        raise UserError(
            f"at step {step} the policy differs by {apart:.3g} nats in one token from itself when it drew",
            cause="Drawing and learning compute different log-probabilities, so that ratios mean nothing.",
            remedy="This is a fault of ours or of the attention kernel: try attention=eager engine.precision=fp32.",
        )


def _rounding(learner: Learner) -> float:
    return ROUNDING["bf16" if learner.engine.bf16 else "fp32"]


# ── between two steps ────────────────────────────────────────────────────────────────────────────


def resume(course: Course, learner: Learner, records: Records) -> Progress:
    """Go on from the last whole checkpoint, or begin."""
    checkpoint = team.from_main(lambda: checkpoints.last_whole(course.folder))
    if checkpoint is None:
        records.rewind(-1)
        progress = Progress(0, state.Beta(course.anchoring.beta))
        progress.reward = course.reward.state()
        return progress
    progress = state.load(checkpoint, learner)
    course.reward.load_state(progress.reward)
    records.rewind(progress.step)
    best = _to_keep(course, progress)
    if console.is_main_process():
        if best is not None:
            # That of the checkpoint is known to be whole.
            state.take_out_best(checkpoint, _best(course, best))
        only_best(course, best)
    return progress


def keep(course: Course, learner: Learner, progress: Progress) -> None:
    """Save everything that the next step needs."""
    finite.need_weights(
        state.trained(learner).items(),
        progress.step,
        rate="updating.learning_rate",
        out=course.out,
        batch=learner.learned_from,
    )
    best = _to_keep(course, progress)
    state.save(course.folder, progress, learner, best=None if best is None else _best(course, best))
    watchdog.alive()


def look(course: Course, learner: Learner, progress: Progress, records: Records) -> None:
    """Measure on the held-out prompts, record the point, and put the policy aside where it may be the one to keep.

    Every process looks, and what one sees may be rounded otherwise: all of them judge by what rank 0 has seen.
    """
    with learner.looking() as model:
        seen, rows = course.held_out.measure(model, progress.step, course.out)
    point = team.from_main(lambda: seen)
    records.point(point, rows)
    waits = learner.roles.has_critic and progress.step <= learner.critic.warmup
    better = progress.judgement.take(point, course.watching, course.guard, waits=waits)
    if better and course.watching.keep == "best":
        path, weights = _best(course, point.step), zero.on_main(state.trained(learner))
        if console.is_main_process():
            files.make_folder(path.parent)
            state.write_whole(path, weights)
            only_best(course, point.step)


def only_best(course: Course, step: int | None) -> None:
    """Of the policies that were the best once, leave the one of ``step``."""
    for path in (course.out / parts.FOLDER).glob("best-*.safetensors"):
        if step is None or path != _best(course, step):
            path.unlink()


def take_best(course: Course, learner: Learner, progress: Progress) -> None:
    """Put the best policy back, where that is the one to keep."""
    learner.leave()
    best = _to_keep(course, progress)
    if best is not None and best != progress.step:
        team.meet()
        if ranks.is_main() or learner.engine.settings.zero != 3:
            state.put_back(learner, load_file(_best(course, best)))
        console.say(f"  the policy of step {best:,} is kept: the best on held-out prompts", style="dim")


def _to_keep(course: Course, progress: Progress) -> int | None:
    """The step of the best policy so far, where that is to be the result."""
    return progress.judgement.best_step if course.watching.keep == "best" else None


def _best(course: Course, step: int) -> Path:
    return course.out / parts.FOLDER / f"best-{step}.safetensors"
