"""What frozen and dying workers leave, and what it must not do to others."""

import errno
import os
import shutil
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from msgspec.structs import replace

from archaeologist.artifacts.store import read_layer_stats, temporary_path, write_whole
from archaeologist.bus.consumer import take
from archaeologist.daemon import lifecycle
from archaeologist.daemon.completion import Completion
from archaeologist.daemon.intake import Intake
from archaeologist.daemon.lifecycle import Claim
from archaeologist.daemon.reconciliation import SPARED_SECONDS, Reconciliation
from contracts import subjects
from contracts.messages import JobKey, RequestId, Succeeded, encode
from contracts.records import JobRecord
from tests.fixtures import child
from tests.integration.daemon.house import House, opened, with_quick_children
from tests.integration.daemon.test_lives import admitted


@pytest_asyncio.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with opened(tmp_path) as found:
        yield found


def left(path: Path, *, seconds_ago: float = 0.0) -> Path:
    """A file that somebody left so long ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"{")
    os.utime(path, (time.time() - seconds_ago,) * 2)
    return path


def done_by(record: JobRecord, house: House, *, digest: str) -> JobRecord:
    """The record of a worker that died before it put its artifact in place."""
    claimed = lifecycle.claimed(record, owner="gone:X", token=1, now=datetime.now(UTC))
    done = lifecycle.done(
        claimed,
        Claim(owner="gone:X", number=claimed.claim),
        Succeeded(artifact_sha256=digest),
        artifact_path=str(house.folder.layer_stats(record.job.target.step)),
        sketch_path=None,
        now=datetime.now(UTC),
    )
    assert done is not None
    return done


async def test_a_sweep_removes_old_temporary_files_of_jobs_that_are_over_and_no_others(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch)
    house.save(100)
    house.save(200)
    async with house.daemon():
        await house.request("over", checkpoint_step=100)
        _, over = await house.until_ended("over")
    assert over is not None
    waiting = await admitted(house, 200, "waiting")
    final, old = house.folder.layer_stats(100), 2 * SPARED_SECONDS
    gone = [
        left(temporary_path(final, over.job.job_key, 7), seconds_ago=old),
        left(temporary_path(house.folder.sketch(100), over.job.job_key, 7), seconds_ago=old),
        left(temporary_path(final, "of-nobody", 1), seconds_ago=old),
    ]
    kept = [
        left(temporary_path(final, over.job.job_key, 8)),
        left(temporary_path(final, waiting.job.job_key, 1), seconds_ago=old),
    ]
    completion = Completion(house.bus, house.books, house.settings)
    await Reconciliation(house.books, completion, house.settings).sweep()
    assert [path.exists() for path in (*gone, *kept)] == [False, False, False, True, True]


@pytest.mark.parametrize("state", ["queued", "running", "done"])
async def test_a_job_whose_message_is_gone_gets_one_again_once_nobody_is_at_work(
    house: House, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    with_quick_children(monkeypatch)
    house.save(100)
    record = await admitted(house, 100, "r")
    await house.books.queue.remove(record.job.job_type, record.job.priority, record.job.job_key)
    sweeping = Reconciliation(house.books, Completion(house.bus, house.books, house.settings), house.settings)

    async def is_put_again(then: datetime) -> bool:
        found = {
            "queued": replace(record, queued_at=lifecycle.stamp(then)),
            "running": lifecycle.claimed(record, owner="gone:X", token=1, now=then),
            "done": replace(done_by(record, house, digest="0" * 64), finished_at=lifecycle.stamp(then)),
        }[state]
        await house.books.jobs.change(record.job.job_key, lambda _: found)
        await sweeping.sweep()
        return bool(await house.books.queue.subjects())

    assert not await is_put_again(datetime.now(UTC))
    assert await is_put_again(datetime.now(UTC) - timedelta(minutes=5))
    async with house.daemon():
        await house.until_queue_is_empty()
    ended = await house.books.jobs.get(record.job.job_key)
    assert ended is not None
    assert ended.value.state == "done"
    assert [event.type for event in await house.log()].count("analysis.completed") == 1


async def test_a_disk_that_is_read_only_now_keeps_temporary_files_and_ends_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.save(100)
    record = await admitted(house, 100, "r")
    final = house.folder.layer_stats(100)
    file = left(temporary_path(final, record.job.job_key, 1))
    old = left(temporary_path(final, "of-nobody", 1), seconds_ago=2 * SPARED_SECONDS)
    completion = Completion(house.bus, house.books, house.settings)
    sweeping = Reconciliation(house.books, completion, house.settings)

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", refused)
        completion.clean(record.job, up_to_claim=1)
        await sweeping.sweep()
    assert file.exists()
    assert old.exists()
    await sweeping.sweep()
    assert not old.exists()


async def test_a_worker_that_wakes_up_late_removes_nothing_of_a_later_claim(house: House) -> None:
    house.save(100)
    record = await admitted(house, 100, "r")
    final = house.folder.layer_stats(100)
    files = [left(temporary_path(final, record.job.job_key, claim)) for claim in (1, 2, 3)]
    Completion(house.bus, house.books, house.settings).clean(record.job, up_to_claim=2)
    assert [path.exists() for path in files] == [False, False, True]


async def test_anothers_artifact_in_a_lost_ones_place_completes_nobody(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch)
    house.save(100)
    record = await admitted(house, 100, "r")
    other = replace(record.job, job_key=JobKey("another"))
    write_whole(house.folder.layer_stats(100), encode(child.artifact(other)))
    await house.books.jobs.change(record.job.job_key, lambda _: done_by(record, house, digest="0" * 64))
    async with house.daemon():
        await house.until_queue_is_empty()
    assert [event.type for event in await house.log()] == ["analysis.started", "analysis.completed"]
    assert read_layer_stats(house.folder.layer_stats(100)).job_key == record.job.job_key
    assert read_layer_stats(house.folder.superseded("another")).job_key == "another"


async def test_a_death_between_the_event_and_the_acknowledgement_leaves_no_temporary_file(house: House) -> None:
    house.save(100)
    record = await admitted(house, 100, "r")
    final = house.folder.layer_stats(100)
    digest = write_whole(temporary_path(final, record.job.job_key, 1), encode(child.artifact(record.job)))
    done = done_by(record, house, digest=digest)
    await house.books.jobs.change(record.job.job_key, lambda _: done)
    await Completion(house.bus, house.books, house.settings).settle(done)
    stray = left(temporary_path(final, record.job.job_key, 0))
    async with house.daemon():
        await house.until_queue_is_empty()
    assert not stray.exists()
    assert [event.type for event in await house.log()] == ["analysis.completed"]


# A request is decided once.


async def half_handled(house: House, request_id: str) -> None:
    """Intake takes a request, makes its job, and dies before it says so."""
    intake = Intake(house.bus, house.books, house.settings)
    received = await take(house.bus, subjects.REQUESTS, subjects.INTAKE_REQUESTS, timeout_seconds=5)
    assert received is not None
    decided = await intake._decided(received, request_id=RequestId(request_id))
    assert decided.job is not None
    await intake._admission.admit(decided.job, request_id=RequestId(request_id))
    await received.nak()


async def test_a_request_whose_intake_died_is_one_job_although_another_reference_would_be_chosen_now(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch)
    house.save(100)
    house.save(200)
    await house.request("r", checkpoint_step=200)
    await half_handled(house, "r")
    await admitted(house, 100, "earlier")
    async with house.daemon():
        request, job = await house.until_ended("r")
        await house.until_queue_is_empty()
    assert request.state == "accepted"
    assert job is not None
    assert job.job.reference is None
    completed = [event.data["job_id"] for event in await house.log() if event.type == "analysis.completed"]
    assert sorted(completed) == ["earlier", "r"]


async def test_a_request_whose_intake_died_is_not_refused_because_the_checkpoint_went_away(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch)
    folder = house.save(100)
    await house.request("r", checkpoint_step=100)
    await half_handled(house, "r")
    shutil.rmtree(folder)
    async with house.daemon():
        request, _ = await house.until_ended("r")
        await house.until_queue_is_empty()
    assert request.state == "accepted"
    assert [event.type for event in await house.log()] == ["analysis.started", "analysis.completed"]


async def test_a_refusal_that_was_decided_is_told_although_the_checkpoint_came_back(house: House) -> None:
    await house.request("r", checkpoint_step=100)
    intake = Intake(house.bus, house.books, house.settings)
    received = await take(house.bus, subjects.REQUESTS, subjects.INTAKE_REQUESTS, timeout_seconds=5)
    assert received is not None
    await intake._decided(received, request_id=RequestId("r"))
    await received.nak()
    house.save(100)
    async with house.daemon():
        request, _ = await house.until_ended("r")
    assert request.state == "refused"
    assert [event.type for event in await house.log()] == ["analysis.failed"]
