"""Analyses of matrices beside the walk, against the matrices as they were written."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from msgspec.structs import replace

from archaeologist.errors import CheckpointError, GpuMemoryShort
from archaeologist.excavation import layer_stats, matrices, survey
from archaeologist.excavation.forward import device
from archaeologist.excavation.forward.algebra import GpuAlgebra
from archaeologist.excavation.forward.device import Gpu
from archaeologist.statistics.power_law import fitted
from archaeologist.statistics.spectrum import eigenvalues
from contracts.artifacts import LayerStats, Spectrum
from contracts.messages import Analysis, Excavation, GpuOptions, JobOptions
from tests.fixtures.jobs import layer_stats_job, side
from tests.unit.excavation.checkpoints import Bits, bf16, wide, write

Floats = npt.NDArray[np.float64]

SHAPES = {
    "model.embed_tokens.weight": (90, 12),
    "model.layers.0.self_attn.q_proj.weight": (24, 12),
    "model.layers.0.mlp.down_proj.weight": (12, 60),
    "model.layers.0.input_layernorm.weight": (12,),
    "model.layers.1.self_attn.q_proj.weight": (24, 12),
    "model.norm.weight": (12,),
    "score.weight": (2, 12),
}


def tensors(seed: int, *, scale: float = 1.0) -> dict[str, Bits]:
    random = np.random.default_rng(seed)
    return {name: bf16(random.standard_normal(shape) * scale) for name, shape in SHAPES.items()}


def analysed(
    target: Path,
    reference: Path | None,
    *analyses: Analysis,
    gpu: GpuOptions = GpuOptions(),  # noqa: B008 - frozen
) -> LayerStats:
    job = layer_stats_job(
        side(target, 2),
        side(reference, 1) if reference else None,
        options=JobOptions(compute_activations=False, analyses=analyses),
    )
    excavation = Excavation(job=job, artifact_path=str(target / "a.tmp"), gpu=gpu)
    artifact, _ = layer_stats.excavate(excavation, lambda _: None)
    return artifact


def spectra(artifact: LayerStats) -> dict[str, Spectrum]:
    return {
        f"{block}.{within}": tensor.spectrum
        for block, drift in artifact.drift_stats.items()
        for within, tensor in drift.tensors.items()
        if tensor.spectrum is not None
    }


def check(found: Spectrum, change: Floats) -> None:
    sigmas = np.linalg.svd(change, compute_uv=False)
    shares = sigmas / sigmas.sum()
    assert found.sigma_1 == pytest.approx(sigmas[0], rel=1e-9)
    assert found.stable_rank == pytest.approx((sigmas**2).sum() / sigmas[0] ** 2, rel=1e-9)
    assert found.participation_rank == pytest.approx((sigmas**2).sum() ** 2 / (sigmas**4).sum(), rel=1e-9)
    assert found.effective_rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-9)


@pytest.mark.parametrize("slice_values", [50, matrices.SLICE_VALUES])
def test_every_matrixs_change_has_the_svds_spectrum_in_whatever_slices_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slice_values: int
) -> None:
    monkeypatch.setattr(matrices, "SLICE_VALUES", slice_values)
    mine, theirs = tensors(1), tensors(2)
    artifact = analysed(write(tmp_path / "b", mine), write(tmp_path / "a", theirs), "spectra")
    found = spectra(artifact)
    assert set(found) == {name for name, shape in SHAPES.items() if len(shape) == 2}
    for name, spectrum in found.items():
        check(spectrum, wide(mine[name]) - wide(theirs[name]))
    assert artifact.not_computed == {}


def test_two_dtypes_are_compared_by_value(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    random = np.random.default_rng(3)
    kinds: list[Bits] = [
        random.standard_normal((20, 8)).astype(np.float32),
        random.standard_normal((20, 8)).astype(np.float16),
    ]
    artifact = analysed(write(tmp_path / "b", {name: kinds[0]}), write(tmp_path / "a", {name: kinds[1]}), "spectra")
    check(spectra(artifact)[name], wide(kinds[0]) - wide(kinds[1]))


def test_every_matrixs_eigenvalues_have_their_power_law_with_and_without_a_reference(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    mine: dict[str, Bits] = {
        name: (np.random.default_rng(1).standard_normal((90, 200)) ** 3).astype(np.float32),
        "model.embed_tokens.weight": np.random.default_rng(2).standard_normal((300, 60)).astype(np.float32),
        "model.layers.0.mlp.gate.weight": np.ones((3, 4), np.float32),
        "model.norm.weight": np.ones(4, np.float32),
    }
    target = write(tmp_path / "b", mine)
    artifact = analysed(target, None, "htsr")
    for block, within in (("model.layers.0", "mlp.down_proj.weight"), ("model.embed_tokens", "weight")):
        found = artifact.weight_stats[block].tensors[within]
        sigmas = np.linalg.svd(wide(mine[f"{block}.{within}"]), compute_uv=False)
        expected = fitted(np.square(sigmas).astype(np.float64))
        assert expected is not None
        assert found.htsr_tail == expected.tail
        assert (found.htsr_alpha, found.htsr_distance) == pytest.approx((expected.alpha, expected.distance), rel=1e-9)
    assert artifact.not_computed == {
        "htsr": "fewer than 50 eigenvalues above 0, or all alike: model.layers.0.mlp.gate.weight"
    }
    both = analysed(target, target, "htsr", "spectra")
    assert both.weight_stats == analysed(target, target, "htsr").weight_stats
    assert spectra(both)[name] == Spectrum(sigma_1=0.0)


def test_without_a_reference_the_reason_is_said(tmp_path: Path) -> None:
    artifact = analysed(write(tmp_path / "b", tensors(1)), None, "spectra")
    assert artifact.not_computed == {"spectra": "there is no reference to take a change from"}


def test_a_matrix_that_is_left_out_is_named_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrices, "MAX_SIDE", 15)
    mine, theirs = tensors(1), tensors(2)
    broken = wide(mine["model.embed_tokens.weight"])
    broken[3, 4] = np.inf
    mine["model.embed_tokens.weight"] = theirs["model.embed_tokens.weight"] = bf16(broken)
    for number, shape in enumerate([(16, 40), (3, 4, 5), (4, 4)]):
        mine[f"model.layers.2.w{number}.weight"] = bf16(np.ones(shape))
        theirs[f"model.layers.2.w{number}.weight"] = bf16(np.zeros(shape if number < 2 else (5, 4)))
    artifact = analysed(write(tmp_path / "b", mine), write(tmp_path / "a", theirs), "spectra")
    assert artifact.not_computed["spectra"].split("; ") == [
        "NaN or infinite values: model.embed_tokens.weight",
        "smaller side above 15: model.layers.2.w0.weight",
        "3 axes, a matrix has 2: model.layers.2.w1.weight",
        "no tensor of that name and shape in the reference: model.layers.2.w2.weight",
    ]
    assert "model.layers.1.self_attn.q_proj.weight" in spectra(artifact)


def test_a_disk_that_fails_costs_the_analysis_and_not_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        msg = "the disk fails"
        raise CheckpointError(msg)

    monkeypatch.setattr(matrices, "_slices", failing)
    artifact = analysed(write(tmp_path / "b", tensors(1)), None, "htsr")
    assert artifact.not_computed["htsr"].startswith("CheckpointError: the disk fails: model.embed_tokens.weight, ")
    assert artifact.weight_stats["model.embed_tokens"].l2 is not None


def test_what_was_not_asked_for_is_not_there(tmp_path: Path) -> None:
    artifact = analysed(write(tmp_path / "b", tensors(1)), write(tmp_path / "a", tensors(2)))
    assert spectra(artifact) == {}
    assert artifact.not_computed == {}


# On a GPU that is not there: torch computes on the CPU and is only told otherwise.

GPU = Gpu(device="cuda:0", name="a GPU", total_bytes=24 * 10**9, free_bytes=20 * 10**9)


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A GPU with a driver; what was looked for, as it is."""
    looked: list[str] = []

    def look(name: str) -> Gpu:
        looked.append(name)
        return GPU

    monkeypatch.setattr(survey, "DRIVERS", (str(tmp_path),))
    monkeypatch.setattr(device, "look", look)
    monkeypatch.setattr(device, "claim", lambda _: torch.device("cpu"))
    return looked


def both(tmp_path: Path) -> tuple[Path, Path]:
    return write(tmp_path / "b", tensors(1)), write(tmp_path / "a", tensors(2))


def test_a_gpu_finds_what_the_cpu_does_and_the_artifact_names_it(pretended: list[str], tmp_path: Path) -> None:
    target, reference = both(tmp_path)
    artifact = analysed(target, reference, "spectra", "htsr")
    plain = analysed(target, reference, "spectra", "htsr", gpu=GpuOptions(device="cpu"))
    assert (pretended, artifact.device, plain.device) == (["auto"], "cuda:0", "cpu")
    assert (artifact.warnings, artifact.not_computed) == (plain.warnings, plain.not_computed)
    assert spectra(artifact)
    for name, found in spectra(artifact).items():
        check(found, wide(tensors(1)[name]) - wide(tensors(2)[name]))


@pytest.mark.parametrize(
    ("error", "on_gpu", "warning"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nand more"),
            6,
            "spectra: matrices that the memory of cuda:0 did not suffice for are from the CPU",
        ),
        (
            RuntimeError("the driver is gone\nand more"),
            1,
            "spectra: on the CPU after the GPU failed: the driver is gone",
        ),
    ],
)
def test_a_gpu_that_fails_in_the_middle_costs_a_warning_and_no_number(
    pretended: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    error: RuntimeError,
    on_gpu: int,
    warning: str,
) -> None:
    tried: list[int] = []
    done: list[int] = []
    real = torch.linalg.eigvalsh

    def eigvalsh(total: torch.Tensor) -> Any:
        tried.append(len(total))
        if len(tried) == 2:
            raise error
        done.append(len(total))
        return real(total)

    monkeypatch.setattr(torch.linalg, "eigvalsh", eigvalsh)
    given_back: list[bool] = []
    monkeypatch.setattr(device, "give_back", lambda: given_back.append(True))
    artifact = analysed(*both(tmp_path), "spectra")
    assert pretended == ["auto"]
    matrices_there = {name for name, shape in SHAPES.items() if len(shape) == 2}
    assert (len(done), given_back, artifact.device) == (min(on_gpu, len(matrices_there) - 1), [True], "cuda:0")
    assert artifact.warnings[-1] == warning
    assert set(spectra(artifact)) == matrices_there
    for name, found in spectra(artifact).items():
        check(found, wide(tensors(1)[name]) - wide(tensors(2)[name]))


def test_a_matrix_that_does_not_converge_on_a_gpu_is_named_and_costs_no_other(
    pretended: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def eigvalsh(total: torch.Tensor) -> Any:
        if len(total) == 2:
            msg = "it does not converge"
            raise torch.linalg.LinAlgError(msg)  # type: ignore[attr-defined]
        return real(total)

    real = torch.linalg.eigvalsh
    monkeypatch.setattr(torch.linalg, "eigvalsh", eigvalsh)
    artifact = analysed(*both(tmp_path), "spectra")
    assert pretended == ["auto"]
    assert artifact.not_computed["spectra"] == "LinAlgError: it does not converge: score.weight"
    assert artifact.device == "cuda:0"


def test_a_driver_that_fails_costs_a_warning_and_not_the_job(
    pretended: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def look(_: str) -> Gpu:
        msg = "libcuda.so.1: cannot open shared object file"
        raise OSError(msg)

    monkeypatch.setattr(device, "look", look)
    artifact = analysed(*both(tmp_path), "spectra")
    assert pretended == []
    assert artifact.warnings[-1] == (
        "spectra: on the CPU, for the GPU cannot be used: OSError: libcuda.so.1: cannot open shared object file"
    )
    assert (artifact.device, bool(spectra(artifact))) == ("cpu", True)


def test_what_is_not_finite_is_left_out_on_a_gpu_too(pretended: list[str], tmp_path: Path) -> None:
    broken = tensors(1)
    broken["score.weight"][0, 0] = 0x7F80
    artifact = analysed(write(tmp_path / "b", broken), write(tmp_path / "a", tensors(2)), "spectra")
    assert pretended == ["auto"]
    assert artifact.not_computed["spectra"] == "NaN or infinite values: score.weight"
    assert artifact.device == "cuda:0"


def test_without_a_driver_or_an_analysis_no_gpu_is_looked_for(
    pretended: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    target, reference = both(tmp_path)
    analysed(target, reference)
    monkeypatch.setattr(survey, "DRIVERS", (str(tmp_path / "none"),))
    assert spectra(analysed(target, reference, "spectra"))
    assert pretended == []


def test_a_gpu_that_is_insisted_on_and_not_there_costs_the_analysis_only(
    pretended: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(device, "look", lambda _: None)
    artifact = analysed(*both(tmp_path), "spectra", gpu=GpuOptions(device="cuda:1"))
    assert artifact.not_computed["spectra"].startswith("device_unavailable: gpu.device is 'cuda:1': torch sees no such")
    assert artifact.global_drift_stats is not None
    assert pretended == []


def test_a_full_gpu_means_the_cpu_or_waiting_as_the_settings_say(
    pretended: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(device, "look", lambda _: replace(GPU, free_bytes=0))
    folders = both(tmp_path)
    artifact = analysed(*folders, "spectra")
    assert (artifact.device, bool(spectra(artifact))) == ("cpu", True)
    assert artifact.warnings[-1] == "spectra: 0.0 GB of a GPU may be used, 0.8 GB are needed: the CPU"
    with pytest.raises(GpuMemoryShort):
        analysed(*folders, "spectra", gpu=GpuOptions(when_full="wait"))
    assert pretended == []


def test_on_a_gpu_eigenvalues_are_numpys(gpu: torch.device) -> None:
    x = np.random.default_rng(0).standard_normal((3000, 700)) * np.exp(-0.01 * np.arange(700))
    found = GpuAlgebra(GPU, gpu).squares(iter([x[:1000], x[1000:]]), side=700)
    assert found is not None
    expected = eigenvalues(x.T @ x)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12 * expected[-1])
