import asyncio
import shutil
from pathlib import Path

import pytest
from msgspec.structs import replace

from archaeologist.bus.connection import Bus
from archaeologist.bus.consumer import Received
from archaeologist.bus.queue import Backlog, JobQueue
from archaeologist.errors import BusUnavailable, QueueFull, TopologyMissing
from contracts import subjects
from contracts.messages import Job, JobKey
from tests.fixtures.servers import Server
from tests.fixtures.waiting import until, until_asked
from tests.integration.bus.conftest import LEASE_SECONDS
from tests.unit.daemon.jobs import job


@pytest.fixture
def queue(bus: Bus) -> JobQueue:
    return JobQueue(bus)


def _job(key: str) -> Job:
    return replace(job(), job_key=JobKey(key), priority="normal")


async def test_a_job_lies_on_the_queue_once_until_it_is_acknowledged(queue: JobQueue) -> None:
    assert await queue.put(_job("aa"))
    assert not await queue.put(_job("aa"))
    assert not await queue.put(replace(_job("aa"), run=2))
    received = await queue.take("layer_stats", "normal", timeout_seconds=5)
    assert received is not None
    assert received.subject == "archaeologist.jobs.layer_stats.normal.aa"
    assert not await queue.put(_job("aa")), "a running job is still on the queue"
    assert await received.ack_sync()
    assert await queue.subjects() == []
    assert await queue.put(_job("aa")), "queued anew within a second of the first"
    assert await queue.subjects() == [("layer_stats", "normal", "aa")]


async def test_each_priority_has_its_own_line(queue: JobQueue) -> None:
    await queue.put(_job("aa"))
    await queue.put(replace(_job("bb"), priority="high"))
    await queue.put(replace(_job("cc"), priority="high"))

    async def are_counted() -> bool:
        return sum(line.waiting for line in (await queue.backlog()).values()) == 3

    await until_asked(are_counted)
    backlog = await queue.backlog()
    assert len(backlog) == 6
    assert backlog["layer_stats", "high"] == Backlog(waiting=2, in_flight=0)
    assert backlog["layer_stats", "normal"] == Backlog(waiting=1, in_flight=0)
    assert backlog["layer_drift", "normal"] == Backlog(waiting=0, in_flight=0)
    received = await queue.take("layer_stats", "high", timeout_seconds=5)
    assert received is not None
    assert received.subject.endswith(".bb"), "first come, first served"
    assert (await queue.backlog())["layer_stats", "high"] == Backlog(waiting=1, in_flight=1)
    assert await queue.take("layer_stats", "low", timeout_seconds=0.1) is None


async def test_a_lost_worker_s_job_goes_to_another_after_the_lease(bus: Bus, queue: JobQueue) -> None:
    await queue.put(_job("aa"))
    assert await queue.take("layer_stats", "normal", timeout_seconds=5) is not None
    other = JobQueue(bus)
    assert await other.take("layer_stats", "normal", timeout_seconds=LEASE_SECONDS / 2) is None
    again = await other.take("layer_stats", "normal", timeout_seconds=5)
    assert again is not None
    assert again.deliveries == 2


async def test_a_job_taken_off_the_queue_is_gone_and_the_others_stay(queue: JobQueue) -> None:
    for key in ("aa", "bb"):
        await queue.put(_job(key))
    await queue.remove("layer_stats", "normal", "aa")
    await queue.remove("layer_stats", "normal", "never there")
    assert await queue.subjects() == [("layer_stats", "normal", "bb")]


async def test_a_full_queue_refuses_with_the_remedy(bus: Bus, queue: JobQueue) -> None:
    config = (await bus.jetstream.stream_info(subjects.JOBS)).config
    await bus.jetstream.update_stream(config.evolve(max_msgs=1))
    assert await queue.put(_job("aa"))
    with pytest.raises(QueueFull, match="wait until jobs are done"):
        await queue.put(_job("bb"))


async def test_an_arrival_is_heard_at_once_also_after_a_kill(server: Server, bus: Bus, queue: JobQueue) -> None:
    arrivals: list[None] = []
    await queue.on_arrival(lambda: arrivals.append(None))
    await queue.put(_job("aa"))
    await until(lambda: len(arrivals) == 1)
    await server.restart()
    await until(lambda: bus.reconnects == 1)
    await queue.put(_job("bb"))
    await until(lambda: len(arrivals) == 2)


async def test_jobs_survive_a_kill_of_the_server(server: Server, bus: Bus, queue: JobQueue) -> None:
    await queue.put(_job("aa"))
    await server.kill()
    await until(lambda: not bus.is_connected)
    with pytest.raises(BusUnavailable):
        await queue.take("layer_stats", "normal", timeout_seconds=0.1)
    putting = asyncio.create_task(queue.put(_job("bb")))
    await server.start()
    assert await asyncio.wait_for(putting, timeout=15)
    keys = {key for _, _, key in await queue.subjects()}
    assert keys == {"aa", "bb"}
    received = await queue.take("layer_stats", "normal", timeout_seconds=5)
    assert received is not None
    assert received.subject.endswith(".aa")


async def test_a_missing_consumer_is_told_with_the_remedy(bus: Bus, queue: JobQueue) -> None:
    await bus.jetstream.delete_consumer(subjects.JOBS, subjects.job_durable("layer_stats", "high"))
    with pytest.raises(TopologyMissing, match="bus ensure"):
        await queue.backlog()


async def test_what_a_killed_server_forgot_is_dropped_and_nothing_else(
    server: Server, queue: JobQueue, tmp_path: Path
) -> None:
    for key in ("forgotten", "held", "waiting"):
        await queue.put(_job(key))
    forgotten = await queue.take("layer_stats", "normal", timeout_seconds=5)
    assert forgotten is not None
    # The stream as it was before the acknowledgement, the consumer as it was after it.
    messages = tmp_path / "nats/data/jetstream/$G/streams/ARCHAEOLOGIST_JOBS/msgs"
    await server.stop()
    shutil.copytree(messages, tmp_path / "before")
    await server.start()
    await until_asked(lambda: _is_acknowledged(forgotten))
    await server.stop()
    shutil.rmtree(messages)
    shutil.copytree(tmp_path / "before", messages)
    await server.start()
    await until_asked(lambda: _has(queue, {"forgotten", "held", "waiting"}))
    held = await queue.take("layer_stats", "normal", timeout_seconds=5)
    assert held is not None
    assert held.subject.endswith(".held")
    await queue.drop_forgotten()
    assert {key for *_, key in await queue.subjects()} == {"held", "waiting"}
    assert await held.ack_sync()
    await queue.drop_forgotten()
    assert [key for *_, key in await queue.subjects()] == ["waiting"]


async def _is_acknowledged(received: Received) -> bool:
    try:
        return await received.ack_sync()
    except BusUnavailable:
        return False


async def _has(queue: JobQueue, keys: set[str]) -> bool:
    try:
        return {key for *_, key in await queue.subjects()} == keys
    except BusUnavailable:
        return False
