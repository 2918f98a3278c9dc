import asyncio
from pathlib import Path

import nats.errors
import pytest
from nats.js import api

from archaeologist.bus import publisher
from archaeologist.bus.connection import Bus, connected
from archaeologist.bus.publisher import SubjectOccupied, publish
from archaeologist.errors import BusUnavailable, MessageTooLarge, QueueFull, TopologyMissing
from archaeologist.settings import BusSettings
from contracts import subjects
from tests.fixtures.servers import Server
from tests.fixtures.waiting import until


async def _stored(bus: Bus, stream: str) -> int:
    return int((await bus.jetstream.stream_info(stream)).state.messages)


async def test_the_same_message_twice_is_stored_once_and_answered_with_its_place(bus: Bus) -> None:
    first = await publish(bus, subjects.ANALYSIS_REQUESTED, b"{}", message_id="one")
    again = await publish(bus, subjects.ANALYSIS_REQUESTED, b"{}", message_id="one")
    assert (first.is_duplicate, again.is_duplicate) == (False, True)
    assert first.sequence == again.sequence
    assert await _stored(bus, subjects.REQUESTS) == 1


async def test_the_id_is_still_known_after_the_server_was_killed(server: Server, bus: Bus) -> None:
    first = await publish(bus, subjects.ANALYSIS_STARTED, b"{}", message_id="one")
    await server.restart()
    again = await publish(bus, subjects.ANALYSIS_STARTED, b"{}", message_id="one", deadline_seconds=20)
    assert again == (first.sequence, True)


async def test_headers_reach_the_stream(bus: Bus) -> None:
    headers = {subjects.DEAD_REASON: "why", subjects.DEAD_CODE: "message_invalid"}
    published = await publish(bus, subjects.dead_subject("message_invalid"), b"x", message_id="d", headers=headers)
    stored = await bus.jetstream.get_msg(subjects.DEAD, seq=published.sequence)
    assert stored.headers is not None
    assert {**headers, subjects.MESSAGE_ID: "d"}.items() <= stored.headers.items()


async def test_what_is_published_while_the_server_is_away_is_stored_once_when_it_is_back(
    server: Server, bus: Bus
) -> None:
    await server.kill()
    await until(lambda: not bus.is_connected)
    publishing = [
        asyncio.create_task(publish(bus, subjects.ANALYSIS_STARTED, b"{}", message_id=f"message-{number}"))
        for number in range(20)
    ]
    done, _ = await asyncio.wait(publishing, timeout=1.5)
    assert not done, "nothing may count as published while the server is away"
    await server.start()
    await asyncio.wait_for(asyncio.gather(*publishing), timeout=20)
    assert await _stored(bus, subjects.BATTLE_LOG) == 20


async def test_a_buffer_that_is_full_does_not_lose_the_message(server: Server, bus: Bus) -> None:
    await server.kill()
    await until(lambda: not bus.is_connected)
    for _ in range(2):
        await bus.client.publish("filler", bytes(1_000_000))
    with pytest.raises(nats.errors.OutboundBufferLimitError):
        await bus.client.publish("filler", bytes(500_000))
    publishing = asyncio.create_task(publish(bus, subjects.ANALYSIS_STARTED, bytes(500_000), message_id="large"))
    await server.start()
    await asyncio.wait_for(publishing, timeout=20)
    assert await _stored(bus, subjects.BATTLE_LOG) == 1


async def test_many_kills_while_publishing_lose_and_double_nothing(server: Server, bus: Bus) -> None:
    async def publish_all() -> None:
        for number in range(300):
            await publish(bus, subjects.ANALYSIS_STARTED, str(number).encode(), message_id=f"message-{number}")
            await asyncio.sleep(0.005)  # spread over the kills

    publishing = asyncio.create_task(publish_all())
    for _ in range(2):
        await asyncio.wait({publishing}, timeout=0.4)
        await server.restart()
        await bus.until_connected(10)
    await asyncio.wait_for(publishing, timeout=30)
    assert await _stored(bus, subjects.BATTLE_LOG) == 300


async def test_a_deadline_ends_the_wait_for_a_server(server: Server, bus: Bus) -> None:
    await server.kill()
    async with asyncio.timeout(20):
        with pytest.raises(BusUnavailable, match=r"lost|confirmed"):
            await publish(bus, subjects.ANALYSIS_STARTED, b"{}", message_id="one", deadline_seconds=0.7)


async def test_a_connection_closed_for_good_ends_the_wait_without_a_deadline(server: Server, bus: Bus) -> None:
    await server.kill()
    await until(lambda: not bus.is_connected)
    publishing = asyncio.create_task(publish(bus, subjects.ANALYSIS_STARTED, b"{}", message_id="one"))
    await bus.close()
    with pytest.raises(BusUnavailable, match="closed for good"):
        await asyncio.wait_for(publishing, timeout=10)


async def test_a_missing_stream_is_told_with_the_remedy(bus: Bus) -> None:
    await bus.jetstream.delete_stream(subjects.CHECKPOINTS)
    with pytest.raises(TopologyMissing, match=r"'checkpoint.saved'.*bus ensure"):
        await publish(bus, subjects.CHECKPOINT_SAVED, b"{}", message_id="one", deadline_seconds=0.2)


async def test_a_missing_stream_is_waited_for_without_a_deadline(bus: Bus) -> None:
    config = (await bus.jetstream.stream_info(subjects.CHECKPOINTS)).config
    await bus.jetstream.delete_stream(subjects.CHECKPOINTS)
    publishing = asyncio.create_task(publish(bus, subjects.CHECKPOINT_SAVED, b"{}", message_id="one"))
    done, _ = await asyncio.wait({publishing}, timeout=0.2)
    assert not done
    await bus.jetstream.add_stream(config)
    assert (await asyncio.wait_for(publishing, timeout=20)).sequence == 1


async def test_an_occupied_subject_and_a_full_queue_are_told_apart(bus: Bus) -> None:
    config = (await bus.jetstream.stream_info(subjects.JOBS)).config
    await bus.jetstream.update_stream(config.evolve(max_msgs=2))
    for key in ("a", "b"):
        await publish(bus, subjects.job_subject("layer_stats", "low", key), b"{}", message_id=key)
    with pytest.raises(SubjectOccupied):
        await publish(bus, subjects.job_subject("layer_stats", "low", "a"), b"{}", message_id="a again")
    with pytest.raises(QueueFull, match=r"is full.*wait until jobs are done"):
        await publish(bus, subjects.job_subject("layer_stats", "low", "c"), b"{}", message_id="c")


async def test_a_message_larger_than_the_server_takes_is_refused_at_once(bus: Bus) -> None:
    async with asyncio.timeout(20):
        with pytest.raises(MessageTooLarge, match=r"2000000 bytes.*max_payload"):
            await publish(bus, subjects.ANALYSIS_STARTED, bytes(2_000_000), message_id="large")


async def test_a_message_larger_than_the_stream_takes_is_refused_at_once(bus: Bus) -> None:
    config = (await bus.jetstream.stream_info(subjects.BATTLE_LOG)).config
    await bus.jetstream.update_stream(config.evolve(max_msg_size=1000))
    async with asyncio.timeout(20):
        with pytest.raises(MessageTooLarge, match="5000 bytes"):
            await publish(bus, subjects.ANALYSIS_STARTED, bytes(5000), message_id="large")


async def test_a_denied_publish_says_that_it_was_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "ATTEMPT_SECONDS", 0.3)
    rights = 'permissions: { publish: { deny: "checkpoint.>" } }'
    config = f"authorization {{ users: [ {{ user: u, password: p, {rights} }} ] }}"
    async with (
        Server(tmp_path / "denying", config=config) as server,
        connected(BusSettings(url=server.url, user="u", password="p"), name="test") as bus,  # noqa: S106 -- a test's
    ):
        await bus.jetstream.add_stream(api.StreamConfig(name=subjects.CHECKPOINTS, subjects=["checkpoint.saved"]))
        with pytest.raises(BusUnavailable, match=r"(?i)permissions violation"):
            await publish(bus, subjects.CHECKPOINT_SAVED, b"{}", message_id="one", deadline_seconds=0.6)
