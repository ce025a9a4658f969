"""A reward model as a scorer: Gemma's trunk with a scalar head, reading turns in its own chat schema.

Answers to one prompt share its computation (``gemma/branches.py``). Every answer is closed as training closed it, in
one place (``chat/render.py``), so the score is read where training ended, whoever drew the answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from alignment.artifacts import Artifact
from alignment.chat.render import answer_ids, prompt_ids
from alignment.chat.tokenizers import Tokenizer
from alignment.chat.types import Messages
from alignment.errors import UserError
from alignment.gemma import branches, heads
from alignment.gemma.branches import Tree
from alignment.scoring.scorer import Scores, name_of, sigmoid
from alignment.training.policies import vocabulary_of

if TYPE_CHECKING:
    from alignment.training.engine import Engine

TOKENS_A_BATCH = {"cpu": 2_048, "cuda": 16_384}
"""By device. A CPU is quickest while a batch fits its caches (mini: 2,048 tokens 129 dialogues/s, 4,096: 105)."""


class RewardScorer:
    """Raw scores are the model's logits, as vanilla transformers gives them; reported ones are centred.

    ``tokens_a_batch`` bounds the tokens of one forward pass, a longer row apart; None takes what suits the device.
    It changes rounding and nothing else.
    """

    def __init__(
        self,
        name: str,
        model: heads.RewardModel,
        tokenizer: Tokenizer,
        scale: heads.Scale,
        engine: Engine,
        tokens_a_batch: int | None = None,
    ) -> None:
        self.name, self.model, self.tokenizer, self.scale = name, model, tokenizer, scale
        self.absolute = scale.absolute
        self._engine, self._tokens = engine, tokens_a_batch or TOKENS_A_BATCH[engine.device]

    @classmethod
    def load(cls, artifact: Artifact, engine: Engine) -> RewardScorer:
        """One of ours, or a foreign directory of the same layout, which is not centred and not absolute.

        Raises :class:`UserError` for a model without its head or with another one, and where its parts do not fit.
        """
        tokenizer, schema = vocabulary_of(artifact, shape=None, schema="auto")
        model, scale = heads.load_reward(artifact.path, ours=artifact.kind == "reward", device=engine.device)
        return cls(name_of(artifact), model, tokenizer, scale or heads.Scale(0.0, False, schema), engine)

    def score(self, dialogues: Sequence[Messages]) -> Scores:
        """As the protocol says. Raises :class:`UserError` for a dialogue that the model cannot see whole."""
        raw = [0.0] * len(dialogues)
        share = branches.shares_prompts(self.model)
        for batch in _batches(self._trees(dialogues), self._tokens):
            places = [place for _, some in batch for place in some]
            lines = branches.lay_out([tree for tree, _ in batch], pad_id=self.tokenizer.pad_id, share=share)
            for place, value in zip(places, self._forward(lines), strict=True):
                raw[place] = self._checked(value, place)
        return Scores(raw, [value - self.scale.centre for value in raw], [sigmoid(value) for value in raw])

    def fits(self, turns: Messages) -> bool:
        """Whether the model can see a dialogue whole."""
        return fits(turns, self.tokenizer, self.scale.schema, self.model.config.max_position_embeddings)

    def _forward(self, lines: branches.Lines) -> list[float]:
        device, bf16 = self._engine.device, self._engine.bf16 and self._engine.device != "cpu"
        placed = {name: values.to(device) for name, values in lines.items()}
        with torch.inference_mode(), torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
            return branches.scores(self.model, placed).tolist()

    def _trees(self, dialogues: Sequence[Messages]) -> list[tuple[Tree, list[int]]]:
        """Each prompt with its answers, and their places among the dialogues."""
        groups: dict[Messages, list[int]] = {}
        for place, turns in enumerate(dialogues):
            assert turns[-1].role == "assistant", "a dialogue to score ends with the assistant"
            groups.setdefault(turns[:-1], []).append(place)
        trees: list[tuple[Tree, list[int]]] = []
        for turns, places in groups.items():
            prompt = prompt_ids(turns, self.tokenizer)
            answers = [answer_ids(dialogues[place][-1].content, self.tokenizer, self.scale.schema) for place in places]
            for place, answer in zip(places, answers, strict=True):
                self._check_length(len(prompt) + len(answer), place)
            trees += _parted(prompt, answers, places)
        return trees

    def _check_length(self, tokens: int, place: int) -> None:
        limit = self.model.config.max_position_embeddings
        if tokens > limit:
            raise UserError(
                f"{self.name}: dialogue {place} has {tokens:,} tokens, and the model sees {limit:,} at once",
                remedy="Leave out what is so long, or choose a scorer with a longer context.",
            )

    def _checked(self, value: float, place: int) -> float:
        if math.isfinite(value):
            return value
        raise UserError(
            f"{self.name}: gives the score {value} to dialogue {place}",
            cause="A score has to be a finite number.",
            remedy="A broken checkpoint does this, or an overflow: try engine.precision=fp32.",
        )


def fits(turns: Messages, tokenizer: Tokenizer, schema: str, limit: int) -> bool:
    """Whether a dialogue that ends with the assistant has at most ``limit`` tokens."""
    ids = prompt_ids(turns[:-1], tokenizer)
    return len(ids) + len(answer_ids(turns[-1].content, tokenizer, schema)) <= limit


def _parted(prompt: list[int], answers: list[list[int]], places: list[int]) -> Iterator[tuple[Tree, list[int]]]:
    """A prompt with all its answers as trees of bounded width, whatever their number: attention is quadratic in it.

    Twice what the longest answer needs by itself leaves room for any two of them.
    """
    width = 2 * (len(prompt) + max(map(len, answers)))
    some: list[int] = []
    tokens = len(prompt)
    for number, answer in enumerate(answers):
        if some and tokens + len(answer) > width:
            yield Tree(prompt, [answers[one] for one in some]), [places[one] for one in some]
            some, tokens = [], len(prompt)
        some.append(number)
        tokens += len(answer)
    yield Tree(prompt, [answers[one] for one in some]), [places[one] for one in some]


def _batches(trees: list[tuple[Tree, list[int]]], tokens: int) -> Iterator[list[tuple[Tree, list[int]]]]:
    """Trees of like length together, the longest first, of at most ``tokens`` tokens unless one alone has more."""
    batch: list[tuple[Tree, list[int]]] = []
    held = 0
    for one in sorted(trees, key=lambda one: (-one[0].tokens, one[1])):
        if batch and held + one[0].tokens > tokens:
            yield batch
            batch, held = [], 0
        batch.append(one)
        held += one[0].tokens
    if batch:
        yield batch
