"""A small disk for one campaign's folder, that can be full and read-only.

Root mounts a tmpfs of its own, in a mount namespace that ends with this process: what the daemon meets are the kernel's
own ENOSPC and EROFS. Where mounting is not allowed, "full" is a limit on the size of files (EFBIG), which the
campaign's children put on themselves, and "read-only" a file where the folder of artifacts should be (EEXIST).
"""

import contextlib
import ctypes
import errno
import os
import resource
import time
from pathlib import Path
from typing import Final

CLONE_NEWNS: Final = 0x0002_0000
MS_RDONLY: Final = 1
MS_REMOUNT: Final = 32
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
SIZE: Final = "size=8m"
BUSY_SECONDS: Final = 5.0
"""A file that is open for writing puts off "read-only"; children close theirs within milliseconds."""
FILLER: Final = "filler"
FULL_MARK: Final = "full"
FULL_BYTES: Final = 64
"""What a file may hold where a limit stands in for a full disk."""

_libc = ctypes.CDLL(None, use_errno=True)


class Disk:
    """The disk under a campaign's folder."""

    def __init__(self, folder: Path, *, may_mount: bool) -> None:
        """Makes it; ``may_mount`` is what ``enter_namespace`` said."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.is_mounted = may_mount and _mounted(folder)
        self._artifacts = folder / "analysis" / "layer_stats"
        self._aside = self._artifacts.with_name("layer_stats.aside")

    @property
    def kind(self) -> str:
        """What stands in for a disk here."""
        return "tmpfs" if self.is_mounted else "limits"

    def fill(self) -> None:
        """Leaves no room for a byte."""
        if not self.is_mounted:
            (self.folder / FULL_MARK).touch()
            return
        with contextlib.suppress(OSError), (self.folder / FILLER).open("wb", buffering=0) as file:
            for size in (1 << 16, 1 << 8, 1):
                with contextlib.suppress(OSError):
                    while file.write(b"\0" * size) == size:
                        pass

    def free(self) -> None:
        """Makes room again."""
        for name in (FILLER, FULL_MARK):
            (self.folder / name).unlink(missing_ok=True)

    def forbid(self) -> None:
        """Makes it read-only."""
        if self.is_mounted:
            _mount("", self.folder, "", MS_REMOUNT | MS_RDONLY, SIZE)
            return
        with contextlib.suppress(FileNotFoundError):
            self._artifacts.rename(self._aside)
        self._artifacts.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError, IsADirectoryError):  # somebody made the folder anew meanwhile
            self._artifacts.touch(exist_ok=False)

    def allow(self) -> None:
        """Makes it writable again."""
        if self.is_mounted:
            _mount("", self.folder, "", MS_REMOUNT, SIZE)
            return
        if self._artifacts.is_file():
            self._artifacts.unlink()
        with contextlib.suppress(FileNotFoundError):
            self._aside.rename(self._artifacts)


def limit_files(campaign: Path) -> None:
    """Puts the limit on this process, where the campaign's disk is said to be full."""
    if (campaign / FULL_MARK).exists():
        resource.setrlimit(resource.RLIMIT_FSIZE, (FULL_BYTES, resource.RLIM_INFINITY))


def enter_namespace() -> bool:
    """Whether this process may mount from now on, seen by nobody else; called before it has threads or children."""
    if os.geteuid() != 0 or _libc.unshare(CLONE_NEWNS) != 0:
        return False
    return bool(_libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) == 0)


def _mounted(folder: Path) -> bool:
    try:
        _mount("tmpfs", folder, "tmpfs", 0, SIZE)
    except PermissionError:
        return False
    return True


def _mount(source: str, folder: Path, kind: str, flags: int, options: str) -> None:
    deadline = time.monotonic() + BUSY_SECONDS
    while _libc.mount(source.encode(), os.fsencode(folder), kind.encode(), flags, options.encode()) != 0:
        error = ctypes.get_errno()
        if error != errno.EBUSY or time.monotonic() > deadline:
            raise OSError(error, os.strerror(error), str(folder))
        time.sleep(0.01)
