"""Cold reads: a checkpoint's pages dropped from the page cache, and the rate at which ``dd`` reads it."""

import os
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from archaeologist.checkpoints.residency import look

MOST_RESIDENT: Final = 0.02
"""Of files that count as dropped."""


def weight_files(*folders: Path) -> list[Path]:
    """The files with weights of checkpoints, each a folder or one file."""
    return [
        file for folder in folders for file in ([folder] if folder.is_file() else sorted(folder.glob("*.safetensors")))
    ]


def drop(files: Iterable[Path]) -> None:
    """Drops the files from the page cache, as far as nobody maps them."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # dirty pages stay
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def resident_share(files: Iterable[Path]) -> float:
    """The share of the files that is in the page cache."""
    shares = []
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            shares.append(look(descriptor, os.fstat(descriptor).st_size).share)
        finally:
            os.close(descriptor)
    return max(shares, default=0.0)


def dd_seconds(files: Iterable[Path]) -> float:
    """How long ``dd`` takes to read the files and drop them, one after the other.

    Raises:
        FileNotFoundError: There is no ``dd``.
    """
    started = time.perf_counter()
    for file in files:
        command = ("dd", f"if={file}", "of=/dev/null", "bs=1M", "status=none")
        subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started
