"""The tail of a matrix's eigenvalues as a power law: its exponent alpha.

Heavy-tailed self-regularisation (Martin and Mahoney, arXiv 1901.08276 and 1810.01075) reads it as a sign of how far
training got. Called by the excavation with the eigenvalues of WᵀW. Pure NumPy, float64. Definitions and traps are in
docs/statistics.md.
"""

from typing import Final

import numpy as np
from msgspec import Struct

from archaeologist.statistics.distribution import Floats

FEWEST: Final = 50
"""Eigenvalues in a tail: with fewer the estimate cannot be relied on (arXiv 0706.1062, section 3)."""


class PowerLaw(Struct, frozen=True, kw_only=True):
    """The law p(x) ∝ x^-alpha that the values from ``least`` on follow best."""

    alpha: float
    least: float
    tail: int
    """Values from ``least`` on."""
    distance: float
    """Kolmogorov-Smirnov distance between the tail and the law."""


def fitted(values: Floats) -> PowerLaw | None:
    """The power law of the largest values, by maximum likelihood (Clauset, Shalizi and Newman, arXiv 0706.1062).

    For each candidate x₀ among the values, alpha is 1 + n / Σ ln(x/x₀) over the n values from x₀ on; the x₀ is taken
    whose tail has the smallest Kolmogorov-Smirnov distance to its law, of equal ones the smallest x₀. The distance is
    the largest on either side of each of the empirical distribution's steps.

    Args:
        values: Any number, any order, finite; those that are not above 0 take no part.

    Returns:
        None with fewer than ``FEWEST`` values above 0, or where no tail of so many varies.
    """
    ordered = np.sort(values[values > 0])
    logs = np.log(ordered)
    best: PowerLaw | None = None
    # Equal values start one tail: the one that has them all.
    starts = np.flatnonzero(np.diff(ordered, prepend=-np.inf) > 0)
    for start in starts[starts <= len(ordered) - FEWEST].tolist():
        found = _from(logs[start:], least=float(ordered[start]))
        if found is not None and (best is None or found.distance < best.distance):
            best = found
    return best


def _from(logs: Floats, *, least: float) -> PowerLaw | None:
    """The law of a tail, given its logarithms in ascending order."""
    above = logs - logs[0]
    total = float(above.sum())
    if total <= 0:
        return None
    count = len(logs)
    slope = count / total
    law = -np.expm1(-slope * above)
    steps = np.arange(count + 1) / count
    distance = max(float((law - steps[:-1]).max()), float((steps[1:] - law).max()))
    return PowerLaw(alpha=1 + slope, least=least, tail=count, distance=distance)
