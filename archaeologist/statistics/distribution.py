"""The distribution of a tensor's values, from counts of bit patterns: exact for floats of 16 and 8 bits.

A 16-bit float has 65,536 patterns, an 8-bit one 256, so their counts are the whole distribution: every percentile is
exact, and mean, deviation, norm and kurtosis are float64 sums over at most 65,536 values. For float32 the upper 16 bits
are counted: percentiles are interpolated between the middles of bins, each at most 2⁻⁸ of a value away from it (2⁻¹³³
for subnormal ones), everything else comes from exact moments.

Used by the excavation for weights and activations. The counting itself is done by ``kernels``.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from archaeologist.statistics import float8, kernels_counts
from contracts.artifacts import PERCENTILES

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

PATTERNS: Final = 65_536
_HALF: Final = PATTERNS // 2
_FIRST_INFINITE: Final = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F80}
"""The pattern of infinity among the upper 16 bits; those above are NaN."""


class Moments(Struct, frozen=True, kw_only=True):
    """Exact sums over the finite values of a float32 tensor."""

    count: int = 0
    zeros: int = 0
    nan_count: int = 0
    inf_count: int = 0
    mean: float = 0.0
    m2: float = 0.0
    """Σ(x - mean)²"""
    m4: float = 0.0
    """Σ(x - mean)⁴"""
    squares: float = 0.0
    """Σx²"""
    min: float = math.inf
    max: float = -math.inf


class Distribution(Struct, frozen=True, kw_only=True):
    """Statistics of the finite values; null where there are none."""

    count: int
    """Finite values."""
    nan_count: int
    inf_count: int
    zeros: int
    """Values that are 0 or -0."""
    l2: float | None = None
    rms: float | None = None
    absmax: float | None = None
    min: float | None = None
    max: float | None = None
    mean: float | None = None
    std: float | None = None
    """Population standard deviation."""
    kurtosis: float | None = None
    """Excess kurtosis; null where all values are the same."""
    percentiles: tuple[float | None, ...] = (None,) * len(PERCENTILES)


def from_bits(counts: Counts, dtype: str) -> Distribution:
    """The exact distribution of floats of 16 or 8 bits. Sums are float64, central ones about the mean.

    Args:
        counts: How often each bit pattern occurs, shape (65536,); of 8-bit floats each pattern stands in it 256 times,
            one after 256 others, and the counts are added up.
        dtype: ``BF16``, ``F16`` or one of ``float8.FORMATS``.
    """
    ordered, values, nan_count, inf_count = _ordered(counts, dtype)
    if not ordered.size:
        return Distribution(count=0, nan_count=nan_count, inf_count=inf_count, zeros=0)
    count, zeros, mean, m2, m4, squares = kernels_counts.weighted(ordered, values)
    moments = Moments(
        count=count,
        zeros=zeros,
        nan_count=nan_count,
        inf_count=inf_count,
        mean=mean,
        m2=m2,
        m4=m4,
        squares=squares,
        min=float(values[0]),
        max=float(values[-1]),
    )
    return assemble(moments, percentiles(ordered, values))


def from_moments(moments: Moments, counts: Counts) -> Distribution:
    """The distribution of float32 values; percentiles between values that are off by at most 2⁻⁸ of themselves.

    Args:
        moments: Over all values.
        counts: How often each pattern of the upper 16 bits occurs, shape (65536,).
    """
    if not moments.count:
        return Distribution(count=0, nan_count=moments.nan_count, inf_count=moments.inf_count, zeros=0)
    ordered, values, _, _ = _ordered(counts, "F32")
    return assemble(moments, percentiles(ordered, np.clip(values, moments.min, moments.max)))


def percentiles(counts: Counts, values: Floats, asked: Sequence[float] = PERCENTILES) -> tuple[float, ...]:
    """Percentiles of counted values, as NumPy's method "linear" gives them for the values one by one.

    Args:
        counts: How often each value occurs, at least once altogether.
        values: Ascending.
        asked: In percent.
    """
    shares = np.asarray(asked, dtype=np.float64) / 100
    return tuple(kernels_counts.interpolated(counts, values, shares).tolist())


def assemble(moments: Moments, found: tuple[float, ...]) -> Distribution:
    """The distribution with these moments and percentiles.

    Args:
        moments: Of at least one finite value.
        found: Its percentiles.
    """
    lowest, highest = moments.min + 0.0, moments.max + 0.0  # -0 becomes 0
    variance = moments.m2 / moments.count
    # Of equal values the sums would leave rounding errors.
    is_constant = lowest == highest
    return Distribution(
        count=moments.count,
        nan_count=moments.nan_count,
        inf_count=moments.inf_count,
        zeros=moments.zeros,
        l2=math.sqrt(moments.squares),
        rms=math.sqrt(moments.squares / moments.count),
        absmax=max(abs(lowest), abs(highest)),
        min=lowest,
        max=highest,
        mean=lowest if is_constant else moments.mean,
        std=0.0 if is_constant else math.sqrt(variance),
        kurtosis=None if is_constant or variance**2 == 0 else moments.m4 / moments.count / variance**2 - 3,
        percentiles=found,
    )


def _ordered(counts: Counts, dtype: str) -> tuple[Counts, Floats, int, int]:
    """Counts that are not 0 with their values, ascending and finite; then the numbers of NaN and of infinities."""
    if dtype in float8.FORMATS:
        return _ordered_short(counts.reshape(-1, float8.PATTERNS).sum(axis=0), dtype)
    infinite = _FIRST_INFINITE[dtype]
    ordered, values = kernels_counts.ordered(counts, _magnitudes(dtype))
    inf_count = int(counts[infinite] + counts[_HALF + infinite])
    nan_count = int(counts[infinite + 1 : _HALF].sum() + counts[_HALF + infinite + 1 :].sum())
    return ordered, values, nan_count, inf_count


def _ordered_short(counts: Counts, dtype: str) -> tuple[Counts, Floats, int, int]:
    values = float8.values(dtype).astype(np.float64)
    found = np.flatnonzero((counts > 0) & np.isfinite(values))
    found = found[np.argsort(values[found], kind="stable")]
    nan_count, inf_count = int(counts[np.isnan(values)].sum()), int(counts[np.isinf(values)].sum())
    return counts[found], values[found] + 0.0, nan_count, inf_count  # -0 becomes 0


@cache
def _magnitudes(dtype: str) -> Floats:
    """The finite values from 0 on by their pattern; for float32 the middle of the values with these upper bits."""
    patterns = np.arange(_FIRST_INFINITE[dtype], dtype=np.uint16)
    if dtype == "F16":
        return patterns.view(np.float16).astype(np.float64)
    lower = 0x8000 if dtype == "F32" else 0
    magnitudes = ((patterns.astype(np.uint32) << 16) | np.uint32(lower)).view(np.float32).astype(np.float64)
    # The bin that holds zeros stands for 0: a tensor of zeros has percentiles of 0.
    magnitudes[0] = 0.0
    return magnitudes
