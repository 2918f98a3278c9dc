"""Typed key-value records, changed by compare-and-set.

Every call tries again while the connection is down: a record decides the life of a job, and "perhaps written" is no
answer. So each write carries an id: where the server says that somebody was first, the id tells whether that was this
very write, whose confirmation got lost. The server itself looks at the revision before it looks at the id.

The buckets are those of ``nats kv``; nats-py's own KeyValue neither carries an id nor lists keys without a push
consumer, which hangs when the server restarts.
"""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Final, Generic, NamedTuple, TypeVar

import msgspec
import nats.errors
import nats.js.errors
from msgspec import Struct
from nats.js import api

from archaeologist.bus.connection import Bus
from archaeologist.bus.reading import reading
from archaeologist.errors import BusUnavailable, MessageTooLarge, TopologyMissing
from contracts import subjects
from contracts.ulid import new_ulid

log = logging.getLogger(__name__)

T = TypeVar("T", bound=Struct)
R = TypeVar("R")

RETRY_SECONDS: Final = 0.5
ATTEMPT_SECONDS: Final = 2.0
CONFLICT_SECONDS: Final = 0.01
WATCH_SECONDS: Final = 1.0

KEY: Final = re.compile(r"[-/_=a-zA-Z0-9]+(\.[-/_=a-zA-Z0-9]+)*")
OPERATION: Final = "KV-Operation"
"""Header of a deleted key's marker."""
DELETION: Final = "DEL"
EXPECTED: Final = str(api.Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value)
NAMED_AT_ONCE: Final = 100_000
"""Subjects of a stream that the server names in one answer."""
STREAM_NOT_FOUND: Final = 10059
WRONG_LAST_SEQUENCE: Final = frozenset({10071, 10164})


class Entry(NamedTuple, Generic[T]):
    """A record and the revision that an update must name."""

    value: T
    revision: int


class Records(Generic[T]):
    """The records of one bucket.

    Args:
        bus: The connection.
        bucket: Its name.
        kind: The Struct that each value decodes to.
        deadline_seconds: How long a call tries while the server is away; None: until closed for good.
    """

    def __init__(self, bus: Bus, bucket: str, kind: type[T], *, deadline_seconds: float | None = None) -> None:
        self._bus = bus
        self._bucket = bucket
        self._kind = kind
        self._deadline_seconds = deadline_seconds
        self._stream = f"KV_{bucket}"
        self._prefix = f"$KV.{bucket}."

    async def get(self, key: str) -> Entry[T] | None:
        """The record under a key; None where there is none or the key cannot be one."""
        if not KEY.fullmatch(key):
            return None
        stored = await self._persistently(lambda: self._stored(key))
        if stored is None or _is_deletion(stored.headers):
            return None
        return Entry(self._decoded(stored.data), int(stored.seq or 0))

    async def create(self, key: str, value: T) -> int | None:
        """Its revision; None where the key exists already."""
        return await self._write(key, value, revision=0)

    async def update(self, key: str, value: T, revision: int) -> int | None:
        """The new revision; None where somebody else was first."""
        return await self._write(key, value, revision=revision)

    async def put(self, key: str, value: T) -> None:
        """Writes the record whatever stands there: for records that have one writer."""
        await self._write(key, value, revision=None)

    async def remove(self, key: str, *, revision: int | None = None) -> bool:
        """Deletes the record; False where it is no longer the revision that was named."""
        return await self._write(key, None, revision=revision) is not None

    async def change(self, key: str, step: Callable[[T | None], T | None]) -> T | None:
        """What stands after ``step`` was applied to the record as it is.

        ``step`` may run several times, on whatever stands by then; None, or the same value, leaves the record alone.
        """
        while True:
            entry = await self.get(key)
            current = entry.value if entry else None
            wanted = step(current)
            if wanted is None or wanted == current:
                return current
            written = await (self.update(key, wanted, entry.revision) if entry else self.create(key, wanted))
            if written is not None:
                return wanted
            await asyncio.sleep(CONFLICT_SECONDS)

    async def keys(self) -> list[str]:
        """All keys."""
        return list(await self._persistently(lambda: self._listed(headers_only=True)))

    async def all(self) -> dict[str, T]:
        """All records by key; those that do not decode are logged and left out."""
        found = {}
        for key, body in (await self._persistently(lambda: self._listed(headers_only=False))).items():
            try:
                found[key] = self._decoded(body)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                log.warning("record does not decode", extra={"key": key, "reason": str(error)})
        return found

    async def watch(self, key: str) -> AsyncGenerator[T, None]:
        """The record, then each change seen; looked at every second, so it survives whatever the server does."""
        seen: int | None = None
        while True:
            entry = await self.get(key)
            if entry is not None and entry.revision != seen:
                seen = entry.revision
                yield entry.value
            await asyncio.sleep(WATCH_SECONDS)

    def _decoded(self, body: bytes | None) -> T:
        return msgspec.json.decode(body or b"", type=self._kind)

    async def _write(self, key: str, value: T | None, *, revision: int | None) -> int | None:
        """The new revision; without a value the key's deletion is written, without a revision over whatever stands."""
        if not KEY.fullmatch(key):
            msg = f"{key!r} cannot be a key of bucket {self._bucket!r}: letters, digits and -/_=. only"
            raise ValueError(msg)
        body = b"" if value is None else msgspec.json.encode(value)
        headers = {subjects.MESSAGE_ID: new_ulid(), **({OPERATION: DELETION} if value is None else {})}
        return await self._persistently(lambda: self._write_once(key, body, revision=revision, headers=headers))

    async def _write_once(
        self, key: str, body: bytes, *, revision: int | None, headers: Mapping[str, str]
    ) -> int | None:
        expected = {} if revision is None else {EXPECTED: str(revision)}
        try:
            ack = await self._bus.jetstream.publish(
                f"{self._prefix}{key}", body, headers={**headers, **expected}, timeout=ATTEMPT_SECONDS
            )
        except nats.js.errors.APIError as error:
            if error.err_code not in WRONG_LAST_SEQUENCE:
                raise
        else:
            return int(ack.seq)
        stored = await self._stored(key)
        if stored is not None and (stored.headers or {}).get(subjects.MESSAGE_ID) == headers[subjects.MESSAGE_ID]:
            return int(stored.seq or 0)
        if stored is not None and revision == 0 and _is_deletion(stored.headers):
            return await self._write_once(key, body, revision=int(stored.seq or 0), headers=headers)
        return None

    async def _stored(self, key: str) -> api.RawStreamMsg | None:
        try:
            return await self._bus.jetstream.get_msg(self._stream, subject=f"{self._prefix}{key}")
        except nats.js.errors.NotFoundError as error:
            if error.err_code == STREAM_NOT_FOUND:
                raise self._missing() from error
            return None

    async def _listed(self, *, headers_only: bool) -> dict[str, bytes]:
        """Body of each record by key."""
        every = f"{self._prefix}>"
        found = {}
        async with reading(
            self._bus, self._stream, subjects=[every], headers_only=headers_only, is_last_per_subject=True
        ) as reader:
            # What the server has pending does not tell the end: while a record is replaced, it counts one too few.
            left = await self._subjects(every)
            are_more = len(left) >= NAMED_AT_ONCE
            while left or (are_more and not await reader.is_at_end()):
                batch = await reader.batch()
                for message in batch:
                    found[message.subject] = message
                left -= found.keys()
                if left and not batch:
                    left &= await self._subjects(every)  # others expired meanwhile
        return {
            subject.removeprefix(self._prefix): message.data
            for subject, message in found.items()
            if not _is_deletion(message.headers)
        }

    async def _subjects(self, wanted: str) -> set[str]:
        info = await self._bus.jetstream.stream_info(self._stream, subjects_filter=wanted)
        return set(info.state.subjects or {})

    async def _persistently(self, call: Callable[[], Awaitable[R]]) -> R:
        """The call's result, tried until the server answers."""
        loop = asyncio.get_running_loop()
        deadline = None if self._deadline_seconds is None else loop.time() + self._deadline_seconds
        level = logging.WARNING
        while True:
            try:
                await self._bus.until_connected(RETRY_SECONDS)
                return await call()
            except nats.errors.MaxPayloadError as error:
                msg = f"a record of bucket {self._bucket!r} is larger than the server takes; raise its max_payload"
                raise MessageTooLarge(msg) from error
            except (BusUnavailable, TopologyMissing, nats.errors.Error, OSError, TimeoutError) as error:
                failure = self._failure(error)
                if self._bus.closed.is_set() or (deadline is not None and loop.time() + RETRY_SECONDS >= deadline):
                    raise failure from error
                log.log(level, "asking for records again", extra={"bucket": self._bucket, "reason": str(failure)})
                level = logging.DEBUG
            await asyncio.sleep(RETRY_SECONDS)

    def _failure(self, error: Exception) -> BusUnavailable | TopologyMissing:
        if isinstance(error, (BusUnavailable, TopologyMissing)):
            return error
        if isinstance(error, nats.js.errors.NoStreamResponseError):
            return self._missing()
        reason = self._bus.last_error or str(error) or type(error).__name__
        return BusUnavailable(f"bucket {self._bucket!r} cannot be reached on {self._bus.shown} ({reason}); is it up?")

    def _missing(self) -> TopologyMissing:
        return TopologyMissing(f"bucket {self._bucket!r} is not there; run `archaeologist bus ensure`")


def _is_deletion(headers: dict[str, str] | None) -> bool:
    return OPERATION in (headers or {})
