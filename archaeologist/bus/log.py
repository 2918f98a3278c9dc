"""Reading the Battle Log: replay, follow, find one message.

A reader is a pull consumer of its own without acknowledgements; after a server restart it is made anew from the last
sequence seen, so nothing is missed or shown twice.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.js import JetStreamContext, api

from archaeologist.bus.connection import Bus
from archaeologist.errors import BusUnavailable, TopologyMissing
from contracts import subjects as names
from contracts.messages import Event
from contracts.ulid import new_ulid

log = logging.getLogger(__name__)

FETCH_SECONDS: Final = 1.0
BATCH: Final = 100
INACTIVE_SECONDS: Final = 60.0
RETRY_SECONDS: Final = 1.0
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
) -> AsyncIterator[LoggedEvent]:
    """The Battle Log's events in order.

    Args:
        bus: The connection.
        after_sequence: Start behind this one.
        since: Start at this moment.
        last: Start so many messages before the end.
        follow: Go on for ever with what comes; otherwise end where the log ended when the call was made.
        subjects: Only these event types.
        stop: Ends a follower.

    Raises:
        BusUnavailable: Not reachable (a follower waits instead, until the connection is closed for good).
        TopologyMissing: There is no Battle Log.
    """
    first, end = await _bounds(bus)
    position = max(after_sequence or 0, first - 1, end - last if last is not None else 0)
    while not (stop and stop.is_set()):
        try:
            async for message in _read(bus, names.BATTLE_LOG, position, since=since, subjects=subjects, stop=stop):
                if not follow and (message is None or message.metadata.sequence.stream > end):
                    return
                if message is None:
                    continue
                position = message.metadata.sequence.stream
                if logged := _decoded(message):
                    yield logged
        except BusUnavailable as error:
            if not follow or bus.closed.is_set():
                raise
            log.debug("reading the log again", extra={"reason": str(error)})
            await asyncio.sleep(RETRY_SECONDS)


async def find_message(bus: Bus, stream: str, message_id: str, *, subject: str, since: datetime) -> int | None:
    """Sequence of the stored message with a ``Nats-Msg-Id``, looked for from ``since`` on.

    Tries until the server answers.

    Raises:
        BusUnavailable: The connection is closed for good.
    """
    while True:
        try:
            async for message in _read(bus, stream, 0, since=since - CLOCK_SKEW, subjects=[subject], headers_only=True):
                if message is None:
                    return None
                if (message.headers or {}).get(names.MESSAGE_ID) == message_id:
                    return int(message.metadata.sequence.stream)
        except BusUnavailable:
            if bus.closed.is_set():
                raise
        await asyncio.sleep(RETRY_SECONDS)


async def _bounds(bus: Bus) -> tuple[int, int]:
    try:
        state = (await bus.jetstream.stream_info(names.BATTLE_LOG)).state
    except nats.js.errors.NotFoundError as error:
        msg = f"there is no stream {names.BATTLE_LOG} on {bus.shown}; run `archaeologist bus ensure`"
        raise TopologyMissing(msg) from error
    except (nats.errors.Error, OSError, TimeoutError) as error:
        msg = f"the Battle Log on {bus.shown} cannot be read: {bus.last_error or error}"
        raise BusUnavailable(msg) from error
    return int(state.first_seq), int(state.last_seq)


async def _read(
    bus: Bus,
    stream: str,
    position: int,
    *,
    since: datetime | None = None,
    subjects: Sequence[str] | None = None,
    headers_only: bool = False,
    stop: asyncio.Event | None = None,
) -> AsyncIterator[Msg | None]:
    """Messages behind ``position``; None each time the end is reached."""
    config = api.ConsumerConfig(
        name=f"reader-{new_ulid()}",
        ack_policy=api.AckPolicy.NONE,
        inactive_threshold=INACTIVE_SECONDS,
        mem_storage=True,
        headers_only=headers_only or None,
        filter_subjects=list(subjects) if subjects else None,
    )
    if position:
        config.deliver_policy, config.opt_start_seq = api.DeliverPolicy.BY_START_SEQUENCE, position + 1
    elif since is not None:
        config.deliver_policy, config.opt_start_time = api.DeliverPolicy.BY_START_TIME, since.astimezone(UTC)
    try:
        await bus.jetstream.add_consumer(stream, config)
        subscription = await bus.jetstream.pull_subscribe_bind(consumer=config.name, stream=stream)
    except (nats.errors.Error, OSError, TimeoutError) as error:
        msg = f"stream {stream} on {bus.shown} cannot be read: {bus.last_error or error}"
        raise BusUnavailable(msg) from error
    try:
        received = 0
        while not (stop and stop.is_set()):
            if await _is_exhausted(subscription, stream, received=received):
                yield None
            for message in await _batch(subscription, stream):
                received += 1
                yield message
    finally:
        await _drop(bus, stream, str(config.name), subscription)


async def _batch(subscription: JetStreamContext.PullSubscription, stream: str) -> list[Msg]:
    try:
        return await subscription.fetch(BATCH, timeout=FETCH_SECONDS)
    except (nats.errors.TimeoutError, TimeoutError):
        return []
    except (nats.errors.Error, OSError) as error:
        msg = f"reading stream {stream} broke off: {error}"
        raise BusUnavailable(msg) from error


async def _is_exhausted(subscription: JetStreamContext.PullSubscription, stream: str, *, received: int) -> bool:
    """Whether the server has nothing more and nothing is under way."""
    try:
        info = await subscription.consumer_info()
    except (nats.errors.Error, OSError, TimeoutError) as error:
        msg = f"reading stream {stream} broke off: {error}"
        raise BusUnavailable(msg) from error
    return not info.num_pending and info.delivered is not None and int(info.delivered.consumer_seq) <= received


async def _drop(bus: Bus, stream: str, name: str, subscription: JetStreamContext.PullSubscription) -> None:
    try:
        await subscription.unsubscribe()
        await bus.jetstream.delete_consumer(stream, name)
    except (nats.errors.Error, OSError, TimeoutError, ValueError) as error:
        # It ends by itself after a minute without a reader.
        log.debug("reader not deleted", extra={"reason": repr(error)})


def _decoded(message: Msg) -> LoggedEvent | None:
    try:
        event = msgspec.json.decode(message.data, type=Event)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        log.warning("not an event", extra={"subject": message.subject, "reason": str(error)})
        return None
    return LoggedEvent(int(message.metadata.sequence.stream), event)
