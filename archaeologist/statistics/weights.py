"""Weight health: from a tensor's distribution and norms to the artifact's fields, by tensor, block and checkpoint.

Pure; called by the excavation with sums that the kernels made. Definitions are in docs/statistics.md.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from archaeologist.statistics import kernels_counts
from archaeologist.statistics.distribution import Distribution
from contracts.artifacts import PERCENTILES, GlobalWeightStats, LayerWeightStats, TensorWeights

Floats = npt.NDArray[np.float64]

DEAD_SHARE: Final = 1e-6
"""A row or column is dead below this share of the median norm. A judgement: no source."""


def tensor_weights(
    distribution: Distribution,
    *,
    dtype: str,
    shape: tuple[int, ...],
    row_squares: Floats | None = None,
    column_squares: Floats | None = None,
    growth: float | None = None,
) -> TensorWeights:
    """Weight health of one tensor.

    Args:
        distribution: Of its values.
        dtype: As stored.
        shape: As stored.
        row_squares: Σx² by matrix row; None for what is not a matrix.
        column_squares: Σx² by matrix column.
        growth: From ``growth_of``.
    """
    total = distribution.count + distribution.nan_count + distribution.inf_count
    by_percent = dict(zip(PERCENTILES, distribution.percentiles, strict=True))
    return TensorWeights(
        dtype=dtype,
        shape=shape,
        l2=distribution.l2,
        rms=distribution.rms,
        absmax=distribution.absmax,
        min=distribution.min,
        max=distribution.max,
        mean=distribution.mean,
        std=distribution.std,
        kurtosis=distribution.kurtosis,
        **{f"percentile_{percent}": value for percent, value in by_percent.items()},
        zero_fraction=distribution.zeros / total if total else None,
        nan_count=distribution.nan_count,
        inf_count=distribution.inf_count,
        dead_rows=None if row_squares is None else dead_count(row_squares),
        dead_columns=None if column_squares is None else dead_count(column_squares),
        growth=growth,
        htsr_tail=None,  # with the others of its analysis, where that was asked for
    )


def dead_count(squares: Floats) -> int:
    """How many rows (or columns) have a norm of at most ``DEAD_SHARE`` of the median norm.

    "At most", so that rows of zeros are dead also where the median is 0.

    Args:
        squares: Σx² of each, float64.
    """
    return int(kernels_counts.at_most(squares, DEAD_SHARE)) if squares.size else 0


def growth_of(squares: float, reference_squares: float) -> float | None:
    """Norm over the reference's, minus 1; None where that is 0.

    Args:
        squares: Σx² over the pairs in which both values are finite.
        reference_squares: Σy² over the same pairs.
    """
    return math.sqrt(squares) / math.sqrt(reference_squares) - 1 if reference_squares > 0 else None


def block_weights(
    tensors: Mapping[str, TensorWeights],
    *,
    name: str,
    layer_type: str,
    biases: Collection[str] = (),
    growth: float | None = None,
) -> LayerWeightStats:
    """Weight health of one block.

    Args:
        tensors: By name within the block.
        name: The block's.
        layer_type: transformer_block, embedding, norm, output or other.
        biases: Which of the tensors are biases.
        growth: From ``growth_of`` with the sums over the block's tensors.
    """
    return LayerWeightStats(
        name=name,
        layer_type=layer_type,
        weight_norms={within: tensor.l2 for within, tensor in tensors.items() if within not in biases},
        bias_norms={within: tensor.l2 for within, tensor in tensors.items() if within in biases},
        param_count=sum(math.prod(tensor.shape) for tensor in tensors.values()),
        l2=_together(tensor.l2 for tensor in tensors.values()),
        growth=growth,
        nan_count=sum(tensor.nan_count for tensor in tensors.values()),
        inf_count=sum(tensor.inf_count for tensor in tensors.values()),
        tensors=dict(tensors),
    )


def global_weights(blocks: Iterable[LayerWeightStats]) -> GlobalWeightStats:
    """Norms over all tensors of the checkpoint: mean, largest and smallest, and the norm of all together."""
    found = list(blocks)
    norms = [tensor.l2 for block in found for tensor in block.tensors.values() if tensor.l2 is not None]
    return GlobalWeightStats(
        avg_weight_norm=math.fsum(norms) / len(norms) if norms else None,
        max_weight_norm=max(norms, default=None),
        min_weight_norm=min(norms, default=None),
        l2=_together(norms),
        param_count=sum(block.param_count for block in found),
        nan_count=sum(block.nan_count for block in found),
        inf_count=sum(block.inf_count for block in found),
    )


def _together(norms: Iterable[float | None]) -> float | None:
    """Root of the sum of squares of those that are known; None where none is."""
    known = [norm for norm in norms if norm is not None]
    return math.sqrt(math.fsum(norm * norm for norm in known)) if known else None
