"""What was read before: extracts by artifact and measured sketches, so that one more costs one more.

One file has what is told of each artifact (``NAME``), and two ledgers beside it the numbers of blocks and of
submodules. Nothing here is true by itself: every entry names the signature of the file that it came from and is dropped
when that changes. A store that is missing, damaged or of another program version is an empty one, and everything is
read again.
"""

import contextlib
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

import archaeologist
from archaeologist.files import made, read_bounded
from archaeologist.summaries import ledger
from archaeologist.summaries.continuation import Written
from archaeologist.summaries.extract import Extract
from archaeologist.summaries.ledger import Damaged, Ledger, Place, Sheet
from archaeologist.summaries.sources import FORMAT
from contracts.artifacts import LeftOut

MAX_BYTES: Final = 1_000_000_000
NAME: Final = ".extracts"
BLOCKS: Final = ".blocks-"
SUBMODULES: Final = ".submodules-"
"""With these the ledgers' names begin."""

_CHECKSUM_BYTES: Final = 4


class Entry(Struct, frozen=True, kw_only=True):
    """One artifact's file: what was found in it, or why nothing was."""

    signature: str
    extract: Extract | None = None
    """In the file it has no numbers of blocks; they are in the ledger."""
    problem: LeftOut | None = None
    blocks: Place | None = None
    """Of the extract's numbers; None: not kept yet."""
    submodules: Sheet | Place | None = None
    """Once kept, they are in memory only for those who ask; None: there was no reference."""


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
    blocks: Ledger = Ledger()
    submodules: Ledger = Ledger()
    sketches: dict[str, LeftOut | None] = {}
    """By the sketch's identity: why it cannot be used."""
    distances: dict[str, Measured] = {}
    """L2 of each block's change, by the identities of two sketches."""
    turns: dict[str, Measured] = {}
    """Cosine of each block's changes over two intervals, by the identities of three sketches."""
    timelines: dict[str, Written] = {}
    """By the name of the summary."""


_store: Final = msgspec.msgpack.Decoder(Store)
"""Built while this is imported, as ``contracts.prepared`` says."""


def load(folder: Path, *, has_numbers: bool = True) -> Store:
    """The store in a folder of summaries; an empty one where none can be used.

    Args:
        folder: Of the summaries.
        has_numbers: Whether the extracts get their numbers of blocks, which most of the time goes into.
    """
    for _ in range(2):  # a writer may have moved the numbers to another file meanwhile
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            found = _decoded(folder)
            if ledger.is_whole(folder, found.submodules):
                return replace(found, entries=_with_blocks(folder, found)) if has_numbers else found
    return Store()


def _decoded(folder: Path) -> Store:
    content = read_bounded((folder / NAME).resolve(strict=True), MAX_BYTES)
    checksum, body = content[:_CHECKSUM_BYTES], memoryview(content)[_CHECKSUM_BYTES:]
    if zlib.crc32(body).to_bytes(_CHECKSUM_BYTES, "big") != checksum:
        return Store()
    found = _store.decode(body)
    return found if (found.format, found.program) == (FORMAT, archaeologist.__version__) else Store()


def _with_blocks(folder: Path, store: Store) -> dict[str, Entry]:
    kept = {name: entry.blocks for name, entry in store.entries.items() if entry.blocks}
    sheets = dict(zip(kept, ledger.read(folder, store.blocks, list(kept.values())), strict=True))
    return {
        name: replace(entry, extract=replace(entry.extract, blocks=sheet.names, columns=sheet.values))
        if entry.extract and (sheet := sheets.get(name))
        else entry
        for name, entry in store.entries.items()
    }


def submodules(folder: Path, store: Store) -> dict[str, Sheet]:
    """The numbers of submodules of the artifacts that have some, by file name.

    Raises:
        Damaged: The summaries are to be built anew.
    """
    kept = {name: entry.submodules for name, entry in store.entries.items() if isinstance(entry.submodules, Place)}
    return dict(zip(kept, ledger.read(folder, store.submodules, list(kept.values())), strict=True))


def save(folder: Path, store: Store) -> None:
    """Keeps the store, whole or not at all.

    It is not flushed to the disk: what a power failure leaves of it has the wrong checksum, and is made anew. Where
    that comes to light now, an empty one is kept.

    Raises:
        OSError: The disk is full or read-only.
    """
    try:
        kept = _settled(folder, store)
    except Damaged:
        kept = Store()
    _put(folder, kept)
    for file in (*folder.glob(f"{BLOCKS}*"), *folder.glob(f"{SUBMODULES}*")):
        if file.name not in {kept.blocks.file, kept.submodules.file}:
            file.unlink(missing_ok=True)


def _settled(folder: Path, store: Store) -> Store:
    """The store with all of its numbers in ledgers."""
    blocks, of_blocks = _kept(folder, store.blocks, _sheets_of_blocks(store), prefix=BLOCKS)
    parts = {name: entry.submodules for name, entry in store.entries.items() if entry.submodules}
    submodules, of_submodules = _kept(folder, store.submodules, parts, prefix=SUBMODULES)
    entries = {
        name: replace(
            entry,
            extract=replace(entry.extract, blocks=b"", columns=b"") if entry.extract else None,
            blocks=of_blocks.get(name),
            submodules=of_submodules.get(name),
        )
        for name, entry in store.entries.items()
    }
    return replace(store, entries=entries, blocks=blocks, submodules=submodules)


def _sheets_of_blocks(store: Store) -> dict[str, Sheet | Place]:
    return {
        name: entry.blocks or Sheet(names=entry.extract.blocks, values=entry.extract.columns)
        for name, entry in store.entries.items()
        if entry.extract
    }


def _kept(
    folder: Path, known: Ledger, parts: Mapping[str, Sheet | Place], *, prefix: str
) -> tuple[Ledger, dict[str, Place]]:
    """The ledger with all parts in it, and where they lie."""
    placed = {name: part for name, part in parts.items() if isinstance(part, Place)}
    added = {name: part for name, part in parts.items() if isinstance(part, Sheet)}
    if ledger.is_sparse(known, list(placed.values())):
        added |= dict(zip(placed, ledger.read(folder, known, list(placed.values())), strict=True))
        known, placed = Ledger(), {}
    known, places = ledger.append(folder, known, list(added.values()), prefix=prefix)
    return known, placed | dict(zip(added, places, strict=True))


def _put(folder: Path, store: Store) -> None:
    body = msgspec.msgpack.encode(store)
    temporary = folder / f"{NAME}.tmp"
    try:
        with made(temporary) as file:
            file.write(zlib.crc32(body).to_bytes(_CHECKSUM_BYTES, "big") + body)
        temporary.replace(folder / NAME)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def measured(values: dict[str, float]) -> Measured:
    """Numbers by block as they are kept."""
    array: npt.NDArray[np.float64] = np.array(list(values.values()), "<f8")
    return Measured(blocks=tuple(values), values=array.tobytes())
