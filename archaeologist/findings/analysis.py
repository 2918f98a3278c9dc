"""The findings of one analysis: the sentences of the completed event."""

from collections.abc import Mapping, Sequence

from archaeologist.findings.function import function
from archaeologist.findings.movement import compared, is_alike, movement, resolution
from archaeologist.findings.wording import counted, finite, known_step, percent
from contracts.artifacts import (
    Alert,
    FunctionalDrift,
    GlobalDriftStats,
    GlobalWeightStats,
    LayerDrift,
    LayerDriftStats,
    LayerStats,
    LayerWeightStats,
)
from contracts.findings import Evidence, Finding


def of_artifact(artifact: LayerStats) -> tuple[Finding, ...]:
    """What a ``layer_stats`` artifact says of its checkpoint."""
    return findings(
        artifact.weight_stats,
        artifact.global_weight_stats,
        drift=artifact.drift_stats,
        global_drift=artifact.global_drift_stats,
        functional=artifact.functional_drift,
        alerts=artifact.alerts,
        steps=(
            artifact.checkpoint_step,
            known_step(artifact.reference_checkpoint_step, artifact.reference_checkpoint_path),
        ),
        left_out=len(artifact.comparison.shape_differs) if artifact.comparison else 0,
    )


def of_drift(artifact: LayerDrift, kinds: Mapping[str, str]) -> tuple[Finding, ...]:
    """What a ``layer_drift`` artifact says.

    Args:
        artifact: It does not say of which kind its blocks are.
        kinds: Layer type by block.
    """
    step = artifact.target_checkpoint_step
    base = known_step(artifact.base_checkpoint_step, artifact.base_checkpoint)
    left_out = len(artifact.comparison.shape_differs)
    found = compared(artifact.drift_stats, {}, step=step, reference_step=base, kinds=kinds, left_out=left_out)
    moved = movement(found) or _whole(artifact.global_drift_stats, artifact.drift_stats, step)
    return tuple(one for one in (moved, resolution(found)) if one is not None)


def findings(
    weights: Mapping[str, LayerWeightStats],
    whole: GlobalWeightStats,
    *,
    drift: Mapping[str, LayerDriftStats],
    global_drift: GlobalDriftStats | None,
    functional: FunctionalDrift | None = None,
    alerts: Sequence[Alert] = (),
    steps: tuple[int | None, int | None] = (None, None),
    left_out: int = 0,
) -> tuple[Finding, ...]:
    """The alerts, then the size of the model, what moved, what is rounding, and the predictions.

    Args:
        weights: By block.
        whole: Of the whole model.
        drift: By block; empty without a reference.
        global_drift: None without a reference.
        functional: None where the model was not run on both sides.
        alerts: Of the checkpoint.
        steps: The checkpoint's and its reference's, None where nobody knows it.
        left_out: Tensors that have another shape in the reference.
    """
    step, reference_step = steps
    found = [_alerts(alerts, step), _size(weights, whole, step)]
    if global_drift is not None:
        comparison = compared(drift, weights, step=step, reference_step=reference_step, left_out=left_out)
        moved = movement(comparison) or _whole(global_drift, drift, step)
        output = functional.output if functional else None
        found += [moved, resolution(comparison), function(output, step=step, reference_step=reference_step)]
    return tuple(one for one in found if one is not None)


def _alerts(alerts: Sequence[Alert], step: int | None) -> Finding | None:
    if not alerts:
        return None
    critical = any(alert.severity == "critical" for alert in alerts)
    metrics = ", ".join(dict.fromkeys(alert.metric for alert in alerts))
    return Finding(
        topic="alert",
        severity="critical" if critical else "warning",
        text=f"{counted(len(alerts), 'alert')}{', critical' if critical else ''}: {metrics}.",
        basis="each is an event of its own",
        evidence=Evidence(metric="alerts", step=step),
    )


def _size(weights: Mapping[str, LayerWeightStats], whole: GlobalWeightStats, step: int | None) -> Finding:
    norm = finite(whole.l2)
    l2 = "" if norm is None else f", L2 norm {norm:.6g}"
    text = f"{counted(whole.param_count, 'parameter')} in {counted(len(weights), 'block')}{l2}."
    return Finding(topic="coverage", severity="info", text=text, evidence=Evidence(step=step))


def _whole(whole: GlobalDriftStats, drift: Mapping[str, LayerDriftStats], step: int | None) -> Finding | None:
    """The farthest block without a median to compare it with, unless it is rounding."""
    most = whole.most_changed_layer_relative
    block = drift.get(most) if most is not None else None
    relative = finite(block.relative_l2) if block is not None else None
    if block is None or relative is None or block.below_resolution is not False:
        return None
    others = (one for name, one in drift.items() if name != most and one.below_resolution is False)
    ties = sum(is_alike(relative, one.relative_l2) for one in others)
    changed = "" if block.changed_fraction is None else f", {percent(block.changed_fraction)} of its values"
    return Finding(
        topic="movement",
        severity="info",
        text=f"{most}{f' and {ties} more' if ties else ''} moved most (relative L2 {relative:.2g}).",
        basis=f"{counted(len(drift), 'block')} compared{changed}",
        evidence=Evidence(block=most, metric="relative_l2", step=step),
    )
