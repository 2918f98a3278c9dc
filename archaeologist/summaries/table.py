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

from archaeologist.summaries.extract import COLUMNS, WHOLE, Extract, sheet_of
from archaeologist.summaries.ledger import Sheet

Floats = npt.NDArray[np.float64]

MAX_INTEGER: Final = 2**53
"""Counts are kept as float64; beyond this they are not exact, and no tensor has that many values."""


class _Alike(NamedTuple):
    """Checkpoints that have the same rows."""

    rows: list[int]
    checkpoints: list[int]
    values: Floats
    """Shape (checkpoints, columns, rows)."""


class Stack:
    """Numbers of several checkpoints one behind the other: one array a number, rows by checkpoints.

    Args:
        sheets: Of each checkpoint.
        columns: What the numbers are.
        labels: Of each row, by its name; None: of the rows that the sheets have, the last one's in its order, then
            those that only earlier ones have.
    """

    def __init__(self, sheets: Sequence[Sheet], columns: Sequence[str], labels: dict[str, str] | None = None) -> None:
        self.labels = _union(sheets) if labels is None else labels
        self._sheets = sheets
        self._columns = tuple(columns)
        self._found: dict[str, Floats] = {}

    @cached_property
    def _alike(self) -> list[_Alike]:
        """The checkpoints by the rows that they have."""
        alike: dict[bytes, list[int]] = {}
        for number, sheet in enumerate(self._sheets):
            alike.setdefault(sheet.names, []).append(number)
        row = {name: number for number, name in enumerate(self.labels)}
        found = []
        for names, those in alike.items():
            rows = [row[name] for name, _ in _decoded(names)]
            values = np.frombuffer(b"".join([self._sheets[number].values for number in those]), "<f8")
            found.append(_Alike(rows, those, values.reshape(len(those), len(self._columns), len(rows))))
        return found

    def column(self, name: str) -> Floats:
        """A number of every row, shape (rows, checkpoints)."""
        if name not in self._found:
            found = np.full((len(self.labels), len(self._sheets)), np.nan)
            place = self._columns.index(name)
            for rows, checkpoints, values in self._alike:
                found[np.ix_(rows, checkpoints)] = values[:, place].T
            self._found[name] = found
        return self._found[name]


class Table:
    """The extracts of a campaign, ascending by step.

    Args:
        extracts: One a step, in order.
        kinds: Layer type by block; None: of the blocks that the extracts have.
    """

    def __init__(self, extracts: Sequence[Extract], kinds: dict[str, str] | None = None) -> None:
        self.extracts = tuple(extracts)
        self.steps = tuple(extract.step for extract in self.extracts)
        self._blocks = Stack([sheet_of(extract) for extract in self.extracts], COLUMNS, kinds)

    @property
    def kinds(self) -> dict[str, str]:
        """Layer type by block. The newest checkpoint's blocks in its order, then those that only earlier ones have."""
        return self._blocks.labels

    @property
    def blocks(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self.kinds)

    def after(self, count: int) -> Self:
        """The table without its oldest checkpoints, but with all of the blocks."""
        return type(self)(self.extracts[count:], self.kinds)

    @cached_property
    def _whole(self) -> Floats:
        """Shape (numbers, checkpoints)."""
        parts = [np.frombuffer(extract.whole, "<f8") for extract in self.extracts]
        return np.array(parts, np.float64).reshape(len(self.extracts), len(WHOLE)).T

    def column(self, name: str) -> Floats:
        """A number of every block, shape (blocks, checkpoints)."""
        return self._blocks.column(name)

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


def _union(sheets: Sequence[Sheet]) -> dict[str, str]:
    found: dict[str, str] = {}
    for names in dict.fromkeys(sheet.names for sheet in reversed(sheets)):
        for name, label in _decoded(names):
            found.setdefault(name, label)
    return found


@lru_cache(maxsize=64)
def _decoded(names: bytes) -> tuple[tuple[str, str], ...]:
    pairs: Any = msgspec.json.decode(names, type=tuple[tuple[str, str], ...])
    return tuple(pairs)
