"""What the miniature world gives to train on: prose, conversations, prompts and comparisons.

Every stream is decided by its seed, row by row: the first rows do not change when more are asked for.
Conversations, comparisons, RL, validation and test prompts come from disjoint pools (``World.split``).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence

from alignment.chat.types import Comparison, Conversation, Message, Prompt, Text, prompt_key
from alignment.errors import UserError
from alignment.miniature import answers, dialogues, gold, prose
from alignment.miniature.dialogues import MIX, Turn
from alignment.miniature.raters import Aspect, Rater, is_safe
from alignment.miniature.skills.skill import Task
from alignment.miniature.world import Split, World

# One unsafe prompt in four is judged for helpfulness alone, as when raters of helpfulness meet one.
_UNSAFE_FOR_HELP = 0.25
# Of 100 pairs in Llama 2's safety set 18 have one safe answer, 47 two and 35 none (§3.1), by their number here.
_SAFE_ANSWERS = {1: 0.18, 2: 0.47, 0: 0.35}
_CORRUPTED = 0.1
_PATIENCE = 400


def texts(world: World, n: int, seed: int) -> Iterator[Text]:
    """``n`` passages of prose for pre-training."""
    for row in range(n):
        yield Text(prose.passage(world, random.Random(f"text:{seed}:{row}")), f"mini-text-{seed}-{row}")


def conversations(
    world: World,
    n: int,
    seed: int,
    noise: float,
    *,
    split: Split = "sft",
    mix: Mapping[str, float] = MIX,
) -> Iterator[Conversation]:
    """``n`` conversations; a share ``noise`` of the answers is poor. Small talk stays in the split ``sft``."""
    kinds = mix if split == "sft" else _measurable(mix)
    for row in range(n):
        rng = random.Random(f"conversation:{split}:{seed}:{row}")
        turns = dialogues.dialogue(world, dialogues.draw_kind(kinds, rng), rng, split)
        written = dialogues.imperfect(world, turns, noise, rng)
        yield Conversation(written, f"mini-{split}-{seed}-{row}", _tags(turns))


def long_dialogues(
    world: World, n: int, seed: int, noise: float, *, turns: int, split: Split = "sft", instructed: bool = False
) -> Iterator[Conversation]:
    """``n`` dialogues of two to ``turns`` turns as people demonstrate them.

    They are plain, so that an instruction can be put into them (Ghost Attention); or (``instructed``) under one that
    the first turn gives, asked as people ask, obeyed in two turns and then forgotten.
    """
    stream = "instructed" if instructed else "long"
    for row in range(n):
        rng = random.Random(f"{stream}:{split}:{seed}:{row}")
        asked = dialogues.longer(world, rng, split, turns=turns, instructed=instructed)
        written = dialogues.imperfect(world, asked, noise, rng)
        yield Conversation(written, f"mini-{stream}-{split}-{seed}-{row}", _tags(asked))


def standing_dialogues(world: World, n: int, seed: int, *, turns: int, split: Split = "test") -> Iterator[Conversation]:
    """``n`` perfect dialogues of ``turns`` turns under instructions given once, at the start (recall by turn)."""
    for row in range(n):
        rng = random.Random(f"standing:{split}:{seed}:{row}")
        asked = dialogues.standing(world, rng, split, turns=turns, first_only=True)
        yield Conversation(
            dialogues.perfect(world, asked, rng), f"mini-standing-{split}-{seed}-{row}", _tags(asked), "last"
        )


def prompts(
    world: World, n: int, seed: int, *, split: Split = "test", mix: Mapping[str, float] = MIX
) -> Iterator[Prompt]:
    """``n`` prompts with different openings. Small talk is left out: there is too little of it to measure.

    Raises UserError when a kind has no more openings in the split.
    """
    for turns, rng in _openings(world, n, f"prompt:{split}:{seed}", split, mix):
        yield _prompt(world, turns, rng)


def comparisons(
    world: World,
    n: int,
    seed: int,
    *,
    rater_noise: float,
    rater_taste: float,
    split: Split = "comparisons",
    mix: Mapping[str, float] = MIX,
    aspect: Aspect | None = None,
) -> Iterator[Comparison]:
    """``n`` pairs of answers to prompts of one split, judged by an imperfect rater.

    By ``helpfulness`` whatever is asked; by ``safety`` unsafe requests alone, in Llama 2's shares of safe and unsafe
    answers; by default one unsafe request in four for helpfulness, the others for safety. ``source`` is
    ``miniature_helpfulness`` or ``miniature_safety`` (with safety labels).
    As in Llama 2's safety set, no pair prefers an unsafe answer to a safe one.
    """
    rater = Rater(world, rater_noise, rater_taste, seed)
    kinds = {"unsafe": 1.0} if aspect == "safety" else _measurable(mix)
    stream = f"{split}:{seed}" if aspect is None else f"{aspect}:{split}:{seed}"
    for row in range(n):
        rng = random.Random(f"comparison:{stream}:{row}")
        turns = dialogues.dialogue(world, dialogues.draw_kind(kinds, rng), rng, split)
        prompt, row_id = _prompt(world, turns, rng), f"mini-{stream.replace(':', '-')}-{row}"
        if aspect == "safety":
            yield _safety_comparison(world, rater, prompt, turns[-1].task, row_id, rng)
        else:
            yield _comparison(world, rater, prompt, turns[-1].task, row_id, rng, aspect)


def _comparison(
    world: World, rater: Rater, prompt: Prompt, task: Task, row_id: str, rng: random.Random, aspect: Aspect | None
) -> Comparison:
    """Two answers as they come."""
    if aspect is None:
        mostly_safety = prompt.category is not None and rng.random() >= _UNSAFE_FOR_HELP
        aspect = "safety" if mostly_safety else "helpfulness"
    while True:
        first, second = (_some_answer(world, task, rng) for _ in range(2))
        if found := _judged(rater, prompt, first, second, row_id, rng, aspect):
            return found


def _safety_comparison(
    world: World, rater: Rater, prompt: Prompt, task: Task, row_id: str, rng: random.Random
) -> Comparison:
    """Two answers of which none, one or both are safe, as often as in Llama 2's safety set."""
    wanted = rng.choices(tuple(_SAFE_ANSWERS), tuple(_SAFE_ANSWERS.values()))[0]
    while True:
        first, second = (_some_answer(world, task, rng) for _ in range(2))
        if sum(is_safe(gold.safety_of(world, task, answer)) for answer in (first, second)) != wanted:
            continue
        if found := _judged(rater, prompt, first, second, row_id, rng, "safety"):
            return found


def _judged(
    rater: Rater, prompt: Prompt, first: str, second: str, row_id: str, rng: random.Random, aspect: Aspect
) -> Comparison | None:
    """The comparison that the rater makes of two answers; None for equal ones, or where it is against all sense."""
    if first == second:
        return None
    verdict = rater.compare(prompt.messages, first, second, key=f"{row_id}:{rng.random()}", aspect=aspect)
    pair = [(first, verdict.first_safe), (second, verdict.second_safe)]
    (chosen, chosen_safe), (rejected, rejected_safe) = pair if verdict.first_better else pair[::-1]
    if chosen_safe is False and rejected_safe is True:
        return None
    return Comparison(
        prompt.messages, chosen, rejected, verdict.grade, f"miniature_{aspect}", row_id, chosen_safe, rejected_safe
    )


def _some_answer(world: World, task: Task, rng: random.Random) -> str:
    """An answer such as a model in training might give: good, poor, forgetful or garbled."""
    grade = answers.best(task) if rng.random() < 0.35 else answers.poor(task, rng)
    said = answers.answer(world, task, grade, rng, obey=rng.random() < 0.7)
    return corrupted(said, rng) if rng.random() < _CORRUPTED else said


def corrupted(answer: str, rng: random.Random) -> str:
    """The answer with one to three accidents: a word lost, doubled or swapped, or the end cut off."""
    words = answer.split()
    for _ in range(rng.choice((1, 1, 2, 3))):
        if len(words) < 3:
            break
        place = rng.randrange(len(words) - 1)
        accident = rng.randrange(4)
        if accident == 0:
            del words[place]
        elif accident == 1:
            words.insert(place, words[place])
        elif accident == 2:
            words[place], words[place + 1] = words[place + 1], words[place]
        else:
            words = words[: max(2, place + 1)]
    return " ".join(words)


def _openings(
    world: World, n: int, stream: str, split: Split, mix: Mapping[str, float]
) -> Iterator[tuple[list[Turn], random.Random]]:
    """Dialogues whose openings are all different."""
    seen: set[str] = set()
    kinds = _measurable(mix)
    for row in range(n):
        rng = random.Random(f"{stream}:{row}")
        kind = dialogues.draw_kind(kinds, rng)
        for _ in range(_PATIENCE):
            turns = dialogues.dialogue(world, kind, rng, split)
            key = prompt_key((Message("user", turns[0].question),))
            if key not in seen:
                break
        else:
            raise UserError(
                f"n={n} prompts of the split {split!r}",
                cause=f"After {row} prompts the miniature world has no new opening left for a prompt of kind {kind!r}.",
                remedy="Ask for fewer prompts, give this kind a smaller share of the mixture, or add residents.",
            )
        seen.add(key)
        yield turns, rng


def _measurable(mix: Mapping[str, float]) -> dict[str, float]:
    kinds = {kind: weight for kind, weight in mix.items() if kind != "smalltalk"}
    if not any(weight > 0 for weight in kinds.values()):
        raise UserError(
            f"mixture={dict(mix)}",
            cause="It leaves no kind of prompt but small talk, which is too little to measure by.",
            remedy="Give another kind a weight above 0.",
        )
    return kinds


def _prompt(world: World, turns: Sequence[Turn], rng: random.Random) -> Prompt:
    last = turns[-1]
    history = (*dialogues.perfect(world, turns[:-1], rng), Message("user", last.question))
    whole = "\n".join(f"{turn.role}: {turn.content}" for turn in history)
    return Prompt(
        history,
        f"mini-{hashlib.sha256(whole.encode()).hexdigest()[:16]}",
        _tags(turns),
        category=last.task.category,
        attack=last.task.attack,
        reference=answers.answer(world, last.task, answers.best(last.task), random.Random(whole)),
    )


def _tags(turns: Sequence[Turn]) -> tuple[str, ...]:
    """What the last turn asks, and whether there are earlier ones."""
    tags = turns[-1].task.tags
    return tags if len(turns) == 1 else (*tags, "multi_turn")


def worth(world: World, conversation: Conversation) -> float:
    """The mean gold score of a conversation's answers (safety where the request is unsafe)."""
    turns = conversation.messages
    scores = [
        gold.overall(world, turns[:place], turn.content) for place, turn in enumerate(turns) if turn.role == "assistant"
    ]
    return sum(scores) / len(scores)
