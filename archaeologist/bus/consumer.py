"""Pulling messages: one at a time for the job queue, a loop for intake.

A fetch always has a timeout of a few seconds and is never cancelled: after a server's restart a pending one only ends
by its timeout, and a cancelled one leaves its pull on the server, which then delivers into the void. One message a
fetch: a second one would wait behind the first while its lease runs out. A new message ends a pending fetch at once.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from archaeologist import tasks
from archaeologist.bus.connection import Bus
from archaeologist.errors import BusUnavailable, TemporaryError, TopologyMissing

log = logging.getLogger(__name__)

FETCH_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 1.0
PUT_OFF_SECONDS: Final = 2.0
"""When a message comes again whose handling failed for now."""
ACK_SECONDS: Final = 5.0
MAX_FETCH_SECONDS: Final = 5.0
"""After a server's restart a fetch waits out its time: longer would be longer deaf."""
ACK_PREFIX: Final = "$JS.ACK."
"""Begins the reply subject of a delivery; a status message of the server has none."""

_Subscription = JetStreamContext.PullSubscription


class Received:
    """One delivery of a message. Telling the server never raises: it answers whether it could be told."""

    def __init__(self, message: Msg) -> None:
        metadata = message.metadata
        self._message = message
        self.subject: str = message.subject
        self.data: bytes = message.data
        self.headers: Mapping[str, str] = message.headers or {}
        self.stream: str = metadata.stream
        self.sequence: int = metadata.sequence.stream
        self.time: datetime = _aware(metadata.timestamp)
        self.deliveries: int = metadata.num_delivered or 1

    async def ack(self) -> bool:
        """Done with it."""
        return await self._tell(self._message.ack)

    async def ack_sync(self) -> bool:
        """Done with it, and the server confirmed."""
        return await self._tell(lambda: self._message.ack_sync(timeout=ACK_SECONDS))

    async def nak(self, delay_seconds: float = 0.0) -> bool:
        """Deliver it again, after a delay."""
        return await self._tell(lambda: self._message.nak(delay=delay_seconds or None))

    async def in_progress(self) -> bool:
        """Still at work: the lease starts anew."""
        return await self._tell(self._message.in_progress)

    async def term(self, reason: str) -> bool:
        """Never deliver it again; the reason shows in the server's advisory.

        nats-py's own ``term`` takes no reason.
        """

        async def send() -> None:
            await self._message._client.publish(self._message.reply, f"+TERM {reason}".encode())  # noqa: SLF001 -- no public way
            self._message._ackd = True  # noqa: SLF001 -- as its own term() does

        return await self._tell(send)

    async def _tell(self, say: Callable[[], Awaitable[Any]]) -> bool:
        try:
            await say()
        except nats.errors.MsgAlreadyAckdError:
            return True
        except (nats.errors.Error, OSError, TimeoutError) as error:
            log.warning("the bus could not be told", extra={"subject": self.subject, "reason": repr(error)})
            return False
        return True


class Puller:
    """Takes single messages of a durable consumer.

    The subscription is kept between calls: a message that arrives just as a fetch ends waits in it for the next one
    instead of being lost until its lease runs out.
    """

    def __init__(self, bus: Bus, stream: str, durable: str) -> None:
        self._bus = bus
        self._stream = stream
        self._durable = durable
        self._subscription: _Subscription | None = None

    async def take(self, *, timeout_seconds: float = FETCH_SECONDS) -> Received | None:
        """The next message, or None where there is none within the timeout, which is 5 s at most.

        Raises:
            BusUnavailable: No connection now, or closed for good.
            TopologyMissing: The consumer is not there.
        """
        await self._bus.until_connected(timeout_seconds)
        try:
            self._subscription = self._subscription or await self._bound()
            messages = await self._fetched(self._subscription, timeout_seconds=min(timeout_seconds, MAX_FETCH_SECONDS))
        except TemporaryError:
            await self.release()
            raise
        return Received(messages[0]) if messages else None

    async def release(self) -> None:
        """Gives up the subscription and hands back what still arrived in it."""
        if self._subscription is None:
            return
        subscription, self._subscription = self._subscription, None
        try:
            await subscription.unsubscribe()
        except (nats.errors.Error, OSError, ValueError) as error:
            log.debug("subscription not released", extra={"durable": self._durable, "reason": repr(error)})
        queue = subscription._sub._pending_queue  # noqa: SLF001 -- fetch would first ask the server for more
        while not queue.empty():
            message = queue.get_nowait()
            if message.reply.startswith(ACK_PREFIX):
                await Received(message).nak()

    async def _bound(self) -> _Subscription:
        try:
            return await self._bus.jetstream.pull_subscribe_bind(durable=self._durable, stream=self._stream)
        except (nats.errors.Error, OSError) as error:
            raise self._broken(error) from error

    async def _fetched(self, subscription: _Subscription, *, timeout_seconds: float) -> list[Msg]:
        try:
            return await subscription.fetch(1, timeout=timeout_seconds)
        except (nats.errors.TimeoutError, TimeoutError):
            return []
        except (nats.js.errors.ServiceUnavailableError, nats.js.errors.NotFoundError) as error:
            # Nobody listens where the consumer should: it was deleted, or JetStream is not up yet.
            msg = f"consumer {self._durable!r} does not answer ({error}); run `archaeologist bus ensure`"
            raise TopologyMissing(msg) from error
        except (nats.errors.Error, OSError) as error:
            # On a closed connection fetch raises at once, without yielding: whoever loops must leave.
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> BusUnavailable:
        reason = self._bus.last_error or str(error) or type(error).__name__
        return BusUnavailable(f"consumer {self._durable!r} cannot be read now ({reason}); it is tried again")


async def take(bus: Bus, stream: str, durable: str, *, timeout_seconds: float = FETCH_SECONDS) -> Received | None:
    """One message of a durable consumer, or None; a ``Puller`` for whoever takes more than one.

    Raises:
        BusUnavailable: No connection now, or closed for good.
        TopologyMissing: The consumer is not there.
    """
    puller = Puller(bus, stream, durable)
    try:
        return await puller.take(timeout_seconds=timeout_seconds)
    finally:
        await puller.release()


async def consume(
    bus: Bus,
    stream: str,
    durable: str,
    handle: Callable[[Received], Awaitable[None]],
    *,
    stop: asyncio.Event,
    ensure: Callable[[], Awaitable[object]] | None = None,
) -> None:
    """Hands every message to ``handle``, one after the other, until ``stop``. ``handle`` acknowledges.

    An error of ``handle`` never ends the loop: the message comes again after a delay. The loop ends within about a
    second of ``stop``, or when the message in hand is handled.

    Raises:
        BusUnavailable: The connection is closed for good.
    """
    puller = Puller(bus, stream, durable)
    try:
        while not stop.is_set():
            try:
                received = await puller.take(timeout_seconds=FETCH_SECONDS)
            except TopologyMissing as error:
                log.warning("consumer missing", extra={"durable": durable, "reason": str(error)})
                await tasks.pause(RETRY_SECONDS, until=stop)
                await _restore(ensure, stop=stop)
            except BusUnavailable as error:
                if bus.closed.is_set():
                    raise
                log.debug("reading again", extra={"durable": durable, "reason": str(error)})
                await tasks.pause(RETRY_SECONDS, until=stop)
            else:
                if received is not None:
                    await _handle_one(received, handle, stop=stop)
    finally:
        await puller.release()


async def _handle_one(
    received: Received, handle: Callable[[Received], Awaitable[None]], *, stop: asyncio.Event
) -> None:
    if stop.is_set():
        await received.nak()
        return
    try:
        await handle(received)
    except TemporaryError as error:
        log.warning("put off", extra={"subject": received.subject, "reason": str(error)})
        await received.nak(PUT_OFF_SECONDS)
    except Exception:
        log.exception("handling failed", extra={"subject": received.subject, "sequence": received.sequence})
        await received.nak(PUT_OFF_SECONDS)


async def _restore(ensure: Callable[[], Awaitable[object]] | None, *, stop: asyncio.Event) -> None:
    if ensure is None or stop.is_set():
        return
    try:
        await ensure()
    except TemporaryError as error:
        log.warning("topology not restored yet", extra={"reason": str(error)})


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
