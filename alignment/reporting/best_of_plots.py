"""The page of a rejection sampling: maximum and median by the number of answers and temperature, gold, skills.

Everything is drawn from ``results.json``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignment.reporting import plots
from alignment.reporting.plots import Section, Series

Results = Mapping[str, Any]

ANSWERS = "answers to a prompt"


def page(results: Results) -> str:
    """The whole page."""
    sections = [Section(_ABOUT_CURVES, by_number(results))]
    if results["tuning"]:
        sections.append(Section(_ABOUT_TEMPERATURES, by_temperature(results)))
    if "gold" in results["curves"]:
        sections.append(Section(_ABOUT_GOLD, gold(results)))
    sections.append(Section(_ABOUT_TAGS, by_tag(results)))
    text = (
        f"{results['samples']:,} answers to each of {results['prompts']:,} prompts, at temperature "
        f"{results['temperature']:g}. Bars are {results['confidence']:.0%} intervals over prompts."
    )
    return plots.page("What the best of several answers is worth", text, sections)


def by_number(results: Results) -> plots.Figure:
    """Maximum and median (Llama 2, figure 7)."""
    curves = results["curves"]
    first, last = curves["maximum"][0]["estimate"], curves["maximum"][-1]["estimate"]
    title = f"The best of {results['samples']:,} answers scores {last - first:.2f} above one answer"
    series = [_series("maximum", curves["maximum"]), _series("median", curves["median"])]
    return plots.curves(title, ANSWERS, "reward", series)


def by_temperature(results: Results) -> plots.Figure:
    """Maximum and median at every temperature (Llama 2, figure 8)."""
    tuning = results["tuning"]
    series = {
        f"T = {one['temperature']:g}": [
            Series(name, range(1, len(one[name]) + 1), [each["estimate"] for each in one[name]])
            for name in ("maximum", "median")
        ]
        for one in tuning
    }
    taken = next(one for one in tuning if one["temperature"] == results["temperature"])
    told = plots.with_half(taken["maximum"][-1])
    title = f"The best of {results['samples']:,} scores highest at temperature {results['temperature']:g}: {told}"
    return plots.families(title, ANSWERS, "reward", series)


def gold(results: Results) -> plots.Figure:
    """The truth about the answer that the reward takes, and at the temperatures that were not taken."""
    curve = results["curves"]["gold"]
    first, last = curve[0]["estimate"], curve[-1]["estimate"]
    title = f"The gold reward of what is taken goes from {first:.3f} to {last:.3f}"
    others = [
        _series(f"T = {one['temperature']:g}, {one['prompts']:,} prompts", one["gold"])
        for one in results["tuning"]
        if one["temperature"] != results["temperature"]
    ]
    taken = _series(f"T = {results['temperature']:g}, {results['prompts']:,} prompts", curve)
    return plots.curves(title, ANSWERS, "gold reward", [taken, *others])


def by_tag(results: Results) -> plots.Figure:
    """One answer and the best of all by the prompts' tags, in gold where it is known."""
    tags = results["tags"]
    known = "gold_one" in next(iter(tags.values()))
    single, best = ("gold_one", "gold_best") if known else ("one", "best")
    rows = [f"{one['rows']:,} rows" for one in tags.values()]
    names = [plots.plain(tag) for tag in tags]
    series = [
        Series(told, names, [one[name] for one in tags.values()], rows)
        for name, told in ((single, "one answer"), (best, "the best of all"))
    ]
    rise = {tag: one[best]["estimate"] - one[single]["estimate"] for tag, one in tags.items()}
    least = min(rise, key=lambda tag: rise[tag])
    title = f"Choosing helps {least} least: {rise[least]:+.3f}"
    return plots.dots(title, "tag of the prompt", "gold reward" if known else "reward", series)


def _series(name: str, curve: Sequence[Mapping[str, Any]]) -> Series:
    return Series(name, range(1, len(curve) + 1), curve)


_ABOUT_CURVES = (
    "The expected score of the best of so many answers, and their expected median, over all ways of taking them from "
    "those that were drawn. What lies between the two is what choosing can bring; where the maximum stops rising, "
    "more answers bring nothing. An answer that is not sound counts as the lowest score of its prompt."
)
_ABOUT_TEMPERATURES = (
    "Solid: maximum, dashed: median, on the prompts on which the temperature was chosen. More answers want a higher "
    "temperature, and so does a policy after reinforcement learning: look for a new one in every iteration."
)
_ABOUT_GOLD = (
    "The truth about the answer that the reward prefers; it has no part in the choice. Where it falls while the "
    "reward rises, the reward is over-optimised: take fewer answers, or train a better reward model."
)
_ABOUT_TAGS = "A skill that choosing does not help, or harms, is one that the reward does not understand."
