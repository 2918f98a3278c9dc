"""Typed key-value records, changed by compare-and-set.

Every call tries again while the connection is down: a record decides the life of a job, and "perhaps written" is no
answer. An update whose confirmation was lost is found already made by the reading that follows.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, Generic, NamedTuple, TypeVar

import msgspec
import nats.errors
import nats.js.errors
from msgspec import Struct
from nats.js.kv import KeyValue

from archaeologist.bus.connection import Bus
from archaeologist.errors import BusUnavailable, TopologyMissing

log = logging.getLogger(__name__)

T = TypeVar("T", bound=Struct)
R = TypeVar("R")

RETRY_SECONDS: Final = 0.5
CONFLICT_SECONDS: Final = 0.01
WATCH_SECONDS: Final = 1.0


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
        self._store: KeyValue | None = None

    async def get(self, key: str) -> Entry[T] | None:
        """The record under a key; None where there is none or the key cannot be one."""
        try:
            return await self._persistently(lambda store: self._get(store, key))
        except nats.js.errors.InvalidKeyError:
            return None

    async def create(self, key: str, value: T) -> int | None:
        """Its revision; None where the key exists already."""
        return await self._persistently(lambda store: self._write(store.create(key, msgspec.json.encode(value))))

    async def update(self, key: str, value: T, revision: int) -> int | None:
        """The new revision; None where somebody else was first."""
        body = msgspec.json.encode(value)
        return await self._persistently(lambda store: self._write(store.update(key, body, last=revision)))

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
        return await self._persistently(self._keys)

    async def all(self) -> dict[str, T]:
        """All records by key; those that do not decode are logged and left out."""
        found = {}
        for key in await self.keys():
            try:
                entry = await self.get(key)
            except msgspec.DecodeError as error:
                log.warning("record does not decode", extra={"key": key, "reason": str(error)})
                continue
            if entry is not None:
                found[key] = entry.value
        return found

    async def watch(self, key: str) -> AsyncIterator[T]:
        """The record, then each change seen; looked at every second, so it survives whatever the server does."""
        seen: int | None = None
        while True:
            entry = await self.get(key)
            if entry is not None and entry.revision != seen:
                seen = entry.revision
                yield entry.value
            await asyncio.sleep(WATCH_SECONDS)

    async def _get(self, store: KeyValue, key: str) -> Entry[T] | None:
        try:
            found = await store.get(key)
        except nats.js.errors.KeyNotFoundError:
            return None
        return Entry(msgspec.json.decode(found.value or b"", type=self._kind), int(found.revision or 0))

    @staticmethod
    async def _keys(store: KeyValue) -> list[str]:
        try:
            return list(await store.keys())
        except nats.js.errors.NoKeysError:
            return []

    @staticmethod
    async def _write(writing: Awaitable[int]) -> int | None:
        try:
            return await writing
        except nats.js.errors.KeyWrongLastSequenceError:
            return None

    async def _persistently(self, call: Callable[[KeyValue], Awaitable[R]]) -> R:
        loop = asyncio.get_running_loop()
        started = loop.time()
        while True:
            try:
                return await call(await self._bucket_store())
            except (nats.js.errors.InvalidKeyError, msgspec.DecodeError):
                raise
            except (nats.errors.Error, OSError, TimeoutError) as error:
                self._give_up_if_due(error, elapsed=loop.time() - started)
            await asyncio.sleep(RETRY_SECONDS)

    def _give_up_if_due(self, error: Exception, *, elapsed: float) -> None:
        reason = self._bus.last_error or str(error) or type(error).__name__
        if isinstance(error, nats.js.errors.BucketNotFoundError):
            self._store = None
            if self._deadline_seconds is not None:
                msg = f"bucket {self._bucket!r} is not there; run `archaeologist bus ensure`"
                raise TopologyMissing(msg) from error
        is_due = self._deadline_seconds is not None and elapsed >= self._deadline_seconds
        if is_due or self._bus.closed.is_set() or self._bus.client.is_closed:
            msg = f"bucket {self._bucket!r} cannot be reached on {self._bus.shown}: {reason}"
            raise BusUnavailable(msg) from error

    async def _bucket_store(self) -> KeyValue:
        if self._store is None:
            self._store = await self._bus.jetstream.key_value(self._bucket)
        return self._store
