"""Drift from sums: by hand, and the specification's aggregates."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from archaeologist.statistics.drift import (
    PairSums,
    block_drift,
    global_drift,
    select_block,
    select_global,
    tensor_drift,
    together,
)

Floats = npt.NDArray[np.float64]


def pair_sums(x: list[float], y: list[float]) -> PairSums:
    a, b = np.array(x, np.float64), np.array(y, np.float64)
    return PairSums(
        count=a.size,
        difference=float(((a - b) ** 2).sum()),
        squares=float((a**2).sum()),
        reference_squares=float((b**2).sum()),
        products=float((a * b).sum()),
        largest=float(np.abs(a - b).max(initial=0)),
        changed=int((a != b).sum()),
    )


def test_two_vectors_by_hand() -> None:
    # ‖x‖ = 5, ‖y‖ = 5, x - y = (-1, 1), x·y = 24.
    found = tensor_drift(pair_sums([3, 4], [4, 3]))
    assert found.l2 == pytest.approx(math.sqrt(2))
    assert found.relative_l2 == pytest.approx(math.sqrt(2) / 5)
    assert found.cosine == pytest.approx(24 / 25)
    assert found.one_minus_cosine == pytest.approx(1 / 25)
    assert (found.changed_fraction, found.below_resolution, found.max_change) == (1, False, 1)


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=1, max_size=30))
def test_one_minus_cosine_from_norms_is_that_from_the_dot_product(pairs: list[tuple[float, float]]) -> None:
    x, y = (np.array(side) for side in zip(*pairs, strict=True))
    found = pair_sums(x.tolist(), y.tolist()).one_minus_cosine
    if min(np.linalg.norm(x), np.linalg.norm(y)) < 1e-100:
        return
    assert found == pytest.approx(1 - float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y))), abs=1e-9)


def test_a_tiny_angle_keeps_its_digits() -> None:
    # 1 - cos of the angle 1e-9 is 5e-19: far below what 1 minus a cosine in float64 can say.
    angle = 1e-9
    found = pair_sums([1, 0], [math.cos(angle), math.sin(angle)]).one_minus_cosine
    assert found == pytest.approx(angle**2 / 2, rel=1e-6)


def test_a_side_of_zeros_has_no_cosine_and_a_reference_of_zeros_no_relative_drift() -> None:
    found = tensor_drift(pair_sums([1, 2], [0, 0]))
    assert (found.cosine, found.one_minus_cosine, found.relative_l2) == (None, None, None)
    assert found.l2 == pytest.approx(math.sqrt(5))


def test_a_tensor_without_pairs_has_no_drift() -> None:
    assert tensor_drift(PairSums()).below_resolution is None
    assert tensor_drift(PairSums()).l2 is None
    assert tensor_drift(PairSums(count=2, changed=2, nonfinite_pairs=2)).l2 is None


@pytest.mark.parametrize(("changed", "is_below"), [(0, True), (49, True), (50, False), (100, False)])
def test_below_half_of_the_values_changed_drift_is_below_resolution(changed: int, *, is_below: bool) -> None:
    assert tensor_drift(PairSums(count=100, changed=changed)).below_resolution is is_below


def _stored(values: Floats, dtype: torch.dtype) -> Floats:
    found: Floats = torch.from_numpy(values).to(dtype).double().numpy()
    return found


def _rounded_update(values: Floats, update: Floats, dtype: torch.dtype) -> PairSums:
    """What is stored of values before and after a small update."""
    before = _stored(values, dtype)
    after = _stored(before + update, dtype)
    sums = pair_sums(after.tolist(), before.tolist())
    return replace(sums, changed=int((after != before).sum()), resolution=torch.finfo(dtype).eps)


DISTRIBUTIONS: dict[str, Callable[[np.random.Generator], Floats]] = {
    "normal": lambda rng: rng.standard_normal(20_000) * 0.02,
    "heavy-tailed": lambda rng: rng.standard_t(3, 20_000) * 0.02,
    "lognormal": lambda rng: np.exp(2 * rng.standard_normal(20_000)) * rng.choice([-0.01, 0.01], 20_000),
    "uniform": lambda rng: rng.uniform(-0.02, 0.02, 20_000),
    "norm weights": lambda rng: 1 + 0.05 * rng.standard_normal(20_000),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_what_rounding_moved_is_below_resolution_whatever_the_weights(distribution: str, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    values = DISTRIBUTIONS[distribution](rng)
    if dtype == torch.float8_e4m3fn:
        values = values / np.median(np.abs(values))
    seen = 0
    for share in (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1):
        size = share * float(np.median(np.abs(values)))
        for update in (size * rng.standard_normal(values.size), size * rng.choice([-1.0, 1.0], values.size)):
            sums = _rounded_update(values, update, dtype)
            if 0 < sums.changed < values.size / 2:
                assert tensor_drift(sums).below_resolution is True
                seen += 1
    assert seen >= 2


def test_few_rows_that_were_trained_are_above_the_resolution() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal(20_000) * 0.02
    update = np.where(np.arange(values.size) < values.size / 4, 0.01 * rng.standard_normal(values.size), 0.0)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        sums = _rounded_update(values, update, dtype)
        assert sums.changed < 0.3 * values.size
        assert tensor_drift(sums).below_resolution is False


def test_frozen_tensors_do_not_put_a_block_below_the_resolution() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal(20_000) * 0.02
    trained = _rounded_update(values, 0.01 * rng.standard_normal(values.size), torch.bfloat16)
    frozen = _rounded_update(values, np.zeros(values.size), torch.bfloat16)
    rounded = _rounded_update(values, 1e-5 * rng.standard_normal(values.size), torch.bfloat16)
    names = ("q_proj", "up_proj", "down_proj")
    partly = block_drift(dict(zip(names, (trained, frozen, rounded), strict=True)), name="block")
    assert partly.changed_fraction is not None
    assert partly.changed_fraction < 0.5
    assert [partly.tensors[name].below_resolution for name in names] == [False, True, True]
    assert partly.below_resolution is False
    assert block_drift({"up_proj": frozen, "down_proj": rounded}, name="block").below_resolution is True
    assert block_drift({"up_proj": frozen}, name="block").below_resolution is True
    assert block_drift({"empty": PairSums()}, name="block").below_resolution is None
    broken = PairSums(count=9, changed=9, nonfinite_pairs=9)
    assert block_drift({"up_proj": broken}, name="block").below_resolution is False
    assert block_drift({"up_proj": broken, "down_proj": frozen}, name="block").below_resolution is False


def test_a_block_has_the_specifications_totals_and_its_own_as_one_vector() -> None:
    tensors = {"a": pair_sums([3, 0], [0, 0]), "b": pair_sums([0, 8], [4, 8]), "c": PairSums()}
    found = block_drift(tensors, name="block")
    assert found.weight_l2 == {"a": 3, "b": 4, "c": None}
    assert found.total_l2 == 7
    assert found.l2 == 5
    assert found.total_cosine == found.weight_cosine["b"] == pytest.approx(8 / math.sqrt(80))
    assert found.relative_l2 == pytest.approx(5 / math.sqrt(80))
    assert found.cosine == pytest.approx(64 / math.sqrt(73 * 80))
    assert found.changed_fraction == 0.5


def test_blocks_rank_by_total_and_by_relative_drift() -> None:
    parts = {
        "large": {"w": pair_sums([100, 3], [100, 0])},
        "small": {"w": pair_sums([1, 1], [1, 0])},
        "still": {"w": pair_sums([1, 1], [1, 1])},
    }
    blocks = {name: block_drift(tensors, name=name) for name, tensors in parts.items()}
    found = global_drift(blocks, together(sums for tensors in parts.values() for sums in tensors.values()))
    assert (found.most_changed_layer, found.least_changed_layer) == ("large", "still")
    assert (found.most_changed_layer_relative, found.least_changed_layer_relative) == ("small", "still")
    assert found.avg_drift_l2 == pytest.approx(4 / 3)
    assert found.max_drift_l2 == 3
    assert found.l2 == pytest.approx(math.sqrt(10))
    assert (found.blocks, found.blocks_below_resolution) == (3, 1)


def test_where_nothing_moved_no_block_moved_most() -> None:
    sums = pair_sums([1, 2], [1, 2])
    found = global_drift({"b": block_drift({"w": sums}, name="b")}, sums)
    assert (found.most_changed_layer, found.least_changed_layer, found.l2) == (None, None, 0)


def test_frobenius_selects_what_l2_selects_and_leaves_cosine_out() -> None:
    sums = pair_sums([3, 4], [4, 3])
    block = block_drift({"w": sums}, name="b")
    assert select_block(block, ("frobenius",)) == select_block(block, ("l2",))
    assert select_block(block, ("l2", "cosine")) == block
    assert select_block(block, ("l2",)).weight_cosine == {}
    assert select_block(block, ("cosine",)).tensors["w"].l2 is None
    whole = global_drift({"b": block}, sums)
    assert select_global(whole, ("cosine",)).most_changed_layer is None
    assert select_global(whole, ("l2",)).cosine is None


def test_sides_of_very_different_size_keep_their_angle() -> None:
    assert pair_sums([1e12, 0], [-1e-3, 0]).one_minus_cosine == 2
    assert pair_sums([1e12, 0], [0, 1e-3]).one_minus_cosine == pytest.approx(1)
