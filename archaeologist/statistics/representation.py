"""The geometry of hidden states: how many directions they use, how alike they are, how like the reference's.

Called by the excavation with the outputs of one block at a time. Pure NumPy, float64. Everything here is undefined, and
None, where a value is not finite. Definitions and traps are in docs/statistics.md.
"""

import math
from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from archaeologist.statistics.activations import Hidden, row_slices, squared_norms
from archaeologist.statistics.distribution import Floats
from contracts.artifacts import Similarity

Mask = npt.NDArray[np.bool_]

OUTLIER_CHANNELS: Final = 3
"""Channels of each side that ``cka_without_outliers`` drops: models have few massive ones. A judgement: no source."""
_LEAST_POSITIONS: Final = 4
"""The unbiased estimate divides by n - 3."""
_ROUNDING: Final = 1e-12
"""A similarity below this share of its terms is what rounding left of 0."""


def rankme(hidden: Hidden) -> float | None:
    """Effective rank: exp of the entropy of σ/Σσ (arXiv 2210.02885).

    Not centred, as in the paper; its ε of 1e-7 is left out, so that one direction has a rank of exactly 1. σ are the
    roots of the eigenvalues of the smaller Gram matrix: those below about 5e-7 of the largest are rounding, and 0.

    Args:
        hidden: (positions, channels). The value grows with the positions: compare only with the same number.

    Returns:
        The rank, from 1 to the smaller side; None where all values are 0, one is not finite, or there are none.
    """
    rows = hidden.astype(np.float64)
    if not rows.size or not np.isfinite(rows).all():
        return None
    squares = np.linalg.eigvalsh(rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows)
    largest = float(squares[-1])
    if largest <= 0:
        return None
    sigmas = np.sqrt(squares[squares > largest * max(rows.shape) * np.finfo(np.float64).eps])
    shares = sigmas / sigmas.sum()
    return math.exp(-float(shares @ np.log(shares)))


def anisotropy(hidden: Hidden) -> float | None:
    """Mean cosine between two positions' states: (‖Σx̂‖² - n) / (n(n-1)).

    Positions of norm 0 have no direction and are left out. None with fewer than two others, or where a value is not
    finite.
    """
    count, direction = 0, np.zeros(hidden.shape[1])
    for rows in row_slices(hidden):
        states = rows.astype(np.float64)
        norms = np.sqrt(squared_norms(states))
        if not np.isfinite(norms).all():
            return None
        has_direction = norms > 0
        count += int(has_direction.sum())
        direction += (1 / norms[has_direction]) @ states[has_direction]
    return float((direction @ direction - count) / (count * (count - 1))) if count > 1 else None


def feature_variance(hidden: Hidden) -> float | None:
    """Mean over the channels of the population variance over positions; None with fewer than two positions."""
    if len(hidden) < 2 or not hidden.shape[1]:  # noqa: PLR2004 - one position does not vary
        return None
    mean = hidden.mean(axis=0, dtype=np.float64)
    if not np.isfinite(mean).all():
        return None
    total = math.fsum(float(squared_norms(rows - mean).sum()) for rows in row_slices(hidden))
    return total / hidden.size


def similarity(
    x: Hidden, y: Hidden, *, skills: Mapping[str, Mask] | None = None, channels: int = OUTLIER_CHANNELS
) -> Similarity:
    """Debiased linear CKA of two models' hidden states, over all positions, by skill, and without outlier channels.

    All come from one Gram matrix a side; ``debiased_cka`` and ``cka_without_outliers`` are the same numbers one by one.

    Args:
        x: (positions, channels).
        y: The other model's, for the same positions; the number of channels may differ.
        skills: Which positions, by skill; (positions,) each.
        channels: How many outlier channels of each side are dropped.
    """
    groups = skills or {}
    if not _is_comparable(x, y):
        return Similarity(positions=len(x), by_skill=dict.fromkeys(groups))
    mine, theirs = _outliers(x, y, channels=channels)
    gram, other = _gram(_without(x, mine)), _gram(_without(y, theirs))
    cka_without = _cka(gram, other)
    # Added, not subtracted from the whole: an outlier's squares would take the others' digits with them.
    gram += _gram(x[:, mine])
    other += _gram(y[:, theirs])
    return Similarity(
        cka=_cka(gram, other),
        cka_without_outliers=cka_without,
        positions=len(x),
        by_skill={skill: _cka(gram[np.ix_(mask, mask)], other[np.ix_(mask, mask)]) for skill, mask in groups.items()},
    )


def debiased_cka(x: Hidden, y: Hidden) -> float | None:
    """Linear CKA with the unbiased estimate of HSIC (arXiv 2010.15327; Song et al. 2012), in [-1, 1].

    1: the same up to rotation, shift and scale; about 0: unrelated, whatever the number of positions. The memory is
    that of two Gram matrices, n² values each, and of the centred states, all float64.

    Args:
        x: (positions, channels).
        y: The other model's, for the same positions; the number of channels may differ.

    Returns:
        None below 4 positions, where a value is not finite, or where a side does not vary.
    """
    return _cka(_gram(x), _gram(y)) if _is_comparable(x, y) else None


def cka_without_outliers(x: Hidden, y: Hidden, *, channels: int = OUTLIER_CHANNELS) -> float | None:
    """``debiased_cka`` without the channels that have the largest magnitudes on either side; None also if none is left.

    Sides of one width lose the same channels, at most twice ``channels``; sides of two widths each their own.
    """
    if not _is_comparable(x, y):
        return None
    mine, theirs = _outliers(x, y, channels=channels)
    return _cka(_gram(_without(x, mine)), _gram(_without(y, theirs)))


def _is_comparable(x: Hidden, y: Hidden) -> bool:
    if len(x) != len(y):
        msg = f"hidden states of {len(x)} and {len(y)} positions cannot be compared; give both models the same tokens"
        raise ValueError(msg)
    return len(x) >= _LEAST_POSITIONS and bool(np.isfinite(x).all() and np.isfinite(y).all())


def _outliers(x: Hidden, y: Hidden, *, channels: int) -> tuple[list[int], list[int]]:
    """Each side's channels with the largest magnitudes, ascending."""
    mine, theirs = (
        np.argsort(-np.maximum(side.max(axis=0), -side.min(axis=0)), kind="stable")[:channels].tolist()
        for side in (x, y)
    )
    if x.shape[1] == y.shape[1]:
        mine = theirs = sorted({*mine, *theirs})
    return mine, theirs


def _without(side: Hidden, channels: list[int]) -> Hidden:
    return np.delete(side, channels, axis=1)


def _gram(states: Hidden) -> Floats:
    """XXᵀ of the centred states, its diagonal 0.

    The unbiased HSIC is the same with and without centring; centred, a mean that all positions share takes no digits.
    """
    centred = states.astype(np.float64)
    centred -= centred.mean(axis=0)
    gram: Floats = centred @ centred.T
    np.fill_diagonal(gram, 0)
    return gram


def _cka(gram: Floats, other: Floats) -> float | None:
    if len(gram) < _LEAST_POSITIONS:
        return None
    mine, theirs = _hsic(gram, gram), _hsic(other, other)
    if mine <= 0 or theirs <= 0:
        return None
    found = _hsic(gram, other) / math.sqrt(mine) / math.sqrt(theirs)
    return min(1.0, max(-1.0, found))


def _hsic(gram: Floats, other: Floats) -> float:
    """n(n-3) times the unbiased HSIC of Gram matrices whose diagonals are 0; the factor cancels in CKA."""
    n = len(gram)
    sums, other_sums = gram.sum(axis=1), other.sum(axis=1)
    products = float(np.vdot(gram, other))
    total = float(sums.sum()) * float(other_sums.sum()) / ((n - 1) * (n - 2))
    found = products + total - 2 / (n - 2) * float(sums @ other_sums)
    return found if abs(found) > _ROUNDING * abs(products) else 0.0
