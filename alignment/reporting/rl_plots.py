"""The page of a run of reinforcement learning: its front, what was measured on its batches, what the policy said.

Everything is drawn from the rows of ``metrics.jsonl``, ``front.jsonl`` and ``samples.jsonl``. What a run does not have
(a critic, a safety reward) has no place on its page, and a number that was not finite (null) leaves a gap.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from alignment.reporting import fronts, panels, plots
from alignment.reporting.panels import Panel
from alignment.reporting.plots import Section, Series, plain

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Row = Mapping[str, Any]

STEP = "step"
NO_SCORES = {STEP, "prompt", "answer", "kl"}
"""Of a sample; everything else in its row is a score."""
LOOKS = 6
"""Looks whose answers stand side by side; the file has all of them."""
OPEN = 6
"""Prompts that one sees at once; the others are there to be opened."""
LONGEST = 1_200
"""Characters of a prompt or an answer at most."""
TINY = 1e-9
"""What is smaller is rounding: means of whitened scores."""

OPTIMISED = {"total": "the reward", "with_kl": "less the KL penalty", "length_penalty": "length penalty"}
SHARES = {
    "by_safety": "judged by safety",
    "safety_probability": "probability of being safe",
    "constant": "batch of equal scores",
}
ELSEWHERE = {"whitened", "unfinished"}
"""Parts whose mean says nothing, or that stand in another figure."""


def page(metrics: Sequence[Row], points: Sequence[Row], samples: Sequence[Row], *, kept: int) -> str:
    """The whole page; ``kept`` is the step whose policy is the result."""
    rows = _by_step(metrics)
    figures = [(_ABOUT_FRONT, fronts.front(points, kept))]
    figures += [(about, figure) for about, draw in _FIGURES for figure in [draw(rows)] if figure is not None]
    last = points[-1]["step"]
    text = (
        f"{last:,} steps; the policy of step {kept:,} is kept. The front and the texts are of held-out prompts, "
        "everything else of the batches that were learned from."
    )
    document = plots.page(
        "What the policy learned, and what it cost", text, [Section(about, figure) for about, figure in figures]
    )
    # The texts are a table, not a figure: they stand behind the figures, before the document ends.
    before, end, after = document.rpartition("</body>")
    return f"{before}{said(points, samples, kept)}\n{end}{after}"


# ── figures ──────────────────────────────────────────────────────────────────────────────────────


def rewards(rows: Sequence[Row]) -> Figure | None:
    """Scores and their parts, what is optimised, how far scores spread, and who judged."""
    parts = [name.removeprefix("reward/") for name in _names(rows) if name.startswith("reward/")]
    scorers = [name for name in parts if name not in {*OPTIMISED, *SHARES, *ELSEWHERE}]
    score = _line(rows, "score/mean", "combined score")
    scores = [score, *(_line(rows, f"reward/{name}", name) for name in scorers)]
    if len(scorers) == 1:
        # One scorer is the score, unless it is weighted.
        scores = [score, *(one for one in scores[1:] if one and score and one.y != score.y)]
    optimised = [
        _line(rows, f"reward/{name}", told, if_any=name == "length_penalty") for name, told in OPTIMISED.items()
    ]
    shares = [_line(rows, f"reward/{name}", told, if_any=name == "constant") for name, told in SHARES.items()]
    return _drawn(
        f"Mean score of a batch: {_change(score)}",
        ("score", [*scores, _line(rows, "held_out/reward", "held-out prompts")]),
        ("what is maximised", optimised),
        ("spread of a batch's scores", [_line(rows, "score/spread", "standard deviation")]),
        ("shares", shares),
    )


def divergence(rows: Sequence[Row]) -> Figure | None:
    """KL to the anchor three ways, KL to the start, and the weight of the first."""
    k1, beta = _line(rows, "kl/anchor", "to the anchor: k1"), _line(rows, "kl/beta", "β")
    return _drawn(
        f"KL to the anchor: {_change(k1)} nats an answer; β: {_change(beta, 'g')}",
        (
            "KL, nats an answer",
            [
                k1,
                _line(rows, "kl/anchor_k3", "to the anchor: k3"),
                _line(rows, "kl/reverse", "to the anchor: reverse"),
                _line(rows, "held_out/kl", "to the start, held-out prompts"),
            ],
        ),
        ("β", [beta]),
    )


def answers(rows: Sequence[Row]) -> Figure | None:
    """Entropy, length, share that did not end."""
    entropy, length = _line(rows, "entropy", "entropy"), _line(rows, "length/mean", "length")
    return _drawn(
        f"Entropy: {_change(entropy)} nats a token; length: {_change(length, '.1f')} tokens",
        ("entropy, nats a token", [entropy]),
        ("length, tokens", [length]),
        ("share that did not end", [_line(rows, "length/unfinished", "unfinished")]),
    )


def update(rows: Sequence[Row]) -> Figure | None:
    """What an update does: clipping, drift, gradients, advantages, and that it begins at ratio 1."""
    clipped = _line(rows, "update/clipped", "policy", if_any=True)
    norms = [_line(rows, name, name.removeprefix("gradient/")) for name in _names(rows) if name.startswith("gradient/")]
    highest = max((one for line in norms if line for one in _known(line)), default=0.0)
    told = f"At most {max(_known(clipped)):.1%} of an update is clipped" if clipped else "Nothing is clipped"
    return _drawn(
        f"{told}; the largest gradient norm is {highest:.3g}",
        ("gradient norm before clipping", norms),
        ("mean size of the advantages", [_line(rows, "advantage/size", "size")]),
        ("share clipped", [clipped, _line(rows, "update/value_clipped", "critic")]),
        ("KL to the policy that drew", [_line(rows, "update/kl_old", "drift", if_any=True)]),
        ("share of answers that teach nothing", [_line(rows, "advantage/idle", "idle", if_any=True)]),
        ("largest |log ratio| before learning", [_line(rows, "update/first_ratio", "first ratio", if_any=True)]),
    )


def critic(rows: Sequence[Row]) -> Figure | None:
    """Explained variance and loss; None without a critic."""
    explained = _line(rows, "critic/explained", "explained variance")
    if explained is None:
        return None
    figure = _drawn(
        f"The critic explains {_known(explained)[-1]:.0%} of the variance of the returns",
        ("explained variance", [explained]),
        ("value loss", [_line(rows, "loss/critic", "value loss")]),
        (
            "value and reward",
            [
                _line(rows, "critic/value", "value, mean of tokens"),
                _line(rows, "reward/with_kl", "reward of an answer"),
            ],
        ),
    )
    return figure.add_hline(0, line={"color": plots.QUIET, "width": 1}, **panels.cell(0)) if figure else None


def time(rows: Sequence[Row]) -> Figure | None:
    """Seconds by phase on top of each other, and tokens a second."""
    phases = [name.removeprefix("seconds/") for name in _names(rows) if name.startswith("seconds/")]
    if not phases:
        return None
    timed = [row for row in rows if all(f"seconds/{name}" in row for name in phases)]
    halves = {name: median(row[f"seconds/{name}"] for row in timed) for name in phases}
    slowest = max(halves, key=lambda name: halves[name])
    whole = median(sum(row[f"seconds/{name}"] for name in phases) for row in timed)
    figure = _drawn(
        f"A step takes {whole:.2f} s (median), {slowest} the most of it: {halves[slowest]:.2f} s",
        ("seconds a step", [_line(timed, f"seconds/{name}", name) for name in phases]),
        ("answer tokens a second", [_line(timed, f"tokens_per_second/{name}", name) for name in phases]),
        ("answers a second", [_line(timed, "episodes_per_second", "answers a second")]),
    )
    return figure.update_traces(stackgroup="seconds", mode="lines", **panels.cell(0)) if figure else None


# ── texts ────────────────────────────────────────────────────────────────────────────────────────


def said(points: Sequence[Row], samples: Sequence[Row], kept: int) -> str:
    """A table in HTML: a prompt a row, a look a column; what is as it was at the look before is grey."""
    looks = fronts.some(points, LOOKS, also=kept)
    by_step = {point["step"]: [row for row in samples if row["step"] == point["step"]] for point in looks}
    count = min(map(len, by_step.values()))
    if not count:
        return ""
    head = "".join(_look(point, kept) for point in looks)
    prompts = [_answers([by_step[point["step"]][place] for point in looks]) for place in range(count)]
    table = "<div class='said'><table><thead><tr><th>prompt</th>{}</tr></thead><tbody>{}</tbody></table></div>"
    shown = table.format(head, "".join(prompts[:OPEN]))
    rest = table.format(head, "".join(prompts[OPEN:]))
    more = f"<details><summary>{count - OPEN} more prompts</summary>{rest}</details>" if count > OPEN else ""
    return f"{_STYLE}<section><h2>What it said</h2><p>{_ABOUT_TEXTS}</p>{shown}{more}</section>"


def _look(point: Row, kept: int) -> str:
    star = " ★ kept" if point["step"] == kept else ""
    return (
        f"<th>step {point['step']:,}{star}<small>mean reward {point['reward']:.2f}, KL {point['kl']:.2f}</small></th>"
    )


def _answers(looks: Sequence[Row]) -> str:
    """One row: what was said to one prompt."""
    cells, before = "", None
    for row in looks:
        scores = "\n".join(f"{name} {value:.2f}" for name, value in row.items() if name not in NO_SCORES)
        same = " class='same'" if row["answer"] == before else ""
        answer = _text(row["answer"]) or "<i>(nothing)</i>"
        cells += f"<td{same}>{answer}<small>{plain(scores)}</small></td>"
        before = row["answer"]
    return f"<tr><th>{_text(looks[0]['prompt'])}</th>{cells}</tr>"


def _text(text: str) -> str:
    """Escaped; the end of what is very long is left out."""
    return plain(text if len(text) <= LONGEST else text[:LONGEST] + " …")


_STYLE = """
<style>
.said { overflow-x: auto; }
.said table { border-collapse: collapse; font-size: 13px; }
.said th, .said td { border-bottom: 1px solid #ddd; padding: .5rem .6rem; text-align: left; vertical-align: top;
  min-width: 8.5rem; max-width: 22rem; font-weight: normal; white-space: pre-wrap; overflow-wrap: anywhere; }
.said thead th { font-weight: 600; }
.said tbody th, .said thead th:first-child { position: sticky; left: 0; background: #f6f6f6; }
.said small { display: block; margin-top: .3rem; color: #595959; font-weight: normal; }
.said .same { color: #767676; }
summary { cursor: pointer; margin: 1rem 0; }
</style>
"""

# ── rows and lines ───────────────────────────────────────────────────────────────────────────────


def _by_step(metrics: Sequence[Row]) -> list[Row]:
    """One row a step: what was measured on its batch, and on held-out prompts after it."""
    rows: dict[int, dict[str, Any]] = {}
    for row in metrics:
        rows.setdefault(row[STEP], {}).update(row)
    return [rows[step] for step in sorted(rows)]


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _line(rows: Sequence[Row], name: str, told: str, *, if_any: bool = False) -> Series | None:
    """One measure over the steps that have it; None where none has, or, with ``if_any``, where it is 0 all the way."""
    found = [(row[STEP], _rounded(row[name])) for row in rows if name in row]
    if not any(value is not None and (value or not if_any) for _, value in found):
        return None
    steps, values = zip(*found, strict=True)
    return Series(told, steps, values)


def _rounded(value: float | None) -> float | None:
    return 0.0 if value is not None and abs(value) < TINY else value


def _known(line: Series) -> list[float]:
    return [value for value in line.y if isinstance(value, float | int)]


def _change(line: Series | None, form: str = ".2f") -> str:
    """``0.09 → 0.30``: from the first step to the last; one number where nothing changes."""
    if line is None:
        return "not measured"
    first, last = (format(_known(line)[place], form) for place in (0, -1))
    return first if first == last else f"{first} → {last}"


def _drawn(title: str, *wanted: tuple[str, Sequence[Series | None]]) -> Figure | None:
    """The panels that have a line."""
    found: Iterator[Panel] = (Panel(name, [one for one in series if one is not None]) for name, series in wanted)
    there = [panel for panel in found if panel.series]
    return panels.beside(title, STEP, there) if there else None


_ABOUT_FRONT = (
    "Each point is a look at held-out prompts, with its step; the star is kept. KL is to the policy that training "
    "started from. “reward” is what is maximised, before penalties; nothing was learned from the others. Where they "
    "fall while it rises, it is over-optimised: raise β, take fewer steps, set watching.guard, train a better reward."
)
_ABOUT_REWARDS = (
    "The score is the mean over a batch as the reward's rule gives it, with each scorer by its name. What is maximised "
    "is the score after whitening, constant and length penalty: whitened over the batch, its mean says nothing."
)
_ABOUT_DIVERGENCE = (
    "k1 and k3 estimate KL(policy ‖ anchor) from the tokens that were drawn; k1 may be negative on a batch, which is "
    "no error. “reverse” estimates KL(anchor ‖ policy) from the same tokens, and scatters widely once the two are far "
    "apart. An anchor that moves stays near; the KL to the start tells how far both have gone."
)
_ABOUT_ANSWERS = (
    "Entropy that falls towards 0 means that all answers to a prompt become one. Answers that do not end within "
    "drawing.max_new_tokens get reward.unfinished, where that is set."
)
_ABOUT_UPDATE = (
    "Before the first step of an update the ratio to the policy that drew is 1 but for rounding, and a run stops where "
    "it is not. With one minibatch a batch nothing can be clipped, nor drift. Answers teach nothing where all to a "
    "prompt have the same reward. What is 0 all the way has no panel."
)
_ABOUT_CRITIC = (
    "Explained variance is 1 for a perfect critic, 0 for one no better than a constant, below 0 for a worse."
)
_ABOUT_TIME = (
    "draw: answers are drawn; judge: the reward; read: the anchor's log-probabilities and the critic's values; learn: "
    "forward, backward, optimiser. Looks at held-out prompts are not among them."
)
_ABOUT_TEXTS = (
    "The same prompts with the same random numbers at every look. Grey: as at the look before. samples.jsonl has all "
    "looks."
)
_FIGURES = (
    (_ABOUT_REWARDS, rewards),
    (_ABOUT_DIVERGENCE, divergence),
    (_ABOUT_ANSWERS, answers),
    (_ABOUT_UPDATE, update),
    (_ABOUT_CRITIC, critic),
    (_ABOUT_TIME, time),
)
