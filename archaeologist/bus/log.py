"""The Battle Log as a reader sees it: replay, follow, find one message.

Read from the last sequence seen after every interruption, so nothing is missed or shown twice.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

import msgspec
import nats.errors
import nats.js.errors

from archaeologist.bus.connection import Bus
from archaeologist.bus.reading import Reader, reading
from archaeologist.errors import BusUnavailable, TopologyMissing
from contracts import subjects as names
from contracts.messages import Event

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 0.5
CLOCK_SKEW: Final = timedelta(minutes=10)
"""A search by time starts this much earlier, because the record's clock and the server's may differ."""


class LoggedEvent(NamedTuple):
    """An event and its place in the log."""

    sequence: int
    event: Event


async def events(
    bus: Bus,
    *,
    after_sequence: int | None = None,
    since: datetime | None = None,
    last: int | None = None,
    follow: bool,
    subjects: Sequence[str] | None = None,
    stop: asyncio.Event | None = None,
) -> AsyncGenerator[LoggedEvent, None]:
    """The Battle Log's events in order; what is no event is logged and left out.

    Args:
        bus: The connection.
        after_sequence: Start behind this one.
        since: Start at this moment; without effect beside ``after_sequence`` and ``last``.
        last: Start so many messages of these subjects before the end; 0: at the end.
        follow: Go on for ever with what comes; otherwise end where the log ended when the call was made.
        subjects: Only these event types.
        stop: Ends a follower within a second.

    Raises:
        BusUnavailable: Not reachable (a follower that has begun waits, until the connection is closed for good).
        TopologyMissing: There is no Battle Log.
    """
    end = await last_sequence(bus)
    position = max(after_sequence or 0, await _before_the_last(bus, last, end=end, subjects=subjects))
    while not (stop and stop.is_set()):
        try:
            async with reading(
                bus, names.BATTLE_LOG, after_sequence=position, since=since, subjects=subjects
            ) as reader:
                while not (stop and stop.is_set()):
                    if not follow and await reader.is_at_end():
                        return
                    for message in await reader.batch():
                        position = message.metadata.sequence.stream
                        if not follow and position > end:
                            return
                        if event := decoded(message.subject, message.data):
                            yield LoggedEvent(position, event)
        except BusUnavailable as error:
            if not follow or bus.closed.is_set():
                raise
            log.debug("reading the log again", extra={"reason": str(error)})
            await asyncio.sleep(RETRY_SECONDS)


async def start_of_last(bus: Bus, last: int, *, subjects: Sequence[str] | None = None) -> int:
    """The sequence behind which the last so many messages of these subjects lie; errors as for ``last_sequence``."""
    return await _before_the_last(bus, last, end=await last_sequence(bus), subjects=subjects)


async def find_message(bus: Bus, stream: str, message_id: str, *, subject: str, since: datetime) -> int | None:
    """Sequence of the stored message with a ``Nats-Msg-Id``, looked for from ``since`` on.

    Tries until the server answers.

    Raises:
        BusUnavailable: The connection is closed for good.
        TopologyMissing: There is no such stream.
    """
    while True:
        try:
            async with reading(bus, stream, since=since - CLOCK_SKEW, subjects=[subject], headers_only=True) as reader:
                return await _find(reader, message_id)
        except BusUnavailable:
            if bus.closed.is_set():
                raise
        await asyncio.sleep(RETRY_SECONDS)


async def _find(reader: Reader, message_id: str) -> int | None:
    while not await reader.is_at_end():
        for message in await reader.batch():
            if (message.headers or {}).get(names.MESSAGE_ID) == message_id:
                return int(message.metadata.sequence.stream)
    return None


async def last_sequence(bus: Bus) -> int:
    """Sequence of the log's last message; 0 while there is none.

    Raises:
        BusUnavailable: Not reachable.
        TopologyMissing: There is no Battle Log.
    """
    try:
        return int((await bus.jetstream.stream_info(names.BATTLE_LOG)).state.last_seq)
    except nats.js.errors.NotFoundError as error:
        msg = f"there is no stream {names.BATTLE_LOG} on {bus.shown}; run `archaeologist bus ensure`"
        raise TopologyMissing(msg) from error
    except (nats.errors.Error, OSError, TimeoutError) as error:
        msg = f"the Battle Log on {bus.shown} cannot be read: {bus.last_error or error}; is the server up?"
        raise BusUnavailable(msg) from error


async def _before_the_last(bus: Bus, last: int | None, *, end: int, subjects: Sequence[str] | None) -> int:
    """The sequence behind which the last so many messages lie.

    Progress events expire, so sequences have gaps and cannot be counted back: the headers are read instead.
    """
    if last is None or last == 0:
        return 0 if last is None else end
    newest: deque[int] = deque(maxlen=last + 1)
    async with reading(bus, names.BATTLE_LOG, subjects=subjects, headers_only=True) as reader:
        while not await reader.is_at_end():
            newest.extend(int(message.metadata.sequence.stream) for message in await reader.batch())
    return newest[0] if len(newest) > last else 0


def decoded(subject: str, body: bytes) -> Event | None:
    """An event of the log; None where a message is none: whoever may publish must not be able to stop its readers."""
    try:
        return msgspec.json.decode(body, type=Event)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        log.warning("not an event", extra={"subject": subject, "reason": str(error)})
        return None
