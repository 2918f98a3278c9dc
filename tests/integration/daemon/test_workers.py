"""Several workers on one bus: who takes what, limits of all together, and what others see of them."""

import asyncio
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from msgspec.structs import replace
from structlog.testing import capture_logs

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.daemon import control, presence, workers
from archaeologist.daemon.admission import Admission
from archaeologist.daemon.lifecycle import stamp
from archaeologist.daemon.slots import Slots
from archaeologist.settings import JobsSettings, LayerStatsSettings, PathMapping
from contracts import subjects
from contracts.messages import AnalysisRequested, CampaignId, Event, HeroId, JobKey
from contracts.records import SlotHolder, SlotRecord, WorkerRecord
from tests.fixtures.waiting import until_asked
from tests.integration.daemon.house import CAMPAIGN, HERO, House, of, opened, queue_job, with_quick_children


@pytest_asyncio.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with opened(tmp_path) as found:
        yield found


async def until_seen(house: House, *wanted: tuple[str, str]) -> list[WorkerRecord]:
    """The workers, once each has the condition that is wanted of it."""

    async def is_so() -> bool:
        now = datetime.now(UTC)
        found = await control.workers(house.bus)
        return sorted((one.name, workers.condition(one, now=now)) for one in found) == sorted(wanted)

    await until_asked(is_so, seconds=20)
    return await control.workers(house.bus)


def started(events: list[Event]) -> list[tuple[str, int]]:
    """Worker and step of each start, in order."""
    return [(one.data["worker"], one.data["checkpoint_step"]) for one in events if one.type == "analysis.started"]


# What others see.


async def test_every_worker_is_seen_from_anywhere_with_its_job_and_its_free_slots(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch, seconds=3)
    house.save(100)
    async with (
        house.daemon(name="a", grace_seconds=30.0) as stop,
        house.daemon(name="b", roles=("eval_worker",)),
    ):
        idle = await until_seen(house, ("a", "idle"), ("b", "idle"))
        await house.request("r", checkpoint_step=100)
        await house.until_event(of("r", "progress"))
        busy, _ = await until_seen(house, ("a", "busy"), ("b", "idle"))
        stop.set()
        await until_seen(house, ("a", "draining"), ("b", "idle"))
    assert [one.slots["layer_stats"].free for one in idle] == [1, 0]
    assert (busy.host, busy.pid, busy.roles) == (socket.gethostname(), os.getpid(), ("analytics",))
    assert [(one.slots["layer_stats"].running, one.slots["layer_stats"].free) for one in (busy,)] == [(1, 0)]
    assert [(job.job_id, job.checkpoint_step) for job in busy.jobs] == [("r", 100)]
    assert await control.workers(house.bus) == [], "who ends well takes its record along"


async def test_a_running_job_s_progress_is_seen(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    with_quick_children(monkeypatch, seconds=60)
    house.save(100)

    async def is_told() -> bool:
        return any(job.stage == "walk" for one in await control.workers(house.bus) for job in one.jobs)

    async with house.daemon():
        await house.request("r", checkpoint_step=100)
        await until_asked(is_told, seconds=20)


async def test_a_killed_worker_is_silent_and_the_next_of_its_name_removes_it(house: House) -> None:
    gone = record("box", heartbeat_at=datetime.now(UTC) - timedelta(seconds=60), pid=2**22 + 1)
    elsewhere = replace(gone, name="other", host="another machine", incarnation="X2")
    for one in (gone, elsewhere):
        await house.books.workers.put(workers.worker_key(one), one)
    await until_seen(house, ("box", "silent"), ("other", "silent"))
    async with house.daemon(name="box"):
        found = await until_seen(house, ("box", "idle"), ("other", "silent"))
    assert [one.incarnation == gone.incarnation for one in found] == [False, False]


async def test_a_daemon_ends_in_time_although_the_bus_is_away(house: House) -> None:
    async with house.daemon():
        await until_seen(house, ("box", "idle"))
        await house.server.kill()


# Roles.


async def test_a_worker_without_the_role_takes_no_job_and_says_so(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch)
    house.save(100)
    with capture_logs() as log:
        async with house.daemon(name="evals", roles=("eval_worker", "storage_hot")):
            await house.request("r", checkpoint_step=100)

            async def is_queued() -> bool:
                return bool(await house.books.queue.subjects())

            await until_asked(is_queued, seconds=20)
            (seen,) = await until_seen(house, ("evals", "idle"))
            async with house.daemon(name="lab", roles=("eval_worker", "analytics")):
                await house.until_ended("r")
    assert {worker for worker, _ in started(await house.log())} == {"lab"}
    assert seen.note is not None
    assert "eval_worker, storage_hot" in seen.note
    assert "analytics" in seen.note
    assert [entry["worker"] for entry in log if str(entry["event"]).startswith("takes no jobs")] == ["evals"]


async def test_a_job_type_may_go_to_workers_of_another_role(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    with_quick_children(monkeypatch)
    house.save(100)
    limits = LayerStatsSettings(allowed_roles=("heavy",))
    async with (
        house.daemon(name="light", layer_stats=limits),
        house.daemon(name="heavy", roles=("heavy",), layer_stats=limits),
    ):
        await house.request("r", checkpoint_step=100)
        await house.until_ended("r")
        await house.say(
            "analysis.requested",
            request_id="d",
            job_type="layer_drift",
            base_checkpoint_step=100,
            target_checkpoint_step=100,
        )
        await house.until_ended("d")
    assert [worker for worker, _ in started(await house.log())] == ["heavy", "light"]


# Several hosts.


async def test_workers_on_several_hosts_share_the_work_and_each_job_is_done_once(
    house: House, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_quick_children(monkeypatch, seconds=0.2)
    mounted = [tmp_path / name for name in ("host-a", "host-b")]
    for root in mounted:
        root.mkdir()
        (root / "campaigns").symlink_to(Path(house.settings.root) / "campaigns")
    house.settings = replace(house.settings, allowed=(house.settings.root,))
    steps = range(10, 90, 10)
    for step in steps:
        house.save(step)
    async with house.daemon(name="a", root=mounted[0]), house.daemon(name="b", root=mounted[1]):
        for step in steps:
            await house.request(f"r{step}", checkpoint_step=step, reference="none")
        ended = [await house.until_ended(f"r{step}") for step in steps]
    assert all(job is not None and job.state == "done" for _, job in ended)
    events = await house.log()
    assert sorted(step for _, step in started(events)) == list(steps)
    assert {worker for worker, _ in started(events)} == {"a", "b"}
    assert Counter(event.type for event in events)["analysis.completed"] == len(steps)
    folder = CampaignFolder.of(Path(house.settings.root), HERO, CAMPAIGN)
    assert all(folder.layer_stats(step).exists() for step in steps)


async def test_a_job_that_another_host_admitted_is_read_where_this_one_has_it(house: House) -> None:
    house.save(100)
    request = AnalysisRequested(
        hero_id=HeroId(HERO), campaign_id=CampaignId(CAMPAIGN), checkpoint_step=100, compute_activations=False
    )
    admission = Admission(house.books, house.settings)
    record = await queue_job(admission, request, request_id="r")
    target = record.job.target
    there = replace(target, read_path=target.read_path.replace(house.settings.root, "/mnt/elsewhere"))
    await house.books.jobs.put(record.job.job_key, replace(record, job=replace(record.job, target=there)))
    house.settings = replace(house.settings, paths=(PathMapping(source="/mnt/elsewhere", to=house.settings.root),))
    async with house.daemon():
        await house.until_event(of("r", "completed"))


async def test_each_box_and_the_cluster_have_their_limit_over_all_priorities(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch, seconds=0.3)
    limits = LayerStatsSettings(max_running=2, max_running_cluster=3, when_full="allow")
    most = Counter[str]()

    async def watch(stop: asyncio.Event) -> None:
        while not stop.is_set():
            records = (await house.books.jobs.all()).values()
            running = Counter(str(one.owner).partition(":")[0] for one in records if one.state == "running")
            for name, count in (*running.items(), ("all", running.total())):
                most[name] = max(most[name], count)
            await asyncio.sleep(0.02)

    steps = range(10, 110, 10)
    for step in steps:
        house.save(step)
    stop = asyncio.Event()
    async with (
        asyncio.TaskGroup() as group,
        house.daemon(name="a", layer_stats=limits),
        house.daemon(name="b", layer_stats=limits),
    ):
        group.create_task(watch(stop))
        for number, step in enumerate(steps):
            priority = subjects.PRIORITIES[number % 3]
            await house.request(f"r{step}", checkpoint_step=step, reference="none", priority=priority)
        for step in steps:
            await house.until_ended(f"r{step}")
        stop.set()
    assert most["all"] == 3, most
    assert max(most["a"], most["b"]) == 2, most
    entry = await house.books.slots.get("layer_stats")
    assert entry is not None
    assert entry.value.holders == (), "every slot is given back"


async def test_the_slot_of_a_dead_worker_is_free_again_and_that_of_a_living_one_is_not(house: House) -> None:
    limits = JobsSettings(layer_stats=LayerStatsSettings(max_running_cluster=1), lease_seconds=2.0)
    slots = Slots(house.books, limits, owner="me:1")
    old = stamp(datetime.now(UTC) - timedelta(minutes=5))
    dead = SlotHolder(owner="gone:1", job_key=JobKey("k" * 32), at=old)
    await house.books.slots.create("layer_stats", SlotRecord(holders=(dead,)))
    assert not await slots.are_taken("layer_stats")
    assert await slots.acquire("layer_stats", JobKey("m" * 32))
    other = Slots(house.books, limits, owner="you:1")
    assert await other.are_taken("layer_stats")
    assert not await other.acquire("layer_stats", JobKey("y" * 32))
    await slots.release("layer_stats", JobKey("m" * 32))
    assert await other.acquire("layer_stats", JobKey("y" * 32))


# Priorities.


async def test_with_another_worker_at_a_low_job_the_high_one_still_goes_first(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch, seconds=3)
    for step in (10, 20, 30):
        house.save(step)

    async def are_queued() -> bool:
        return len(await house.books.queue.subjects()) == 3

    async with house.daemon(name="a"):
        await house.request("r10", checkpoint_step=10, reference="none", priority="low")
        await house.until_event(of("r10", "progress"))  # by now the child has its seconds from the environment
        monkeypatch.setenv("CHILD_SECONDS", "0")
        await house.request("r20", checkpoint_step=20, reference="none", priority="low")
        await house.request("r30", checkpoint_step=30, reference="none", priority="high")
        await until_asked(are_queued)
        async with house.daemon(name="b"):
            for step in (20, 30):
                await house.until_ended(f"r{step}")
    assert started(await house.log()) == [("a", 10), ("b", 30), ("b", 20)]


def record(name: str, *, heartbeat_at: datetime, pid: int) -> WorkerRecord:
    return WorkerRecord(
        name=name,
        incarnation="X1",
        host=socket.gethostname(),
        pid=pid,
        root="/r",
        version="0",
        state="busy",
        roles=("analytics",),
        since=stamp(heartbeat_at),
        heartbeat_at=stamp(heartbeat_at),
        heartbeat_seconds=0.5,
    )


def test_a_process_that_is_this_one_is_no_other_s() -> None:
    assert not presence._is_alive(os.getpid())
    assert presence._is_alive(1)
