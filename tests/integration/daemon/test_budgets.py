"""Pins and sketches within their budgets: what goes, what never does, and where it is said."""

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from msgspec.structs import replace
from structlog.testing import capture_logs

from archaeologist.artifacts.thinning import thinned
from archaeologist.checkpoints import pins
from archaeologist.daemon import reconciliation
from archaeologist.daemon.completion import Completion
from archaeologist.daemon.reconciliation import Reconciliation
from archaeologist.settings import PinSettings, SketchSettings
from contracts import subjects
from contracts.records import JobRecord
from tests.fixtures.waiting import until_asked
from tests.integration.daemon.house import House, of, opened, with_quick_children
from tests.integration.daemon.test_full_queue import admit

NOTHING_GB = 1e-9
"""One byte."""

DYING = """
import asyncio, os, signal
from archaeologist.daemon import admission, service
from archaeologist.settings import load

async def die(*_arguments, **_options):
    os.kill(os.getpid(), signal.SIGKILL)

admission.Admission._record = die
asyncio.run(service.run(load()))
"""


@pytest_asyncio.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    with_quick_children(monkeypatch)
    async with opened(tmp_path) as found:
        yield found


def with_budget(house: House, **changes: object) -> None:
    house.settings = replace(house.settings, pins=replace(PinSettings(max_gb=NOTHING_GB), **changes))


async def sweep(house: House) -> None:
    """A sweep in which no pin is too young to go."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reconciliation, "SPARED_SECONDS", 0.0)
        completion = Completion(house.bus, house.books, house.settings)
        await Reconciliation(house.books, completion, house.settings).sweep()


def pinned(house: House) -> list[int]:
    return sorted(int(name.partition("-")[0]) for name in pins.listed(house.folder.pins))


def rotate(house: House, *steps: int) -> None:
    """The trainer deletes them."""
    for step in steps:
        shutil.rmtree(house.folder.checkpoints / f"checkpoint-{step}")


async def analysed(house: House, step: int) -> JobRecord:
    house.save(step)
    await house.say("checkpoint.saved", checkpoint_path=f"checkpoint-{step}", request_id=f"s{step}")
    _, job = await house.until_ended(f"s{step}")
    assert job is not None
    assert job.state == "done"
    return job


# Pins.


async def test_a_reference_that_was_given_up_is_missed_with_the_reason_in_the_completed_event(house: House) -> None:
    async with house.daemon():
        await analysed(house, 100)
    rotate(house, 100)
    with_budget(house)
    with capture_logs() as log:
        await sweep(house)
    assert pinned(house) == []
    assert [entry["pin"] for entry in log if "given up" in entry["event"]] != []
    house.settings = replace(house.settings, pins=PinSettings())
    async with house.daemon():
        await analysed(house, 200)
    completed = await house.until_event(of("s200", "completed"))
    assert completed.data["has_drift"] is False
    assert len(completed.data["warnings"]) == 1
    assert "checkpoint 100 is gone and its pin was given up on" in completed.data["warnings"][0]
    assert "pins.max_gb" in completed.data["warnings"][0]


async def test_pins_that_a_waiting_job_needs_stay_over_the_budget_and_it_is_said(house: House) -> None:
    async with house.daemon():
        await analysed(house, 100)
    house.save(200)
    record = await waiting(house, 300)
    rotate(house, 100, 200, 300)
    with_budget(house)
    with capture_logs() as log:
        await sweep(house)
    assert pinned(house) == [300]
    assert Path(record.job.target.read_path).is_dir()
    assert any(str(entry["event"]).startswith("pins hold") for entry in log)


async def test_a_reference_that_a_waiting_job_needs_stays(house: House) -> None:
    async with house.daemon():
        await analysed(house, 100)
    await announced_without_a_worker(house, 200)
    rotate(house, 100, 200)
    with_budget(house)
    await sweep(house)
    assert pinned(house) == [100, 200]
    async with house.daemon():
        completed = await house.until_event(of("s200", "completed"))
    assert completed.data["has_drift"] is True


async def test_over_the_budget_a_checkpoint_is_read_in_place_with_a_note(house: House) -> None:
    await waiting(house, 100)
    rotate(house, 100)
    with_budget(house)
    in_place = await waiting(house, 200)
    again = await admit(house, 200, request_id="again")
    assert in_place.job.target.read_path == in_place.job.target.path
    assert "is not pinned: pins hold" in in_place.job.notes[0]
    assert again.job.job_key == in_place.job.job_key
    assert pinned(house) == [100]


async def test_over_the_budget_a_request_is_refused_where_the_settings_say_so(house: House) -> None:
    await waiting(house, 100)
    rotate(house, 100)
    with_budget(house, when_impossible="refuse")
    house.save(200)
    async with house.daemon():
        await house.request("r", checkpoint_step=200)
        request, job = await house.until_ended("r")
    assert job is None
    assert request.error is not None
    assert request.error.code == "pin_impossible"
    assert "pins.max_gb" in request.error.message


async def test_a_daemon_killed_between_pin_and_record_leaves_a_pin_that_its_message_or_the_sweep_finds(
    house: House,
) -> None:
    house.save(100)
    environment = {
        **os.environ,
        "ARCHAEOLOGIST_ROOT": house.settings.root,
        "ARCHAEOLOGIST_NATS_URL": house.settings.bus.url,
        "ARCHAEOLOGIST_JOBS__LEASE_SECONDS": "2",
        "ARCHAEOLOGIST_JOBS__HEARTBEAT_SECONDS": "0.5",
    }
    await house.request("r", checkpoint_step=100)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", DYING, env=environment)
    assert await asyncio.wait_for(process.wait(), timeout=60) == -signal.SIGKILL
    assert pinned(house) == [100]
    assert await house.books.jobs.keys() == []
    async with house.daemon():
        _, job = await house.until_ended("r")
        await house.until_queue_is_empty()
    assert job is not None
    assert Path(job.job.target.read_path).parent == house.folder.pins
    assert pinned(house) == [100], "the message found the same pin"
    await house.bus.jetstream.purge_stream(f"KV_{subjects.JOB_RECORDS}")
    await house.bus.jetstream.purge_stream(f"KV_{subjects.CAMPAIGN_RECORDS}")
    await sweep(house)
    assert pinned(house) == [], "and without a record or a message the sweep does"


async def test_a_pin_that_was_just_chosen_as_a_reference_is_spared_by_a_sweep_that_began_before(house: House) -> None:
    async with house.daemon():
        job = await analysed(house, 100)
    os.utime(job.job.target.read_path, (0, 0))
    await announced_without_a_worker(house, 200)
    # What a sweep does that knows of no job.
    assert pins.release(house.folder.pins, keep=(), older_than_seconds=600.0) == ()
    assert pinned(house) == [100, 200]


async def waiting(house: House, step: int) -> JobRecord:
    house.save(step)
    return await admit(house, step)


async def announced_without_a_worker(house: House, step: int) -> None:
    """A job on the queue, its reference chosen by the policy."""
    house.save(step)
    await house.say("checkpoint.saved", checkpoint_path=f"checkpoint-{step}", request_id=f"s{step}")
    async with house.daemon(name="intake", roles=()):

        async def is_queued() -> bool:
            return bool(await house.books.queue.subjects())

        await until_asked(is_queued)


# Sketches.


async def test_sketches_beyond_the_budget_go_in_a_sweep_and_it_is_logged(house: House) -> None:
    async with house.daemon():
        for step in (100, 200, 300):
            await analysed(house, step)
    house.settings = replace(house.settings, sketches=SketchSettings(max_gb=NOTHING_GB))
    with capture_logs() as log:
        await sweep(house)
    assert [house.folder.sketch(step).exists() for step in (100, 200, 300)] == [False, False, True]
    assert thinned(house.folder).steps == (100, 200)
    said = [entry for entry in log if str(entry["event"]).startswith("sketches were given up")]
    assert [entry["steps"] for entry in said] == [[100, 200]]
