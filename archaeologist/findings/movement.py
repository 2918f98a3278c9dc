"""What the drift of one comparison supports: which block stands out, and what is below the stored resolution."""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Final

from msgspec import Struct

from archaeologist.findings.wording import counted, dtypes, finite, labels, number
from contracts.artifacts import LayerDriftStats, LayerWeightStats, TensorDrift
from contracts.findings import Evidence, Finding

STANDS_OUT: Final = 1.5
"""Times the median that a block must have moved to stand out. A judgement."""
FEWEST: Final = 3
"""Blocks that a median is taken of."""
SAME: Final = 1e-9
"""Two blocks whose relative L2 differ by less of themselves moved as far."""
EXACT_TIMES: Final = 10
"""From here on a ratio has no decimals."""
LEADS: Final = 1.1
"""Times the next part that a block's leading part must have moved. A judgement."""


class Move(Struct, frozen=True, kw_only=True):
    """How far a block moved."""

    name: str
    kind: str = "other"
    relative: float | None = None
    changed: float | None = None
    """Share of values that changed."""
    is_below_resolution: bool | None = None


class Comparison(Struct, frozen=True, kw_only=True):
    """One checkpoint against its reference."""

    moves: tuple[Move, ...]
    step: int | None = None
    reference_step: int | None = None
    parts: Mapping[str, Mapping[str, TensorDrift]] = {}
    """The tensors of each block, where they are known."""
    dtypes: Mapping[str, tuple[str, ...]] = {}
    """As stored, by block, where they are known."""
    left_out: int = 0
    """Tensors that have another shape in the reference."""

    @property
    def since(self) -> str:
        """Since when, in words."""
        return "since its reference" if self.reference_step is None else f"since step {self.reference_step}"


class Leader(Struct, frozen=True, kw_only=True):
    """The block that moved farthest among those that can be told apart."""

    move: Move
    relative: float
    ratio: float
    """Times the median."""
    median: float
    blocks: int
    """That the median is of."""
    ties: int = 0
    """How many others moved as far."""


def compared(
    drift: Mapping[str, LayerDriftStats],
    weights: Mapping[str, LayerWeightStats],
    *,
    step: int | None,
    reference_step: int | None,
    kinds: Mapping[str, str] | None = None,
    left_out: int = 0,
) -> Comparison:
    """The comparison in an artifact.

    Args:
        drift: By block.
        weights: By block, where the artifact has them.
        step: The checkpoint's.
        reference_step: Of what it was compared with.
        kinds: Layer type by block; None: as ``weights`` says.
        left_out: Tensors that have another shape in the reference.
    """
    known = {name: block.layer_type for name, block in weights.items()} if kinds is None else kinds
    return Comparison(
        moves=tuple(
            Move(
                name=name,
                kind=known.get(name, "other"),
                relative=block.relative_l2,
                changed=block.changed_fraction,
                is_below_resolution=block.below_resolution,
            )
            for name, block in drift.items()
        ),
        step=step,
        reference_step=reference_step,
        parts={name: block.tensors for name, block in drift.items()},
        dtypes={name: tuple(tensor.dtype for tensor in block.tensors.values()) for name, block in weights.items()},
        left_out=left_out,
    )


def leader(moves: Sequence[Move]) -> Leader | None:
    """The block that moved farthest; None where fewer than three can be compared.

    Only blocks above the resolution take part: below it drift is rounding, and larger than the true one. Where there
    are transformer blocks enough, these alone: norms and embeddings move on a scale of their own.
    """
    known = [
        (move, relative)
        for move in moves
        if move.is_below_resolution is False and (relative := finite(move.relative)) is not None and relative > 0
    ]
    blocks = [pair for pair in known if pair[0].kind == "transformer_block"]
    candidates = blocks if len(blocks) >= FEWEST else known
    if len(candidates) < FEWEST:
        return None
    middle = median(relative for _, relative in candidates)
    farthest, relative = max(candidates, key=lambda pair: pair[1])
    ratio = finite(relative / middle) if middle > 0 else None
    if ratio is None:
        return None
    return Leader(
        move=farthest,
        relative=relative,
        ratio=ratio,
        median=middle,
        blocks=len(candidates),
        ties=sum(is_alike(relative, other) for _, other in candidates) - 1,
    )


def is_alike(relative: float, other: float | None) -> bool:
    """Whether two blocks moved as far, but for rounding."""
    return other is not None and math.isclose(relative, other, rel_tol=SAME)


def movement(found: Comparison) -> Finding | None:
    """Which block moved how many times the median, or that none stands out; None where nothing can be told."""
    if found.moves and all(move.changed == 0 for move in found.moves):
        return Finding(
            topic="movement",
            severity="warning",
            text=f"No value {'that was compared ' if found.left_out else ''}changed {found.since}.",
            basis=f"{counted(len(found.moves), 'block')} compared bit by bit{_missing(found.left_out)}",
            evidence=Evidence(metric="changed_fraction", step=found.step),
        )
    first = leader(found.moves)
    if first is None:
        return None
    name = labels({move.name: move.kind for move in found.moves})[first.move.name]
    name += f" and {first.ties} more" if first.ties else ""
    times = _times(first.ratio)
    if first.ratio < STANDS_OUT:
        text = f"No block stands out {found.since}: {name} moved most, {times} the median."
    else:
        part = None if first.ties else _leading_part(found.parts.get(first.move.name, {}))
        text = f"{name} moved {times} the median {found.since}{f'; {part} leads' if part else ''}."
    return Finding(
        topic="movement",
        severity="info",
        text=text,
        basis=f"relative L2 {number(first.relative)}, median {number(first.median)} of {_blocks(first, found)}",
        evidence=Evidence(block=first.move.name, metric="relative_l2", step=found.step),
    )


def _times(ratio: float) -> str:
    """In words; what does not stand out is not rounded to what does."""
    if ratio < STANDS_OUT:
        return f"{min(ratio, STANDS_OUT - 0.01):.2f} times"
    return f"{ratio:.1f} times" if ratio < EXACT_TIMES else f"{ratio:,.0f} times"


def resolution(found: Comparison) -> Finding | None:
    """How many blocks' drift is rounding; None where no block's is."""
    # What did not change at all is exact, whatever the resolution.
    rounded = [move.name for move in found.moves if move.is_below_resolution and move.changed]
    if not rounded:
        return None
    stored = dtypes(dtype for name in rounded for dtype in found.dtypes.get(name, ())) or "the stored precision"
    total = len(found.moves)
    text = f"{len(rounded)} of {total} blocks are below the resolution of {stored}: drift there is rounding."
    return Finding(
        topic="resolution",
        severity="warning" if 2 * len(rounded) > total else "info",
        text=text,
        basis=f"few of their values changed {found.since}, and no farther than rounding moves them",
        evidence=Evidence(block=rounded[0] if len(rounded) == 1 else None, metric="changed_fraction", step=found.step),
    )


def _missing(left_out: int) -> str:
    return f"; {counted(left_out, 'tensor')} of another shape left out" if left_out else ""


def _blocks(first: Leader, found: Comparison) -> str:
    return f"{first.blocks} blocks above the resolution, {len(found.moves)} compared"


def _leading_part(tensors: Mapping[str, TensorDrift]) -> str | None:
    """The tensor that moved clearly farthest; None where none did, or it is the only one."""
    known = sorted(
        (
            (relative, name)
            for name, tensor in tensors.items()
            if not tensor.below_resolution and (relative := finite(tensor.relative_l2)) is not None
        ),
        reverse=True,
    )
    if len(known) <= 1 or known[0][0] < LEADS * known[1][0] or known[0][0] <= 0:
        return None
    name = known[0][1].removesuffix(".weight")
    short = name.rpartition(".")[2]
    others = (other.removesuffix(".weight").rpartition(".")[2] for _, other in known[1:])
    return name if short in others else short
