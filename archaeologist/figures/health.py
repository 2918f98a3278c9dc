"""The model's health over time: loss, entropy, RankMe, weight norm; alerts as marks told apart by shape."""

from collections.abc import Sequence
from statistics import median
from typing import Final

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from archaeologist.figures.labels import plain
from archaeologist.figures.strata import ALERT_COLORS, ALERT_MARKS
from contracts.artifacts import HealthAlert, HealthTimeline

PANEL_PIXELS: Final = 150

PANELS: Final = {
    "loss": "loss (nats)",
    "entropy": "entropy (nats)",
    "rankme": "RankMe (median)",
    "weight_l2": "weight norm",
}
"""RankMe is the median over the transformer blocks, as the rule for alerts takes it."""


def series(health: HealthTimeline) -> dict[str, tuple[float | None, ...]]:
    """What the panels show, by metric; those without a number are left out."""
    found = {
        "loss": health.loss,
        "entropy": health.entropy,
        "rankme": _rankme(health),
        "weight_l2": health.weight_l2,
    }
    return {name: values for name, values in found.items() if any(value is not None for value in values)}


def _rankme(health: HealthTimeline) -> tuple[float | None, ...]:
    blocks = [layer.rankme for layer in health.layers.values() if layer.layer_type == "transformer_block"]
    columns = ([block[place] for block in blocks if place < len(block)] for place in range(len(health.checkpoints)))
    present = ([value for value in column if value is not None] for column in columns)
    return tuple(median(values) if values else None for values in present)


def timelines(health: HealthTimeline) -> go.Figure:
    """One panel a metric over all analysed checkpoints; in the lowest, the alerts."""
    panels = series(health)
    rows = max(1, len(panels)) + bool(health.alerts)
    heights = [1.0] * max(1, len(panels)) + [0.45] * bool(health.alerts)
    figure: go.Figure = make_subplots(rows=rows, cols=1, shared_xaxes=True, vertical_spacing=0.04, row_heights=heights)
    for row, (name, values) in enumerate(panels.items(), start=1):
        line = go.Scatter(
            x=list(health.checkpoints),
            y=list(values),
            name=PANELS[name],
            mode="lines+markers",
            marker={"size": 5},
            hovertemplate="step %{x}<br>%{y:.4g}<extra>%{fullData.name}</extra>",
        )
        figure.add_trace(line, row=row, col=1)
        figure.update_yaxes(title_text=PANELS[name], nticks=5, row=row, col=1)
    if health.alerts:
        for mark in _alerts(health):
            figure.add_trace(mark, row=rows, col=1)
        # Both severities have their place, and marks at the edge are not cut.
        order = {"categoryorder": "array", "categoryarray": list(ALERT_MARKS), "range": [-0.6, len(ALERT_MARKS) - 0.4]}
        figure.update_yaxes(type="category", title_text="alerts", fixedrange=True, row=rows, col=1, **order)
    figure.update_xaxes(title_text="checkpoint (step)", row=rows, col=1)
    figure.update_layout(
        height=PANEL_PIXELS * len(panels) + 80 * bool(health.alerts) + 130,
        margin={"l": 8, "r": 8, "t": 44, "b": 48},
        title={"text": f"{len(health.checkpoints)} checkpoints", "x": 0},
        showlegend=False,
        hovermode="closest",
    )
    return figure


def _alerts(health: HealthTimeline) -> Sequence[go.Scatter]:
    marks = []
    for severity, symbol in ALERT_MARKS.items():
        told = [alert for alert in health.alerts if alert.severity == severity]
        if told:
            marks.append(
                go.Scatter(
                    x=[alert.checkpoint_step for alert in told],
                    y=[severity] * len(told),
                    mode="markers",
                    marker={"symbol": symbol, "size": 11, "color": ALERT_COLORS[severity]},
                    text=[_said(alert) for alert in told],
                    hovertemplate="step %{x}<br>%{text}<extra>%{y}</extra>",
                    name=severity,
                )
            )
    return marks


def _said(alert: HealthAlert) -> str:
    where = f" of {alert.block}" if alert.block else ""
    return plain(f"{alert.metric}{where}, {alert.confidence} confidence")
