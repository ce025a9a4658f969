"""A model that knows no chat, as a respondent: turns are written out as text, and it goes on from there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from alignment.chat.tokenizers import Tokenizer
from alignment.chat.transcript import Transcript, encoded
from alignment.chat.types import Messages
from alignment.sampling.decoding import Decoding, Reply
from alignment.sampling.model_respondent import ModelRespondent


class TextRespondent(ModelRespondent):
    """Draws continuations of what was said; an answer ends where the model would have the user speak again."""

    def __init__(self, name: str, model: nn.Module, tokenizer: Tokenizer, transcript: Transcript) -> None:
        super().__init__(name, model, tokenizer)
        self.transcript = transcript

    def asked(self, turns: Messages) -> list[int]:
        """The turns as text, behind the token that begins one."""
        return [self.tokenizer.bos_id, *encoded(self.transcript.written(turns), self.tokenizer)]

    def reply(
        self,
        prompts: Sequence[Messages],
        keys: Sequence[str],
        decoding: Decoding,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[Reply]]:
        """As the protocol says, without ids. Raises :class:`UserError` for a prompt that leaves no room."""
        return [[self._kept(one) for one in some] for some in super().reply(prompts, keys, decoding, on_progress)]

    def _kept(self, drawn: Reply) -> Reply:
        kept = up_to(f"\n{self.transcript.user}", drawn, self.tokenizer)
        return Reply(kept.text.strip(), kept.tokens, kept.finished)


def up_to(end: str, reply: Reply, tokenizer: Tokenizer) -> Reply:
    """What stands before ``end``, with the tokens of that; the whole where it does not come."""
    before, found, _ = reply.text.partition(end)
    return Reply(before, len(encoded(before, tokenizer)), finished=True) if found else reply
