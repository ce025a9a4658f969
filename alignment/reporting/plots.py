"""Figures that people look at, and one page that holds them: plain values in, plotly figures out, no network needed.

Each function draws one kind of figure and knows nothing of where its values come from. What has an interval is a
mapping of ``estimate``, ``low``, ``high`` (``evals.intervals.Interval`` as JSON holds it), or null, which leaves a gap.
Colours are those of Okabe and Ito, which the colour-blind can tell apart; series differ in symbol as well.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star")
DASHES = ("solid", "dash", "dot")
QUIET = "#767676"
DIVERGING = ((0.0, "#E6A27C"), (0.5, "#F7F7F7"), (1.0, "#7DB4DC"))
"""Orange, white, blue: light enough for black numbers."""
HEIGHT, PANEL_HEIGHT = 440, 300
PANELS_A_ROW = 3
TITLE_WIDTH = 100

Estimate = Mapping[str, Any]


class Series(NamedTuple):
    """A line or a row of dots: ``y`` at every ``x``, null where there is nothing; ``told`` is added when one points."""

    name: str
    x: Sequence[Any]
    y: Sequence[Estimate | float | None]
    told: Sequence[str] = ()


class Histogram(NamedTuple):
    """Counts between ``edges``, by what is counted."""

    name: str
    edges: Sequence[float]
    counts: Mapping[str, Sequence[int]]


class Section(NamedTuple):
    """A figure on a page, with what to know when looking at it."""

    text: str
    figure: Figure


# ── figures ──────────────────────────────────────────────────────────────────────────────────────


def dots(title: str, x: str, y: str, series: Sequence[Series], *, baseline: float | None = None) -> Figure:
    """Estimates with their intervals over categories, the series beside each other, and a line to compare with."""
    import plotly.graph_objects as go

    figure = go.Figure([_trace(one, place, mode="markers") for place, one in enumerate(series)])
    # Grouped markers of one category stand beside each other instead of on top.
    figure.update_layout(scattermode="group", scattergap=0.4)
    if baseline is not None:
        figure.add_hline(baseline, line={"color": QUIET, "width": 1, "dash": "dash"})
    return _laid_out(figure, title, x, y)


def curves(
    title: str, x: str, y: str, series: Sequence[Series], *, diagonal: bool = False, marks: Sequence[float] = ()
) -> Figure:
    """Lines over numbers, with the diagonal from 0 to 1 and vertical marks where asked for."""
    import plotly.graph_objects as go

    figure = go.Figure([_trace(one, place, mode="lines+markers") for place, one in enumerate(series)])
    if diagonal:
        figure.add_shape(type="line", x0=0, y0=0, x1=1, y1=1, line={"color": QUIET, "width": 1, "dash": "dash"})
    _mark(figure, marks)
    return _laid_out(figure, title, x, y)


def families(
    title: str, x: str, y: str, series: Mapping[str, Sequence[Series]], *, marks: Sequence[float] = ()
) -> Figure:
    """Several lines of each name in one colour, solid, dashed and dotted."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for place, (name, lines) in enumerate(series.items()):
        for dash, line in zip(DASHES, lines, strict=False):
            trace = _trace(line._replace(name=f"{name}: {line.name}"), place, mode="lines")
            figure.add_trace(trace.update(line_dash=dash, legendgroup=name))
    _mark(figure, marks)
    return _laid_out(figure, title, x, y)


def heat_map(
    title: str,
    x: str,
    y: str,
    *,
    columns: Sequence[str],
    rows: Sequence[str],
    values: Sequence[Sequence[Estimate | None]],
    middle: float,
) -> Figure:
    """A table in colour: blue above ``middle``, orange below, the number and half of its interval in every cell."""
    import plotly.graph_objects as go

    estimates = [[None if one is None else one["estimate"] for one in row] for row in values]
    reach = max((abs(one - middle) for row in estimates for one in row if one is not None), default=0) or 1
    cells = go.Heatmap(
        z=estimates,
        x=[plain(name) for name in columns],
        y=[plain(name) for name in rows],
        text=[["" if one is None else with_half(one) for one in row] for row in values],
        texttemplate="%{text}",
        hovertemplate="%{y}<br>%{x}<br>%{text}<extra></extra>",
        textfont={"color": "black"},
        colorscale=DIVERGING,
        zmin=middle - reach,
        zmax=middle + reach,
        xgap=2,
        ygap=2,
    )
    figure = _laid_out(go.Figure(cells), title, x, y)
    return figure.update_yaxes(autorange="reversed").update_layout(height=180 + 44 * len(rows))


def histograms(title: str, x: str, y: str, panels: Sequence[Histogram]) -> Figure:
    """Overlaid counts, a panel each."""
    import plotly.graph_objects as go

    figure = _panels(title, [panel.name for panel in panels], x, y)
    for number, panel in enumerate(panels):
        centres = [(low + high) / 2 for low, high in zip(panel.edges, panel.edges[1:], strict=False)]
        for place, (name, counts) in enumerate(panel.counts.items()):
            bars = go.Bar(
                x=centres,
                y=list(counts),
                width=panel.edges[1] - panel.edges[0],
                name=plain(name),
                legendgroup=name,
                showlegend=number == 0,
                opacity=0.6,
                marker={"color": COLOURS[place]},
                hovertemplate="%{x:.2f}: %{y:,}<extra>" + plain(name) + "</extra>",
            )
            figure.add_trace(bars, **_cell(number))
    return figure.update_layout(barmode="overlay")


def clouds(title: str, x: str, y: str, panels: Sequence[Series]) -> Figure:
    """Points, a panel each, with the lines on which either side is 0."""
    import plotly.graph_objects as go

    figure = _panels(title, [panel.name for panel in panels], x, y)
    for number, panel in enumerate(panels):
        points = go.Scatter(
            x=list(panel.x),
            y=list(panel.y),
            mode="markers",
            text=[plain(word) for word in panel.told],
            marker={"color": COLOURS[0], "size": 5, "opacity": 0.35},
            showlegend=False,
            hovertemplate="%{text}<br>%{x:,}, %{y:.2f}<extra></extra>",
        )
        figure.add_trace(points, **_cell(number))
    figure.add_hline(0, line={"color": QUIET, "width": 1})
    return figure.add_vline(0, line={"color": QUIET, "width": 1})


# ── the page ─────────────────────────────────────────────────────────────────────────────────────

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 1200px; margin: 2rem auto; padding: 0 1rem; }}
section {{ margin: 2.5rem 0; }}
p {{ max-width: 75ch; }}
</style>
<script>{library}</script>
</head>
<body>
<h1>{title}</h1>
<p>{text}</p>
{sections}
</body>
</html>
"""


_CONFIG = {"displaylogo": False, "responsive": True, "showSendToCloud": False, "plotlyServerURL": ""}
"""Without plotly's own button, which would send what is drawn to its maker's servers."""


def page(title: str, text: str, sections: Sequence[Section]) -> str:
    """One HTML document with everything inside; the browser is told to fetch nothing. Equal for equal figures."""
    from plotly.offline import get_plotlyjs

    drawn = "\n".join(_section(number, section) for number, section in enumerate(sections))
    return _PAGE.format(title=plain(title), text=plain(text), library=get_plotlyjs(), sections=drawn)


def _section(number: int, section: Section) -> str:
    figure = section.figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=f"figure-{number}",
        config=_CONFIG,
    )
    return f"<section>\n{figure}\n<p>{plain(section.text)}</p>\n</section>"


# ── parts of figures ─────────────────────────────────────────────────────────────────────────────


def plain(text: str) -> str:
    """Text in which nothing is markup, for the page and for what plotly draws."""
    return html.escape(text, quote=False)


def with_half(one: Estimate) -> str:
    """``0.712 ±0.020``: an estimate and half of its interval."""
    return f"{one['estimate']:.3f} ±{(one['high'] - one['low']) / 2:.3f}"


def _trace(series: Series, place: int, *, mode: str) -> Any:
    """A scatter trace, with error bars where the values have intervals."""
    import plotly.graph_objects as go

    estimates = [one["estimate"] if isinstance(one, Mapping) else one for one in series.y]
    bars = None
    if any(isinstance(one, Mapping) for one in series.y):
        known = [one if isinstance(one, Mapping) else None for one in series.y]
        bars = {
            "type": "data",
            "symmetric": False,
            "array": [None if one is None else one["high"] - one["estimate"] for one in known],
            "arrayminus": [None if one is None else one["estimate"] - one["low"] for one in known],
            "thickness": 1.2,
            "width": 3,
        }
    colour = COLOURS[place % len(COLOURS)]
    return go.Scatter(
        x=list(series.x),
        y=estimates,
        name=plain(series.name),
        mode=mode,
        error_y=bars,
        text=[plain(word) for word in series.told],
        line={"color": colour},
        marker={"color": colour, "symbol": SYMBOLS[place % len(SYMBOLS)], "size": 9},
        hovertemplate="%{x}: %{y:.3f}" + ("<br>%{text}" if series.told else ""),
    )


def _mark(figure: Figure, marks: Sequence[float]) -> None:
    for mark in marks:
        figure.add_vline(mark, line={"color": QUIET, "width": 1, "dash": "dot"}, annotation_text=f"{mark:g}")


def _laid_out(figure: Figure, title: str, x: str, y: str) -> Figure:
    figure.update_xaxes(title=x)
    figure.update_yaxes(title=y)
    return _styled(figure, title, HEIGHT)


def _panels(title: str, names: Sequence[str], x: str, y: str) -> Figure:
    """A grid of empty panels; the axes are named at the margins only."""
    from plotly.subplots import make_subplots

    columns = min(PANELS_A_ROW, len(names))
    rows = -(-len(names) // columns)
    figure = make_subplots(
        rows,
        columns,
        subplot_titles=[plain(name) for name in names],
        horizontal_spacing=0.06,
        vertical_spacing=min(0.25, 90 / (PANEL_HEIGHT * rows)),
    )
    for column in range(1, columns + 1):
        below = max(row for row in range(1, rows + 1) if (row - 1) * columns + column <= len(names))
        figure.update_xaxes(title=x, row=below, col=column)
    figure.update_yaxes(title=y, col=1)
    return _styled(figure, title, 140 + PANEL_HEIGHT * rows)


def _cell(number: int) -> dict[str, int]:
    """Where the panel of this number is in a grid (a grid of fewer than a row's panels has one row)."""
    return {"row": number // PANELS_A_ROW + 1, "col": number % PANELS_A_ROW + 1}


def _styled(figure: Figure, title: str, height: int) -> Figure:
    lines = textwrap.wrap(title, TITLE_WIDTH)
    return figure.update_layout(
        template="plotly_white",
        title={"text": "<br>".join(plain(line) for line in lines), "x": 0, "xref": "paper", "font": {"size": 18}},
        font={"size": 13},
        height=height,
        margin={"t": 60 + 26 * len(lines), "l": 70, "r": 20, "b": 60},
    )
