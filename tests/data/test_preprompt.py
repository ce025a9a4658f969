"""Safety pre-prompts: where they stand, what is gained by them, and what is kept."""

from __future__ import annotations

import pytest

from alignment.chat.types import Conversation, Prompt, messages
from alignment.data import preprompt, taxonomy
from alignment.data.preprompt import Guided, Preprompt, Quarter
from alignment.errors import UserError
from alignment.miniature import preprompts
from alignment.miniature.skills import unsafe
from alignment.miniature.world import World

TEMPLATE = Preprompt("template", "Answer by the template.")
GENERIC = Preprompt("generic", "You are a wise assistant.")
TURNS = messages(("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"), ("user", "How do I pick a lock?"))


def test_the_pre_prompt_stands_before_the_last_user_message() -> None:
    assert preprompt.guided(TURNS, GENERIC) == messages(
        ("system", "Be kind."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "You are a wise assistant. How do I pick a lock?"),
    )
    assert preprompt.guided(TURNS[1:2], GENERIC) == messages(("user", "You are a wise assistant. Hi"))


def test_the_row_is_without_it_and_trains_the_answer_alone() -> None:
    prompt = Prompt(TURNS, "p-1", ("unsafe",), category="illicit_criminal", attack="direct", reference="No.")
    made = preprompt.row(prompt, Guided(TEMPLATE, "That worries me.", 0.9, ""))
    assert made == Conversation(
        (*TURNS, *messages(("assistant", "That worries me."))),
        "p-1",
        ("unsafe", "preprompt", "template", "illicit_criminal", "direct"),
        "last",
    )
    assert preprompt.row(Prompt(TURNS, "p"), Guided(GENERIC, "x", 1, "")).tags == ("preprompt", "generic")


def template(score: float, problem: str = "") -> Guided:
    return Guided(TEMPLATE, "t", score, problem)


def generic(score: float, problem: str = "") -> Guided:
    return Guided(GENERIC, "g", score, problem)


@pytest.mark.parametrize(
    ("answers", "plain", "min_gain", "kept"),
    [
        ((template(0.6),), 0.5, 0.0, "t"),
        ((template(0.5),), 0.5, 0.0, None),  # it must rise
        ((template(0.4),), 0.5, 0.0, None),
        ((template(0.75),), 0.5, 0.25, "t"),  # by min_gain at least
        ((template(0.74),), 0.5, 0.25, None),
        ((template(0.6), generic(0.7)), 0.5, 0.0, "g"),
        ((template(0.7), generic(0.6)), 0.5, 0.0, "t"),
        ((template(0.7), generic(0.7)), 0.5, 0.0, "t"),  # a tie is the template's
        ((generic(0.7), template(0.7)), 0.5, 0.0, "t"),
        ((template(0.9, "unfinished answer"), generic(0.6)), 0.5, 0.0, "g"),
        ((template(-2.0),), -3.0, 0.0, "t"),  # raw scores of a reward model may be anything
        ((template(0.4), generic(0.3)), 0.5, None, "t"),  # no gate
        ((template(0.4, "empty answer"), generic(0.3)), 0.5, None, "g"),
    ],
)
def test_the_gate(answers: tuple[Guided, ...], plain: float, min_gain: float | None, kept: str | None) -> None:
    taken, reason = preprompt.choose(answers, plain, min_gain)
    assert (taken.answer if taken else None) == kept
    assert reason == ("" if kept else "no gain in safety")


def test_an_answer_that_cannot_be_learned_from_is_told_as_such() -> None:
    assert preprompt.choose([template(1.0, "empty answer")], 0.0, 0.0) == (None, "empty answer")


def test_wordings_of_the_miniature_and_of_the_taxonomy() -> None:
    miniature, own = preprompt.from_miniature(), preprompt.from_taxonomy(taxonomy.load())
    assert miniature.generic == preprompts.GENERIC
    for wordings in (miniature, own):
        assert tuple(wordings.templates) == unsafe.CATEGORIES
        drawn = {wordings.draw("generic", "hateful_harmful", 0, f"p-{number}") for number in range(60)}
        assert {each.text for each in drawn} == set(wordings.generic)
    assert own.draw("template", "hateful_harmful", 0, "p").text.startswith("The following prompt has been classified")
    assert own.draw("generic", "x", 3, "p-1") == own.draw("generic", "y", 3, "p-1")
    seeds = [[own.draw("generic", "x", seed, f"p-{number}") for number in range(20)] for seed in (0, 1)]
    assert seeds[0] != seeds[1]
    with pytest.raises(UserError, match=r"category 'hateful'.*\nDid you mean 'hateful_harmful'\?"):
        miniature.draw("template", "hateful", 0, "p")


def test_the_miniature_world_sees_through_its_pre_prompts() -> None:
    """The scorer judges the prompt without; what is asked must be the same with."""
    world = World(0, 40)
    turns = messages(("user", "How do I steal Anna's bicycle?"))
    plain = world.understand(turns)
    assert plain is not None
    for kind in preprompt.KINDS:
        drawn = preprompt.from_miniature().draw(kind, "illicit_criminal", 0, "p")
        assert world.understand(preprompt.guided(turns, drawn)) == plain


def test_quarters_by_plain_score() -> None:
    """Ranks of 0.9 0.1 0.5 0.3 …: two prompts a quarter; the best kind counts for what got worse."""
    plain = [0.9, 0.1, 0.5, 0.3, 0.8, 0.2, 0.6, 0.4]
    guided = {
        "template": [0.7, 0.9, 0.4, 0.9, 0.9, 0.8, 0.6, 0.9],
        "generic": [0.8, 0.1, 0.45, 0.1, 0.1, 0.6, 0.1, 0.1],
    }
    found = preprompt.quarters(plain, guided)
    expected = [
        (2, 0.15, 0.85, 0.35, 0.0),  # 0.1 0.2
        (2, 0.35, 0.90, 0.10, 0.0),  # 0.3 0.4
        (2, 0.55, 0.50, 0.275, 0.5),  # 0.5 → 0.45 is worse, 0.6 → 0.6 is not
        (2, 0.85, 0.80, 0.45, 0.5),  # 0.8 → 0.9, 0.9 → 0.8 is worse
    ]
    assert [
        (each.prompts, each.plain, each.guided["template"], each.guided["generic"], each.worse) for each in found
    ] == [pytest.approx(line) for line in expected]


def test_fewer_prompts_than_quarters() -> None:
    assert preprompt.quarters([], {"generic": []}) == []
    assert preprompt.quarters([0.5], {"generic": [0.4]}) == [Quarter(1, 0.5, {"generic": 0.4}, 1.0)]
    assert [each.prompts for each in preprompt.quarters([0.5] * 6, {"generic": [0.5] * 6})] == [2, 1, 1, 2]
