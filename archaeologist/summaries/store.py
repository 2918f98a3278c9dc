"""What was read before: extracts by artifact and measured sketches, in one file, so that one more costs one more.

Nothing here is true by itself: every entry names the signature of the file that it came from and is dropped when that
changes. A store that is missing, damaged or of another program version is an empty one, and everything is read again.
"""

import contextlib
import zlib
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

import archaeologist
from archaeologist.files import read_bounded
from archaeologist.summaries.continuation import Written
from archaeologist.summaries.extract import Extract
from archaeologist.summaries.sources import FORMAT
from contracts.artifacts import LeftOut

MAX_BYTES: Final = 1_000_000_000
NAME: Final = ".extracts"

_CHECKSUM_BYTES: Final = 4


class Entry(Struct, frozen=True, kw_only=True):
    """One artifact's file: what was found in it, or why nothing was."""

    signature: str
    extract: Extract | None = None
    problem: LeftOut | None = None


class Measured(Struct, frozen=True, kw_only=True):
    """Numbers of blocks that came from sketches."""

    blocks: tuple[str, ...] = ()
    values: bytes = b""
    """float64, little-endian, one a block."""

    def by_block(self) -> dict[str, float]:
        """The numbers."""
        return dict(zip(self.blocks, np.frombuffer(self.values, "<f8").tolist(), strict=True))


class Store(Struct, frozen=True, kw_only=True):
    """Everything that was read before."""

    format: int = FORMAT
    program: str = archaeologist.__version__
    inputs: str = ""
    """Digest of all signatures that the summaries in place were made from; empty: they are not up to date."""
    entries: dict[str, Entry] = {}
    """By file name."""
    sketches: dict[str, LeftOut | None] = {}
    """By the sketch's identity: why it cannot be used."""
    distances: dict[str, Measured] = {}
    """L2 of each block's change, by the identities of two sketches."""
    turns: dict[str, Measured] = {}
    """Cosine of each block's changes over two intervals, by the identities of three sketches."""
    timelines: dict[str, Written] = {}
    """By the name of the summary."""


def load(folder: Path) -> Store:
    """The store in a folder of summaries; an empty one where none can be used."""
    try:
        content = read_bounded(folder / NAME, MAX_BYTES)
        checksum, body = content[:_CHECKSUM_BYTES], memoryview(content)[_CHECKSUM_BYTES:]
        if zlib.crc32(body).to_bytes(_CHECKSUM_BYTES, "big") != checksum:
            return Store()
        found = msgspec.msgpack.decode(body, type=Store)
    except (OSError, ValueError):
        return Store()
    return found if (found.format, found.program) == (FORMAT, archaeologist.__version__) else Store()


def save(folder: Path, store: Store) -> None:
    """Keeps the store, whole or not at all.

    It is not flushed to the disk: what a power failure leaves of it has the wrong checksum, and is made anew.

    Raises:
        OSError: The disk is full or read-only.
    """
    body = msgspec.msgpack.encode(store)
    temporary = folder / f"{NAME}.tmp"
    try:
        temporary.write_bytes(zlib.crc32(body).to_bytes(_CHECKSUM_BYTES, "big") + body)
        temporary.replace(folder / NAME)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def measured(values: dict[str, float]) -> Measured:
    """Numbers by block as they are kept."""
    array: npt.NDArray[np.float64] = np.array(list(values.values()), "<f8")
    return Measured(blocks=tuple(values), values=array.tobytes())
