import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from archaeologist.bus import consumer
from archaeologist.bus.connection import Bus
from archaeologist.bus.consumer import Puller, Received, consume, take
from archaeologist.bus.publisher import publish
from archaeologist.bus.topology import ensure
from archaeologist.errors import BusUnavailable, TemporaryError, TopologyMissing
from archaeologist.settings import Settings
from contracts import subjects
from tests.fixtures.servers import Server
from tests.fixtures.waiting import until, until_asked
from tests.integration.bus.conftest import LEASE_SECONDS

STREAM = subjects.REQUESTS
DURABLE = subjects.INTAKE_REQUESTS
Handler = Callable[[Received], Awaitable[None]]


async def _ask(bus: Bus, name: str) -> None:
    await publish(bus, subjects.ANALYSIS_REQUESTED, name.encode(), message_id=name, headers={"Asked-By": "a test"})


async def _taken(bus: Bus) -> Received:
    received = await take(bus, STREAM, DURABLE, timeout_seconds=5)
    assert received is not None
    return received


class Handled:
    """Acknowledges what it is given and remembers it."""

    def __init__(self) -> None:
        self.bodies: list[str] = []

    async def __call__(self, received: Received) -> None:
        self.bodies.append(received.data.decode())
        await received.ack()


@asynccontextmanager
async def _consuming(bus: Bus, handle: Handler, settings: Settings | None = None) -> AsyncIterator[asyncio.Task[None]]:
    """A consume loop, which must end soon after it is told to."""
    stop = asyncio.Event()

    async def put_right() -> None:
        if settings is not None:
            await ensure(bus, settings)

    task = asyncio.create_task(consume(bus, STREAM, DURABLE, handle, stop=stop, ensure=put_right))
    try:
        yield task
    finally:
        stop.set()
        with suppress(BusUnavailable):
            await asyncio.wait_for(task, timeout=20)


async def _unacknowledged(bus: Bus) -> int:
    info = await bus.jetstream.consumer_info(STREAM, DURABLE)
    return int(info.num_ack_pending or 0) + int(info.num_pending or 0)


async def test_a_delivery_tells_all_about_its_message(bus: Bus) -> None:
    await _ask(bus, "one")
    received = await _taken(bus)
    assert (received.subject, received.data, received.stream) == (subjects.ANALYSIS_REQUESTED, b"one", STREAM)
    assert (received.sequence, received.deliveries) == (1, 1)
    assert received.headers["Asked-By"] == "a test"
    assert abs(received.time - datetime.now(UTC)) < timedelta(minutes=1)


async def test_nothing_there_is_none_within_the_timeout(bus: Bus) -> None:
    async with asyncio.timeout(20):
        assert await take(bus, STREAM, DURABLE, timeout_seconds=0.1) is None


async def test_an_acknowledged_message_never_comes_again(bus: Bus) -> None:
    await _ask(bus, "one")
    assert await (await _taken(bus)).ack_sync()
    assert await take(bus, STREAM, DURABLE, timeout_seconds=LEASE_SECONDS + 0.5) is None


async def test_a_message_that_nobody_acknowledged_comes_again_after_the_lease(bus: Bus) -> None:
    await _ask(bus, "one")
    await _taken(bus)
    assert (await _taken(bus)).deliveries == 2


async def test_a_heartbeat_keeps_the_lease(bus: Bus) -> None:
    await _ask(bus, "one")
    received = await _taken(bus)
    for _ in range(3):
        assert await take(bus, STREAM, DURABLE, timeout_seconds=LEASE_SECONDS / 2) is None
        assert await received.in_progress()


async def test_a_message_put_off_comes_again_after_the_delay_and_not_before(bus: Bus) -> None:
    await _ask(bus, "one")
    loop = asyncio.get_running_loop()
    put_off_at = loop.time()
    assert await (await _taken(bus)).nak(0.5)
    assert (await _taken(bus)).deliveries == 2
    assert loop.time() - put_off_at > 0.4


async def test_a_terminated_message_never_comes_again_and_the_reason_is_in_the_advisory(bus: Bus) -> None:
    advisories: list[bytes] = []

    async def hear(message: object) -> None:
        advisories.append(getattr(message, "data", b""))

    await bus.client.subscribe("$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.>", cb=hear)
    await _ask(bus, "one")
    assert await (await _taken(bus)).term("message_invalid: no hero_id")
    await until(lambda: bool(advisories))
    assert b"message_invalid: no hero_id" in advisories[0]
    assert await take(bus, STREAM, DURABLE, timeout_seconds=LEASE_SECONDS + 0.5) is None


async def test_telling_a_server_that_is_away_says_so_and_does_not_raise(server: Server, bus: Bus) -> None:
    await _ask(bus, "one")
    received = await _taken(bus)
    await bus.close()
    assert await received.ack() is False
    assert await received.nak(1) is False
    assert await received.in_progress() is False
    assert await received.term("gone") is False


async def test_messages_are_handled_in_order_and_a_new_one_ends_a_fetch(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "FETCH_SECONDS", 5.0)
    handled = Handled()
    for number in range(20):
        await _ask(bus, str(number))
    async with _consuming(bus, handled):
        await until(lambda: len(handled.bodies) == 20)
        await _ask(bus, "late")
        await until(lambda: handled.bodies[-1] == "late", seconds=4)
    assert handled.bodies == [*map(str, range(20)), "late"]


async def test_the_loop_goes_on_with_the_others_when_handling_fails(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer, "PUT_OFF_SECONDS", 0.3)
    handled = Handled()
    failures = {"broken": RuntimeError("a defect"), "not now": TemporaryError("no memory")}

    async def handle(received: Received) -> None:
        if received.deliveries == 1 and (error := failures.get(received.data.decode())):
            raise error
        await handled(received)

    for name in ("broken", "not now", "good"):
        await _ask(bus, name)
    async with _consuming(bus, handle):
        await until(lambda: len(handled.bodies) == 3)
    assert handled.bodies[0] == "good"
    assert sorted(handled.bodies) == ["broken", "good", "not now"]


async def test_a_killed_server_costs_no_message_and_no_stop(server: Server, bus: Bus) -> None:
    handled = Handled()
    async with _consuming(bus, handled):
        await _ask(bus, "before")
        await until(lambda: "before" in handled.bodies)
        for name in ("first", "second"):
            await server.restart()
            await _ask(bus, name)
            await until(partial(handled.bodies.__contains__, name))
        await until_asked(lambda: _is_zero(bus))


async def test_a_deleted_consumer_is_made_again_and_its_messages_handled(bus: Bus, settings: Settings) -> None:
    handled = Handled()
    async with _consuming(bus, handled, settings):
        await _ask(bus, "before")
        await until(lambda: handled.bodies == ["before"])
        await bus.jetstream.delete_consumer(STREAM, DURABLE)
        await _ask(bus, "after")
        await until(lambda: "after" in handled.bodies)


async def test_a_consumer_that_is_not_there_is_told_with_the_remedy(bus: Bus) -> None:
    await bus.jetstream.delete_consumer(STREAM, DURABLE)
    with pytest.raises(TopologyMissing, match=f"'{DURABLE}'.*bus ensure"):
        await take(bus, STREAM, DURABLE, timeout_seconds=0.5)


async def test_a_connection_closed_for_good_ends_the_loop_with_an_error(bus: Bus) -> None:
    async with _consuming(bus, Handled()) as task:
        await bus.client.close()
        with pytest.raises(BusUnavailable, match="closed for good"):
            await asyncio.wait_for(asyncio.shield(task), timeout=20)


async def test_the_loop_stops_within_two_seconds_and_leaves_no_pull_that_swallows_a_message(bus: Bus) -> None:
    loop = asyncio.get_running_loop()
    async with _consuming(bus, Handled()):
        await _ask(bus, "one")
        await until_asked(lambda: _is_zero(bus))
        stopped_at = loop.time()
    assert loop.time() - stopped_at < 2
    await _ask(bus, "two")
    received = await take(bus, STREAM, DURABLE, timeout_seconds=LEASE_SECONDS / 2)
    assert received is not None, "no earlier pull may have taken it"
    assert (received.data, received.deliveries) == (b"two", 1)


async def test_what_arrived_after_the_last_fetch_is_handed_back_at_once(bus: Bus) -> None:
    puller = Puller(bus, STREAM, DURABLE)
    assert await puller.take(timeout_seconds=0.05) is None
    subscription = puller._subscription
    assert subscription is not None
    # A pull of a second, whose answer nobody awaits, as when a fetch ends just before its message comes.
    await bus.client.publish(subscription._nms, b'{"batch": 1, "expires": 1000000000}', subscription._deliver)
    await _ask(bus, "one")
    arrived = subscription._sub._pending_queue
    # The end of the first pull may come here as well, as a status; only the message is to be handed back.
    await until(lambda: any(message.data == b"one" for message in arrived._queue))  # type: ignore[attr-defined]
    await puller.release()
    received = await take(bus, STREAM, DURABLE, timeout_seconds=LEASE_SECONDS / 2)
    assert received is not None, "it came before its lease ended"
    assert received.deliveries == 2


async def _is_zero(bus: Bus) -> bool:
    return await _unacknowledged(bus) == 0
