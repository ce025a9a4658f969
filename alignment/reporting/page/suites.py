"""Models on suites: figures of what is told by groups, of how scores are spread and move together, and every number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alignment.reporting.page import rewards
from alignment.reporting.page.examined import Found, Suite, suites
from alignment.reporting.page.figures import Group, Hues, Panel, trace
from alignment.reporting.page.gather import Lineage
from alignment.reporting.page.models import RESULTS, number
from alignment.reporting.page.tables import table
from alignment.reporting.plots import plain
from alignment.reporting.suites import first_of

MOST_LABELS = 40
"""Of a group with more there is no figure."""
ABOUT = (
    "Every model on the same examples, with intervals over prompts. Where a suite has groups (turns, categories, "
    "temperatures …) its first measure is shown by group; of rewards also how the scores of all answers are spread, "
    "how two of them move together from one model to the next, and each prompt's score before and after (above the "
    "line it has risen). Self-BLEU over the temperature has a line for each "
    "kind of prompt: the lower it lies, the more the answers to a prompt differ."
)
BY_KIND = "_temperature"
"""Ends the groups of diversity that tell one kind of prompt by temperature."""
DASHES = {"solid": "solid", "dot": "dotted", "dash": "dashed", "dashdot": "dash-dotted"}
"""Plotly's lines, as the title calls them."""


def group(lineage: Lineage, hues: Hues) -> Group:
    """A panel for every group of every suite, and for the scores of rewards."""
    panels = []
    for one in suites(lineage):
        where, suite = one.where, one.suite
        curves = _by_kind(suite)
        panels += [_temperatures(where, suite, curves, hues)] if curves else []
        panels += [*_by_group(where, suite, hues, without=[f"{kind}{BY_KIND}" for kind in curves])]
        if suite["kind"] == "rewards":
            panels += [*rewards.spread(one, hues), *rewards.together(one, hues), *rewards.moved(one, hues)]
        if suite["kind"] == "memorisation":
            panels += [*_by_size(one)]
        if not suite["groups"]:
            panels.append(_shares(where, suite, hues))
    return Group("Suites", ABOUT, panels)


def numbers(lineage: Lineage) -> str:
    """Every measure of every model by suite, and how far models are from those they are compared with."""
    parts = [*_capabilities(lineage)]
    for one in suites(lineage):
        suite = one.suite
        measures = [measure["name"] for measure in suite["declared"]]
        lines = [[model, *(_cell(found.get(name)) for name in measures)] for model, found in models_of(suite).items()]
        parts += [f"<h3>{plain(one.where)}</h3>", table(("model", *measures), lines)]
        less = [
            [f"{model} − {told['from']}", *(_cell(told["measures"].get(name), "+") for name in measures)]
            for model, told in suite["differences"].items()
        ]
        parts += [table(("less", *measures), less)] if less else []
        wins = suite.get("wins", {})
        won = list(dict.fromkeys(name for told in wins.values() for name in told["measures"]))
        over = [
            [f"{model} over {told['over']}", *(_cell(told["measures"].get(name)) for name in won)]
            for model, told in wins.items()
        ]
        parts += [table(("share of the prompts on which it is higher", *won), over)] if over else []
        parts.append(table(("measure", "what it is"), [[name["name"], name["doc"]] for name in suite["declared"]]))
    return "".join(parts)


def _capabilities(lineage: Lineage) -> Iterator[str]:
    """One table by capability for every evaluation that was told which suites measure which."""
    for node in lineage.of_stage("evaluate"):
        found = (node.json(RESULTS) or {}).get("capabilities")
        if not found:
            continue
        models = list(dict.fromkeys(model for one in found.values() for model in one["models"]))
        less = {model: told["from"] for one in found.values() for model, told in one["differences"].items()}
        heads = ("capability", *models, *(f"{model} − {base}" for model, base in less.items()), "measured by")
        lines = [
            [
                name,
                *(_cell(one["models"].get(model)) for model in models),
                *(_cell(one["differences"].get(model), "+") for model in less),
                ", ".join(one["of"]) or "nothing here",
            ]
            for name, one in found.items()
        ]
        yield f"<h3>By capability ({plain(lineage.name(node.fingerprint))})</h3>{table(heads, lines)}"


def models_of(suite: Suite) -> Mapping[str, Mapping[str, Any]]:
    """The models that stand beside each other: arms where there are."""
    found: Mapping[str, Mapping[str, Any]] = suite.get("arms") or suite["models"]
    return found


def _by_kind(suite: Suite) -> dict[str, Mapping[str, Mapping[str, Any]]]:
    """Of diversity, by kind of prompt: measures by temperature and model. Nothing where there are too many kinds."""
    found = {
        name.removesuffix(BY_KIND): labels
        for name, labels in suite["groups"].items()
        if suite["kind"] == "diversity" and name.endswith(BY_KIND) and len(labels) > 1
    }
    return found if len(found) <= len(DASHES) else {}


def _temperatures(where: str, suite: Suite, kinds: Mapping[str, Mapping[str, Mapping[str, Any]]], hues: Hues) -> Panel:
    """Self-BLEU over the temperature, a line for every model and kind of prompt (Llama 2, figure 21)."""
    first = suite["declared"][0]["name"]
    dashes = dict(zip(kinds, DASHES, strict=False))
    traces = [
        trace(
            model,
            [float(label) for label in labels],
            [found.get(model, {}).get(first) for found in labels.values()],
            hues.look(model),
            told=[kind] * len(labels),
            dash=dashes[kind],
        )
        for model in models_of(suite)
        for kind, labels in kinds.items()
    ]
    lines = ", ".join(f"{kind} {DASHES[dash]}" for kind, dash in dashes.items())
    return Panel(f"{where}: {first} by temperature ({lines})", "temperature", traces)


def _by_group(where: str, suite: Suite, hues: Hues, without: Sequence[str]) -> Iterator[Panel]:
    measures = [one["name"] for one in suite["declared"]]
    for name, labels in suite["groups"].items():
        if name in without or not 1 < len(labels) <= MOST_LABELS:
            continue
        first = first_of(measures, labels)
        counted = all(_is_number(label) for label in labels)
        x = [float(label) for label in labels] if counted else list(labels)
        traces = [
            trace(
                model,
                x,
                [labels[label].get(model, {}).get(first) for label in labels],
                hues.look(model),
                mode="lines+markers" if counted else "markers",
            )
            for model in models_of(suite)
        ]
        yield Panel(f"{where}: {first} by {name}", name if counted else "", traces, named=not counted)


def _shares(where: str, suite: Suite, hues: Hues) -> Panel:
    """All measures that are shares, beside each other."""
    models = models_of(suite)
    names = [one["name"] for one in suite["declared"]]
    shares = [name for name in names if all(0 <= one[name]["estimate"] <= 1 for one in models.values() if name in one)]
    traces = [
        trace(model, shares, [_with_bounds(found.get(name)) for name in shares], hues.look(model), mode="markers")
        for model, found in models.items()
    ]
    return Panel(where, "", traces if shares else [], named=True)


def _with_bounds(one: Mapping[str, Any] | None) -> Any:
    """As a plot takes it: an interval, or a number alone where nobody knows its bounds."""
    return one["estimate"] if one is not None and one["low"] is None else one


def _by_size(one: Found) -> Iterator[Panel]:
    """What models of several sizes know by heart, over parameters (Carlini et al., arXiv 2202.07646, figure 1)."""
    from alignment.merging import layout

    here = {name: node.artifact.path for name, node in one.models.items() if node.folder and node.artifact is not None}
    sizes = {name: sum(entry.count for entry in layout.read(path).entries.values()) for name, path in here.items()}
    if len({*sizes.values()}) < 2:
        return
    order = sorted(sizes, key=sizes.__getitem__)
    looks = Hues()
    traces = [
        trace(
            measure,
            [float(sizes[name]) for name in order],
            [one.suite["models"][name].get(measure) for name in order],
            looks.look(measure),
            told=order,
        )
        for measure in ("exact", "approximate")
    ]
    yield Panel(f"{one.where}: known by heart by size", "parameters", traces)


def _cell(one: Mapping[str, Any] | None, sign: str = "") -> str:
    if one is None:
        return "–"
    told = number(one["estimate"]) if not sign else f"{one['estimate']:+.3f}"
    if one["low"] is None:
        return told
    return f"{told} ({number(one['low'], one['estimate'])} … {number(one['high'], one['estimate'])})"


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True
