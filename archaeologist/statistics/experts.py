"""Mixtures of experts: each expert's tensors together, and all experts of a mixture together.

Pure; called by the excavation with what it found about the single tensors. A mixture is given as its experts' numbers,
each with the names of its tensors within the block.
"""

import math
from collections.abc import Collection, Mapping

from archaeologist.statistics.drift import PairSums, tensor_drift, together
from contracts.artifacts import ExpertDrift, ExpertWeights, TensorWeights

Mixture = Mapping[int, Collection[str]]


def expert_weights(mixture: Mixture, tensors: Mapping[str, TensorWeights]) -> ExpertWeights:
    """Norms of the experts.

    Args:
        mixture: Tensors by expert.
        tensors: Of the block, by name within it.
    """
    numbers = sorted(mixture)
    norms = [_together([tensors[within].l2 for within in mixture[number]]) for number in numbers]
    return ExpertWeights(
        count=len(numbers),
        experts=tuple(numbers),
        expert_l2=tuple(norms),
        l2=_together(norms),
        param_count=sum(math.prod(tensors[within].shape) for names in mixture.values() for within in names),
    )


def expert_drift(mixture: Mixture, sums: Mapping[str, PairSums]) -> ExpertDrift | None:
    """Drift of the experts; None where no tensor of theirs was compared.

    Args:
        mixture: Tensors by expert.
        sums: Of the block's tensors that were compared, by name within it.
    """
    by_expert = {
        number: together(compared)
        for number, names in sorted(mixture.items())
        if (compared := [sums[within] for within in names if within in sums])
    }
    if not by_expert:
        return None
    drifts = {number: tensor_drift(found) for number, found in by_expert.items()}
    whole = tensor_drift(together(by_expert.values()))
    moved = {number: drift.relative_l2 for number, drift in drifts.items() if drift.relative_l2}
    return ExpertDrift(
        count=len(drifts),
        experts=tuple(drifts),
        expert_l2=tuple(drift.l2 for drift in drifts.values()),
        expert_relative_l2=tuple(drift.relative_l2 for drift in drifts.values()),
        l2=whole.l2,
        relative_l2=whole.relative_l2,
        most_changed=max(moved, key=moved.__getitem__) if moved else None,
    )


def _together(norms: Collection[float | None]) -> float | None:
    known = [norm for norm in norms if norm is not None]
    return math.sqrt(math.fsum(norm * norm for norm in known)) if known else None
