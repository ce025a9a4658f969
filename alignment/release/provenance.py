"""Whose terms a model is under: which of its origins are Gemma's, and the licence of all that it learned from.

A licence enters a lineage in three places: with a source of a dataset (its recipe declares it), with a model or a
dataset that is not ours (``hf:``, ``dir:``), and with answers from behind a server. The first is recorded; for the
others the user may say it (``origins=[dir:/models/x=apache-2.0]``). Where nobody does, a model that is a Gemma by its
name or config is taken for one, and everything else is unknown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.data import store as datasets
from alignment.errors import UserError, nearest
from alignment.release.descent import Node
from alignment.store import parse_reference

GEMMA = "gemma"
GEMMAS_OWN = re.compile(r"hf:google/.*gemma", re.IGNORECASE)
"""What is Gemma's whatever anybody says."""
OURS = ("gold", "raters", "check")
"""Kinds that are made here and bring no licence."""
NOTHING = {"", "-", "?", "n/a", "none", "null", "other", "tbd", "todo", "unlicensed", "unspecified"}
"""Spellings of a licence that say nothing, beside all with the word ``unknown``."""
NON_COMMERCIAL = re.compile(r"(?<![a-z])nc(?![a-z])|non-?\s?commercial|research[- ]only", re.IGNORECASE)
REDECLARED = re.compile(r"recipe\.sources\.\d+\.dataset")
"""The input of a recipe whose licence the recipe declares."""


@dataclass(frozen=True)
class Origin:
    """What brings a licence into a lineage: a dataset's source, a foreign model … ``licence`` None: not known."""

    name: str
    into: str
    what: str
    licence: str | None
    rows: int | None = None

    @property
    def non_commercial(self) -> bool:
        """Whether its licence forbids commercial use."""
        return self.licence is not None and NON_COMMERCIAL.search(self.licence) is not None


@dataclass(frozen=True)
class Provenance:
    """``gemma`` tells every way in which the model descends from Gemma; ``broken`` where its lineage cannot be read."""

    origins: tuple[Origin, ...]
    gemma: tuple[str, ...]
    broken: tuple[str, ...]

    @property
    def unknown(self) -> tuple[str, ...]:
        """Everything of which no licence is known, in words."""
        return (*(f"{one.name}, {one.what} of {one.into}" for one in self.origins if one.licence is None), *self.broken)

    @property
    def licences(self) -> tuple[str, ...]:
        """The licences that are known, each once."""
        return tuple(sorted({one.licence for one in self.origins if one.licence is not None}))


def told(origins: Sequence[str]) -> dict[str, str]:
    """``[dir:/models/x=apache-2.0]`` by reference. Raises :class:`UserError` for what is not of that form."""
    found = {}
    for one in origins:
        reference, equals, licence = one.rpartition("=")
        if not equals or known(licence) is None:
            raise UserError(
                f"origins: {one!r} does not say the licence of a reference",
                remedy="Write origins=[dir:/models/x=apache-2.0,endpoint:some-model=…]; gemma for what is Gemma's.",
            )
        parse_reference(reference)
        if GEMMAS_OWN.match(reference) and licence.casefold() != GEMMA:
            raise UserError(f"origins: {reference} is Gemma's own", remedy="Leave it out: its terms are known.")
        found[reference] = licence
    return found


def known(licence: str) -> str | None:
    """A licence as it was given, or None where what was given says nothing."""
    plain = licence.strip()
    silent = plain.casefold() in NOTHING or "unknown" in plain.casefold()
    return None if silent else plain


def trace(nodes: Sequence[Node], origins: Mapping[str, str]) -> Provenance:
    """Read a lineage (:func:`descent.lineage`). Raises :class:`UserError` for an origin that is told and not there."""
    references = {node.reference for node in nodes}
    absent = next((one for one in origins if one not in references), None)
    if absent is not None:
        given = [one for one in references if one.partition(":")[0] in ("dir", "hf", "endpoint", "remote")]
        raise UserError(f"origins: the model does not descend from {absent}", remedy=nearest(absent, sorted(given)))
    found: list[Origin] = []
    gemma: list[str] = []
    broken: list[str] = []
    for node in nodes:
        used = _used(node)
        if node.ours:
            found += _sources(node)
            gemma += [f"the data of {one.into} ({one.name})" for one in _sources(node) if _says_gemma(one.licence)]
        elif node.artifact.kind in OURS:
            continue
        elif node.gone and node.reference not in origins and not (_is_foreign(node) and _is_gemma(node)):
            broken.append(f"{node.label}, {used}: it is no longer where it was, and nothing tells what it came from")
        else:
            licence = origins.get(node.reference) or (GEMMA if _is_gemma(node) else None)
            redeclared = all(REDECLARED.fullmatch(use.key) for use in node.uses) and bool(node.uses)
            if licence is not None or not redeclared:
                found.append(Origin(node.name, _into(node), _what(node), licence))
            if _says_gemma(licence):
                gemma.append(f"{node.name}, {used}" if used else node.name)
    return Provenance(tuple(found), tuple(gemma), tuple(broken))


def _sources(node: Node) -> list[Origin]:
    """The sources of a dataset that a recipe made; those that are datasets of ours bring their own."""
    if node.artifact.kind != "dataset" or node.artifact.stage != "data":
        return []
    declared = {one["name"]: one for one in node.artifact.settings.get("recipe", {}).get("sources", [])}
    card = _card(node.artifact.path)
    rows = {name: source.get("rows") for name, source in card.get("sources", {}).items()}
    licences = {name: one["licence"] for name, one in declared.items() if not _is_ours(one)}
    if not declared:
        licences = {name: source["licence"] for name, source in card.get("sources", {}).items()}
    if not declared and not licences:
        licences = {name: name for name in node.artifact.licences} or {"its rows": ""}
    return [
        Origin(name, node.artifact.step, "a source", known(licence), rows.get(name))
        for name, licence in licences.items()
    ]


def _is_ours(source: Mapping[str, Any]) -> bool:
    """Whether a recipe's source is a dataset whose own lineage tells where its rows come from."""
    return source.get("dataset") is not None and not source["dataset"].startswith(("dir:", "hf:"))


def _card(folder: Path) -> dict[str, Any]:
    return datasets.card(folder) if (folder / datasets.CARD).is_file() else {}


def _is_gemma(node: Node) -> bool:
    """By its name, or by the config of its folder: nothing else tells where foreign weights come from."""
    name = node.reference.partition(":")[2]
    if node.artifact.kind == "endpoint":
        return GEMMA in name.casefold()
    called = Path(name).name if node.reference.startswith("dir:") else name
    return _is_foreign(node) and (GEMMA in called.casefold() or _model_type(node.artifact.path).startswith(GEMMA))


def _is_foreign(node: Node) -> bool:
    return node.reference.startswith(("dir:", "hf:"))


def _model_type(folder: Path) -> str:
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def _says_gemma(licence: str | None) -> bool:
    return licence is not None and re.search(r"(?<![a-z])gemma", licence, re.IGNORECASE) is not None


def _what(node: Node) -> str:
    kinds = {"endpoint": "answers from a server", "remote": "a served scorer"}
    config = (node.artifact.path / "config.json").is_file()
    return kinds.get(node.artifact.kind, "a model that is not ours" if config else "a folder that is not ours")


def _into(node: Node) -> str:
    return ", ".join(_once(use.step for use in node.uses)) or "the model itself"


def _used(node: Node) -> str:
    return ", ".join(_once(f"{use.key} of {use.step}" for use in node.uses))


def _once(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
