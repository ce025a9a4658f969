"""What the page tells in tables that need no script: the ranking of models, how it was measured, versions, machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignment.reporting import perplexities
from alignment.reporting.page import models
from alignment.reporting.page.gather import Lineage, Node, flat
from alignment.reporting.page.models import Measured
from alignment.reporting.page.texts import Spoken
from alignment.reporting.plots import plain

DISTINCT = "word pairs"
ABOUT = {
    "gold": "the truth of the miniature world, overall",
    "kl": "nats an answer",
    "finished": "share of answers that came to their end",
    DISTINCT: "share of word pairs in all answers that are different ones",
}
MEASURING = ("split", "count", "temperature", "top_p", "max_new_tokens", "seed", "confidence")


def ranking(rows: Sequence[Measured], lineage: Lineage, spoken: Mapping[str, Spoken]) -> str:
    """The closing table, best first by gold; the page's script sorts and filters it by what cells carry."""
    columns = models.columns(rows)
    heads = [("name", "model", "text"), ("stage", "stage", "text"), ("evaluation", "evaluation", "text")]
    heads += [(name, models.told(name), "number") for name in columns]
    to = {models.reference_of(row) for row in rows if "kl" in row.measures}
    if len(to) == 1 and (only := next(iter(to))):
        # Where all KLs are to one policy, the head names it, and no row has to.
        heads = [(key, f"KL to {lineage.name(only)}" if key == "kl" else told, kind) for key, told, kind in heads]
    if spoken:
        heads.append((DISTINCT, DISTINCT, "number"))
    start = "gold" if "gold" in columns else ""
    head = "".join(_head(key, told, kind, key == start) for key, told, kind in heads)
    letters = models.protocols(rows)
    several = len({*letters.values()}) > 1
    body = "\n".join(_row(row, rows, lineage, columns, letters if several else {}, spoken) for row in rows)
    return f'<table id="ranking"><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>'


def perplexity(lineage: Lineage) -> str:
    """Every arm on held-out rows, differences between arms, and the shares of gains that are kept."""
    found = [node.json(models.RESULTS) for node in lineage.of_stage("perplexity")]
    there = [results for results in found if results is not None]
    told = []
    for make in (perplexities.arms, perplexities.differences, perplexities.shares):
        sheets = [make(results) for results in there]
        for columns in dict.fromkeys(sheet.columns for sheet in sheets):
            lines = [line for sheet in sheets if sheet.columns == columns for line in sheet.rows]
            told += [table(columns, lines)] if lines else []
    return "".join(told)


def protocol(rows: Sequence[Measured], lineage: Lineage) -> str:
    """How every evaluation and every measurement of judges and of losses was done."""
    found = {row.evaluation.fingerprint: row.evaluation for row in rows}
    nodes = [
        *found.values(),
        *lineage.of_stage("perplexity"),
        *lineage.of_stage("measure"),
        *lineage.of_stage("side_by_side"),
    ]
    lines = [_measured_how(node, lineage) for node in nodes]
    return table(("artifact", "stage", "data", "rows", *MEASURING, "KL to", "device", "precision"), lines)


def machines(lineage: Lineage) -> str:
    """Versions and machines, with how many artifacts were made by them."""
    counted: dict[tuple[str, str], int] = {}
    for node in lineage.nodes.values():
        if node.artifact is None or not node.artifact.created:
            continue
        told = [
            *flat(node.artifact.versions),
            *flat({f"machine.{key}": value for key, value in node.artifact.machine.items()}),
        ]
        for one in told:
            counted[one] = counted.get(one, 0) + 1
    return table(("", "", "artifacts"), [(name, value, f"{count}") for (name, value), count in sorted(counted.items())])


def energy(lineage: Lineage) -> str:
    """What every artifact took to make, the sum, and what is not in it."""
    lines, summed = [], lineage.energy
    for node in lineage.nodes.values():
        took = None if node.artifact is None else node.artifact.energy
        if node.artifact is not None and took is not None:
            tokens = node.artifact.tokens_per_kwh
            numbers = [_amount(one) for one in (took.device_hours, took.kwh, took.kg_co2eq)]
            rate = "–" if tokens is None else f"{tokens:,.0f}"
            lines.append([lineage.name(node.fingerprint), took.hardware, *numbers, took.how, rate])
    if not lines:
        return "<p>No record tells it.</p>"
    columns = ("artifact", "device", "device-hours", "kWh", "kg CO₂eq", "how it is known", "tokens per kWh")
    told = f"In all: {summed.text}. Not in it: {'; '.join(summed.excludes)}; nor what others have made."
    return f"<p>{plain(told)}</p>{table(columns, lines)}"


def table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A plain table, in which nothing is markup."""
    head = "".join(f'<th scope="col">{plain(column)}</th>' for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{plain(cell)}</td>' for cell in line)}</tr>" for line in lines)
    return f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def attribute(text: str) -> str:
    """Text inside an attribute's double quotes."""
    return plain(text).replace('"', "&quot;")


def _head(key: str, told: str, kind: str, sorted_by: bool) -> str:
    about = f' title="{attribute(ABOUT[key])}"' if key in ABOUT else ""
    way = "descending" if sorted_by else "none"
    return (
        f'<th scope="col" data-key="{attribute(key)}" data-kind="{kind}" aria-sort="{way}"{about}>'
        f"<button type='button'>{plain(told)}</button></th>"
    )


def _row(
    row: Measured,
    rows: Sequence[Measured],
    lineage: Lineage,
    columns: Sequence[str],
    letters: Mapping[str, str],
    spoken: Mapping[str, Spoken],
) -> str:
    evaluation = lineage.name(row.evaluation.fingerprint)
    letter = letters.get(row.evaluation.fingerprint)
    asked = _small(f"prompts {letter}" if letter else "")
    under = f"mean of {row.seeds} seeds" if row.model is None else "" if row.model.name == row.name else row.model.name
    cells = [
        f'<th scope="row" data-value="{attribute(row.name)}">{plain(row.name)}{_small(under)}</th>',
        f'<td data-value="{attribute(row.stage)}">{plain(row.stage)}</td>',
        f'<td data-value="{attribute(evaluation)}">{plain(evaluation)}{asked}</td>',
    ]
    for name in columns:
        to = models.reference_of(row) if name == "kl" else None
        # A KL is shown on the scale of those to the same policy.
        alike = [one for one in rows if to is None or models.reference_of(one) == to]
        under = f"to {lineage.name(to)}" if to and len(alike) < len(rows) else ""
        cells.append(_cell(row.measures.get(name), _range(alike, name), under))
    if spoken:
        share = spoken[row.key].pairs if row.key in spoken else None
        value, text = ("", "–") if share is None else (repr(share), f"{share:.3f}")
        cells.append(f'<td class="number" data-value="{value}">{text}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _cell(one: Mapping[str, float] | None, reach: tuple[float, float], under: str) -> str:
    """A number, its interval below it, and a line that shows the interval on the column's scale."""
    if one is None:
        return '<td class="number" data-value="">–</td>'
    value, low, high = one["estimate"], one["low"], one["high"]
    least, most = reach
    left, at, right = (100 * (bound - least) / ((most - least) or 1.0) for bound in (low, value, high))
    line = (
        f'<span class="interval"><i style="left:{left:.1f}%;width:{right - left:.1f}%"></i>'
        f'<b style="left:{at:.1f}%"></b></span>'
    )
    told, *bounds = (models.number(one, most).replace("-", "−") for one in (value, low, high))
    return f'<td class="number" data-value="{value!r}">{told}{_small(" … ".join(bounds))}{line}{_small(under)}</td>'


def _small(text: str) -> str:
    return f"<small>{plain(text)}</small>" if text else ""


def _amount(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _range(rows: Sequence[Measured], measure: str) -> tuple[float, float]:
    found = [row.measures[measure] for row in rows if measure in row.measures]
    return min((one["low"] for one in found), default=0.0), max((one["high"] for one in found), default=0.0)


def _measured_how(node: Node, lineage: Lineage) -> list[str]:
    settings: Mapping[str, Any] = node.artifact.settings if node.artifact is not None else {}
    notes: Mapping[str, Any] = node.artifact.notes if node.artifact is not None else {}
    asked = [*filter(None, [node.parents.get("prompts")]), *node.parts("comparisons"), *node.parts("data")]
    told = notes.get("prompts", notes.get("pairs", notes.get("rows", "")))
    if isinstance(told, Mapping):
        told = ", ".join(f"{count:,}" for count in told.values())
    reference = node.parents.get("reference", node.parents.get("teacher"))
    return [
        lineage.name(node.fingerprint),
        node.stage,
        ", ".join(map(lineage.name, asked)),
        f"{told:,}" if isinstance(told, int) else str(told),
        *(str(settings.get(name, "–")) for name in MEASURING),
        lineage.name(reference) if reference else "–",
        str(notes.get("device", "–")),
        str(notes.get("precision", "–")),
    ]
