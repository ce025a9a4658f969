"""A model of ours as a respondent."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from alignment.chat.render import answer_text, prompt_ids, stop_ids
from alignment.chat.tokenizers import Tokenizer
from alignment.chat.types import Messages
from alignment.sampling.decoding import Decoding, Reply
from alignment.sampling.sampler import Sampler


class ModelRespondent:
    """Draws answers with the one sampler."""

    def __init__(self, name: str, model: nn.Module, tokenizer: Tokenizer) -> None:
        self.name, self.model, self.tokenizer = name, model, tokenizer
        self._sampler = Sampler(model, stop_ids=stop_ids(tokenizer), pad_id=tokenizer.pad_id)

    def asked(self, turns: Messages) -> list[int]:
        """What the model goes on from."""
        return prompt_ids(turns, self.tokenizer)

    def need_room(self, prompts: Sequence[Messages], keys: Sequence[str], max_new_tokens: int) -> None:
        """Raise :class:`UserError` for a prompt that leaves no room for an answer, before any is drawn."""
        self._sampler.need_room([self.asked(turns) for turns in prompts], keys, max_new_tokens)

    def reply(
        self,
        prompts: Sequence[Messages],
        keys: Sequence[str],
        decoding: Decoding,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[Reply]]:
        """As the protocol says. Raises :class:`UserError` for a prompt that leaves no room for an answer."""
        answers = self._sampler.draw(
            [self.asked(turns) for turns in prompts],
            keys,
            samples=decoding.samples,
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            max_new_tokens=decoding.max_new_tokens,
            seed=decoding.seed,
            on_progress=None if on_progress is None else lambda done, _: on_progress(done),
        )
        replies: list[list[Reply]] = [[] for _ in prompts]
        for answer in answers:
            text = answer_text(answer.ids, self.tokenizer)
            ids, logprob = tuple(answer.ids), float(sum(answer.logprobs))
            replies[answer.prompt].append(Reply(text, len(ids), answer.finished, ids, logprob))
        return replies
