"""Tasks that must have ended before their owner goes on, waits that an event cuts short, and the end of a service."""

import asyncio
import contextlib
import signal
from collections.abc import Iterator
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


@contextlib.contextmanager
def stopped_by_signals(stop: asyncio.Event) -> Iterator[None]:
    """SIGTERM and SIGINT set the event for the length of a block."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
