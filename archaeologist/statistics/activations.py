"""Activation health: from one block's hidden states to the artifact's fields.

Called by the excavation with the outputs of one block at a time. Pure NumPy; sums are float64. Large inputs are read in
slices, so that nothing as large as the input is made beside it, except one copy of float32 values. Which positions are
looked at, without padding and mostly without first tokens, is the caller's choice. Definitions are in
docs/statistics.md.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from archaeologist.statistics.distribution import (
    PATTERNS,
    Distribution,
    Floats,
    Moments,
    assemble,
    from_bits,
    percentiles,
)
from contracts.artifacts import PERCENTILES, ActivationDistribution

Hidden = npt.NDArray[np.float32]
"""(positions, channels)"""

MASSIVE: Final = 100.0
"""A massive activation is larger than this …"""
MASSIVE_RATIO: Final = 1000.0
"""… and at least this many times the median magnitude of its hidden state (arXiv 2402.17762)."""
OUTLIER: Final = 6.0
"""An outlier channel has magnitudes of at least this …"""
OUTLIER_PERCENT: Final = 6
"""… in at least this share of the positions (arXiv 2208.07339)."""

DEAD_SHARE: Final = 1e-3
"""A neuron is dead whose largest magnitude is at most this share of the median neuron's: SiLU and GELU are almost never
exactly 0. [judgement]"""

_SLICE_VALUES: Final = 1 << 18
"""Values in a slice: 2 MB as float64, which stay in a second-level cache."""


def distribution(values: npt.NDArray[np.float32]) -> ActivationDistribution:
    """The distribution of float32 values; percentiles are exact, as NumPy's method "linear" gives them in float64.

    Args:
        values: Of any shape. NaN and infinity are counted and left out.
    """
    finite = values[np.isfinite(values)]
    nan_count = int(np.count_nonzero(np.isnan(values))) if finite.size < values.size else 0
    inf_count = values.size - finite.size - nan_count
    if not finite.size:
        return _fields(Distribution(count=0, nan_count=nan_count, inf_count=inf_count, zeros=0))
    return _fields(assemble(_moments(finite, nan_count=nan_count, inf_count=inf_count), _percentiles(finite)))


def distribution_of_bits(bits: npt.NDArray[np.uint16], dtype: str) -> ActivationDistribution:
    """The distribution of 16-bit floats, exact: from the counts of their patterns.

    Args:
        bits: Patterns, of any shape.
        dtype: ``BF16`` or ``F16``.
    """
    counts = np.zeros(PATTERNS, np.int64)
    flat = bits.reshape(-1)
    # Counting widens its input to 64 bits: slices keep that small.
    for start in range(0, flat.size, _SLICE_VALUES):
        counts += np.bincount(flat[start : start + _SLICE_VALUES], minlength=PATTERNS)
    return _fields(from_bits(counts, dtype))


def massive(hidden: Hidden) -> tuple[int, tuple[int, ...]]:
    """How many massive activations there are, and their channels in ascending order.

    A value is massive above ``MASSIVE`` and at or above ``MASSIVE_RATIO`` times the median magnitude of its position.
    NaN and infinity are none, and the median is that of the finite magnitudes. Healthy models have some.
    """
    count, channels = 0, set[int]()
    if not hidden.size:
        return count, ()
    # No copy of all magnitudes: few positions hold a large value. NaN compares false, and so it is looked at.
    is_small = (hidden.max(axis=1) <= MASSIVE) & (hidden.min(axis=1) >= -MASSIVE)
    for state in hidden[~is_small]:
        magnitudes = np.abs(state.astype(np.float64))
        is_finite = np.isfinite(magnitudes)
        if not is_finite.any():
            continue
        least = MASSIVE_RATIO * np.median(magnitudes[is_finite])
        found = np.flatnonzero(is_finite & (magnitudes > MASSIVE) & (magnitudes >= least))
        count += found.size
        channels.update(found.tolist())
    return count, tuple(sorted(channels))


def outlier_channels(hidden: Hidden) -> tuple[int, ...]:
    """Channels with magnitudes of at least ``OUTLIER`` in at least ``OUTLIER_PERCENT`` % of their finite values."""
    large, finite = np.zeros(hidden.shape[1], np.int64), np.zeros(hidden.shape[1], np.int64)
    for rows in row_slices(hidden):
        magnitudes = np.abs(rows)
        is_finite = magnitudes < np.inf  # false for NaN
        finite += is_finite.sum(axis=0)
        large += (is_finite & (magnitudes >= OUTLIER)).sum(axis=0)
    # In whole numbers: 0.06 is no binary fraction.
    return tuple(np.flatnonzero((large > 0) & (100 * large >= OUTLIER_PERCENT * finite)).tolist())


def dead_neurons(largest: npt.NDArray[np.float32]) -> int:
    """How many neurons never answer to a probe.

    Args:
        largest: Largest magnitude of each neuron over the positions, (neurons,). NaN and infinity are no death, and
            the median is that of the others.
    """
    finite = largest[np.isfinite(largest)].astype(np.float64)
    return int(np.count_nonzero(finite <= DEAD_SHARE * np.median(finite))) if finite.size else 0


def token_norm(hidden: Hidden) -> float | None:
    """Mean L2 norm of the positions whose values are all finite; None where there is none."""
    squares = np.concatenate([squared_norms(rows.astype(np.float64)) for rows in row_slices(hidden)] or [np.zeros(0)])
    norms = np.sqrt(squares[np.isfinite(squares)])
    return float(norms.mean()) if norms.size else None


def row_slices(hidden: Hidden) -> Iterator[Hidden]:
    """The positions in order, as many at a time as make a slice."""
    step = max(1, _SLICE_VALUES // max(1, hidden.shape[1]))
    for start in range(0, len(hidden), step):
        yield hidden[start : start + step]


def squared_norms(rows: Floats) -> Floats:
    """Σx² of each row; a square of a float32 value cannot overflow."""
    found: Floats = np.einsum("ij,ij->i", rows, rows)
    return found


def _moments(finite: npt.NDArray[np.float32], *, nan_count: int, inf_count: int) -> Moments:
    """Sums in two passes, central ones about the mean; ``finite`` has one dimension and at least one value."""
    mean = float(finite.sum(dtype=np.float64) / finite.size)
    m2 = m4 = squares = 0.0
    for start in range(0, finite.size, _SLICE_VALUES):
        values = finite[start : start + _SLICE_VALUES].astype(np.float64)
        squares += float(values @ values)
        values -= mean
        values *= values
        m2 += float(values.sum())
        m4 += float(values @ values)
    return Moments(
        count=finite.size,
        zeros=finite.size - int(np.count_nonzero(finite)),
        nan_count=nan_count,
        inf_count=inf_count,
        mean=mean,
        m2=m2,
        m4=m4,
        squares=squares,
        min=float(finite.min()),
        max=float(finite.max()),
    )


def _percentiles(finite: npt.NDArray[np.float32]) -> tuple[float, ...]:
    """Exact percentiles; reorders ``finite``."""
    positions = (finite.size - 1) * (np.asarray(PERCENTILES, dtype=np.float64) / 100)
    kept = np.unique([*np.floor(positions), *np.ceil(positions), finite.size - 1]).astype(np.int64)
    finite.partition(kept)
    # Only the values between which a percentile lies are in their place: each counts for all those before it.
    return percentiles(np.diff(kept, prepend=-1), finite[kept].astype(np.float64) + 0.0)  # -0 becomes 0


def _fields(found: Distribution) -> ActivationDistribution:
    total = found.count + found.nan_count + found.inf_count
    by_percent = dict(zip(PERCENTILES, found.percentiles, strict=True))
    return ActivationDistribution(
        count=found.count,
        mean=found.mean,
        std=found.std,
        rms=found.rms,
        min=found.min,
        max=found.max,
        absmax=found.absmax,
        kurtosis=found.kurtosis,
        **{f"percentile_{percent}": value for percent, value in by_percent.items()},
        zero_fraction=found.zeros / total if total else None,
        nan_count=found.nan_count,
        inf_count=found.inf_count,
    )
