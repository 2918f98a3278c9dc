"""What a walk will read: the target's tensors by block, each with its counterpart in the reference.

Made from the two indexes before the walk; says in advance what is compared, what is tied and what is left out.
Nothing is read here but the bytes of a head that may be tied to its embedding.
"""

import math
from collections.abc import Iterator
from itertools import product
from typing import Final

import numpy as np
from msgspec import Struct

from archaeologist.checkpoints.index import CheckpointIndex, TensorEntry
from archaeologist.checkpoints.names import LayerType, canonical, group, place
from archaeologist.checkpoints.reader import Reader
from contracts.artifacts import Comparison, Coverage

_COMPARED_BYTES: Final = 1 << 20


class Pair(Struct, frozen=True, kw_only=True):
    """A tensor of the target and its counterpart."""

    name: str
    """Canonical: without what wrappers of training add."""
    within: str
    """Name within the block."""
    target: TensorEntry
    reference: TensorEntry | None = None

    @property
    def count(self) -> int:
        """Values."""
        return math.prod(self.target.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of both sides."""
        return self.target.size + (self.reference.size if self.reference else 0)


class PlannedBlock(Struct, frozen=True, kw_only=True):
    """A block of the target and its tensors in stored order."""

    name: str
    layer_type: LayerType
    pairs: tuple[Pair, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of both sides."""
        return sum(pair.size_bytes for pair in self.pairs)


class Plan(Struct, frozen=True, kw_only=True):
    """A walk, planned: blocks in the order of the model's forward pass."""

    blocks: tuple[PlannedBlock, ...]
    coverage: Coverage
    reference_coverage: Coverage | None = None
    comparison: Comparison | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes that the walk reads."""
        return sum(pair.size_bytes for pair in self.pairs())

    def pairs(self) -> Iterator[Pair]:
        """Every tensor, in the order of the walk."""
        return (pair for block in self.blocks for pair in block.pairs)

    def run_blocks(self) -> frozenset[str]:
        """The blocks whose bytes a model that is run takes from the walk: told before the model is there.

        Of the table of the tokens' embeddings, and of a head, it reads what it needs itself.
        """
        tables = [block for block in self.blocks if block.layer_type == "embedding" and len(block.pairs) == 1]
        tokens = max(tables, key=lambda table: table.size_bytes, default=None)
        largest = max((block.size_bytes for block in self.blocks if block.layer_type == "transformer_block"), default=0)
        return frozenset(
            block.name
            for block in self.blocks
            if block is not tokens and (block.layer_type != "output" or block.size_bytes <= largest)
        )


class Ties(Struct, frozen=True, kw_only=True):
    """Heads of a checkpoint and the embeddings they share their values with."""

    tied: dict[str, str] = {}
    """Stored name of a head that is equal to an embedding, and the embedding's."""
    untied: tuple[str, ...] = ()
    """Heads that differ although the configuration says tied."""


def find_ties(index: CheckpointIndex, reader: Reader) -> Ties:
    """Which heads are copies of an embedding. Reading ends at the first byte that differs.

    Args:
        index: The checkpoint's.
        reader: Its open files.

    Raises:
        CheckpointChanged: A file is shorter than the index found it.
    """
    kinds = {name: place(name).layer_type for name in index.tensors}
    embeddings = [entry for name, entry in index.tensors.items() if kinds[name] == "embedding"]
    heads = [entry for name, entry in index.tensors.items() if kinds[name] == "output"]
    candidates = [(head, embedding) for head, embedding in product(heads, embeddings) if _is_alike(head, embedding)]
    tied = {head.name: embedding.name for head, embedding in candidates if _is_equal(head, embedding, reader)}
    says_tied = bool((index.config or {}).get("tie_word_embeddings"))
    different = {head.name: None for head, _ in candidates if head.name not in tied}
    return Ties(tied=tied, untied=tuple(different) if says_tied else ())


def _is_alike(head: TensorEntry, embedding: TensorEntry) -> bool:
    is_matrix = len(head.shape) == 2 and head.size > 0  # noqa: PLR2004 - rows and columns
    return is_matrix and head.dtype == embedding.dtype and head.shape == embedding.shape


def _is_equal(a: TensorEntry, b: TensorEntry, reader: Reader) -> bool:
    mine, theirs = np.empty(_COMPARED_BYTES, np.uint8), np.empty(_COMPARED_BYTES, np.uint8)
    for start in range(0, a.size, _COMPARED_BYTES):
        size = min(_COMPARED_BYTES, a.size - start)
        reader.read(a, start, mine[:size].data)
        reader.read(b, start, theirs[:size].data)
        if not np.array_equal(mine[:size], theirs[:size]):
            return False
    return True


def plan_walk(
    target: CheckpointIndex,
    *,
    ties: Ties,
    reference: CheckpointIndex | None = None,
    reference_ties: Ties | None = None,
) -> Plan:
    """The walk over a checkpoint, and over a reference in lockstep.

    Args:
        target: The checkpoint under analysis; all its tensors are read, tied ones once.
        ties: Of the target.
        reference: Read where the target has a tensor of the same name and shape.
        reference_ties: Of the reference.
    """
    theirs = _by_canonical_name(reference) if reference else {}
    counted = [name for name in target.tensors if name not in ties.tied]
    blocks = tuple(
        PlannedBlock(
            name=block.name,
            layer_type=block.layer_type,
            pairs=tuple(
                _pair(target.tensors[stored], within=within, clashes=block.tensors, theirs=theirs)
                for within, stored in block.tensors.items()
            ),
        )
        for block in group(counted).values()
    )
    plan = Plan(blocks=blocks, coverage=_coverage(target, ties))
    if reference is None:
        return plan
    comparison = _compare(plan, target, theirs, reference_ties or Ties())
    read = {pair.reference.name for pair in plan.pairs() if pair.reference}
    return Plan(
        blocks=blocks,
        coverage=plan.coverage,
        reference_coverage=_reference_coverage(reference, read, comparison, reference_ties or Ties()),
        comparison=comparison,
    )


def _by_canonical_name(index: CheckpointIndex) -> dict[str, TensorEntry]:
    """Of a name that is there with a wrapper and without, the tensor without."""
    wrapped_first = sorted(index.tensors.items(), key=lambda item: canonical(item[0]) == item[0])
    return {canonical(name): entry for name, entry in wrapped_first}


def _pair(entry: TensorEntry, *, within: str, clashes: dict[str, str], theirs: dict[str, TensorEntry]) -> Pair:
    # ``group`` gives a second tensor of the same canonical name its stored one; so do we.
    name = entry.name if within == entry.name and len(clashes) > 1 else canonical(entry.name)
    counterpart = theirs.get(name)
    is_comparable = counterpart is not None and counterpart.shape == entry.shape
    return Pair(name=name, within=within, target=entry, reference=counterpart if is_comparable else None)


def _coverage(index: CheckpointIndex, ties: Ties) -> Coverage:
    return Coverage(
        tensors_listed=index.tensors_listed,
        # A tied head was read, in order to be compared, and is counted under the embedding.
        tensors_read=len(index.tensors),
        bytes_listed=index.bytes_listed,
        bytes_read=sum(entry.size for entry in index.tensors.values()),
        skipped=dict(index.skipped),
        tied=ties.tied,
        untied=ties.untied,
    )


def _compare(plan: Plan, target: CheckpointIndex, theirs: dict[str, TensorEntry], ties: Ties) -> Comparison:
    pairs = list(plan.pairs())
    # A head that is tied here and not there has no counterpart.
    ours = {canonical(name) for name in target.tensors if name not in plan.coverage.tied}
    counterparts = [(pair, theirs[pair.name]) for pair in pairs if pair.name in theirs]
    return Comparison(
        compared=sum(pair.reference is not None for pair in pairs),
        only_in_target=tuple(pair.name for pair in pairs if pair.name not in theirs),
        only_in_reference=tuple(
            name for name, entry in theirs.items() if name not in ours and entry.name not in ties.tied
        ),
        shape_differs={
            pair.name: f"{_shown(pair.target.shape)} against {_shown(entry.shape)}"
            for pair, entry in counterparts
            if pair.reference is None
        },
        dtype_differs={
            pair.name: f"{pair.target.dtype} against {entry.dtype}"
            for pair, entry in counterparts
            if pair.reference is not None and pair.target.dtype != entry.dtype
        },
    )


def _reference_coverage(index: CheckpointIndex, read: set[str], comparison: Comparison, ties: Ties) -> Coverage:
    skipped = dict(index.skipped)
    for name in index.tensors:
        if name in read or name in ties.tied:
            continue
        has_other_shape = canonical(name) in comparison.shape_differs
        skipped[name] = "its shape differs from the target's" if has_other_shape else "the target does not count it"
    return Coverage(
        tensors_listed=index.tensors_listed,
        tensors_read=len(read),
        bytes_listed=index.bytes_listed,
        bytes_read=sum(index.tensors[name].size for name in read),
        skipped=skipped,
        tied={name: under for name, under in ties.tied.items() if name not in read},
        untied=ties.untied,
    )


def _shown(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
