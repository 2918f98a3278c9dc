"""Publishing that survives a lost connection: the same Nats-Msg-Id again, until the server says that it has it.

While the server is away nats-py's publish times out although the buffered copy is still sent later, and the buffer
fills with every repetition; so nothing is sent until the server is there, and the id makes the repetition harmless.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Final, NamedTuple

import nats.errors
import nats.js.errors

from archaeologist.bus.connection import Bus
from archaeologist.errors import BusUnavailable, MessageTooLarge, QueueFull, TopologyMissing
from contracts import subjects

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 0.5
ATTEMPT_SECONDS: Final = 2.0
"""A confirmation that was lost with the connection is not worth a longer wait: repeating is harmless."""
NOT_STORED: Final = 10077
"""The server's code for "maximum messages exceeded", for "… per subject exceeded", and for a disk that is full."""
TOO_LARGE: Final = 10054


class SubjectOccupied(Exception):
    """The subject already holds its one message."""


class Published(NamedTuple):
    """Where a message lies in its stream."""

    sequence: int
    is_duplicate: bool
    """True: the server knew the id already and stored nothing new."""


async def publish(
    bus: Bus,
    subject: str,
    payload: bytes,
    *,
    message_id: str,
    headers: Mapping[str, str] | None = None,
    ttl_seconds: int | None = None,
    deadline_seconds: float | None = None,
) -> Published:
    """Stores a message in the stream of its subject, exactly once.

    Args:
        bus: The connection.
        subject: A subject that a stream captures.
        payload: The body.
        message_id: ``Nats-Msg-Id``: the same for the same message, also after a crash.
        headers: More headers.
        ttl_seconds: The stream forgets the message after this time.
        deadline_seconds: How long to try; None: until the connection is closed for good.

    Raises:
        BusUnavailable: The server did not confirm in time, or the connection is closed for good.
        TopologyMissing: No stream captures the subject (with a deadline; without one it is waited for).
        SubjectOccupied: A queue's subject already holds its message.
        QueueFull: The stream is at its ceiling.
        MessageTooLarge: The server takes no message of this size.
    """
    loop = asyncio.get_running_loop()
    deadline = None if deadline_seconds is None else loop.time() + deadline_seconds
    all_headers = {**(headers or {}), subjects.MESSAGE_ID: message_id}
    level = logging.WARNING
    while True:
        left = ATTEMPT_SECONDS if deadline is None else min(ATTEMPT_SECONDS, max(0.05, deadline - loop.time()))
        try:
            return await _publish_once(bus, subject, payload, headers=all_headers, ttl=ttl_seconds, seconds=left)
        except (BusUnavailable, TopologyMissing) as error:
            if bus.closed.is_set() or (deadline is not None and loop.time() + RETRY_SECONDS >= deadline):
                raise
            log.log(level, "publishing again", extra={"subject": subject, "reason": str(error)})
            level = logging.DEBUG
        await asyncio.sleep(RETRY_SECONDS)


async def _publish_once(
    bus: Bus, subject: str, payload: bytes, *, headers: dict[str, str], ttl: int | None, seconds: float
) -> Published:
    await bus.until_connected(seconds)
    try:
        ack = await bus.jetstream.publish(subject, payload, timeout=seconds, headers=dict(headers), msg_ttl=ttl)
    except nats.js.errors.NoStreamResponseError as error:
        msg = f"no stream takes {subject!r} on {bus.shown}; run `archaeologist bus ensure`"
        raise TopologyMissing(msg) from error
    except nats.errors.MaxPayloadError as error:
        raise _too_large(subject, payload) from error
    except nats.js.errors.APIError as error:
        if error.err_code == TOO_LARGE:
            raise _too_large(subject, payload) from error
        raise _refusal(bus, subject, error) from error
    except (nats.errors.Error, OSError, TimeoutError) as error:
        reason = bus.last_error or str(error) or type(error).__name__
        msg = f"{subject!r} was not confirmed by {bus.shown} ({reason}); is the server up and the role allowed?"
        raise BusUnavailable(msg) from error
    return Published(sequence=int(ack.seq), is_duplicate=bool(ack.duplicate))


def _refusal(bus: Bus, subject: str, error: nats.js.errors.APIError) -> Exception:
    """The queue's answers come as 503, as does "JetStream is down": only code and text tell them apart."""
    text = error.description or ""
    if error.err_code == NOT_STORED and "per subject" in text:
        return SubjectOccupied(subject)
    if error.err_code == NOT_STORED and "maximum" in text:
        msg = f"the stream of {subject!r} is full ({text}); wait until jobs are done, or cancel some"
        return QueueFull(msg)
    return BusUnavailable(f"{subject!r} was refused by the bus at {bus.shown}: {text or error} (code {error.err_code})")


def _too_large(subject: str, payload: bytes) -> MessageTooLarge:
    return MessageTooLarge(
        f"a message of {len(payload)} bytes for {subject!r} is more than the server takes; shorten it, or raise the"
        " server's max_payload"
    )
