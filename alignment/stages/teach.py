"""Have a teacher answer prompts: conversations to learn from (behavioural cloning), and what else it would have said.

Some prompts are answered under guidance that the stored rows do not carry: in-context attribution, hedging, refusal.
The Gemma 2 report (arXiv 2408.00118, §4) adds such a subset, for better factuality at no loss elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from alignment import console
from alignment.artifacts import Artifact, Outcome
from alignment.chat.types import Conversation, Message, Messages, Prompt
from alignment.errors import UserError
from alignment.parts import FOLDER, batches, in_parts
from alignment.sampling.decoding import Decoding, Reply
from alignment.sampling.endpoint import Endpoint, EndpointSettings
from alignment.settings import Settings as StrictSettings
from alignment.settings import execution, identity, reference, text
from alignment.training.engine import EngineSettings

if TYPE_CHECKING:
    from alignment.data.derive import Place
    from alignment.data.ledger import Verdict
    from alignment.sampling.decoding import Respondent
    from alignment.training.engine import Engine
    from alignment.training.policies import Policy

ALGORITHM_VERSION = 1
PART = 256
"""Prompts that are answered, and then kept, together."""


class Guide(StrictSettings):
    """What a teacher is told besides for some of the prompts."""

    name: str = identity("its rows are tagged with guided:<name>", min_length=1)
    tags: list[str] = identity("of the prompts that it is for: those with any of them", min_length=1)
    instruction: str = text("what stands before the first user message while the teacher answers", min_length=1)


class Settings(StrictSettings):
    """``stage=teach``."""

    prompts: str = reference("a dataset of prompts")
    teacher: str = reference("who answers: a policy, a folder of the same layout, or endpoint:<model>")
    splits: list[Literal["train", "valid", "test"]] = identity("its splits to take; rows stay in theirs", min_length=1)
    count: int | None = identity("prompts at most in each split, the first; null takes all", ge=1)
    guided: list[Guide] = identity("guidance by the prompts' tags, the first that fits; [] for none")
    unfinished: Literal["drop", "keep"] = identity("what becomes of answers that max_new_tokens has cut off")
    top_k: int = identity(
        "store the teacher's so many likeliest tokens with their log-probabilities for every token of the answers; "
        "0 for none",
        ge=0,
    )
    decoding: Decoding = identity("how answers are drawn; of several samples each becomes a row")
    endpoint: EndpointSettings = execution("how a server is asked, where the teacher is behind one")
    engine: EngineSettings = execution("where and how it runs")


class Asked(NamedTuple):
    """A prompt, and the turns that the teacher is given for it."""

    place: Place
    prompt: Prompt
    turns: Messages
    guide: Guide | None


@dataclass
class Seen:
    """What was drawn, whatever became of it."""

    answers: int = 0
    finished: int = 0
    tokens: int = 0
    guided: int = 0

    def add(self, asked: Asked, replies: Sequence[Reply]) -> None:
        """Count the answers to one prompt."""
        self.answers += len(replies)
        self.finished += sum(reply.finished for reply in replies)
        self.tokens += sum(reply.tokens for reply in replies)
        self.guided += asked.guide is not None

    def metrics(self) -> dict[str, float]:
        """The share of the answers that finished and their mean length; ``guided`` counts prompts."""
        return {
            "finished": self.finished / self.answers,
            "tokens": self.tokens / self.answers,
            "guided": float(self.guided),
        }


def run(settings: Settings, inputs: dict[str, Artifact], out: Path) -> Outcome:
    """Write a dataset of conversations, and with ``top_k`` the teacher's log-probabilities beside it (topk/)."""
    from alignment.scoring.opening import open_respondent
    from alignment.training.engine import resolve

    prompts = _check(settings, inputs)
    engine = resolve(settings.engine)
    teacher = open_respondent(inputs["teacher"], engine, settings.endpoint, out / FOLDER / "journal.jsonl")
    notes = {"kind": "conversations", "teacher": teacher.name}
    metrics = _write_answers(settings, inputs["prompts"], prompts, teacher, out)
    if isinstance(teacher, Endpoint):
        metrics["tokens_spent"] = float(teacher.spent)
    else:
        notes |= engine.notes()
    del teacher  # It is opened once more for its log-probabilities, and there may be no room for two.
    if settings.top_k:
        metrics["top_k_tokens"] = float(_store_top_k(settings, inputs["teacher"], engine, out))
    return Outcome("dataset", metrics, "rows", notes=notes)


def _check(settings: Settings, inputs: dict[str, Artifact]) -> int:
    """Refuse, before anything is opened, what could only end badly. Returns the number of prompts to ask."""
    from alignment.data import store
    from alignment.gemma import core

    card = store.card(inputs["prompts"].need("dataset").path)
    if card["kind"] != "prompts":
        raise UserError(
            f"prompts={settings.prompts}: holds {card['kind']}",
            cause="A teacher answers prompts.",
            remedy="Give a dataset whose recipe has kind: prompts.",
        )
    if len(set(settings.splits)) < len(settings.splits):
        raise UserError(f"splits={settings.splits}: names a split twice")
    teacher = inputs["teacher"].need("policy", "endpoint")
    if settings.top_k and teacher.kind == "endpoint":
        raise UserError(
            f"top_k={settings.top_k}: {settings.teacher} is behind a server",
            cause="Log-probabilities are computed from a model's weights, over ids that a student shares.",
            remedy="Say top_k=0, or name a teacher that is a model here.",
        )
    if settings.top_k and settings.top_k >= core.read_config(teacher.path).vocab_size:
        raise UserError(
            f"top_k={settings.top_k}: the teacher has no more than {core.read_config(teacher.path).vocab_size} pieces",
            remedy="64 hold nearly all of the probability.",
        )
    for split in settings.splits:
        if split not in card["rows"]:
            store.read(inputs["prompts"].path, split)  # It says which splits there are.
    rows = (card["rows"][split] for split in settings.splits)
    return sum(count if settings.count is None else min(count, settings.count) for count in rows)


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


def _write_answers(
    settings: Settings, dataset: Artifact, prompts: int, teacher: Respondent, out: Path
) -> dict[str, float]:
    """Draw the answers, in parts, and write the dataset; returns the metrics."""
    from alignment.data.derive import Derivation

    seen, samples, finished = Seen(), settings.decoding.samples, 0
    with (
        console.progress("teach", prompts * samples, "answers") as progress,
        Derivation(out, "conversations", made_by="teach", parents={"prompts": dataset}) as derivation,
    ):

        def work(some: Sequence[Asked]) -> list[dict[str, Any]]:
            return _draw(some, teacher, settings.decoding, progress)

        def done(some: int, before: bool) -> None:
            nonlocal finished
            finished += some * samples
            progress.begin_at(finished) if before else progress.advance(finished - progress.done)

        for split in settings.splits:
            drawn = in_parts(
                out, f"answers-{split}", islice(_asked(settings, dataset, split), settings.count), PART, work, done
            )
            for number, asked in enumerate(_asked(settings, dataset, split)):
                if settings.count is not None and number >= settings.count:
                    derivation.record(asked.place, [_beyond(asked)])
                    continue
                row = next(drawn)
                assert row["id"] == asked.prompt.id, "parts and prompts go side by side"
                replies = [Reply(*reply) for reply in row["replies"]]
                seen.add(asked, replies)
                derivation.record(asked.place, verdicts(asked, replies, settings.unfinished))
        return derivation.finish(teacher=teacher.name, top_k=settings.top_k) | seen.metrics()


def _asked(settings: Settings, dataset: Artifact, split: Literal["train", "valid", "test"]) -> Iterator[Asked]:
    """Every prompt of a split, in order; always the same."""
    from alignment.data import store
    from alignment.data.derive import Place

    for number, prompt in enumerate(store.stream(dataset.path, split), 1):
        assert isinstance(prompt, Prompt)
        guide = guide_for(prompt.tags, settings.guided)
        turns = prompt.messages if guide is None else guided(prompt.messages, guide.instruction)
        yield Asked(Place("prompts", split, number, prompt.id), prompt, turns, guide)


def guide_for(tags: Sequence[str], guides: Sequence[Guide]) -> Guide | None:
    """The first guide that is for one of ``tags``."""
    return next((guide for guide in guides if set(guide.tags) & set(tags)), None)


def guided(turns: Messages, instruction: str) -> Messages:
    """The turns with ``instruction`` before the first user message, a blank line between."""
    place = next(place for place, turn in enumerate(turns) if turn.role == "user")
    told = Message("user", f"{instruction}\n\n{turns[place].content}")
    return (*turns[:place], told, *turns[place + 1 :])


def _draw(
    some: Sequence[Asked], teacher: Respondent, decoding: Decoding, progress: console.Progress
) -> list[dict[str, Any]]:
    before = progress.done
    replies = teacher.reply(
        [asked.turns for asked in some],
        [asked.prompt.id for asked in some],
        decoding,
        lambda done: progress.advance(before + done - progress.done),
    )
    return [
        {"id": asked.prompt.id, "replies": [[reply.text, reply.tokens, reply.finished] for reply in samples]}
        for asked, samples in zip(some, replies, strict=True)
    ]


def verdicts(asked: Asked, replies: Sequence[Reply], unfinished: Literal["drop", "keep"]) -> list[Verdict]:
    """What becomes of each answer to a prompt: a row of its own, unless it is empty, cut off or said already.

    Rows have the prompt's id, with ``#0``, ``#1`` … where there are several samples, its tags, and the guide's.
    """
    from alignment.data.ledger import Verdict

    tags = asked.prompt.tags if asked.guide is None else (*asked.prompt.tags, f"guided:{asked.guide.name}")
    found, said = [], dict[str, str]()
    for number, reply in enumerate(replies):
        name = asked.prompt.id if len(replies) == 1 else f"{asked.prompt.id}#{number}"
        if not reply.text.strip():
            verdict = Verdict("dropped", name, by="teach", reason="empty answer")
        elif unfinished == "drop" and not reply.finished:
            verdict = Verdict("dropped", name, by="teach", reason="unfinished answer")
        elif reply.text in said:
            verdict = Verdict("dropped", name, by="teach", reason="the same answer", detail=f"as {said[reply.text]}")
        else:
            said[reply.text] = name
            row = Conversation((*asked.prompt.messages, Message("assistant", reply.text)), name, tags)
            verdict = Verdict("kept", name, row=row, split=asked.place.split, copies=1)
        found.append(verdict)
    return found


def _beyond(asked: Asked) -> Verdict:
    from alignment.data.ledger import Verdict

    return Verdict("not_drawn", asked.prompt.id, by="teach", reason="beyond the count")


# ── log-probabilities ────────────────────────────────────────────────────────────────────────────


def _store_top_k(settings: Settings, artifact: Artifact, engine: Engine, out: Path) -> int:
    """Store the teacher's likeliest tokens for every row of the dataset; returns the number of tokens.

    They are computed under the guidance that the answer was drawn with, which makes of a guided row context
    distillation (Askell et al., arXiv 2112.00861): a student learns to speak so without being told.
    """
    from alignment.data import store, topk
    from alignment.sampling.topk import top_k
    from alignment.training.policies import open_policy

    policy = open_policy(artifact, engine)
    tokens = policy.tokens
    teacher = topk.Teacher(
        artifact.step or artifact.path.name, tokens.digest, tokens.schema, tokens.padded, settings.top_k
    )
    writer = topk.Writer(out, teacher)
    with console.progress("teach: top-k", sum(store.card(out)["rows"].values()), "answers") as progress:
        for rows in batches(_rows(out), topk.ROWS_A_SHARD):
            names = [row.id for row in rows]
            if writer.keep(names):
                progress.begin_at(progress.done + len(rows))
                continue
            sequences = [_sequence(row, settings.guided, policy) for row in rows]
            writer.write(names, top_k(policy.model, sequences, settings.top_k, device=engine.device))
            progress.advance(len(rows))
    return writer.finish()["tokens"]


def _rows(out: Path) -> Iterator[Conversation]:
    """The rows of the dataset, one of each name: a prompt that stands there twice has the same answers twice."""
    from alignment.data import store

    names = set[str]()
    for split in store.card(out)["rows"]:
        for row in store.stream(out, split):
            assert isinstance(row, Conversation)
            if row.id not in names:
                names.add(row.id)
                yield row


def _sequence(row: Conversation, guides: Sequence[Guide], policy: Policy) -> tuple[list[int], list[int]]:
    """What the teacher was given, and its answer as a student sees it: rendered, with what closes it."""
    from alignment.chat.render import prompt_ids, render

    turns, guide = row.messages[:-1], guide_for(row.tags, guides)
    if guide is not None:
        turns = guided(turns, guide.instruction)
    given = prompt_ids(turns, policy.tokenizer)
    whole = render((*turns, row.messages[-1]), policy.tokenizer, policy.schema, "last").ids
    assert whole[: len(given)] == given, "a prompt is a prefix of what answers it"
    return given, whole[len(given) :]
