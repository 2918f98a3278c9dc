"""How many directions a matrix uses: its largest singular value and three ranks that are no whole numbers.

From the Gram matrix of the smaller side, which is summed over slices of the larger one, so that the matrix itself is
never needed whole. Called by the excavation for the change of each weight matrix. NumPy, float64. Definitions and
traps are in docs/statistics.md.
"""

import math
from collections.abc import Iterable

import numpy as np

from archaeologist.statistics.distribution import Floats
from contracts.artifacts import Spectrum


def gram(slices: Iterable[Floats], *, side: int) -> Floats:
    """The sum of SᵀS over slices S, (side, side); what XᵀX is for a matrix X of these rows.

    Args:
        slices: (any number, side), float64.
        side: Columns of each.
    """
    total: Floats = np.zeros((side, side))
    for rows in slices:
        total += rows.T @ rows
    return total


def eigenvalues(products: Floats) -> Floats:
    """Squared singular values of X from XᵀX, as ``settled`` has them.

    Args:
        products: (side, side), symmetric and finite.

    Raises:
        numpy.linalg.LinAlgError: The iteration does not converge.
    """
    return settled(np.linalg.eigvalsh(products).astype(np.float64, copy=False))


def settled(found: Floats) -> Floats:
    """Eigenvalues of XᵀX as they came, ascending, without what rounding left of zeros.

    A value counts as 0 below side·ε of the largest: singular values below about 5e-7 of the largest at a side of 1024.
    """
    least = (float(found[-1]) if found.size else 0.0) * len(found) * np.finfo(np.float64).eps
    return np.where(found > max(least, 0.0), found, 0.0)


def spectrum(squares: Floats) -> Spectrum:
    """The spectrum of X from its squared singular values. Ranks are from 1 to the smaller side, and None where X is 0.

    ``sigma_1`` is the root of the largest eigenvalue; ``stable_rank`` ‖X‖²/σ₁² (Rudelson and Vershynin 2007, arXiv
    math/0503442); ``participation_rank`` ‖X‖⁴/‖XXᵀ‖² = (Σσ²)²/Σσ⁴; ``effective_rank`` exp of the entropy of σ/Σσ (Roy
    and Vetterli, EUSIPCO 2007). Norms are Frobenius'.

    Args:
        squares: Of the smaller side, ascending, as ``settled`` has them.
    """
    largest = float(squares[-1]) if squares.size else 0.0
    if largest == 0:
        return Spectrum(sigma_1=0.0)
    # Relative to the largest: a change of 1e-100 has ranks too.
    relative = squares[squares > 0] / largest
    total = float(relative.sum())
    shares = np.sqrt(relative)
    shares /= shares.sum()
    return Spectrum(
        sigma_1=math.sqrt(largest),
        stable_rank=total,
        participation_rank=total * total / float(relative @ relative),
        effective_rank=math.exp(-float(shares @ np.log(shares))),
    )
