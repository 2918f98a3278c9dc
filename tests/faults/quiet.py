"""When a run is over: nothing is pending, every record finished and announced."""

import asyncio
import contextlib
from typing import Final

import nats.errors
import nats.js.errors

from archaeologist.bus.connection import Bus
from archaeologist.daemon.books import Books
from contracts import subjects
from contracts.records import FINISHED
from tests.faults.history import unheard

QUIET_SECONDS: Final = 420.0
"""A sweep comes every five minutes, and some things only a sweep brings to their end."""
POLL_SECONDS: Final = 0.5


async def pending(bus: Bus) -> int | None:
    """Messages that nobody has dealt with; None while the server does not say."""
    try:
        stream = await bus.jetstream.stream_info(subjects.JOBS)
        return int(stream.state.messages) + sum((await unheard(bus.jetstream)).values())
    except (nats.errors.Error, nats.js.errors.APIError, OSError, TimeoutError):
        return None


async def until_quiet(bus: Bus) -> None:
    """Returns when nothing is pending, or after a long wait: the checker says what is missing then."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(QUIET_SECONDS):
            while not await _is_quiet(bus):  # noqa: ASYNC110 -- others' work
                await asyncio.sleep(POLL_SECONDS)


async def _is_quiet(bus: Bus) -> bool:
    if await pending(bus) != 0:
        return False
    records = (await Books.on(bus).jobs.all()).values()
    return all(record.state in FINISHED and record.event_sequence is not None for record in records)
