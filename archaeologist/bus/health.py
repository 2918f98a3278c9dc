"""What a server says of itself, for ``doctor``."""

import contextlib
from datetime import UTC, datetime
from typing import Any

import msgspec
import nats.errors
from msgspec import Struct

from archaeologist.bus.connection import REQUEST_SECONDS, Bus
from contracts import subjects


class Health(Struct, frozen=True, kw_only=True):
    """A server that answers."""

    version: tuple[int, int, int]
    has_jetstream: bool
    reason: str | None = None
    """Why there is no JetStream."""
    stored_bytes: int = 0
    """What all streams of the account hold."""
    max_stored_bytes: int | None = None
    """What they may hold; null: no limit but the disk."""
    clock_offset_seconds: float | None = None
    """The server's clock minus ours; null where the server does not tell its time."""


async def look(bus: Bus) -> Health:
    """What the server is and can do."""
    server = bus.client.connected_server_version
    account = await _ask(bus, "$JS.API.INFO")
    error = account.get("error") if account else {"description": "no answer: JetStream is off, or not allowed"}
    limit = (account.get("limits") or {}).get("max_storage", -1)
    return Health(
        version=(server.major, server.minor, server.patch),
        has_jetstream=error is None,
        reason=str(error.get("description")) if error else None,
        stored_bytes=int(account.get("storage", 0)),
        max_stored_bytes=limit if isinstance(limit, int) and limit >= 0 else None,
        clock_offset_seconds=await _clock_offset(bus),
    )


async def _clock_offset(bus: Bus) -> float | None:
    # Of all replies only a stream's description carries the server's time.
    before = datetime.now(UTC)
    reply = await _ask(bus, f"$JS.API.STREAM.INFO.{subjects.BATTLE_LOG}")
    after = datetime.now(UTC)
    with contextlib.suppress(KeyError, TypeError, ValueError):
        there = datetime.fromisoformat(_microseconds(reply["ts"]))
        return (there - (before + (after - before) / 2)).total_seconds()
    return None


def _microseconds(time: str) -> str:
    """The server writes nanoseconds, which Python's parser cuts but older ones refuse."""
    whole, _, fraction = time.rstrip("Z").partition(".")
    return f"{whole}.{fraction[:6]:0<6}+00:00"


async def _ask(bus: Bus, subject: str) -> dict[str, Any]:
    try:
        reply = await bus.client.request(subject, b"", timeout=REQUEST_SECONDS)
        return msgspec.json.decode(reply.data, type=dict[str, Any])
    except (TimeoutError, nats.errors.Error, OSError, msgspec.DecodeError):
        return {}
