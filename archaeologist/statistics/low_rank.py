"""Norms and products of changes of low rank, Δ = L·R, from small Gram matrices: the product is never made.

Pure. ‖L·R‖² = tr(LᵀL · RRᵀ), where LᵀL and RRᵀ are rank by rank. The difference of two changes is a product too,
L₁R₁ - L₂R₂ = [L₁, L₁-L₂] · [R₁-R₂; R₂], whose factors are small where the changes are alike, so that nothing cancels.
Everything is float64. Called by the excavation for adapters.
"""

import math

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from archaeologist.statistics.drift import PairSums

Floats = npt.NDArray[np.float64]


class Factors(Struct, frozen=True):
    """A change as a product."""

    left: Floats
    """(rows, rank), with the scaling."""
    right: Floats
    """(rank, columns)"""

    def rows(self, first: int, last: int) -> Floats:
        """Some rows of the change, made."""
        return self.left[first:last] @ self.right


def squares(change: Factors) -> float:
    """‖Δ‖², Frobenius; NaN where a factor is not finite."""
    return inner(change, change)


def norm(change: Factors) -> float | None:
    """‖Δ‖, Frobenius; None where a factor is not finite, or the sum is too large for float64."""
    total = squares(change)
    # The sum of a change whose parts cancel may come out a little below 0.
    return math.sqrt(max(0.0, total)) if math.isfinite(total) else None


def inner(one: Factors, other: Factors) -> float:
    """⟨Δ₁, Δ₂⟩ = tr(L₁ᵀL₂ · R₂R₁ᵀ), the sum of the products of their values."""
    with np.errstate(invalid="ignore", over="ignore"):
        return math.fsum(((one.left.T @ other.left) * (one.right @ other.right.T)).ravel().tolist())


def difference(one: Factors, other: Factors) -> Factors:
    """Δ₁ - Δ₂ as a product. Ranks may differ: the smaller change counts as filled up with zeros."""
    rank = max(one.left.shape[1], other.left.shape[1])
    first, second = _filled(one, rank), _filled(other, rank)
    with np.errstate(invalid="ignore"):
        return Factors(
            np.hstack([first.left, first.left - second.left]), np.vstack([first.right - second.right, second.right])
        )


def exact(found: PairSums, target: Factors, reference: Factors) -> PairSums:
    """The sums over a pair of changes with the norms from the factors; as they are where a factor is not finite.

    Args:
        found: Summed over the values of the changes, which were rounded to float32.
        target: The target's change.
        reference: The reference's.
    """
    sums = (
        squares(difference(target, reference)),
        squares(target),
        squares(reference),
        inner(target, reference),
    )
    if not all(map(math.isfinite, sums)):
        return found
    apart, mine, theirs, products = sums
    return replace(
        found,
        difference=max(0.0, apart),
        squares=max(0.0, mine),
        reference_squares=max(0.0, theirs),
        products=products,
    )


def _filled(change: Factors, rank: int) -> Factors:
    more = rank - change.left.shape[1]
    return Factors(np.pad(change.left, ((0, 0), (0, more))), np.pad(change.right, ((0, more), (0, 0))))
