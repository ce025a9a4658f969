"""What the tests of the loop need: a tiny policy that stops now and then, a reward that programs can check, a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from alignment.chat import tokenizers
from alignment.chat import train as vocabulary
from alignment.chat.render import prompt_ids
from alignment.chat.tokenizers import Tokenizer
from alignment.chat.types import Messages, Prompt, messages
from alignment.gemma import core
from alignment.gemma.presets import Shape, TokenIds
from alignment.gemma.roles import Separate, critic_from_policy
from alignment.gemma.shared_roles import Shared
from alignment.rl import loop
from alignment.rl.episodes import Episodes, padded
from alignment.rl.held_out import HeldOut
from alignment.rl.learner import Learner
from alignment.rl.loop import Course
from alignment.rl.records import Records
from alignment.rl.settings import Anchoring, Critic, Drawing, Estimating, Updating, Watching
from alignment.rl.state import Progress
from alignment.sampling.drawer import OwnDrawer
from alignment.scoring.combine import Reward
from alignment.scoring.scorer import Scores
from alignment.training.engine import Engine, EngineSettings
from alignment.training.model_settings import AdapterSettings
from alignment.training.policies import Policy, adapt
from alignment.training.tracking import Tracker, TrackerSettings

CONF = Path(__file__).parents[2] / "conf"
# The window is 6: prompts of 15 tokens and answers of 9 are several of it.
SHAPE = Shape(
    "gemma2", 24, 2, 32, 2, 1, head_dim=12, query_scale=10, context=80, window=6, attention_cap=4.0, final_cap=12.0
)
CLASSES = {
    "drawing": Drawing,
    "estimating": Estimating,
    "anchoring": Anchoring,
    "critic": Critic,
    "updating": Updating,
    "watching": Watching,
}
SMALL = {
    "drawing.samples": 2,
    "drawing.max_new_tokens": 9,
    "anchoring.beta": 0.1,
    "anchoring.rate": 0.2,
    "critic.learning_rate": 3e-3,
    "updating.steps": 4,
    "updating.batch": 8,
    "updating.minibatch": 4,
    "updating.learning_rate": 3e-3,
    "updating.checkpoint_steps": 2,
    "watching.every": 2,
    "watching.prompts": 5,
}
"""Beside conf/stage/rl.yaml."""
SEED = 5
NAMES = ("baker", "smith", "miller", "weaver", "potter", "tanner", "cooper", "fuller", "thatcher", "mason")


def question(number: int) -> Prompt:
    """Short and long ones take turns."""
    more = " and who is in the house beside it" * (number % 3)
    return Prompt(messages(("user", f"Where is the {NAMES[number % 10]} of {number}{more}?")), f"q-{number}")


@cache
def tokenizer() -> Tokenizer:
    """Of a few pieces."""
    lines = [f"The {name} lives in house {n}. {question(n).messages[0].content}" for n, name in enumerate(NAMES * 4)]
    with TemporaryDirectory() as folder:
        return tokenizers.load(vocabulary.train(lines, 440, Path(folder) / "pieces"))


def model(seed: int = 0) -> core.CausalLM:
    """A policy whose answers are far from uniform, and end after about six tokens, by one of the two stop ids."""
    pieces = tokenizer()
    built = core.build(SHAPE, pieces.vocab_size, TokenIds(), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(0.0, 0.25, generator=generator)
        asked = torch.tensor([prompt_ids(question(0).messages, pieces)])
        usual_D = core.hidden_states(built, asked)[0].mean(0)
        for stop, wanted in ((pieces.end_of_turn_id, 6.0), (pieces.eos_id, 5.0)):
            built.model.embed_tokens.weight[stop] = usual_D * wanted / usual_D.square().sum()
    return built


def policy(seed: int = 0, *, lora: int = 0, dropout: float = 0.0) -> Policy:
    """With an adapter of rank ``lora``."""
    plain = Policy(model(seed), tokenizer(), "gemma2")
    torch.manual_seed(SEED)
    return adapt(plain, AdapterSettings(kind="lora", rank=lora, alpha=8.0, dropout=dropout)) if lora else plain


class Letters:
    """A rule: how often an answer has an ``e``, less a little for its length. Different for almost all answers."""

    def __call__(self, prompts: Sequence[Prompt], dialogues: Sequence[Messages]) -> tuple[np.ndarray, dict[str, Any]]:
        texts = [turns[-1].content for turns in dialogues]
        score_N = np.array([text.count("e") - 0.1 * len(text) for text in texts])
        return score_N, {"letters": score_N}


class Short:
    """A scorer that only looks on."""

    name, absolute = "short", True

    def score(self, dialogues: Sequence[Messages]) -> Scores:
        values = [-float(len(turns[-1].content)) for turns in dialogues]
        return Scores(values, values, values)


def read(group: str, option: str) -> dict[str, Any]:
    """A file of conf/; as Hydra does it, because YAML takes 1e-5 for a text."""
    values = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{option}.yaml"))
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def engine(**changes: Any) -> Engine:
    """One process on the CPU in fp32."""
    values = read("engine", "single") | {"device": "cpu", "precision": "fp32"}
    settings = EngineSettings.parse(values | changes)
    return Engine("cpu", settings.precision == "bf16", False, 1, settings)


def numbers(changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The sections of conf/stage/rl.yaml for a tiny run, but for ``{"updating.batch": 16, …}``."""
    values = read("stage", "rl")
    for key, value in {**SMALL, **(changes or {})}.items():
        section, _, name = key.partition(".")
        assert name in values[section], key
        values[section][name] = value
    return {name: some.parse(values[name], name) for name, some in CLASSES.items()}


@dataclass
class Made:
    """A run that is about to begin."""

    course: Course
    learner: Learner
    records: Records

    def go(self) -> Progress:
        return loop.run(self.course, self.learner, self.records)


def learner(
    changes: Mapping[str, Any] | None = None, how: Engine | None = None, *, lora: int = 0, shared: int = 0
) -> Learner:
    """Roles and their optimiser, the same at every call; ``shared``: adapters of this rank on one trunk."""
    some, how = numbers(changes), how or engine()
    roles = _on_one_trunk(some, shared) if shared else _separate(some, lora)
    return Learner(
        roles,
        some["updating"],
        some["critic"],
        how,
        samples=some["drawing"].samples,
        temperature=some["drawing"].temperature,
        pad_id=tokenizer().pad_id,
        seed=SEED,
    )


def _on_one_trunk(some: Mapping[str, Any], rank: int) -> Shared:
    torch.manual_seed(SEED)
    critic: Any = "policy" if some["estimating"].kind == "gae" else None
    moves = some["anchoring"].kind == "ema"
    return Shared(model(), rank=rank, alpha=8.0, critic=critic, moves=moves, chunk_tokens=16)


def _separate(some: Mapping[str, Any], lora: int) -> Separate:
    start = policy(lora=lora)
    critic = None
    if some["estimating"].kind == "gae":
        critic = critic_from_policy(core.causal_lm(model()))
        nn.init.normal_(critic.score.weight, 0, 0.2, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(SEED)
    return Separate(start.model, critic, moves=some["anchoring"].kind == "ema", chunk_tokens=16)


def made(
    out: Path,
    changes: Mapping[str, Any] | None = None,
    *,
    whiten: str = "batch",
    unfinished: float | None = -1.0,
    rule: Any = None,
    guard: str | None = None,
    how: Engine | None = None,
    lora: int = 0,
    shared: int = 0,
    count: int = 11,
    **course: Any,
) -> Made:
    """A whole run, the same at every call; ``course`` replaces parts of it."""
    out.mkdir(parents=True, exist_ok=True)
    some = numbers(changes)
    who = learner(changes, how, lora=lora, shared=shared)
    reward = Reward(rule or Letters(), whiten=whiten, unfinished=unfinished, length_penalty=0.01)  # type: ignore[arg-type]
    acting = Policy(who.roles.policy, tokenizer(), "gemma2")  # type: ignore[arg-type]
    held = [question(100 + number) for number in range(some["watching"].prompts)]
    start = model().requires_grad_(False)
    plain = Course(
        policy=acting,
        prompts=[question(number) for number in range(count)],
        reward=reward,
        held_out=HeldOut(held, reward, {"short": Short()}, start, acting, some["drawing"], "cpu"),
        drawer=OwnDrawer(acting.stop_ids if some["drawing"].stop else (), acting.tokenizer.pad_id),
        guard=guard,
        starts_at_anchor=True,
        seed=SEED,
        out=out,
        **{name: some[name] for name in ("drawing", "estimating", "anchoring", "updating", "watching")},
    )
    tracker = Tracker(TrackerSettings(wandb="off", project="test", every=1, upload="none"), out, {})
    return Made(replace(plain, **course), who, Records(tracker, out))


def weights(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all weights by name."""
    return {name: weight.detach().clone() for name, weight in module.named_parameters()}


def anchor(who: Learner) -> nn.Module:
    """The model to which the policy is held."""
    return who.roles._anchor[0]  # type: ignore[union-attr,index]


def apart(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> float:
    """The largest difference between two sets of weights."""
    assert some.keys() == others.keys()
    return max(float((some[name] - others[name]).abs().max()) for name in some)


def same(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    """Bit for bit."""
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


LENGTHS = (3, 7, 1, 5, 9, 2, 6, 6)


def episodes(lengths: Sequence[int] = LENGTHS, samples: int = 2, seed: int = 0, width: int | None = None) -> Episodes:
    """Invented ones: random answers, log-probabilities near the policy's, and something else behind every end."""
    rng = np.random.default_rng(seed)
    groups = len(lengths) // samples
    answers = [rng.integers(20, tokenizer().vocab_size, length).tolist() for length in lengths]
    asked = [question(number) for number in range(groups)]
    width = width or max(lengths)
    mask_BT = padded([[1.0] * length for length in lengths], width, "cpu").bool()

    def invented(scale: float) -> Tensor:
        return torch.from_numpy(rng.normal(0, scale, mask_BT.shape)).float()

    return Episodes(
        prompts=asked,
        prompt_ids=[prompt_ids(one.messages, tokenizer()) for one in asked],
        samples=samples,
        answers=answers,
        texts=["" for _ in answers],
        finished=[True] * len(answers),
        drawn_BT=invented(1.0),
        mask_BT=mask_BT,
        old_BT=invented(1.0),
        anchor_BT=invented(1.0),
        values_BT=invented(1.0),
    )
