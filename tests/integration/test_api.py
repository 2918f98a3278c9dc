"""``analyze`` and ``drift`` from Python, with the real child process."""

import asyncio
import math
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import archaeologist
from archaeologist.artifacts.store import read_layer_drift, read_layer_stats
from archaeologist.errors import ArtifactUnwritable, CheckpointError, CheckpointMissing, HeaderInvalid, UsageError
from tests.fixtures.checkpoints import drifted, qwen3_tensors, write_checkpoint, write_single

if TYPE_CHECKING:
    from contracts.messages import Progress

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two checkpoints, the second one percent away from the first."""
    tensors = qwen3_tensors(seed=3)
    base = write_checkpoint(tmp_path / "checkpoint-10", tensors=tensors, step=10)
    return base, write_checkpoint(tmp_path / "checkpoint-20", tensors=drifted(tensors, seed=4, relative=0.01), step=20)


def test_analyze_gives_statistics_and_drift_and_tells_its_progress(pair: tuple[Path, Path], tmp_path: Path) -> None:
    told: list[Progress] = []
    stats = archaeologist.analyze(
        pair[1], reference=pair[0], compute_activations=False, progress=told.append, output=tmp_path / "out"
    )
    assert stats.global_drift_stats is not None
    assert stats.global_drift_stats.relative_l2 == pytest.approx(0.01, rel=0.1)
    assert stats == read_layer_stats(tmp_path / "out" / "ckpt-000020.layer_stats.json")
    assert (told[-1].block, told[-1].bytes_read) == (told[-1].blocks, told[-1].bytes_total)


def test_without_drift_the_reference_is_left_out(pair: tuple[Path, Path]) -> None:
    stats = archaeologist.analyze(pair[1], reference=pair[0], compute_activations=False, compute_drift=False)
    assert (stats.drift_stats, stats.reference_checkpoint_path) == ({}, None)


async def test_drift_works_where_an_event_loop_runs_already(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert asyncio.get_running_loop().is_running()
    drift = archaeologist.drift(*pair, metrics=["cosine"], output=tmp_path / "drift.json")
    assert drift.metrics == ("cosine",)
    assert drift == read_layer_drift(tmp_path / "drift.json")


def test_the_same_analysis_has_the_same_key(pair: tuple[Path, Path]) -> None:
    first, second = (archaeologist.analyze(pair[0], compute_activations=False) for _ in range(2))
    assert first.job_key == second.job_key
    assert first.job_id != second.job_id


def test_what_is_wrong_with_a_checkpoint_comes_as_its_own_error(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointMissing, match="nowhere"):
        archaeologist.analyze(tmp_path / "nowhere")
    with pytest.raises(HeaderInvalid):
        archaeologist.drift(pair[0], write_single(tmp_path / "broken", b"\xff" * 64))


def test_a_folder_that_has_another_checkpoints_artifact_of_this_step_is_refused(tmp_path: Path) -> None:
    first, second = (write_checkpoint(tmp_path / name, layers=1) for name in ("first", "second"))
    out = tmp_path / "out"
    stats = archaeologist.analyze(first, compute_activations=False, output=out)
    with pytest.raises(ArtifactUnwritable, match=r"checkpoint '.*first', which has the same step 0; name another"):
        archaeologist.analyze(second, compute_activations=False, output=out)
    again = archaeologist.analyze(first, compute_activations=False, output=out)
    assert read_layer_stats(out / "ckpt-000000.layer_stats.json") == again
    assert stats.sketch is not None
    assert (out / stats.sketch.path).is_file()


def test_what_is_not_finite_in_the_reference_is_told(tmp_path: Path) -> None:
    tensors = qwen3_tensors(seed=3)
    target = write_checkpoint(tmp_path / "target", tensors=tensors)
    broken = {name: values.clone() for name, values in tensors.items()}
    broken["model.norm.weight"][:3] = math.nan
    reference = write_checkpoint(tmp_path / "reference", tensors=broken)
    told = "the drift of model.norm.weight leaves out pairs where 3 values of the reference are NaN or infinite"
    assert told in archaeologist.analyze(target, reference=reference, compute_activations=False).warnings
    assert told not in archaeologist.analyze(reference, reference=reference, compute_activations=False).warnings


def test_a_folder_is_no_output_of_a_drift(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match=r"out' is a folder; name a file, '.*/out/drift\.json'"):
        archaeologist.drift(*pair, output=tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_failed_analysis_leaves_no_file_behind(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other", layers=1)
    (other / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError):
        archaeologist.analyze(other, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
