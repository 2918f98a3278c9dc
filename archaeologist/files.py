"""Opens and reads files that others wrote: regular ones only, never through a link, never without a bound.

A path is checked first and opened later, and in between somebody may put a link in its place, or in that of a folder on
the way. So a file is opened folder by folder, and no link is followed. Raises ``OSError`` with the reason; the caller
knows which fact of its own that is.
"""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def opened(file: Path) -> Iterator[int]:
    """A descriptor of a regular file, for reading.

    Args:
        file: Resolved: where a link is in its place or on the way to it now, somebody put it there since.

    Raises:
        OSError: It is not there, is no regular file, is or lies behind a link, or may not be read.
    """
    with folder_of(file) as folder:
        # Without O_NONBLOCK, opening a pipe waits for a writer for ever.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(file.name, flags, dir_fd=folder)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(file))
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def folder_of(file: Path) -> Iterator[int]:
    """A descriptor of the folder that a file lies in, to name the file by.

    Args:
        file: Absolute and resolved.

    Raises:
        OSError: The folder is not there, or a link is on the way to it.
    """
    # Not to be read, only to be gone through, for which the right to search is enough.
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    folder = os.open("/", flags)
    try:
        for name in file.parent.parts[1:]:
            inner = os.open(name, flags, dir_fd=folder)
            os.close(folder)
            folder = inner
        yield folder
    finally:
        os.close(folder)


def made(file: Path, *, mode: int = 0o644) -> IO[bytes]:
    """A file to be written from its beginning; made if it is not there.

    Args:
        file: Where a link is in its place, what that leads to stays as it is.
        mode: Of a new one, before the umask.

    Raises:
        OSError: It is a link, or may not be written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.fdopen(os.open(file, flags, mode), "wb")


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


def entries(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    """What a folder holds, by name. Read to its end at once: whatever the caller does with it, no listing stays open.

    Raises:
        OSError: The folder cannot be listed.
    """
    with os.scandir(folder) as found:
        return sorted(found, key=lambda entry: entry.name)


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
