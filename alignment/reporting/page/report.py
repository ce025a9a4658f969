"""The report of a lineage: which sections there are, and what each of them holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignment.reporting.page import curves, document, figures, front, graph, models, suites, tables, texts, versus
from alignment.reporting.page.document import Section
from alignment.reporting.page.figures import Group, Hues
from alignment.reporting.page.gather import Lineage
from alignment.reporting.page.models import Measured
from alignment.reporting.page.texts import Spoken
from alignment.reporting.plots import plain


def page(lineage: Lineage, title: str, samples: int) -> str:
    """The whole page; ``samples`` prompts at most are shown with what models answered."""
    rows = models.measured(lineage)
    answers = texts.answers_of(rows)
    spoken = {key: texts.spoken(some) for key, some in answers.items()}
    said = texts.gathered(rows, answers, lineage, samples)
    hues = Hues([row.name for row in rows] + [lineage.name(run.fingerprint) for run in lineage.of_stage("rl")])
    views = front.views(rows, lineage, spoken, hues)
    groups = {
        "training": ("training", curves.training(lineage, hues)),
        "variety": ("variety", curves.variety(rows, lineage, spoken, hues)),
        "perplexity": ("perplexity", curves.perplexity(lineage, hues)),
        "judges": ("judges", curves.grades(lineage)),
        "suites": ("suites", suites.group(lineage, hues)),
        "versus": ("side by side", versus.group(lineage)),
        "skills": ("skills", curves.skills(lineage, hues)),
        "merges": ("merges", curves.merges(lineage)),
        "best": ("best of n", curves.best_of(lineage)),
    }
    drawn: dict[str, Any] = {key: figures.group(group) for key, (_, group) in groups.items()}
    drawn["fronts"] = [{"name": name, **figures.group(one)} for name, one in views.items()]
    sections = {
        "models": _ranking(rows, lineage, spoken) if rows else None,
        "front": _front(views) if views else None,
        "samples": _samples() if said.said else None,
        "lineage": _graph(lineage),
        **{key: _group(key, short, group) if drawn[key]["panels"] else None for key, (short, group) in groups.items()},
    }
    if drawn["perplexity"]["panels"]:
        sections["perplexity"] = _perplexity(groups["perplexity"][1], lineage)
    if told := suites.numbers(lineage):
        sections["suites"] = _suites(groups["suites"][1], told)
    absent = [_NOTHING[key] for key, section in sections.items() if section is None]
    there = [section for section in sections.values() if section is not None]
    values = {
        "drawn": drawn,
        "details": graph.details(lineage),
        "texts": said.values(),
    }
    return document.render(title, _lead(rows, lineage), [*there, _protocol(rows, lineage, absent)], values)


def _lead(rows: Sequence[Measured], lineage: Lineage) -> str:
    """One sentence on what came out, one on what the page stands on."""
    told = ""
    best = next((row for row in rows if "gold" in row.measures), None)
    if best is not None:
        gold, kl = best.measures["gold"], best.measures.get("kl")
        bounds = f"{models.number(gold['low'])} … {models.number(gold['high'])}"
        told = f"{best.name} has the highest gold: {models.number(gold['estimate'])} ({bounds})"
        told += f", at KL {kl['estimate']:.2f}. " if kl is not None else ". "
    count = len({of for node in lineage.of_stage("evaluate") for of in node.parts("models")})
    gone = f", {len(lineage.gone)} of them no longer there" if lineage.gone else ""
    evaluated = f"{_counted(count, 'evaluated model')}; " if count else ""
    return f"{told}{evaluated}{_counted(len(lineage.nodes), 'artifact')} in all{gone}."


def _ranking(rows: Sequence[Measured], lineage: Lineage, spoken: Mapping[str, Spoken]) -> Section:
    text = (
        "Each number with its interval over prompts, which the line below it shows on the column's scale. Models of "
        "one evaluation answered the same prompts with the same random numbers: their differences are surer than the "
        "intervals suggest. Click a column to sort by it."
    )
    if len({*models.protocols(rows).values()}) > 1:
        text += " Rows whose prompts have different letters were measured in different ways and do not compare."
    content = (
        '<div class="controls"><label>Name <input id="filter-name" type="search" autocomplete="off"></label>'
        '<label>Stage <select id="filter-stage"><option value="">all</option></select></label>'
        '<label>Evaluation <select id="filter-evaluation"><option value="">all</option></select></label>'
        '<output id="shown" aria-live="polite"></output></div>'
    )
    table = tables.ranking(rows, lineage, spoken)
    return Section("models", "models", "Models, ranked", text, f'{content}<div class="wide" tabindex="0">{table}</div>')


def _front(views: Mapping[str, Group]) -> Section:
    options = "".join(f'<option value="{place}">{tables.attribute(name)}</option>' for place, name in enumerate(views))
    choice = f'<div class="controls"><label>Show <select id="view">{options}</select></label></div>'
    figures = '<p id="view-text"></p><div class="figures" id="figures-front"></div>'
    return Section("front", "front", "Reward over KL", "", choice + figures)


def _samples() -> Section:
    text = "Two models or steps of a run on the same prompts, with the scores of each answer."
    content = (
        '<div class="controls"><label>Left <select id="left"></select></label>'
        '<label>Right <select id="right"></select></label><label>Tag <select id="tag"></select></label>'
        '<label>Search <input id="search" type="search" autocomplete="off"></label>'
        '<label class="check"><input id="differ" type="checkbox"> only where they differ</label>'
        '<output id="found" aria-live="polite"></output></div><div id="said"></div>'
        '<button type="button" id="more" hidden>Show more</button>'
    )
    return Section("samples", "samples", "What they said", text, content)


def _graph(lineage: Lineage) -> Section:
    text = (
        "Each artifact stands below what it was made from. Choose one to see its settings and metrics, and its descent."
    )
    content = (
        f'{graph.legend(lineage)}<div class="lineage"><div class="wide" tabindex="0">{graph.drawing(lineage)}</div>'
        '<aside id="details" aria-live="polite"><p>Nothing is chosen.</p></aside></div>'
    )
    return Section("lineage", "lineage", "Where everything comes from", text, content)


def _group(key: str, short: str, group: Group) -> Section:
    return Section(key, short, group.title, group.text, f'<div class="figures" id="figures-{key}"></div>')


def _perplexity(group: Group, lineage: Lineage) -> Section:
    content = '<div class="figures" id="figures-perplexity"></div>' + tables.perplexity(lineage)
    return Section("perplexity", "perplexity", group.title, group.text, content)


def _suites(group: Group, told: str) -> Section:
    return Section(
        "suites", "suites", group.title, group.text, f'<div class="figures" id="figures-suites"></div>{told}'
    )


def _protocol(rows: Sequence[Measured], lineage: Lineage, absent: Sequence[str]) -> Section:
    text = (
        "Intervals are bootstraps over prompts at the stated confidence; they hold the training seeds fixed, and say "
        "nothing of how another seed would have come out."
    )
    content = f"{tables.protocol(rows, lineage)}<h3>Versions and machines</h3>{tables.machines(lineage)}"
    content += f"<h3>Energy</h3>{tables.energy(lineage)}"
    if absent:
        content += f"<h3>What is not here</h3><p>{' '.join(map(plain, absent))}</p>"
    return Section("how", "how measured", "What was measured how", text, content)


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


_NOTHING = {
    "models": "No model was evaluated among these artifacts.",
    "front": "No run of reinforcement learning, no evaluation with a KL and no front is among them.",
    "samples": "No answers are kept.",
    "training": "No run of reinforcement learning has metrics.",
    "variety": "No answers are there whose variety could be counted.",
    "perplexity": "No perplexity was measured by stage=perplexity.",
    "judges": "No judges were measured.",
    "suites": "No model was examined on a suite.",
    "versus": "No two models were put side by side.",
    "skills": "No evaluation has tagged prompts and knows gold.",
    "merges": "No merge has compared its layers.",
    "best": "No answers were chosen by rejection sampling.",
}
