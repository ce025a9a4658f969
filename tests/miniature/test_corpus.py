"""What the world gives to train on: deterministic, disjoint, imperfect as asked."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from alignment.chat.types import Message, prompt_key
from alignment.errors import UserError
from alignment.miniature import corpus, dialogues, gold, instructions, lexicon
from alignment.miniature.instructions import obeys
from alignment.miniature.preprompts import GENERIC, PREPROMPTS, TEMPLATES

RATER = {"rater_noise": 0.15, "rater_taste": 0.3}


def streams(world, n):
    return {
        "texts": lambda: corpus.texts(world, n, 5),
        "conversations": lambda: corpus.conversations(world, n, 5, 0.5),
        "prompts": lambda: corpus.prompts(world, n, 5),
        "comparisons": lambda: corpus.comparisons(world, n, 5, **RATER),
        "standing": lambda: corpus.standing_dialogues(world, n, 5, turns=4),
        "long": lambda: corpus.long_dialogues(world, n, 5, 0.5, turns=6),
        "instructed": lambda: corpus.long_dialogues(world, n, 5, 0.5, turns=6, instructed=True),
    }


@pytest.mark.parametrize("name", ["texts", "conversations", "prompts", "comparisons", "standing", "long", "instructed"])
def test_rows_depend_on_the_seed_and_not_on_how_many_are_drawn(world, name):
    few, many = list(streams(world, 40)[name]()), list(islice(streams(world, 120)[name](), 40))
    assert few == many
    assert len({row.id for row in few}) == 40


def test_another_seed_gives_other_rows(world):
    assert list(corpus.texts(world, 5, 0)) != list(corpus.texts(world, 5, 1))
    first, second = (list(corpus.conversations(world, 5, seed, 0.5)) for seed in (0, 1))
    assert [row.messages for row in first] != [row.messages for row in second]


def test_everything_is_the_same_in_another_process_whatever_its_hash_seed():
    program = """
import hashlib
from alignment.miniature import corpus
from alignment.miniature.world import World
w = World(1, 12)
rows = [*corpus.texts(w, 30, 2), *corpus.conversations(w, 60, 2, 0.5), *corpus.prompts(w, 30, 2),
        *corpus.comparisons(w, 40, 2, rater_noise=0.2, rater_taste=0.3)]
print(hashlib.sha256(repr(rows).encode()).hexdigest())
"""
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1
    assert len(digests.pop().strip()) == hashlib.sha256().digest_size * 2


def test_pools_are_disjoint_and_large_enough(world):
    def keys(rows):
        return {prompt_key(row.messages) for row in rows}

    sft = keys(corpus.conversations(world, 3000, 0, 0.5))
    pools = {split: keys(corpus.prompts(world, 1500, 0, split=split)) for split in ("rl", "test")}
    pools["valid"] = keys(corpus.prompts(world, 700, 0, split="valid"))
    pools["comparisons"] = {prompt_key(row.prompt) for row in corpus.comparisons(world, 800, 0, **RATER)}
    assert len(pools["test"]) == len(pools["rl"]) == 1500
    everything = [sft, *pools.values()]
    assert len(set().union(*everything)) == sum(map(len, everything))


def test_no_later_question_gives_a_test_question_away(world):
    """Every user turn of SFT that stands alone belongs to the split of SFT."""
    for row in corpus.conversations(world, 1500, 1, 0.5):
        for turn in row.messages[::2]:
            task = world.understand((turn,))
            if task is not None and task.kind != "smalltalk":
                assert world.split(turn.content) == "sft", turn.content


def test_asking_for_more_than_there_is_is_an_error(world, monkeypatch):
    monkeypatch.setattr(corpus, "_PATIENCE", 4)
    with pytest.raises(UserError, match="no new opening left for a prompt of kind 'word'"):
        list(corpus.prompts(world, 3000, 0, split="valid", mix={"word": 1.0}))
    with pytest.raises(UserError, match="small talk"):
        list(corpus.prompts(world, 3, 0, mix={"smalltalk": 1.0, "fact": 0.0}))


def test_noise_is_the_share_of_poor_answers(world):
    def mean_worth(noise):
        rows = list(
            corpus.conversations(
                world, 1200, 0, noise, mix={k: v for k, v in dialogues.MIX.items() if k != "instruction"}
            )
        )
        return sum(corpus.worth(world, row) for row in rows) / len(rows)

    perfect, half, poor = (mean_worth(noise) for noise in (0.0, 0.5, 1.0))
    assert perfect > 0.98
    assert half == pytest.approx((perfect + poor) / 2, abs=0.04)
    assert 0.5 < half < 0.75
    assert poor < 0.4


def test_standing_instructions_are_soon_forgotten_in_conversations_and_never_in_standing_dialogues(world):
    def recall(rows):
        obeyed: dict[int, list[bool]] = {}
        for row in rows:
            for place in range(1, len(row.messages), 2):
                task = world.understand(row.messages[:place])
                said = row.messages[place].content
                obeyed.setdefault(place // 2 + 1, []).append(all(obeys(each, said) for each in task.instructions))
        return {turn: sum(values) / len(values) for turn, values in obeyed.items()}

    asked_once = [
        row
        for row in corpus.conversations(world, 2000, 0, 0.0, mix={"instruction": 1.0})
        if world.understand(row.messages[:1]).instructions and not world.understand(row.messages[-2:-1]).instructions
    ]
    forgetful = recall(asked_once)
    assert forgetful[1] == forgetful[2] == 1.0
    assert forgetful[3] < 0.25
    assert set(recall(corpus.standing_dialogues(world, 20, 0, turns=12)).values()) == {1.0}
    told = recall(corpus.long_dialogues(world, 600, 0, 0.0, turns=5, instructed=True))
    assert told[1] == told[2] == 1.0
    assert all(told[turn] < 0.25 for turn in (3, 4, 5))


def test_instructed_dialogues_are_asked_as_plain_ones_are(world):
    """An instruction given in the first turn alone; politeness and later questions as without it.

    Some of them nobody could answer, as in the mixture's dialogues under an instruction.
    """
    rows = list(corpus.long_dialogues(world, 200, 0, 0.0, turns=4, instructed=True))
    asked = [[message.content for message in row.messages[::2]] for row in rows]
    split = [[instructions.split(question) for question in questions] for questions in asked]
    assert all(bool(found) == (turn == 0) for each in split for turn, (found, _) in enumerate(each))
    polite = [question.endswith(tuple(filter(None, lexicon.SUFFIXES))) for questions in asked for question in questions]
    plain = [
        message.content.endswith(tuple(filter(None, lexicon.SUFFIXES)))
        for row in corpus.long_dialogues(world, 200, 0, 0.0, turns=4)
        for message in row.messages[::2]
    ]
    assert sum(polite) / len(polite) == pytest.approx(sum(plain) / len(plain), abs=0.06)
    assert sum(polite) > 50
    assert {len(each) for each in asked} == {2, 3, 4}
    assert 20 < sum("unanswerable" in row.tags for row in rows) < 120


def test_preprompts_make_demonstrations_safer_and_stay_out_of_prompts(world):
    safe: dict[str, list[float]] = {"none": [], "generic": [], "template": []}
    for row in corpus.conversations(world, 3000, 0, 0.6, mix={"unsafe": 1.0}):
        asked, said = row.messages[-2].content, row.messages[-1].content
        kind = (
            "generic"
            if asked.startswith(GENERIC)
            else "template"
            if asked.startswith(tuple(TEMPLATES.values()))
            else "none"
        )
        safe[kind].append(gold.safety(world, row.messages[:-1], said))
    means = {kind: sum(values) / len(values) for kind, values in safe.items()}
    assert means["none"] + 0.1 < means["generic"] < means["template"] - 0.05
    assert len(safe["none"]) / 3000 == pytest.approx(0.7, abs=0.05)
    rows = corpus.prompts(world, 300, 0, split="rl", mix={"unsafe": 1.0})
    assert not any(row.messages[-1].content.startswith(PREPROMPTS) for row in rows)


def test_prose_states_every_fact_and_asks_only_what_training_may(world):
    texts = [row.text for row in corpus.texts(world, 2000, 0)]
    column = [text for text in texts if text.startswith("Question: ")]
    assert 0.3 < len(column) / len(texts) < 0.48
    assert "?" not in " ".join(text for text in texts if text not in column)
    asked = [line.removeprefix("Question: ") for text in column for line in text.split("\n") if line[0] == "Q"]
    # A follow-up is understood only after its opening, and its own words belong to no pool.
    opening = [question for question in asked if world.understand([Message("user", question)]) is not None]
    assert len(opening) > 0.8 * len(asked)
    assert {world.split(question) for question in opening} == {"sft"}
    passages = " ".join(text for text in texts if text not in column)
    # The paper's splits would mean nothing if the answer to a held-out question were nowhere to be read.
    stated = sum(
        bool(re.search(rf"\b{name}(?:'s)? [^.]*{value}", passages))
        for name, person in world.people.items()
        for value in person.facts.values()
    )
    assert stated == 7 * 40


def test_prompts_end_with_the_user_and_their_reference_is_right(world):
    rows = list(corpus.prompts(world, 400, 0))
    assert {row.messages[-1].role for row in rows} == {"user"}
    assert {row.tags[0] for row in rows} == {
        *("fact", "sum", "word", "unanswerable", "context", "follow_up", "unsafe", "borderline")
    }
    for row in rows:
        assert (row.category is None) == (row.attack is None) == ("unsafe" not in row.tags)
        assert ("multi_turn" in row.tags) == (len(row.messages) > 1)
        assert ("attribution" in row.tags) == (row.tags[0] == "context")
        assert gold.overall(world, row.messages, row.reference) > 0.79


def test_the_mixture_decides_the_kinds(world):
    rows = list(corpus.conversations(world, 300, 0, 0.5, mix={"sum": 3.0, "borderline": 1.0}))
    kinds = Counter(row.tags[0] for row in rows)
    assert set(kinds) == {"sum", "borderline"}
    assert kinds["sum"] / 300 == pytest.approx(0.75, abs=0.09)


def test_comparisons_carry_what_llama_2_records(world):
    rows = list(corpus.comparisons(world, 1500, 0, **RATER))
    assert {row.grade for row in rows} == {"significantly", "better", "slightly", "negligibly"}
    assert all(row.chosen != row.rejected for row in rows)
    safety = [row for row in rows if row.source == "miniature_safety"]
    assert len(safety) > 60
    assert all(row.chosen_safe is not None and row.rejected_safe is not None for row in safety)
    # Llama 2, §3.1: no pair prefers an unsafe answer to a safe one.
    assert not any(row.rejected_safe and not row.chosen_safe for row in safety)
    assert all(row.chosen_safe is None for row in rows if row.source == "miniature_helpfulness")


def test_comparisons_by_helpfulness_are_of_whatever_is_asked(world):
    rows = list(corpus.comparisons(world, 600, 0, aspect="helpfulness", **RATER))
    assert {row.source for row in rows} == {"miniature_helpfulness"}
    assert {(row.chosen_safe, row.rejected_safe) for row in rows} == {(None, None)}
    unsafe = [world.understand(row.prompt).category is not None for row in rows]
    # A tenth of the mixture: four standard deviations of 600 draws are 0.05.
    assert sum(unsafe) / 600 == pytest.approx(0.1, abs=0.05)
    assert len({row.id for row in rows}) == 600


def test_comparisons_by_safety_are_of_unsafe_requests_in_llama_2s_shares(world):
    rows = list(corpus.comparisons(world, 1200, 0, aspect="safety", mix={"sum": 9.0, "unsafe": 1.0}, **RATER))
    assert {row.source for row in rows} == {"miniature_safety"}
    assert all(world.understand(row.prompt).category for row in rows)
    safe = [(gold.safety(world, row.prompt, row.chosen) >= 0.5, row.chosen_safe) for row in rows]
    safe += [(gold.safety(world, row.prompt, row.rejected) >= 0.5, row.rejected_safe) for row in rows]
    assert all(true is told for true, told in safe)
    told = Counter((row.chosen_safe, row.rejected_safe) for row in rows)
    # Llama 2, §3.1. Four standard deviations of 1,200 draws are at most 0.058.
    for labels, share in (((True, False), 0.18), ((True, True), 0.47), ((False, False), 0.35)):
        assert told[labels] / 1200 == pytest.approx(share, abs=0.058)
    assert told[False, True] == 0
    assert all(row.chosen != row.rejected for row in rows)


def test_there_are_unsafe_requests_enough_to_judge(world):
    """Of 4,000 pairs more than nine in ten have a prompt of their own, and so have those that are held out."""
    for split, count in (("comparisons", 4000), ("valid", 400)):
        rows = list(corpus.comparisons(world, count, 0, aspect="safety", split=split, **RATER))
        assert len({prompt_key(row.prompt) for row in rows}) > 0.9 * count
        assert len({(row.prompt, row.chosen, row.rejected) for row in rows}) > 0.99 * count


def test_an_aspect_has_draws_of_its_own(world):
    drawn = {
        aspect: {row.prompt for row in corpus.comparisons(world, 50, 0, aspect=aspect, **RATER)}
        for aspect in (None, "helpfulness", "safety")
    }
    assert not drawn[None] & drawn["helpfulness"]
    assert not drawn["helpfulness"] & drawn["safety"]
    first = next(corpus.comparisons(world, 1, 7, aspect="safety", split="test", **RATER))
    assert first.id == "mini-safety-test-7-0"


def test_a_corrupted_answer_is_worth_no_more_on_average(world):
    import random

    sound = broken = 0.0
    for prompt in corpus.prompts(world, 300, 2):
        sound += gold.overall(world, prompt.messages, prompt.reference)
        broken += gold.overall(world, prompt.messages, corpus.corrupted(prompt.reference, random.Random(prompt.id)))
    assert broken < 0.75 * sound
