"""The stability report: how each block moves now, and how far it moved in all. Pure.

The rule is in statistics.trajectory.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from archaeologist.statistics import trajectory
from archaeologist.statistics.trajectory import WINDOW, Course, Path
from archaeologist.summaries.intervals import Distances, Intervals, Pair, consecutive, intervals
from archaeologist.summaries.table import Floats, Table
from contracts.artifacts import LayerStability, LayerTotal, LeftOut, StabilityReport

Turn = tuple[int, int, int]
"""Steps of three checkpoints that follow each other."""
Turns = Mapping[Turn, Mapping[str, float]]
"""Cosine of each block's two changes, estimated from sketches."""


class Window(NamedTuple):
    """The newest stretch in which every interval is known."""

    steps: tuple[int, ...] = ()

    @property
    def ends(self) -> Pair | None:
        """Its first and its last checkpoint; None where nothing lies between."""
        return (self.steps[0], self.steps[-1]) if len(self.steps) > 1 else None

    @property
    def turns(self) -> tuple[Turn, ...]:
        """Each three that follow each other."""
        return tuple(zip(self.steps, self.steps[1:], self.steps[2:], strict=False))


def window(table: Table, distances: Distances, *, has_sketch: Callable[[int], bool]) -> Window:
    """The newest intervals without a gap, at most ``WINDOW``, from the first checkpoint among them that has a sketch.

    Args:
        table: Of the campaign.
        distances: Of consecutive checkpoints that no artifact compares.
        has_sketch: Whether a step's sketch can be used. Without one at the beginning, a path has no displacement.
    """
    pairs = consecutive(table)[-WINDOW:]
    origins = intervals(table, pairs, distances).origins
    known = len(origins)
    while known > 0 and origins[known - 1] is not None:
        known -= 1
    steps = table.steps[-(len(origins) - known + 1) :] if len(table.steps) > 1 else table.steps
    first = next((number for number, step in enumerate(steps) if has_sketch(step)), 0)
    # A beginning that leaves too few intervals to tell a direction helps nobody.
    return Window(steps[first:] if len(steps) - first > trajectory.FEWEST else steps)


def stability_report(
    table: Table,
    *,
    hero_id: str,
    campaign_id: str,
    covered: Window,
    distances: Distances,
    turns: Turns,
    left_out: Sequence[LeftOut] = (),
) -> StabilityReport:
    """How each block moves.

    Args:
        table: Of the whole campaign.
        hero_id: Whose campaign it is.
        campaign_id: Its name.
        covered: From ``window``.
        distances: Of its ends, and of consecutive checkpoints that no artifact compares.
        turns: Of each three checkpoints of the window.
        left_out: Files that could not be read.
    """
    moved = intervals(table, consecutive(table), distances)
    layers = {
        name: _layer(name, kind, row=row, moved=moved, covered=covered, distances=distances, turns=turns)
        for row, (name, kind) in enumerate(table.kinds.items())
    }
    of = partial(_of_class, layers)
    return StabilityReport(
        campaign_id=campaign_id,
        hero_id=hero_id,
        checkpoints=covered.steps,
        layers=layers,
        frozen=of("bit_frozen"),
        below_resolution=of("below_resolution"),
        settled=of("settled"),
        directed=of("directed"),
        diffusive=of("diffusive"),
        thrashing=of("thrashing"),
        undetermined=of("undetermined"),
        top_movers=_totals(table),
        judgements=dict(trajectory.JUDGEMENTS),
        left_out=tuple(left_out),
    )


def _of_class(layers: Mapping[str, LayerStability], kind: str) -> tuple[str, ...]:
    return tuple(name for name, layer in layers.items() if layer.stability == kind)


def _layer(
    name: str, kind: str, *, row: int, moved: Intervals, covered: Window, distances: Distances, turns: Turns
) -> LayerStability:
    count = max(0, len(covered.steps) - 1)
    lengths = moved.l2[row, len(moved.pairs) - count :]
    changed, below = (found[row, len(moved.pairs) - count :] for found in (moved.changed, moved.below))
    missing = int(np.isnan(lengths).sum())
    rates = _rates(moved, row)
    path = Path(
        lengths=[] if missing else lengths.tolist(),
        changed=[None if np.isnan(share) else float(share) for share in changed],
        below_resolution=[None if np.isnan(flag) else bool(flag) for flag in below],
        displacement=distances.get(covered.ends, {}).get(name) if covered.ends else None,
        cosines=[turns[turn][name] for turn in covered.turns if name in turns.get(turn, {})],
        rates=rates,
    )
    found: Course = trajectory.course(path)
    measured = changed[~np.isnan(changed)]
    return LayerStability(
        name=name,
        layer_type=kind,
        stability=found.kind,
        reason=f"its drift is missing in {missing} of {count} intervals" if missing else found.reason,
        intervals=len(path.lengths),
        effective_intervals=found.effective_intervals,
        straightness=found.straightness,
        scaled_straightness=found.scaled_straightness,
        lag1_cosine=found.lag1_cosine,
        path_length=float(np.sum(path.lengths)) if path.lengths else None,
        displacement=path.displacement,
        latest_rate=rates[-1] if rates else None,
        peak_rate=max(rates, default=None),
        changed_fraction=float(np.median(measured)) if measured.size else None,
        intervals_below_resolution=int(((below == 1) & (changed > 0)).sum()),
        intervals_measured=int(measured.size),
    )


def _rates(moved: Intervals, row: int) -> list[float]:
    """Relative L2 a step of every interval in which it is known."""
    spans = np.array([target - base for base, target in moved.pairs], np.float64)
    rates: Floats = moved.relative[row] / spans
    known: list[float] = rates[np.isfinite(rates)].tolist()
    return known


def _totals(table: Table) -> tuple[LayerTotal, ...]:
    """Every block's drift over all artifacts, as the specification sums it, the largest first."""
    compared = [extract.has_drift for extract in table.extracts]
    total = np.nansum(table.column("total_l2")[:, compared], axis=1)
    relative = table.column("relative_l2")[:, compared]
    found = [
        LayerTotal(
            layer=name,
            total_drift=float(total[row]),
            total_relative=float(np.nansum(relative[row])) if np.isfinite(relative[row]).any() else None,
        )
        for row, name in enumerate(table.blocks)
    ]
    return tuple(sorted(found, key=lambda one: (-one.total_drift, one.layer))) if any(compared) else ()
