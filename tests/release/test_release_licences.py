"""The licence of a release, and what Gemma's terms ask for."""

from __future__ import annotations

from pathlib import Path

import pytest
from release.lineages import TERMS

from alignment.errors import UserError
from alignment.release import gemma_terms, licences
from alignment.release.provenance import Origin, Provenance


def of(*found: str | None, gemma: tuple[str, ...] = (), broken: tuple[str, ...] = ()) -> Provenance:
    origins = tuple(Origin(f"s{place}", "rows", "a source", one) for place, one in enumerate(found))
    return Provenance(origins, gemma, broken)


def settled(asked: str | None, provenance: Provenance, allow_unknown: bool = False) -> licences.Licence:
    return licences.settle(asked, provenance, allow_unknown=allow_unknown)


def test_what_follows() -> None:
    assert settled(None, of("Apache-2.0", "Apache-2.0")) == licences.Licence("apache-2.0", "Apache-2.0", None)
    assert settled(None, of("MIT", gemma=("hf:google/gemma-2b",))).id == "gemma"


@pytest.mark.parametrize("provenance", [of("MIT", "Apache-2.0"), of(), of("My Own Terms"), of("MIT, CC-BY-4.0")])
def test_what_does_not_follow(provenance: Provenance) -> None:
    with pytest.raises(UserError, match="does not follow") as caught:
        settled(None, provenance)
    assert "licence=<SPDX" in caught.value.remedy


def test_as_the_user_says() -> None:
    assert settled("CC-BY-4.0", of("MIT", "Apache-2.0")).id == "cc-by-4.0"
    assert settled("EUPL-1.3", of("MIT")) == licences.Licence("other", "EUPL-1.3", None)
    own = settled("Terms of the House\n\nBe kind.", of("MIT"))
    assert own == licences.Licence("other", "Terms of the House", "Terms of the House\n\nBe kind.\n")
    with pytest.raises(UserError, match="says nothing"):
        settled("unknown", of("MIT"))


def test_gemma_leaves_no_choice() -> None:
    found = settled("Gemma", of(gemma=("endpoint:gemma-2-27b, teacher of teach",)))
    assert found.text is not None
    for words in (
        gemma_terms.SENTENCE,
        "section 3.2",
        gemma_terms.POLICY_URL,
        "enforceable provision",
        "subsequent users",
    ):
        assert words in found.text
    with pytest.raises(UserError, match="descends from Gemma") as caught:
        settled("MIT", of("MIT", gemma=("hf:google/gemma-2b",)))
    assert "hf:google/gemma-2b" in caught.value.problem


@pytest.mark.parametrize("provenance", [of("MIT", None), of("MIT", broken=("step:sft",))])
def test_an_unknown_licence_stops_it(provenance: Provenance) -> None:
    with pytest.raises(UserError, match="no licence is known of") as caught:
        settled("MIT", provenance)
    assert "allow_unknown=true" in caught.value.remedy
    assert settled("MIT", provenance, allow_unknown=True).id == "mit"
    with pytest.raises(UserError, match="does not follow"):
        settled(None, provenance, allow_unknown=True)
    with pytest.raises(UserError, match="no licence is known of"):
        settled(None, Provenance(provenance.origins, ("gemma",), provenance.broken))


# ── Gemma's terms ────────────────────────────────────────────────────────────────────────────────


def test_the_terms_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="copy of the Gemma Terms of Use") as caught:
        gemma_terms.read(None, ["hf:google/gemma-2b, model.weights of sft"])
    assert gemma_terms.TERMS_URL in caught.value.remedy
    assert "model.weights of sft" in caught.value.cause
    (tmp_path / "terms.txt").write_text(TERMS)
    assert gemma_terms.read(str(tmp_path / "terms.txt"), []) == TERMS


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not the whole"),
        (b"Gemma Terms of Use, Prohibited Use Policy, Distribution", "not the whole"),
        (TERMS.replace("Gemma Terms of Use", "Llama Licence").encode(), "not the whole"),
        (TERMS.replace("Prohibited Use Policy", "x").encode(), "not the whole"),
        (b"\n<!DOCTYPE html><title>404</title>" + TERMS.encode(), "web page"),
        (b"<HTML>" + TERMS.encode(), "web page"),
        (b"%PDF\xff\xfe" + TERMS.encode(), "cannot be read as text"),
    ],
)
def test_what_cannot_be_the_terms(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "terms.txt").write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        gemma_terms.read(str(tmp_path / "terms.txt"), [])
    assert gemma_terms.TERMS_URL in caught.value.remedy


def test_terms_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        gemma_terms.read(str(tmp_path / "none.txt"), [])


def test_the_notice() -> None:
    told = gemma_terms.notice(
        "MODIFIED: so.", ["endpoint:gemma, teacher of teach"], ["config.json"], ["tokenizer.json"]
    )
    sentence = "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"
    assert told.splitlines()[0] == sentence
    for words in ("MODIFIED: so.", "- endpoint:gemma, teacher of teach", "- config.json\n", "- tokenizer.json ("):
        assert words in told
