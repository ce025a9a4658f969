from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from alignment.chat.types import Comparison, Conversation, Prompt, Text, messages
from alignment.data import lists, statistics
from alignment.data.statistics import Histogram, ScoreHistogram, Statistics, Terms, load_terms, words
from alignment.errors import DataError, UserError

LIST = lists.locate(None, "demographics.yaml", "terms")
TERMS = Terms(
    pronouns={"she": ["she", "her"], "they": ["they"]},
    axes={"religion": ["Jewish", "buddhist"], "origin": ["Native American", "asian", "native speaker"]},
)
TURNS = messages(("system", "Be brief."), ("user", "Who are you?"), ("assistant", "A model, I think."))


def talk(answer: str, **more) -> Conversation:
    return Conversation(messages(("user", "?"), ("assistant", answer)), "c", **more)


def summary(*rows, terms: Terms | None = None, **more) -> dict:
    counted = Statistics(terms, None, **more)
    for row in rows:
        counted.add(row, "s", "MIT")
    return counted.summary()


# ── histograms ───────────────────────────────────────────────────────────────────────────────────


@given(some.lists(some.integers(0, 10**7), min_size=1), some.floats(0, 1))
def test_a_quantile_is_near_the_true_one_and_the_rest_is_exact(values: list[int], asked: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    told = histogram.summary(octaves=False)
    assert (told["count"], told["min"], told["max"]) == (len(values), min(values), max(values))
    assert told["mean"] == round(sum(values) / len(values), 3)
    assert sum(told["bins"].values()) == len(values)
    true = sorted(values)[max(0, math.ceil(asked * len(values)) - 1)]
    assert abs(histogram.quantile(asked) - true) <= (true / 16 if true >= 32 else 0)


def test_quantiles_of_few_values() -> None:
    histogram = Histogram()
    for value in (1, 2, 3, 4):
        histogram.add(value)
    assert [histogram.quantile(share) for share in (0, 0.25, 0.26, 0.5, 0.75, 1)] == [1, 1, 2, 2, 3, 4]


def test_bins_have_the_stated_edges() -> None:
    histogram = Histogram()
    # 32 … 63 in steps of 2, 64 … 127 in steps of 4: 33 falls to 32, 63 to 62, 67 to 64.
    for value in (0, 1, 31, 32, 33, 63, 64, 67, 68):
        histogram.add(value)
    assert histogram.summary(octaves=False)["bins"] == {"0": 1, "1": 1, "31": 1, "32": 2, "62": 1, "64": 2, "68": 1}
    assert histogram.summary(octaves=True)["bins"] == {"0": 1, "1": 1, "16": 1, "32": 3, "64": 3}


def test_a_histogram_does_not_grow_with_its_values() -> None:
    histogram = Histogram()
    for value in range(40_000):
        histogram.add(value)
    # 32 single values and 16 bins for each octave from 32 to 40,000 < 2^16.
    assert len(histogram.bins) <= 32 + 16 * 11


def scored(values: Sequence[float]) -> dict:
    histogram = ScoreHistogram()
    for value in values:
        histogram.add(value)
    return histogram.summary()


def test_scores_from_0_to_1_have_twenty_bins() -> None:
    told = scored([0.0, 0.049, 0.051, 0.999, 1.0])
    assert told["bins"] == [2, 1, *[0] * 17, 2]
    assert (told["low"], told["width"], told["min"], told["max"]) == (0.0, 0.05, 0.0, 1.0)
    assert told["mean"] == pytest.approx(2.099 / 5)


finite = some.floats(-1e9, 1e9, allow_subnormal=False)


@given(some.lists(finite, min_size=1, max_size=60), some.randoms())
def test_other_scores_lie_in_their_bins_whatever_their_order(values: list[float], chance) -> None:
    values = [*values, -0.5]
    told = scored(values)
    low, width, bins = told["low"], told["width"], told["bins"]
    assert len(bins) <= 20
    for number, inside in enumerate(bins):
        edges = low + number * width, low + (number + 1) * width
        assert inside == sum(edges[0] <= value < edges[1] for value in values)
    chance.shuffle(values)
    assert scored(values)["bins"] == bins


def test_scores_around_nothing_are_not_cut_to_0_and_1() -> None:
    told = scored([-0.5, 0.5])
    assert sum(told["bins"]) == 2
    assert (told["low"], told["low"] + told["width"] * len(told["bins"])) == (-0.5, 0.5625)


def test_one_score_many_times() -> None:
    told = scored([3.7] * 5)
    assert told["bins"] == [5]
    assert told["low"] <= 3.7 < told["low"] + told["width"]


# ── words and terms ──────────────────────────────────────────────────────────────────────────────


def test_words() -> None:
    assert words("She's Jewish-born_in STRASSE/Straße 3×4") == [
        *("she", "s", "jewish", "born", "in", "strasse", "strasse", "3", "4")
    ]
    assert words("Cafe\u0301") == words("CAFÉ") == ["café"]


def mentions(told: str) -> tuple[list[str], list[str]]:
    counted = summary(talk(told), terms=TERMS)
    return tuple(
        [term for group in counted[key]["groups"].values() for term in group["terms"]] for key in ("pronouns", "axes")
    )


@pytest.mark.parametrize(
    ("told", "pronouns", "axes"),
    [
        ("She left. HER hat stayed.", ["her", "she"], []),
        ("ashes, hers, theyre: cheers", [], []),
        ("they’re here", ["they"], []),
        ("a Caucasian is no asia n", [], []),
        ("Asian? (buddhist)", [], ["buddhist", "asian"]),
        ("Native-American art", [], ["Native American"]),
        ("native\n  AMERICAN", [], ["Native American"]),
        ("native Americans", [], []),
        ("American native", [], []),
        ("native speaker, native american", [], ["Native American", "native speaker"]),
        ("alternative american", [], []),
    ],
)
def test_terms_are_found_as_words(told: str, pronouns: list[str], axes: list[str]) -> None:
    assert mentions(told) == (pronouns, axes)


def test_a_row_counts_once_for_a_term_a_group_and_all() -> None:
    rows = talk("she she her"), talk("she, they"), talk("nobody")
    told = summary(*rows, terms=TERMS)["pronouns"]
    assert told["rows"] == 2
    assert told["groups"]["she"] == {"rows": 2, "terms": {"she": 2, "her": 1}}
    assert told["groups"]["they"] == {"rows": 1, "terms": {"they": 1}}


def test_every_turn_is_searched_and_no_phrase_spans_what_is_not_there() -> None:
    asked = Conversation(messages(("user", "a buddhist?"), ("assistant", "no")), "c")
    assert summary(asked, terms=TERMS)["axes"]["groups"]["religion"]["rows"] == 1
    pair = Comparison(TURNS, "Jewish", "asian", "better", "s", "p")
    groups = summary(pair, terms=TERMS)["axes"]["groups"]
    assert (groups["religion"]["rows"], groups["origin"]["rows"]) == (1, 1)


def test_only_the_most_frequent_terms_are_kept() -> None:
    many = Terms(pronouns={"x": ["x"]}, axes={"a": [f"w{n}" for n in range(30)]})
    rows = [talk(" ".join(f"w{n}" for n in range(k))) for k in range(1, 31)]
    group = summary(*rows, terms=many)["axes"]["groups"]["a"]
    assert group == {"rows": 30, "terms": {f"w{n}": 30 - n for n in range(statistics.TOP_TERMS)}}


def test_every_shipped_term_finds_itself() -> None:
    terms = load_terms(LIST)
    assert set(terms.pronouns) == {"she", "he", "they"}
    for part in ("pronouns", "axes"):
        for group, listed in getattr(terms, part).items():
            for term in listed:
                told = summary(talk(f"One {term.upper()}, two."), terms=terms)[part]["groups"][group]
                assert term in told["terms"], term


@pytest.mark.parametrize(
    ("yaml", "error", "told"),
    [
        ("pronouns: {she: [she]}\naxes: {a: [b\n", DataError, r"t\.yaml:3: is not YAML"),
        ("pronouns: {she: [she]}\n", UserError, "axes: a value is needed"),
        ("pronouns: {she: [she]}\naxes: {a: [yes]}\n", UserError, r"axes\.a\.0=True"),
        ("pronouns: {she: []}\naxes: {}\n", UserError, r"pronouns\.she: has no terms"),
        ("pronouns: {}\naxes: {a: [x, '--']}\n", UserError, r"axes\.a: '--' has no letter"),
        ("pronouns: {}\naxes: {a: [x y, X-Y]}\n", UserError, r"axes\.a: 'X-Y' stands twice"),
        ("pronouns: {}\naxis: {}\n", UserError, "axis: there is no such key"),
        ("- she\n", DataError, "holds no keys"),
        ("pronouns: {}\naxes: {a: [x], a: [y]}\n", DataError, r"t\.yaml:2: .*'a' stands twice"),
    ],
)
def test_a_bad_list_is_told(tmp_path: Path, yaml: str, error: type[UserError], told: str) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(yaml)
    with pytest.raises(error, match=told):
        load_terms(path)


def test_a_list_in_another_encoding_is_told(tmp_path: Path) -> None:
    (tmp_path / "terms.yaml").write_bytes(b"pronouns: {she: [\xff]}")
    with pytest.raises(DataError, match=r"byte 17 is not UTF-8"):
        load_terms(tmp_path / "terms.yaml")


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────


def test_volume_is_by_source_and_licence() -> None:
    counted = Statistics(None, None)
    counted.add(talk("two words"), "b", "MIT")
    counted.add(talk("one"), "b", "CC0-1.0")
    counted.add(Text("a b  c\n", "t"), "a", "MIT")
    counted.add(Text("d", "t"), "a", "MIT")
    # "?" is a word of one character; spaces count as characters.
    assert counted.summary()["volume"] == [
        {"source": "a", "licence": "MIT", "rows": 2, "characters": 8, "words": 4},
        {"source": "b", "licence": "CC0-1.0", "rows": 1, "characters": 4, "words": 2},
        {"source": "b", "licence": "MIT", "rows": 1, "characters": 10, "words": 3},
    ]


def lengths(told: dict, unit: str = "words") -> dict[str, tuple[int, float]]:
    return {part: (one[unit]["count"], one[unit]["mean"]) for part, one in told["lengths"].items()}


def test_lengths_are_by_part() -> None:
    told = summary(Conversation((*TURNS, *messages(("user", "Sure?"), ("assistant", "Yes"))), "c"))
    assert lengths(told) == {"system": (1, 2.0), "prompt": (2, 2.0), "answer": (2, 2.5)}
    assert lengths(told, "characters")["answer"] == (2, 10.0)
    assert told["turns"]["bins"] == {"5": 1}


def test_a_pairs_answers_are_parts_of_their_own() -> None:
    told = summary(Comparison((*TURNS, *messages(("user", "Sure?"))), "yes I am", "no", "slightly", "s", "p"))
    assert lengths(told) == {
        "system": (1, 2.0),
        "prompt": (2, 2.0),
        "earlier answer": (1, 4.0),
        "chosen": (1, 3.0),
        "rejected": (1, 1.0),
    }
    assert told["turns"]["bins"] == {"5": 1}


def test_text_has_no_turns() -> None:
    told = summary(Text("a b", "t"))
    assert told["turns"] is None
    assert lengths(told) == {"text": (1, 2.0)}


@pytest.mark.parametrize(
    ("chosen", "rejected", "label"),
    [
        (True, True, "both safe"),
        (False, False, "both unsafe"),
        (True, False, "chosen safe, rejected unsafe"),
        (False, True, "chosen unsafe, rejected safe"),
        (None, None, "not labelled"),
        (None, False, "one of two labelled"),
        (True, None, "one of two labelled"),
    ],
)
def test_safety_labels(chosen: bool | None, rejected: bool | None, label: str) -> None:
    pair = Comparison(TURNS[:2], "a", "b", "better", "s", "p", chosen_safe=chosen, rejected_safe=rejected)
    assert summary(pair)["safety"] == {label: 1}


def test_grades_and_the_longer_answer() -> None:
    pairs = [
        Comparison(TURNS[:2], chosen, rejected, grade, "s", "p")
        for chosen, rejected, grade in (
            ("aa", "b", "slightly"),
            ("aaa", "b", "better"),
            ("a", "bb", "slightly"),
            ("a", "b", None),
        )
    ]
    told = summary(*pairs)
    assert told["grades"] == {"slightly": 2, "better": 1, "not graded": 1}
    assert told["longer"] == {"chosen": 2, "neither": 1, "rejected": 1}


def test_tags_categories_and_flags() -> None:
    asked = TURNS[1:2]
    counted = Statistics(None, None)
    counted.add(Prompt(asked, "1", tags=("x", "y"), category="illicit", attack="misspelling"), "s", "MIT", ["short"])
    counted.add(Prompt(asked, "2", tags=("y",), category="illicit"), "s", "MIT", ["short", "toxic"])
    counted.add(Prompt(asked, "3", attack="misspelling"), "s", "MIT")
    counted.add(Prompt(asked, "4"), "s", "MIT")
    told = counted.summary()
    assert told["tags"] == {"y": 2, "x": 1}
    assert told["categories"] == {"illicit": {"(none)": 1, "misspelling": 1}, "(none)": {"misspelling": 1}}
    assert told["flags"] == {"short": 2, "toxic": 1}


def test_names_without_end_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "MOST", 10)
    rows = [Prompt(TURNS[1:2], "p", tags=(f"t{n}", "t3"), category=f"c{n}") for n in range(50)]
    told = summary(*rows)
    assert len(told["tags"]) == 11
    assert told["tags"]["t3"] == 51, "a name that is known is counted on"
    assert told["tags"]["(others)"] == 40
    assert sum(sum(attacks.values()) for attacks in told["categories"].values()) == 50
    assert told["categories"]["(others)"] == {"(none)": 40}


def test_languages_are_asked_of_the_whole_row() -> None:
    asked: list[str] = []

    def language(told: str) -> str:
        asked.append(told)
        return "de" if "ja" in told else "en"

    told = summary(talk("ja"), talk("yes"), talk("no"), language=language)
    assert told["languages"] == {"en": 2, "de": 1}
    assert asked[0] == "?\nja"


def test_tokens_are_counted_in_batches_for_their_own_source() -> None:
    batches: list[int] = []

    def count(texts: Sequence[str]) -> list[int]:
        batches.append(len(texts))
        return [len(told) for told in texts]

    counted = Statistics(None, count)
    for number in range(300):
        counted.add(talk("abc" if number % 2 else "a"), "odd" if number % 2 else "even", "MIT")
    told = counted.summary()
    # A prompt of 1 and an answer of 3 or 1, 150 times each.
    assert {one["source"]: one["tokens"] for one in told["volume"]} == {"even": 300, "odd": 600}
    assert lengths(told, "tokens") == {"prompt": (300, 1.0), "answer": (300, 2.0)}
    assert sum(batches) == 600
    assert max(batches) <= statistics.TEXTS_AT_ONCE + 1
    assert counted.summary() == told, "asking changes nothing"


def test_what_was_not_measured_is_null_and_what_there_is_not_is_empty() -> None:
    told = summary(talk("a"))
    assert {key for key, value in told.items() if value is None} == {"languages", "pronouns", "axes"}
    assert "tokens" not in told["volume"][0]
    assert {key for key, value in told.items() if value == {}} == {
        *("grades", "safety", "longer", "tags", "flags", "categories", "scores")
    }
    assert summary(talk("a"), terms=TERMS, language=lambda told: "en")["languages"] == {"en": 1}
    assert summary()["rows"] == 0


def test_the_summary_is_json_and_does_not_depend_on_the_order_of_rows() -> None:
    rows = [talk(f"she said {n * 'a '}", tags=(f"t{n % 3}",)) for n in range(50)]
    there = json.dumps(summary(*rows, terms=TERMS), allow_nan=False)
    assert json.dumps(summary(*reversed(rows), terms=TERMS)) == there


def test_scores_are_kept_by_name() -> None:
    counted = Statistics(None, None)
    for value in (0.1, 0.9):
        counted.add_score("toxicity", value)
    counted.add_score("safety", -2.0)
    told = counted.summary()["scores"]
    assert list(told) == ["safety", "toxicity"]
    assert told["toxicity"]["count"] == 2
    assert told["safety"]["min"] == -2.0
