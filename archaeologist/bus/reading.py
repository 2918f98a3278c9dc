"""Reading a stream in order without acknowledging: what the Battle Log's readers and the records' listings rest on.

A reader is a pull consumer of its own, which the server forgets. It ends with ``BusUnavailable`` whenever something may
be missing between two messages; its caller then makes a new one behind the last sequence it saw. nats-py's ordered
consumer does not notice that its server restarted.
"""

import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Final

import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.js import JetStreamContext, api

from archaeologist.bus.connection import Bus
from archaeologist.errors import BusUnavailable, TopologyMissing
from contracts.ulid import new_ulid

log = logging.getLogger(__name__)

FETCH_SECONDS: Final = 1.0
BATCH: Final = 100
INACTIVE_SECONDS: Final = 60.0


class Reader:
    """The messages that one consumer delivers, in order."""

    def __init__(self, bus: Bus, stream: str, subscription: JetStreamContext.PullSubscription) -> None:
        self._bus = bus
        self._stream = stream
        self._subscription = subscription
        self._received = 0
        self._reconnects = bus.reconnects

    async def batch(self) -> list[Msg]:
        """The next messages; empty where none came within a second.

        Raises:
            BusUnavailable: The connection was lost, or a message on it.
        """
        if not self._bus.is_connected or self._bus.reconnects != self._reconnects:
            # What was under way is lost, and without acknowledgements nobody sends it again.
            reason = "the connection was lost"
            raise self._broken(reason)
        try:
            messages = await self._subscription.fetch(BATCH, timeout=FETCH_SECONDS)
        except (nats.errors.TimeoutError, TimeoutError):
            return []
        except (nats.errors.Error, OSError) as error:
            raise self._broken(error) from error
        for message in messages:
            self._received += 1
            if message.metadata.sequence.consumer != self._received:
                reason = "a message was lost on the way"
                raise self._broken(reason)
        return messages

    async def is_at_end(self) -> bool:
        """Whether the server has nothing more and nothing is under way.

        Raises:
            BusUnavailable: The server does not say.
        """
        try:
            info = await self._subscription.consumer_info()
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise self._broken(error) from error
        delivered = int(info.delivered.consumer_seq) if info.delivered else 0
        return not info.num_pending and delivered <= self._received

    def _broken(self, reason: object) -> BusUnavailable:
        return BusUnavailable(f"reading stream {self._stream} on {self._bus.shown} broke off: {reason}; read it again")


@contextlib.asynccontextmanager
async def reading(
    bus: Bus,
    stream: str,
    *,
    after_sequence: int = 0,
    since: datetime | None = None,
    subjects: Sequence[str] | None = None,
    headers_only: bool = False,
    is_last_per_subject: bool = False,
) -> AsyncIterator[Reader]:
    """A reader of a stream.

    Args:
        bus: The connection.
        stream: Its name.
        after_sequence: Start behind this one; 0: at the beginning, or at ``since``.
        since: Start at this moment.
        subjects: Only these.
        headers_only: Without bodies.
        is_last_per_subject: Only the newest message of each of ``subjects``.

    Raises:
        BusUnavailable: The server is away.
        TopologyMissing: There is no such stream.
    """
    config = api.ConsumerConfig(
        name=f"reader-{new_ulid()}",
        ack_policy=api.AckPolicy.NONE,
        inactive_threshold=INACTIVE_SECONDS,
        mem_storage=True,
        headers_only=headers_only or None,
        filter_subjects=list(subjects) if subjects else None,
    )
    if is_last_per_subject:
        config.deliver_policy = api.DeliverPolicy.LAST_PER_SUBJECT
    elif after_sequence:
        config.deliver_policy, config.opt_start_seq = api.DeliverPolicy.BY_START_SEQUENCE, after_sequence + 1
    elif since is not None:
        config.deliver_policy, config.opt_start_time = api.DeliverPolicy.BY_START_TIME, since.astimezone(UTC)
    subscription = await _subscribed(bus, stream, config)
    try:
        yield Reader(bus, stream, subscription)
    finally:
        await _drop(bus, stream, str(config.name), subscription)


async def _subscribed(bus: Bus, stream: str, config: api.ConsumerConfig) -> JetStreamContext.PullSubscription:
    await bus.until_connected()
    try:
        await bus.jetstream.add_consumer(stream, config)
        return await bus.jetstream.pull_subscribe_bind(consumer=config.name, stream=stream)
    except nats.js.errors.NotFoundError as error:
        msg = f"there is no stream {stream} on {bus.shown}; run `archaeologist bus ensure`"
        raise TopologyMissing(msg) from error
    except (nats.errors.Error, OSError, TimeoutError) as error:
        msg = f"stream {stream} on {bus.shown} cannot be read: {bus.last_error or error}; is the role allowed to?"
        raise BusUnavailable(msg) from error


async def _drop(bus: Bus, stream: str, name: str, subscription: JetStreamContext.PullSubscription) -> None:
    try:
        await subscription.unsubscribe()
        if bus.is_connected:
            await bus.jetstream.delete_consumer(stream, name)
    except (nats.errors.Error, OSError, TimeoutError, ValueError) as error:
        # It ends by itself after a minute without a reader.
        log.debug("reader not deleted", extra={"reason": repr(error)})
