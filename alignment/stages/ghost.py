"""Draw answers under an instruction in every turn, and keep it in the first turn only (Ghost Attention)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from alignment import console
from alignment.artifacts import Artifact, Outcome
from alignment.chat.types import Conversation
from alignment.data import ghost
from alignment.data.ghost import Assignment, Source
from alignment.errors import UserError
from alignment.parts import FOLDER, in_parts
from alignment.sampling.decoding import Decoding
from alignment.sampling.endpoint import EndpointSettings
from alignment.settings import Settings as StrictSettings
from alignment.settings import execution, identity, reference, text
from alignment.training.engine import EngineSettings

if TYPE_CHECKING:
    from alignment.data.derive import Place
    from alignment.data.ledger import Verdict
    from alignment.sampling.decoding import Reply, Respondent

ALGORITHM_VERSION = 1
PART = 256
"""Dialogues that are drawn, and then written, together."""

Progress = Callable[[int], None]


class Settings(StrictSettings):
    """``stage=ghost``."""

    policy: str = reference("the policy that answers")
    dialogues: str = reference("a dataset of conversations")
    splits: list[Literal["train", "valid", "test"]] = identity("its splits to take; rows stay in theirs", min_length=1)
    instructions: str | None = text("null for the shipped lists, a file of your own, or miniature")
    share: float = identity("share of the suitable dialogues, chosen by their ids", gt=0, le=1)
    count: int | None = identity("dialogues at most in each split, the first of the chosen; null takes all", ge=1)
    min_turns: int = identity("user turns at least; shorter dialogues are left out", ge=1)
    max_turns: int = identity("user turns at most; longer dialogues end there", ge=1)
    end: ghost.End = identity("last: use a dialogue to its end; random: up to a turn drawn from min_turns on")
    shorten: float = identity("share of the rows that say the instruction in its short form", ge=0, le=1)
    answers: ghost.Answers = identity(
        "last: only the last answer is drawn anew, those before it stay; all: every answer, turn by turn; mixed: every "
        "answer of half of the dialogues, of the others the last"
    )
    keep: Literal["all", "obedient"] = identity("obedient: only rows whose last answer a program finds to obey")
    seed: int = identity("of the instructions and of the choice of dialogues", ge=0)
    decoding: Decoding = identity("how answers are drawn; of several samples the first that obeys is taken")
    endpoint: EndpointSettings = execution("how a server is asked, where the policy is behind one")
    engine: EngineSettings = execution("where and how it runs")


class Candidate(NamedTuple):
    """A dialogue of the dataset: what it is assigned, or why it is left out."""

    place: Place
    assignment: Assignment | None
    left_out: str


@dataclass
class Drawing:
    """What has been drawn for a dialogue. ``obeyed`` has a pair (turn, obeys) for every sample of every turn."""

    assignment: Assignment
    answers: dict[int, str] = field(default_factory=dict)
    problem: str = ""
    obeys: bool | None = None
    obeyed: list[tuple[int, bool]] = field(default_factory=list)


def sources(settings: Settings) -> list[Path]:
    """The file that holds the instructions."""
    path = ghost.path_of(settings.instructions)
    return [] if path is None else [path]


def run(settings: Settings, inputs: dict[str, Artifact], out: Path) -> Outcome:
    """Write a dataset of conversations with loss on their last answers."""
    from alignment.data.derive import Derivation
    from alignment.scoring.opening import open_respondent
    from alignment.training.engine import resolve

    source = ghost.source_of(settings.instructions)
    dataset = inputs["dialogues"]
    _check(settings, dataset, source)

    def chosen() -> Iterator[Assignment]:
        return (one.assignment for one in _candidates(settings, dataset, source) if one.assignment is not None)

    total = sum(_draws(settings, one) for one in chosen())
    if not total:
        raise _nothing_to_draw(settings, _candidates(settings, dataset, source))
    if len(set(settings.splits)) < len(settings.splits):
        raise UserError(f"splits={settings.splits}: names a split twice")
    engine = resolve(settings.engine)
    journal = out / FOLDER / "journal.jsonl"
    respondent = open_respondent(inputs["policy"], engine, settings.endpoint, journal, at="policy")
    seen = Consistency()
    with (
        console.progress("ghost", total, "answers") as progress,
        Derivation(out, "conversations", made_by="ghost", parents={"dialogues": dataset}) as derivation,
    ):
        sizes = (_draws(settings, one) for one in chosen())
        finished = 0

        def done(dialogues: int, before: bool) -> None:
            nonlocal finished
            finished += sum(islice(sizes, dialogues))
            progress.begin_at(finished) if before else progress.advance(finished - progress.done)

        def work(some: Sequence[Assignment]) -> list[dict[str, Any]]:
            return _draw(some, respondent, settings, source, progress)

        drawn = in_parts(out, "answers", chosen(), PART, work, done)
        for one in _candidates(settings, dataset, source):
            verdict = _verdict(settings, one, next(drawn) if one.assignment else None, seen)
            derivation.record(one.place, [verdict])
        metrics = derivation.finish(ghost=seen.summary()) | seen.metrics()
    seen.show()
    return Outcome("dataset", metrics, "rows", notes=engine.notes() | {"kind": "conversations"})


def _check(settings: Settings, dataset: Artifact, source: Source) -> None:
    """Refuse, before anything is opened, what could only end badly."""
    from alignment.data import store

    kind = store.card(dataset.need("dataset").path)["kind"]
    if kind != "conversations":
        raise UserError(
            f"dialogues={settings.dialogues}: holds {kind}",
            cause="Ghost Attention rewrites conversations.",
            remedy="Give a dataset whose recipe has kind: conversations.",
        )
    if settings.min_turns > settings.max_turns:
        raise UserError(f"min_turns={settings.min_turns} is more than max_turns={settings.max_turns}")
    if settings.keep == "obedient" and source.obeys is None:
        raise UserError(
            f"keep=obedient: instructions={settings.instructions} are not verifiable",
            cause="No program can tell whether an answer obeys them, so that no row could be kept.",
            remedy="Say keep=all, or instructions=miniature.",
        )


def _candidates(settings: Settings, dataset: Artifact, source: Source) -> Iterator[Candidate]:
    """Every dialogue of the splits, in order; always the same."""
    from alignment.data import store
    from alignment.data.derive import Place
    from alignment.data.draw import uniform

    for split in settings.splits:
        taken = 0
        for number, row in enumerate(store.stream(dataset.path, split), 1):
            assert isinstance(row, Conversation)
            left_out = ghost.unfit(row, source, settings.min_turns)
            if not left_out and uniform("ghost", settings.seed, row.id) >= settings.share:
                left_out = "outside of the share"
            if not left_out and taken == settings.count:
                left_out = "beyond the count"
            place = Place("dialogues", split, number, row.id)
            if left_out:
                yield Candidate(place, None, left_out)
            else:
                taken += 1
                yield Candidate(place, _assign(settings, row, source), "")


def _assign(settings: Settings, dialogue: Conversation, source: Source) -> Assignment:
    return ghost.assign(
        dialogue,
        source,
        seed=settings.seed,
        shorten=settings.shorten,
        min_turns=settings.min_turns,
        max_turns=settings.max_turns,
        end=settings.end,
        answers=settings.answers,
    )


def _draws(settings: Settings, assignment: Assignment) -> int:
    """The number of answers that a dialogue needs."""
    return settings.decoding.samples * (assignment.turns if assignment.every else 1)


def _nothing_to_draw(settings: Settings, candidates: Iterator[Candidate]) -> UserError:
    reasons = Counter(one.left_out for one in candidates)
    told = ", ".join(f"{reason} ({count:,})" for reason, count in reasons.most_common())
    return UserError(
        f"dialogues={settings.dialogues}: none is suitable",
        cause=f"Left out: {told}." if told else "The splits are empty.",
        remedy="Give longer dialogues, or lower min_turns.",
    )


# ── drawing ──────────────────────────────────────────────────────────────────────────────────────


def _draw(
    some: Sequence[Assignment],
    respondent: Respondent,
    settings: Settings,
    source: Source,
    progress: console.Progress,
) -> list[dict[str, Any]]:
    """Answers to some dialogues, turn by turn where every answer is drawn."""
    drawings = [Drawing(assignment) for assignment in some]
    for turn in range(1, max(each.assignment.turns for each in drawings) + 1):
        asked = [each for each in drawings if _is_drawn(each, turn)]
        if not asked:
            continue
        before = progress.done

        def advance(done: int, before: int = before) -> None:
            progress.advance(before + done - progress.done)

        replies = respondent.reply(
            [each.assignment.prompt(turn, each.answers) for each in asked],
            [f"{each.assignment.dialogue.id}:{turn}" for each in asked],
            settings.decoding,
            advance,
        )
        for each, samples in zip(asked, replies, strict=True):
            _take(each, turn, samples, source)
    return [
        {
            "id": each.assignment.dialogue.id,
            "answers": sorted(each.answers.items()),
            "problem": each.problem,
            "obeys": each.obeys,
            "obeyed": each.obeyed,
        }
        for each in drawings
    ]


def _is_drawn(drawing: Drawing, turn: int) -> bool:
    """Whether a dialogue's answer in a turn is to be drawn. One with a broken answer does not go on."""
    turns = drawing.assignment.turns
    return (turn <= turns and not drawing.problem) if drawing.assignment.every else turn == turns


def _take(drawing: Drawing, turn: int, samples: Sequence[Reply], source: Source) -> None:
    """Take the first sound sample that obeys, else the first sound one."""
    told = drawing.assignment.instructions
    obeying = [source.obeys is not None and all(source.obeys(part, each.text) for part in told) for each in samples]
    best = min(range(len(samples)), key=lambda place: (samples[place].problem != "", not obeying[place], place))
    drawing.answers[turn] = samples[best].text
    drawing.problem = samples[best].problem
    if source.obeys is not None:
        drawing.obeys = obeying[best]
        drawing.obeyed += [(turn, obeys) for obeys in obeying]


# ── what becomes of a dialogue ───────────────────────────────────────────────────────────────────


def _verdict(settings: Settings, one: Candidate, row: dict[str, Any] | None, seen: Consistency) -> Verdict:
    from alignment.data.ledger import Verdict

    place = one.place
    if one.assignment is None or row is None:
        return Verdict("not_drawn", place.id, by="ghost", reason=one.left_out)
    assert row["id"] == place.id, "parts and dialogues go side by side"
    seen.add(row["obeyed"])
    answers: dict[int, str] = dict(row["answers"])
    if row["problem"]:
        where = f"in turn {max(answers)}"
        return Verdict("dropped", place.id, by="ghost", reason=row["problem"], detail=where)
    if settings.keep == "obedient" and not row["obeys"]:
        return Verdict("dropped", place.id, by="ghost", reason="answer does not obey", detail=one.assignment.full)
    seen.shortened += one.assignment.shortened
    made = ghost.training_row(one.assignment, answers)
    return Verdict("kept", place.id, row=made, detail=one.assignment.given, split=place.split, copies=1)


class Consistency:
    """How many of the drawn answers obey, by turn, where a program can tell."""

    def __init__(self) -> None:
        self.drawn: Counter[int] = Counter()
        self.obeying: Counter[int] = Counter()
        self.shortened = 0

    def add(self, obeyed: Sequence[tuple[int, bool]]) -> None:
        """Count the samples of one dialogue."""
        for turn, obeys in obeyed:
            self.drawn[turn] += 1
            self.obeying[turn] += obeys

    def shares(self) -> dict[int, float]:
        """The share that obeys, by turn."""
        return {turn: self.obeying[turn] / self.drawn[turn] for turn in sorted(self.drawn)}

    def metrics(self) -> dict[str, float]:
        """``consistency`` and ``consistency_turn_<n>``, where anything could be verified; ``shortened`` in rows."""
        found = {"shortened": float(self.shortened)}
        if self.drawn:
            found["consistency"] = self.obeying.total() / self.drawn.total()
        return found | {f"consistency_turn_{turn}": share for turn, share in self.shares().items()}

    def summary(self) -> dict[str, Any]:
        """What the card says."""
        by_turn = {str(turn): {"drawn": self.drawn[turn], "obeying": self.obeying[turn]} for turn in sorted(self.drawn)}
        return {"shortened": self.shortened, "verifiable": bool(self.drawn), "by_turn": by_turn}

    def show(self) -> None:
        """Print a line for every turn."""
        if not self.drawn:
            console.say("No program can tell whether these instructions are obeyed: not verifiable.", style="dim")
            return
        rows = [(turn, f"{self.drawn[turn]:,}", f"{share:.0%}") for turn, share in self.shares().items()]
        console.table("answers that obey", ("turn", "drawn", "obey"), rows, right=("turn", "drawn", "obey"))
