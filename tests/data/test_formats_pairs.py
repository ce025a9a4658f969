"""Comparisons as HH-RLHF, PKU-SafeRLHF, HelpSteer2, Tulu and Open-Assistant spell them."""

from __future__ import annotations

from typing import Any

import pytest

from alignment.chat.types import Comparison, Message
from alignment.data import checks
from alignment.data.formats import FORMATS, Shape
from alignment.data.formats import pairs as pair_formats
from alignment.data.formats.grades import by_gap, drawn_side
from alignment.data.grades import Bounds
from alignment.data.rows import Candidate, Raw
from alignment.errors import DataError, UserError

from .test_formats import ask, node

HH = {"user": "\n\nHuman:", "assistant": "\n\nAssistant:"}
SIDES = {"chosen": "c", "rejected": "r"}
GAPS = {"slightly": 1, "better": 2, "significantly": 3}


def pairs(
    name: str,
    value: Any,
    columns: dict[str, str] | None = None,
    members: tuple[Raw, ...] = (),
    **options: Any,
) -> list[Candidate]:
    form = FORMATS[name]
    shape = Shape("comparisons", columns or {}, form.options.parse(options), "origin")
    return form.read(Raw("f", 7, value, "/d/f", members=members), shape).candidates


def pair(*arguments: Any, **options: Any) -> Comparison:
    (candidate,) = pairs(*arguments, **options)
    assert isinstance(candidate.row, Comparison), candidate.dropped
    return candidate.row


def why(*arguments: Any, **options: Any) -> str:
    (candidate,) = pairs(*arguments, **options)
    return candidate.dropped or (checks.flaw(candidate.row) if candidate.row else "")


def texts(row: Comparison) -> tuple[str, str, str]:
    return "/".join(turn.content for turn in row.prompt), row.chosen, row.rejected


def hh(*turns: str) -> str:
    return "".join(f"\n\n{'Human' if n % 2 == 0 else 'Assistant'}: {text}" for n, text in enumerate(turns))


def test_the_shared_history_of_two_dialogues_is_the_prompt() -> None:
    row = pair("marked_pair", {"c": hh("q", "a", "r", "good"), "r": hh("q", "a", "r", "bad")}, SIDES, **HH)
    assert texts(row) == ("q/a/r", "good", "bad")
    assert [turn.role for turn in row.prompt] == ["user", "assistant", "user"]
    assert (row.grade, row.source, row.chosen_safe, row.id) == (None, "origin", None, "")


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        (hh("q", "a", "r", "good"), hh("q", "b", "r", "bad"), "the two sides have different prompts"),
        (hh("q", "a", "r", "good"), hh("q", "bad"), "the two sides have different prompts"),
        (hh("q", ""), hh("q", "bad"), "empty answer"),
        (hh("q", "good"), hh("q", ""), "empty answer"),
        (hh("q", "same"), hh("q", "same "), "both answers are the same"),
        (hh("q", "a", "r"), hh("q", "a", "r"), "a side does not end with an answer"),
        ("q", hh("q", "bad"), "no turn opens with '\\n\\nHuman:'"),
        (f"Be kind.{hh('q', 'good')}", hh("q", "bad"), "text before the first turn"),
        (None, hh("q", "bad"), "no value in column 'c'"),
    ],
)
def test_pairs_of_dialogues_that_cannot_be_compared(chosen: str | None, rejected: str, reason: str) -> None:
    assert why("marked_pair", {"c": chosen, "r": rejected}, SIDES, **HH) == reason


def dialogue(*turns: str) -> list[dict[str, str]]:
    return [{"role": "user" if n % 2 == 0 else "assistant", "content": text} for n, text in enumerate(turns)]


@pytest.mark.parametrize(
    ("value", "columns"),
    [
        ({"p": "q", "c": "good", "r": "bad"}, SIDES | {"prompt": "p"}),
        ({"p": dialogue("q"), "c": "good", "r": "bad"}, SIDES | {"prompt": "p"}),
        ({"p": "q", "c": dialogue("q", "good"), "r": dialogue("q", "bad")}, SIDES | {"prompt": "p"}),
        ({"p": "q", "c": dialogue("q", "good")[1:], "r": dialogue("q", "bad")[1:]}, SIDES | {"prompt": "p"}),
        ({"c": dialogue("q", "good"), "r": dialogue("q", "bad")}, SIDES),
    ],
)
def test_chosen_and_rejected_are_texts_or_turns(value: dict[str, Any], columns: dict[str, str]) -> None:
    row = pair("chosen_rejected", value, columns)
    assert (texts(row), row.grade) == (("q", "good", "bad"), None)


def test_chosen_and_rejected_that_do_not_fit_together() -> None:
    both = SIDES | {"prompt": "p"}
    assert why("chosen_rejected", {"c": dialogue("q", "a"), "r": dialogue("x", "b")}, SIDES).startswith("the two sides")
    assert why("chosen_rejected", {"p": "q", "c": dialogue("x", "a"), "r": "b"}, both).startswith("the two sides")
    assert (
        why("chosen_rejected", {"p": "q", "c": dialogue("q"), "r": "b"}, both) == "a side does not end with an answer"
    )
    assert why("chosen_rejected", {"c": dialogue("q"), "r": dialogue("q", "b")}, SIDES).startswith("a side does not")
    assert why("chosen_rejected", {"p": None, "c": "a", "r": "b"}, both) == "no value in column 'p'"
    assert why("chosen_rejected", {"p": "q", "c": "a", "r": None}, both) == "no value in column 'r'"
    with pytest.raises(DataError, match="there is no prompt to it"):
        pair("chosen_rejected", {"c": "a", "r": dialogue("q", "b")}, SIDES)
    with pytest.raises(DataError, match="no list of turns"):
        pair("chosen_rejected", {"c": {"role": "user"}, "r": "b"}, SIDES)


def test_a_grade_may_be_a_column_in_our_words() -> None:
    columns = SIDES | {"prompt": "p", "grade": "g"}
    value = {"p": "q", "c": "a", "r": "b", "g": "slightly"}
    assert pair("chosen_rejected", value, columns).grade == "slightly"
    assert pair("chosen_rejected", value | {"g": None}, columns).grade is None
    assert why("chosen_rejected", value | {"g": "slight"}, columns) == "unknown grade 'slight'"
    assert why("chosen_rejected", value | {"g": 3}, columns) == "unknown grade '3'"
    assert why("chosen_rejected", value | {"g": "much" * 20}, columns) == f"unknown grade '{'much' * 10}'"


def test_a_prompt_in_one_text_is_cut_into_its_turns() -> None:
    """The layout of HelpSteer2's card: the first turn is not marked."""
    markers = {"user": "<extra_id_1>User\n", "assistant": "<extra_id_1>Assistant\n"}
    value = {"p": "one\n<extra_id_1>Assistant\ntwo\n<extra_id_1>User\nthree", "c": "a", "r": "b"}
    row = pair("chosen_rejected", value, SIDES | {"prompt": "p"}, markers=markers)
    assert row.prompt == (Message("user", "one"), Message("assistant", "two"), Message("user", "three"))
    assert len(pair("chosen_rejected", value, SIDES | {"prompt": "p"}).prompt) == 1
    assert texts(pair("chosen_rejected", value | {"p": "one"}, SIDES | {"prompt": "p"}, markers=markers))[0] == "one"


def pku(safe_0: bool, safe_1: bool, better: int, safer: int) -> dict[str, Any]:
    return {
        "prompt": "q",
        "response_0": "zero",
        "response_1": "one",
        "is_response_0_safe": safe_0,
        "is_response_1_safe": safe_1,
        "better_response_id": better,
        "safer_response_id": safer,
    }


@pytest.mark.parametrize(
    ("row", "by", "expected"),
    [
        (pku(True, False, 1, 0), "safer", ("zero", "one", True, False)),
        (pku(True, False, 1, 0), "better", ("one", "zero", False, True)),
        (pku(False, False, 0, 1), "safer", ("one", "zero", False, False)),
        (pku(True, True, 0, 1), "safer", ("one", "zero", True, True)),
    ],
)
def test_safety_labels_stay_with_their_answers(row: dict[str, Any], by: str, expected: tuple) -> None:
    found = pair("safe_rlhf", row, by=by)
    assert (found.chosen, found.rejected, found.chosen_safe, found.rejected_safe) == expected
    assert (found.grade, found.prompt) == (None, (Message("user", "q"),))


def test_a_safety_set_prefers_no_unsafe_answer_to_a_safe_one() -> None:
    assert why("safe_rlhf", pku(False, True, 0, 0), by="safer") == "prefers an unsafe answer to a safe one"
    assert why("safe_rlhf", pku(False, True, 0, 0), by="better") == ""
    assert why("safe_rlhf", pku(True, True, -1, 0), by="better") == "no preference in column 'better_response_id'"
    assert why("safe_rlhf", pku(True, True, 0, 0) | {"response_1": None}, by="better").startswith("no value")
    with pytest.raises(DataError, match="'is_response_1_safe' holds 'yes'"):
        pair("safe_rlhf", pku(True, True, 0, 0) | {"is_response_1_safe": "yes"}, by="better")


PREFERENCE = {"prompt": "p", "answer_a": "a", "answer_b": "b", "preference": "s"}
TULU = {
    "a": {"a-is-better": "better", "a-is-slightly-better": "slightly"},
    "b": {"b-is-better": "better", "b-is-slightly-better": None},
    "ties": ["tie"],
    "keep_ties": False,
}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a-is-better", ("x", "better")),
        ("a-is-slightly-better", ("x", "slightly")),
        ("b-is-better", ("y", "better")),
        ("b-is-slightly-better", ("y", None)),
    ],
)
def test_a_preference_is_mapped_to_side_and_grade(value: str, expected: tuple[str, str | None]) -> None:
    row = pair("graded_pair", {"p": "q", "a": "x", "b": "y", "s": value}, PREFERENCE, **TULU)
    assert (row.chosen, row.grade) == expected
    assert {row.chosen, row.rejected} == {"x", "y"}


def test_a_preference_may_be_a_number() -> None:
    options = {"a": {"-3": "significantly"}, "b": {"1": "slightly"}, "ties": ["0"], "keep_ties": False}
    value = {"p": "q", "a": "x", "b": "y", "s": -3}
    assert pair("graded_pair", value, PREFERENCE, **options).chosen == "x"
    assert why("graded_pair", value | {"s": 0}, PREFERENCE, **options) == "tie"
    assert pair("graded_pair", value | {"s": 1}, PREFERENCE, **options).chosen == "y"
    assert why("graded_pair", value | {"s": 2}, PREFERENCE, **options) == "unknown grade '2'"
    assert why("graded_pair", value | {"s": 2}, PREFERENCE, **options | {"keep_ties": True}) == "unknown grade '2'"
    for wrong in ([], {"s": 1}):
        with pytest.raises(DataError, match=r"column 's' holds (list|dict), not text or a number"):
            pair("graded_pair", value | {"s": wrong}, PREFERENCE, **options)
    assert why("graded_pair", value | {"s": None}, PREFERENCE, **options) == "no preference in column 's'"


def test_a_tie_is_dropped_or_kept_with_a_side_drawn() -> None:
    value = {"p": "q", "a": "x", "b": "y", "s": "tie"}
    assert why("graded_pair", value, PREFERENCE, **TULU) == "tie"
    firsts = 0
    for number in range(400):
        row = pair("graded_pair", value | {"a": f"x{number}"}, PREFERENCE, **TULU | {"keep_ties": True})
        assert (row.grade, {row.chosen, row.rejected}) == ("negligibly", {f"x{number}", "y"})
        firsts += row.chosen == f"x{number}"
    # 400 draws of ½: four standard deviations are 40.
    assert abs(firsts - 200) < 40
    assert drawn_side("x", "y") == drawn_side("x", "y")


SCORED = {"prompt": "p", "answer": "a"}


def scored(*rows: tuple[Any, ...], **options: Any) -> list[Candidate]:
    values = [{"p": "q", "a": answer, "h": h, "v": v} for answer, h, v in rows]
    members = tuple(Raw("f", n, value, "/d/f") for n, value in enumerate(values, 3))
    settings = {"scores": {"h": 1.0}, "grades": GAPS} | options
    return pairs("scored_pair", {"rows": values}, SCORED, members, **settings)


def told(candidates: list[Candidate]) -> list[tuple[str, str, str | None]]:
    rows = [candidate.row for candidate in candidates]
    return [(row.chosen, row.rejected, row.grade) for row in rows if isinstance(row, Comparison)]


def test_scores_make_pairs_with_grades_by_their_gap() -> None:
    found = scored(("x", 2, 0), ("y", 4, 0), ("z", 1, 0))
    assert told(found) == [("y", "x", "better"), ("x", "z", "slightly"), ("y", "z", "significantly")]
    assert told(scored(("x", 2, 0), ("y", 4, 0), grades=None)) == [("y", "x", None)]
    assert told(scored(("x", 0.5, 0), ("y", 0, 0))) == [("x", "y", "negligibly")]
    assert [one.dropped for one in scored(("x", 2, 0), ("y", 2, 0))] == ["equal scores"]
    assert [one.dropped for one in scored(("x", 2, 0))] == ["one answer only"]
    assert [one.dropped for one in scored(("x", 2, 0), (None, 1, 0))] == ["no value in the prompt or an answer"]


def test_scores_are_weighed() -> None:
    # 1·2 − 0.5·4 = 0 against 1·1 − 0.5·0 = 1.
    assert told(scored(("x", 2, 4), ("y", 1, 0), scores={"h": 1.0, "v": -0.5})) == [("y", "x", "slightly")]
    # 0.1 + 0.2 exceeds 0.3 in floating point, and 0.3 − 0.1 − 0.2 is not quite 0: still equal.
    assert scored(("x", 0.1, 0.2), ("y", 0.3, 0), scores={"h": 1.0, "v": 1.0})[0].dropped == "equal scores"
    assert told(scored(("x", "2", 0), ("y", "4.0", 0))) == [("y", "x", "better")]


def test_scores_that_are_none_are_refused_with_their_own_row() -> None:
    for wrong in (None, "high", True, float("nan"), "inf"):
        with pytest.raises(DataError, match="column 'h' holds") as caught:
            scored(("x", 2, 0), ("y", wrong, 0))
        assert caught.value.where == "/d/f:4"
    with pytest.raises(DataError, match=r"not joined\n.*`group` to 'p'"):
        pairs("scored_pair", {"p": "q", "a": "x", "h": 1}, SCORED, scores={"h": 1.0})


def test_answers_to_different_prompts_are_not_compared() -> None:
    members = tuple(Raw("f", n, {"p": f"q{n}", "a": f"x{n}", "h": n}, "/d/f") for n in (1, 2))
    (found,) = pairs("scored_pair", {"rows": []}, SCORED, members, scores={"h": 1.0})
    assert found.dropped == "the answers have different prompts"


LABELLED = {"prompt": "p", "answer": "a", "label": "l", "type": "t"}
ORDERS: list[dict[str, Any]] = [
    {"types": ["contrast_*", "attack"], "best_first": ["refuses", "partly", "complies"], "unsafe": ["complies"]},
    {"types": ["*"], "best_first": ["complies", "partly", "refuses"], "unsafe": []},
]


def labelled(
    kind: str, *labels: str | None, columns: dict[str, str] = LABELLED, **options: Any
) -> list[tuple[str, str, str | None, bool | None, bool | None] | str]:
    """The comparisons of answers that are called by their labels, or why there is none."""
    values = [{"p": "q", "a": f"it {label}", "l": label, "t": kind} for label in labels]
    members = tuple(Raw("f", n, value, "/d/f") for n, value in enumerate(values, 3))
    settings = {"orders": ORDERS, "grades": GAPS} | options
    found = pairs("labelled_pair", {"rows": values}, columns, members, **settings)
    return [
        (one.row.chosen[3:], one.row.rejected[3:], one.row.grade, one.row.chosen_safe, one.row.rejected_safe)
        if isinstance(one.row, Comparison)
        else one.dropped
        for one in found
    ]


def test_which_label_is_better_depends_on_the_type() -> None:
    assert labelled("contrast_homonyms", "complies", "refuses", "partly") == [
        ("refuses", "complies", "better", True, False),
        ("partly", "complies", "slightly", True, False),
        ("refuses", "partly", "slightly", True, True),
    ]
    assert labelled("attack", "complies", "refuses") == [("refuses", "complies", "better", True, False)]
    assert labelled("homonyms", "refuses", "complies", "partly") == [
        ("complies", "refuses", "better", True, True),
        ("partly", "refuses", "slightly", True, True),
        ("complies", "partly", "slightly", True, True),
    ]
    assert labelled("homonyms", "refuses", "complies", grades=None) == [("complies", "refuses", None, True, True)]


def test_labels_without_a_type_have_one_order_and_may_say_nothing_of_safety() -> None:
    columns = {name: column for name, column in LABELLED.items() if name != "type"}
    order = {"types": ["*"], "best_first": ["good", "bad"]}
    assert labelled("x", "bad", "good", columns=columns, orders=[order]) == [("good", "bad", "slightly", None, None)]


def test_labels_that_make_no_comparison() -> None:
    assert labelled("homonyms", "refuses", "refuses") == ["equal labels"]
    assert labelled("homonyms", "refuses") == ["one answer only"]
    assert labelled("homonyms", "refuses", "jokes", "complies") == [
        "unknown label 'jokes'",
        ("complies", "refuses", "better", True, True),
        "unknown label 'jokes'",
    ]
    assert labelled("homonyms", "refuses", None) == ["unknown label ''"]
    assert labelled("x", "refuses", "complies", orders=ORDERS[:1]) == ["unknown type 'x'"]
    kinds = [{"p": "q", "a": label, "l": label, "t": label} for label in ("refuses", "complies")]
    members = tuple(Raw("f", n, value, "/d/f") for n, value in enumerate(kinds))
    (found,) = pairs("labelled_pair", {"rows": kinds}, LABELLED, members, orders=ORDERS)
    assert found.dropped == "the answers have prompts of different types"
    with pytest.raises(DataError, match=r"not joined\n.*`group` to 'p'"):
        pairs("labelled_pair", kinds[0], LABELLED, orders=ORDERS)


@pytest.mark.parametrize(
    ("order", "says"),
    [
        ({"types": ["*"], "best_first": ["a", "b", "a"], "unsafe": []}, "twice"),
        ({"types": ["*"], "best_first": ["a", "b"], "unsafe": ["c"]}, "the unsafe label 'c' is not in best_first"),
        ({"types": ["*"], "best_first": ["a"], "unsafe": []}, "best_first"),
        ({"types": [], "best_first": ["a", "b"], "unsafe": []}, "types"),
    ],
)
def test_an_order_of_labels_makes_sense(order: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        FORMATS["labelled_pair"].options.parse({"orders": [order]})


@pytest.mark.parametrize("gaps", [GAPS | {"better": 3}, GAPS | {"slightly": 0}, {"better": 1}])
def test_gaps_have_to_rise_with_the_grade(gaps: dict[str, float]) -> None:
    with pytest.raises(UserError, match="grades"):
        FORMATS["scored_pair"].options.parse({"scores": {"h": 1.0}, "grades": gaps})


def test_a_gap_has_the_strongest_grade_that_it_reaches() -> None:
    bounds = Bounds(slightly=1, better=2, significantly=3)
    grades = [by_gap(gap, bounds) for gap in (0.5, 1, 1.9, 2, 2.9999999999, 3, 8)]
    assert grades == ["negligibly", "slightly", "slightly", "better", "significantly", "significantly", "significantly"]
    assert by_gap(2, None) is None


RANKED = {
    "prompt": ask(
        "q",
        node("third", rank=2),
        node("first", ask("again?", node("sole", rank=0), node("unranked")), rank=0),
        node("second", rank=1),
        node("also second", rank=1),
        node("gone", rank=5, deleted=True),
    )
}


def test_ranked_answers_are_compared_two_by_two() -> None:
    found = pairs("oasst_pairs", RANKED, pairs="all", grades=GAPS)
    assert told(found) == [
        ("first", "second", "slightly"),
        ("first", "also second", "slightly"),
        ("first", "third", "better"),
        ("first", "gone", "significantly"),
        ("second", "third", "slightly"),
        ("second", "gone", "significantly"),
        ("also second", "third", "slightly"),
        ("also second", "gone", "significantly"),
        ("third", "gone", "significantly"),
    ]
    assert [one.dropped for one in found].count("deleted message in the path") == 4
    assert [one.dropped for one in found].count("equal ranks") == 1
    form = FORMATS["oasst_pairs"]
    shape = Shape("comparisons", {}, form.options.parse({"pairs": "all"}), "origin")
    reading = form.read(Raw("f", 7, RANKED, "/d/f"), shape)
    assert reading.changed == "2 answers without a ranked other left out"
    neighbours = pairs("oasst_pairs", RANKED, pairs="adjacent", grades=None)
    assert told(neighbours) == [("first", "second", None), ("also second", "third", None), ("third", "gone", None)]


def test_a_later_question_is_compared_under_its_history() -> None:
    tree = {"prompt": ask("q", node("a", ask("r", node("x", rank=1), node("y", rank=0))))}
    (row,) = (one.row for one in pairs("oasst_pairs", tree, pairs="all"))
    assert isinstance(row, Comparison)
    assert texts(row) == ("q/a/r", "y", "x")
    questions = {"prompt": ask("q", node("a", ask("r", rank=0), ask("s", rank=1)))}
    assert pairs("oasst_pairs", questions, pairs="all") == []
    refused = {"prompt": ask("q", node("a", ask("r", node("x", rank=1), node("y", rank=0)), review_result=False))}
    assert [one.dropped for one in pairs("oasst_pairs", refused, pairs="all")] == ["message refused by the reviewers"]
    with pytest.raises(DataError, match="has the rank 'best'"):
        pairs("oasst_pairs", {"prompt": ask("q", node("a", rank="best"))}, pairs="all")


@pytest.mark.parametrize(("said", "safe"), [(True, True), (False, False), (1, True), (0, False), (None, None)])
def test_safety_labels_come_with_chosen_and_rejected(said: object, safe: bool | None) -> None:
    columns = {"prompt": "q", "chosen": "good", "rejected": "bad", "grade": "g"}
    columns |= {"chosen_safe": "s", "rejected_safe": "t"}
    row = {"q": "Hi?", "good": "Hello.", "bad": "Go away.", "g": "better", "s": said, "t": False}
    shape = Shape("comparisons", columns, pair_formats.PromptOptions.parse({}), "mine")
    (candidate,) = pair_formats.read_chosen_rejected(Raw("f", 1, row, "f"), shape).candidates
    assert candidate.row is not None
    assert (candidate.row.grade, candidate.row.chosen_safe, candidate.row.rejected_safe) == ("better", safe, False)


def test_an_unknown_safety_label_goes_into_the_ledger() -> None:
    columns = {"prompt": "q", "chosen": "good", "rejected": "bad", "chosen_safe": "s"}
    shape = Shape("comparisons", columns, pair_formats.PromptOptions.parse({}), "mine")
    row = {"q": "Hi?", "good": "Hello.", "bad": "Go away.", "s": "perhaps"}
    (candidate,) = pair_formats.read_chosen_rejected(Raw("f", 1, row, "f"), shape).candidates
    assert candidate.dropped == "unknown safety label 'perhaps'"
