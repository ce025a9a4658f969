"""Say whether a candidate may take the best model's place, by rules on what was measured; exit code 0, or 1 for no."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from alignment import console, files
from alignment.artifacts import Artifact
from alignment.settings import Settings as StrictSettings
from alignment.settings import place, reference, text
from alignment.store import Store

if TYPE_CHECKING:
    from alignment.evals.evidence import Evidence, Model
    from alignment.evals.gate import Finding, Verdict

FAILED = 1
"""The exit code where a rule does not hold."""


class Settings(StrictSettings):
    """``stage=gate``."""

    candidate: str | None = text(
        "its name in the evaluations, or its fingerprint; null takes the first one's last model"
    )
    best: str | None = text("that of the model it would replace; null takes the first evaluation's first model")
    evaluations: list[str] = reference(
        "results of stage=evaluate that measured both, [a,b,…]", kinds=("evaluation",), min_length=1
    )
    imports: list[str] | None = place("files of results measured elsewhere, .csv or .json, [a,b,…]; null for none")
    rules: list[str] = text(
        "'<measure> no_worse_than 0.02', better_by, at_least, at_most; or a file of rules, or miniature; [a,b,…]"
    )
    out: str | None = place("a file for the verdict as JSON; null writes none")


def run(settings: Settings, inputs: dict[str, Artifact], store: Store) -> int:
    """Print the measures of both models and every rule with its verdict; 0 where all hold, otherwise 1."""
    from alignment.evals import gate, gate_rules, imported
    from alignment.evals.evidence import Evaluation, Evidence

    evaluations = [Evaluation(inputs[f"evaluations.{place}"]) for place in range(len(settings.evaluations))]
    rules = gate_rules.read(settings.rules, {name: better for one in evaluations for name, better in one.directions})
    paths = [files.existing(path, "imports") for path in settings.imports or []]
    target = None if settings.out is None else files.typed(settings.out)
    if target is not None:
        files.make_folder(target.parent)
    results = [result for path in paths for result in imported.read(path)]
    evidence = Evidence(evaluations, results, settings.candidate, settings.best)
    verdicts = [gate.judge(rule, found) for rule in rules for found in evidence.findings(rule)]
    passed = gate.passes(verdicts)
    if target is not None:
        digests = {str(path): files.digest_file(path) for path in paths}
        files.write_json(target, _told(evidence, verdicts, passed, digests))
    _measures(evidence)
    _rules(verdicts, evidence)
    _end(verdicts, evidence, passed)
    return 0 if passed else FAILED


# ── what is printed ──────────────────────────────────────────────────────────────────────────────


def _measures(evidence: Evidence) -> None:
    """Both models beside each other, by everything that was measured here and elsewhere."""
    columns: tuple[str, ...] = ("measure", evidence.best.name, evidence.candidate.name, "from")
    lines: list[tuple[str, ...]] = [
        (measure, _value(best), _value(candidate), where) for measure, best, candidate, where in evidence.table()
    ]
    if evidence.alone:
        columns, lines = columns[:1] + columns[2:], [line[:1] + line[2:] for line in lines]
    console.say()
    title = f"measures, ± half of the {evidence.evaluations[0].confidence:.0%} interval"
    console.table(title, columns, lines, right=columns[1:-1])


def _value(finding: Finding | None) -> str:
    from alignment.reporting.numbers import brief

    if finding is None or finding.interval is None:
        return "–"
    return brief(finding.interval._asdict(), groups=1 if math.isinf(finding.interval.low) else None)


def _rules(verdicts: Sequence[Verdict], evidence: Evidence) -> None:
    """Every rule, once for each place where its measure was found."""
    lines = [_line(verdict, evidence.best.name) for verdict in verdicts]
    candidate, best = evidence.candidate.name, evidence.best.name
    columns = ("measure", "value", "interval", "bound", "verdict", "why", "from")
    console.say()
    title = f"rules for {candidate}" if evidence.alone else f"may {candidate} take the place of {best}?"
    console.table(title, columns, lines, right=("value", "bound"), whole=columns[1:5])


def _line(verdict: Verdict, best: str) -> tuple[str, ...]:
    from alignment.evals.gate import number

    rule, finding = verdict.rule, verdict.finding
    sign = "+" if rule.compares else ""
    value, interval = "–", "–"
    if finding.interval is not None:
        value = number(finding.interval.estimate, sign)
        bounds = [number(bound, sign) for bound in finding.interval[1:]]
        interval = "–" if math.isinf(finding.interval.low) else " … ".join(bounds)
    name = f"{rule.measure}, less {best}" if rule.compares else rule.measure
    where = [finding.where] if finding.where else []
    where += [f"{finding.prompts:,} prompts"] if finding.prompts is not None else []
    where += ["not paired"] if rule.compares and finding.interval is not None and not finding.paired else []
    counted = f"{rule.sign} {number(rule.limit, sign)}" + (" (estimate)" if rule.by == "estimate" else "")
    return name, value, interval, counted, "pass" if verdict.passed else "FAIL", verdict.why, ", ".join(where)


def _end(verdicts: Sequence[Verdict], evidence: Evidence, passed: bool) -> None:
    who = f"{evidence.candidate.name} ({', '.join(one[:8] for one in evidence.candidate.fingerprints)})"
    console.say()
    if passed:
        console.say(f"PASS: {who} keeps all {len(verdicts)} rules", style="green")
        return
    broken = [f"{one.rule.measure} {one.rule.kind} {one.rule.bound:g}: {one.why}" for one in verdicts if not one.passed]
    console.say(f"FAIL: {who} breaks {len(broken)} of {len(verdicts)} rules: {'; '.join(broken)}", style="red")


# ── what is written ──────────────────────────────────────────────────────────────────────────────


def _told(evidence: Evidence, verdicts: Sequence[Verdict], passed: bool, imports: dict[str, str]) -> dict[str, Any]:
    return {
        "passed": passed,
        "candidate": _model(evidence.candidate),
        "best": _model(evidence.best),
        "evaluations": {one.name: one.artifact.fingerprint for one in evidence.evaluations},
        "imports": imports,
        "rules": [_verdict(verdict) for verdict in verdicts],
    }


def _model(model: Model) -> dict[str, Any]:
    return {"name": model.name, "fingerprints": [*model.fingerprints]}


def _verdict(verdict: Verdict) -> dict[str, Any]:
    rule, finding = verdict.rule, verdict.finding
    found: dict[str, float] = {} if finding.interval is None else finding.interval._asdict()
    return {
        "measure": rule.measure,
        "rule": rule.kind,
        "bound": rule.bound,
        "by": rule.by,
        "better": rule.better,
        "from": finding.where or None,
        "prompts": finding.prompts,
        "paired": finding.paired,
        **{key: found[key] if math.isfinite(found.get(key, math.inf)) else None for key in ("estimate", "low", "high")},
        "passed": verdict.passed,
        "why": verdict.why,
    }
