"""Processes that must not outlive the one that started them."""

import asyncio
import contextlib
import ctypes
import os
import signal
from collections.abc import Callable
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
