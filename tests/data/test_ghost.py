"""Ghost Attention's transforms, on dialogues that are written out (Llama 2, §3.3 and figure 9)."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from alignment.chat.types import Conversation, Messages, messages, prompt_key, row_key
from alignment.data import ghost, lists
from alignment.data.ghost import Assignment, Instruction, Source
from alignment.errors import UserError
from alignment.miniature import instructions as world

NAPOLEON = Instruction("figure", "Napoleon", "Always act as Napoleon from now.", "Figure: Napoleon.")
FRENCH = Instruction("language", "French", "Speak in French.", "Language: French.")
TENNIS = Instruction("hobby", "tennis", "You enjoy tennis.", "Hobby: tennis.")
HAIKU = Instruction("free", "Always answer with a haiku.", "Always answer with a haiku.", "Format: haiku.")

TWO = messages(
    ("user", "Who are you?"),
    ("assistant", "I am an assistant."),
    ("user", "Where were you born?"),
    ("assistant", "I was not born."),
)
ONE = messages(("user", "How are you?"), ("assistant", "Fine."))
SYSTEM = messages(
    ("system", "Be brief."),
    ("user", "Hi"),
    ("assistant", "Hello."),
    ("user", "And now?"),
    ("assistant", "Bye."),
)
TWENTY = tuple(
    turn
    for number in range(1, 21)
    for turn in messages(("user", f"Question {number}?"), ("assistant", f"Answer {number}."))
)


def test_the_instruction_stands_before_every_user_message_for_drawing() -> None:
    assert ghost.everywhere(TWO, "Act as Napoleon.") == messages(
        ("user", "Act as Napoleon. Who are you?"),
        ("assistant", "I am an assistant."),
        ("user", "Act as Napoleon. Where were you born?"),
        ("assistant", "I was not born."),
    )
    assert ghost.everywhere(ONE[:1], "Speak in French.") == messages(("user", "Speak in French. How are you?"))


def test_the_instruction_stands_before_the_first_user_message_for_training() -> None:
    assert ghost.first_only(TWO, "Act as Napoleon.") == messages(
        ("user", "Act as Napoleon. Who are you?"),
        ("assistant", "I am an assistant."),
        ("user", "Where were you born?"),
        ("assistant", "I was not born."),
    )
    assert ghost.first_only(ONE, "Speak in French.") == messages(
        ("user", "Speak in French. How are you?"), ("assistant", "Fine.")
    )


def test_a_system_message_stays_as_it_is() -> None:
    assert ghost.everywhere(SYSTEM, "You enjoy tennis.") == messages(
        ("system", "Be brief."),
        ("user", "You enjoy tennis. Hi"),
        ("assistant", "Hello."),
        ("user", "You enjoy tennis. And now?"),
        ("assistant", "Bye."),
    )
    assert ghost.first_only(SYSTEM, "You enjoy tennis.") == messages(
        ("system", "Be brief."),
        ("user", "You enjoy tennis. Hi"),
        ("assistant", "Hello."),
        ("user", "And now?"),
        ("assistant", "Bye."),
    )


def test_the_row_of_the_paper() -> None:
    """Drawn under the full wording in both turns; trained with the short one in the first, on the last answer."""
    dialogue = Conversation(TWO, "d-1", ("chat",))
    assigned = Assignment(dialogue, (NAPOLEON,), shortened=True)
    assert assigned.prompt(2, {}) == messages(
        ("user", "Always act as Napoleon from now. Who are you?"),
        ("assistant", "I am an assistant."),
        ("user", "Always act as Napoleon from now. Where were you born?"),
    )
    assert ghost.training_row(assigned, {2: "On Corsica, as every child in France knows!"}) == Conversation(
        messages(
            ("user", "Figure: Napoleon. Who are you?"),
            ("assistant", "I am an assistant."),
            ("user", "Where were you born?"),
            ("assistant", "On Corsica, as every child in France knows!"),
        ),
        "d-1",
        ("chat", "ghost", "figure", f"opening:{prompt_key(TWO)}"),
        "last",
    )


def test_parts_are_combined_and_shortened_together() -> None:
    parts = (FRENCH, TENNIS, HAIKU)
    long = Assignment(Conversation(TWO, "d"), parts, shortened=False)
    short = Assignment(Conversation(TWO, "d"), parts, shortened=True)
    assert long.full == long.given == short.full == "Speak in French. You enjoy tennis. Always answer with a haiku."
    assert short.given == "Language: French. Hobby: tennis. Format: haiku."
    opening = f"opening:{prompt_key(TWO)}"
    assert ghost.training_row(short, {2: "Oui."}).tags == ("ghost", "language", "hobby", "free", opening)


def test_a_dialogue_whose_every_answer_is_drawn() -> None:
    assigned = Assignment(Conversation(TWO, "d"), (FRENCH,), shortened=False)
    assert assigned.prompt(1, {}) == messages(("user", "Speak in French. Who are you?"))
    assert assigned.prompt(2, {1: "Un assistant."}) == messages(
        ("user", "Speak in French. Who are you?"),
        ("assistant", "Un assistant."),
        ("user", "Speak in French. Where were you born?"),
    )
    assert ghost.training_row(assigned, {1: "Un assistant.", 2: "Nulle part."}).messages == messages(
        ("user", "Speak in French. Who are you?"),
        ("assistant", "Un assistant."),
        ("user", "Where were you born?"),
        ("assistant", "Nulle part."),
    )


def test_one_turn_and_twenty() -> None:
    single = Assignment(Conversation(ONE, "d"), (FRENCH,), shortened=False)
    assert single.turns == 1
    assert ghost.training_row(single, {1: "Bien."}).messages == messages(
        ("user", "Speak in French. How are you?"), ("assistant", "Bien.")
    )
    long = Assignment(Conversation(TWENTY, "d"), (FRENCH,), shortened=True)
    prompt = long.prompt(20, {})
    assert len(prompt) == 39
    assert [turn.content for turn in prompt if turn.role == "user"] == [
        f"Speak in French. Question {number}?" for number in range(1, 21)
    ]
    row = ghost.training_row(long, {20: "Vingt."})
    assert row.messages[0].content == "Language: French. Question 1?"
    assert row.messages[1:-1] == TWENTY[1:-1]
    assert row.messages[-1].content == "Vingt."
    assert row.train == "last"


def test_a_row_needs_the_answer_that_is_trained() -> None:
    with pytest.raises(AssertionError):
        ghost.training_row(Assignment(Conversation(TWO, "d"), (FRENCH,), shortened=False), {1: "Oui."})


def test_turns_are_counted_with_and_without_a_system_message() -> None:
    assert [ghost.user_turns(turns) for turns in (ONE, TWO, SYSTEM, TWENTY)] == [1, 2, 2, 20]
    assert ghost.up_to(SYSTEM, 1) == SYSTEM[:2]
    assert ghost.up_to(SYSTEM, 2) == SYSTEM[:4]
    assert ghost.answered(SYSTEM, {1: "A", 2: "B"})[2::2] == messages(("assistant", "A"), ("assistant", "B"))


HOW = ("last", "all", "mixed")


# ── which dialogue is told what ──────────────────────────────────────────────────────────────────


def assign(turns: Messages, source: Source, name: str = "d", **changes) -> Assignment:
    said = {"seed": 0, "shorten": 0.5, "min_turns": 2, "max_turns": 20, "end": "last", "answers": "last"} | changes
    return ghost.assign(Conversation(turns, name), source, **said)


def test_seed_and_id_decide_alone() -> None:
    source = ghost.source_of(None)
    first = [assign(TWO, source, f"d-{number}") for number in range(50)]
    assert [assign(TWO, source, f"d-{number}") for number in range(50)] == first
    assert [assign(TWO, source, f"d-{number}", seed=1) for number in range(50)] != first
    assert len({each.full for each in first}) > 40


def test_half_of_the_rows_are_shortened() -> None:
    source = ghost.source_of(None)
    shortened = [assign(TWO, source, f"d-{number}").shortened for number in range(2000)]
    assert abs(sum(shortened) / 2000 - 0.5) < 0.04
    assert not any(assign(TWO, source, f"d-{number}", shorten=0.0).shortened for number in range(50))
    assert all(assign(TWO, source, f"d-{number}", shorten=1.0).shortened for number in range(50))


def test_which_answers_are_drawn() -> None:
    source = ghost.source_of(None)
    some = {how: [assign(TWENTY, source, f"d-{number}", answers=how) for number in range(1000)] for how in HOW}
    assert not any(each.every for each in some["last"])
    assert all(each.every for each in some["all"])
    assert abs(sum(each.every for each in some["mixed"]) / 1000 - 0.5) < 0.06
    assert len({tuple(replace(each, every=False) for each in ones) for ones in some.values()}) == 1, "all else is alike"


def test_where_a_dialogue_ends() -> None:
    source = ghost.source_of(None)
    assert assign(TWENTY, source).dialogue.messages == TWENTY
    assert assign(TWENTY, source, max_turns=7).dialogue.messages == TWENTY[:14]
    assert assign(SYSTEM, source, min_turns=1, max_turns=1).dialogue.messages == SYSTEM[:3]
    ends = Counter(
        assign(TWENTY, source, f"d-{number}", end="random", min_turns=3, max_turns=6).turns for number in range(800)
    )
    assert set(ends) == {3, 4, 5, 6}
    assert min(ends.values()) > 150
    assert assign(TWO, source, end="random", min_turns=2).turns == 2


def test_dialogues_that_do_not_suit() -> None:
    lists_source, miniature = ghost.source_of(None), ghost.source_of("miniature")
    assert ghost.unfit(Conversation(ONE, "d"), lists_source, 2) == "fewer than 2 user turns"
    assert ghost.unfit(Conversation(ONE, "d"), lists_source, 1) == ""
    told = messages(("user", "Hi"), ("assistant", "Hi"), ("user", "Act as a pirate. Hi"), ("assistant", "Ahoy!"))
    assert ghost.unfit(Conversation(told, "d"), miniature, 2) == "instruction of its own"
    assert ghost.unfit(Conversation(told, "d"), lists_source, 2) == ""
    answered = messages(("user", "Hi"), ("assistant", "Act as a pirate."), ("user", "Why?"), ("assistant", "So."))
    assert ghost.unfit(Conversation(answered, "d"), miniature, 2) == ""


# ── where instructions come from ─────────────────────────────────────────────────────────────────


def test_the_shipped_lists_combine_different_kinds() -> None:
    source = ghost.source_of(None)
    assert source.obeys is None
    drawn = [source.draw(random.Random(number)) for number in range(3000)]
    sizes = Counter(map(len, drawn))
    assert [abs(sizes[parts] / 3000 - share) < 0.03 for parts, share in ((1, 0.5), (2, 0.35), (3, 0.15))] == [True] * 3
    assert all(len({part.kind for part in told}) == len(told) for told in drawn)
    kinds = Counter(part.kind for told in drawn for part in told)
    assert set(kinds) == {"hobby", "language", "figure", "free"}
    assert max(kinds.values()) < 1.2 * min(kinds.values())
    texts = {(part.full, part.short) for told in drawn for part in told}
    assert ("Always act as Napoleon from now.", "Figure: Napoleon.") in texts
    assert ("Speak in French.", "Language: French.") in texts
    assert all("{" not in full + short and len(short) <= len(full) + 12 for full, short in texts)


def test_the_miniature_can_be_verified() -> None:
    source = ghost.source_of("miniature")
    assert source.obeys is not None
    pirate = Instruction("figure", "pirate", "Act as a pirate.", "Figure: pirate.")
    assert source.obeys(pirate, "Ahoy! It is tea.")
    assert not source.obeys(pirate, "It is tea.")
    for number in range(300):
        for part in source.draw(random.Random(number)):
            wanted = (world.Instruction(part.kind, part.value),)
            assert world.split(f"{part.full} Hello")[0] == wanted
            assert world.split(f"{part.short} Hello")[0] == wanted


def test_the_miniature_world_reads_the_combined_text() -> None:
    """It must understand what the rows say, or nobody could learn from them."""
    source = ghost.source_of("miniature")
    for number in range(200):
        assigned = assign(TWO, source, f"d-{number}")
        row = ghost.training_row(assigned, {2: "Yes."})
        read, rest = world.split(row.messages[0].content)
        assert [(each.kind, each.value) for each in read] == [(p.kind, p.value) for p in assigned.instructions]
        assert rest == "Who are you?"


@pytest.fixture
def values() -> dict:
    return yaml.safe_load((lists.FOLDER / ghost.SHIPPED).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parts": [1, 1, 1, 1, 1]}, r"parts=.*: 4 weights at most.*\n.*hobby, language, figure, free"),
        ({"parts": [0.0]}, "one of them above 0"),
        ({"parts": [1.0, -0.1]}, "of 0 and more"),
        ({"parts": [float("nan")]}, r"parts\.0=nan.*a finite number"),
        ({"kinds": {"free": {"full": ["{value}"], "short": "{value}", "values": ["x"]}}}, r"kinds\.free"),
        ({"kinds": {"mood": {"full": ["Be {value}.", "Be {mood}."], "short": "{value}", "values": ["x"]}}},
         r"kinds\.mood\.full\.1='Be \{mood\}\.'"),
        ({"kinds": {"mood": {"full": ["Be {value}."], "short": "Mood.", "values": ["x"]}}}, r"kinds\.mood\.short"),
        ({"kinds": {"mood": {"full": ["Be {value."], "short": "{value}", "values": ["x"]}}}, r"kinds\.mood\.full\.0"),
        ({"kinds": {"mood": {"full": ["{value}"], "short": "{value}", "values": []}}}, r"kinds\.mood\.values"),
        ({"free": [{"full": "Be kind."}]}, r"free\.0\.short: a value is needed"),
        ({"hobbies": []}, "hobbies: there is no such key"),
    ],
)  # fmt: skip
def test_lists_that_do_not_fit_are_refused_with_their_key(values: dict, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        ghost.Lists.parse(values | {"parts": [1]} | change, "mine.yaml")
    assert "mine.yaml" in str(error.value)


def test_a_list_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("parts: [1]\nkinds: {}\nfree: [{full: Hum., short: Hum}]\n")
    source = ghost.source_of(str(path))
    assert source.draw(random.Random(0)) == (Instruction("free", "Hum.", "Hum.", "Hum"),)
    assert ghost.path_of(str(path)) == path
    assert ghost.path_of(None) == lists.FOLDER / ghost.SHIPPED
    assert ghost.path_of("miniature") is None
    with pytest.raises(UserError, match="there is no such file"):
        ghost.source_of("nowhere.yaml")


def test_a_ghost_row_is_known_by_the_question_it_was_made_from() -> None:
    """So that it falls on the side of the plain question, and a model that learned it has seen that question."""
    plain = Conversation(TWO, "d")
    made = ghost.training_row(Assignment(plain, (FRENCH,), shortened=False), {2: "Oui."})
    assert prompt_key(made.messages) != prompt_key(TWO)
    assert row_key(made) == row_key(plain) == prompt_key(TWO)
    again = ghost.training_row(Assignment(made, (FRENCH,), shortened=True), {2: "Oui."})
    assert row_key(again) == prompt_key(TWO)
