"""How far every block moved between two checkpoints: from an artifact where one says so, else from sketches.

Pure. An artifact says so where its reference is the other checkpoint, with the same bytes.
"""

from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Final, Literal, NamedTuple

import numpy as np

from archaeologist.summaries.extract import Extract
from archaeologist.summaries.table import Floats, Table

LARGEST: Final = 1e100
"""No weights are that far apart; what claims to be is damaged, and its square would overflow."""

Pair = tuple[int, int]
"""Steps of base and target."""
Origin = Literal["exact", "estimate"] | None
"""Where a distance comes from: an artifact, or sketches; None: there is none."""
Distances = Mapping[Pair, Mapping[str, float]]
"""L2 of each block's change, estimated from sketches."""


class Intervals(NamedTuple):
    """Numbers of blocks by intervals; NaN where there is none."""

    pairs: tuple[Pair, ...]
    origins: tuple[Origin, ...]
    l2: Floats
    relative: Floats
    """L2 over the base's norm."""
    changed: Floats
    """Share of the values that changed; only an artifact knows it."""
    below: Floats
    """1 where the change is below the resolution, else 0; likewise."""


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
    of = [(table.extracts[place[base]], table.extracts[place[target]]) for base, target in pairs]
    exact = np.array([is_exact(base, target) for base, target in of], np.bool_)
    targets = [place[target] for _, target in compress(pairs, exact)]
    l2, relative, changed, below = (np.full((len(table.blocks), len(pairs)), np.nan) for _ in range(4))
    columns = {"l2": l2, "relative_l2": relative, "changed_fraction": changed, "below_resolution": below}
    for name, values in columns.items():
        values[:, exact] = table.column(name)[:, targets]
    origins: list[Origin] = ["exact" if known else None for known in exact]
    for number in np.flatnonzero(~exact).tolist():
        found = distances.get(pairs[number], {})
        estimated = np.array([found.get(name, np.nan) for name in table.blocks])
        norms = table.column("weight_l2")[:, place[pairs[number][0]]]
        origins[number] = "estimate" if found else None
        l2[:, number] = estimated
        relative[:, number] = np.divide(estimated, norms, out=np.full_like(estimated, np.nan), where=norms > 0)
    for values in (l2, relative):
        values[values > LARGEST] = np.nan
    return Intervals(tuple(pairs), tuple(origins), l2, relative, changed, below)
