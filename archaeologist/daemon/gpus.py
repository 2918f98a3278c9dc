"""The GPUs of this machine as the driver's own program names them: the parent has no torch to ask. Blocking.

A machine without that program, or without a driver, has none that is known.
"""

import shutil
import subprocess
from typing import Final

from contracts.records import WorkerGpu

PROGRAM: Final = "nvidia-smi"
QUERY: Final = ("--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits")
SECONDS: Final = 20.0
MEBIBYTE: Final = 1 << 20


def look() -> tuple[WorkerGpu, ...]:
    """Each GPU with its memory; empty where the driver does not answer."""
    program = shutil.which(PROGRAM)
    if program is None:
        return ()
    try:
        done = subprocess.run([program, *QUERY], capture_output=True, check=False, timeout=SECONDS, text=True)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return ()
    return parse(done.stdout) if done.returncode == 0 else ()


def parse(text: str) -> tuple[WorkerGpu, ...]:
    """The GPUs in the program's answer, a line each; what it does not know it calls ``[N/A]``."""
    rows = [[cell.strip() for cell in line.rsplit(",", 2)] for line in text.splitlines() if line.strip()]
    return tuple(
        WorkerGpu(name=row[0], memory_bytes=_bytes(row[1]), free_bytes=_bytes(row[2]))
        for row in rows
        if len(row) == len(("name", "total", "free")) and row[0]
    )


def _bytes(mebibytes: str) -> int | None:
    return int(mebibytes) * MEBIBYTE if mebibytes.isdecimal() else None
