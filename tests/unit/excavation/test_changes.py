"""A checkpoint that is overwritten while the walk is under way."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from archaeologist.errors import CheckpointChanged
from archaeologist.excavation import layer_drift, layer_stats
from contracts.messages import Excavation, JobOptions, Progress
from tests.fixtures.checkpoints import write_checkpoint
from tests.fixtures.jobs import layer_stats_job, side

OPTIONS = JobOptions(compute_activations=False)


def overwriting(checkpoint: Path) -> Callable[[Progress], None]:
    """Changes the last bytes of a checkpoint, as many as before, whenever progress is reported."""

    def overwrite(_: Progress) -> None:
        with (checkpoint / "model.safetensors").open("r+b") as file:
            file.seek(-64, os.SEEK_END)
            file.write(os.urandom(64))

    return overwrite


def test_a_target_that_is_overwritten_meanwhile_is_no_result(tmp_path: Path) -> None:
    target = write_checkpoint(tmp_path / "checkpoint-1", seed=1)
    job = layer_stats_job(side(target, 1), options=OPTIONS)
    with pytest.raises(CheckpointChanged, match="was written to while it was read"):
        layer_stats.excavate(Excavation(job=job, artifact_path=str(tmp_path / "a.tmp")), overwriting(target))


def test_a_reference_that_is_overwritten_meanwhile_is_left_out(tmp_path: Path) -> None:
    base, target = (write_checkpoint(tmp_path / f"checkpoint-{step}", seed=step) for step in (1, 2))
    job = layer_stats_job(side(target, 2), side(base, 1), options=OPTIONS)
    artifact, _ = layer_stats.excavate(Excavation(job=job, artifact_path=str(tmp_path / "a.tmp")), overwriting(base))
    assert artifact.drift_stats == {}
    assert any("the reference was left out" in warning for warning in artifact.warnings)


def test_a_base_that_is_overwritten_meanwhile_fails_the_drift(tmp_path: Path) -> None:
    base, target = (write_checkpoint(tmp_path / f"checkpoint-{step}", seed=step) for step in (1, 2))
    job = layer_stats_job(side(target, 2), side(base, 1), job_type="layer_drift")
    with pytest.raises(CheckpointChanged):
        layer_drift.excavate(Excavation(job=job, artifact_path=str(tmp_path / "a.tmp")), overwriting(base))
