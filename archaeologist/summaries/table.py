"""All extracts of a campaign side by side: one array a number, blocks by checkpoints.

Pure; the summaries are computed from it. A block that a checkpoint does not have is NaN there, so that every array
stays aligned with the checkpoints.
"""

from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any, Final, NamedTuple, Self

import msgspec
import numpy as np
import numpy.typing as npt

from archaeologist.summaries.extract import COLUMNS, WHOLE, Extract

Floats = npt.NDArray[np.float64]

MAX_INTEGER: Final = 2**53
"""Counts are kept as float64; beyond this they are not exact, and no tensor has that many values."""


class _Alike(NamedTuple):
    """Extracts that have the same blocks."""

    rows: list[int]
    """Of their blocks."""
    numbers: list[int]
    """Of the extracts."""
    values: Floats
    """Shape (extracts, columns, blocks)."""


class Table:
    """The extracts of a campaign, ascending by step.

    Args:
        extracts: One a step, in order.
        kinds: Layer type by block; None: of the blocks that the extracts have.
    """

    def __init__(self, extracts: Sequence[Extract], kinds: dict[str, str] | None = None) -> None:
        self.extracts = tuple(extracts)
        self.steps = tuple(extract.step for extract in self.extracts)
        self.kinds = _union(self.extracts) if kinds is None else kinds
        """Layer type by block. The newest checkpoint's blocks in its order, then those that only earlier ones have."""
        self.blocks = tuple(self.kinds)
        self._columns: dict[str, Floats] = {}

    def after(self, count: int) -> Self:
        """The table without its oldest checkpoints, but with all of the blocks."""
        return type(self)(self.extracts[count:], self.kinds)

    @cached_property
    def _alike(self) -> list[_Alike]:
        """The extracts by the blocks that they have."""
        numbers: dict[bytes, list[int]] = {}
        for number, extract in enumerate(self.extracts):
            numbers.setdefault(extract.blocks, []).append(number)
        row = {name: number for number, name in enumerate(self.blocks)}
        found = []
        for blocks, those in numbers.items():
            rows = [row[name] for name, _ in _decoded(blocks)]
            values = np.frombuffer(b"".join([self.extracts[number].columns for number in those]), "<f8")
            found.append(_Alike(rows, those, values.reshape(len(those), len(COLUMNS), len(rows))))
        return found

    @cached_property
    def _whole(self) -> Floats:
        """Shape (numbers, checkpoints)."""
        parts = [np.frombuffer(extract.whole, "<f8") for extract in self.extracts]
        return np.array(parts, np.float64).reshape(len(self.extracts), len(WHOLE)).T

    def column(self, name: str) -> Floats:
        """A number of every block, shape (blocks, checkpoints)."""
        if name not in self._columns:
            found = np.full((len(self.blocks), len(self.extracts)), np.nan)
            for rows, numbers, values in self._alike:
                found[np.ix_(rows, numbers)] = values[:, COLUMNS.index(name)].T
            self._columns[name] = found
        return self._columns[name]

    def whole(self, name: str) -> Floats:
        """A number of the whole model, shape (checkpoints,)."""
        found: Floats = self._whole[WHOLE.index(name)]
        return found


def numbers(values: Floats) -> tuple[float | None, ...]:
    """The values of an array, None where one is not finite."""
    finite = np.isfinite(values)
    if finite.all():
        return tuple(values.tolist())
    return tuple(np.where(finite, values.astype(object), None).tolist())  # type: ignore[call-overload]


def counts(values: Floats) -> tuple[int | None, ...]:
    """The values of an array of counts."""
    if np.isfinite(values).all():
        return tuple(np.minimum(values, MAX_INTEGER).astype(np.int64).tolist())
    return tuple(None if value is None else int(min(value, MAX_INTEGER)) for value in numbers(values))


def flags(values: Floats) -> tuple[bool | None, ...]:
    """The values of an array of 0 and 1."""
    if np.isfinite(values).all():
        return tuple((values != 0).tolist())
    return tuple(None if value is None else value != 0 for value in numbers(values))


def _union(extracts: Sequence[Extract]) -> dict[str, str]:
    found: dict[str, str] = {}
    for blocks in dict.fromkeys(extract.blocks for extract in reversed(extracts)):
        for name, kind in _decoded(blocks):
            found.setdefault(name, kind)
    return found


@lru_cache(maxsize=64)
def _decoded(blocks: bytes) -> tuple[tuple[str, str], ...]:
    pairs: Any = msgspec.json.decode(blocks, type=tuple[tuple[str, str], ...])
    return tuple(pairs)
