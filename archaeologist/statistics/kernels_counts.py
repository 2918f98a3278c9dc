"""What a tensor ends with, compiled: from counts of bit patterns to sums and percentiles, and the median of its rows.

A few thousand values a tensor, but in NumPy a dozen steps that each wait for the interpreter, while another thread of
the walk wants it. Sums are formed one value after the other, ascending, so they are the same on every processor.

``distribution`` and ``weights`` call it and say what the numbers mean.
"""

from typing import Final

import numpy as np
from numba import njit

_STRETCH: Final = 64
"""Patterns looked at together: most stretches of a tensor's patterns occur nowhere in it."""
_MIDDLE: Final = 0.5


def load() -> None:
    """Takes the compiled code from the cache, or compiles it."""
    counts, values = ordered(np.ones(4, np.int64), np.ones(2))
    weighted(counts, values)
    interpolated(counts, values, np.zeros(1))
    at_most(values, 0.0)


@njit(nogil=True, cache=True)
def ordered(counts, magnitudes):
    """Counts that are not 0 and their values, ascending.

    Args:
        counts: int64, by pattern; its second half are the first half's with the sign.
        magnitudes: float64, of the finite patterns from 0 on.
    """
    half, finite = counts.size // 2, magnitudes.size
    kept, values = np.empty(2 * finite, np.int64), np.empty(2 * finite)
    found = 0
    for stop in range(finite, 0, -_STRETCH):
        first = max(0, stop - _STRETCH)
        if _is_empty(counts[half + first : half + stop]):
            continue
        for pattern in range(stop - 1, first - 1, -1):
            if counts[half + pattern]:
                kept[found], values[found] = counts[half + pattern], 0.0 - magnitudes[pattern]
                found += 1
    for first in range(0, finite, _STRETCH):
        stop = min(first + _STRETCH, finite)
        if _is_empty(counts[first:stop]):
            continue
        for pattern in range(first, stop):
            if counts[pattern]:
                kept[found], values[found] = counts[pattern], magnitudes[pattern]
                found += 1
    return kept[:found].copy(), values[:found].copy()


@njit(nogil=True, cache=True)
def _is_empty(counts):
    together = np.int64(0)
    for i in range(counts.size):  # not over its values: that is not vectorised
        together |= counts[i]
    return together == 0


@njit(nogil=True, cache=True)
def weighted(counts, values):
    """Number, zeros, mean, Σ(x-mean)², Σ(x-mean)⁴ and Σx² of values that occur as often as ``counts`` says."""
    number, zeros, total, squares = 0, 0, 0.0, 0.0
    for i in range(counts.size):
        number += counts[i]
        total += counts[i] * values[i]
        squares += counts[i] * values[i] * values[i]
        if values[i] == 0:
            zeros += counts[i]
    mean, m2, m4 = total / number, 0.0, 0.0
    for i in range(counts.size):
        square = (values[i] - mean) ** 2
        m2 += counts[i] * square
        m4 += counts[i] * square * square
    return number, zeros, mean, m2, m4, squares


@njit(nogil=True, cache=True)
def interpolated(counts, values, shares):
    """Percentiles as NumPy's method "linear" gives them for the values one by one; ``shares`` of 1."""
    ends = np.cumsum(counts)
    found = np.empty(shares.size)
    for i in range(shares.size):
        position = (ends[-1] - 1) * shares[i]
        below = np.floor(position)
        lower = values[np.searchsorted(ends, np.int64(below), side="right")]
        upper = values[np.searchsorted(ends, np.int64(np.ceil(position)), side="right")]
        share, step = position - below, upper - lower
        # From the nearer end, like NumPy's own interpolation, so that the result is the same to the last bit.
        found[i] = lower + step * share if share < _MIDDLE else upper - step * (1 - share)
    return found


@njit(nogil=True, cache=True)
def at_most(squares, share):
    """How many roots are at most this share of the median root."""
    roots = np.sqrt(squares)
    limit = share * np.median(roots)
    found = 0
    for root in roots:
        found += root <= limit
    return found
