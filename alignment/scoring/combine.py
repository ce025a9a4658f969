"""What a policy is rewarded with: one scorer, a weighted sum of several, or Llama 2's rule of helpfulness and safety.

The combined score is whitened, an answer that did not come to its end gets a constant in its place, and length is paid
for last. Every part is kept by name. Axes: N answers of this process; ``gather`` gives those of all processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
from pydantic import ValidationInfo, field_validator

from alignment.artifacts import Artifact
from alignment.chat.types import Message, Messages, Prompt
from alignment.errors import UserError
from alignment.scoring.opening import ClassifierReading, open_scorer
from alignment.scoring.scorer import Scorer, Scores, threshold
from alignment.scoring.whitening import Scope, Whitening
from alignment.settings import Settings, identity, reference

if TYPE_CHECKING:
    from alignment.miniature.world import World
    from alignment.training.engine import Engine

SAFETY_BELOW = 0.15
"""σ(R_s) below which safety decides, whatever the prompt (Llama 2, arXiv 2307.09288, §3.2.3)."""
SAFETY_TAGS = frozenset({"unsafe", "safety"})
"""A prompt with one of these tags is judged by safety; so is one with a category of the taxonomy."""

Parts = dict[str, np.ndarray]
Gather = Callable[[np.ndarray], np.ndarray]
"""The values of all processes, in one row, from those of this one; every process calls it once a batch."""


def alone(values_N: np.ndarray) -> np.ndarray:
    """``Gather`` where there is one process."""
    return values_N


class RewardSettings(Settings):
    """``reward`` of ``stage=rl`` and ``stage=reject``."""

    rule: Literal["single", "weighted", "llama2"] = identity("how scores become one")
    model: str = reference("the scorer; of several the first, under llama2 the helpfulness reward")
    safety: str | None = reference("llama2: the safety reward; null under the other rules")
    others: list[str] | None = reference("weighted: the other scorers, [a,b,…]; null under the other rules")
    weights: list[float] | None = identity("weighted: of the model and the others, in that order; null elsewhere")
    safety_below: float | None = identity(
        f"llama2: probability of being safe below which safety decides; null is {SAFETY_BELOW}, for a safety reward "
        "with thresholds of its own (trained with the safety loss)",
        ge=0,
        le=1,
    )
    whiten: Scope = identity("whiten the combined score: over each batch, by running statistics, or not")
    unfinished: float | None = identity(
        "what an answer without a terminator gets in place of its whitened score; null leaves it its score",
        allow_inf_nan=False,
    )
    length_penalty: float = identity("subtracted for every token, after whitening", ge=0, allow_inf_nan=False)
    classifier: ClassifierReading = identity("how classifiers among the scorers are read")

    @field_validator("safety", "others", "weights", "safety_below")
    @classmethod
    def _fits_the_rule(cls, value: Any, info: ValidationInfo) -> Any:
        """What a rule needs is there, and nothing that it would not look at."""
        rule, name = info.data.get("rule"), info.field_name
        of = "weighted" if name in ("others", "weights") else "llama2"
        if rule not in (of, None) and value is not None:
            raise UserError(f"rule={rule} has no use for it", remedy=f"Say null, or rule={of}.")
        if rule == of and not value and name != "safety_below":
            raise UserError(f"rule={rule} needs it", remedy="Give it, or choose rule=single.")
        if name == "weights" and value:
            _check_weights(value, info.data.get("others"))
        return value


def _check_weights(weights: list[float], others: list[str] | None) -> None:
    if others is not None and len(weights) != 1 + len(others):
        raise UserError(
            f"{1 + len(others)} weights are needed",
            cause=f"There are the model and {len(others)} others.",
            remedy="Give one for each, that of the model first.",
        )
    if not all(map(math.isfinite, weights)) or not all(weights):
        raise UserError(
            "a weight has to be a finite number other than 0", remedy="Leave out a scorer that is not to count."
        )


class Scored(NamedTuple):
    """What the scorers say of the answers of this process, before anything is known of the others'."""

    score: np.ndarray
    parts: Parts
    tokens: np.ndarray
    finished: np.ndarray


class Judged(NamedTuple):
    """``total`` is what is optimised; ``score`` the combined score as the rule gives it, which compares answers.

    Parts, each an array [N] of float64: every scorer by its name (under llama2 ``helpfulness``, ``safety``,
    ``safety_probability`` and ``by_safety``, 1 where safety decided); ``whitened``, where scores are, and 0 where a
    constant took the answer's place; ``unfinished`` (1 or 0); ``length_penalty``, what was subtracted; ``constant``,
    1 in a batch whose scores are all the same, from which nothing can be learned.
    """

    total: np.ndarray
    score: np.ndarray
    parts: Parts


class Rule(Protocol):
    """How the scores of an answer become one."""

    def __call__(self, prompts: Sequence[Prompt], dialogues: Sequence[Messages]) -> tuple[np.ndarray, Parts]:
        """``score_N`` and the parts it is made of."""
        ...


class Weighted:
    """Σ weight · reported score: of a reward model its centred score, of gold, checks and classifiers a probability."""

    def __init__(self, scorers: Sequence[Scorer], weights: Sequence[float]) -> None:
        self._scorers, self._weights = dict(zip(_names(scorers), scorers, strict=True)), weights

    def __call__(self, prompts: Sequence[Prompt], dialogues: Sequence[Messages]) -> tuple[np.ndarray, Parts]:
        parts = {name: _asked(scorer, prompts, dialogues).reported for name, scorer in self._scorers.items()}
        score_N = sum(weight * np.asarray(part) for weight, part in zip(self._weights, parts.values(), strict=True))
        return np.asarray(score_N), {name: np.asarray(part) for name, part in parts.items()}


class Llama2:
    """R_c = R_s where the prompt is tagged safety or σ(R_s) is below the threshold, otherwise R_h (§3.2.3).

    Both are logits, those of a reward model centred; the threshold reads the safety reward's probability, which no
    centre moves. Raises :class:`UserError` for a safety reward that has no threshold of its own where none is given.
    """

    def __init__(self, helpfulness: Scorer, safety: Scorer, below: float | None) -> None:
        self._helpfulness, self._safety = helpfulness, safety
        self._below = threshold(safety, below, SAFETY_BELOW)

    def __call__(self, prompts: Sequence[Prompt], dialogues: Sequence[Messages]) -> tuple[np.ndarray, Parts]:
        helpful = _asked(self._helpfulness, prompts, dialogues)
        safe = _asked(self._safety, prompts, dialogues)
        helpfulness_N, safety_N = np.asarray(helpful.logits), np.asarray(safe.logits)
        probability_N = np.asarray(safe.probability)
        by_safety_N = np.array([is_safety(prompt) for prompt in prompts], dtype=bool) | (probability_N < self._below)
        parts = {
            "helpfulness": helpfulness_N,
            "safety": safety_N,
            "safety_probability": probability_N,
            "by_safety": by_safety_N.astype(np.float64),
        }
        return np.where(by_safety_N, safety_N, helpfulness_N), parts


class Reward:
    """A rule, and what becomes of its score. ``state`` holds the running statistics, where there are any."""

    def __init__(self, rule: Rule, *, whiten: Scope, unfinished: float | None, length_penalty: float) -> None:
        self._rule, self._whitening = rule, Whitening(whiten)
        self._unfinished, self._length_penalty = unfinished, length_penalty

    def judge(
        self, prompts: Sequence[Prompt], answers: Sequence[str], tokens: Sequence[int], finished: Sequence[bool]
    ) -> Judged:
        """:meth:`score` and :meth:`shape` of a batch that one process holds."""
        return self.shape(self.score(prompts, answers, tokens, finished), alone)

    def score(
        self, prompts: Sequence[Prompt], answers: Sequence[str], tokens: Sequence[int], finished: Sequence[bool]
    ) -> Scored:
        """Ask the scorers. ``tokens`` counts those of each answer, and ``finished`` says whether one of them ended it.

        The sampler knows that, by every stop id: no text is searched for a terminator, which a prompt may hold too.
        Raises :class:`UserError` for a score that is not finite.
        """
        dialogues = [
            (*prompt.messages, Message("assistant", answer)) for prompt, answer in zip(prompts, answers, strict=True)
        ]
        score_N, parts = self._rule(prompts, dialogues)
        counts_N, finished_N = np.asarray(tokens, dtype=np.int64), np.asarray(finished, dtype=bool)
        assert score_N.shape == counts_N.shape == finished_N.shape, "one number of each kind for every answer"
        return Scored(score_N.astype(np.float64), parts, counts_N, finished_N)

    def shape(self, scored: Scored, gather: Gather) -> Judged:
        """Whiten by the statistics of the whole batch, put the constant where it belongs, subtract for length.

        Answers that get the constant have no say in the statistics.
        """
        score_N = scored.score
        counts_N = np.ones_like(scored.finished) if self._unfinished is None else scored.finished
        # One exchange for both: NaN marks a score that has no say.
        everywhere_N = gather(np.where(counts_N, score_N, np.nan))
        everyone = len(everywhere_N)
        everywhere_N = everywhere_N[~np.isnan(everywhere_N)]
        # Where all scores are the same, an answer that got the constant may still differ from the others.
        apart = len(everywhere_N) and len(everywhere_N) < everyone and self._unfinished != 0
        constant = not len(everywhere_N) or (everywhere_N.min() == everywhere_N.max() and not apart)
        whitened_N = np.where(counts_N, self._whitening(score_N, everywhere_N), 0.0)
        penalty_N = self._length_penalty * scored.tokens
        parts = dict(scored.parts)
        if self._whitening.scope != "none":
            parts["whitened"] = whitened_N
        parts["unfinished"] = (~scored.finished).astype(np.float64)
        parts["length_penalty"] = penalty_N.astype(np.float64)
        parts["constant"] = np.full(len(score_N), float(constant))
        total_N = np.where(counts_N, whitened_N, self._unfinished or 0.0) - penalty_N
        return Judged(total_N, score_N, parts)

    def state(self) -> dict[str, Any]:
        """As JSON can hold it; a run that goes on with it whitens to the same bits."""
        return self._whitening.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state` was taken."""
        self._whitening.load_state(state)


def is_safety(prompt: Prompt) -> bool:
    """Whether Llama 2 would have tagged a prompt as one that safety judges."""
    return prompt.category is not None or not SAFETY_TAGS.isdisjoint(prompt.tags)


def open_reward(
    settings: RewardSettings,
    inputs: Mapping[str, Artifact],
    engine: Engine,
    prompts: Sequence[Prompt],
    world: World | None,
    ready: Mapping[str, Scorer] | None = None,
) -> Reward:
    """The reward that the settings describe; ``inputs`` holds ``reward.model``, ``reward.safety``, ``reward.others.0``.

    ``prompts`` are all that will be asked: checks read their references. ``world`` is the miniature's, where they come
    from it. ``ready`` holds scorers that are open already, by their keys (``model``). Raises :class:`UserError` for
    what gives no scores, and as the scorers do.
    """

    def opened(key: str) -> Scorer:
        if ready and key in ready:
            return ready[key]
        artifact = inputs[f"reward.{key}"].need("reward", "gold", "check", "remote")
        reading = settings.classifier
        return open_scorer(artifact, engine, world, label=reading.label, text=reading.text, prompts=prompts)

    if settings.rule == "llama2":
        rule: Rule = Llama2(opened("model"), opened("safety"), settings.safety_below)
    else:
        others = [opened(f"others.{place}") for place in range(len(settings.others or []))]
        rule = Weighted([opened("model"), *others], settings.weights or [1.0])
    return Reward(
        rule,
        whiten=settings.whiten,
        unfinished=settings.unfinished,
        length_penalty=settings.length_penalty,
    )


def _asked(scorer: Scorer, prompts: Sequence[Prompt], dialogues: Sequence[Messages]) -> Scores:
    """The scores of one scorer, all of them finite."""
    scores = scorer.score(dialogues)
    for values in (scores.reported, scores.probability):
        wrong = next((place for place, value in enumerate(values) if not math.isfinite(value)), None)
        if wrong is not None:
            raise UserError(
                f"{scorer.name}: gives the score {values[wrong]} to an answer to {prompts[wrong].id}",
                cause="A reward has to be a finite number.",
                remedy="A broken checkpoint does this, or an overflow: try engine.precision=fp32.",
            )
    return scores


def _names(scorers: Sequence[Scorer]) -> list[str]:
    """What the scorers are called; of several with one name, each with its place."""
    names = [scorer.name for scorer in scorers]
    return [name if names.count(name) == 1 else f"{name}.{place}" for place, name in enumerate(names)]
