"""Puts events into the Battle Log, each once, and counts them: the only way from this program into the log."""

from archaeologist import metrics
from archaeologist.bus.connection import Bus
from archaeologist.bus.publisher import Published, publish
from contracts.messages import Event, encode


async def announce(
    bus: Bus,
    event: Event,
    *,
    message_id: str,
    ttl_seconds: int | None = None,
    deadline_seconds: float | None = None,
) -> Published:
    """Publishes an event.

    Args:
        bus: The connection.
        event: What happened.
        message_id: The same for the same event, also after a crash.
        ttl_seconds: The log forgets it after this time.
        deadline_seconds: How long to try; None: until the connection is closed for good.

    Raises:
        BusUnavailable: The server did not confirm in time, or the connection is closed for good.
        TopologyMissing: There is no Battle Log (with a deadline; without one it is waited for).
    """
    published = await publish(
        bus,
        event.type,
        encode(event),
        message_id=message_id,
        ttl_seconds=ttl_seconds,
        deadline_seconds=deadline_seconds,
    )
    if not published.is_duplicate:
        metrics.note_event(event)
    return published
