"""Dialogues turn by turn: every answer is rated from 1 to 10, and a dialogue is as good as its worst answer.

So does MT-Bench-101 (Bai et al., arXiv 2402.14762): the model answers each of the user's turns with the golden answers
before it, and a judge rates that answer by what the dialogue's task asks for. With ``history: own`` it has to live with
its own earlier answers. Tasks are the dialogues' first tags.

A judge that speaks is held to a form (``scoring/llm_rater.py``); a scorer's probability p, or the miniature's truth, is
the rating 1 + 9 p. An empty answer is rated 1 and nobody is asked; with ``history: own`` the dialogue then ends. A
dialogue has no score where one of its ratings could not be read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from alignment.artifacts import Artifact
from alignment.chat.types import Conversation, Message, Messages, row_key
from alignment.errors import UserError
from alignment.evals.suites import talking
from alignment.evals.suites.subject import Asked, Subject
from alignment.evals.suites.suite import Examined, Example, Measure, Suite
from alignment.sampling.decoding import Decoding, Reply
from alignment.scoring.llm_rater import Form, LlmRater
from alignment.scoring.opening import ClassifierReading, refuse_seen, speaks
from alignment.settings import Settings as StrictSettings
from alignment.settings import identity, later, reference, text

UNTAGGED = "untagged"
LEAST, MOST = 1, 10
SCALE = (
    "10 stands for an answer that nothing could be held against, 7 for a good one with a small flaw, 4 for one that "
    "misses something that matters, 1 for one that is of no use or does harm. Being longer is no merit. What the "
    "assistant said in earlier turns is given and not rated."
)
KNOWN = "An answer to the last message that is known to be right, for the judge alone: "

MEASURES = (
    Measure("score", "higher", "the lowest rating in a dialogue, from 1 to 10"),
    Measure("rating", "higher", "rating of an answer, from 1 to 10"),
    Measure("finished", "higher", "share of the answers that ended of their own accord", most=1),
    Measure("tokens", None, "tokens of an answer"),
)
INVALID = Measure("invalid", "lower", "share of the ratings that could not be read, the second time either", most=1)


class Rubric(StrictSettings):
    """What matters in the dialogues of a task."""

    task: str = text("the dialogues' first tag", min_length=1)
    ability: str = text("of which the task is a part")
    rubric: str = text("what a good answer does, for a judge that speaks", min_length=1)
    from_turn: int = identity("the first turn of the user whose answer is rated; those before only lead there", ge=1)
    known: bool = identity("show the judge the dialogue's own answer as one that is right")


class Settings(Suite):
    """Dialogues, and who rates the answers."""

    dialogues: str = reference("a dataset of conversations", kinds=("dataset",))
    split: Literal["train", "valid", "test"] = identity("its split; no model may have seen its openings")
    tasks: list[str] | None = text("dialogues of these tasks alone; null takes all")
    turns: int = identity("turns of the user that a dialogue has at least", ge=1)
    count: int | None = identity("dialogues at most, the first of the split; null takes all", ge=1)
    history: Literal["golden", "own"] = identity("the earlier answers: the dialogue's, or the model's own")
    prompting: Literal["chat", "raw", "auto"] | None = later(f"how dialogues are put. {talking.ABOUT}")
    decoding: Decoding = identity("how answers are drawn, one to each turn")
    judge: str = reference("who rates: endpoint:<model>, a policy, a reward model, gold:overall …")
    classifier: ClassifierReading = identity("how a classifier among them is read")
    rubrics: list[Rubric] = identity("what matters, by task; a judge that speaks needs one for every task")


class Turn(NamedTuple):
    """A turn of the user in a dialogue. ``history`` ends with it; ``golden`` is the dialogue's answer."""

    dialogue: Conversation
    number: int
    history: Messages
    golden: str

    @property
    def key(self) -> str:
        return f"{self.dialogue.id}/{self.number}"


def examine(settings: Settings, inputs: dict[str, Artifact], subject: Subject) -> Examined:
    """Answer turn by turn, and have the answers rated.

    Raises :class:`UserError` for what are no conversations, for tasks without a rubric, for a judge whose scores are
    only differences, and for a model or a judge that was trained on one of the dialogues.
    """
    if settings.decoding.samples != 1:
        raise UserError(f"suite.decoding.samples={settings.decoding.samples}: one answer is drawn to each turn")
    subject = talking.asked(subject, settings.prompting, talking.SPEAKERS)
    rubrics = {one.task: one for one in settings.rubrics}
    dialogues = chosen(inputs["dialogues"], settings)
    spoken = speaks(inputs["judge"])
    if spoken:
        _need_rubrics(dialogues, rubrics)
    subject.refuse_seen(map(row_key, dialogues))
    refuse_seen(inputs["judge"], map(row_key, dialogues))
    short = [one.id for one in dialogues if len(turns_of(one)) < _from_turn(one, rubrics)]
    if len(short) == len(dialogues):
        raise UserError(
            f"suite.dialogues: none of {len(dialogues):,} has a turn that is rated",
            cause="They end before the turn from which their rubric rates (from_turn).",
            remedy="Name longer ones, or rate from an earlier turn.",
        )
    answers = _answers(dialogues, rubrics, settings, subject)
    rated = [turn for one in dialogues for turn in turns_of(one) if turn.number >= _from_turn(one, rubrics)]
    there = [turn for turn in rated if turn.key in answers and answers[turn.key].reply.text.strip()]
    ratings = _ratings(there, answers, rubrics, settings, inputs, subject)
    by_key = {turn.key: rating for turn, rating in zip(there, ratings, strict=True)}
    measures = (*MEASURES, INVALID) if spoken else MEASURES
    notes = {"dialogues": len(dialogues), "in_a_chat": subject.chats}
    notes |= {"dialogues_without_a_rated_turn": len(short)} if short else {}
    return Examined(measures, _examples(dialogues, answers, by_key, rubrics), notes)


# ── dialogues ────────────────────────────────────────────────────────────────────────────────────


def chosen(dataset: Artifact, settings: Settings) -> list[Conversation]:
    """The first dialogues that are asked for. Raises :class:`UserError` where there is none."""
    from alignment.data import store

    found: list[Conversation] = []
    for row in store.stream(dataset.need("dataset").path, settings.split):
        if not isinstance(row, Conversation):
            raise UserError(
                f"{dataset.path} holds no conversations", remedy="Give a dataset whose recipe has kind: conversations."
            )
        long_enough = sum(turn.role == "user" for turn in row.messages) >= settings.turns
        if long_enough and (settings.tasks is None or task_of(row) in settings.tasks):
            found.append(row)
            if len(found) == settings.count:
                break
    if not found:
        raise UserError(
            f"{dataset.path} has no dialogue of {settings.turns} turns in its split {settings.split}",
            cause=f"Tasks: {', '.join(settings.tasks)}." if settings.tasks else "",
            remedy="Look at suite.split, suite.turns and suite.tasks.",
        )
    return found


def task_of(dialogue: Conversation) -> str:
    """The first tag of a dialogue."""
    return dialogue.tags[0] if dialogue.tags else UNTAGGED


def turns_of(dialogue: Conversation) -> list[Turn]:
    """The user's turns, from 1, each with the dialogue's own answer."""
    said = dialogue.messages
    places = [place for place, turn in enumerate(said) if turn.role == "assistant"]
    return [Turn(dialogue, number, said[:place], said[place].content) for number, place in enumerate(places, 1)]


def _from_turn(dialogue: Conversation, rubrics: Mapping[str, Rubric]) -> int:
    rubric = rubrics.get(task_of(dialogue))
    return 1 if rubric is None else rubric.from_turn


def _need_rubrics(dialogues: Sequence[Conversation], rubrics: Mapping[str, Rubric]) -> None:
    missing = next((task for one in dialogues if (task := task_of(one)) not in rubrics), None)
    if missing is not None:
        raise UserError(
            f"suite.rubrics: there is none for the task {missing!r}",
            cause="A judge is told what matters in a dialogue, by its first tag.",
            remedy="Add {task: …, ability: …, rubric: …, from_turn: 1, known: false}, or leave the task out of "
            "suite.tasks.",
        )


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


class Answered(NamedTuple):
    """What a turn's answer was given to, and the answer."""

    turns: Messages
    reply: Reply


def _answers(
    dialogues: Sequence[Conversation], rubrics: Mapping[str, Rubric], settings: Settings, subject: Subject
) -> dict[str, Answered]:
    """By the keys of the turns that were answered; with the golden history only those that are rated."""
    everything = [turn for one in dialogues for turn in turns_of(one)]
    if settings.history == "golden":
        asked = [turn for turn in everything if turn.number >= _from_turn(turn.dialogue, rubrics)]
        replies = subject.replies("answers", [Asked(one.key, one.history) for one in asked], settings.decoding)
        return {turn.key: Answered(turn.history, reply) for turn, (reply,) in zip(asked, replies, strict=True)}
    found: dict[str, Answered] = {}
    for number in range(1, max(turn.number for turn in everything) + 1):
        now = [(turn, own) for turn in everything if turn.number == number and (own := _own(turn, found))]
        asked_now = [Asked(turn.key, own) for turn, own in now]
        replies = subject.replies(f"answers to turn {number}", asked_now, settings.decoding)
        found |= {turn.key: Answered(own, reply) for (turn, own), (reply,) in zip(now, replies, strict=True)}
    return found


def _own(turn: Turn, found: Mapping[str, Answered]) -> Messages:
    """The turns up to this one with the model's own answers; none where it has fallen silent before."""
    if turn.number == 1:
        return turn.history
    before = found.get(f"{turn.dialogue.id}/{turn.number - 1}")
    if before is None or not before.reply.text.strip():
        return ()
    return (*before.turns, Message("assistant", before.reply.text), turn.history[-1])


# ── ratings ──────────────────────────────────────────────────────────────────────────────────────


class Rating(NamedTuple):
    """What the judge says; ``value`` is None where the reply, which ``reason`` then is, could not be read."""

    value: float | None
    reason: str | None


def _ratings(
    turns: Sequence[Turn],
    answers: Mapping[str, Answered],
    rubrics: Mapping[str, Rubric],
    settings: Settings,
    inputs: Mapping[str, Artifact],
    subject: Subject,
) -> list[Rating]:
    """What the judge says of every answer."""
    if not speaks(inputs["judge"]):
        dialogues = [(*answers[turn.key].turns, Message("assistant", answers[turn.key].reply.text)) for turn in turns]
        return [Rating(value, None) for value in _scored(dialogues, settings, inputs, subject)]
    respondent = subject.judge(inputs["judge"], "suite.judge")
    raters = {task: LlmRater(respondent, form_of(rubric)) for task, rubric in rubrics.items()}

    def rate(some: Sequence[Turn]) -> list[dict[str, Any]]:
        told: dict[str, Rating] = {}
        for task in dict.fromkeys(task_of(turn.dialogue) for turn in some):
            own = [turn for turn in some if task_of(turn.dialogue) == task]
            asked = [shown_to_judge(answers[turn.key].turns, turn.golden, rubrics[task]) for turn in own]
            keys = [turn.key for turn in own]
            said = raters[task].judge(asked, [answers[key].reply.text for key in keys], keys)
            for key, one in zip(keys, said, strict=True):
                told[key] = Rating(None, one) if isinstance(one, str) else Rating(float(one.value), one.reason)
        return [told[turn.key]._asdict() for turn in some]

    return [Rating(**row) for row in subject.in_parts("ratings", turns, rate)]


def form_of(rubric: Rubric) -> Form:
    """What a judge is told, and has to say, of the answers in a task."""
    said = f"Rate the answer from {LEAST} to {MOST}.\nWhat matters here: {rubric.rubric}\n{SCALE}"
    return Form("RATING", tuple(str(value) for value in range(LEAST, MOST + 1)), said)


def shown_to_judge(turns: Messages, golden: str, rubric: Rubric) -> Messages:
    """The turns before an answer, and where the task has it the answer that is known to be right."""
    return (Message("system", f"{KNOWN}{golden}"), *turns) if rubric.known else turns


def _scored(
    dialogues: Sequence[Messages], settings: Settings, inputs: Mapping[str, Artifact], subject: Subject
) -> list[float]:
    from alignment.data import store
    from alignment.scoring.opening import open_scorer

    world = store.world_of(inputs["dialogues"].path)
    reading = settings.classifier
    scorer = open_scorer(inputs["judge"], subject.engine, world, label=reading.label, text=reading.text)
    if not scorer.absolute:
        raise UserError(
            f"suite.judge={settings.judge}: its scores tell answers to one prompt apart, and no more",
            cause="A rating says how good an answer is, whatever was asked.",
            remedy="Name a model that rates in words, a classifier, or a reward model with a safety loss.",
        )
    return [LEAST + (MOST - LEAST) * one for one in scorer.score(dialogues).probability] if dialogues else []


# ── what is told ─────────────────────────────────────────────────────────────────────────────────


def _examples(
    dialogues: Sequence[Conversation],
    answers: Mapping[str, Answered],
    ratings: Mapping[str, Rating],
    rubrics: Mapping[str, Rubric],
) -> Iterator[Example]:
    for dialogue in dialogues:
        task = task_of(dialogue)
        groups = {"task": task}
        if rubrics:
            groups["ability"] = rubrics[task].ability if task in rubrics else "other"
        worst: list[float | None] = []
        for turn in turns_of(dialogue):
            if turn.number < _from_turn(dialogue, rubrics):
                continue
            values, shown = _of_turn(turn, answers.get(turn.key), ratings.get(turn.key))
            if turn.key in answers:
                worst.append(values.get("rating"))
            yield Example(turn.key, dialogue.id, values, groups | {"turn": str(turn.number)}, shown)
        rated = [one for one in worst if one is not None]
        score = {"score": min(rated)} if rated and len(rated) == len(worst) else {}
        if _fell_silent(dialogue, answers):
            score = {"score": float(LEAST)}
        yield Example(dialogue.id, dialogue.id, score, groups)


def _of_turn(turn: Turn, answered: Answered | None, rating: Rating | None) -> tuple[dict[str, float], dict[str, Any]]:
    """Measures of one answer, and what is shown of it; nothing where the dialogue had ended."""
    if answered is None:
        return {}, {}
    reply = answered.reply
    values = {"finished": float(reply.finished), "tokens": float(reply.tokens)}
    shown = {
        "prompt": [[one.role, one.content] for one in answered.turns],
        "answers": [reply.text],
        "reference": turn.golden,
    }
    if rating is None:
        return values | {"rating": float(LEAST)}, shown
    if rating.reason is not None:
        shown["reason"] = rating.reason
        values["invalid"] = float(rating.value is None)
    return (values if rating.value is None else values | {"rating": rating.value}), shown


def _fell_silent(dialogue: Conversation, answers: Mapping[str, Answered]) -> bool:
    return any(turn.key in answers and not answers[turn.key].reply.text.strip() for turn in turns_of(dialogue))
