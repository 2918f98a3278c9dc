"""How far every block moved between two checkpoints: from an artifact where one says so, else from sketches.

Pure. An artifact says so where its reference is the other checkpoint, with the same bytes.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple

import numpy as np

from archaeologist.summaries.extract import Extract
from archaeologist.summaries.table import Floats, Table

LARGEST: Final = 1e100
"""No weights are that far apart; what claims to be is damaged, and its square would overflow."""

Pair = tuple[int, int]
"""Steps of base and target."""
Distances = Mapping[Pair, Mapping[str, float]]
"""L2 of each block's change, estimated from sketches."""


class Intervals(NamedTuple):
    """Numbers of blocks by intervals; NaN where there is none."""

    pairs: tuple[Pair, ...]
    origins: tuple[Literal["exact", "estimate"] | None, ...]
    l2: Floats
    relative: Floats
    """L2 over the base's norm."""
    changed: Floats
    """Share of the values that changed; only an artifact knows it."""


def consecutive(table: Table) -> tuple[Pair, ...]:
    """Each checkpoint with the next."""
    return tuple(zip(table.steps, table.steps[1:], strict=False))


def is_exact(base: Extract, target: Extract) -> bool:
    """Whether the target's artifact has this very base as its reference."""
    return target.has_drift and target.reference_step == base.step and target.reference_fingerprint == base.fingerprint


def estimates_needed(table: Table, pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs that no artifact compares."""
    of = dict(zip(table.steps, table.extracts, strict=True))
    return [pair for pair in pairs if not is_exact(of[pair[0]], of[pair[1]])]


def intervals(table: Table, pairs: Sequence[Pair], distances: Distances) -> Intervals:
    """How far every block moved in each pair.

    Args:
        table: Of the campaign.
        pairs: Steps in it.
        distances: What the sketches say of pairs that no artifact compares.
    """
    place = {step: number for number, step in enumerate(table.steps)}
    row = {name: number for number, name in enumerate(table.blocks)}
    shape = (len(table.blocks), len(pairs))
    l2, relative, changed = (np.full(shape, np.nan) for _ in range(3))
    origins: list[Literal["exact", "estimate"] | None] = []
    for number, pair in enumerate(pairs):
        base, target = (place[step] for step in pair)
        if is_exact(table.extracts[base], table.extracts[target]):
            origins.append("exact")
            l2[:, number] = table.column("l2")[:, target]
            relative[:, number] = table.column("relative_l2")[:, target]
            changed[:, number] = table.column("changed_fraction")[:, target]
            continue
        found = {name: length for name, length in distances.get(pair, {}).items() if name in row}
        origins.append("estimate" if found else None)
        rows = [row[name] for name in found]
        norms = table.column("weight_l2")[rows, base]
        l2[rows, number] = list(found.values())
        relative[rows, number] = np.divide(
            l2[rows, number], norms, out=np.full(len(rows), np.nan), where=np.nan_to_num(norms) > 0
        )
    for values in (l2, relative):
        values[values > LARGEST] = np.nan
    return Intervals(tuple(pairs), tuple(origins), l2, relative, changed)
