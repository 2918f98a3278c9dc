"""Spectra against NumPy's SVD of the matrix itself, by hand, and as properties."""

import math

import numpy as np
import numpy.typing as npt
import pytest

from archaeologist.statistics.spectrum import eigenvalues, gram, spectrum
from contracts.artifacts import Spectrum

Floats = npt.NDArray[np.float64]
EXACT = 1e-9


def matrix(rows: int, columns: int, *, decay: float = 0.0, seed: int = 0) -> Floats:
    """Normally distributed, its columns scaled down one after the other."""
    random = np.random.default_rng(seed)
    found: Floats = random.standard_normal((rows, columns)) * np.exp(-decay * np.arange(columns))
    return found


def oracle(x: Floats) -> tuple[float, float, float, float]:
    sigmas = np.linalg.svd(x, compute_uv=False)
    squares = sigmas**2
    shares = [share for share in (sigmas / math.fsum(sigmas)).tolist() if share > 0]
    return (
        float(sigmas[0]),
        math.fsum(squares) / float(squares[0]),
        math.fsum(squares) ** 2 / math.fsum(squares**2),
        math.exp(-math.fsum(share * math.log(share) for share in shares)),
    )


def of(products: Floats) -> Spectrum:
    return spectrum(eigenvalues(products))


def numbers(found: Spectrum) -> tuple[float | None, ...]:
    return found.sigma_1, found.stable_rank, found.participation_rank, found.effective_rank


@pytest.mark.parametrize("decay", [0.0, 0.05, 0.4])
def test_a_spectrum_is_the_svds(decay: float) -> None:
    x = matrix(300, 40, decay=decay) * 1e-3
    assert numbers(of(x.T @ x)) == pytest.approx(oracle(x), rel=1e-7 if decay > 0.1 else EXACT)


def test_the_gram_matrix_of_slices_is_that_of_the_whole_however_it_is_cut() -> None:
    x = matrix(101, 13)
    for step in (1, 7, 101):
        found = gram((x[start : start + step] for start in range(0, 101, step)), side=13)
        assert np.allclose(found, x.T @ x, rtol=1e-13, atol=1e-13)


def test_one_direction_has_rank_one_and_equal_ones_the_smaller_side() -> None:
    line = np.outer(np.arange(1.0, 6.0), [3.0, 4.0])
    assert numbers(of(line.T @ line)) == pytest.approx((math.sqrt(55) * 5, 1, 1, 1), rel=EXACT)
    assert numbers(of(4 * np.eye(7))) == pytest.approx((2, 7, 7, 7), rel=EXACT)


def test_two_by_two_by_hand() -> None:
    # Singular values 3 and 1: 10/9, 100/82, and the entropy of 3/4 and 1/4.
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    expected = (3.0, 10 / 9, 100 / 82, math.exp(entropy))
    assert numbers(of(np.diag([9.0, 1.0]))) == pytest.approx(expected, rel=EXACT)


def test_scale_changes_sigma_only_even_where_fourth_powers_would_vanish() -> None:
    x = matrix(30, 10)
    small = of(x.T @ x * 1e-200)
    assert numbers(small)[1:] == pytest.approx(numbers(of(x.T @ x))[1:], rel=EXACT)
    assert small.sigma_1 == pytest.approx(oracle(x)[0] * 1e-100, rel=EXACT)


def test_a_change_of_nothing_has_a_sigma_of_zero_and_no_rank() -> None:
    assert of(np.zeros((3, 3))) == Spectrum(sigma_1=0.0)


def test_what_rounding_left_of_zeros_is_zero() -> None:
    x = matrix(200, 3) @ matrix(3, 50, seed=1)
    assert np.count_nonzero(eigenvalues(x.T @ x)) == 3
