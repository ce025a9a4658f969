"""A model that knows no chat, as a respondent: turns are written out as text, and it goes on from there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from alignment.chat.render import answer_text, stop_ids
from alignment.chat.tokenizers import Tokenizer
from alignment.chat.transcript import Transcript, encoded
from alignment.chat.types import Messages
from alignment.sampling.decoding import Decoding, Reply
from alignment.sampling.sampler import Sampler


class TextRespondent:
    """Draws continuations of what was said; an answer ends where the model would have the user speak again."""

    def __init__(self, name: str, model: nn.Module, tokenizer: Tokenizer, transcript: Transcript) -> None:
        self.name, self.tokenizer, self.transcript = name, tokenizer, transcript
        self._sampler = Sampler(model, stop_ids=stop_ids(tokenizer), pad_id=tokenizer.pad_id)

    def reply(
        self,
        prompts: Sequence[Messages],
        keys: Sequence[str],
        decoding: Decoding,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[Reply]]:
        """As the protocol says. Raises :class:`UserError` for a prompt that leaves no room for an answer."""
        answers = self._sampler.draw(
            [[self.tokenizer.bos_id, *encoded(self.transcript.written(turns), self.tokenizer)] for turns in prompts],
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
            drawn = Reply(answer_text(answer.ids, self.tokenizer), len(answer.ids), answer.finished)
            kept = up_to(f"\n{self.transcript.user}", drawn, self.tokenizer)
            replies[answer.prompt].append(Reply(kept.text.strip(), kept.tokens, kept.finished))
        return replies


def up_to(end: str, reply: Reply, tokenizer: Tokenizer) -> Reply:
    """What stands before ``end``, with the tokens of that; the whole where it does not come."""
    before, found, _ = reply.text.partition(end)
    return Reply(before, len(encoded(before, tokenizer)), finished=True) if found else reply
