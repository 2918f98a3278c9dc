"""The table behind each figure: the same numbers for screen readers and for copying. Pure."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from msgspec import Struct

from archaeologist.figures.grid import METRICS, Submodules, grid
from archaeologist.figures.layer import Parts
from archaeologist.figures.movers import ranking
from contracts.artifacts import DriftTimeline, HealthTimeline, SkillFinding, StabilityReport

MOST_CELLS: Final = 6000
MOST_ROWS: Final = 200
ABSENT: Final = "–"  # noqa: RUF001 -- a dash stands for no number

Row = tuple[str, ...]


class Grid(Struct, frozen=True, kw_only=True):
    """A table of text; the first column of each row is its heading."""

    head: Row
    rows: tuple[Row, ...]
    note: str = ""
    """What was left out."""


def number(value: float | None) -> str:
    """Four significant digits; a dash where there is none."""
    return ABSENT if value is None or not np.isfinite(value) else f"{value:.4g}"


def strata(metric: str, timeline: DriftTimeline, health: HealthTimeline, submodules: Submodules | None = None) -> Grid:
    """A metric: blocks or submodules by checkpoints, the head first as in the figure."""
    found = grid(metric, timeline, health, submodules=submodules)
    count = max(1, MOST_CELLS // max(1, len(found.rows)))
    columns = found.columns[-count:]
    rows = [
        (name, *(_cell(value, below) for value, below in zip(values[-count:], flags[-count:], strict=True)))
        for name, values, flags in zip(found.rows, found.values.tolist(), found.below.tolist(), strict=True)
    ]
    note = f"the newest {len(columns)} of {len(found.columns)} columns" if len(columns) < len(found.columns) else ""
    marks = "* below the resolution: rounding" if found.below.any() else ""
    return Grid(
        head=(METRICS[metric].title, *(column.label for column in columns)),
        rows=tuple(reversed(rows)),
        note="; ".join(part for part in (note, marks) if part),
    )


def _cell(value: float, is_below: bool) -> str:  # noqa: FBT001 -- one caller
    return number(value) + ("*" if is_below else "")


def movers(report: StabilityReport) -> Grid:
    """All blocks, the one that moved farthest first, with how it moves."""
    rows = []
    for total, relative in ranking(report)[:MOST_ROWS]:
        layer = report.layers.get(total.layer)
        kind = layer.stability.replace("_", " ") if layer else ABSENT
        reason = layer.reason if layer else ABSENT
        rows.append((total.layer, number(relative), number(total.total_drift), kind, reason))
    count = len(ranking(report))
    note = f"the first {MOST_ROWS} of {count} blocks" if count > MOST_ROWS else ""
    return Grid(head=("block", "sum of relative L2", "sum of L2", "moves", "because"), rows=tuple(rows), note=note)


def detail(block: str, timeline: DriftTimeline, health: HealthTimeline, parts: Parts) -> Grid:
    """A block over time; the drift is the parts' metric."""
    layer = timeline.layers.get(block)
    drift = _by_step(timeline.checkpoints, getattr(layer, parts.metric) if layer else ())
    state = health.layers.get(block)
    norms = _by_step(health.checkpoints, state.weight_l2 if state else ())
    low = _by_step(health.checkpoints, state.activation_percentile_1 if state else ())
    high = _by_step(health.checkpoints, state.activation_percentile_99 if state else ())
    by_part = {name: _by_step(parts.steps, values) for name, values in parts.values.items()}
    steps = sorted({*timeline.checkpoints, *health.checkpoints})
    columns = [drift, norms, low, high, *by_part.values()]
    return Grid(
        head=("step", METRICS[parts.metric].title, "weight norm", "activation p1", "activation p99", *by_part),
        rows=tuple((str(step), *(number(column.get(step)) for column in columns)) for step in steps[-MOST_ROWS:]),
        note=_newest(len(steps)),
    )


def _by_step(steps: Sequence[int], values: Sequence[float | None]) -> dict[int, float | None]:
    return dict(zip(steps, values, strict=False))


def _newest(count: int) -> str:
    return f"the newest {MOST_ROWS} of {count} checkpoints" if count > MOST_ROWS else ""


def skill(found: SkillFinding) -> Grid:
    """The blocks by correlation."""
    rows = (
        (
            one.layer,
            number(one.spearman),
            number(one.p_adjusted),
            number(one.spearman_share),
            number(one.p_adjusted_share),
        )
        for one in found.layers[:MOST_ROWS]
    )
    head = ("block", "Spearman", "adjusted p", "Spearman of the share", "adjusted p of the share")
    return Grid(head=head, rows=tuple(rows))


def scores(found: SkillFinding) -> Grid:
    """The skill's scores and the intervals between them."""
    changes = {one.target_step: one for one in found.intervals}
    rows = []
    for step, score, size in zip(found.checkpoints, found.scores, found.num_samples, strict=False):
        interval = changes.get(step)
        used = ABSENT if interval is None else "yes" if interval.is_used else f"no: {interval.reason}"
        change = number(interval.score_change) if interval else ABSENT
        rows.append((str(step), number(score), ABSENT if size is None else str(size), change, used))
    return Grid(head=("step", "score", "samples", "change", "used"), rows=tuple(rows[-MOST_ROWS:]))


def health(found: HealthTimeline, series: dict[str, tuple[float | None, ...]]) -> Grid:
    """The model's health over time."""
    rows = (
        (str(step), *(number(values[place] if place < len(values) else None) for values in series.values()))
        for place, step in enumerate(found.checkpoints)
    )
    names = {
        "loss": "loss (nats)",
        "entropy": "entropy (nats)",
        "rankme": "RankMe (median)",
        "weight_l2": "weight norm",
    }
    return Grid(
        head=("step", *(names[name] for name in series)),
        rows=tuple(rows)[-MOST_ROWS:],
        note=_newest(len(found.checkpoints)),
    )


def alerts(found: HealthTimeline) -> Grid:
    """The alert history, the newest first."""
    rows = tuple(
        (
            str(one.checkpoint_step),
            one.severity,
            one.metric,
            one.block or "the model",
            number(one.value),
            number(one.baseline),
            f"{one.checkpoints} checkpoints, {one.confidence} confidence",
        )
        for one in sorted(found.alerts, key=lambda one: -one.checkpoint_step)
    )
    note = f"the newest {MOST_ROWS} of {len(rows)} alerts" if len(rows) > MOST_ROWS else ""
    head = ("step", "severity", "metric", "of", "value", "compared with", "judged against")
    return Grid(head=head, rows=rows[:MOST_ROWS], note=note)


def checkpoints(timeline: DriftTimeline, state: HealthTimeline) -> Grid:
    """The analysed checkpoints, the newest first."""
    place = {step: number for number, step in enumerate(timeline.checkpoints)}
    created = dict(zip(state.checkpoints, state.created_at, strict=False))
    counts: dict[int, int] = {}
    for alert in state.alerts:
        counts[alert.checkpoint_step] = counts.get(alert.checkpoint_step, 0) + 1
    entropy = _by_step(state.checkpoints, state.entropy)
    steps = sorted({*timeline.checkpoints, *state.checkpoints}, reverse=True)
    rows = tuple(
        (
            str(step),
            created.get(step, ABSENT),
            *_compared(timeline, place.get(step)),
            number(entropy.get(step)),
            str(counts.get(step, 0)),
        )
        for step in steps[:MOST_ROWS]
    )
    head = ("step", "analysed at", "against", "relative L2", "changed most", "KL", "entropy", "alerts")
    return Grid(head=head, rows=rows, note=_newest(len(steps)))


def _compared(timeline: DriftTimeline, place: int | None) -> Row:
    if place is None:
        return (ABSENT,) * 4
    moved = {
        name: value
        for name, layer in timeline.layers.items()
        if place < len(layer.relative_l2) and (value := layer.relative_l2[place]) is not None
    }
    reference = timeline.reference_steps[place] if place < len(timeline.reference_steps) else None
    return (
        ABSENT if reference is None else str(reference),
        number(timeline.relative_l2[place] if place < len(timeline.relative_l2) else None),
        max(moved, key=lambda name: moved[name]) if moved else ABSENT,
        number(timeline.kl[place] if place < len(timeline.kl) else None),
    )
