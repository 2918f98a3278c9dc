"""Weight drift: from sums over pairs of values to the artifact's fields, by tensor, block and checkpoint.

Pure; called by the excavation with sums that the kernels made. Drift says where the weights moved, not what the model
forgot. Definitions and traps are in docs/statistics.md.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from contracts.artifacts import GlobalDriftStats, LayerDriftStats, TensorDrift

RESOLUTION_GATE: Final = 0.5
"""Below this share of changed values rounding may dominate the drift. A judgement: no source."""
ROUNDING_STEPS: Final = 4.0
"""What moved farther than so many steps of its precision did not move by rounding. A judgement: in trials with six
distributions and three dtypes rounding moved values by at most 2.6 (root mean squares; ``test_drift``)."""


class PairSums(Struct, frozen=True, kw_only=True):
    """What is summed over the values of a tensor and its reference, in float64; Σ over pairs of finite values."""

    count: int = 0
    """Pairs, finite or not."""
    difference: float = 0.0
    """Σ(x - y)²"""
    squares: float = 0.0
    """Σx²"""
    reference_squares: float = 0.0
    """Σy²"""
    products: float = 0.0
    """Σxy"""
    largest: float = 0.0
    """max |x - y|"""
    changed: int = 0
    resolution: float = 0.0
    """The step between stored values over their size, of the coarser side: 2⁻⁷ of bfloat16."""
    sign_flips: int = 0
    nonfinite_pairs: int = 0

    @property
    def finite_count(self) -> int:
        """Pairs in which both values are finite."""
        return self.count - self.nonfinite_pairs

    @property
    def one_minus_cosine(self) -> float | None:
        """(‖x-y‖² - (‖y‖-‖x‖)²) / (2‖x‖‖y‖), which keeps its digits near 0; None where a side is all zero.

        Where the sides are far apart that form loses digits instead, and 1 - Σxy / (‖x‖‖y‖) keeps them.
        """
        mine, theirs = math.sqrt(self.squares), math.sqrt(self.reference_squares)
        if mine == 0 or theirs == 0:
            return None
        if self.difference < mine * theirs:
            apart = (self.difference - (theirs - mine) ** 2) / (2 * mine * theirs)
        else:
            apart = 1 - self.products / mine / theirs
        return min(2.0, max(0.0, apart))

    @property
    def changed_fraction(self) -> float | None:
        """Share of values that changed; None where there are none."""
        return self.changed / self.count if self.count else None


def together(parts: Iterable[PairSums]) -> PairSums:
    """The sums over several tensors."""
    found = list(parts)
    return PairSums(
        count=sum(part.count for part in found),
        difference=math.fsum(part.difference for part in found),
        squares=math.fsum(part.squares for part in found),
        reference_squares=math.fsum(part.reference_squares for part in found),
        products=math.fsum(part.products for part in found),
        largest=max((part.largest for part in found), default=0.0),
        changed=sum(part.changed for part in found),
        resolution=max((part.resolution for part in found), default=0.0),
        sign_flips=sum(part.sign_flips for part in found),
        nonfinite_pairs=sum(part.nonfinite_pairs for part in found),
    )


def tensor_drift(sums: PairSums) -> TensorDrift:
    """Drift of one tensor; null where no pair of finite values is left."""
    distance = math.sqrt(sums.difference) if sums.finite_count else None
    return TensorDrift(
        l2=distance,
        relative_l2=_relative(sums),
        cosine=_cosine(sums),
        one_minus_cosine=sums.one_minus_cosine,
        changed_fraction=sums.changed_fraction,
        below_resolution=_is_below_resolution(sums),
        sign_flips=sums.sign_flips,
        max_change=sums.largest if sums.finite_count else None,
        nonfinite_pairs=sums.nonfinite_pairs,
    )


def block_drift(tensors: Mapping[str, PairSums], *, name: str) -> LayerDriftStats:
    """Drift of one block: the specification's totals, and the block as one long vector.

    Args:
        tensors: By name within the block.
        name: The block's.
    """
    drifts = {within: tensor_drift(sums) for within, sums in tensors.items()}
    all_sums = together(tensors.values())
    whole = tensor_drift(all_sums)
    distances = [drift.l2 for drift in drifts.values() if drift.l2 is not None]
    cosines = [drift.cosine for drift in drifts.values() if drift.cosine is not None]
    return LayerDriftStats(
        name=name,
        weight_l2={within: drift.l2 for within, drift in drifts.items()},
        weight_cosine={within: drift.cosine for within, drift in drifts.items()},
        total_l2=math.fsum(distances) if distances else None,
        total_cosine=math.fsum(cosines) / len(cosines) if cosines else None,
        l2=whole.l2,
        relative_l2=whole.relative_l2,
        cosine=whole.cosine,
        one_minus_cosine=whole.one_minus_cosine,
        changed_fraction=whole.changed_fraction,
        below_resolution=_is_mostly_rounding(tensors.values()),
        sign_flips=whole.sign_flips,
        max_change=whole.max_change,
        nonfinite_pairs=whole.nonfinite_pairs,
        tensors=drifts,
    )


def global_drift(blocks: Mapping[str, LayerDriftStats], sums: PairSums) -> GlobalDriftStats:
    """Drift over the checkpoint. The most and least changed blocks are null where nothing moved.

    Args:
        blocks: By name.
        sums: Over all tensors.
    """
    distances = [tensor.l2 for block in blocks.values() for tensor in block.tensors.values() if tensor.l2 is not None]
    by_total = {name: block.total_l2 for name, block in blocks.items() if block.total_l2 is not None}
    by_relative = {name: block.relative_l2 for name, block in blocks.items() if block.relative_l2 is not None}
    whole = tensor_drift(sums)
    most, least = _ends(by_total)
    most_relative, least_relative = _ends(by_relative)
    return GlobalDriftStats(
        avg_drift_l2=math.fsum(distances) / len(distances) if distances else None,
        max_drift_l2=max(distances, default=None),
        most_changed_layer=most,
        least_changed_layer=least,
        most_changed_layer_relative=most_relative,
        least_changed_layer_relative=least_relative,
        l2=whole.l2,
        relative_l2=whole.relative_l2,
        cosine=whole.cosine,
        one_minus_cosine=whole.one_minus_cosine,
        changed_fraction=whole.changed_fraction,
        blocks_below_resolution=sum(block.below_resolution is True for block in blocks.values()),
        blocks=len(blocks),
    )


def select_block(drift: LayerDriftStats, metrics: Collection[str]) -> LayerDriftStats:
    """The block's drift with what was not asked for empty or null. ``frobenius`` is ``l2`` under its other name."""
    if not has_l2(metrics):
        tensors = {name: replace(tensor, l2=None, relative_l2=None) for name, tensor in drift.tensors.items()}
        drift = replace(drift, weight_l2={}, total_l2=None, l2=None, relative_l2=None, tensors=tensors)
    if "cosine" not in metrics:
        tensors = {name: replace(tensor, cosine=None, one_minus_cosine=None) for name, tensor in drift.tensors.items()}
        drift = replace(drift, weight_cosine={}, total_cosine=None, cosine=None, one_minus_cosine=None, tensors=tensors)
    return drift


def select_global(drift: GlobalDriftStats, metrics: Collection[str]) -> GlobalDriftStats:
    """The checkpoint's drift with what was not asked for null; the ranking of blocks follows L2."""
    if not has_l2(metrics):
        drift = replace(
            drift,
            avg_drift_l2=None,
            max_drift_l2=None,
            most_changed_layer=None,
            least_changed_layer=None,
            most_changed_layer_relative=None,
            least_changed_layer_relative=None,
            l2=None,
            relative_l2=None,
        )
    return drift if "cosine" in metrics else replace(drift, cosine=None, one_minus_cosine=None)


def has_l2(metrics: Collection[str]) -> bool:
    """Whether the L2 norm was asked for, under either name."""
    return "l2" in metrics or "frobenius" in metrics


def _relative(sums: PairSums) -> float | None:
    return math.sqrt(sums.difference) / math.sqrt(sums.reference_squares) if sums.reference_squares > 0 else None


def _cosine(sums: PairSums) -> float | None:
    apart = sums.one_minus_cosine
    return None if apart is None else 1 - apart


def _is_below_resolution(sums: PairSums) -> bool | None:
    """Whether few values changed, and those by no more than rounding does.

    A few rows of an embedding that were trained moved far; what rounding moved did by a step of its own size, so the
    mean square of the changes is at most about that of the steps.
    """
    if not sums.count:
        return None
    step_squares = (ROUNDING_STEPS * sums.resolution) ** 2 * sums.reference_squares / sums.count
    return sums.changed < RESOLUTION_GATE * sums.count and sums.difference <= step_squares * sums.changed


def _is_mostly_rounding(tensors: Iterable[PairSums]) -> bool | None:
    """Whether most of Σ(x - y)² is of tensors below the resolution: those that nobody trained do not count."""
    known = [(sums.difference, below) for sums in tensors if (below := _is_below_resolution(sums)) is not None]
    if not known:
        return None
    total = math.fsum(difference for difference, _ in known)
    if total == 0:
        # Nothing moved, or nothing that did is finite.
        return all(below for _, below in known)
    return 2 * math.fsum(difference for difference, below in known if below) >= total


def _ends(by_block: Mapping[str, float]) -> tuple[str | None, str | None]:
    """The blocks with the largest and the smallest value, the first of equals; none where all are 0."""
    if not any(by_block.values()):
        return None, None
    return max(by_block, key=by_block.__getitem__), min(by_block, key=by_block.__getitem__)
