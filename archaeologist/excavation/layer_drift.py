"""The ``layer_drift`` job: where the weights of two checkpoints differ."""

import time
from datetime import UTC, datetime

from archaeologist.errors import MessageInvalid
from archaeologist.excavation.survey import Survey, survey, versions
from archaeologist.excavation.walk import OnProgress
from archaeologist.jobs import as_named
from archaeologist.statistics.drift import has_l2, select_block, select_global
from contracts.artifacts import BlockDrift, Comparison, Coverage, LayerDrift
from contracts.messages import Excavation


def excavate(excavation: Excavation, on_progress: OnProgress) -> tuple[LayerDrift, Survey]:
    """The artifact, and what it was made from.

    Raises:
        MessageInvalid: The job has no base.
        CheckpointError: A checkpoint cannot be read.
        NothingComparable: They have nothing in common.
    """
    started = time.perf_counter()
    job, base = excavation.job, excavation.job.reference
    found = survey(excavation, on_progress, is_reference_needed=True)
    if base is None or found.global_drift is None:
        msg = f"job {job.job_key!r} has no base, layer_drift compares two; give base_checkpoint_path"
        raise MessageInvalid(msg)
    metrics = job.options.metrics
    whole = select_global(found.global_drift, metrics)
    artifact = LayerDrift(
        campaign_id=job.campaign_id,
        hero_id=job.hero_id,
        base_checkpoint=base.path,
        target_checkpoint=job.target.path,
        base_checkpoint_step=base.step,
        target_checkpoint_step=job.target.step,
        created_at=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        metrics=metrics,
        layer_drift=_by_block(found) if has_l2(metrics) else {name: BlockDrift() for name in found.drift},
        avg_drift_l2=whole.avg_drift_l2,
        max_drift_l2=whole.max_drift_l2,
        most_changed_layer=whole.most_changed_layer,
        least_changed_layer=whole.least_changed_layer,
        drift_stats={name: select_block(drift, metrics) for name, drift in found.drift.items()},
        global_drift_stats=whole,
        compute_duration_sec=round(time.perf_counter() - started, 6),
        device=found.device,
        job_key=job.job_key,
        job_id=job.job_id,
        base_fingerprint=base.fingerprint,
        target_fingerprint=job.target.fingerprint,
        target_subject=found.subject,
        base_subject=found.reference_subject,
        adapter=found.adapter,
        base_coverage=found.plan.reference_coverage
        or Coverage(tensors_listed=0, tensors_read=0, bytes_listed=0, bytes_read=0),
        target_coverage=found.plan.coverage,
        comparison=found.plan.comparison or Comparison(compared=0),
        warnings=(*job.notes, *(as_named(warning, job) for warning in found.warnings)),
        worker=excavation.worker,
        versions=versions(),
        timings=found.timings,
    )
    return artifact, found


def _by_block(found: Survey) -> dict[str, BlockDrift]:
    """The specification's map: L2 of every tensor by its full name."""
    names = {(block.name, pair.within): pair.name for block in found.plan.blocks for pair in block.pairs}
    return {
        block: BlockDrift(
            l2_total=drift.total_l2,
            params={names[block, within]: l2 for within, l2 in drift.weight_l2.items()},
        )
        for block, drift in found.drift.items()
    }
