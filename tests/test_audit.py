"""What CI says of known vulnerabilities in the pinned versions."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "audit.py"


@pytest.fixture
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def package(name: str, *flaws: str) -> dict[str, Any]:
    vulns = [{"id": flaw, "fix_versions": ["2.0"], "aliases": [f"CVE-{flaw}"]} for flaw in flaws]
    return {"name": name, "version": "1.0", "vulns": vulns}


UNKNOWN = {"name": "ours", "skip_reason": "Dependency not found"}


@pytest.mark.parametrize(
    ("packages", "code", "told"),
    [
        ([package("rich"), package("jinja2")], 0, "no known vulnerability in 2 pinned versions"),
        ([package("rich"), UNKNOWN], 0, "in 1 pinned versions; nothing is known of ours"),
        ([UNKNOWN], 0, "skipped, nothing is known here of any"),
        ([], 0, "skipped, nothing is known here of any"),
        ([package("rich"), package("jinja2", "PYSEC-1")], 1, "jinja2 1.0: PYSEC-1, mended in 2.0"),
    ],
)
def test_what_is_known_fails_and_what_is_not_known_is_said(
    audit: ModuleType, packages: list[dict[str, Any]], code: int, told: str
) -> None:
    found, words = audit.verdict({"dependencies": packages})
    assert found == code
    assert told in words


def test_what_is_accepted_passes_by_any_of_its_names(audit: ModuleType) -> None:
    report = {"dependencies": [package("jinja2", "PYSEC-1", "PYSEC-2")]}
    audit.ACCEPTED["CVE-PYSEC-1"] = "not used here"
    code, told = audit.verdict(report)
    assert code == 1
    assert "PYSEC-1" not in told
    audit.ACCEPTED["PYSEC-2"] = "not used here"
    assert audit.verdict(report)[0] == 0
