"""A job on a GPU that is not there: the model runs on the CPU and only believes otherwise, so that memory can run out.

What CUDA itself does is tested only on a machine with a GPU, by the tests that ask for the fixture ``gpu``.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from archaeologist.errors import GpuMemoryShort
from archaeologist.excavation.forward import device
from archaeologist.excavation.forward.activations import ActivationStatistics
from archaeologist.excavation.forward.algebra import GpuAlgebra
from archaeologist.excavation.forward.device import Choice, Gpu
from archaeologist.excavation.forward.head import Head
from archaeologist.job import EXIT_TEMPORARY, _failed
from contracts.artifacts import LayerStats
from contracts.messages import GpuOptions
from tests.fixtures.models import model
from tests.integration.test_activations import VOCABULARY, analysed, checkpoint

GB = 10**9
GPU = Gpu(device="cuda:0", name="a GPU", total_bytes=24 * GB, free_bytes=20 * GB)


class Pretence:
    """Whether the model believes that it runs on a GPU, and with how many cells a batch memory runs out there."""

    def __init__(self) -> None:
        self.gpu: Gpu | None = GPU
        self.is_on_gpu = False
        self.claimed: list[str] = []

    def look(self, _: str) -> Gpu | None:
        return self.gpu

    def claim(self, choice: Choice) -> torch.device:
        self.is_on_gpu = choice.gpu is not None
        self.claimed.append(f"gpu, {choice.cells}" if choice.gpu else "cpu")
        return torch.device("cpu")

    def failing(self, real: Callable[..., Any], *, above: int, error: Exception) -> Callable[..., Any]:
        """A method that fails on the GPU for hidden states of more positions."""

        def method(owner: object, hidden: torch.Tensor, *arguments: Any, **named: Any) -> Any:
            if self.is_on_gpu and hidden.shape[:-1].numel() > above:
                raise error
            return real(owner, hidden, *arguments, **named)

        return method


@pytest.fixture
def pretence(monkeypatch: pytest.MonkeyPatch) -> Pretence:
    made = Pretence()
    monkeypatch.setattr(device, "look", made.look)
    monkeypatch.setattr(device, "claim", made.claim)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("gpu") / "1", model("llama", seed=3, vocab_size=VOCABULARY))


@pytest.fixture(scope="module")
def plain(folder: Path) -> LayerStats:
    return analysed(folder)


def shortage() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def run_out(monkeypatch: pytest.MonkeyPatch, pretence: Pretence, *, above: int) -> None:
    """Memory runs out in the model's own code, in the middle of a block."""
    from transformers.models.llama.modeling_llama import LlamaMLP  # noqa: PLC0415

    monkeypatch.setattr(LlamaMLP, "forward", pretence.failing(LlamaMLP.forward, above=above, error=shortage()))


def test_with_room_the_model_runs_on_the_gpu_and_the_artifact_names_it(
    pretence: Pretence, folder: Path, plain: LayerStats
) -> None:
    artifact = analysed(folder, gpu=GpuOptions())
    assert artifact.forward is not None
    assert (artifact.device, artifact.forward.device, artifact.forward.device_name) == ("cuda:0", "cuda:0", "a GPU")
    assert artifact.forward.steps == ()
    assert artifact.activation_stats == plain.activation_stats
    assert artifact.output_stats == plain.output_stats


def test_memory_that_runs_out_means_smaller_batches_and_the_artifact_says_so(
    monkeypatch: pytest.MonkeyPatch, pretence: Pretence, folder: Path, plain: LayerStats
) -> None:
    assert plain.probe_info is not None
    run_out(monkeypatch, pretence, above=80)
    artifact = analysed(folder, gpu=GpuOptions())
    assert artifact.not_computed == {}
    assert artifact.forward is not None
    assert artifact.forward.device == "cuda:0"
    assert artifact.forward.steps
    assert len(artifact.forward.steps) == len(pretence.claimed) - 1
    assert all(step.startswith("out of GPU memory at ") for step in artifact.forward.steps)
    assert artifact.probe_info is not None
    assert len(artifact.probe_info.batches) > len(plain.probe_info.batches)
    assert artifact.weight_stats == plain.weight_stats
    mine, theirs = artifact.output_stats, plain.output_stats
    assert mine is not None
    assert theirs is not None
    assert mine.positions == theirs.positions
    assert mine.loss == pytest.approx(theirs.loss, rel=1e-2)


def test_matrices_are_looked_at_on_the_gpu_that_the_model_runs_on(
    monkeypatch: pytest.MonkeyPatch, pretence: Pretence, folder: Path, tmp_path: Path
) -> None:
    sides: list[int] = []

    def squares(algebra: GpuAlgebra, slices: Iterator[Any], *, side: int) -> Any:
        sides.append(side)
        return real(algebra, slices, side=side)

    real = GpuAlgebra.squares
    monkeypatch.setattr(GpuAlgebra, "squares", squares)
    other = checkpoint(tmp_path / "2", model("llama", seed=4, vocab_size=VOCABULARY))
    plain = analysed(folder, other, analyses=("spectra",))
    assert sides == []
    artifact = analysed(folder, other, gpu=GpuOptions(), analyses=("spectra",))
    assert len(pretence.claimed) == 2
    assert pretence.claimed[0] == "cpu"
    mine, theirs = (
        {
            (block, within): tensor.spectrum
            for block, drift in found.drift_stats.items()
            for within, tensor in drift.tensors.items()
            if tensor.spectrum is not None
        }
        for found in (artifact, plain)
    )
    assert len(sides) == len(mine) > 0
    assert mine.keys() == theirs.keys()
    for name, spectrum in mine.items():
        expected = theirs[name]
        assert spectrum.sigma_1 == pytest.approx(expected.sigma_1, rel=1e-9), name
        assert spectrum.effective_rank == pytest.approx(expected.effective_rank, rel=1e-9), name


def test_a_survey_that_begins_again_leaves_the_sketch_of_the_last_one(
    monkeypatch: pytest.MonkeyPatch, pretence: Pretence, folder: Path, tmp_path: Path
) -> None:
    analysed(folder, sketch_path=str(tmp_path / "plain"))
    run_out(monkeypatch, pretence, above=0)
    analysed(folder, gpu=GpuOptions(), sketch_path=str(tmp_path / "again"))
    assert len(pretence.claimed) > 1
    assert (tmp_path / "again").read_bytes() == (tmp_path / "plain").read_bytes()


def test_memory_that_never_suffices_means_the_cpu_and_nothing_is_missing(
    monkeypatch: pytest.MonkeyPatch, pretence: Pretence, folder: Path, plain: LayerStats
) -> None:
    run_out(monkeypatch, pretence, above=0)
    artifact = analysed(folder, folder, gpu=GpuOptions())
    assert artifact.forward is not None
    assert (artifact.forward.device, artifact.forward.device_name) == ("cpu", None)
    assert artifact.forward.steps[-1].endswith("the fewest: the CPU")
    assert pretence.claimed[-1] == "cpu"
    assert artifact.not_computed == {}
    assert artifact.activation_stats == plain.activation_stats
    assert artifact.global_drift_stats is not None


def test_memory_that_runs_out_in_the_head_is_dealt_with_alike(
    monkeypatch: pytest.MonkeyPatch, pretence: Pretence, folder: Path, plain: LayerStats
) -> None:
    monkeypatch.setattr(Head, "logits", pretence.failing(Head.logits, above=0, error=shortage()))
    artifact = analysed(folder, gpu=GpuOptions())
    assert artifact.forward is not None
    assert artifact.forward.steps[-1].endswith("the fewest: the CPU")
    assert artifact.output_stats == plain.output_stats


def test_another_failure_on_the_gpu_means_the_cpu(
    monkeypatch: pytest.MonkeyPatch, pretence: Pretence, folder: Path, plain: LayerStats
) -> None:
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    monkeypatch.setattr(Head, "logits", pretence.failing(Head.logits, above=0, error=error))
    artifact = analysed(folder, gpu=GpuOptions())
    assert artifact.forward is not None
    assert artifact.forward.steps == (f"the head failed: RuntimeError: {error}: the CPU",)
    assert artifact.output_stats == plain.output_stats
    assert pretence.claimed == [pretence.claimed[0], "cpu"]


def test_a_failure_that_is_the_models_own_is_named_after_the_cpu_was_tried(
    monkeypatch: pytest.MonkeyPatch, pretence: Pretence, folder: Path, plain: LayerStats
) -> None:
    def refuse(*_: object) -> None:
        msg = "no"
        raise ValueError(msg)

    monkeypatch.setattr(ActivationStatistics, "add", refuse)
    artifact = analysed(folder, gpu=GpuOptions())
    assert artifact.not_computed["activations"] == "the forward pass failed: ValueError: no"
    assert artifact.forward is not None
    assert artifact.forward.device == "cpu"
    assert artifact.weight_stats == plain.weight_stats


def test_a_full_gpu_means_the_cpu_and_the_artifact_says_so(pretence: Pretence, folder: Path, plain: LayerStats) -> None:
    pretence.gpu = replace(GPU, free_bytes=1 * GB)
    artifact = analysed(folder, gpu=GpuOptions())
    assert artifact.forward is not None
    assert artifact.forward.device == "cpu"
    assert artifact.forward.steps[0].startswith("0.0 GB of a GPU may be used, ")
    assert artifact.activation_stats == plain.activation_stats


def test_a_full_gpu_means_that_the_job_is_handed_back_where_the_settings_say_so(
    pretence: Pretence, folder: Path
) -> None:
    pretence.gpu = replace(GPU, free_bytes=1 * GB)
    with pytest.raises(GpuMemoryShort) as caught:
        analysed(folder, gpu=GpuOptions(when_full="wait"))
    failed = _failed(caught.value, caught.value)
    assert (failed.error.code, failed.retryable, EXIT_TEMPORARY) == ("gpu_memory_short", True, 75)


def test_memory_that_others_take_meanwhile_hands_the_job_back_too(
    monkeypatch: pytest.MonkeyPatch, pretence: Pretence, folder: Path
) -> None:
    pretence.gpu = replace(GPU, free_bytes=6 * GB)
    run_out(monkeypatch, pretence, above=0)
    with pytest.raises(GpuMemoryShort, match="the fewest"):
        analysed(folder, gpu=GpuOptions(when_full="wait"))


def test_a_gpu_that_is_insisted_on_and_not_there_costs_the_activations_only(
    pretence: Pretence, folder: Path, plain: LayerStats
) -> None:
    pretence.gpu = None
    artifact = analysed(folder, gpu=GpuOptions(device="cuda"))
    assert artifact.not_computed["activations"].startswith("device_unavailable: gpu.device is 'cuda'")
    assert artifact.activation_stats == {}
    assert artifact.weight_stats == plain.weight_stats


def test_on_a_gpu_the_memory_taken_stays_below_the_estimate(gpu: torch.device, folder: Path) -> None:
    artifact = analysed(folder, gpu=GpuOptions(device=str(gpu), reserve_mb=0))
    assert artifact.forward is not None
    assert artifact.forward.device == str(gpu)
    assert 0 < (artifact.forward.peak_gpu_bytes or 0) < device.FIXED_BYTES
