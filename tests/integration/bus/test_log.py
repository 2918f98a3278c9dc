import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from archaeologist.bus import reading
from archaeologist.bus.connection import Bus
from archaeologist.bus.log import events, find_message
from archaeologist.bus.publisher import publish
from archaeologist.errors import BusUnavailable, TopologyMissing
from contracts import subjects
from contracts.messages import Event, encode
from tests.fixtures.servers import Server
from tests.fixtures.waiting import until, until_asked


async def _tell(bus: Bus, number: int, *, kind: str = subjects.ANALYSIS_STARTED, ttl: int | None = None) -> int:
    event = Event(
        type=kind, message=f"event {number}", severity="info", data={"number": number}, id=f"id-{number}", time=""
    )
    published = await publish(bus, kind, encode(event), message_id=f"message-{number}", ttl_seconds=ttl)
    return published.sequence


async def _read(bus: Bus, **options: Any) -> list[int]:
    return [logged.event.data["number"] async for logged in events(bus, follow=False, **options)]


class Follower:
    """Follows the log and remembers the numbers."""

    def __init__(self, bus: Bus, **options: Any) -> None:
        self.numbers: list[int] = []
        self.sequences: list[int] = []
        self.stop = asyncio.Event()
        self.task = asyncio.create_task(self._follow(events(bus, follow=True, stop=self.stop, **options)))

    async def _follow(self, log: AsyncIterator[Any]) -> None:
        async for logged in log:
            self.numbers.append(logged.event.data["number"])
            self.sequences.append(logged.sequence)

    async def end(self) -> None:
        self.stop.set()
        await asyncio.wait_for(self.task, timeout=20)


async def _consumers(bus: Bus) -> int:
    return len(await _readers(bus))


async def _readers(bus: Bus) -> list[str]:
    """Consumers that readers made for themselves; durable ones stay."""
    found = await bus.jetstream.consumers_info(subjects.BATTLE_LOG)
    return [str(consumer.name) for consumer in found if not consumer.config.durable_name]


async def test_an_empty_log_ends_at_once(bus: Bus) -> None:
    assert await _read(bus) == []
    assert await _read(bus, last=5) == []


async def test_a_replay_has_every_event_in_order_and_leaves_no_consumer(bus: Bus) -> None:
    for number in range(250):
        await _tell(bus, number)
    assert await _read(bus) == list(range(250))
    assert await _consumers(bus) == 0


async def test_a_replay_starts_behind_a_sequence_or_at_a_time(bus: Bus) -> None:
    await _tell(bus, 0)
    middle = await _tell(bus, 1)
    between = datetime.now(UTC)
    await _tell(bus, 2)
    assert await _read(bus, after_sequence=middle) == [2]
    assert await _read(bus, since=between) == [2]
    assert await _read(bus, since=between - timedelta(hours=1)) == [0, 1, 2]
    assert await _read(bus, since=between + timedelta(hours=1)) == []


async def test_a_time_counts_also_when_the_oldest_events_are_gone(bus: Bus) -> None:
    for number in range(4):
        await _tell(bus, number)
    await bus.jetstream.purge_stream(subjects.BATTLE_LOG, seq=2)
    between = datetime.now(UTC)
    await _tell(bus, 4)
    assert await _read(bus) == [1, 2, 3, 4]
    assert await _read(bus, since=between) == [4]


async def test_the_last_events_are_counted_by_what_is_read_and_over_gaps(bus: Bus) -> None:
    for number in range(10):
        kind = subjects.ANALYSIS_PROGRESS if number % 2 else subjects.ANALYSIS_COMPLETED
        await _tell(bus, number, kind=kind)
    await bus.jetstream.delete_msg(subjects.BATTLE_LOG, 9)
    assert await _read(bus, last=3) == [6, 7, 9]
    assert await _read(bus, last=3, subjects=[subjects.ANALYSIS_COMPLETED]) == [2, 4, 6]
    assert await _read(bus, last=100) == [0, 1, 2, 3, 4, 5, 6, 7, 9]
    assert await _read(bus, last=0) == []


async def test_a_replay_ends_where_the_log_ended_when_it_began(bus: Bus) -> None:
    await _tell(bus, 0)
    read = []
    async for logged in events(bus, follow=False):
        read.append(logged.event.data["number"])
        await _tell(bus, len(read))
    assert read == [0]


async def test_what_is_no_event_is_left_out(bus: Bus) -> None:
    await _tell(bus, 0)
    for number, body in enumerate((b"not JSON", b"[]", b'{"type": 1}', b"\xff")):
        await publish(bus, subjects.ANALYSIS_STARTED, body, message_id=f"bad-{number}")
    await _tell(bus, 1)
    assert await _read(bus) == [0, 1]


async def test_a_follower_sees_what_was_and_what_comes_without_waiting_for_a_fetch_to_end(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "FETCH_SECONDS", 5.0)
    await _tell(bus, 0)
    follower = Follower(bus)
    await until(lambda: follower.numbers == [0])
    await _tell(bus, 1)
    await until(lambda: follower.numbers == [0, 1], seconds=4)
    await follower.end()
    assert await _consumers(bus) == 0


async def test_a_follower_from_the_end_sees_only_what_comes(bus: Bus) -> None:
    await _tell(bus, 0)
    follower = Follower(bus, last=0, subjects=[subjects.ANALYSIS_STARTED])

    async def is_reading() -> bool:
        return await _consumers(bus) == 1

    await until_asked(is_reading)
    await _tell(bus, 1, kind=subjects.ANALYSIS_FAILED)
    await _tell(bus, 2)
    await until(lambda: follower.numbers == [2])
    await follower.end()


async def test_a_follower_has_no_gap_and_no_repeat_over_kills_of_the_server(server: Server, bus: Bus) -> None:
    follower = Follower(bus)

    async def tell_all() -> None:
        for number in range(200):
            await _tell(bus, number)
            await asyncio.sleep(0.005)  # spread over the kills

    telling = asyncio.create_task(tell_all())
    for _ in range(2):
        await asyncio.wait({telling}, timeout=0.5)
        await server.restart()
        await bus.until_connected(10)
    await asyncio.wait_for(telling, timeout=30)
    await until(lambda: len(follower.numbers) >= 200)
    assert follower.numbers == list(range(200))
    assert follower.sequences == sorted(set(follower.sequences))
    await follower.end()


async def test_a_follower_notices_that_its_consumer_is_gone(bus: Bus) -> None:
    follower = Follower(bus)
    await _tell(bus, 0)
    await until(lambda: follower.numbers == [0])
    [reader] = await _readers(bus)
    await bus.jetstream.delete_consumer(subjects.BATTLE_LOG, reader)
    await _tell(bus, 1)
    await until(lambda: follower.numbers == [0, 1])
    await follower.end()


async def test_a_closed_connection_ends_a_follower_with_an_error(bus: Bus) -> None:
    await _tell(bus, 0)
    follower = Follower(bus)
    await until(lambda: follower.numbers == [0])
    await bus.close()
    with pytest.raises(BusUnavailable):
        await asyncio.wait_for(follower.task, timeout=20)


async def test_a_missing_log_is_told_with_the_remedy(bus: Bus) -> None:
    await bus.jetstream.delete_stream(subjects.BATTLE_LOG)
    with pytest.raises(TopologyMissing, match="bus ensure"):
        await _read(bus)
    with pytest.raises(TopologyMissing, match="bus ensure"):
        await find_message(bus, subjects.BATTLE_LOG, "x", subject=subjects.ANALYSIS_FAILED, since=datetime.now(UTC))


async def test_a_message_is_found_by_its_id_from_a_time_on(server: Server, bus: Bus) -> None:
    for number in range(150):
        await _tell(bus, number, kind=subjects.ANALYSIS_COMPLETED)
    sequence = await _tell(bus, 150, kind=subjects.ANALYSIS_COMPLETED)
    now = datetime.now(UTC)

    async def found(name: str, *, since: datetime = now, subject: str = subjects.ANALYSIS_COMPLETED) -> int | None:
        return await find_message(bus, subjects.BATTLE_LOG, name, subject=subject, since=since)

    assert await found("message-150") == sequence
    assert await found("message-151") is None
    assert await found("message-150", since=now + timedelta(hours=1)) is None
    assert await found("message-150", subject=subjects.ANALYSIS_FAILED) is None
    await server.kill()
    looking = asyncio.create_task(found("message-150"))
    await server.start()
    assert await asyncio.wait_for(looking, timeout=20) == sequence
