"""Ghost Attention recall: how long an instruction of the first turn is obeyed (Llama 2, arXiv 2307.09288, §3.3).

Answers are drawn turn by turn, and what the model said stays in the history; a program says of every answer whether it
obeys (``standing.py``). ``recall`` by turn is Llama 2's table 30. An answer without text obeys nothing and ends its
dialogue, since nothing can follow it: the turns after it count as not obeyed.

With ``attention`` the first dialogue is read once more for how much its answers attend to the instruction
(``attending.py``, after Llama 2's figure 10): attention.json, and attention.html for people.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alignment import console, files
from alignment.artifacts import Artifact
from alignment.chat.types import Conversation, Prompt, row_key
from alignment.errors import UserError
from alignment.evals.suites import standing
from alignment.evals.suites.standing import Dialogue
from alignment.evals.suites.subject import Subject
from alignment.evals.suites.suite import Examined, Example, Measure, Suite
from alignment.sampling.decoding import Decoding
from alignment.settings import identity, reference, text

if TYPE_CHECKING:
    from alignment import parts
    from alignment.data.ghost import Source

PART = 32
"""Dialogues that are drawn side by side, and then kept, together."""
SILENT, NO_ROOM = "silent", "no room"
MEASURES = (
    Measure(
        "recall", "higher", "share of the instructions, given in the first turn alone, that an answer obeys", most=1
    ),
    Measure("finished", "higher", "share of the answers that ended of their own accord", most=1),
    Measure("tokens", None, "tokens of an answer"),
)


class Settings(Suite):
    """Instructions, and the questions that are asked under them."""

    questions: str = reference("prompts or conversations whose user messages are asked", kinds=("dataset",))
    split: Literal["train", "valid", "test"] = identity("its split; no model may have seen its prompts")
    count: int | None = identity("rows at most, the first of the split; null takes all", ge=1)
    leave_out: list[str] = identity("rows with any of these tags are not asked; [] for none")
    instructions: str | None = text("miniature, a file of your own, or null for the shipped list; all can be checked")
    shorten: float = identity("share of the dialogues that say the instruction in its short form", ge=0, le=1)
    dialogues: int = identity("dialogues, each under an instruction of its own", ge=1)
    turns: int = identity("user turns of each", ge=1)
    overflow: Literal["refuse", "end"] = identity(
        "what becomes of dialogues that may outgrow the model's context. refuse: all are refused before anything is "
        "drawn; end: a dialogue ends where there is no room, and its later turns are measured for no model"
    )
    attention: bool = identity("read how much the first dialogue's answers attend to the instruction")
    seed: int = identity("of the instructions and of the choice of questions", ge=0)
    decoding: Decoding = identity("how answers are drawn; samples: 1, since each answer is answered")


def sources(settings: Settings) -> list[Path]:
    """The file that holds the instructions."""
    path = standing.path_of(settings.instructions)
    return [] if path is None else [path]


def examine(settings: Settings, inputs: Mapping[str, Artifact], subject: Subject) -> Examined:
    """Draw the dialogues and check every answer. Raises :class:`UserError` before anything is drawn."""
    source = standing.source_of(settings.instructions)
    dialogues = _dialogues(settings, inputs, source, subject)
    _need_room(settings, dialogues, subject)
    rows = list(_drawn(settings, dialogues, subject))
    ended = Counter(row["ended"] for row in rows if row["ended"])
    notes = {"dialogues": len(rows), "ended_silent": ended[SILENT], "ended_without_room": ended[NO_ROOM]}
    return Examined(MEASURES, _examples(dialogues, rows, source), notes)


def figures(settings: Settings, inputs: Mapping[str, Artifact], subject: Subject) -> None:
    """Write how much the answers of the first dialogue attend to the instruction, where that is asked for."""
    if not settings.attention:
        return
    from alignment.evals.suites import attending
    from alignment.reporting import attention

    dialogue, *_ = dialogues = _dialogues(settings, inputs, standing.source_of(settings.instructions), subject)
    first = next(_drawn(settings, dialogues, subject))
    answers = [text for text, *_ in first["answers"] if text.strip()]
    if not answers:
        console.say("attention: the first dialogue has no answer to read", style="yellow")
        return
    read = attending.attended(subject.policy, dialogue.turns(answers)[: 2 * len(answers)], dialogue.told)
    found = {"instruction": dialogue.told, "answers": answers, **read}
    files.write_json(subject.out / "attention.json", found)
    files.write_atomic(subject.out / "attention.html", attention.page(found).encode())


# ── before anything is drawn ─────────────────────────────────────────────────────────────────────


def _dialogues(settings: Settings, inputs: Mapping[str, Artifact], source: Source, subject: Subject) -> list[Dialogue]:
    """What is asked; refuses a model that has seen one of the rows."""
    from alignment.data import store

    _check(settings, subject)
    split = store.stream(inputs["questions"].need("dataset").path, settings.split)
    rows = standing.questions_of(islice(split, settings.count), source, settings.leave_out)
    dialogues, used = standing.dialogues(
        rows,
        source,
        count=settings.dialogues,
        turns=settings.turns,
        shorten=settings.shorten,
        seed=settings.seed,
    )
    subject.refuse_seen(row_key(row) for row in used if isinstance(row, Conversation | Prompt))
    return dialogues


def _check(settings: Settings, subject: Subject) -> None:
    if settings.decoding.samples != 1:
        raise UserError(
            f"suite.decoding.samples={settings.decoding.samples}: a dialogue goes on from one answer",
            remedy="Say samples=1, and more dialogues.",
        )
    if settings.attention:
        subject.need_here()
    if subject.served and settings.overflow == "end":
        raise UserError(
            "suite.overflow=end: the context of a model behind a server is not known here",
            remedy="Say suite.overflow=refuse, with dialogues that its server has room for.",
        )


def _need_room(settings: Settings, dialogues: Sequence[Dialogue], subject: Subject) -> None:
    """Refuse dialogues that would not fit if every answer were as long as it may be."""
    if subject.served or settings.overflow == "end":
        return
    from alignment.chat.render import prompt_ids

    policy, longest = subject.policy, settings.decoding.max_new_tokens
    for dialogue in dialogues:
        # An answer of one character stands for the turn around it.
        asked = dialogue.turns(["."] * (settings.turns - 1))
        needed = len(prompt_ids(asked, policy.tokenizer)) + settings.turns * longest
        if needed > policy.tokens_limit:
            raise UserError(
                f"suite.turns={settings.turns}: dialogue {dialogue.id} may come to {needed:,} tokens",
                cause=f"The model's context is {policy.tokens_limit:,} tokens, and an answer may have {longest:,} "
                "(suite.decoding.max_new_tokens).",
                remedy="Ask for fewer turns or shorter answers, or say suite.overflow=end.",
            )


# ── drawing ──────────────────────────────────────────────────────────────────────────────────────


def _drawn(settings: Settings, dialogues: Sequence[Dialogue], subject: Subject) -> Iterator[dict[str, Any]]:
    """Of every dialogue ``answers``, each (text, tokens, finished), and why it ``ended`` early, or an empty text."""

    def draw(some: Sequence[Dialogue]) -> parts.Rows:
        return _draw(some, settings, subject)

    return subject.in_parts("dialogues", dialogues, draw, PART)


def _draw(some: Sequence[Dialogue], settings: Settings, subject: Subject) -> parts.Rows:
    """Some dialogues side by side, turn by turn."""
    answers: list[list[Any]] = [[] for _ in some]
    ended = [""] * len(some)
    for turn in range(1, settings.turns + 1):
        histories = {}
        for place, dialogue in enumerate(some):
            if ended[place]:
                continue
            histories[place] = dialogue.turns([said for said, *_ in answers[place]])
            if settings.overflow == "end" and not _fits(histories[place], settings, subject):
                ended[place] = NO_ROOM
                del histories[place]
        if not histories:
            break
        keys = [f"{some[place].id}:{turn}" for place in histories]
        replies = subject.respondent.reply(list(histories.values()), keys, settings.decoding)
        for place, (reply,) in zip(histories, replies, strict=True):
            answers[place].append([reply.text, reply.tokens, reply.finished])
            ended[place] = "" if reply.text.strip() else SILENT
    return [{"answers": said, "ended": why} for said, why in zip(answers, ended, strict=True)]


def _fits(history: Any, settings: Settings, subject: Subject) -> bool:
    from alignment.chat.render import prompt_ids

    needed = len(prompt_ids(history, subject.policy.tokenizer)) + settings.decoding.max_new_tokens
    return needed <= subject.policy.tokens_limit


# ── what is measured ─────────────────────────────────────────────────────────────────────────────


def _examples(dialogues: Sequence[Dialogue], rows: Sequence[Mapping[str, Any]], source: Source) -> Iterator[Example]:
    """One for every turn and every part of its instruction; what an answer is besides stands with the first part."""
    for dialogue, row in zip(dialogues, rows, strict=True):
        for turn, question in enumerate(dialogue.questions, 1):
            reply = row["answers"][turn - 1] if turn <= len(row["answers"]) else None
            shown = {"instruction": dialogue.told, "question": question, "answer": reply and reply[0]}
            for place, part in enumerate(dialogue.instructions):
                values = _values(dialogue, part.kind, reply, row["ended"], source)
                if reply is not None and place == 0:
                    values |= {"finished": float(reply[2]), "tokens": float(reply[1])}
                groups = {"turn": str(turn), "instruction": part.kind}
                yield Example(f"{dialogue.id}:{turn}:{part.kind}", dialogue.id, values, groups, shown)


def _values(dialogue: Dialogue, kind: str, reply: Sequence[Any] | None, ended: str, source: Source) -> dict[str, float]:
    if reply is not None:
        return {"recall": float(standing.obeyed(source, dialogue, reply[0])[kind])}
    return {"recall": 0.0} if ended == SILENT else {}
