"""A walk's numbers against independent float64 computations with NumPy."""

import math
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from archaeologist.checkpoints.index import read_index
from archaeologist.checkpoints.reader import Reader
from archaeologist.excavation import tally
from archaeologist.excavation.tally import TensorResult
from archaeologist.excavation.walk import Walk
from archaeologist.statistics.sketch import WIDTH
from contracts.artifacts import PERCENTILES
from tests.fixtures.waiting import until
from tests.unit.excavation.checkpoints import Bits, Floats, bf16, l2, wide, write
from tests.unit.excavation.walking import planned, walked

EXACT = 1e-9


def _random(dtype: str, shape: tuple[int, ...], seed: int, *, scale: float = 0.02, mean: float = 0.0) -> Bits:
    values = (np.random.default_rng(seed).standard_normal(shape) * scale + mean).astype(np.float32)
    return _stored(values, dtype)


def _stored(values: npt.NDArray[np.float32], dtype: str) -> Bits:
    by_dtype: dict[str, Bits] = {"BF16": bf16(values), "F16": values.astype(np.float16), "F32": values}
    return by_dtype[dtype]


def _check_weights(result: TensorResult, stored: Bits) -> None:
    """Every field of the tensor's weight health, over its finite values."""
    everything, weights = wide(stored).ravel(), result.weights
    values = everything[np.isfinite(everything)]
    assert weights.nan_count == np.isnan(everything).sum()
    assert weights.inf_count == np.isinf(everything).sum()
    assert weights.l2 == pytest.approx(l2(values), rel=EXACT)
    assert weights.rms == pytest.approx(l2(values) / math.sqrt(values.size), rel=EXACT)
    assert (weights.min, weights.max) == (values.min(), values.max())
    assert weights.absmax == np.abs(values).max()
    assert weights.zero_fraction == np.count_nonzero(values == 0) / everything.size
    mean = math.fsum(values.tolist()) / values.size
    central = values - mean
    variance = math.fsum((central**2).tolist()) / values.size
    assert weights.mean == pytest.approx(mean, rel=EXACT, abs=EXACT * math.sqrt(variance))
    assert weights.std == pytest.approx(math.sqrt(variance), rel=EXACT)
    kurtosis = math.fsum((central**4).tolist()) / values.size / variance**2 - 3
    assert weights.kurtosis == pytest.approx(kurtosis, rel=EXACT, abs=EXACT)
    for percent in PERCENTILES:
        found, expected = getattr(weights, f"percentile_{percent}"), np.percentile(values, percent)
        if weights.dtype == "F32":
            assert found == pytest.approx(expected, rel=2**-7, abs=2**-8 * abs(np.abs(values).min()))
        else:
            assert found == expected


def _check_drift(result: TensorResult, stored: Bits, reference: Bits) -> None:
    """Every sum over pairs of finite values."""
    x, y, drift = wide(stored).ravel(), wide(reference).ravel(), result.drift
    assert drift is not None
    is_finite = np.isfinite(x) & np.isfinite(y)
    assert drift.nonfinite_pairs == np.count_nonzero(~is_finite)
    if stored.dtype == reference.dtype:
        unsigned = np.uint32 if stored.dtype == np.float32 else np.uint16
        assert drift.changed == np.count_nonzero(stored.view(unsigned) != reference.view(unsigned))
    else:
        assert drift.changed == np.count_nonzero((x != y) & ~(np.isnan(x) & np.isnan(y)))
    x, y = x[is_finite], y[is_finite]
    assert math.sqrt(drift.difference) == pytest.approx(l2(x - y), rel=EXACT)
    assert drift.squares == pytest.approx(l2(x) ** 2, rel=EXACT)
    assert drift.reference_squares == pytest.approx(l2(y) ** 2, rel=EXACT)
    assert drift.largest == np.abs(x - y).max()
    assert drift.sign_flips == np.count_nonzero(np.sign(x) * np.sign(y) < 0)
    cosine = math.fsum((x * y).tolist()) / (l2(x) * l2(y))
    assert drift.one_minus_cosine == pytest.approx(1 - cosine, abs=EXACT)


SHAPES = [(1,), (3,), (128,), (4096,), (4097,), (33, 1), (1, 9000), (7, 1171), (500, 300), (3, 40, 50)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_a_tensors_statistics_and_drift_equal_a_float64_computation(
    tmp_path: Path, dtype: str, shape: tuple[int, ...]
) -> None:
    stored = _random(dtype, shape, 1, mean=0.01)
    # Moved a little, then a quarter put back: some values changed, some not.
    reference = _random(dtype, shape, 2)
    is_same = np.random.default_rng(3).random(shape) < 0.25
    reference[is_same] = stored[is_same]
    found = walked(write(tmp_path / "a", {"w": stored}), write(tmp_path / "b", {"w": reference}))["w"]
    if stored.size > 1:
        _check_weights(found, stored)
    _check_drift(found, stored, reference)


@pytest.mark.parametrize("count", [15, 4096, 4096 + 43])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_zeros_of_either_sign_change_and_flip_no_sign(tmp_path: Path, dtype: str, count: int) -> None:
    random = np.random.default_rng(4)
    zeros = _stored(np.array([0.0, -0.0], np.float32), dtype)
    stored, reference = (_random(dtype, (count,), seed) for seed in (1, 2))
    for side in (stored, reference):
        is_zero = random.random(count) < 0.5
        side[is_zero] = random.choice(zeros, np.count_nonzero(is_zero))
    found = walked(write(tmp_path / "a", {"w": stored}), write(tmp_path / "b", {"w": reference}))["w"]
    _check_drift(found, stored, reference)


@pytest.mark.parametrize("dtypes", [("BF16", "F32"), ("F32", "BF16"), ("F16", "F32"), ("F16", "BF16")], ids=str)
def test_tensors_of_two_dtypes_compare_by_value(tmp_path: Path, dtypes: tuple[str, str]) -> None:
    stored, reference = (_random(dtype, (300, 70), 5) for dtype in dtypes)
    stored.ravel()[:3] = [0, 0, 0]
    reference.ravel()[:2] = np.array([-0.0, -0.0]).astype(np.float32) if dtypes[1] != "BF16" else 0x8000
    found = walked(write(tmp_path / "a", {"w": stored}), write(tmp_path / "b", {"w": reference}))["w"]
    _check_weights(found, stored)
    _check_drift(found, stored, reference)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_nan_and_infinity_are_counted_and_left_out_on_both_sides(tmp_path: Path, dtype: str) -> None:
    stored, reference = _random(dtype, (200, 100), 7), _random(dtype, (200, 100), 8)
    special = np.array([np.nan, np.inf, -np.inf, -0.0], np.float32)
    coded = _stored(special, dtype)
    stored.ravel()[[5, 6, 4200, 9000]] = coded
    reference.ravel()[[6, 7, 12_000, 12_001]] = coded
    found = walked(write(tmp_path / "a", {"w": stored}), write(tmp_path / "b", {"w": reference}))["w"]
    _check_weights(found, stored)
    _check_drift(found, stored, reference)
    assert found.weights.dead_rows == 0


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_subnormals_and_the_largest_values_keep_their_digits(tmp_path: Path, dtype: str) -> None:
    tiny, huge = {"BF16": (1, 0x7F7F), "F16": (1, 0x7BFF), "F32": (1, 0x7F7FFFFF)}[dtype]
    unsigned, stored_as = {
        "BF16": (np.uint16, np.uint16),
        "F16": (np.uint16, np.float16),
        "F32": (np.uint32, np.float32),
    }[dtype]
    for pattern in (tiny, huge):
        patterns = np.array([pattern, pattern - 1 if pattern > 1 else 3, pattern, 0, pattern] * 2000, unsigned)
        stored = patterns.view(stored_as)
        reference = np.roll(patterns, 1).view(stored_as)
        folder = tmp_path / str(pattern)
        found = walked(write(folder / "a", {"w": stored}), write(folder / "b", {"w": reference}))["w"]
        values = wide(stored)
        assert found.weights.l2 == pytest.approx(l2(values), rel=EXACT)
        assert (found.weights.min, found.weights.max) == (values.min(), values.max())
        assert found.weights.kurtosis is not None
        assert math.isfinite(found.weights.kurtosis)
        assert found.drift is not None
        assert math.sqrt(found.drift.difference) == pytest.approx(l2(values - wide(reference)), rel=EXACT)


def test_a_large_mean_does_not_cost_the_digits_of_float32_moments(tmp_path: Path) -> None:
    stored = _random("F32", (300, 300), 9, scale=0.001, mean=100.0)
    _check_weights(walked(write(tmp_path / "a", {"w": stored}))["w"], stored)


def test_a_tensor_without_values_has_no_statistics_and_stops_nothing(tmp_path: Path) -> None:
    tensors: dict[str, Bits] = {"empty": np.zeros((0, 4), np.float32), "w": np.ones(3, np.float32)}
    found = walked(write(tmp_path / "a", tensors), write(tmp_path / "b", tensors))
    assert found["empty"].weights.l2 is None
    assert found["empty"].weights.zero_fraction is None
    assert found["w"].weights.l2 == pytest.approx(math.sqrt(3))


def test_a_tensor_of_zeros_has_norm_zero_and_no_cosine(tmp_path: Path) -> None:
    found = walked(
        write(tmp_path / "a", {"w": bf16(np.zeros((4, 5)))}), write(tmp_path / "b", {"w": bf16(np.ones((4, 5)))})
    )["w"]
    assert (found.weights.l2, found.weights.std, found.weights.kurtosis) == (0, 0, None)
    assert found.weights.zero_fraction == 1
    assert found.weights.percentile_50 == 0
    assert found.weights.dead_rows == 4
    assert found.drift is not None
    assert found.drift.one_minus_cosine is None


def test_a_tensor_full_of_nan_has_counts_and_nothing_else(tmp_path: Path) -> None:
    stored = bf16(np.full((10, 10), np.nan))
    found = walked(write(tmp_path / "a", {"w": stored}), write(tmp_path / "b", {"w": bf16(np.ones((10, 10)))}))["w"]
    assert found.weights.nan_count == 100
    assert found.weights.l2 is None
    assert found.drift is not None
    assert found.drift.nonfinite_pairs == 100


def test_two_by_two_by_hand(tmp_path: Path) -> None:
    # x = [[3, -4], [0, 12]], y = [[3, 4], [0, 0]]: ‖x‖ = 13, ‖y‖ = 5, ‖x-y‖² = 64 + 144, x·y = 9 - 16.
    x, y = bf16([[3, -4], [0, 12]]), bf16([[3, 4], [0, 0]])
    found = walked(write(tmp_path / "a", {"w": x}), write(tmp_path / "b", {"w": y}))["w"]
    assert found.weights.l2 == 13
    assert (found.weights.mean, found.weights.min, found.weights.max) == (2.75, -4, 12)
    assert found.weights.zero_fraction == 0.25
    assert found.weights.percentile_50 == 1.5
    assert found.weights.growth == pytest.approx(13 / 5 - 1)
    assert found.drift is not None
    assert found.drift.difference == 208
    assert found.drift.one_minus_cosine == pytest.approx(1 + 7 / 65)
    assert (found.drift.changed, found.drift.sign_flips, found.drift.largest) == (2, 1, 12)


def test_dead_rows_and_columns_are_found_across_pieces(tmp_path: Path) -> None:
    values = np.random.default_rng(4).standard_normal((900, 70)).astype(np.float32)
    values[[0, 500, 899]] *= 1e-9
    values[:, [3, 69]] = 0
    found = walked(write(tmp_path / "a", {"w": values}))["w"]
    assert (found.weights.dead_rows, found.weights.dead_columns) == (3, 2)


def test_what_is_no_matrix_has_no_dead_rows(tmp_path: Path) -> None:
    found = walked(write(tmp_path / "a", {"w": np.zeros((2, 3, 4), np.float32)}))["w"]
    assert (found.weights.dead_rows, found.weights.dead_columns) == (None, None)


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_threads_and_the_size_of_reads_change_no_bit(
    tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small segments, so that a test's tensor has many.
    monkeypatch.setattr(tally, "SEGMENT", 4 * WIDTH)
    tensors = {f"layers.{number}.w": _random(dtype, (311, 517), number) for number in range(4)}
    references = {name: _random(dtype, (311, 517), number + 50) for number, name in enumerate(tensors)}
    target, reference = write(tmp_path / "a", tensors), write(tmp_path / "b", references)
    first = walked(target, reference, threads=1)
    for threads, read_values in ((4, WIDTH), (3, 2 * WIDTH), (2, 4 * WIDTH)):
        again = walked(target, reference, threads=threads, read_values=read_values)
        for name, result in first.items():
            assert again[name].weights == result.weights
            assert again[name].drift == result.drift
            assert np.array_equal(_sketch(again[name]), _sketch(result))
    for name, result in first.items():
        _check_weights(result, tensors[name])
        _check_drift(result, tensors[name], references[name])


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_pieces_that_did_not_change_count_like_the_others(tmp_path: Path, dtype: str) -> None:
    stored = _random(dtype, (37, 1003), 1)
    reference = _random(dtype, (37, 1003), 2)
    # Frozen pieces, one in which only the last value changed, and a NaN in a frozen one.
    for first, last in ((0, 4096), (8192, 16_383), (20_480, 28_672)):
        reference.ravel()[first:last] = stored.ravel()[first:last]
    for side in (stored, reference):
        side.ravel()[21_000] = _stored(np.array([np.nan], np.float32), dtype)[0]
    found = walked(write(tmp_path / "a", {"w": stored}), write(tmp_path / "b", {"w": reference}))["w"]
    _check_weights(found, stored)
    _check_drift(found, stored, reference)
    frozen = walked(tmp_path / "a", tmp_path / "a")["w"].drift
    assert frozen is not None
    assert (frozen.changed, frozen.difference, frozen.one_minus_cosine) == (0, 0, 0)


def test_moments_do_not_depend_on_the_order_of_the_values(tmp_path: Path) -> None:
    stored = _random("F32", (50_000,), 11)
    shuffled = np.random.default_rng(0).permutation(stored)
    mine = walked(write(tmp_path / "a", {"w": stored}))["w"].weights
    theirs = walked(write(tmp_path / "b", {"w": shuffled}))["w"].weights
    for name in ("l2", "mean", "std", "kurtosis", "percentile_5", "min"):
        assert getattr(mine, name) == pytest.approx(getattr(theirs, name), rel=1e-12, abs=1e-15)


def test_a_small_tensors_sketch_is_the_tensor_and_a_large_ones_has_a_fixed_width(tmp_path: Path) -> None:
    tensors = {"small": _random("BF16", (64, 64), 1), "large": _random("BF16", (64, 65), 1)}
    found = walked(write(tmp_path / "a", tensors))
    small, large = _sketch(found["small"]), _sketch(found["large"])
    assert np.array_equal(small, wide(tensors["small"]).ravel())
    assert large.shape == (WIDTH,)


def _sketch(result: TensorResult) -> Floats:
    assert result.sketch is not None
    return result.sketch


def _distance(a: Bits | Floats, b: Bits | Floats) -> float:
    return float(np.linalg.norm(a.astype(np.float64) - b.astype(np.float64)))


def test_a_sketch_is_linear_and_estimates_the_distance(tmp_path: Path) -> None:
    stored, reference = _random("F32", (400, 1000), 1), _random("F32", (400, 1000), 2)
    a = _sketch(walked(write(tmp_path / "a", {"w": stored}))["w"])
    b = _sketch(walked(write(tmp_path / "b", {"w": reference}))["w"])
    # Five standard deviations of √(1 / (2 · WIDTH)).
    assert _distance(a, b) == pytest.approx(_distance(stored, reference), rel=0.055)


def test_nan_counts_as_zero_in_the_sketch(tmp_path: Path) -> None:
    stored = _random("F32", (100, 100), 1)
    stored[3, 3] = np.nan
    a = _sketch(walked(write(tmp_path / "a", {"w": stored}))["w"])
    stored[3, 3] = 0
    b = _sketch(walked(write(tmp_path / "b", {"w": stored}))["w"])
    assert np.array_equal(a, b)


def test_kept_bytes_are_the_files_and_change_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "SEGMENT", 4 * WIDTH)
    tensors = {f"layers.{number}.w": _random("BF16", (311, 517), number) for number in range(6)}
    references = {name: _random("BF16", (311, 517), number + 50) for number, name in enumerate(tensors)}
    target, reference = write(tmp_path / "a", tensors), write(tmp_path / "b", references)
    expected = walked(target, reference)
    kept = [f"layers.{number}" for number in (0, 2, 3, 4, 5)]
    with Reader(read_index(target)) as mine, Reader(read_index(reference)) as theirs:
        walk = Walk(planned(target, reference), target=mine, reference=theirs, kept_blocks=kept, read_values=WIDTH)
        for number, block in enumerate(walk.blocks()):
            (result,) = block.tensors
            name = result.pair.name
            assert (result.weights, result.drift) == (expected[name].weights, expected[name].drift)
            if number == 1:
                assert (block.target, block.reference) == ({}, {})
                continue
            assert block.target[name].tobytes() == tensors[name].tobytes()
            assert block.reference[name].tobytes() == references[name].tobytes()
            if number == 4:
                break  # the threads that wait for room end with the walk


async def test_a_walk_that_was_started_reads_before_its_blocks_are_asked_for(tmp_path: Path) -> None:
    tensors = {f"layers.{number}.w": _random("BF16", (64, 64), number) for number in range(4)}
    folder = write(tmp_path / "a", tensors)
    plan = planned(folder)
    with Reader(read_index(folder)) as reader:
        walk = Walk(plan, target=reader, kept_blocks=plan.run_blocks(), threads=2)
        walk.start()
        await until(lambda: "start" in walk.timings())
        found = {name: values.tobytes() for block in walk.blocks() for name, values in block.target.items()}
    assert found == {name: values.tobytes() for name, values in tensors.items()}


def test_a_walk_that_was_started_ends_when_it_is_closed(tmp_path: Path) -> None:
    tensors = {f"layers.{number}.w": _random("BF16", (64, 64), number) for number in range(4)}
    folder = write(tmp_path / "a", tensors)
    plan = planned(folder)
    with Reader(read_index(folder)) as reader:
        walk = Walk(plan, target=reader, kept_blocks=plan.run_blocks(), threads=3)
        walk.start()
        walk.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("walk-")]
