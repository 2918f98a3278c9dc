"""The four cards above the strata: how much was analysed, what moved most and least, how far on average. Pure."""

from collections.abc import Sequence
from statistics import fmean
from typing import Final

from archaeologist.findings.wording import counted, finite, labels, number, percent
from contracts.artifacts import DriftTimeline, HealthTimeline, LayerTotal, StabilityReport
from contracts.findings import Card

NONE: Final = "not measured"


def cards(timeline: DriftTimeline, health: HealthTimeline, stability: StabilityReport | None) -> tuple[Card, ...]:
    """The cards, in order."""
    known = [
        (relative, total)
        for total in (stability.top_movers if stability else ())
        if (relative := finite(total.total_relative)) is not None
    ]
    ranked = [total for _, total in sorted(known, key=lambda pair: (-pair[0], pair[1].layer))]
    most, least = (_alike(ranked, place) for place in (0, -1))
    return (
        _analysed(health),
        _block("Most changed", most, timeline),
        # One block alone, or all alike, are not the most stable of anything.
        _block("Most stable", least if least != most else [], timeline),
        _average(timeline),
    )


def _alike(ranked: Sequence[LayerTotal], place: int) -> list[LayerTotal]:
    """The blocks that moved exactly as far as the one at a place, that one first."""
    if not ranked:
        return []
    alike = [total for total in ranked if total.total_relative == ranked[place].total_relative]
    return alike if place == 0 else alike[::-1]


def _analysed(health: HealthTimeline) -> Card:
    steps = health.checkpoints
    detail = f"steps {steps[0]} to {steps[-1]}" if len(steps) > 1 else "".join(f"step {step}" for step in steps)
    return Card(title="Checkpoints analysed", value=f"{len(steps):,}", detail=detail)


def _block(title: str, found: Sequence[LayerTotal], timeline: DriftTimeline) -> Card:
    if not found:
        return Card(title=title, value=NONE)
    total, more = found[0], len(found) - 1
    names = labels({name: layer.layer_type for name, layer in timeline.layers.items()})
    layer = timeline.layers.get(total.layer)
    return Card(
        title=title,
        value=names.get(total.layer, total.layer),
        detail=f"relative L2 {number(total.total_relative or 0.0)} over {_comparisons(timeline)}"
        + (f"; as much as {counted(more, 'other')}" if more else ""),
        trend=tuple(finite(value) for value in layer.relative_l2) if layer else (),
        block=total.layer,
    )


def _average(timeline: DriftTimeline) -> Card:
    values = [value for one in timeline.relative_l2 if (value := finite(one)) is not None]
    if not values:
        return Card(title="Average drift", value=NONE)
    detail = f"relative L2 over {_comparisons(timeline)}; newest {number(values[-1])}"
    if len(values) > 1 and values[-2] > 0:
        change = values[-1] / values[-2] - 1
        side = "more" if change > 0 else "less"
        detail += f", {percent(abs(change))} {side} than before" if change else ", as before"
    return Card(
        title="Average drift",
        value=number(fmean(values)),
        detail=detail,
        trend=tuple(finite(value) for value in timeline.relative_l2),
    )


def _comparisons(timeline: DriftTimeline) -> str:
    return counted(len(timeline.checkpoints), "comparison")
