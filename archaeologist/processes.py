"""Processes: those that must not outlive the one that started them, and how long this one has lived."""

import asyncio
import contextlib
import ctypes
import gc
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def dying_with_parent() -> Callable[[], None]:
    """A ``preexec_fn``: the process gets SIGTERM when its parent dies, even by kill -9 (prctl(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()

    def die_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        # The parent may have died before the call.
        if os.getppid() != parent:
            os._exit(1)

    return die_with_parent


def seconds_since_start() -> float:
    """How long ago this process was started, to a hundredth of a second (proc(5), ``starttime``)."""
    # The second field is the program's name in brackets, and may hold any character.
    fields = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    ticks = int(fields[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """For loading modules: garbage is looked for neither meanwhile nor, later, among what was loaded and stays.

    Looking takes a quarter of the time in which large libraries are imported.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


async def end(process: asyncio.subprocess.Process, *, seconds: float) -> None:
    """SIGTERM, and SIGKILL after so many seconds; the process is gone and reaped when this returns."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), timeout=seconds)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
