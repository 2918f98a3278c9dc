"""Opens and reads files that others wrote: regular ones only, never through a link, never without a bound.

Raises ``OSError`` with the reason; the caller knows which fact of its own that is.
"""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def opened(file: Path) -> Iterator[int]:
    """A descriptor of a regular file, for reading.

    Args:
        file: Resolved: where a link is in its place now, somebody put it there since.

    Raises:
        OSError: It is not there, is a link or no regular file, or may not be read.
    """
    # Without O_NONBLOCK, opening a pipe waits for a writer for ever.
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(file))
        yield descriptor
    finally:
        os.close(descriptor)


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """Up to ``size`` bytes from ``offset`` on, fewer only where the file ends."""
    parts = []
    while size > 0 and (part := os.pread(descriptor, size, offset)):
        parts.append(part)
        size -= len(part)
        offset += len(part)
    return b"".join(parts)


def read_bounded(file: Path, limit_bytes: int) -> bytes:
    """A whole file.

    Raises:
        OSError: As ``opened``; or it is larger than the limit.
    """
    with opened(file) as descriptor:
        size = os.fstat(descriptor).st_size
        if size > limit_bytes:
            raise OSError(errno.EFBIG, f"{size} bytes, at most {limit_bytes} are read", str(file))
        return read_at(descriptor, limit_bytes, 0)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """A descriptor of a folder while no other process holds it locked.

    On file systems that cannot lock a folder (NFS) it is open but not locked.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)
