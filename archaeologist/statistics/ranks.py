"""Rank correlation of one series with many, and how often chance gives as much. Pure numbers, float64.

Spearman's ρ is Pearson's correlation of the ranks, equal values sharing the mean of theirs. Whether the largest |ρ| of
many series is more than chance is asked by permuting the one series against all others at once and taking the largest
|ρ| each time (Westfall and Young 1993, single-step maxT): p of a series is the share of orders whose largest |ρ| is at
least its own, so it is adjusted for their number, however they depend on each other. It assumes that under chance every
order of the one series is as likely as any other.
"""

import itertools
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

EXACT_UP_TO: Final = 8
"""Values, of which all 40,320 orders are tried; 9 have 362,880."""
RANDOM_ORDERS: Final = 9_999
LEAST_RANDOM_ORDERS: Final = 499
MOST_DRAWN: Final = 1_000_000
"""Values in the random orders of a long series, so that a summary of thousands of checkpoints takes no second."""
SEED: Final = 20251128

_CHUNK: Final = 4_096
_ROUNDING: Final = 1e-9
"""Two orders with the same |ρ| differ by the order of additions."""

Floats = npt.NDArray[np.float64]
Orders = npt.NDArray[np.int32]


class Tested(NamedTuple):
    """How often chance gives as much."""

    spearman: tuple[Floats, ...]
    """For each family, as ``spearman`` gives it."""
    p_adjusted: tuple[Floats, ...]
    """For each family, one a series; NaN where ρ is."""
    method: Literal["exact", "monte_carlo"]
    orders: int


def ranks(values: Floats) -> Floats:
    """Ranks from 1 of each row; equal values share the mean of theirs.

    Args:
        values: Shape (series, values), finite.
    """
    found = np.empty_like(values)
    for number, row in enumerate(values):
        _, places, counts = np.unique(row, return_inverse=True, return_counts=True)
        found[number] = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return found


def spearman(one: Floats, many: Floats) -> Floats:
    """ρ of one series with each of many; NaN where one of the two does not vary.

    Args:
        one: Shape (values,), finite.
        many: Shape (series, values), finite.
    """
    return _correlation(_standardized(one[None, :])[0], _standardized(many))


def permuted(one: Floats, families: Sequence[Floats], *, seed: int = SEED) -> Tested:
    """How often chance gives a ρ of ``spearman`` that large, adjusted for the number of series in its family.

    All orders are tried up to ``EXACT_UP_TO`` values. Beyond, random ones of a fixed seed, the given order counted
    among them, so that p is never 0 (Phipson and Smyth 2010).

    Args:
        one: Shape (values,), finite: what is put into another order.
        families: Each of shape (series, values), finite.
        seed: Of the random orders.
    """
    standard, series = _standardized(one[None, :])[0], [_standardized(many) for many in families]
    found = tuple(_correlation(standard, many) for many in series)
    observed = [np.abs(values) for values in found]
    reached = [np.zeros(len(many), np.int64) for many in families]
    orders = _all_orders(len(one)) if len(one) <= EXACT_UP_TO else _random_orders(len(one), seed)
    for chunk in _chunks(orders):
        shuffled = standard[chunk]
        for number, many in enumerate(series):
            largest = np.abs(shuffled @ many.T).max(axis=1, initial=0.0)
            # Sorted, so that the counts need no comparison of each with each.
            places = np.searchsorted(np.sort(largest), observed[number] - _ROUNDING)
            reached[number] += len(largest) - places
    own = 0 if len(one) <= EXACT_UP_TO else 1
    adjusted = tuple(
        np.where(np.isfinite(values), (counts + own) / (len(orders) + own), np.nan)
        for values, counts in zip(observed, reached, strict=True)
    )
    return Tested(found, adjusted, "monte_carlo" if own else "exact", len(orders))


def _correlation(mine: Floats, theirs: Floats) -> Floats:
    """Of standardized ranks."""
    found = np.clip(theirs @ mine, -1.0, 1.0)
    return np.where(theirs.any(axis=1) & mine.any(), found, np.nan)


def _standardized(values: Floats) -> Floats:
    """The ranks of each row with a mean of 0 and a norm of 1; all 0 where they do not vary."""
    centred = ranks(values) - (values.shape[1] + 1) / 2
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    found: Floats = np.divide(centred, norms, out=np.zeros_like(centred), where=norms > 0)
    return found


@lru_cache(maxsize=EXACT_UP_TO)
def _all_orders(count: int) -> Orders:
    return np.array(list(itertools.permutations(range(count))), np.int32)


@lru_cache(maxsize=2)
def _random_orders(count: int, seed: int) -> Orders:
    """Random orders of so many values, one a row; fewer of a long series."""
    number = max(LEAST_RANDOM_ORDERS, min(RANDOM_ORDERS, MOST_DRAWN // count))
    orders = np.tile(np.arange(count, dtype=np.int32), (number, 1))
    return np.random.default_rng([seed, count]).permuted(orders, axis=1)


def _chunks(orders: Orders) -> Iterator[Orders]:
    for start in range(0, len(orders), _CHUNK):
        yield orders[start : start + _CHUNK]
