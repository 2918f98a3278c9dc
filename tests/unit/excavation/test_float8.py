"""A walk over 8-bit floats against float64 computations on torch's conversions."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import save_file

from archaeologist.excavation import tally
from archaeologist.excavation.tally import TensorResult
from archaeologist.statistics.sketch import WIDTH
from contracts.artifacts import PERCENTILES
from tests.unit.excavation.checkpoints import Floats, l2
from tests.unit.excavation.walking import walked

DTYPES = {
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}


def _saved(folder: Path, tensor: torch.Tensor) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"w": tensor}, folder / "model.safetensors")
    return folder


def _random(dtype: torch.dtype, seed: int, shape: tuple[int, ...] = (311, 517)) -> torch.Tensor:
    """Every pattern that the dtype has, NaN and infinity among them."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, np.uint8)).view(dtype)


def _finite(dtype: torch.dtype, seed: int, shape: tuple[int, ...]) -> torch.Tensor:
    """The same without NaN and infinity, which would have the whole piece decoded."""
    found = _random(dtype, seed, shape)
    return torch.where(found.float().isfinite(), found.float(), 0.0).to(dtype)


def _wide(tensor: torch.Tensor) -> Floats:
    found: Floats = tensor.double().numpy().ravel()
    return found


def _check(result: TensorResult, stored: torch.Tensor, reference: torch.Tensor) -> None:
    x, y = _wide(stored), _wide(reference)
    weights, drift = result.weights, result.drift
    values = x[np.isfinite(x)]
    assert (weights.nan_count, weights.inf_count) == (np.isnan(x).sum(), np.isinf(x).sum())
    assert weights.l2 == pytest.approx(l2(values), rel=1e-9)
    assert weights.mean == pytest.approx(math.fsum(values.tolist()) / values.size, rel=1e-9, abs=1e-9 * values.std())
    assert (weights.min, weights.max) == (values.min(), values.max())
    assert weights.zero_fraction == np.count_nonzero(x == 0) / x.size
    for percent in PERCENTILES:
        assert getattr(weights, f"percentile_{percent}") == np.percentile(values, percent)
    assert drift is not None
    is_finite = np.isfinite(x) & np.isfinite(y)
    assert drift.nonfinite_pairs == np.count_nonzero(~is_finite)
    if stored.dtype == reference.dtype:
        is_changed = stored.view(torch.uint8) != reference.view(torch.uint8)
        assert drift.changed == int(is_changed.sum())
    else:
        assert drift.changed == np.count_nonzero((x != y) & ~(np.isnan(x) & np.isnan(y)))
    x, y = x[is_finite], y[is_finite]
    assert math.sqrt(drift.difference) == pytest.approx(l2(x - y), rel=1e-9)
    assert drift.squares == pytest.approx(l2(x) ** 2, rel=1e-9)
    assert drift.reference_squares == pytest.approx(l2(y) ** 2, rel=1e-9)
    assert drift.products == pytest.approx(math.fsum((x * y).tolist()), rel=1e-9, abs=1e-9 * l2(x) * l2(y))
    assert drift.largest == np.abs(x - y).max()
    assert drift.sign_flips == np.count_nonzero(np.sign(x) * np.sign(y) < 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_8_bit_tensors_statistics_and_drift_equal_a_float64_computation(tmp_path: Path, dtype: str) -> None:
    stored, reference = (_random(DTYPES[dtype], seed) for seed in (1, 2))
    stored.view(torch.uint8)[:50] = reference.view(torch.uint8)[:50]
    found = walked(_saved(tmp_path / "a", stored), _saved(tmp_path / "b", reference))["w"]
    assert found.weights.dtype == dtype
    _check(found, stored, reference)


@pytest.mark.parametrize("other", [torch.float8_e5m2, torch.bfloat16, torch.float32], ids=str)
def test_an_8_bit_tensor_compares_by_value_with_another_dtype(tmp_path: Path, other: torch.dtype) -> None:
    stored = _random(torch.float8_e4m3fn, 1)
    reference = torch.from_numpy(np.random.default_rng(2).standard_normal((311, 517))).to(other)
    reference[:40] = stored[:40].to(other)
    _check(walked(_saved(tmp_path / "a", stored), _saved(tmp_path / "b", reference))["w"], stored, reference)


@pytest.mark.parametrize("size", [1, 3, 7, 4095, 4097])
def test_an_8_bit_tensor_of_any_size_is_read_whole(tmp_path: Path, size: int) -> None:
    stored, reference = (_random(torch.float8_e4m3fnuz, seed, (size,)) for seed in (3, 4))
    stored.view(torch.uint8)[0], reference.view(torch.uint8)[0] = 1, 2
    _check(walked(_saved(tmp_path / "a", stored), _saved(tmp_path / "b", reference))["w"], stored, reference)


@pytest.mark.parametrize("shape", [(1,), (63,), (65,), (4095,), (8200,), (311, 517), (40, 4096)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_finite_8_bit_floats_are_what_they_are_as_float32(
    tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    stored, reference = (_finite(dtype, seed, shape) for seed in (5, 6))
    stored.view(torch.uint8).view(-1)[0], reference.view(torch.uint8).view(-1)[0] = 1, 2  # subnormal
    found = walked(_saved(tmp_path / "a", stored), _saved(tmp_path / "b", reference))["w"]
    _check(found, stored, reference)
    wide = walked(_saved(tmp_path / "c", stored.float()), _saved(tmp_path / "d", reference.float()))["w"]
    assert found.drift is not None
    assert found.drift.resolution == (0.125 if "e4m3" in str(dtype) else 0.25)  # torch's eps of e5m2fnuz is wrong
    assert replace(found.drift, resolution=torch.finfo(torch.float32).eps) == wide.drift
    assert found.sketch is not None
    assert wide.sketch is not None
    assert np.array_equal(found.sketch, wide.sketch)


def test_threads_and_reads_change_no_bit_of_8_bit_floats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "SEGMENT", 4 * WIDTH)
    folders = [_saved(tmp_path / str(seed), _random(torch.float8_e5m2, seed)) for seed in (1, 2)]
    first = walked(*folders, threads=1)["w"]
    for threads, read_values in ((4, WIDTH), (2, 4 * WIDTH)):
        again = walked(*folders, threads=threads, read_values=read_values)["w"]
        assert (again.weights, again.drift) == (first.weights, first.drift)
        assert again.sketch is not None
        assert first.sketch is not None
        assert np.array_equal(again.sketch, first.sketch)
