"""Rank correlation and its permutation test against a slow second implementation in plain Python."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest

from archaeologist.statistics import ranks
from archaeologist.statistics.ranks import Floats, permuted, spearman


def slow_ranks(values: Sequence[float]) -> list[float]:
    """Each value's place among the sorted ones, equal values at the mean of theirs."""
    ordered = sorted(values)
    return [ordered.index(value) + 1 + (ordered.count(value) - 1) / 2 for value in values]


def slow_spearman(one: Sequence[float], other: Sequence[float]) -> float:
    mine, theirs = slow_ranks(one), slow_ranks(other)
    mean = (len(one) + 1) / 2
    dot = math.fsum((a - mean) * (b - mean) for a, b in zip(mine, theirs, strict=True))
    norms = [math.sqrt(math.fsum((value - mean) ** 2 for value in side)) for side in (mine, theirs)]
    return dot / (norms[0] * norms[1])


def slow_p(one: Sequence[float], many: Sequence[Sequence[float]]) -> list[float]:
    """Adjusted over all orders, one by one."""
    observed = [abs(slow_spearman(one, other)) for other in many]
    largest = [max(abs(slow_spearman(order, other)) for other in many) for order in itertools.permutations(one)]
    return [sum(value >= own - 1e-9 for value in largest) / len(largest) for own in observed]


def series(count: int, length: int, *, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((count, length))


def test_equal_values_share_the_mean_of_their_ranks() -> None:
    assert ranks.ranks(np.array([[3.0, 1.0, 3.0, 2.0], [5.0, 5.0, 5.0, 5.0]])).tolist() == [
        [3.5, 1.0, 3.5, 2.0],
        [2.5, 2.5, 2.5, 2.5],
    ]


@pytest.mark.parametrize("seed", range(5))
def test_spearman_equals_the_slow_one_also_with_ties(seed: int) -> None:
    many = np.round(series(4, 12, seed=seed), 0)
    one = np.round(series(1, 12, seed=seed + 100)[0], 1)
    expected = [slow_spearman(one.tolist(), other.tolist()) for other in many]
    assert spearman(one, many).tolist() == pytest.approx(expected, abs=1e-12)


def test_what_rises_together_is_one_whatever_the_scale() -> None:
    one = np.array([1.0, 2.0, 10.0, 11.0])
    found = spearman(one, np.array([one**3, -one, np.ones(4)]))
    assert found[:2].tolist() == pytest.approx([1.0, -1.0])
    assert np.isnan(found[2])
    assert np.isnan(spearman(np.ones(4), series(2, 4))).all()


@pytest.mark.parametrize("seed", range(3))
def test_the_exact_p_equals_all_orders_tried_one_by_one(seed: int) -> None:
    one, many = series(1, 6, seed=seed)[0], np.round(series(3, 6, seed=seed + 50), 1)
    found = permuted(one, [many])
    assert (found.method, found.orders) == ("exact", 720)
    assert found.p_adjusted[0].tolist() == pytest.approx(slow_p(one.tolist(), many.tolist()), abs=1e-12)


def test_the_smallest_p_of_one_series_is_two_of_all_orders() -> None:
    for count in (4, 5, 6):
        one = np.arange(count, dtype=np.float64)
        assert permuted(one, [one[None, :]]).p_adjusted[0][0] == pytest.approx(2 / math.factorial(count))


def test_random_orders_come_close_to_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    one, many = series(1, 8, seed=3)[0], series(5, 8, seed=4)
    exact = permuted(one, [many])
    monkeypatch.setattr(ranks, "EXACT_UP_TO", 7)
    random = permuted(one, [many])
    assert (exact.method, random.method) == ("exact", "monte_carlo")
    assert random.orders == ranks.RANDOM_ORDERS
    # Four standard errors of a share of 9,999.
    assert random.p_adjusted[0] == pytest.approx(exact.p_adjusted[0], abs=4 * math.sqrt(0.25 / 9_999))


def test_random_orders_are_the_same_each_time_and_p_is_never_zero() -> None:
    one = np.arange(30, dtype=np.float64)
    first, again = (permuted(one, [one[None, :], series(2, 30)]) for _ in range(2))
    assert first.p_adjusted[0][0] == pytest.approx(1 / (ranks.RANDOM_ORDERS + 1))
    assert [p.tolist() for p in first.p_adjusted] == [p.tolist() for p in again.p_adjusted]


def test_p_is_uniform_where_there_is_nothing() -> None:
    smallest = [permuted(series(1, 12, seed=seed)[0], [series(6, 12, seed=seed + 500)]) for seed in range(60)]
    below = sum(found.p_adjusted[0].min() <= 0.2 for found in smallest)
    # Of 60 a fifth is 12, with a standard deviation of 3.1.
    assert 2 <= below <= 24


def test_a_series_that_never_changes_has_no_p_and_disturbs_none() -> None:
    one, many = series(1, 7)[0], series(2, 7, seed=9)
    with_still = np.concatenate([many, np.ones((1, 7))])
    found = permuted(one, [many, with_still])
    assert np.isnan(found.p_adjusted[1][2])
    assert found.p_adjusted[1][:2].tolist() == found.p_adjusted[0].tolist()


def test_long_series_get_fewer_orders() -> None:
    one = np.arange(2_500, dtype=np.float64)
    assert permuted(one, [one[None, :]]).orders == ranks.LEAST_RANDOM_ORDERS
