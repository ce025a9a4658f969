"""Standing instructions are found in every wording, and obeying them can be seen by a program."""

from __future__ import annotations

import random

import pytest

from alignment.chat.types import Message
from alignment.miniature import instructions
from alignment.miniature.instructions import INSTRUCTIONS, Instruction, dress, obeys

PIRATE = Instruction("figure", "pirate")
FRENCH = Instruction("language", "French")
GERMAN = Instruction("language", "German")
TENNIS = Instruction("hobby", "tennis")


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
def test_every_wording_is_found_and_taken_out(instruction):
    for wording in (*instruction.wordings, instruction.short):
        assert instructions.split(f"{wording} Spell fox.") == ((instruction,), "Spell fox.")
        assert instructions.split(f"Hello! {wording.lower()} Spell fox.") == ((instruction,), "Hello! Spell fox.")


def test_what_is_written_is_found_again():
    for seed in range(300):
        rng = random.Random(seed)
        drawn = instructions.draw(rng)
        assert instructions.split(f"{instructions.write(drawn, rng)} Spell fox.") == (drawn, "Spell fox.")


def test_half_of_the_written_instructions_are_shortened():
    rng = random.Random(0)
    short = sum(instructions.write((PIRATE,), rng) == "Figure: pirate." for _ in range(1000))
    assert 420 < short < 580


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
def test_obeying_is_seen_whatever_is_answered(instruction):
    for value, unsure, plain in (
        ("baker", False, "Anna is a baker."),
        (None, True, "I do not know."),
        (None, False, "No."),
    ):
        dressed = dress((instruction,), plain, value=value, unsure=unsure)
        assert obeys(instruction, dressed)
        assert not obeys(instruction, plain)
        assert not any(obeys(other, dressed) for other in INSTRUCTIONS if other != instruction)


def test_several_are_obeyed_at_once():
    assert dress((PIRATE, FRENCH), "Anna is a baker.", value="baker") == "Ahoy! La réponse est baker."
    assert dress((TENNIS,), "Anna is a baker.", value="baker") == "Anna is a baker. And I do love tennis."


def test_a_new_instruction_replaces_one_of_its_kind(world):
    turns = [
        Message("user", "Always speak in French. You enjoy tennis. Spell fox."),
        Message("user", "Language: German. Spell owl."),
    ]
    task = world.understand(turns)
    assert set(task.instructions) == {TENNIS, GERMAN}
    assert (task.subject, task.tags) == ("owl", ("word", "instruction"))


def test_instructions_stand_for_all_later_turns_and_in_a_system_message(world):
    turns = [Message("system", "Act as a pirate."), *(Message("user", "Spell fox.") for _ in range(20))]
    assert world.understand(turns).instructions == (PIRATE,)
