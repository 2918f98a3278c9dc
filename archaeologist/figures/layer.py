"""One block over time: the drift of its parts, the norm of its weights, the spread of its activations."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go
from msgspec import Struct
from plotly.subplots import make_subplots

from archaeologist.figures.grid import METRICS, ROUNDING, Floats, Submodules, below
from archaeologist.figures.labels import plain
from archaeologist.figures.themes import NEUTRAL
from contracts.artifacts import DriftTimeline, HealthTimeline, LayerHealthTimeline, LayerTimeline

DASHES: Final = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
PANEL_PIXELS: Final = 190
DRIFT_SHARE: Final = 1.7
"""Height of the panel of the drift, whose lines are many, to the others'."""
FEW_DECADES: Final = 2
"""Powers of ten below which an axis needs ticks between them."""
MARKED_UP_TO: Final = 200
"""Checkpoints of which each has a mark on the line."""
MOST_PARTS: Final = 8
"""Lines that can still be told apart; those that moved farthest."""
HOLLOW: Final = "circle-open"


class Parts(Struct, frozen=True, kw_only=True):
    """The drift of each tensor of a block over time."""

    metric: str = "relative_l2"
    """One of ``METRICS`` that has submodules."""
    steps: tuple[int, ...] = ()
    values: Mapping[str, tuple[float | None, ...]] = {}
    """By the tensor's name within the block; aligned with ``steps``."""
    below: Mapping[str, tuple[bool, ...]] = {}
    """Likewise whether each is below the resolution of the stored dtype."""


def parts_of(block: str, submodules: Submodules, metric: str = "relative_l2") -> Parts:
    """The drift of a block's tensors.

    Args:
        block: Its name.
        submodules: Of the campaign.
        metric: One of ``METRICS`` that has submodules.
    """
    values = submodules.column(METRICS[metric].field)
    flags = below(METRICS[metric], values, submodules.column("below_resolution"))
    rows = [row for row, owner in enumerate(submodules.blocks.values()) if owner == block]
    names = list(submodules.blocks)
    return Parts(
        metric=metric,
        steps=submodules.steps,
        values={names[row].removeprefix(f"{block}."): _numbers(values[row]) for row in rows},
        below={names[row].removeprefix(f"{block}."): tuple(flags[row].tolist()) for row in rows},
    )


def _numbers(values: Floats) -> tuple[float | None, ...]:
    return tuple(value if math.isfinite(value) else None for value in values.tolist())


def detail(block: str, timeline: DriftTimeline, health: HealthTimeline, parts: Parts | None = None) -> go.Figure:
    """A block's drift, norm and activations over time, one panel each; a panel without a number is left out.

    Args:
        block: Its name; one that the summaries do not have gives a figure without panels.
        timeline: Of the campaign.
        health: Of the same campaign.
        parts: Of the block; what is drawn of the block's drift is their metric.
    """
    parts = parts or Parts()
    drift = METRICS[parts.metric]
    layer = timeline.layers.get(block)
    state = health.layers.get(block)
    panels: list[tuple[str, list[Any]]] = [
        (plain(drift.title), _drift(layer, timeline, parts)),
        ("weight norm", _norm(state, health)),
        ("activations p1 to p99", _activations(state, health)),
    ]
    panels = [(title, traces) for title, traces in panels if traces]
    figure: go.Figure = make_subplots(
        rows=max(1, len(panels)),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.07,
        row_heights=[DRIFT_SHARE if title == plain(drift.title) else 1.0 for title, _ in panels] or None,
    )
    for row, (title, traces) in enumerate(panels, start=1):
        for trace in traces:
            figure.add_trace(trace, row=row, col=1)
        figure.update_yaxes(title_text=title, row=row, col=1)
    if drift.is_log and panels and panels[0][0] == plain(drift.title) and _is_positive(panels[0][1]):
        figure.update_yaxes(
            type="log", dtick="D2" if _decades(panels[0][1]) < FEW_DECADES else 1, tickformat=".1g", row=1, col=1
        )
    figure.update_xaxes(title_text="checkpoint (step)", row=max(1, len(panels)), col=1)
    figure.update_layout(
        height=PANEL_PIXELS * max(1, len(panels)) + 150,
        margin={"l": 8, "r": 8, "t": 90, "b": 48},
        title={"text": plain(block), "x": 0, "y": 0.99, "yanchor": "top"},
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        hovermode="closest",
        meta={"block": block},
    )
    return figure


def _decades(traces: Sequence[Any]) -> float:
    """How many powers of ten the values cover."""
    values = [value for trace in traces for value in trace.y if value]
    return math.log10(max(values) / min(values))


def _is_positive(traces: Sequence[Any]) -> bool:
    values = [value for trace in traces for value in trace.y if value is not None]
    return bool(values) and all(value > 0 for value in values)


def _drift(layer: LayerTimeline | None, timeline: DriftTimeline, parts: Parts) -> list[go.Scatter]:
    of_block = getattr(layer, METRICS[parts.metric].field, ())
    if all(value is None for value in of_block):
        return []
    flags = layer.below_resolution if layer else ()
    is_rounding: list[bool] = []
    if len(flags) == len(of_block):
        is_rounding = below(METRICS[parts.metric], _array(of_block), _array(flags)).tolist()
    whole = _line("whole block", timeline.checkpoints, of_block, width=3, rounded=is_rounding)
    explained = [_explanation()] if any(map(any, (is_rounding, *parts.below.values()))) else []
    if len(parts.values) <= 1:  # the block itself
        return [whole, *explained]
    farthest = sorted(parts.values, key=lambda name: -max((value or 0 for value in parts.values[name]), default=0))
    lines = [
        _line(
            plain(name.removesuffix(".weight")),
            parts.steps,
            parts.values[name],
            dash=DASHES[place % len(DASHES)],
            rounded=parts.below.get(name, ()),
        )
        for place, name in enumerate(farthest[:MOST_PARTS], start=1)
    ]
    return [whole, *lines, *explained]


def _array(values: Sequence[float | None]) -> Floats:
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _explanation() -> go.Scatter:
    """What a hollow mark is, in the legend."""
    marker = {"size": 9, "symbol": HOLLOW, "color": NEUTRAL}
    return go.Scatter(x=[None], y=[None], name=ROUNDING, mode="markers", marker=marker, hoverinfo="skip")


def _norm(state: LayerHealthTimeline | None, health: HealthTimeline) -> list[go.Scatter]:
    if state is None or all(value is None for value in state.weight_l2):
        return []
    return [_line("weight norm", health.checkpoints, state.weight_l2, is_named=False)]


def _activations(state: LayerHealthTimeline | None, health: HealthTimeline) -> list[go.Scatter]:
    if state is None or all(value is None for value in state.activation_percentile_99):
        return []
    steps = list(health.checkpoints)
    edge = {"mode": "lines", "line": {"width": 0.5, "color": NEUTRAL}, "showlegend": False}
    number = "step %{x}<br>%{y:.4g}"
    low = go.Scatter(
        x=steps, y=list(state.activation_percentile_1), hovertemplate=f"{number}<extra>1st percentile</extra>", **edge
    )
    high = go.Scatter(
        x=steps,
        y=list(state.activation_percentile_99),
        hovertemplate=f"{number}<extra>99th percentile</extra>",
        fill="tonexty",
        fillcolor="rgba(138,130,114,0.3)",
        **edge,
    )
    return [low, high, _line("mean activation", health.checkpoints, state.activation_mean, is_named=False)]


def _line(
    name: str,
    steps: Sequence[int],
    values: Sequence[float | None],
    *,
    dash: str = "solid",
    width: float = 1.8,
    is_named: bool = True,
    rounded: Sequence[bool] = (),
) -> go.Scatter:
    """A line with a mark at each checkpoint, hollow where ``rounded`` says that the value is below the resolution."""
    hollow = (
        {"symbol": [HOLLOW if one else "circle" for one in rounded], "size": [9 if one else 5 for one in rounded]}
        if any(rounded)
        else {}
    )
    said = {"customdata": [f"<br>{ROUNDING}" if one else "" for one in rounded]} if hollow else {}
    return go.Scatter(
        x=list(steps),
        y=list(values),
        name=name,
        mode="lines+markers" if len(steps) <= MARKED_UP_TO else "lines",
        line={"dash": dash, "width": width},
        marker={"size": 5, **hollow},
        showlegend=is_named,
        hovertemplate=f"step %{{x}}<br>%{{y:.4g}}{'%{customdata}' if said else ''}<extra>%{{fullData.name}}</extra>",
        **said,
    )
