"""Reads the bytes of tensors into buffers that the caller reuses.

``preadv`` and no mmap: a mapped file that somebody truncates kills the process, and mapped pages swell the resident
set. All files are opened on entry and held, so a checkpoint that its trainer deletes meanwhile is still read to the
end. Used by the walk from several threads at once. What the bytes mean is not known here.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from archaeologist.checkpoints.index import CheckpointIndex, TensorEntry
from archaeologist.errors import CheckpointChanged, CheckpointError, CheckpointMissing
from archaeologist.files import opened


class Reader:
    """The open files of a checkpoint; a context manager."""

    def __init__(self, index: CheckpointIndex, *, drop_page_cache: bool = False) -> None:
        """Opens nothing yet.

        Args:
            index: The checkpoint's.
            drop_page_cache: Give the page cache of what was read back to the machine.
        """
        self._index = index
        self._drop_page_cache = drop_page_cache
        self._descriptors: dict[str, int] = {}
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
                found = os.fstat(descriptor).st_size
                if found != size:
                    raise _changed(file, f"has {found} bytes and had {size}")
            self._files = files.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the files."""
        self._descriptors.clear()
        self._files.close()

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
        descriptor = self._descriptors[entry.file]
        position, done = entry.offset + start_byte, 0
        while done < into.nbytes:
            try:
                # The kernel gives at most 2 GiB at once, and less when a signal comes in between.
                count = os.preadv(descriptor, [view[done:]], position + done)
            except OSError as error:
                msg = f"file {entry.file!r} cannot be read at byte {position + done}: {error.strerror}; check the disk"
                raise CheckpointError(msg) from error
            if count == 0:
                raise _changed(entry.file, f"ends at byte {position + done}, inside tensor {entry.name!r}")
            done += count
        if self._drop_page_cache:
            os.posix_fadvise(descriptor, position, into.nbytes, os.POSIX_FADV_DONTNEED)


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
