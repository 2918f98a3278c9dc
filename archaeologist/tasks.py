"""Tasks that must have ended before their owner goes on, and waits that an event cuts short."""

import asyncio
import contextlib
from typing import Any, Final

AGAIN_SECONDS: Final = 0.5
"""Long enough for a cancelled task to put its things away."""


async def pause(seconds: float, *, until: asyncio.Event) -> None:
    """Returns after so long, or as soon as the event is set."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(until.wait(), timeout=seconds)


async def end(*tasks: asyncio.Future[Any]) -> None:
    """Cancels the tasks; they have ended when this returns, and what they raised is dropped.

    Python 3.11's ``asyncio.wait_for`` loses a cancellation that meets its result (python/cpython#86296), and nats-py
    waits in it for every answer: a task cancelled once may go on for ever. So it is cancelled until it has ended.
    """
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=AGAIN_SECONDS)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # asked for, so that the loop does not report it
