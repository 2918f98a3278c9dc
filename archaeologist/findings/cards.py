"""The four cards above the strata: how much was analysed, what moved most and least, how far on average. Pure."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Final, NamedTuple

from archaeologist.findings.wording import at, counted, finite, labels, number, percent
from contracts.artifacts import DriftTimeline, HealthTimeline, StabilityReport
from contracts.findings import Card

NONE: Final = "not measured"
SAME: Final = 1e-12
"""Two means that differ by less of themselves differ by rounding."""


def cards(timeline: DriftTimeline, health: HealthTimeline, stability: StabilityReport | None) -> tuple[Card, ...]:
    """The cards, in order."""
    ranked = sorted(_averages(timeline, stability), key=lambda one: (-one.relative, one.layer))
    most, least = (_alike(ranked, place) for place in (0, -1))
    return (
        _analysed(health),
        _block("Most changed", most, timeline),
        # One block alone, or all alike, are not the most stable of anything.
        _block("Most stable", least if least != most else [], timeline),
        _average(timeline),
    )


class _Average(NamedTuple):
    """How far a block moved on average."""

    layer: str
    relative: float
    comparisons: int
    """The block's own: those in which its relative L2 is known."""


def _averages(timeline: DriftTimeline, stability: StabilityReport | None) -> list[_Average]:
    """Of each block. A mean and no sum, which would favour blocks with more comparisons than others."""
    found = []
    for total in stability.top_movers if stability else ():
        layer = timeline.layers.get(total.layer)
        count = sum(finite(value) is not None for value in layer.relative_l2) if layer else 0
        relative = finite(total.total_relative)
        if relative is not None and count:
            found.append(_Average(total.layer, relative / count, count))
    return found


def _alike(ranked: Sequence[_Average], place: int) -> list[_Average]:
    """The blocks that moved as far as the one at a place, but for rounding, that one first."""
    if not ranked:
        return []
    alike = [one for one in ranked if math.isclose(one.relative, ranked[place].relative, rel_tol=SAME)]
    return alike if place == 0 else alike[::-1]


def _analysed(health: HealthTimeline) -> Card:
    steps = health.checkpoints
    detail = f"steps {steps[0]} to {steps[-1]}" if len(steps) > 1 else "".join(f"step {step}" for step in steps)
    return Card(title="Checkpoints analysed", value=f"{len(steps):,}", detail=detail)


def _block(title: str, found: Sequence[_Average], timeline: DriftTimeline) -> Card:
    if not found:
        return Card(title=title, value=NONE)
    first, more = found[0], len(found) - 1
    names = labels({name: layer.layer_type for name, layer in timeline.layers.items()})
    layer = timeline.layers.get(first.layer)
    return Card(
        title=title,
        value=names.get(first.layer, first.layer),
        detail=f"relative L2 {number(first.relative)} on average over {_comparisons(first.comparisons, timeline)}"
        + (f"; as much as {counted(more, 'other')}" if more else ""),
        trend=tuple(finite(value) for value in layer.relative_l2) if layer else (),
        block=first.layer,
    )


def _average(timeline: DriftTimeline) -> Card:
    values = [value for one in timeline.relative_l2 if (value := finite(one)) is not None]
    if not values:
        return Card(title="Average drift", value=NONE)
    detail = f"relative L2 over {_comparisons(len(values), timeline)}{_newest(timeline)}"
    return Card(
        title="Average drift",
        value=number(fmean(values)),
        detail=detail,
        trend=tuple(finite(value) for value in timeline.relative_l2),
    )


def _newest(timeline: DriftTimeline) -> str:
    """The newest comparison beside the one before it; nothing of another one is called that."""
    last = len(timeline.checkpoints) - 1
    newest, before = (finite(at(timeline.relative_l2, place)) for place in (last, last - 1))
    if newest is None:
        return "; newest not known"
    said = f"; newest {number(newest)}"
    change = finite(newest / before - 1) if before is not None and before > 0 else None
    if change is None:
        return said
    return (
        f"{said}, {percent(abs(change))} {'more' if change > 0 else 'less'} than before"
        if change
        else f"{said}, as before"
    )


def _comparisons(known: int, timeline: DriftTimeline) -> str:
    total = len(timeline.checkpoints)
    return counted(total, "comparison") if known == total else f"{known:,} of {counted(total, 'comparison')}"
