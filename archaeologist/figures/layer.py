"""One block over time: the drift of its parts, the norm of its weights, the spread of its activations."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import plotly.graph_objects as go
from msgspec import Struct
from plotly.subplots import make_subplots

from archaeologist.figures.labels import plain
from archaeologist.figures.themes import NEUTRAL
from contracts.artifacts import DriftTimeline, HealthTimeline, LayerHealthTimeline, LayerStats, LayerTimeline

DASHES: Final = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
PANEL_PIXELS: Final = 190
DRIFT_SHARE: Final = 1.7
"""Height of the panel of the drift, whose lines are many, to the others'."""
FEW_DECADES: Final = 2
"""Powers of ten below which an axis needs ticks between them."""
MOST_PARTS: Final = 8
"""Lines that can still be told apart; those that moved farthest."""


class Parts(Struct, frozen=True, kw_only=True):
    """Relative L2 of each tensor of a block over time."""

    steps: tuple[int, ...] = ()
    relative_l2: Mapping[str, tuple[float | None, ...]] = {}
    """By the tensor's name within the block; aligned with ``steps``."""


def parts_of(block: str, artifacts: Iterable[LayerStats]) -> Parts:
    """The drift of a block's tensors in artifacts, which may come in any order."""
    ordered = sorted((one for one in artifacts if one.drift_stats), key=lambda one: one.checkpoint_step)
    found = [one.drift_stats[block].tensors if block in one.drift_stats else {} for one in ordered]
    names = dict.fromkeys(name for tensors in found for name in tensors)
    return Parts(
        steps=tuple(one.checkpoint_step for one in ordered),
        relative_l2={
            name: tuple(tensors[name].relative_l2 if name in tensors else None for tensors in found) for name in names
        },
    )


def detail(block: str, timeline: DriftTimeline, health: HealthTimeline, parts: Parts | None = None) -> go.Figure:
    """A block's drift, norm and activations over time, one panel each; a panel without a number is left out.

    Args:
        block: Its name; one that the summaries do not have gives a figure without panels.
        timeline: Of the campaign.
        health: Of the same campaign.
        parts: Of the block, read from its artifacts.
    """
    layer = timeline.layers.get(block)
    state = health.layers.get(block)
    panels: list[tuple[str, list[Any]]] = [
        ("relative L2", _drift(layer, timeline, parts or Parts())),
        ("weight norm", _norm(state, health)),
        ("activations p1 to p99", _activations(state, health)),
    ]
    panels = [(title, traces) for title, traces in panels if traces]
    figure: go.Figure = make_subplots(
        rows=max(1, len(panels)),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.07,
        row_heights=[DRIFT_SHARE if title == "relative L2" else 1.0 for title, _ in panels] or None,
    )
    for row, (title, traces) in enumerate(panels, start=1):
        for trace in traces:
            figure.add_trace(trace, row=row, col=1)
        figure.update_yaxes(title_text=title, row=row, col=1)
    if panels and panels[0][0] == "relative L2" and _is_positive(panels[0][1]):
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
    if layer is None or all(value is None for value in layer.relative_l2):
        return []
    whole = _line("whole block", timeline.checkpoints, layer.relative_l2, width=3)
    if len(parts.relative_l2) <= 1:  # the block itself
        return [whole]
    farthest = sorted(
        parts.relative_l2, key=lambda name: -max((value or 0 for value in parts.relative_l2[name]), default=0)
    )
    lines = [
        _line(
            plain(name.removesuffix(".weight")), parts.steps, parts.relative_l2[name], dash=DASHES[place % len(DASHES)]
        )
        for place, name in enumerate(farthest[:MOST_PARTS], start=1)
    ]
    return [whole, *lines]


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
) -> go.Scatter:
    return go.Scatter(
        x=list(steps),
        y=list(values),
        name=name,
        mode="lines+markers",
        line={"dash": dash, "width": width},
        marker={"size": 5},
        showlegend=is_named,
        hovertemplate="step %{x}<br>%{y:.4g}<extra>%{fullData.name}</extra>",
    )
