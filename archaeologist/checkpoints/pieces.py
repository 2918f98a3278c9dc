"""Tensors that lie in several pieces: where the bytes of a range of one are. Pure; ``reader`` reads them.

The pieces are the cells of a grid over the tensor, each stored row by row. A range of the tensor's bytes, row by row,
is cut into runs: bytes that follow each other in a piece and in the range.
"""

import bisect
import math
from collections.abc import Iterator, Sequence

from msgspec import Struct


class Piece(Struct, frozen=True, kw_only=True):
    """A box of a tensor."""

    file: str
    """Resolved path."""
    offset: int
    """First byte in the file."""
    begin: tuple[int, ...]
    shape: tuple[int, ...]


class Run(Struct, frozen=True):
    """Bytes that follow each other in a file and in what is asked for."""

    file: str
    position: int
    size: int


def runs(shape: tuple[int, ...], pieces: Sequence[Piece], start: int, size: int, *, width: int) -> Iterator[Run]:
    """Where the bytes lie, in their order.

    Args:
        shape: The tensor's, of one dimension at least.
        pieces: Cells of a grid over it, sorted by where they begin.
        start: First byte of the range within the tensor.
        size: Of the range.
        width: Bytes of a value.
    """
    axis = max((axis for piece in pieces for axis, part in enumerate(piece.shape) if part != shape[axis]), default=0)
    inner = math.prod(shape[axis + 1 :]) * width
    line = shape[axis] * inner
    lines: dict[tuple[int, ...], list[Piece]] = {}
    for piece in pieces:
        lines.setdefault(piece.begin[:axis], []).append(piece)
    cuts = [sorted({piece.begin[outer] for piece in pieces}) for outer in range(axis)]
    at, end = start, start + size
    while at < end:
        outer = _coordinates(at // line, shape[:axis])
        cell = tuple(cut[bisect.bisect_right(cut, where) - 1] for cut, where in zip(cuts, outer, strict=True))
        row = lines[cell]
        within = at % line
        piece = next(one for one in reversed(row) if one.begin[axis] * inner <= within)
        first = piece.begin[axis] * inner
        held = piece.shape[axis] * inner
        count = min(end - at, first + held - within)
        local = tuple(where - begin for where, begin in zip(outer, piece.begin, strict=False))
        yield Run(piece.file, piece.offset + _number(local, piece.shape[:axis]) * held + within - first, count)
        at += count


def _coordinates(number: int, shape: Sequence[int]) -> tuple[int, ...]:
    """The number of a line as its indices."""
    found = []
    for length in reversed(shape):
        number, index = divmod(number, length)
        found.append(index)
    return tuple(reversed(found))


def _number(indices: Sequence[int], shape: Sequence[int]) -> int:
    number = 0
    for index, length in zip(indices, shape, strict=True):
        number = number * length + index
    return number
