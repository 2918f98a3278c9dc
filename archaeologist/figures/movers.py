"""Which blocks moved most and least over the whole campaign, as bars."""

from collections.abc import Sequence
from typing import Final

import plotly.graph_objects as go

from archaeologist.figures.labels import short
from archaeologist.figures.themes import NEUTRAL
from contracts.artifacts import LayerTotal, StabilityReport

MOST: Final = 10
BAR_PIXELS: Final = 22


def ranking(report: StabilityReport) -> list[tuple[LayerTotal, float]]:
    """The blocks by the sum of their relative L2, the farthest first; without one a block has no place."""
    known = [(total, total.total_relative) for total in report.top_movers if total.total_relative is not None]
    return sorted(((total, relative) for total, relative in known), key=lambda pair: (-pair[1], pair[0].layer))


def movers(report: StabilityReport, *, most: int = MOST) -> go.Figure:
    """The blocks that moved farthest and least, by the sum of their relative L2 over all comparisons.

    Args:
        report: Of the campaign.
        most: How many of each.
    """
    ranked = ranking(report)
    first, rest = ranked[:most], ranked[most:]
    shown = [*first, *rest[-most:]]
    names = short([total.layer for total, _ in shown])
    figure = go.Figure()
    for label, part, color in (("moved most", first, None), ("moved least", rest[-most:], NEUTRAL)):
        if part:
            figure.add_trace(_bars(label, part, names, color))
    between = len(ranked) - len(shown)
    figure.update_layout(
        height=max(160, BAR_PIXELS * len(shown) + 110),
        margin={"l": 8, "r": 8, "t": 74 if rest else 44, "b": 48},
        title={"text": _title(between), "x": 0, "y": 0.99, "yanchor": "top"},
        xaxis={"title": {"text": "sum of relative L2"}, "rangemode": "tozero", "fixedrange": True},
        yaxis={
            "type": "category",
            "categoryorder": "array",
            "categoryarray": [names[total.layer] for total, _ in reversed(shown)],
            "fixedrange": True,
            "showgrid": False,
        },
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0, "xanchor": "left"},
        showlegend=bool(rest),
        bargap=0.35,
        meta={"blocks": [total.layer for total, _ in shown]},
    )
    return figure


def _title(between: int) -> str:
    return f"Sum of relative L2{f'; {between} blocks between not shown' if between else ''}"


def _bars(label: str, part: Sequence[tuple[LayerTotal, float]], names: dict[str, str], color: str | None) -> go.Bar:
    return go.Bar(
        orientation="h",
        name=label,
        x=[relative for _, relative in part],
        y=[names[total.layer] for total, _ in part],
        customdata=[total.total_drift for total, _ in part],
        hovertemplate="<b>%{y}</b><br>sum of relative L2 %{x:.4g}<br>sum of L2 %{customdata:.4g}<extra></extra>",
        marker={"color": color} if color else {},
    )
