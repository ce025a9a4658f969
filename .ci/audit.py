"""Known vulnerabilities in the versions of constraints.txt, by pip-audit; a word where it or its data cannot be had.

    python .ci/audit.py

Ends with 1 where there is one that is not among ``ACCEPTED``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PINS = Path(__file__).parents[1] / "constraints.txt"
MINUTES = 5
ACCEPTED: dict[str, str] = {}
"""By a vulnerability's name: why it does not concern this project."""


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        environment = dict(os.environ)
        if importlib.util.find_spec("pip_audit") is None:
            install = [
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--target",
                folder,
                "pip-audit",
            ]
            if _python(install, environment).returncode:
                print("audit: skipped, pip-audit is not there and cannot be installed")
                return 0
            environment["PYTHONPATH"] = folder
        options = ["-m", "pip_audit", "-r", str(PINS), "--no-deps", "--disable-pip", "--progress-spinner", "off"]
        try:
            found = _python([*options, "--format", "json"], environment)
            report = json.loads(found.stdout)
        except (subprocess.TimeoutExpired, ValueError):
            print("audit: skipped, pip-audit cannot have its data")
            return 0
    code, told = verdict(report)
    print(told)
    return code


def verdict(report: dict[str, Any]) -> tuple[int, str]:
    """Exit code and words for pip-audit's report."""
    skipped = [one["name"] for one in report["dependencies"] if "skip_reason" in one]
    audited = [one for one in report["dependencies"] if "skip_reason" not in one]
    if not audited:
        return 0, "audit: skipped, nothing is known here of any of the pinned versions"
    found = [
        f"  {one['name']} {one['version']}: {flaw['id']}, mended in {', '.join(flaw['fix_versions']) or 'no version'}"
        for one in audited
        for flaw in one["vulns"]
        if not ACCEPTED.keys() & {flaw["id"], *flaw.get("aliases", ())}
    ]
    unknown = f"; nothing is known of {', '.join(skipped)}" if skipped else ""
    if found:
        return 1, "\n".join([f"audit: {len(found)} known vulnerabilities{unknown}", *found])
    return 0, f"audit: no known vulnerability in {len(audited)} pinned versions{unknown}"


def _python(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=60 * MINUTES
    )


if __name__ == "__main__":
    sys.exit(main())
