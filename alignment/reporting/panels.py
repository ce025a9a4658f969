"""Several small figures in one: lines over the same x, in panels that have an axis of their own each.

A name has one colour and one entry in the legend, in however many panels it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from alignment.reporting import plots
from alignment.reporting.plots import Series

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

HEIGHT, MARGINS = 260, 190
MARKER = 5


class Panel(NamedTuple):
    """What stands above it, and its lines; one line alone needs no entry in the legend."""

    name: str
    series: Sequence[Series]


def beside(title: str, x: str, panels: Sequence[Panel]) -> Figure:
    """The panels, ``plots.PANELS_A_ROW`` in a row."""
    figure = empty(title, x, [panel.name for panel in panels])
    shared = [panel.series for panel in panels if len(panel.series) > 1]
    names = list(dict.fromkeys(one.name for series in shared for one in series))
    told: set[str] = set()
    for number, panel in enumerate(panels):
        for one, trace in zip(panel.series, plots.curves("", x, "", panel.series).data, strict=True):
            place = names.index(one.name) if one.name in names else 0
            listed = one.name in names and one.name not in told
            told.add(one.name)
            figure.add_trace(trace.update(**_look(place), legendgroup=trace.name, showlegend=listed), **cell(number))
        values = {value for one in panel.series for value in one.y if isinstance(value, float | int)}
        if len(values) == 1 and (only := values.pop()) >= 0:
            # Left to itself, plotly shows what does not change between −1 and 1.
            figure.update_yaxes(range=[0, 2 * only or 1], **cell(number))
    return figure


def empty(title: str, x: str, names: Sequence[str]) -> Figure:
    """A grid without lines; the lowest panel of each column names the axis."""
    columns = min(plots.PANELS_A_ROW, len(names))
    rows = -(-len(names) // columns)
    figure = plots.curves(title, "", "", [])
    figure.set_subplots(
        rows,
        columns,
        subplot_titles=[plots.plain(name) for name in names],
        horizontal_spacing=0.07,
        vertical_spacing=min(0.3, 75 / (HEIGHT * rows)),
    )
    for column in range(1, columns + 1):
        below = max(row for row in range(1, rows + 1) if (row - 1) * columns + column <= len(names))
        figure.update_xaxes(title=x, row=below, col=column)
    figure.update_annotations(font_size=14)
    figure.update_yaxes(exponentformat="power")
    legend = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0}
    figure.update_layout(height=MARGINS + HEIGHT * rows, legend=legend)
    return figure.update_layout(margin_b=90)


def cell(number: int) -> dict[str, int]:
    """Where the panel of this number is."""
    return {"row": number // plots.PANELS_A_ROW + 1, "col": number % plots.PANELS_A_ROW + 1}


def colour(place: int) -> str:
    """Of the line of this number."""
    return plots.COLOURS[place % len(plots.COLOURS)]


def _look(place: int) -> dict[str, Any]:
    symbol = plots.SYMBOLS[place % len(plots.SYMBOLS)]
    return {
        "line": {"color": colour(place), "width": 1.8},
        "marker": {"color": colour(place), "symbol": symbol, "size": MARKER},
    }
