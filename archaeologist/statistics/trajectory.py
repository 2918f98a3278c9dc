"""How something moves: straight on, at random, or to and fro. Pure numbers, float64.

A path of n changes with lengths d_i that ends a distance D from where it began has the straightness S = D / Σd. A
random walk's changes are at right angles to each other where there are many dimensions, so D² = Σd² and S = 1/√n for
equal lengths (arXiv 2403.07379 looks at the same angles between updates). For unequal lengths the same holds with the
effective number n = (Σd)² / Σd², which is n for equal ones: lengths shrink as the learning rate does, and the plain
number would call every random walk directed. So S·√n = D / √Σd² is compared with 1.

The thresholds are judgements without a source.
"""

import math
from collections.abc import Sequence
from statistics import fmean, median
from typing import Final, Literal

from msgspec import Struct

from archaeologist.statistics.drift import RESOLUTION_GATE, ROUNDING_STEPS

WINDOW: Final = 20
"""Newest intervals that a class is about: what a block does now, not what it did once."""
FEWEST: Final = 4
"""Intervals below which a direction means nothing."""
LOW_SHARE: Final = 0.5
"""Share of the measured intervals below resolution from which on the path is mostly rounding."""
SETTLED_RATE: Final = 0.1
"""Of its own peak."""
SETTLED_INTERVALS: Final = 3
THRASHING: Final = 0.7
"""S·√n below this, with reversals."""
REVERSAL: Final = -0.2
"""Mean lag-1 cosine below this."""
DIRECTED: Final = 1 / THRASHING
"""S·√n above this: as far from a random walk as thrashing, on the other side."""

JUDGEMENTS: Final = {
    "window_intervals": float(WINDOW),
    "fewest_intervals": float(FEWEST),
    "low_resolution_changed_fraction": RESOLUTION_GATE,
    "low_resolution_rounding_steps": ROUNDING_STEPS,
    "low_resolution_share_of_intervals": LOW_SHARE,
    "settled_share_of_peak_rate": SETTLED_RATE,
    "settled_intervals": float(SETTLED_INTERVALS),
    "thrashing_scaled_straightness": THRASHING,
    "thrashing_lag1_cosine": REVERSAL,
    "directed_scaled_straightness": DIRECTED,
}

Kind = Literal["bit_frozen", "below_resolution", "settled", "directed", "diffusive", "thrashing", "undetermined"]


class Path(Struct, frozen=True, kw_only=True):
    """What is known of a path."""

    lengths: Sequence[float] = ()
    """L2 of each interval's change, oldest first, without gaps."""
    changed: Sequence[float | None] = ()
    """Share of the values that changed, aligned with ``lengths``; None where it was not measured."""
    below_resolution: Sequence[bool | None] = ()
    """Whether the change is mostly rounding, likewise."""
    displacement: float | None = None
    """L2 from the beginning to the end."""
    cosines: Sequence[float] = ()
    """Of each interval's change with the one before, where neither is zero."""
    rates: Sequence[float] = ()
    """Relative L2 a step of every known interval, also before the path begins; oldest first."""


class Course(Struct, frozen=True, kw_only=True):
    """How a path runs."""

    kind: Kind
    reason: str
    effective_intervals: float | None = None
    straightness: float | None = None
    scaled_straightness: float | None = None
    lag1_cosine: float | None = None


def effective_intervals(lengths: Sequence[float]) -> float | None:
    """(Σd)² / Σd²; None where nothing moved."""
    squares = math.fsum(length * length for length in lengths)
    return math.fsum(lengths) ** 2 / squares if squares > 0 else None


def straightness(displacement: float | None, lengths: Sequence[float]) -> float | None:
    """S = D / Σd, at most 1 but for the error of an estimated D; None where nothing moved or D is not known."""
    total = math.fsum(lengths)
    return displacement / total if displacement is not None and total > 0 else None


def course(path: Path) -> Course:
    """The class of a path, after the resolution gate, and why."""
    effective = effective_intervals(path.lengths)
    straight = straightness(path.displacement, path.lengths)
    scaled = straight * math.sqrt(effective) if straight is not None and effective is not None else None
    lag1 = fmean(path.cosines) if path.cosines else None
    kind, reason = _at_rest(path) or _moving(len(path.lengths), scaled, lag1)
    return Course(
        kind=kind,
        reason=reason,
        effective_intervals=effective,
        straightness=straight,
        scaled_straightness=scaled,
        lag1_cosine=lag1,
    )


def _at_rest(path: Path) -> tuple[Kind, str] | None:
    """The classes that need no direction."""
    count = len(path.lengths)
    if count == 0:
        return "undetermined", "its drift over the newest interval is not known"
    measured = [share for share in path.changed if share is not None]
    if not any(path.lengths) and not any(measured):
        return "bit_frozen", f"no bit changed over {_intervals(count)}"
    # An interval in which nothing changed is exact.
    moved = [(share, flag) for share, flag in zip(path.changed, path.below_resolution, strict=True) if share]
    low = sum(flag is True for _, flag in moved)
    if moved and low >= LOW_SHARE * len(moved):
        share = f"in the median {median(share for share, _ in moved):.1%} of its values changed"
        return "below_resolution", f"{low} of {_intervals(len(moved))} with a change are below resolution: {share}"
    newest, peak = path.rates[-SETTLED_INTERVALS:], max(path.rates, default=0.0)
    if len(newest) == SETTLED_INTERVALS and max(newest) < SETTLED_RATE * peak:
        return "settled", f"at most {max(newest) / peak:.1%} of its peak rate over {_intervals(SETTLED_INTERVALS)}"
    return None


def _moving(count: int, scaled: float | None, lag1: float | None) -> tuple[Kind, str]:
    """The classes of direction."""
    if count < FEWEST:
        return "undetermined", f"{_intervals(count)}, at least {FEWEST} are needed to tell a direction"
    if scaled is None:
        return "undetermined", "no sketch at an end of the window, so its direction is not known"
    turning = "no two neighbouring changes with a sketch" if lag1 is None else f"lag-1 cosine {lag1:.2f}"
    numbers = f"{scaled:.2f} times as straight as a random walk over {_intervals(count)}, {turning}"
    if scaled > DIRECTED:
        return "directed", numbers
    if scaled >= THRASHING:
        return "diffusive", numbers
    if lag1 is not None and lag1 < REVERSAL:
        return "thrashing", numbers
    how = "whether by turning round is not known" if lag1 is None else "but not by turning round each time"
    return "undetermined", f"it comes back, {how}: {numbers}"


def _intervals(count: int) -> str:
    return f"{count} interval" if count == 1 else f"{count} intervals"
