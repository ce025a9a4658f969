"""The model that a suite examines: here or behind a server, asked in parts that are kept.

What was answered before a stop is not asked again, and what a server has answered is not paid for twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from alignment import console, parts
from alignment.artifacts import Artifact
from alignment.chat.types import Messages, Prompt, row_key
from alignment.errors import UserError
from alignment.sampling.decoding import Decoding, Reply, Respondent
from alignment.sampling.endpoint import EndpointSettings

if TYPE_CHECKING:
    from alignment.chat.transcript import Transcript
    from alignment.data.rows import Split
    from alignment.training.engine import Engine
    from alignment.training.policies import Policy

PART = 256
"""Prompts that are answered, and then kept, together."""
JOURNAL = f"{parts.FOLDER}/journal.jsonl"
JUDGED = f"{parts.FOLDER}/judge.jsonl"

Item = TypeVar("Item")
Row = tuple[Sequence[int], Sequence[bool]]
"""Ids, and which of them are to be told."""


class Asked(NamedTuple):
    """What the model is asked: turns that end with the user. ``key`` decides the noise, together with the seed."""

    key: str
    turns: Messages


class Continued(NamedTuple):
    """Ids that the model goes on from, outside of any chat. ``key`` decides the noise, together with the seed."""

    key: str
    ids: list[int]


class Likelihood(NamedTuple):
    """Of a continuation: Σ −log p over its tokens, in nats, and how many they are."""

    nll: float
    tokens: int


class Subject:
    """One model under examination. ``out`` is the folder of the artifact that is made."""

    def __init__(
        self,
        artifact: Artifact,
        engine: Engine,
        endpoint: EndpointSettings,
        out: Path,
        transcript: Transcript | None = None,
    ) -> None:
        """``transcript`` says how turns are written out for it; null asks in a chat."""
        self.artifact, self.engine, self.out = artifact.need("policy", "endpoint", "foreign"), engine, out
        self._endpoint, self._transcript = endpoint, transcript

    def in_text(self, transcript: Transcript) -> Subject:
        """The same model, asked outside of any chat. Raises :class:`UserError` for one behind a server."""
        self.need_here()
        return Subject(self.artifact, self.engine, self._endpoint, self.out, transcript)

    @property
    def served(self) -> bool:
        """Whether it stands behind a server, of which only answers can be had."""
        return self.artifact.kind == "endpoint"

    @property
    def chats(self) -> bool:
        """Whether it has a chat format, and is asked in it."""
        from alignment.chat.template import has_chat_template

        return self._transcript is None and (self.served or has_chat_template(self.artifact.path))

    @cached_property
    def policy(self) -> Policy:
        """The model in memory. Raises :class:`UserError` for one behind a server."""
        from alignment.training.policies import open_policy

        self.need_here()
        return open_policy(self.artifact, self.engine)

    @cached_property
    def respondent(self) -> Respondent:
        """Who answers, in chat format or as text. Raises :class:`UserError` for a model without the former."""
        from alignment.sampling.model_respondent import ModelRespondent
        from alignment.sampling.text_respondent import TextRespondent
        from alignment.scoring.opening import open_respondent

        if self.served:
            return open_respondent(self.artifact, self.engine, self._endpoint, self.out / JOURNAL)
        name = self.artifact.step or self.artifact.path.name
        if self._transcript is not None:
            return TextRespondent(name, self.policy.model, self.policy.tokenizer, self._transcript)
        self.need_chat()
        return ModelRespondent(name, self.policy.model, self.policy.tokenizer)

    def judge(self, artifact: Artifact, at: str) -> Respondent:
        """Another model, here or behind a server, that says in words what it thinks of answers; ``at`` names it."""
        from alignment.scoring.opening import open_respondent

        return open_respondent(artifact, self.engine, self._endpoint, self.out / JUDGED, at=at)

    def need_here(self) -> None:
        """Raise :class:`UserError` for a model behind a server, of which the suite needs more than answers."""
        if self.served:
            raise UserError(
                f"model={self.artifact.step}: is behind a server",
                cause="This suite reads probabilities, or text outside of a chat, which a server does not give.",
                remedy="Name a model that lies here, or leave the suite out.",
            )

    def need_chat(self, otherwise: str = "name a model that was tuned to chat") -> None:
        """Raise :class:`UserError` for a model that has no chat format."""
        from alignment.scoring.opening import need_chat

        need_chat(self.artifact, otherwise=otherwise)

    def prompts(self, dataset: Artifact, split: Split, count: int | None) -> list[Prompt]:
        """The first prompts of a split. Raises :class:`UserError` where there are none, and where it has seen one."""
        from alignment.data import store

        found = []
        for row in islice(store.stream(dataset.need("dataset").path, split), count):
            if not isinstance(row, Prompt):
                raise UserError(
                    f"{dataset.path} holds no prompts", remedy="Give a dataset whose recipe has kind: prompts."
                )
            found.append(row)
        if not found:
            raise UserError(
                f"{dataset.path} has no prompt in its split {split}",
                remedy="Say the other split, valid or test; the recipe's `splits` say how rows are divided.",
            )
        self.refuse_seen(map(row_key, found))
        return found

    def refuse_seen(self, keys: Iterable[str]) -> None:
        """Raise :class:`UserError` where the model was trained on a prompt with one of these keys."""
        from alignment.data import seen

        if not self.served:
            seen.refuse_overlap(self.artifact.path, keys)

    def need_room(self, turns: Sequence[Messages], keys: Sequence[str], decoding: Decoding) -> None:
        """Raise :class:`UserError` for a prompt that leaves no room for an answer; a server says so itself."""
        from alignment.sampling.model_respondent import ModelRespondent

        if isinstance(self.respondent, ModelRespondent):
            self.respondent.need_room(turns, keys, decoding.max_new_tokens)

    def replies(self, title: str, asked: Sequence[Asked], decoding: Decoding) -> list[list[Reply]]:
        """``decoding.samples`` answers to each prompt, drawn in parts that are kept. ``title`` names them."""
        # All of them now, and not each when its part comes: with other lengths it is another artifact.
        self.need_room([one.turns for one in asked], [one.key for one in asked], decoding)
        with console.progress(title, len(asked) * decoding.samples, "answers") as progress:

            def draw(some: Sequence[Asked]) -> parts.Rows:
                before = progress.done
                drawn = self.respondent.reply(
                    [one.turns for one in some],
                    [one.key for one in some],
                    decoding,
                    lambda done: progress.advance(before + done - progress.done),
                )
                return [{"replies": [[one.text, one.tokens, one.finished] for one in samples]} for samples in drawn]

            done = 0

            def told(some: int, before: bool) -> None:
                nonlocal done
                done += some * decoding.samples
                progress.begin_at(done) if before else progress.advance(done - progress.done)

            rows = parts.in_parts(self.out, title, asked, PART, draw, told)
            return [[Reply(*reply) for reply in row["replies"]] for row in rows]

    def continuations(self, title: str, given: Sequence[Continued], decoding: Decoding) -> list[list[Reply]]:
        """``decoding.samples`` continuations of each row of ids, outside of any chat, in parts that are kept."""
        from alignment.chat.render import answer_text
        from alignment.sampling.sampler import Sampler

        policy = self.policy
        sampler = Sampler(policy.model, stop_ids=policy.stop_ids, pad_id=policy.tokenizer.pad_id)
        sampler.need_room([one.ids for one in given], [one.key for one in given], decoding.max_new_tokens)

        def draw(some: Sequence[Continued]) -> parts.Rows:
            drawn = sampler.draw(
                [one.ids for one in some],
                [one.key for one in some],
                samples=decoding.samples,
                temperature=decoding.temperature,
                top_p=decoding.top_p,
                max_new_tokens=decoding.max_new_tokens,
                seed=decoding.seed,
            )
            rows: parts.Rows = [{"replies": []} for _ in some]
            for one in drawn:
                said = [answer_text(one.ids, policy.tokenizer), len(one.ids), one.finished]
                rows[one.prompt]["replies"].append(said)
            return rows

        return [[Reply(*reply) for reply in row["replies"]] for row in self.in_parts(title, given, draw)]

    def likelihoods(self, title: str, rows: Sequence[Row]) -> list[Likelihood]:
        """Σ −log p of every row's tokens under its mask, (ids, mask) as ``chat.render.render`` gives them."""

        def read(some: Sequence[Row]) -> parts.Rows:
            return [one._asdict() for one in self.read(some)]

        return [Likelihood(row["nll"], row["tokens"]) for row in self.in_parts(title, rows, read)]

    def read(self, rows: Sequence[Row], names: Sequence[str] | None = None) -> list[Likelihood]:
        """The same without keeping anything. Raises :class:`UserError` for a row that the model cannot see whole."""
        from alignment.training.held_out import held_out
        from alignment.training.rows import TokenRows

        policy = self.policy
        for place, (ids, _) in enumerate(rows):
            if len(ids) > policy.tokens_limit:
                raise UserError(
                    f"{names[place] if names else f'row {place + 1}'}: {len(ids):,} tokens, and the model sees "
                    f"{policy.tokens_limit:,}",
                    remedy="Say fewer worked questions (suite.shots), or leave out what is so long in the recipe.",
                )
        loss = held_out(policy.model, TokenRows.gather(rows), pad_id=policy.tokenizer.pad_id, engine=self.engine)
        return [Likelihood(nll, tokens) for nll, tokens in zip(loss.nll.tolist(), loss.tokens.tolist(), strict=True)]

    def in_parts(
        self, title: str, items: Sequence[Item], work: Callable[[Sequence[Item]], parts.Rows], size: int = PART
    ) -> Iterator[dict[str, Any]]:
        """``parts.in_parts`` with progress in items."""
        with console.progress(title, len(items), "examples") as progress:
            done = 0

            def told(some: int, before: bool) -> None:
                nonlocal done
                done += some
                progress.begin_at(done) if before else progress.advance(some)

            yield from parts.in_parts(self.out, title, items, size, work, told)
