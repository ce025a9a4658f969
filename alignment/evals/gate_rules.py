"""Rules of the gate as people write them: sentences on the command line, or a YAML file of their own or ours.

``gold_safety no_worse_than 0.02`` is the rule ``{measure: gold_safety, no_worse_than: 0.02}`` of a file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from alignment.data import lists
from alignment.errors import DataError, UserError, nearest
from alignment.evals.gate import KINDS, Better, By, Rule, better_of
from alignment.settings import Settings, identity, text

SHIPPED = "gate_"
"""How the files that travel with the package begin (``data_recipes/lists``)."""
SENTENCE = re.compile(rf"(?P<measure>\S.*?)\s+(?P<kind>{'|'.join(KINDS)})\s+(?P<bound>\S+)(?P<words>(\s+\S+)*)\s*")
WORDS: dict[str, tuple[str, str]] = {
    "by_estimate": ("by", "estimate"),
    "by_interval": ("by", "interval"),
    "higher_is_better": ("better", "higher"),
    "lower_is_better": ("better", "lower"),
}
"""What may follow the number, and what each stands for in a file."""
LAYOUT = "A rule is a sentence: '<measure> at_least|at_most|no_worse_than|better_by <number>'; " + (
    "by_estimate, lower_is_better, higher_is_better may follow."
)


class Written(Settings):
    """One rule of a file: a measure and exactly one bound."""

    measure: str = text("the measure, as evaluations call it", min_length=1)
    at_least: float | None = identity("for the candidate's value", default=None)
    at_most: float | None = identity("for the candidate's value", default=None)
    no_worse_than: float | None = identity("the loss against the best that is allowed", default=None, ge=0)
    better_by: float | None = identity("beyond which the gain over the best has to lie", default=None, ge=0)
    by: By = identity("what counts: the worse bound of the interval, or the estimate", default="interval")
    better: Better | None = identity(
        "whether more or less of it is better, for differences; null where it is known", default=None
    )


def read(wanted: Sequence[str], directions: Mapping[str, Better | None] | None = None) -> list[Rule]:
    """The rules of sentences, of files (``.yaml``) and of shipped files by name (``miniature``), in order.

    ``directions`` say of measures whether more of them is better, beside those that are known. Raises
    :class:`UserError` for what cannot be read, a rule that says nothing or two things, and one that is there twice.
    """
    found: list[Rule] = []
    for one in wanted:
        if one.endswith((".yaml", ".yml")) or not re.search(r"\s", one.strip()):
            found += _file(one, directions or {})
        else:
            found.append(_rule(_sentence(one), f"rules: {one}", directions or {}))
    if not found:
        raise UserError("rules=[]: there is no rule", remedy=f"Name a file or say one. {LAYOUT}")
    keys = [(rule.measure, rule.kind) for rule in found]
    for measure, kind in keys:
        if keys.count((measure, kind)) > 1:
            raise UserError(f"rules: {measure} {kind} is said twice", remedy="Leave one of them out.")
    return found


def _file(name: str, directions: Mapping[str, Better | None]) -> list[Rule]:
    own = name if name.endswith((".yaml", ".yml")) else None
    shipped = sorted(path.stem.removeprefix(SHIPPED) for path in lists.FOLDER.glob(f"{SHIPPED}*.yaml"))
    if own is None and name not in shipped:
        raise UserError(f"rules: there is no list {name!r}", remedy=f"{nearest(name, shipped)} {LAYOUT}")
    path = lists.locate(own, f"{SHIPPED}{name}.yaml", "rules")
    values = lists.read(path, f"Begin with a copy of {lists.FOLDER / f'{SHIPPED}miniature.yaml'}.")
    rules = values.get("rules")
    if set(values) != {"rules"} or not isinstance(rules, list) or not all(isinstance(one, dict) for one in rules):
        raise DataError(
            str(path),
            "holds no list of rules",
            remedy="Its one key is `rules`, with lines like `- {measure: gold_safety, no_worse_than: 0.02}`.",
        )
    return [_rule(values, f"{path}, rule {number}", directions) for number, values in enumerate(rules, start=1)]


def _sentence(said: str) -> dict[str, Any]:
    """What the sentence would be in a file."""
    found = SENTENCE.fullmatch(said.strip())
    if found is None:
        raise UserError(f"rules: {said!r} is no rule", remedy=LAYOUT)
    try:
        values: dict[str, Any] = {"measure": found["measure"], found["kind"]: float(found["bound"])}
    except ValueError:
        raise UserError(f"rules: {said!r}: {found['bound']!r} is no number", remedy=LAYOUT) from None
    for word in found["words"].split():
        if word not in WORDS or WORDS[word][0] in values:
            raise UserError(f"rules: {said!r}: {word!r} cannot stand there", remedy=nearest(word, [*WORDS]))
        key, value = WORDS[word]
        values[key] = value
    return values


def _rule(values: dict[str, Any], where: str, directions: Mapping[str, Better | None]) -> Rule:
    written: Written = Written.parse(values, where)
    said = [kind for kind in KINDS if getattr(written, kind) is not None]
    if len(said) != 1:
        raise UserError(
            f"{written.measure}: {' and '.join(said) or 'no bound'}",
            cause=f"({where}) A rule has one bound.",
            remedy=f"Say one of {', '.join(KINDS)}; two bounds are two rules.",
        )
    rule = Rule(written.measure, said[0], getattr(written, said[0]), written.by, written.better)
    if not rule.compares:
        if rule.better is not None:
            raise UserError(
                f"{rule.measure} {rule.kind}: better={rule.better} has no effect",
                cause=f"({where}) {rule.kind} bounds a value, whichever way is better.",
                remedy="Leave it out.",
            )
        return rule
    better = rule.better or directions.get(rule.measure) or better_of(rule.measure)
    if better is None:
        raise UserError(
            f"{rule.measure} {rule.kind}: nothing says whether more of it is better",
            cause=f"({where})",
            remedy="Say lower_is_better or higher_is_better behind the number; in a file `better: lower`.",
        )
    return Rule(rule.measure, rule.kind, rule.bound, rule.by, better)
