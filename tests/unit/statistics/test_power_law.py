"""Power laws of samples from known ones, and against a slow fit written from the paper."""

import math

import numpy as np
import numpy.typing as npt
import pytest

from archaeologist.statistics.power_law import FEWEST, fitted

Floats = npt.NDArray[np.float64]


def pareto(alpha: float, count: int, *, least: float = 1.0, seed: int = 0) -> Floats:
    """Samples of p(x) ∝ x^-alpha from ``least`` on, by inversion."""
    uniform = np.random.default_rng(seed).random(count)
    found: Floats = least * (1 - uniform) ** (-1 / (alpha - 1))
    return found


def slowly(values: list[float]) -> tuple[float, float, int, float]:
    """Every candidate with plain loops: distance, x₀, tail and alpha of the best."""
    found = []
    for least in sorted(set(values)):
        tail = sorted(value for value in values if value >= least)
        spread = math.fsum(math.log(value / least) for value in tail)
        if len(tail) < FEWEST or spread == 0:
            continue
        alpha = 1 + len(tail) / spread
        gaps = []
        for place, value in enumerate(tail):
            law = 1 - (value / least) ** (1 - alpha)
            gaps += [abs(place / len(tail) - law), abs((place + 1) / len(tail) - law)]
        found.append((max(gaps), least, len(tail), alpha))
    return min(found)


@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.0, 4.5])
def test_a_sample_of_a_power_law_gives_its_exponent(alpha: float) -> None:
    found = fitted(pareto(alpha, 4000))
    assert found is not None
    # The standard error of the estimate is (alpha - 1)/√n (Clauset et al., equation 3.2).
    assert found.alpha == pytest.approx(alpha, abs=4 * (alpha - 1) / math.sqrt(found.tail))
    assert found.distance < 0.05


def test_what_is_no_power_law_below_the_tail_is_cut_off() -> None:
    bulk = np.random.default_rng(1).uniform(0.1, 5.0, 3000)
    found = fitted(np.concatenate([bulk, pareto(2.5, 1000, least=5.0)]))
    assert found is not None
    assert found.least > 4.9
    assert found.alpha == pytest.approx(2.5, abs=4 * 1.5 / math.sqrt(found.tail))


@pytest.mark.parametrize("seed", range(3))
def test_the_fit_is_that_of_a_slow_one(seed: int) -> None:
    matrix = np.random.default_rng(seed).standard_normal((120, 300)) ** 3
    values: Floats = np.square(np.linalg.svd(matrix, compute_uv=False)).astype(np.float64)
    distance, least, tail, alpha = slowly(values.tolist())
    found = fitted(values)
    assert found is not None
    assert (found.least, found.tail) == (least, tail)
    assert found.alpha == pytest.approx(alpha, rel=1e-9)
    assert found.distance == pytest.approx(distance, rel=1e-9)


def test_scale_and_order_do_not_matter_and_zeros_take_no_part() -> None:
    values = pareto(2.2, 300)
    plain = fitted(values)
    other = fitted(np.concatenate([[0.0] * 9, 1e-12 * values[::-1]]))
    assert plain is not None
    assert other is not None
    assert other.tail == plain.tail
    assert (other.alpha, other.distance) == pytest.approx((plain.alpha, plain.distance), rel=1e-9)


def test_equal_values_start_one_tail() -> None:
    values = np.repeat(pareto(2.0, 40), 3)
    distance, least, tail, alpha = slowly(values.tolist())
    found = fitted(values)
    assert found is not None
    assert (found.least, found.tail) == (least, tail)
    assert (found.alpha, found.distance) == pytest.approx((alpha, distance), rel=1e-9)


@pytest.mark.parametrize("values", [pareto(2.0, FEWEST - 1), np.ones(200), np.zeros(200), np.zeros(0)])
def test_too_few_values_and_values_that_do_not_vary_have_no_law(values: Floats) -> None:
    assert fitted(values) is None
