"""The tables of 8-bit floats against torch's conversions, and distributions of them against NumPy's."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from archaeologist.statistics import float8
from archaeologist.statistics.distribution import from_bits
from contracts.artifacts import PERCENTILES

TORCH = {
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}


@pytest.mark.parametrize("dtype", TORCH)
def test_every_pattern_has_the_value_that_torch_gives_it(dtype: str) -> None:
    found = float8.values(dtype)
    expected = torch.arange(256, dtype=torch.uint8).view(TORCH[dtype]).float().numpy()
    assert np.array_equal(found, expected, equal_nan=True)
    is_number = ~np.isnan(expected)
    assert np.array_equal(np.signbit(found[is_number]), np.signbit(expected[is_number]))
    assert len(np.unique(found.view(np.uint32))) == 256


@pytest.mark.parametrize("dtype", TORCH)
@given(patterns=arrays.arrays(np.uint8, st.integers(1, 60), elements=st.integers(0, 255)))
def test_any_patterns_give_the_statistics_of_their_finite_values(dtype: str, patterns: np.ndarray) -> None:
    everything = torch.from_numpy(patterns).view(TORCH[dtype]).double().numpy()
    # As the kernel counts: in any bin of the same remainder by 256.
    places = patterns.astype(np.int64) + 256 * (np.arange(patterns.size) % 8)
    found = from_bits(np.bincount(places, minlength=65_536), dtype)
    values = everything[np.isfinite(everything)]
    assert (found.count, found.nan_count) == (values.size, np.isnan(everything).sum())
    assert found.inf_count == np.isinf(everything).sum()
    assert found.zeros == np.count_nonzero(values == 0)
    if not values.size:
        assert found.mean is None
        return
    assert (found.min, found.max, found.absmax) == (values.min(), values.max(), np.abs(values).max())
    assert found.percentiles == tuple(np.percentile(values, PERCENTILES))
    assert found.l2 == pytest.approx(math.sqrt(math.fsum((values**2).tolist())), rel=1e-12)
    assert found.std == pytest.approx(values.std(), rel=1e-9, abs=1e-12 * (found.absmax or 0))
