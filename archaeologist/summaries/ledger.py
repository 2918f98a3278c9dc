"""Numbers of many artifacts in one file that grows at its end, so that one more costs one more, however many there are.

Nothing is ever overwritten that somebody may be reading: once more than half is of artifacts that were replaced, what
is needed goes to a file of another name. The file is not flushed to the disk; each artifact's part has its checksum.
"""

import os
import secrets
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

from msgspec import Meta, Struct

from archaeologist.files import opened, read_at

SLACK_BYTES: Final = 1_000_000
"""Unused bytes that are not worth a new file."""


Size = Annotated[int, Meta(ge=0, le=10**12)]


class Damaged(ValueError):
    """The numbers are not there, or not those that were put there."""


class Sheet(Struct, frozen=True, kw_only=True, tag="sheet"):
    """One artifact's numbers, in memory."""

    names: bytes
    """JSON of ``[[row, label], …]``; most artifacts of a campaign share one."""
    values: bytes
    """float64, little-endian, shape (columns, rows)."""


class Place(Struct, frozen=True, kw_only=True, tag="place"):
    """Where such numbers lie."""

    names: Size
    """Place in the ledger's ``names``."""
    offset: Size
    size: Size
    checksum: int


class Ledger(Struct, frozen=True, kw_only=True):
    """What is known of a file of numbers."""

    file: Annotated[str, Meta(pattern=r"^(\.[a-z]+-[0-9a-f]{16})?$(?!\n)")] = ""
    """Its name; empty: there is none yet. Whoever can write the store could name any file."""
    length: Size = 0
    """What lies behind is of a writer who died."""
    names: tuple[bytes, ...] = ()


def append(folder: Path, ledger: Ledger, sheets: Sequence[Sheet], *, prefix: str) -> tuple[Ledger, list[Place]]:
    """The ledger with more numbers at its end, and where each lies.

    Args:
        folder: Where its file is.
        ledger: As it is; a new one gets a file of its own.
        sheets: What is added.
        prefix: With which the name of a new file begins.

    Raises:
        OSError: The disk is full or read-only. What was there is as it was.
    """
    if not sheets:
        return ledger, []
    names = {one: number for number, one in enumerate(ledger.names)}
    places, offset = [], ledger.length
    for sheet in sheets:
        number = names.setdefault(sheet.names, len(names))
        size = len(sheet.values)
        places.append(Place(names=number, offset=offset, size=size, checksum=zlib.crc32(sheet.values)))
        offset += size
    file = ledger.file or f"{prefix}{secrets.token_hex(8)}"
    _write(folder / file, b"".join(sheet.values for sheet in sheets), ledger.length)
    return Ledger(file=file, length=offset, names=tuple(names)), places


def read(folder: Path, ledger: Ledger, places: Sequence[Place]) -> list[Sheet]:
    """The numbers at some places.

    Raises:
        Damaged: They are not there, or others.
    """
    if not places:
        return []
    start, end = min(one.offset for one in places), max(one.offset + one.size for one in places)
    if end > ledger.length:
        msg = f"numbers at {end} lie behind the end of {ledger.file!r}"
        raise Damaged(msg)
    try:
        with opened(folder.resolve(strict=True) / ledger.file) as descriptor:
            content = memoryview(read_at(descriptor, end - start, start))
    except OSError as error:
        msg = f"numbers in {ledger.file!r} cannot be read: {error}"
        raise Damaged(msg) from error
    found = []
    for one in places:
        values = content[one.offset - start : one.offset - start + one.size]
        if zlib.crc32(values) != one.checksum or one.names >= len(ledger.names):
            msg = f"numbers at {one.offset} of {ledger.file!r} are not those that were put there"
            raise Damaged(msg)
        found.append(Sheet(names=ledger.names[one.names], values=bytes(values)))
    return found


def is_whole(folder: Path, ledger: Ledger) -> bool:
    """Whether the file is there in its length."""
    try:
        return not ledger.file or (folder / ledger.file).stat().st_size >= ledger.length
    except OSError:
        return False


def is_sparse(ledger: Ledger, used: Sequence[Place]) -> bool:
    """Whether so much of the file is of no use any more that what is should move to another."""
    return ledger.length > 2 * sum(one.size for one in used) + SLACK_BYTES


def _write(path: Path, content: bytes, offset: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o644)
    try:
        rest = memoryview(content)
        while rest:
            written = os.pwrite(descriptor, rest, offset)
            rest, offset = rest[written:], offset + written
    finally:
        os.close(descriptor)
