"""Pulling messages: one at a time for the job queue, a loop for intake.

A fetch always has a timeout of a few seconds and is never cancelled: after a server's restart a pending one only ends
by its timeout, and a cancelled one leaves its pull on the server, which then delivers into the void.
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

from archaeologist.bus.connection import Bus
from archaeologist.errors import BusUnavailable, TemporaryError, TopologyMissing

log = logging.getLogger(__name__)

FETCH_SECONDS: Final = 1.0
BATCH: Final = 16
RETRY_SECONDS: Final = 2.0
ACK_SECONDS: Final = 5.0

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
        """The next message, or None where there is none within the timeout.

        Raises:
            BusUnavailable: No connection now, or closed for good.
            TopologyMissing: The consumer is not there.
        """
        self._subscription = self._subscription or await _bound(self._bus, self._stream, self._durable)
        try:
            messages = await _fetch(
                self._bus, self._subscription, batch=1, timeout_seconds=timeout_seconds, durable=self._durable
            )
        except TemporaryError:
            await _unbind(self._subscription)
            self._subscription = None
            raise
        return Received(messages[0]) if messages else None


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

    An error of ``handle`` never ends the loop: the message comes again after a delay.

    Raises:
        BusUnavailable: The connection is closed for good.
    """
    subscription: _Subscription | None = None
    while not stop.is_set():
        try:
            subscription = subscription or await _bound(bus, stream, durable)
            for message in await _fetch(bus, subscription, batch=BATCH, timeout_seconds=FETCH_SECONDS, durable=durable):
                await _handle_one(Received(message), handle, stop=stop)
        except TopologyMissing as error:
            log.warning("consumer missing", extra={"durable": durable, "reason": str(error)})
            await _renew(subscription, ensure, stop=stop)
            subscription = None
        except BusUnavailable:
            if bus.closed.is_set():
                raise
            await _pause(stop, RETRY_SECONDS)
    if subscription is not None:
        await _unbind(subscription)


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
        await received.nak(RETRY_SECONDS)
    except Exception:
        log.exception("handling failed", extra={"subject": received.subject, "sequence": received.sequence})
        await received.nak(RETRY_SECONDS)


async def _bound(bus: Bus, stream: str, durable: str) -> _Subscription:
    _check_open(bus)
    try:
        return await bus.jetstream.pull_subscribe_bind(durable=durable, stream=stream)
    except (nats.errors.Error, OSError) as error:
        _check_open(bus)
        msg = f"consumer {durable!r} cannot be reached: {error}"
        raise BusUnavailable(msg) from error


async def _fetch(
    bus: Bus, subscription: _Subscription, *, batch: int, timeout_seconds: float, durable: str
) -> list[Msg]:
    try:
        return await subscription.fetch(batch, timeout=timeout_seconds)
    except (nats.js.errors.NoStreamResponseError, nats.errors.NoRespondersError, nats.js.errors.NotFoundError) as error:
        raise _missing(durable, error) from error
    except nats.js.errors.ServiceUnavailableError as error:
        raise _missing(durable, error) from error
    except nats.js.errors.APIError as error:
        if "deleted" in (error.description or "").lower():
            raise _missing(durable, error) from error
        raise _broken(durable, error) from error
    except (nats.errors.TimeoutError, TimeoutError):
        _check_open(bus)
        return []
    except (nats.errors.Error, OSError) as error:
        # On a closed connection fetch raises at once, without yielding: leave the loop on it.
        _check_open(bus)
        raise _broken(durable, error) from error


def _broken(durable: str, error: Exception) -> BusUnavailable:
    return BusUnavailable(f"consumer {durable!r} cannot be read now: {error}; it is tried again")


def _missing(durable: str, error: Exception) -> TopologyMissing:
    return TopologyMissing(f"consumer {durable!r} does not answer ({error}); run `archaeologist bus ensure`")


def _check_open(bus: Bus) -> None:
    if bus.closed.is_set() or bus.client.is_closed:
        msg = f"the connection to the bus at {bus.shown} is closed for good"
        bus.closed.set()
        raise BusUnavailable(msg)


async def _renew(
    subscription: _Subscription | None, ensure: Callable[[], Awaitable[object]] | None, *, stop: asyncio.Event
) -> None:
    """Drops the subscription and puts the topology right, after a pause."""
    if subscription is not None:
        await _unbind(subscription)
    await _pause(stop, RETRY_SECONDS)
    if ensure is not None and not stop.is_set():
        try:
            await ensure()
        except TemporaryError as error:
            log.warning("topology not restored yet", extra={"reason": str(error)})


async def _unbind(subscription: _Subscription) -> None:
    try:
        await subscription.unsubscribe()
    except (nats.errors.Error, OSError, ValueError) as error:
        log.debug("unsubscribe", extra={"reason": repr(error)})


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(stop.wait(), timeout=seconds)
    except TimeoutError:
        return


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
