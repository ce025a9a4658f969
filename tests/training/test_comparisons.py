"""Comparisons on their way to ids: margins, labels, noise of a known amount, and what becomes of long ones."""

from __future__ import annotations

from dataclasses import replace

import pytest

from alignment.chat import tokenizers
from alignment.chat.render import answer_ids, prompt_ids, render
from alignment.chat.tokenizers import Tokenizer
from alignment.chat.train import train
from alignment.chat.types import Comparison, Message, Messages, messages
from alignment.errors import UserError
from alignment.stages import reward
from alignment.training.comparisons import Renderer, exchanged

WORDS = [f"the answer to question {number} is {number % 7}, said the friend of the town" for number in range(200)]
SCHEMAS = ["gemma1", "gemma1_table4", "gemma2"]
SMALL = {"significantly": 1.0, "better": 2 / 3, "slightly": 1 / 3, "negligibly": 0.0}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizers.load(train(WORDS, 400, tmp_path_factory.mktemp("vocabulary")))


def history(exchanges: int, system: bool = False) -> Messages:
    """A prompt behind so many exchanges."""
    turns = [Message("system", "Be brief.")] if system else []
    for number in range(exchanges):
        turns += [Message("user", f"question {number}"), Message("assistant", f"the answer is {number}")]
    return (*turns, Message("user", "and the last question?"))


def pair(name: str = "one", **changes: object) -> Comparison:
    plain = Comparison(history(0), "the friend", "the town is 7", "better", "test", name, None, None)
    return replace(plain, **changes)


def renderer(tokenizer: Tokenizer, **changes: object) -> Renderer:
    values = {"schema": "gemma2", "limit": 2048, "margins": SMALL, "too_long": "refuse"}
    return Renderer(tokenizer, **{**values, **changes})


def rows(some: Renderer, *comparisons: Comparison) -> list:
    return [row for _, row in some.rows(comparisons)]


# ── ids, margins, labels ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("exchanges", [0, 1, 3])
def test_the_score_is_read_at_the_last_token_of_the_rendered_text(
    tokenizer: Tokenizer, schema: str, exchanges: int, system: bool
) -> None:
    one = pair(prompt=history(exchanges, system))
    (row,) = rows(renderer(tokenizer, schema=schema), one)
    for ids, text in ((row.chosen, one.chosen), (row.rejected, one.rejected)):
        whole = render(messages(*one.prompt, ("assistant", text)), tokenizer, schema).ids
        assert [*row.prompt, *ids] == whole
    closing = {"gemma1": [1], "gemma1_table4": [107], "gemma2": [107, 1]}[schema]
    assert row.chosen[-len(closing) :] == closing
    assert row.chosen != row.rejected


@pytest.mark.parametrize(
    ("grade", "margin"),
    [("significantly", 1.0), ("better", 2 / 3), ("slightly", 1 / 3), ("negligibly", 0.0), (None, 0.0)],
)
def test_a_grade_has_its_margin_and_none_has_no_margin(tokenizer: Tokenizer, grade: str | None, margin: float) -> None:
    (row,) = rows(renderer(tokenizer), pair(grade=grade))
    assert row.margin == pytest.approx(margin)
    lifted = {name: value + 5 for name, value in SMALL.items()}
    (row,) = rows(renderer(tokenizer, margins=lifted), pair(grade=grade))
    assert row.margin == pytest.approx(0.0 if grade is None else margin + 5)


def test_llama_2s_tables_are_those_that_are_printed() -> None:
    grades = ("significantly", "better", "slightly", "negligibly")
    by_name = {name: tuple(table[grade] for grade in grades) for name, table in reward.TABLES.items()}
    assert by_name == {"none": (0, 0, 0, 0), "small": (1, 2 / 3, 1 / 3, 0), "large": (3, 2, 1, 0)}


@pytest.mark.parametrize(
    ("chosen", "rejected", "labels"),
    [(True, False, (1, 0)), (False, True, (0, 1)), (None, True, (-1, 1)), (None, None, (-1, -1))],
)
def test_safety_labels_are_the_answers_own(tokenizer: Tokenizer, chosen, rejected, labels: tuple[int, int]) -> None:
    (row,) = rows(renderer(tokenizer), pair(chosen_safe=chosen, rejected_safe=rejected))
    assert (row.chosen_safe, row.rejected_safe) == labels


# ── noise ────────────────────────────────────────────────────────────────────────────────────────


def test_the_share_that_is_exchanged_is_the_share_that_was_asked_for() -> None:
    many = [pair(f"row-{number}", chosen_safe=True, rejected_safe=False) for number in range(4000)]
    found = list(exchanged(many, 0.25))
    turned = [one.chosen == two.rejected for one, two in zip(many, found, strict=True)]
    # A share of 0.25 of 4,000 is known to ± 0.0068 (one standard error).
    assert sum(turned) / len(turned) == pytest.approx(0.25, abs=0.02)
    for one, two, other in zip(many, found, turned, strict=True):
        if other:
            assert two == replace(
                one, chosen=one.rejected, rejected=one.chosen, chosen_safe=one.rejected_safe, rejected_safe=True
            )
        else:
            assert two is one


def test_the_same_pairs_are_exchanged_in_any_order_and_a_smaller_share_is_among_a_larger() -> None:
    many = [pair(f"row-{number}") for number in range(500)]

    def turned(some: list[Comparison], share: float) -> set[str]:
        return {two.id for two in exchanged(some, share) if two.chosen == some[0].rejected}

    assert turned(many, 0.3) == turned(many[::-1], 0.3) == turned(many[:250], 0.3) | turned(many[250:], 0.3)
    assert turned(many, 0.1) < turned(many, 0.3)
    assert turned(many, 0.0) == set()


# ── pairs that are too long ──────────────────────────────────────────────────────────────────────


def tokens_of(tokenizer: Tokenizer, one: Comparison) -> int:
    """Of the longer side."""
    answers = [len(answer_ids(text, tokenizer)) for text in (one.chosen, one.rejected)]
    return len(prompt_ids(one.prompt, tokenizer)) + max(answers)


def test_a_pair_fits_up_to_the_limit_and_not_beyond(tokenizer: Tokenizer) -> None:
    one = pair(prompt=history(2))
    length = tokens_of(tokenizer, one)
    exact, short = renderer(tokenizer, limit=length), renderer(tokenizer, limit=length - 1)
    assert len(rows(exact, one)) == 1
    assert exact.fits == []
    assert rows(short, one, pair("two")) == rows(renderer(tokenizer), pair("two"))
    (fit,) = short.fits
    assert (fit.id, fit.tokens, fit.reason, fit.kept, fit.turns_dropped) == ("one", length, "too long", False, 0)
    assert short.left_out == [fit]


def test_the_longer_answer_decides_whichever_side_it_is_on(tokenizer: Tokenizer) -> None:
    long, short = "the answer is 6 " * 5, "the town"
    for one in (pair(chosen=long, rejected=short), pair(chosen=short, rejected=long)):
        limit = tokens_of(tokenizer, one) - 1
        assert rows(renderer(tokenizer, limit=limit, too_long="leave_out"), one) == []


@pytest.mark.parametrize("system", [False, True])
def test_shortening_drops_the_oldest_exchanges_and_nothing_else(tokenizer: Tokenizer, system: bool) -> None:
    one = pair(prompt=history(4, system))
    head = one.prompt[:1] if system else ()
    spoken = one.prompt[len(head) :]
    for dropped in (2, 4, 6, 8):
        kept = (*head, *spoken[dropped:])
        limit = tokens_of(tokenizer, replace(one, prompt=kept))
        some = renderer(tokenizer, limit=limit, too_long="shorten")
        (row,) = rows(some, one)
        assert row.prompt == prompt_ids(kept, tokenizer), "as many turns as fit are kept"
        assert row.chosen == answer_ids(one.chosen, tokenizer)
        assert row.rejected == answer_ids(one.rejected, tokenizer)
        (fit,) = some.fits
        assert (fit.id, fit.turns_dropped, fit.reason, fit.kept) == ("one", dropped, "earlier turns dropped", True)
        assert fit.tokens == tokens_of(tokenizer, one)
        assert some.left_out == []


def test_an_answer_is_never_cut(tokenizer: Tokenizer) -> None:
    one = pair(prompt=history(3))
    alone = tokens_of(tokenizer, replace(one, prompt=history(0)))
    some = renderer(tokenizer, limit=alone - 1, too_long="shorten")
    assert rows(some, one, pair("short", chosen="7", rejected="6")) == rows(
        renderer(tokenizer), pair("short", chosen="7", rejected="6")
    )
    (fit,) = some.left_out
    assert (fit.id, fit.reason, fit.kept) == ("one", "too long without its earlier turns", False)
    single = renderer(tokenizer, limit=alone - 1, too_long="shorten")
    assert rows(single, replace(one, prompt=history(0))) == []
    assert [fit.id for fit in single.left_out] == ["one"]


def test_every_pair_is_a_row_or_is_listed(tokenizer: Tokenizer) -> None:
    many = [pair(f"row-{number}", prompt=history(number % 5, number % 2 == 0)) for number in range(40)]
    limit = tokens_of(tokenizer, pair(prompt=history(2)))
    for too_long in ("refuse", "leave_out", "shorten"):
        some = renderer(tokenizer, limit=limit, too_long=too_long)
        given = [one.id for one, _ in some.rows(many)]
        assert sorted(given + [fit.id for fit in some.left_out]) == sorted(one.id for one in many)
        assert {fit.id for fit in some.fits} == {one.id for one in many if tokens_of(tokenizer, one) > limit}
        for one, row in renderer(tokenizer, limit=limit, too_long=too_long).rows(many):
            assert len(row.prompt) + max(len(row.chosen), len(row.rejected)) <= limit, one.id


def test_what_is_no_prompt_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="turns end with assistant"):
        rows(renderer(tokenizer), pair(prompt=history(1)[:2]))
