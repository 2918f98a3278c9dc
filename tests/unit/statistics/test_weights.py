"""Weight health: dead rows, growth, blocks and the whole."""

import numpy as np
import pytest

from archaeologist.statistics.distribution import Distribution
from archaeologist.statistics.weights import block_weights, dead_count, global_weights, growth_of, tensor_weights
from contracts.artifacts import TensorWeights


def test_rows_far_below_the_median_norm_are_dead() -> None:
    # Norms 1, 1, 1, 1.1e-6, 0.9e-6, 0: the median is between 1 and 1.1e-6.
    norms = np.array([1, 1, 1, 1, 1, 1.1e-6, 0.9e-6, 0])
    assert dead_count(norms**2) == 2


def test_all_rows_of_a_matrix_of_zeros_are_dead() -> None:
    assert dead_count(np.zeros(5)) == 5
    assert dead_count(np.zeros(0)) == 0


def test_growth_is_the_ratio_of_norms_minus_one() -> None:
    assert growth_of(9.0, 4.0) == pytest.approx(0.5)
    assert growth_of(9.0, 0.0) is None


def test_a_zero_fraction_is_of_all_values() -> None:
    distribution = Distribution(count=6, nan_count=1, inf_count=1, zeros=2)
    assert tensor_weights(distribution, dtype="BF16", shape=(8,)).zero_fraction == 0.25
    nothing = Distribution(count=0, nan_count=0, inf_count=0, zeros=0)
    assert tensor_weights(nothing, dtype="BF16", shape=(0,)).zero_fraction is None


def _tensor(l2: float | None, shape: tuple[int, ...], nan_count: int = 0) -> TensorWeights:
    return TensorWeights(dtype="F32", shape=shape, l2=l2, nan_count=nan_count)


def test_a_block_parts_weights_from_biases_and_adds_squares() -> None:
    tensors = {"w": _tensor(3, (2, 5)), "b": _tensor(4, (5,)), "broken": _tensor(None, (7,), nan_count=7)}
    found = block_weights(tensors, name="h.0", layer_type="transformer_block", biases={"b"})
    assert found.weight_norms == {"w": 3, "broken": None}
    assert found.bias_norms == {"b": 4}
    assert (found.l2, found.param_count, found.nan_count) == (5, 22, 7)


def test_the_whole_has_the_mean_the_extremes_and_the_norm_of_all() -> None:
    blocks = [
        block_weights({"w": _tensor(2, (1,)), "v": _tensor(4, (1,))}, name="a", layer_type="other"),
        block_weights({"w": _tensor(4, (1,)), "broken": _tensor(None, (1,), 1)}, name="b", layer_type="other"),
    ]
    found = global_weights(blocks)
    assert found.avg_weight_norm == pytest.approx(10 / 3)
    assert (found.min_weight_norm, found.max_weight_norm) == (2, 4)
    assert found.l2 == 6
    assert (found.param_count, found.nan_count) == (4, 1)
