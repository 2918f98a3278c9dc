"""Runs jobs in this process, as the child does."""

from pathlib import Path
from typing import Any

from msgspec.structs import replace

from archaeologist import api
from archaeologist.excavation import layer_drift, layer_stats
from contracts.artifacts import LayerDrift, LayerStats
from contracts.messages import Excavation, GpuOptions, Job, JobOptions, Side
from tests.fixtures.jobs import layer_stats_job


def stats(target: Path | Side, reference: Path | Side | None = None, **options: Any) -> LayerStats:
    """The ``layer_stats`` artifact; without activations unless they are asked for."""
    sides = [_side(one, step) for step, one in enumerate((reference, target), start=1) if one is not None]
    chosen = JobOptions(**{"compute_activations": False, "max_probe_tokens": 512, **options})
    job = layer_stats_job(
        sides[-1], sides[0] if reference else None, options=chosen, reference_is_explicit=reference is not None
    )
    artifact, _ = layer_stats.excavate(_excavation(job, sides[-1]), lambda _: None)
    return artifact


def drift(base: Path | Side, target: Path | Side) -> LayerDrift:
    """The ``layer_drift`` artifact."""
    to = _side(target, 2)
    job = layer_stats_job(to, _side(base, 1), job_type="layer_drift", options=JobOptions(compute_activations=False))
    artifact, _ = layer_drift.excavate(_excavation(job, to), lambda _: None)
    return artifact


def _side(one: Path | Side, step: int) -> Side:
    return one if isinstance(one, Side) else replace(api.side(one), step=step)


def _excavation(job: Job, target: Side) -> Excavation:
    folder = Path(target.path).parent / "artifacts"
    folder.mkdir(exist_ok=True)
    return Excavation(job=job, artifact_path=str(folder / "a.tmp"), threads=2, gpu=GpuOptions(device="cpu"))
