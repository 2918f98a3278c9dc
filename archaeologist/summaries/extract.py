"""The little of an artifact that the summaries need: a row of numbers a block, a shorter one a submodule, a few of all.

Of an artifact of a megabyte it is about 20 KB, so that what is kept of 2,000 is read in milliseconds. It is a pure
function of the artifact: kept or made anew, it is the same.
"""

import hashlib
from collections.abc import Iterable
from typing import Any, Final

import msgspec
import numpy as np
from msgspec import Struct

from archaeologist.artifacts.conditions import conditions
from archaeologist.summaries.ledger import Sheet
from contracts.artifacts import (
    Alert,
    FunctionalDrift,
    GlobalDriftStats,
    LayerActivationStats,
    LayerDriftStats,
    LayerStats,
    LayerWeightStats,
    OutputDrift,
    OutputStats,
)

DRIFT_COLUMNS: Final = ("total_l2", "total_cosine", "l2", "relative_l2", "one_minus_cosine", "changed_fraction")
"""Fields of ``LayerDriftStats``."""
HEALTH_COLUMNS: Final = ("mean", "std", "percentile_1", "percentile_99", "rankme", "anisotropy")
"""Fields of ``LayerActivationStats``."""
COLUMNS: Final = (
    *DRIFT_COLUMNS,
    "below_resolution",
    "cka",
    "weight_l2",
    "weight_nonfinite",
    *HEALTH_COLUMNS,
    "activation_nonfinite",
)
"""What is kept of each block; NaN where there is none."""
SUBMODULE_COLUMNS: Final = ("l2", "relative_l2", "one_minus_cosine", "changed_fraction", "below_resolution")
"""What is kept of each submodule's drift: fields of ``TensorDrift``."""
WHOLE: Final = (
    "relative_l2",
    "l2",
    "one_minus_cosine",
    "changed_fraction",
    "kl",
    "js",
    "top1_agreement",
    "weight_l2",
    "weight_nonfinite",
    "entropy",
    "loss",
)
"""What is kept of the whole model."""


LARGEST: Final = 1.7e308


class Extract(Struct, frozen=True, kw_only=True):
    """What the summaries know of one analysed checkpoint."""

    step: int
    fingerprint: str
    created_at: str
    reference_step: int | None = None
    reference_fingerprint: str | None = None
    has_drift: bool = False
    has_activations: bool = False
    most_changed_layer: str | None = None
    avg_weight_norm: float | None = None
    blocks: bytes
    """JSON of ``[[name, layer type], …]`` in the artifact's order; most checkpoints of a campaign share one."""
    columns: bytes
    """float64, little-endian, shape (columns, blocks)."""
    whole: bytes
    """float64, little-endian, one for each of ``WHOLE``."""
    probes: str | None = None
    alerts: tuple[Alert, ...] = ()


def extract(artifact: LayerStats) -> Extract:
    """What the summaries need of an artifact."""
    names = tuple(dict.fromkeys([*artifact.weight_stats, *artifact.drift_stats, *artifact.activation_stats]))
    rows = [_row(artifact, name) for name in names]
    return Extract(
        step=artifact.checkpoint_step,
        fingerprint=artifact.fingerprint,
        created_at=artifact.created_at,
        reference_step=artifact.reference_checkpoint_step,
        reference_fingerprint=artifact.reference_fingerprint,
        has_drift=bool(artifact.drift_stats),
        has_activations=bool(artifact.activation_stats),
        most_changed_layer=(artifact.global_drift_stats or GlobalDriftStats()).most_changed_layer,
        avg_weight_norm=artifact.global_weight_stats.avg_weight_norm,
        blocks=msgspec.json.encode([(name, _kind(artifact, name)) for name in names]),
        columns=_by_column(rows, COLUMNS),
        whole=np.array(_whole(artifact), dtype="<f8").tobytes(),
        probes=_probes(artifact),
        alerts=artifact.alerts,
    )


def sheet_of(extract: Extract) -> Sheet:
    """The numbers of an extract's blocks."""
    return Sheet(names=extract.blocks, values=extract.columns)


def submodules(artifact: LayerStats) -> Sheet | None:
    """The drift of each tensor, labelled with its block; None where there was no reference."""
    if not artifact.drift_stats:
        return None
    found = {
        f"{block}.{name}": (block, one)
        for block, drift in artifact.drift_stats.items()
        for name, one in drift.tensors.items()
    }
    rows = [[_number(value) for value in _fields(one, SUBMODULE_COLUMNS)] for _, one in found.values()]
    return Sheet(
        names=msgspec.json.encode([(name, block) for name, (block, _) in found.items()]),
        values=_by_column(rows, SUBMODULE_COLUMNS),
    )


def _by_column(rows: list[list[float]], columns: tuple[str, ...]) -> bytes:
    values = np.array(rows, dtype="<f8").reshape(len(rows), len(columns)).T
    return np.ascontiguousarray(values).tobytes()


def _row(artifact: LayerStats, name: str) -> list[float]:
    """The values of one block, in the order of ``COLUMNS``."""
    weights = artifact.weight_stats.get(name) or LayerWeightStats(name=name, layer_type="other")
    drift = _whole_drift(artifact, name) or LayerDriftStats(name=name)
    active = artifact.activation_stats.get(name)
    functional = artifact.functional_drift or FunctionalDrift()
    similarity = functional.similarity.get(name)
    has_weights = name in artifact.weight_stats
    values = [
        *_fields(drift, DRIFT_COLUMNS),
        drift.below_resolution,
        similarity.cka if similarity else None,
        weights.l2,
        weights.nan_count + weights.inf_count if has_weights else None,
        *_fields(active or LayerActivationStats(name=name), HEALTH_COLUMNS),
        _nonfinite(active) if active else None,
    ]
    return [_number(value) for value in values]


def _whole_drift(artifact: LayerStats, name: str) -> LayerDriftStats | None:
    """A block's drift; None where a tensor of it has another shape in the reference: the rest did not move alone."""
    differing = artifact.comparison.shape_differs if artifact.comparison else {}
    weights = artifact.weight_stats.get(name)
    if weights and any(f"{name}.{within}" in differing for within in weights.tensors):
        return None
    return artifact.drift_stats.get(name)


def _whole(artifact: LayerStats) -> list[float]:
    """The values of the whole model, in the order of ``WHOLE``."""
    functional = artifact.functional_drift or FunctionalDrift()
    weights = artifact.global_weight_stats
    values = [
        *_fields(artifact.global_drift_stats or GlobalDriftStats(), WHOLE[:4]),
        *_fields(functional.output or OutputDrift(), WHOLE[4:7]),
        weights.l2,
        weights.nan_count + weights.inf_count,
        *_fields(artifact.output_stats or OutputStats(), WHOLE[9:]),
    ]
    return [_number(value) for value in values]


def _fields(record: Struct, names: Iterable[str]) -> list[Any]:
    return [getattr(record, name) for name in names]


def _nonfinite(active: LayerActivationStats) -> int:
    parts = (active.distribution, active.first_token)
    return sum(part.nan_count + part.inf_count for part in parts if part)


def _number(value: float | None) -> float:
    # A count too large for a float is as good as none.
    return float("nan") if value is None or abs(value) > LARGEST else float(value)


def _kind(artifact: LayerStats, name: str) -> str:
    block = artifact.weight_stats.get(name)
    return block.layer_type if block else "other"


def _probes(artifact: LayerStats) -> str | None:
    """One hash for what the model was run on, and how."""
    info = artifact.probe_info
    if info is None:
        return None
    found = conditions(
        architecture=artifact.architecture,
        probes=info.sha256,
        tokenizer=info.tokenizer_sha256,
        rankme_tokens=(block.rankme_tokens for block in artifact.activation_stats.values()),
    )
    return hashlib.sha256(msgspec.json.encode(found)).hexdigest()
