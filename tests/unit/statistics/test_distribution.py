"""Distributions from counts against NumPy's own on the values one by one."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from archaeologist.statistics.distribution import Moments, from_bits, from_moments, percentiles
from contracts.artifacts import PERCENTILES

Patterns = npt.NDArray[np.uint16]

PATTERNS = arrays.arrays(np.uint16, st.integers(1, 60), elements=st.integers(0, 65_535))


def _values(patterns: Patterns, dtype: str) -> npt.NDArray[np.float64]:
    if dtype == "F16":
        with np.errstate(invalid="ignore"):
            return patterns.view(np.float16).astype(np.float64)
    with np.errstate(invalid="ignore"):
        return (patterns.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def _counts(patterns: Patterns) -> npt.NDArray[np.int64]:
    return np.bincount(patterns, minlength=65_536).astype(np.int64)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
@given(patterns=PATTERNS)
def test_any_bits_give_the_statistics_of_their_finite_values(dtype: str, patterns: Patterns) -> None:
    found, everything = from_bits(_counts(patterns), dtype), _values(patterns, dtype)
    values = everything[np.isfinite(everything)]
    assert (found.count, found.nan_count) == (values.size, np.isnan(everything).sum())
    assert found.inf_count == np.isinf(everything).sum()
    assert found.zeros == np.count_nonzero(values == 0)
    if not values.size:
        assert found.l2 is None
        assert found.percentiles == (None,) * len(PERCENTILES)
        return
    assert (found.min, found.max, found.absmax) == (values.min(), values.max(), np.abs(values).max())
    assert found.percentiles == tuple(np.percentile(values, PERCENTILES))
    assert found.l2 == pytest.approx(math.sqrt(math.fsum((values**2).tolist())), rel=1e-12)
    assert found.mean == pytest.approx(
        math.fsum(values.tolist()) / values.size, rel=1e-9, abs=1e-12 * (found.absmax or 0)
    )
    assert found.std == pytest.approx(values.std(), rel=1e-9, abs=1e-12 * (found.absmax or 0))


@given(
    counts=st.lists(st.integers(1, 5), min_size=1, max_size=20),
    asked=st.floats(0, 100),
)
def test_a_percentile_of_counted_values_is_numpys_to_the_last_bit(counts: list[int], asked: float) -> None:
    values = np.cumsum(np.linspace(0.1, 0.7, len(counts)))
    repeated = np.repeat(values, counts)
    assert percentiles(np.array(counts), values, (asked,)) == (np.percentile(repeated, asked),)


def test_minus_zero_counts_as_zero_and_is_shown_as_zero() -> None:
    found = from_bits(_counts(np.array([0x8000, 0x8000, 0x0000], np.uint16)), "BF16")
    assert found.zeros == 3
    assert math.copysign(1, found.min or 0) == 1
    assert math.copysign(1, found.percentiles[0] or 0) == 1


def test_equal_values_have_no_deviation_and_no_kurtosis() -> None:
    # 0.1 as bfloat16 is no short binary fraction: a mean of sums would miss it by a bit.
    found = from_bits(_counts(np.full(7, 0x3DCD, np.uint16)), "BF16")
    assert (found.std, found.kurtosis) == (0, None)
    assert found.mean == found.min == found.max


def test_two_values_have_the_least_kurtosis() -> None:
    found = from_bits(_counts(np.array([0x3F80, 0xBF80], np.uint16)), "BF16")
    assert (found.mean, found.std, found.kurtosis) == (0, 1, -2)


def test_the_largest_values_overflow_nothing() -> None:
    found = from_bits(_counts(np.array([0x7F7F, 0xFF7F, 0x0000, 0x7F7F], np.uint16)), "BF16")
    assert found.kurtosis is not None
    assert math.isfinite(found.kurtosis)


def _percentiles(values: npt.NDArray[np.float32]) -> tuple[float | None, ...]:
    moments = Moments(count=values.size, min=float(values.min()), max=float(values.max()), m2=1.0, m4=1.0)
    return from_moments(moments, _counts((values.view(np.uint32) >> 16).astype(np.uint16))).percentiles


def test_float32_percentiles_lie_within_a_256th() -> None:
    values = np.random.default_rng(0).lognormal(size=5001).astype(np.float32)
    for percentile, exact in zip(_percentiles(values), np.percentile(values, PERCENTILES), strict=True):
        assert percentile == pytest.approx(exact, rel=2**-8)


@given(
    arrays.arrays(np.float32, st.integers(1, 30), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
)
def test_the_values_between_which_a_float32_percentile_lies_are_off_by_a_256th_of_themselves(
    values: npt.NDArray[np.float32],
) -> None:
    ordered = np.sort(values.astype(np.float64))
    off = np.where(np.abs(ordered) < 2.0**-126, 2.0**-133, np.abs(ordered) * 2.0**-8)
    for asked, percentile in zip(PERCENTILES, _percentiles(values), strict=True):
        place = (ordered.size - 1) * asked / 100
        below, above = ordered[math.floor(place)], ordered[math.ceil(place)]
        share = place - math.floor(place)
        bound = (1 - share) * off[math.floor(place)] + share * off[math.ceil(place)]
        rounding = 1e-15 * max(abs(below), abs(above))
        assert percentile == pytest.approx(below + share * (above - below), rel=0, abs=bound + rounding)


def test_between_opposite_signs_a_float32_percentile_is_off_by_more_than_a_256th_of_itself() -> None:
    # -1 and the largest value of the bin that begins with 1 stand for the same middle.
    values = np.array([-9.0, -1.0, np.nextafter(np.float32(1 + 2**-7), np.float32(0)), 9.0], np.float32)
    assert np.percentile(values, 50) == pytest.approx(2**-8, rel=1e-4)
    assert _percentiles(values)[PERCENTILES.index(50)] == 0


def test_no_values_have_no_statistics() -> None:
    nothing = np.zeros(65_536, np.int64)
    assert from_bits(nothing, "F16").mean is None
    assert from_moments(Moments(nan_count=3), nothing).nan_count == 3
