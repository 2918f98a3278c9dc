"""Reads the bytes of tensors into buffers that the caller reuses.

``preadv`` and no mmap: a mapped file that somebody truncates kills the process, and mapped pages swell the resident
set. All files are opened on entry and held, so a checkpoint that its trainer deletes meanwhile is still read to the
end. Used by the walk from several threads at once. What the bytes mean is not known here.
"""

import contextlib
import math
import os
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from archaeologist.checkpoints.index import CheckpointIndex, TensorEntry
from archaeologist.checkpoints.pieces import Run, runs
from archaeologist.checkpoints.residency import Residency, look
from archaeologist.errors import CheckpointChanged, CheckpointError, CheckpointMissing
from archaeologist.files import opened


class Pace:
    """The most that is read in a second, by all readers and threads that share it."""

    def __init__(self, bytes_per_second: float) -> None:
        """Args: bytes_per_second: Above 0."""
        self._rate = bytes_per_second
        self._free_at = 0.0
        self._lock = threading.Lock()

    def keep(self, size: int) -> None:
        """Waits as long as reading so many bytes takes at this pace; after a pause nothing is made up for."""
        now = time.monotonic()
        with self._lock:
            self._free_at = max(self._free_at, now) + size / self._rate
            wait = self._free_at - now
        time.sleep(wait)


class Reader:
    """The open files of a checkpoint; a context manager."""

    def __init__(self, index: CheckpointIndex, *, drop_page_cache: bool = False, pace: Pace | None = None) -> None:
        """Opens nothing yet.

        Args:
            index: The checkpoint's.
            drop_page_cache: Give the page cache of what was read back to the machine. What was in it before the files
                were opened stays: somebody else may need it.
            pace: The most that is read in a second; None: as fast as it goes.
        """
        self._index = index
        self._drop_page_cache = drop_page_cache
        self._pace = pace
        self._descriptors: dict[str, int] = {}
        self._residencies: dict[str, Residency] = {}
        self._written_ns: dict[str, int] = {}
        """When each file was last written to, as of its opening."""
        self._files = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Opens every weight file.

        Raises:
            CheckpointMissing: One is gone.
            CheckpointChanged: One no longer has the size that the index found.
            CheckpointError: One cannot be opened.
        """
        with contextlib.ExitStack() as files:
            for file, size in self._index.files.items():
                descriptor = files.enter_context(_opened(file))
                self._descriptors[file] = descriptor
                found = os.fstat(descriptor)
                self._written_ns[file] = found.st_mtime_ns
                if found.st_size != size:
                    raise _changed(file, f"has {found.st_size} bytes and had {size}")
                self._residencies[file] = look(descriptor, size)
            self._files = files.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the files."""
        if self._drop_page_cache:
            # Once more and whole: pages at the edges of reads, and what the kernel read ahead, are still there.
            for file, descriptor in self._descriptors.items():
                self._give_back(file, descriptor, 0, self._index.files[file])
        self._descriptors.clear()
        self._files.close()

    def check_unwritten(self) -> None:
        """Looks whether what was read is still what was opened; a link more or less is no change, nor is its removal.

        Raises:
            CheckpointChanged: A file was written to since.
        """
        for file, descriptor in self._descriptors.items():
            if os.fstat(descriptor).st_mtime_ns != self._written_ns[file]:
                raise _changed(file, "was written to while it was read")

    def read(self, entry: TensorEntry, start_byte: int, into: memoryview) -> None:
        """Fills the buffer with the tensor's bytes from ``start_byte`` on. Thread-safe.

        Args:
            entry: A tensor of this reader's index.
            start_byte: First byte within the tensor.
            into: A writable buffer of contiguous memory; its size is the number of bytes read.

        Raises:
            ValueError: The range leaves the tensor.
            CheckpointChanged: The file ends before the range does.
            CheckpointError: The disk fails.
        """
        view = into.cast("B") if into.nbytes else into
        if not 0 <= start_byte <= entry.size - into.nbytes:
            msg = f"bytes {start_byte} to {start_byte + into.nbytes} leave tensor {entry.name!r} of {entry.size} bytes"
            raise ValueError(msg)
        for run in _runs(entry, start_byte, into.nbytes):
            self._fill(run, view[: run.size], entry)
            view = view[run.size :]
        if self._pace is not None:
            self._pace.keep(into.nbytes)

    def _fill(self, run: Run, view: memoryview, entry: TensorEntry) -> None:
        descriptor = self._descriptors[run.file]
        position, done = run.position, 0
        while done < run.size:
            try:
                # The kernel gives at most 2 GiB at once, and less when a signal comes in between.
                count = os.preadv(descriptor, [view[done:]], position + done)
            except OSError as error:
                msg = f"file {run.file!r} cannot be read at byte {position + done}: {error.strerror}; check the disk"
                raise CheckpointError(msg) from error
            if count == 0:
                raise _changed(run.file, f"ends at byte {position + done}, inside tensor {entry.name!r}")
            done += count
        if self._drop_page_cache:
            self._give_back(run.file, descriptor, position, run.size)

    def ask_ahead(self, entry: TensorEntry, start_byte: int, size: int) -> None:
        """Lets the kernel begin to read bytes that will be wanted soon, as far as they were not in memory."""
        if self._pace is not None:
            return  # it would be read at once
        for run in _runs(entry, start_byte, max(min(size, entry.size - start_byte), 0)):
            for position, part in self._residencies[run.file].absent(run.position, run.size):
                os.posix_fadvise(self._descriptors[run.file], position, part, os.POSIX_FADV_WILLNEED)

    def _give_back(self, file: str, descriptor: int, position: int, size: int) -> None:
        for start, part in self._residencies[file].absent(position, size):
            os.posix_fadvise(descriptor, start, part, os.POSIX_FADV_DONTNEED)


def _runs(entry: TensorEntry, start_byte: int, size: int) -> Iterable[Run]:
    """Where the bytes of a range of a tensor lie."""
    if not entry.pieces:
        return (Run(entry.file, entry.offset + start_byte, size),)
    return runs(entry.shape, entry.pieces, start_byte, size, width=entry.size // math.prod(entry.shape))


@contextlib.contextmanager
def _opened(file: str) -> Iterator[int]:
    with contextlib.ExitStack() as stack:
        try:
            descriptor = stack.enter_context(opened(Path(file)))
        except FileNotFoundError as error:
            msg = f"file {file!r} is no longer there; keep it until it is read: raise save_total_limit or enable pins"
            raise CheckpointMissing(msg) from error
        except OSError as error:
            msg = f"file {file!r} cannot be read: {error.strerror}; give this user the right to read it"
            raise CheckpointError(msg) from error
        yield descriptor


def _changed(file: str, what: str) -> CheckpointChanged:
    return CheckpointChanged(f"file {file!r} {what}; a checkpoint must not change while it is read: request it again")
