"""Dead letters: what could not be used, kept as it came, with where it came from and what was wrong."""

from typing import NamedTuple

from archaeologist.bus.connection import Bus
from archaeologist.bus.consumer import Received
from archaeologist.bus.publisher import publish
from contracts import subjects
from contracts.messages import EventError

MAX_REASON_CHARACTERS = 1000


class Origin(NamedTuple):
    """Where a message lay."""

    subject: str
    stream: str
    sequence: int

    @classmethod
    def of(cls, received: Received) -> "Origin":
        """Where a delivery came from."""
        return cls(received.subject, received.stream, received.sequence)


async def bury(bus: Bus, body: bytes, *, origin: Origin, error: EventError, message_id: str) -> None:
    """Stores a message under ``archaeologist.dead.<code>``; a repeat with the same id is stored once.

    Raises:
        BusUnavailable: The connection is closed for good.
    """
    # A header is one line of ASCII.
    reason = " ".join(error.message.split())[:MAX_REASON_CHARACTERS].encode("ascii", "replace").decode()
    headers = {
        subjects.DEAD_SUBJECT: origin.subject,
        subjects.DEAD_STREAM: origin.stream,
        subjects.DEAD_SEQUENCE: str(origin.sequence),
        subjects.DEAD_CODE: error.code,
        subjects.DEAD_REASON: reason,
    }
    await publish(bus, subjects.dead_subject(error.code), body, message_id=message_id, headers=headers)
