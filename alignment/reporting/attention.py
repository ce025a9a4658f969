"""How much the answers of one dialogue attend to the instruction at its beginning, as figures (Llama 2, figure 10)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignment.reporting import plots
from alignment.reporting.plots import Section, Series

WIDEST = 40
"""Characters of an answer that are shown when one points."""


def page(found: Mapping[str, Any]) -> str:
    """One HTML document, from what ``evals.suites.attending`` found."""
    text = f"The instruction, given in the first turn alone: “{found['instruction']}”"
    sections = [
        Section(
            "Of every token of an answer the largest share of its attention that any head of any layer spends on the "
            "instruction: the mean over the answer's tokens, and the largest of them.",
            by_turn(found),
        ),
        Section(
            "The largest weight that a token of the answer gives to each token of the instruction, in any head of any "
            "layer.",
            by_piece(found),
        ),
    ]
    return plots.page("Attention to the instruction", text, sections)


def by_turn(found: Mapping[str, Any]) -> plots.Figure:
    """The share of attention over the turns."""
    turns = list(range(1, len(found["share"]) + 1))
    told = [answer if len(answer) <= WIDEST else f"{answer[:WIDEST]}…" for answer in found["answers"]]
    means = [sum(shares) / len(shares) for shares in found["share"]]
    lines = [
        Series("mean over the answer", turns, means, told),
        Series("largest", turns, [max(shares) for shares in found["share"]], told),
    ]
    title = f"Attention to the instruction goes from {means[0]:.2f} in turn 1 to {means[-1]:.2f} in turn {turns[-1]}"
    return plots.curves(title, "turn", "share of a head's attention", lines).update_yaxes(range=[0, 1.02])


def by_piece(found: Mapping[str, Any]) -> plots.Figure:
    """Turns by tokens of the instruction."""
    import plotly.graph_objects as go

    turns = len(found["pieces_by_turn"])
    cells = go.Heatmap(
        z=found["pieces_by_turn"],
        x=list(range(len(found["pieces"]))),
        y=list(range(1, turns + 1)),
        zmin=0,
        zmax=1,
        colorscale=[[0.0, "#FFFFFF"], [1.0, plots.COLOURS[0]]],
        hovertemplate="turn %{y}: %{z:.3f}<extra></extra>",
    )
    figure = go.Figure(cells)
    figure.update_xaxes(
        title="token of the instruction",
        tickvals=list(range(len(found["pieces"]))),
        ticktext=[plots.plain(piece) for piece in found["pieces"]],
    )
    figure.update_yaxes(title="turn", autorange="reversed", dtick=1)
    return figure.update_layout(
        template="plotly_white", height=180 + 22 * turns, margin={"t": 30, "l": 70, "r": 20, "b": 60}
    )
