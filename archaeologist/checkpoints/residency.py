"""Which parts of a file lay in the page cache before we read it: those stay there, and only the others are read ahead.

Asked with cachestat(2), which Linux has from 6.5 on and Python has not; without it nothing counts as having been there.
Used by ``reader`` and by the benchmark.
"""

import ctypes
import os
from collections.abc import Iterator
from typing import Final

STRIPE: Final = 1 << 22
"""Bytes that are asked about at once."""
_CACHESTAT: Final = 451
"""The system call's number, on every architecture."""


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Found(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("cached", "dirty", "writeback", "evicted", "recently"))


class Residency:
    """The stripes of a file that were in memory, by half at least."""

    def __init__(self, stripes: bytes) -> None:
        """One byte a stripe, 0 or 1."""
        self._stripes = stripes

    @property
    def share(self) -> float:
        """Of the file's stripes; 0 of an empty file."""
        return sum(self._stripes) / len(self._stripes) if self._stripes else 0.0

    def absent(self, position: int, size: int) -> Iterator[tuple[int, int]]:
        """The parts of a range that were not in memory, each as position and size."""
        end = position + size
        while position < end:
            number = position // STRIPE
            stop = min(end, (number + 1) * STRIPE)
            if number >= len(self._stripes) or not self._stripes[number]:
                yield position, stop - position
            position = stop


def look(descriptor: int, size: int) -> Residency:
    """What of a file is in memory now; nothing, where the kernel does not tell.

    Args:
        descriptor: Open for reading.
        size: The file's, in bytes.
    """
    call = ctypes.CDLL(None).syscall
    stripes = bytearray()
    for position in range(0, size, STRIPE):
        part, found = _Range(position, min(STRIPE, size - position)), _Found()
        if call(_CACHESTAT, descriptor, ctypes.byref(part), ctypes.byref(found), 0) != 0:
            return Residency(bytes(-(-size // STRIPE)))
        stripes.append(2 * found.cached * os.sysconf("SC_PAGE_SIZE") >= part.length)
    return Residency(bytes(stripes))
