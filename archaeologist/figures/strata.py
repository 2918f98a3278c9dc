"""The section through the strata: steps from left to right, depth upwards from the embedding to the head."""

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from archaeologist.figures.grid import METRICS, MOST_COLUMNS, ROUNDING, Column, Floats, Grid, Metric, Submodules, grid
from archaeologist.figures.labels import plain, short
from archaeologist.figures.themes import DARK, NEUTRAL
from contracts.artifacts import DriftTimeline, HealthAlert, HealthTimeline

ROW_PIXELS: Final = 18
LEAST_PIXELS: Final = 220
MOST_PIXELS: Final = 900
GAPS_UP_TO: Final = 60
"""Columns between which a gap shows; more of them run together."""
HATCHED_UP_TO: Final = 2000
"""Cells below the resolution that are hatched one by one; more of them are only greyed."""
DETAILED_UP_TO: Final = 20_000
"""Cells whose hover has a text of its own; beyond, it has the value."""
DIGITS: Final = 4
"""Of a number in the hover."""
COLORS: Final = 512
"""At least so many over the values of a large figure."""
MOST_DECADES: Final = 6
ALERT_MARKS: Final = {"warning": "triangle-up", "critical": "x"}
ALERT_COLORS: Final = {"warning": "#b97a12", "critical": "#d2543c"}


def strata(
    metric: str,
    timeline: DriftTimeline,
    health: HealthTimeline,
    *,
    submodules: Submodules | None = None,
    most_columns: int = MOST_COLUMNS,
) -> go.Figure:
    """The heatmap of a metric, the row of the predictions' KL above it, alerts as marks on the time axis.

    ``layout.meta`` has what a page needs to know which cell was clicked: ``metric``, ``rows``, their ``blocks``, and
    ``steps``.

    Args:
        metric: One of ``METRICS``.
        timeline: Of the campaign.
        health: Of the same campaign.
        submodules: Of the same campaign, for a row each; None: a row a block.
        most_columns: Where there are more checkpoints, several share a column, and the title says so.
    """
    which = METRICS[metric]
    found = grid(metric, timeline, health, submodules=submodules, most_columns=most_columns)
    names = list(short([name.removesuffix(".weight") for name in found.rows]).values())
    if len(names) < len(found.rows):
        names = list(short(found.rows).values())
    figure = go.Figure()
    figure.add_trace(_heat(found, which, names))
    for trace in _resolution(found, names):
        figure.add_trace(trace)
    has_kl = metric != "kl" and any(value is not None for value in timeline.kl)
    if has_kl:
        figure.add_trace(_predictions(grid("kl", timeline, health, most_columns=most_columns)))
    for trace in _alerts(health.alerts, found.columns):
        figure.add_trace(trace)
    _lay_out(figure, found, which, names, has_kl=has_kl)
    steps = [[column.first, column.last] for column in found.columns]
    figure.update_layout(
        meta={"metric": metric, "rows": list(found.rows), "blocks": list(found.blocks), "steps": steps}
    )
    return figure


def _heat(found: Grid, metric: Metric, names: list[str]) -> go.Heatmap:
    is_small = len(found.columns) <= GAPS_UP_TO
    is_detailed = found.values.size <= DETAILED_UP_TO
    colored = _colored(found.values, metric)
    return go.Heatmap(
        x=[column.label for column in found.columns],
        y=names,
        z=_single(colored if is_detailed else _stepped(colored)),
        customdata=found.values if is_detailed else _single(_rounded(found.values)),
        text=_details(found) if is_detailed else None,
        hovertemplate="<b>%{y}</b><br>step %{x}<br>"
        f"{plain(metric.title)} %{{customdata:.4g}}" + ("%{text}<extra></extra>" if is_detailed else "<extra></extra>"),
        hoverongaps=False,
        xgap=1 if is_small else 0,
        ygap=1 if is_small else 0,
        coloraxis="coloraxis",
    )


def _colored(values: Floats, metric: Metric) -> Floats:
    """What is coloured: the logarithm, zeros and negatives at the lower end of the scale."""
    if not metric.is_log:
        return values
    low, _ = _limits(values, metric)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log10(values)
    return np.where(np.isnan(values), np.nan, np.where(values > 0, logs, low))


def _limits(values: Floats, metric: Metric) -> tuple[float, float]:
    """Ends of the colour scale, of the logarithm where it is one."""
    known = values[np.isfinite(values)]
    if not metric.is_log:
        return (min(0.0, float(known.min(initial=0.0))), 1.0)
    positive = known[known > 0]
    if not positive.size:
        return (-1.0, 0.0)
    low, high = math.log10(positive.min()), math.log10(positive.max())
    low = max(low, high - MOST_DECADES)
    return (low, high) if high - low > 1e-9 else (low - 0.5, high + 0.5)  # noqa: PLR2004 -- one value only


def _stepped(values: Floats) -> Floats:
    """What is coloured in steps that no screen shows apart: of a power of two, so that the rest of each float is 0."""
    known = values[np.isfinite(values)]
    span = float(np.ptp(known)) if known.size else 0.0
    step = 2.0 ** math.floor(math.log2(span / COLORS)) if span > 0 else 0.0
    return np.round(values / step) * step if step > 0 else values


def _rounded(values: Floats) -> Floats:
    """To the digits that the hover shows."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        unit = 10.0 ** (np.floor(np.log10(np.abs(values))) - (DIGITS - 1))
        found = np.round(values / unit) * unit
    return np.where(np.isfinite(found), found, values)


def _single(values: Floats) -> npt.NDArray[np.float32]:
    """In float32: enough for a colour and four digits, and half the size of a large figure."""
    with np.errstate(over="ignore", under="ignore"):
        return values.astype(np.float32)


def _details(found: Grid) -> list[list[str]]:
    """What the hover says beside the value: the reference, and whether it is rounding."""
    against = [
        "" if reference is None else f"<br>against step {reference}"
        for reference in found.references or (None,) * len(found.columns)
    ]
    return [
        [said + (f"<br>{ROUNDING}" if is_below else "") for said, is_below in zip(against, row, strict=True)]
        for row in found.below
    ]


def _resolution(found: Grid, names: list[str]) -> list[Any]:
    """The cells below the resolution: greyed, and hatched where they are few enough."""
    if not found.below.any():
        return []
    labels = [column.label for column in found.columns]
    grey = go.Heatmap(
        x=labels,
        y=names,
        z=found.below.astype(np.uint8),
        zmin=0,
        zmax=1,
        colorscale=[[0, "rgba(0,0,0,0)"], [1, NEUTRAL]],
        opacity=0.55,
        showscale=False,
        hoverinfo="skip",
        xgap=1 if len(labels) <= GAPS_UP_TO else 0,
        ygap=1 if len(labels) <= GAPS_UP_TO else 0,
    )
    rows, columns = np.nonzero(found.below)
    if len(rows) > HATCHED_UP_TO:
        return [grey]
    hatch = go.Scatter(
        x=[labels[column] for column in columns],
        y=[names[row] for row in rows],
        mode="markers",
        marker={"symbol": "line-ne", "size": 9, "line": {"width": 1.5, "color": DARK.text}},
        hoverinfo="skip",
        showlegend=False,
    )
    return [grey, hatch]


def _predictions(found: Grid) -> go.Heatmap:
    low, high = _limits(found.values, METRICS["kl"])
    return go.Heatmap(
        x=[column.label for column in found.columns],
        y=["KL"],
        z=_colored(found.values, METRICS["kl"]),
        zmin=low,
        zmax=high,
        customdata=found.values,
        hovertemplate="predictions<br>step %{x}<br>KL %{customdata:.4g} nats<extra></extra>",
        hoverongaps=False,
        colorscale="Viridis",
        showscale=False,
        xgap=1 if len(found.columns) <= GAPS_UP_TO else 0,
        yaxis="y2",
    )


def _alerts(alerts: Sequence[HealthAlert], columns: Sequence[Column]) -> list[go.Scatter]:
    """One mark a column and severity, told apart by its shape."""
    marks = []
    for severity, symbol in ALERT_MARKS.items():
        told: dict[str, list[str]] = {}
        for alert in alerts:
            label = _column(alert.checkpoint_step, columns)
            if alert.severity == severity and label is not None:
                where = f" of {alert.block}" if alert.block else ""
                told.setdefault(label, []).append(f"{alert.metric}{where} at step {alert.checkpoint_step}")
        if told:
            marks.append(
                go.Scatter(
                    x=list(told),
                    y=["alerts"] * len(told),
                    yaxis="y3",
                    mode="markers",
                    marker={"symbol": symbol, "size": 10, "color": ALERT_COLORS[severity]},
                    text=[f"{severity}<br>{'<br>'.join(map(plain, said))}" for said in told.values()],
                    hovertemplate="%{text}<extra></extra>",
                    name=severity,
                    showlegend=False,
                )
            )
    return marks


def _column(step: int, columns: Sequence[Column]) -> str | None:
    return next((column.label for column in columns if column.first <= step <= column.last), None)


def _lay_out(figure: go.Figure, found: Grid, metric: Metric, names: list[str], *, has_kl: bool) -> None:
    height = min(MOST_PIXELS, max(LEAST_PIXELS, ROW_PIXELS * len(names)))
    extra = 26
    total = height + extra * (1 + has_kl)
    axis: dict[str, Any] = {"type": "category", "showgrid": False, "zeroline": False, "fixedrange": True}
    top = 1.0 - extra / total
    figure.update_layout(
        height=total + 130,
        margin={"l": 8, "r": 8, "t": 44, "b": 56},
        dragmode="pan",
        title={"text": _title(found, metric), "x": 0, "xanchor": "left", "yanchor": "top", "y": 0.99},
        xaxis={
            "type": "category",
            "categoryorder": "array",
            "categoryarray": [column.label for column in found.columns],
            # Set, because marks would widen it.
            "range": [-0.5, len(found.columns) - 0.5],
            "title": {"text": "checkpoint (step)"},
            "showgrid": False,
            "anchor": "y",
        },
        yaxis={
            **axis,
            "categoryorder": "array",
            "categoryarray": names,
            "range": [-0.5, len(names) - 0.5],
            "domain": [0, height / total],
        },
        yaxis2={**axis, "domain": [height / total + 4 / total, top], "visible": has_kl, "anchor": "x"},
        yaxis3={**axis, "domain": [top + 4 / total, 1.0], "showticklabels": False, "showline": False, "anchor": "x"},
        coloraxis=_color_axis(found.values, metric),
    )


def _color_axis(values: Floats, metric: Metric) -> dict[str, Any]:
    low, high = _limits(values, metric)
    bar: dict[str, Any] = {"thickness": 10, "len": 0.9, "xpad": 4, "tickformat": ".3g"}
    if metric.is_log:
        ticks = _ticks(low, high)
        bar |= {
            "tickmode": "array",
            "tickvals": [math.log10(tick) for tick in ticks],
            "ticktext": [f"{t:.3g}" for t in ticks],
        }
    return {
        "colorscale": "Cividis",
        "reversescale": metric.field == "cka",
        "cmin": low,
        "cmax": high,
        "colorbar": bar,
    }


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between two logarithms: decades, and 2 and 5 where there are few; at worst the ends."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    found = [10.0**decade for decade in decades if low <= decade <= high]
    if len(found) <= 2:  # noqa: PLR2004 -- one or two say too little
        found = [
            part * 10.0**decade for decade in decades for part in (1, 2, 5) if low <= math.log10(part) + decade <= high
        ]
    return found if len(found) > 1 else [10.0**low, 10.0**high]


def _title(found: Grid, metric: Metric) -> str:
    scale = ", log scale" if metric.is_log else ""
    each = []
    if found.columns_each > 1:
        each.append(f"{found.columns_each} checkpoints a column")
    if found.rows_each > 1:
        each.append(f"{found.rows_each} {'blocks' if found.rows == found.blocks else 'submodules'} a row")
    cut = f"; {' and '.join(each)}, the {metric.keeps} value shown" if each else ""
    return f"{metric.title}{scale}{cut}"
