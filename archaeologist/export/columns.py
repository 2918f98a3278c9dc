"""The per-tensor table: one row a tensor and checkpoint, every number of the artifact in a column of its own. Pure.

A missing number is null, never 0 or NaN. Names are those of the artifact, with ``weight_``, ``drift_`` and
``change_`` (singular values of the change) before them; docs/export.md lists them.
"""

from collections.abc import Iterator
from typing import Any, Final, Literal, NamedTuple

from contracts.artifacts import LayerStats, LayerWeightStats, TensorDrift, TensorWeights

Kind = Literal["text", "time", "integer", "number", "flag"]


class Column(NamedTuple):
    """One column of the table."""

    name: str
    kind: Kind
    unit: str
    """"weights": the unit of the weights themselves; "share": between 0 and 1; "ratio"; "count"; "" for a name."""
    meaning: str


_NAMES: Final = (
    Column("hero_id", "text", "", "the model in training"),
    Column("campaign_id", "text", "", "the training run"),
    Column("checkpoint_step", "integer", "steps", "optimizer steps of the checkpoint"),
    Column("reference_step", "integer", "steps", "of the checkpoint it was compared with; null without one"),
    Column("created_at", "time", "UTC", "when the analysis was written"),
    Column("block", "text", "", "the block, as in the artifact"),
    Column("layer_type", "text", "", "transformer_block, embedding, norm, output or other"),
    Column("tensor", "text", "", "the tensor's name within its block"),
    Column("dtype", "text", "", "as stored"),
    Column("shape", "text", "", "sides with x between them; empty for a scalar"),
    Column("values", "integer", "count", "values of the tensor"),
)
_WEIGHTS: Final = (
    Column("l2", "number", "weights", "L2 norm"),
    Column("rms", "number", "weights", "root mean square"),
    Column("absmax", "number", "weights", "largest absolute value"),
    Column("min", "number", "weights", "smallest value"),
    Column("max", "number", "weights", "largest value"),
    Column("mean", "number", "weights", "mean"),
    Column("std", "number", "weights", "population standard deviation"),
    Column("kurtosis", "number", "ratio", "excess kurtosis"),
    *(
        Column(f"percentile_{number}", "number", "weights", f"percentile {number}")
        for number in (1, 5, 25, 50, 75, 95, 99)
    ),
    Column("zero_fraction", "number", "share", "values that are 0"),
    Column("nan_count", "integer", "count", "values that are NaN"),
    Column("inf_count", "integer", "count", "values that are infinite"),
    Column("dead_rows", "integer", "count", "rows with next to no norm; null for what is no matrix"),
    Column("dead_columns", "integer", "count", "columns likewise"),
    Column("growth", "number", "ratio", "norm over the reference's, minus 1"),
    Column("htsr_alpha", "number", "ratio", "power law of the eigenvalues, where asked for"),
    Column("htsr_tail", "integer", "count", "eigenvalues that follow it"),
    Column("htsr_distance", "number", "share", "Kolmogorov-Smirnov distance to it"),
)
_DRIFT: Final = (
    Column("l2", "number", "weights", "norm of the change"),
    Column("relative_l2", "number", "ratio", "the same over the reference's norm"),
    Column("cosine", "number", "ratio", "cosine of the two"),
    Column("one_minus_cosine", "number", "ratio", "1 - cosine, with its digits"),
    Column("changed_fraction", "number", "share", "values whose bits changed"),
    Column("below_resolution", "flag", "", "mostly rounding: few values moved, and not far"),
    Column("sign_flips", "integer", "count", "values that changed their sign"),
    Column("max_change", "number", "weights", "largest absolute change of a value"),
    Column("nonfinite_pairs", "integer", "count", "pairs left out: NaN or infinite on a side"),
)
_CHANGE: Final = (
    Column("sigma_1", "number", "weights", "largest singular value of the change, where asked for"),
    Column("stable_rank", "number", "ratio", "its stable rank"),
    Column("participation_rank", "number", "ratio", "its participation rank"),
    Column("effective_rank", "number", "ratio", "its effective rank"),
)

COLUMNS: Final = (
    *_NAMES,
    *(column._replace(name=f"weight_{column.name}") for column in _WEIGHTS),
    *(column._replace(name=f"drift_{column.name}") for column in _DRIFT),
    *(column._replace(name=f"change_{column.name}") for column in _CHANGE),
)

Row = dict[str, Any]


def rows(artifact: LayerStats) -> Iterator[Row]:
    """A row a tensor, in the artifact's order."""
    for name, block in artifact.weight_stats.items():
        drifts = artifact.drift_stats[name].tensors if name in artifact.drift_stats else {}
        for tensor, weights in block.tensors.items():
            yield {
                **_named(artifact, block, tensor, weights),
                **{f"weight_{column.name}": getattr(weights, column.name) for column in _WEIGHTS},
                **_drift(drifts.get(tensor)),
            }


def _named(artifact: LayerStats, block: LayerWeightStats, tensor: str, weights: TensorWeights) -> Row:
    values = 1
    for side in weights.shape:
        values *= side
    return {
        "hero_id": artifact.hero_id,
        "campaign_id": artifact.campaign_id,
        "checkpoint_step": artifact.checkpoint_step,
        "reference_step": artifact.reference_checkpoint_step,
        "created_at": artifact.created_at,
        "block": block.name,
        "layer_type": block.layer_type,
        "tensor": tensor,
        "dtype": weights.dtype,
        "shape": "x".join(str(side) for side in weights.shape),
        "values": values,
    }


def _drift(drift: TensorDrift | None) -> Row:
    spectrum = drift.spectrum if drift else None
    return {
        **{f"drift_{column.name}": getattr(drift, column.name) if drift else None for column in _DRIFT},
        **{f"change_{column.name}": getattr(spectrum, column.name) if spectrum else None for column in _CHANGE},
    }
