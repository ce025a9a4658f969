"""The trainings of ``estimate.py``: what a case is, and what it trains through the code that the stages use."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from alignment.estimate.roles import SCORED_TOKENS
from alignment.gemma.presets import Shape

if TYPE_CHECKING:
    from alignment.gemma.roles import Separate
    from alignment.training.engine import Engine

CONF = Path(__file__).resolve().parents[1] / "conf"
STEPS = 2
SHAPES = {
    "wide": (Shape("gemma2", 1024, 4, 3072, 8, 4, 128, 128, 2048, 1024, 50.0, 30.0), 8_192),
    "deep": (Shape("gemma2", 512, 8, 2048, 8, 4, 64, 64, 2048, 1024, 50.0, 30.0), 8_192),
    "wordy": (Shape("gemma2", 512, 4, 1024, 8, 4, 64, 64, 2048, 1024, 50.0, 30.0), 32_768),
    "gemma1": (Shape("gemma1", 512, 6, 2048, 8, 1, 64, 64, 2048), 16_384),
    "small": (Shape("gemma2", 256, 4, 1024, 4, 2, 64, 64, 2048, 1024, 50.0, 30.0), 4_096),
}
"""With their vocabularies."""


class Case(NamedTuple):
    """One training. ``rows`` of ``tokens`` are a forward pass, ``passes`` of them a step; ``rank`` is an adapter's.

    In rl, rows are prompts: each has ``SAMPLES`` answers, and prompt and answer are a third of ``tokens`` each. In
    distill, ``teacher`` is a shape, or None where ``TOP_K`` likeliest tokens are stored; ``mode`` says how answers are
    drawn, if they are.
    """

    stage: Literal["sft", "distill", "reward", "dpo", "rl"]
    shape: str
    precision: Literal["fp32", "bf16"]
    checkpointing: bool
    rows: int
    tokens: int
    passes: int = 1
    chunk: int = 256
    rank: int | None = None
    roles: Literal["separate", "shared"] = "separate"
    critic: bool = False
    follows: bool = False
    zero: int = 0
    processes: int = 1
    teacher: str | None = None
    mode: Literal["on_policy", "minillm"] | None = None


MOMENTS = ("draw", "judge", "read")
"""Of rl, measured apart: mostly it is learning that needs the most."""
SAMPLES = 2
TOP_K = 64


def measured(case: Case, folder: Path) -> dict[str, int]:
    """By moment, the most bytes that were allocated at once on this process; ``step`` is the whole training."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        train(case, folder)
    assert watched.profiler is not None, "it has watched"
    assert watched.profiler.kineto_results is not None, "it has seen something"
    events = sorted(watched.profiler.kineto_results.events(), key=lambda one: one.start_ns())
    moments = [one for one in events if one.name() in MOMENTS]
    live, most = 0, {"step": 0}
    for one in events:
        if one.name() == "[memory]":
            live += one.nbytes()
            now = [moment.name() for moment in moments if moment.start_ns() <= one.start_ns() <= moment.end_ns()]
            for name in ("step", *now):
                most[name] = max(most.get(name, 0), live)
    return most


def train(case: Case, folder: Path) -> None:
    """Two steps, as the stage takes them."""
    import torch

    from alignment.gemma import core
    from alignment.gemma.presets import TokenIds
    from alignment.training import team

    if case.processes > 1:
        team.open_team(lambda error: print(error, file=sys.stderr))
    torch.manual_seed(0)
    shape, vocabulary = SHAPES[case.shape]
    model = core.build(shape, vocabulary, TokenIds(), 0)
    engine = engine_of(case)
    if case.stage == "rl":
        reinforce(case, model, engine, folder)
    else:
        supervise(case, model, engine, folder)


def engine_of(case: Case) -> Engine:
    """conf/engine/single.yaml, but for what the case says."""
    from alignment.training.engine import EngineSettings, resolve

    changed = {
        "device": "cpu", "precision": case.precision, "micro_batch": case.rows, "layout": "bucketed",
        "gradient_checkpointing": case.checkpointing, "processes": "any", "zero": case.zero, "loss_chunk": case.chunk,
    }  # fmt: skip
    if case.stage == "rl":
        changed["micro_batch"] = case.rows * SAMPLES
    return resolve(EngineSettings.parse(conf("engine", "single") | changed))


def conf(group: str, option: str) -> dict[str, Any]:
    """A file of conf/; as Hydra does it, because YAML takes 1e-5 for a text."""
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{option}.yaml"))
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def supervise(case: Case, model: Any, engine: Engine, folder: Path) -> None:
    """Through the trainer of the case's stage, on rows of one length."""
    import numpy as np
    from transformers import GemmaTokenizer

    from alignment.gemma import heads
    from alignment.training import direct, policies, preferences, rewards, supervised
    from alignment.training.model_settings import AdapterSettings
    from alignment.training.optimisation import Optimisation
    from alignment.training.pair_rows import PairRow, PairRows
    from alignment.training.policies import Policy
    from alignment.training.rewards import Reward
    from alignment.training.rows import TokenRows
    from alignment.training.tracking import Tracker, TrackerSettings

    GemmaTokenizer().save_pretrained(folder)
    vocabulary, rng = model.config.vocab_size, np.random.default_rng(0)
    batch = case.rows * case.passes * case.processes
    common: dict[str, Any] = {
        "title": case.stage, "out": folder, "tokenizer_folder": folder, "pad_id": 0, "engine": engine, "seed": 0,
        "numbers": Optimisation.parse(
            conf("stage", "sft")["optimisation"] | {"batch": batch, "steps": STEPS, "checkpoint_steps": 1000}
        ),
        "tracker": Tracker(TrackerSettings.parse(conf("tracker", "off")), folder, {}),
    }  # fmt: skip
    if case.stage == "distill":
        distil(case, model, engine, batch, common)
        return
    adapter = AdapterSettings(kind="lora", rank=case.rank or 1, alpha=16.0, dropout=0.0)
    if case.stage == "sft":
        if case.rank:
            model = policies.adapt(Policy(model, None, "gemma2"), adapter).model  # type: ignore[arg-type]
        ids = rng.integers(3, vocabulary, (STEPS * batch, case.tokens))
        supervised.train(model, TokenRows.gather((row, np.ones(case.tokens, bool)) for row in ids), **common)
        return
    third = case.tokens // 3
    ids = rng.integers(3, vocabulary, (STEPS * batch, 3, third)).tolist()
    rows = [PairRow(prompt, chosen, rejected, 0.0) for prompt, chosen, rejected in ids]
    if case.stage == "dpo":
        direct.train(model, PairRows.gather(rows), reference_PA=np.zeros((len(rows), 2)), beta=0.1, **common)
        return
    reward = Reward(heads.with_head(model, 0), None, "gemma2")  # type: ignore[arg-type]
    if case.rank:
        reward = rewards.adapt(reward, adapter)
    preferences.train(reward.model, PairRows.gather(rows), safety_weight=0.0, **common)


def distil(case: Case, model: Any, engine: Engine, batch: int, common: dict[str, Any]) -> None:
    """From a teacher in memory or from random columns; answers have all of their tokens."""
    import numpy as np

    from alignment.data.topk import TopK
    from alignment.distillation.sources import OnPolicy, Phases, Written
    from alignment.gemma import core
    from alignment.gemma.presets import TokenIds
    from alignment.sampling.drawer import OwnDrawer
    from alignment.training import distilled
    from alignment.training.distilled import Objective
    from alignment.training.lessons import Matter, Row, by_phases, by_rows
    from alignment.training.rows import Collator, TokenRows
    from alignment.training.teachers import Live

    vocabulary, rng = model.config.vocab_size, np.random.default_rng(0)
    third, count, collate = case.tokens // 3, STEPS * batch, Collator(0)
    ids = rng.integers(3, vocabulary, (count, case.tokens))
    rows = TokenRows.gather((row, np.arange(case.tokens) > 0) for row in ids)
    matter = Matter([str(row) for row in range(count)], rows, ids[:, :third].tolist())

    class Stored:
        def tell(self, rows: Sequence[Row]) -> list[TopK]:
            shape = (case.tokens - 1, TOP_K)
            likeliest, even = np.tile(np.arange(TOP_K), (shape[0], 1)), np.full(shape, -np.log(2 * TOP_K))
            return [TopK(row.targets, likeliest, even, np.full(shape[0], -np.log(2))) for row in rows]

    teacher: Live | Stored = Stored()
    if case.teacher is not None:
        teacher = Live(core.build(*SHAPES[case.teacher], TokenIds(), 1), engine)
    objective, plan = Objective("forward_kl", 0.0, 1.0, 0.0), partial(by_rows, rows.lengths, batch, seed=0, window=32)
    source: Any = Written(matter)
    if case.mode == "on_policy":
        source = OnPolicy(matter, OwnDrawer((), 0), 1.0, 1.0, case.tokens - third, 0)
    if case.mode == "minillm":
        assert isinstance(teacher, Live), "it draws too"
        objective, plan = Objective("reverse_kl", 0.0, 1.0, 0.0, clip=0.2), partial(by_phases, batch, batch, 1, seed=0)
        source = Phases(
            matter, teacher, collate, engine, (), teacher_share=0.2, rollouts=batch, steps_a_phase=1,
            max_new_tokens=case.tokens - third, length_normalised=True, single_step=True, seed=0,
        )  # fmt: skip
    distilled.train(
        model, rows, plan=lambda steps: plan(steps=steps), source=source, teacher=teacher, objective=objective,
        collate=collate, **common,
    )  # fmt: skip


def reinforce(case: Case, model: Any, engine: Engine, folder: Path) -> None:
    """Draw, judge, read, learn, move the anchor, as ``rl/loop.py`` does."""
    import torch
    from torch.profiler import record_function

    from alignment.gemma import branches, core, heads
    from alignment.gemma.presets import TokenIds
    from alignment.rl.advantages import Targets
    from alignment.rl.learner import Learner
    from alignment.sampling.drawer import OwnDrawer

    shape, vocabulary = SHAPES[case.shape]
    judge = heads.with_head(core.build(shape, vocabulary, TokenIds(), 1), 0).requires_grad_(False)
    third, groups = case.tokens // 3, case.rows * case.passes
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(3, vocabulary, (groups, third), generator=generator).tolist()
    updating, critic = numbers(groups * SAMPLES * case.processes)
    learner = Learner(
        roles_of(case, model, engine), updating, critic, engine, samples=SAMPLES, temperature=1.0, pad_id=0, seed=0
    )
    for step in range(STEPS):
        with learner.rollout():
            with record_function("draw"), learner.acting() as acting:
                answers = OwnDrawer((), 0).draw(
                    acting, prompts, [str(one) for one in range(groups)], samples=SAMPLES, temperature=1.0,
                    max_new_tokens=third, seed=step,
                )  # fmt: skip
            episodes = episodes_of(prompts, answers)
            trees, some = [episodes.tree(group) for group in range(groups)], SCORED_TOKENS["cpu"] // case.tokens
            with record_function("judge"), torch.inference_mode():
                for first in range(0, groups, some):
                    branches.scores(judge, branches.lay_out(trees[first : first + some], pad_id=0))
            with record_function("read"):
                learner.read(episodes, old=True)
        rewards_B = torch.randn(len(answers), generator=generator)
        advantages_BT = rewards_B[:, None].expand(-1, third) * episodes.mask_BT
        targets = Targets(advantages_BT, advantages_BT if case.critic else None, "token", rewards_B, 0)
        learner.update(episodes, targets, step=step, beta_in_loss=0.0, out=folder)
        if case.follows:
            learner.move_anchor(0.01)


def numbers(batch: int) -> Any:
    """conf/stage/rl.yaml's, for one batch a step."""
    from alignment.rl.settings import Critic, Updating

    values = conf("stage", "rl")
    return Updating.parse(values["updating"] | {"batch": batch, "minibatch": batch}), Critic.parse(values["critic"])


def roles_of(case: Case, model: Any, engine: Engine) -> Separate:
    """The roles of a case, as ``training/roles.py`` opens them."""
    from alignment.gemma.roles import Separate, critic_from_policy
    from alignment.gemma.shared_roles import Shared

    if case.roles == "shared":
        rank, kind = case.rank or 1, "policy" if case.critic else None
        roles: Separate = Shared(
            model,
            rank=rank,
            alpha=16.0,
            critic=kind,
            moves=case.follows,
            chunk_tokens=case.chunk,  # type: ignore[arg-type]
        )
    else:
        critic = critic_from_policy(model) if case.critic else None
        roles = Separate(model, critic, moves=case.follows, chunk_tokens=case.chunk)
    from alignment.training.roles import _ready

    return _ready(roles, engine)  # type: ignore[return-value]


def episodes_of(prompts: list[list[int]], answers: list[Any]) -> Any:
    """What was drawn, as the loop keeps it."""
    from alignment.chat.types import Prompt, messages
    from alignment.rl.episodes import Episodes, padded

    width = max(len(answer.ids) for answer in answers)
    drawn_BT = padded([answer.logprobs for answer in answers], width, "cpu")
    asked = [Prompt(messages(("user", str(place))), str(place)) for place in range(len(prompts))]
    return Episodes(
        prompts=asked, prompt_ids=prompts, samples=SAMPLES, answers=[answer.ids for answer in answers],
        texts=["" for _ in answers], finished=[True for _ in answers], drawn_BT=drawn_BT,
        mask_BT=padded([[1.0] * len(answer.ids) for answer in answers], width, "cpu").bool(), old_BT=drawn_BT,
    )  # fmt: skip
