"""Writes a timeline: the one in place continued where it can be, else a new one. The bytes are the same.

It can be continued where the file is the one that was written last, and all that it covers is as it was then: the same
artifacts, no other between them, and the same blocks.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from archaeologist.artifacts.store import put_in_place, write_whole
from archaeologist.files import read_bounded
from archaeologist.summaries.seams import Pieces, Span
from archaeologist.summaries.sources import signature
from archaeologist.summaries.table import Table

MAX_BYTES: Final = 1_000_000_000


class Written(Struct, frozen=True, kw_only=True):
    """What is known of a timeline in place."""

    file: str = ""
    """Signature of its file."""
    covers: str = ""
    """Digest of the artifacts that it was made from, and of their blocks."""
    checkpoints: int = 0
    """How many artifacts these are."""
    spans: tuple[Span, ...] = ()
    """Where the entries of each array lie."""


class Coverage:
    """What a campaign's timelines cover.

    Args:
        table: Of the campaign.
        signatures: Of the file of each of its artifacts.
    """

    def __init__(self, table: Table, signatures: Sequence[str]) -> None:
        self.table = table
        self._signatures = signatures
        self.digest = lru_cache(maxsize=4)(self._digest)

    def _digest(self, count: int) -> str:
        """Changes with each of the oldest ``count`` artifacts, and with every block."""
        files = list(zip(self.table.steps[:count], self._signatures[:count], strict=True))
        return hashlib.sha256(msgspec.json.encode((files, list(self.table.kinds.items())))).hexdigest()


def write_timeline(
    path: Path, timeline: Callable[[Table], Struct], *, coverage: Coverage, known: Written | None
) -> Written:
    """What is known of a timeline once it lies in its place.

    Args:
        path: Its place.
        timeline: Makes it for some of the campaign's checkpoints.
        coverage: What it is to cover.
        known: What is known of the one in place.

    Raises:
        ArtifactUnwritable: The disk is full or read-only; the one in place stays.
    """
    table = coverage.table
    earlier = _earlier(path, coverage, known)
    if earlier is None or known is None:
        pieces = Pieces.of(timeline(table))
    else:
        pieces = Pieces.of(timeline(table.after(known.checkpoints))).after(earlier, known.spans)
    file = place(path, b"".join(pieces.texts))
    count = len(table.steps)
    return Written(file=file, covers=coverage.digest(count), checkpoints=count, spans=pieces.spans)


def _earlier(path: Path, coverage: Coverage, known: Written | None) -> bytes | None:
    """The timeline in place, where it can be continued."""
    if known is None or known.covers != coverage.digest(known.checkpoints) or known.file != signature(path):
        return None
    try:
        return read_bounded(path, MAX_BYTES)
    except OSError:
        return None


def place(path: Path, content: bytes) -> str:
    """The signature of a summary's file once it has its content.

    Raises:
        ArtifactUnwritable: The disk is full or read-only; the old one stays.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    write_whole(temporary, content)
    found = signature(temporary) or ""
    put_in_place(temporary, path, superseded_folder=None)
    return found
