"""The dead letters as stored: listed by their headers, one read whole."""

import nats.errors
import nats.js.errors
from nats.aio.msg import Msg

from archaeologist.bus.connection import Bus
from archaeologist.bus.reading import reading
from archaeologist.errors import BusUnavailable
from contracts import subjects
from contracts.records import DeadLetter

SUFFIX = ":dead"
"""Ends the ``Nats-Msg-Id`` of each; before it stands whose letter it is."""


async def letters(bus: Bus, *, code: str | None = None) -> list[DeadLetter]:
    """Every dead letter, the oldest first.

    Args:
        bus: The connection.
        code: Only those with this error code.

    Raises:
        BusUnavailable: The server is away.
        TopologyMissing: There is no stream of dead letters.
    """
    wanted = [subjects.dead_subject(code)] if code else list(subjects.DEAD_SUBJECTS)
    found = []
    async with reading(bus, subjects.DEAD, subjects=wanted, headers_only=True) as reader:
        while not await reader.is_at_end():
            found += [_letter(message) for message in await reader.batch()]
    return found


async def read_letter(bus: Bus, sequence: int) -> bytes | None:
    """The message that was buried, as it came; None where it has expired meanwhile.

    Raises:
        BusUnavailable: The server is away.
    """
    try:
        stored = await bus.jetstream.get_msg(subjects.DEAD, seq=sequence)
    except nats.js.errors.NotFoundError:
        return None
    except (nats.errors.Error, OSError, TimeoutError) as error:
        msg = f"dead letter {sequence} on {bus.shown} cannot be read: {bus.last_error or error}; is the server up?"
        raise BusUnavailable(msg) from error
    return stored.data or b""


def _letter(message: Msg) -> DeadLetter:
    headers, metadata = message.headers or {}, message.metadata
    origin = headers.get(subjects.DEAD_SEQUENCE, "")
    return DeadLetter(
        sequence=metadata.sequence.stream,
        at=metadata.timestamp.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        code=headers.get(subjects.DEAD_CODE, message.subject.rpartition(".")[2]),
        reason=headers.get(subjects.DEAD_REASON, ""),
        subject=headers.get(subjects.DEAD_SUBJECT, ""),
        owner=headers.get(subjects.MESSAGE_ID, "").removesuffix(SUFFIX),
        stream=headers.get(subjects.DEAD_STREAM, ""),
        stream_sequence=int(origin) if origin.isdecimal() else 0,
    )
