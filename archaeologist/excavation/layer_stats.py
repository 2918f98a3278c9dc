"""The ``layer_stats`` job: weight health of one checkpoint, its drift where there is a reference, its activations."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from archaeologist.excavation.forward.found import Found
from archaeologist.excavation.judgement import judge
from archaeologist.excavation.survey import Survey, survey, versions
from archaeologist.excavation.walk import OnProgress
from archaeologist.jobs import as_named
from archaeologist.statistics import sketch
from contracts.artifacts import LayerStats, SketchInfo
from contracts.messages import Excavation

_WITH_MODEL: Final = frozenset({"attention", "generations"})


def excavate(excavation: Excavation, on_progress: OnProgress) -> tuple[LayerStats, Survey]:
    """The artifact, and what it was made from; the sketch lies in its temporary file.

    Raises:
        CheckpointError: The target, or a reference that was named, cannot be read.
        NothingComparable: A reference that was named has nothing in common with the target.
        ArtifactUnwritable: The sketch cannot be written.
    """
    started = time.perf_counter()
    job = excavation.job
    found = survey(excavation, on_progress, is_reference_needed=job.reference_is_explicit)
    reference = job.reference if found.global_drift else None
    forward = found.forward or Found()
    not_computed = _unasked(excavation, found) | forward.not_computed | found.not_computed
    artifact = LayerStats(
        campaign_id=job.campaign_id,
        hero_id=job.hero_id,
        checkpoint_path=job.target.path,
        checkpoint_step=job.target.step,
        model_ref=job.options.model_ref or "",
        created_at=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        weight_stats=found.weights,
        global_weight_stats=found.global_weights,
        activation_stats=forward.activation_stats,
        probe_info=forward.probe_info,
        forward=forward.forward,
        output_stats=forward.output_stats,
        output_stats_by_skill=forward.output_stats_by_skill,
        functional_drift=forward.functional_drift,
        generations=forward.generations,
        drift_stats=found.drift,
        reference_checkpoint_path=reference.path if reference else None,
        global_drift_stats=found.global_drift,
        compute_duration_sec=round(time.perf_counter() - started, 6),
        job_key=job.job_key,
        job_id=job.job_id,
        reference_checkpoint_step=reference.step if reference else None,
        fingerprint=job.target.fingerprint,
        reference_fingerprint=reference.fingerprint if reference else None,
        architecture=found.architecture,
        subject=found.subject,
        adapter=found.adapter,
        coverage=found.plan.coverage,
        reference_coverage=found.plan.reference_coverage,
        comparison=found.plan.comparison,
        sketch=_sketch_info(excavation) if found.has_sketch else None,
        device=forward.forward.device if forward.forward else found.device,
        not_computed={name: as_named(why, job) for name, why in not_computed.items()},
        warnings=(*job.notes, *(as_named(warning, job) for warning in found.warnings)),
        worker=excavation.worker,
        versions=versions(),
        timings=found.timings,
    )
    # Earlier checkpoints of the campaign lie in its folder, and perhaps where a request wants this one.
    beside = str(Path(excavation.artifact_path).parent)
    judgement = judge(artifact, folders=[Path(folder) for folder in (beside, excavation.history_path) if folder])
    warnings = (*artifact.warnings, *judgement.warnings)
    return replace(artifact, alerts=judgement.alerts, warnings=warnings), found


def _unasked(excavation: Excavation, found: Survey) -> dict[str, str]:
    """Optional analyses that need the forward pass, where there was none."""
    if found.forward is not None and found.forward.forward is not None:
        return {}
    why = "compute_activations is false" if found.forward is None else "the model could not be run, see activations"
    return {
        analysis: f"it runs the model on the probes, and {why}"
        for analysis in excavation.job.options.analyses
        if analysis in _WITH_MODEL
    }


def _sketch_info(excavation: Excavation) -> SketchInfo:
    name = f"ckpt-{excavation.job.target.step:06d}.sketch.safetensors"
    return SketchInfo(
        version=sketch.VERSION,
        seed=sketch.SEED,
        width=sketch.WIDTH,
        path=f"analysis/sketches/{name}" if excavation.history_path else name,
    )
