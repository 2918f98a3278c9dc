"""Norms of changes of low rank, from their factors."""

import math

import numpy as np
import pytest

from archaeologist.statistics.low_rank import Factors, norm


def test_a_norm_is_that_of_the_product() -> None:
    # [[3], [4]] · [[1, 2]] = [[3, 6], [4, 8]], ‖·‖² = 9 + 36 + 16 + 64
    found = norm(Factors(np.array([[3.0], [4.0]]), np.array([[1.0, 2.0]])))
    assert found == pytest.approx(math.sqrt(125), rel=1e-15)


def test_a_change_whose_parts_cancel_has_norm_zero() -> None:
    # [1, -1] · [[1/3, 1/7], [1/3, 1/7]] = 0
    assert norm(Factors(np.array([[1.0, -1.0]]), np.array([[1 / 3, 1 / 7], [1 / 3, 1 / 7]]))) == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e200])
def test_a_norm_that_is_not_finite_is_none(value: float) -> None:
    assert norm(Factors(np.array([[value], [1.0]]), np.array([[1.0, 0.5]]))) is None
