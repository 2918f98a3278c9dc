"""Activation statistics against float64 computations of the values one by one."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from archaeologist.statistics import activations
from archaeologist.statistics.activations import (
    dead_neurons,
    distribution,
    distribution_of_bits,
    massive,
    outlier_channels,
    token_norm,
)
from contracts.artifacts import PERCENTILES, ActivationDistribution

Floats = npt.NDArray[np.float64]

ANY_FLOATS = arrays.arrays(
    np.float32, st.integers(0, 40), elements=st.floats(width=32, allow_nan=True, allow_infinity=True)
)
MATRICES = arrays.arrays(
    np.float32,
    st.tuples(st.integers(0, 12), st.integers(1, 9)),
    elements=st.one_of(
        st.floats(width=32, allow_nan=True, allow_infinity=True),
        st.sampled_from([np.float32(value) for value in (0, 0.125, 5.9, 6, -6, 100, 125, -200, 1e4)]),
    ),
)


def percentiles_of(found: ActivationDistribution) -> list[float | None]:
    return [getattr(found, f"percentile_{percent}") for percent in PERCENTILES]


def check(found: ActivationDistribution, everything: Floats) -> None:
    """Holds a distribution against sums without rounding over the values one by one."""
    values = everything[np.isfinite(everything)]
    assert found.count == values.size
    assert found.nan_count == sum(math.isnan(value) for value in everything.tolist())
    assert found.inf_count == sum(math.isinf(value) for value in everything.tolist())
    if not values.size:
        assert (found.mean, found.std, found.rms, found.absmax, found.kurtosis) == (None,) * 5
        assert percentiles_of(found) == [None] * len(PERCENTILES)
        return
    scale = float(np.abs(values).max())
    mean = math.fsum(values.tolist()) / values.size
    m2 = math.fsum((values - mean) ** 2) / values.size
    m4 = math.fsum((values - mean) ** 4) / values.size
    assert (found.min, found.max, found.absmax) == (values.min(), values.max(), scale)
    assert percentiles_of(found) == np.percentile(values, PERCENTILES).tolist()
    assert found.zero_fraction == np.count_nonzero(values == 0) / everything.size
    assert found.mean == pytest.approx(mean, rel=1e-12, abs=1e-14 * scale)
    assert found.std == pytest.approx(math.sqrt(m2), rel=1e-10, abs=1e-14 * scale)
    assert found.rms == pytest.approx(math.sqrt(math.fsum(values**2) / values.size), rel=1e-12)
    if math.sqrt(m2) > 1e-6 * scale and m2 > 1e-70:
        assert found.kurtosis == pytest.approx(m4 / m2**2 - 3, rel=1e-8, abs=1e-8)


@given(values=ANY_FLOATS)
def test_any_float32_values_have_the_statistics_of_the_finite_ones(values: npt.NDArray[np.float32]) -> None:
    check(distribution(values), values.astype(np.float64))


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
@given(bits=arrays.arrays(np.uint16, st.tuples(st.integers(0, 7), st.integers(0, 7)), elements=st.integers(0, 65_535)))
def test_any_16_bit_patterns_have_the_statistics_of_the_finite_values(dtype: str, bits: npt.NDArray[np.uint16]) -> None:
    with np.errstate(invalid="ignore"):
        wide = bits.view(np.float16) if dtype == "F16" else (bits.astype(np.uint32) << 16).view(np.float32)
        check(distribution_of_bits(bits, dtype), wide.astype(np.float64).ravel())


def test_hidden_states_of_several_slices_have_the_statistics_of_all() -> None:
    hidden = np.random.default_rng(0).standard_t(3, (700, 1024)).astype(np.float32) + np.float32(5)
    assert hidden.size > 2 * activations._SLICE_VALUES
    check(distribution(hidden), hidden.astype(np.float64).ravel())
    bits = (hidden.view(np.uint32) >> 16).astype(np.uint16)
    check(
        distribution_of_bits(bits, "BF16"), (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64).ravel()
    )


def test_the_values_given_are_left_as_they_were() -> None:
    hidden = np.random.default_rng(1).standard_normal((9, 5)).astype(np.float32)
    before = hidden.copy()
    distribution(hidden)
    massive(hidden * 1000)
    np.testing.assert_array_equal(hidden, before)


def test_minus_zero_counts_as_zero_and_is_shown_as_zero() -> None:
    found = distribution(np.array([-0.0, -0.0, 0.0, -0.0], np.float32))
    assert found.zero_fraction == 1
    assert [math.copysign(1, value or 0) for value in (found.min, found.max, *percentiles_of(found))] == [1] * 9


def test_equal_values_have_no_deviation_and_no_kurtosis() -> None:
    found = distribution(np.full((3, 7), 0.1, np.float32))
    assert (found.mean, found.std, found.kurtosis) == (float(np.float32(0.1)), 0, None)


def test_two_values_have_the_least_kurtosis() -> None:
    found = distribution(np.array([1, -1, 1, -1], np.float32))
    assert (found.mean, found.std, found.rms, found.kurtosis) == (0, 1, 1, -2)


def test_zeros_are_a_share_of_all_values_finite_or_not() -> None:
    assert distribution(np.array([0, np.nan, np.inf, 2], np.float32)).zero_fraction == 0.25


def test_the_largest_float32_overflows_nothing() -> None:
    largest = float(np.finfo(np.float32).max)
    found = distribution(np.array([largest, -largest, largest, 0], np.float32))
    assert found.rms == pytest.approx(largest * math.sqrt(3 / 4))
    assert found.kurtosis is not None
    assert math.isfinite(found.kurtosis)


@given(hidden=MATRICES)
def test_massive_activations_are_those_of_the_definition(hidden: npt.NDArray[np.float32]) -> None:
    found = []
    for row in hidden.astype(np.float64).tolist():
        magnitudes = sorted(abs(value) for value in row if math.isfinite(value))
        middle = len(magnitudes) // 2
        for channel, value in enumerate(row):
            if math.isfinite(value) and abs(value) > 100:
                median = (magnitudes[middle] + magnitudes[~middle]) / 2
                found += [channel] if abs(value) >= 1000 * median else []
    assert massive(hidden) == (len(found), tuple(sorted(set(found))))


def test_a_planted_massive_channel_is_found_and_values_that_are_only_large_are_not() -> None:
    hidden = np.random.default_rng(2).standard_normal((50, 64)).astype(np.float32) * np.float32(0.1)
    hidden[7, 11], hidden[8, 11], hidden[9, 3] = 500, -500, 99
    hidden[10] *= 10_000  # all of the position is large: none of it stands out
    assert massive(hidden) == (2, (11,))


@given(hidden=MATRICES)
def test_outlier_channels_are_those_of_the_definition(hidden: npt.NDArray[np.float32]) -> None:
    expected = []
    for channel, column in enumerate(hidden.T.tolist()):
        finite = [abs(value) for value in column if math.isfinite(value)]
        large = sum(value >= 6 for value in finite)
        expected += [channel] if large and large / len(finite) >= 0.06 else []
    assert outlier_channels(hidden) == tuple(expected)


@pytest.mark.parametrize(("positions", "large", "is_outlier"), [(50, 3, True), (51, 3, False), (50, 2, False)])
def test_six_percent_of_the_positions_make_an_outlier_channel(positions: int, large: int, *, is_outlier: bool) -> None:
    hidden = np.zeros((positions, 4), np.float32)
    hidden[:large, 2] = -6
    assert outlier_channels(hidden) == ((2,) if is_outlier else ())


def test_outlier_channels_and_norms_are_the_same_however_the_positions_are_sliced() -> None:
    hidden = np.random.default_rng(3).normal(0, 3.2, (600, 1000)).astype(np.float32)
    assert hidden.size > 2 * activations._SLICE_VALUES
    expected = np.flatnonzero((np.abs(hidden) >= 6).mean(axis=0) >= 0.06)
    assert 0 < expected.size < 1000
    assert outlier_channels(hidden) == tuple(expected.tolist())
    norms = [math.sqrt(math.fsum(row**2)) for row in hidden.astype(np.float64)]
    assert token_norm(hidden) == pytest.approx(math.fsum(norms) / len(norms), rel=1e-13)


def test_a_norm_is_the_mean_over_positions_that_are_finite() -> None:
    hidden = np.array([[3, 4], [np.nan, 1], [6, 8], [np.inf, 0]], np.float32)
    assert token_norm(hidden) == 7.5
    assert token_norm(hidden[1:2]) is None


def test_dead_neurons_are_those_far_below_the_median() -> None:
    largest = np.array([2.0, 2.5, 0.0, 1.9e-3, 2.1e-3, 3.0, np.inf, np.nan, 5.0], np.float32)
    assert dead_neurons(largest) == 2  # the median of the finite ones is 2
    assert dead_neurons(np.zeros(5, np.float32)) == 5
    assert dead_neurons(np.full(3, np.nan, np.float32)) == 0


def test_no_positions_have_no_statistics() -> None:
    nothing = np.zeros((0, 8), np.float32)
    assert distribution(nothing) == ActivationDistribution()
    assert distribution_of_bits(np.zeros((0, 8), np.uint16), "BF16") == ActivationDistribution()
    assert (massive(nothing), outlier_channels(nothing), token_norm(nothing)) == ((0, ()), (), None)
