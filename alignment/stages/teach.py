"""Have a teacher answer prompts: conversations to learn from (behavioural cloning), and what else it would have said.

Some prompts are answered under guidance that the stored rows do not carry: in-context attribution, hedging, refusal.
The Gemma 2 report (arXiv 2408.00118, §4) adds such a subset, for better factuality at no loss elsewhere.

Or let the answers, or the text, be as they are given, and store what the teacher would have said at every token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from alignment import console, signals
from alignment.artifacts import Artifact, Outcome
from alignment.chat.types import Conversation, Prompt
from alignment.errors import UserError
from alignment.parts import FOLDER, batches, in_parts
from alignment.sampling.decoding import Decoding, Reply
from alignment.sampling.endpoint import Endpoint, EndpointSettings
from alignment.sampling.taught import Asked, Guide, Seen, guide_for, guided, verdicts
from alignment.settings import Settings as StrictSettings
from alignment.settings import execution, identity, reference
from alignment.training.engine import EngineSettings

if TYPE_CHECKING:
    from alignment.data.ledger import Verdict
    from alignment.data.rows import Kind, Split
    from alignment.data.topk import Masked
    from alignment.sampling.decoding import Respondent
    from alignment.scoring.reading import Reader
    from alignment.training.engine import Engine

ALGORITHM_VERSION = 3
PART = 256
"""Prompts that are answered, and then kept, together."""
JOURNAL = f"{FOLDER}/journal.jsonl"
"""What a server has answered, of whatever kind, and what that has cost."""


class Settings(StrictSettings):
    """``stage=teach``."""

    answers: Literal["draw", "given"] = identity(
        "draw: the teacher answers prompts; given: the rows of a dataset stay as they are, and what the teacher thinks "
        "of their tokens (top_k) is stored beside them"
    )
    prompts: str | None = reference("a dataset of prompts, for answers=draw; else null")
    data: str | None = reference("a dataset of conversations or of text, for answers=given; else null")
    teacher: str = reference("who answers: a policy, a folder of the same layout, or endpoint:<model>")
    splits: list[Literal["train", "valid", "test"]] = identity("its splits to take; rows stay in theirs", min_length=1)
    count: int | None = identity("rows at most in each split, the first; null takes all", ge=1)
    guided: list[Guide] = identity("guidance by the rows' tags, the first that fits; [] for none, as text needs")
    unfinished: Literal["drop", "keep"] | None = identity(
        "what becomes of drawn answers that max_new_tokens has cut off; null with answers=given"
    )
    block: int | None = identity("of text: tokens per row at most, as stage=pretrain cuts it; else null", ge=16)
    top_k: int = identity(
        "store the teacher's so many likeliest tokens with their log-probabilities for every token that carries loss; "
        "0 for none",
        ge=0,
    )
    tail_draws: int = identity(
        "store beside them so many tokens drawn from all others, by which objective.divergence=forward_kl learns how "
        "the others share the rest; 0 for none, as a teacher behind a server needs",
        ge=0,
    )
    top_k_temperature: float = identity("of these log-probabilities; it divides the logits, the cap applied", gt=0)
    decoding: Decoding | None = identity(
        "how answers are drawn; of several samples each becomes a row; null with answers=given"
    )
    tokenizer: str | None = reference(
        "for top_k of a teacher behind a server: a tokenizer, or a model with it, that is the server's; else null",
        kinds=("tokenizer", "policy"),
    )
    chat_schema: Literal["gemma1", "gemma1_table4", "gemma2"] | None = identity(
        "with that: how conversations become the tokens that the server's model was trained on; else null"
    )
    endpoint: EndpointSettings = execution("how a server is asked, where the teacher is behind one")
    engine: EngineSettings = execution("where and how it runs")


def run(settings: Settings, inputs: dict[str, Artifact], out: Path) -> Outcome:
    """Write a dataset, and with ``top_k`` the teacher's log-probabilities beside it (topk/)."""
    from alignment.scoring.opening import open_respondent
    from alignment.training.engine import resolve

    _check_settings(settings)
    kind, rows = _check_inputs(settings, inputs)
    engine, artifact = resolve(settings.engine), inputs["teacher"]
    name = artifact.step or artifact.path.name
    spent = {}
    if settings.answers == "draw":
        teacher = open_respondent(artifact, engine, settings.endpoint, out / JOURNAL, at="teacher")
        name = teacher.name
        metrics = _write_answers(settings, inputs["prompts"], rows, teacher, out)
        if isinstance(teacher, Endpoint):
            spent["tokens_spent"] = float(teacher.spent)
        del teacher  # It is opened once more for its log-probabilities, and there may be no room for two.
    else:
        metrics = _write_given(settings, inputs["data"], kind, rows, name, out)
    if settings.top_k:
        spent |= _store_top_k(settings, inputs, kind, engine, out)
    notes = {"kind": kind, "teacher": name} | ({} if artifact.kind == "endpoint" else engine.notes())
    return Outcome("dataset", metrics | spent, "rows", notes=notes)


# ── what is refused before anything is opened ────────────────────────────────────────────────────


def _check_settings(settings: Settings) -> None:
    """Refuse what is missing, and what would be accepted and not used."""
    drawn, given = ("prompts", "decoding", "unfinished"), ("data",)
    needed, idle = (drawn, (*given, "block")) if settings.answers == "draw" else (given, drawn)
    for key in needed:
        if getattr(settings, key) is None:
            raise UserError(f"{key}=null: answers={settings.answers} needs it")
    for key in idle:
        if getattr(settings, key) is not None:
            raise UserError(
                f"{key} is given, and answers={settings.answers} has no use for it",
                remedy=f"Say {key}=null. stage=teach is set for answers=draw, teach/given and teach/text for given.",
            )
    if settings.answers == "given" and not settings.top_k:
        raise UserError("top_k=0: of rows that stay as they are nothing would be stored", remedy="64 are usual.")
    if not settings.top_k and settings.top_k_temperature != 1.0:
        raise UserError(f"top_k_temperature={settings.top_k_temperature}: with top_k=0 nothing has a temperature")
    if not settings.top_k and settings.tail_draws:
        raise UserError(f"tail_draws={settings.tail_draws}: with top_k=0 nothing is stored that they belong to")
    if len(set(settings.splits)) < len(settings.splits):
        raise UserError(f"splits={settings.splits}: names a split twice")


def _check_inputs(settings: Settings, inputs: dict[str, Artifact]) -> tuple[Kind, int]:
    """Refuse what could only end badly. Returns the kind of the rows to write, and how many are read."""
    from alignment.data import store

    key = "prompts" if settings.answers == "draw" else "data"
    card = store.card(inputs[key].need("dataset").path)
    kinds = ("prompts",) if settings.answers == "draw" else ("conversations", "text")
    if card["kind"] not in kinds:
        raise UserError(
            f"{key}={getattr(settings, key)}: holds {card['kind']}",
            cause="A teacher answers prompts." if key == "prompts" else "An answer or a text is read, token by token.",
            remedy=f"Give a dataset whose recipe has kind: {' or '.join(kinds)}.",
        )
    kind: Kind = "text" if card["kind"] == "text" else "conversations"
    if (kind == "text") != (settings.block is not None):
        raise UserError(
            f"block={settings.block or 'null'}: the rows are {kind}",
            cause="Text is cut into rows of so many tokens; conversations are rows as they are.",
            remedy="stage=teach/text is set for text, stage=teach/given for conversations.",
        )
    if kind == "text" and settings.guided:
        raise UserError("guided: text has no user whom an instruction could come from", remedy="Say guided=[].")
    _check_teacher(settings, inputs, kind)
    for split in settings.splits:
        if split not in card["rows"]:
            store.read(inputs[key].path, split)  # It says which splits there are.
    rows = (card["rows"][split] for split in settings.splits)
    return kind, sum(count if settings.count is None else min(count, settings.count) for count in rows)


def _check_teacher(settings: Settings, inputs: dict[str, Artifact], kind: Kind) -> None:
    from alignment.gemma import core

    teacher = inputs["teacher"].need("policy", "endpoint")
    asked = settings.top_k > 0 and teacher.kind == "endpoint"
    wanted = {"tokenizer": asked, "chat_schema": asked and kind != "text"}
    for key, needed in wanted.items():
        if (getattr(settings, key) is not None) != needed:
            raise UserError(
                f"{key}={getattr(settings, key) or 'null'}: teacher={settings.teacher}, top_k={settings.top_k}",
                cause="A server is asked by token ids, which a tokenizer gives, and of conversations a chat schema."
                if needed
                else "A model here has its own, text has no turns, and without top_k no token is looked at.",
                remedy=f"Name that of the server's model with {key}=…." if needed else f"Say {key}=null.",
            )
    if asked and settings.top_k_temperature != 1.0:
        raise UserError(
            f"top_k_temperature={settings.top_k_temperature}: {settings.teacher} is behind a server",
            cause="Servers give log-probabilities at temperature 1, and of the likeliest alone no others can be told.",
            remedy="Say top_k_temperature=1.0, or name a teacher that is a model here.",
        )
    if asked and settings.tail_draws:
        raise UserError(
            f"tail_draws={settings.tail_draws}: {settings.teacher} is behind a server",
            cause="Servers tell their likeliest tokens alone, and nothing of how the others share the rest.",
            remedy="Say tail_draws=0, or name a teacher that is a model here.",
        )
    if not asked and settings.top_k:
        config = core.read_config(teacher.path)
        if settings.top_k >= config.vocab_size:
            raise UserError(
                f"top_k={settings.top_k}: the teacher has no more than {config.vocab_size} pieces",
                remedy="64 hold nearly all of the probability.",
            )
        if settings.block is not None and settings.block > config.max_position_embeddings:
            raise UserError(
                f"block={settings.block} is more than the teacher's context, {config.max_position_embeddings}"
            )


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


def _write_answers(
    settings: Settings, dataset: Artifact, prompts: int, teacher: Respondent, out: Path
) -> dict[str, float]:
    """Draw the answers, in parts, and write the dataset; returns the metrics."""
    from alignment.data.derive import Derivation

    assert settings.decoding is not None
    assert settings.unfinished is not None
    decoding, unfinished = settings.decoding, settings.unfinished
    seen, samples, finished = Seen(), decoding.samples, 0
    with (
        console.progress("teach", prompts * samples, "answers") as progress,
        Derivation(out, "conversations", made_by="teach", parents={"prompts": dataset}) as derivation,
    ):

        def work(some: Sequence[Asked]) -> list[dict[str, Any]]:
            return _draw(some, teacher, decoding, progress)

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
                    derivation.record(asked.place, [_beyond(asked.prompt.id)])
                    continue
                row = next(drawn)
                assert row["id"] == asked.prompt.id, "parts and prompts go side by side"
                replies = [Reply(*reply) for reply in row["replies"]]
                seen.add(asked, replies)
                derivation.record(asked.place, verdicts(asked, replies, unfinished))
        return derivation.finish(teacher=teacher.name, top_k=settings.top_k) | seen.metrics()


def _asked(settings: Settings, dataset: Artifact, split: Split) -> Iterator[Asked]:
    """Every prompt of a split, in order; always the same."""
    from alignment.data import store
    from alignment.data.derive import Place

    for number, prompt in enumerate(store.stream(dataset.path, split), 1):
        assert isinstance(prompt, Prompt)
        guide = guide_for(prompt.tags, settings.guided)
        turns = prompt.messages if guide is None else guided(prompt.messages, guide.instruction)
        yield Asked(Place("prompts", split, number, prompt.id), prompt, turns, guide)


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


def _beyond(name: str) -> Verdict:
    from alignment.data.ledger import Verdict

    return Verdict("not_drawn", name, by="teach", reason="beyond the count")


# ── rows as they are ─────────────────────────────────────────────────────────────────────────────


def _write_given(
    settings: Settings, dataset: Artifact, kind: Kind, rows: int, teacher: str, out: Path
) -> dict[str, float]:
    """Write the rows once more, unchanged; returns the metrics."""
    from alignment.data import store
    from alignment.data.derive import Derivation, Place
    from alignment.data.ledger import Verdict

    with (
        console.progress("teach", rows, "rows") as progress,
        Derivation(out, kind, made_by="teach", parents={"data": dataset}) as derivation,
    ):
        for split in settings.splits:
            for number, row in enumerate(store.stream(dataset.path, split), 1):
                verdict = Verdict("kept", row.id, row=row, split=split, copies=1)
                if settings.count is not None and number > settings.count:
                    verdict = _beyond(row.id)
                else:
                    progress.advance(1)
                derivation.record(Place("data", split, number, row.id), [verdict])
        return derivation.finish(teacher=teacher, top_k=settings.top_k)


# ── log-probabilities ────────────────────────────────────────────────────────────────────────────


def _store_top_k(
    settings: Settings, inputs: dict[str, Artifact], kind: Kind, engine: Engine, out: Path
) -> dict[str, float]:
    """Store the teacher's likeliest tokens for every row of the dataset; returns what the metrics say of it.

    They are computed under the guidance that the answer was drawn with, which makes of a guided row context
    distillation (Askell et al., arXiv 2112.00861): a student learns to speak so without being told.
    """
    from alignment.data import store, topk

    reader = _reader(settings, inputs, engine, out)
    writer = topk.Writer(out, reader.header)
    rows = store.card(out)["rows"]
    with console.progress("teach: top-k", sum(rows.values()), "rows") as progress:
        for some in batches(_rows(settings, kind, reader, out), topk.ROWS_A_SHARD):
            names, place = [row.name for row in some], some[-1].number
            if writer.keep(names):
                progress.begin_at(place)
                continue
            writer.write(names, reader.top_k(names, [row.row for row in some]))
            progress.advance(place - progress.done)
            signals.heed(f"after {place:,} rows")
    metrics = {"top_k_tokens": float(writer.finish()["tokens"])}
    spent = reader.spent()
    return metrics if spent is None else metrics | {"tokens_spent": float(spent)}


def _reader(settings: Settings, inputs: dict[str, Artifact], engine: Engine, out: Path) -> Reader:
    from alignment.scoring.reading import open_model, open_server

    artifact, k, block = inputs["teacher"], settings.top_k, settings.block
    if artifact.kind != "endpoint":
        draws, temperature = settings.tail_draws, settings.top_k_temperature
        return open_model(artifact, engine, k=k, draws=draws, temperature=temperature, block=block)
    tokenizer, schema = inputs["tokenizer"].path, settings.chat_schema or ""
    return open_server(artifact, tokenizer, settings.endpoint, out / JOURNAL, k=k, schema=schema, block=block)


class Read(NamedTuple):
    """A row as the teacher reads it. ``number`` counts the rows of the dataset up to it."""

    name: str
    row: Masked
    number: int


def _rows(settings: Settings, kind: Kind, reader: Reader, out: Path) -> Iterator[Read]:
    """The rows of the dataset that carry loss, one of each name: what stands there twice is thought of once."""
    from alignment.data import topk

    digests = dict[str, str]()
    for read in _masked(settings, kind, reader, out):
        (ids, mask), digest = read.row, topk.row_digest(read.row[0])
        if read.name in digests and digests[read.name] != digest:
            raise UserError(
                f"{read.name}: two rows of this name say different things",
                cause="Log-probabilities are found by the names of rows.",
                remedy="Give the rows ids of their own in the recipe.",
            )
        if reader.limit is not None and len(ids) > reader.limit:
            raise UserError(
                f"{read.name}: has {len(ids):,} tokens, and the teacher's context is {reader.limit:,}",
                remedy="Shorten the row in the recipe (the filter `length`), or take another teacher.",
            )
        if any(mask) and read.name not in digests:
            yield read
        digests[read.name] = digest


def _masked(settings: Settings, kind: Kind, reader: Reader, out: Path) -> Iterator[Read]:
    """All rows, with what carries loss as a student is trained on them."""
    from alignment.chat.render import render
    from alignment.data import store
    from alignment.data.pieces import pieces

    number = 0
    for split in store.card(out)["rows"]:
        if kind == "text":
            assert settings.block is not None
            for piece in pieces(out, split, reader.tokenizer, settings.block):
                number += piece.name.endswith("@0")
                yield Read(piece.name, (piece.ids, piece.mask), number)
            continue
        for row in store.stream(out, split):
            assert isinstance(row, Conversation)
            number += 1
            guide = guide_for(row.tags, settings.guided)
            turns = row.messages if guide is None else guided(row.messages, guide.instruction)
            yield Read(row.id, render(turns, reader.tokenizer, reader.header.schema, row.train), number)
