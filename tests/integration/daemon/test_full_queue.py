"""What becomes of requests when the queue is full: by each policy, at the spec's numbers, and at the hard ceiling."""

from collections.abc import AsyncIterator, Iterable
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from msgspec.structs import replace

from archaeologist.daemon import control, reconciliation
from archaeologist.daemon.admission import Admission
from archaeologist.daemon.completion import Completion
from archaeologist.daemon.reconciliation import Reconciliation
from archaeologist.errors import QueueFull
from archaeologist.settings import JobsSettings, Settings
from contracts import subjects
from contracts.messages import AnalysisRequested, CampaignId, HeroId, JobType, Priority
from contracts.records import JobRecord
from tests.integration.daemon.house import CAMPAIGN, HERO, House, of, opened, queue_job, with_quick_children


@pytest_asyncio.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with opened(tmp_path) as found:
        yield found


async def admit(
    house: House, step: int, *, job_type: JobType = "layer_stats", request_id: str = "", force: bool = False
) -> JobRecord:
    is_drift = job_type == "layer_drift"
    request = AnalysisRequested(
        hero_id=HeroId(HERO),
        campaign_id=CampaignId(CAMPAIGN),
        job_type=job_type,
        checkpoint_step=None if is_drift else step,
        base_checkpoint_step=10 if is_drift else None,
        target_checkpoint_step=step if is_drift else None,
        reference=None if is_drift else "none",
        force=force,
    )
    request_id = request_id or f"{job_type}-{step}"
    return await queue_job(Admission(house.books, house.settings), request, request_id=request_id)


async def ceiling(house: House, messages: int) -> None:
    config = (await house.bus.jetstream.stream_info(subjects.JOBS)).config
    await house.bus.jetstream.update_stream(config.evolve(max_msgs=messages))


def save(house: House, steps: Iterable[int]) -> None:
    for step in steps:
        house.save(step)


def test_the_spec_s_numbers_are_the_defaults() -> None:
    jobs = Settings().jobs
    of_stats, of_drift = jobs.layer_stats, jobs.layer_drift
    assert (of_stats.max_pending, of_stats.when_full, of_stats.max_running) == (10, "warn", 1)
    assert (of_drift.max_pending, of_drift.when_full, of_drift.max_running) == (20, "allow", 2)
    assert (of_stats.time_limit_seconds, of_drift.time_limit_seconds) == (1800.0, 600.0)
    assert (of_stats.allowed_roles, of_drift.allowed_roles) == (("analytics",), ("analytics",))


async def test_the_eleventh_layer_stats_job_is_taken_with_a_warning_and_layer_drift_in_silence(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.settings = replace(house.settings, jobs=replace(house.settings.jobs, layer_stats=JobsSettings().layer_stats))
    steps = range(10, 130, 10)
    save(house, steps)
    notes = [(await admit(house, step)).job.notes for step in steps]
    silent = [(await admit(house, step, job_type="layer_drift")).job.notes for step in range(20, 130, 10)]
    assert notes[:10] == [()] * 10
    assert "10 layer_stats jobs are waiting, the limit is 10" in notes[10][0]
    assert "11 layer_stats jobs" in notes[11][0]
    assert set(silent) == {()}, "another type's queue is its own"
    with_quick_children(monkeypatch)
    async with house.daemon():
        completed = await house.until_event(of("layer_stats-110", "completed"))
    assert completed.data["warnings"] == list(notes[10])


async def test_reject_refuses_what_is_new_and_still_lets_a_repeat_join(house: House) -> None:
    limits = replace(house.settings.jobs.layer_stats, max_pending=2, when_full="reject")
    house.settings = replace(house.settings, jobs=replace(house.settings.jobs, layer_stats=limits))
    save(house, (10, 20, 30))
    first = await admit(house, 10)
    await admit(house, 20)
    with pytest.raises(QueueFull, match=r"2 layer_stats jobs are waiting, the limit is 2.*raise max_pending"):
        await admit(house, 30)
    joined = await admit(house, 10, request_id="again")
    assert joined.request_ids == (*first.request_ids, "again")
    assert len(await house.books.jobs.keys()) == 2


async def test_reject_refuses_a_forced_run_of_what_has_ended_as_it_does_what_is_new(house: House) -> None:
    limits = replace(house.settings.jobs.layer_stats, max_pending=1, when_full="reject")
    house.settings = replace(house.settings, jobs=replace(house.settings.jobs, layer_stats=limits))
    save(house, (10, 20))
    ended = await admit(house, 10)
    await control.cancel(house.bus, ended.job.job_key, by="ann")
    await admit(house, 20)
    with pytest.raises(QueueFull, match="1 layer_stats job"):
        await admit(house, 10, request_id="again", force=True)


async def test_at_the_ceiling_a_new_job_is_refused_and_never_runs_later(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciliation, "SETTLED_AFTER", timedelta())
    save(house, (10, 20, 30))
    await ceiling(house, 2)
    waiting = [await admit(house, step) for step in (10, 20)]
    with pytest.raises(QueueFull, match="wait until jobs are done"):
        await admit(house, 30)
    joined = await admit(house, 10, request_id="again")
    await ceiling(house, 100)
    await Reconciliation(house.books, Completion(house.bus, house.books, house.settings), house.settings).sweep()
    assert joined.state == "queued"
    assert sorted(key for _, _, key in await house.books.queue.subjects()) == sorted(
        record.job.job_key for record in waiting
    )
    assert (await admit(house, 30)).state == "queued", "the same request may come again"


async def test_at_the_ceiling_a_forced_repeat_is_refused_and_what_was_done_stays_done(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch)
    save(house, (10, 20))
    async with house.daemon():
        await house.request("r", checkpoint_step=10, reference="none")
        _, done = await house.until_ended("r")
        await house.until_queue_is_empty()
    await ceiling(house, 1)
    await admit(house, 20)
    assert done is not None
    with pytest.raises(QueueFull):
        await admit(house, 10, request_id="f", force=True)
    entry = await house.books.jobs.get(done.job.job_key)
    assert entry is not None
    assert entry.value == done


async def test_a_sweep_at_the_ceiling_goes_on_and_puts_what_waits_once_there_is_room(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciliation, "SETTLED_AFTER", timedelta())
    save(house, (10, 20))
    records = [await admit(house, step) for step in (10, 20)]
    lost: tuple[JobType, Priority, str] = ("layer_stats", "normal", records[0].job.job_key)
    await house.books.queue.remove(*lost)
    await ceiling(house, 1)
    sweep = Reconciliation(house.books, Completion(house.bus, house.books, house.settings), house.settings).sweep
    await sweep()
    assert lost not in await house.books.queue.subjects()
    await ceiling(house, 2)
    await sweep()
    assert lost in await house.books.queue.subjects()
