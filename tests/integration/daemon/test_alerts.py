"""Alerts that a child reports, on a real bus: one event each, whatever dies on the way."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import pytest_asyncio

from archaeologist.artifacts.store import write_whole
from archaeologist.bus.publisher import publish
from archaeologist.daemon import announcements, lifecycle
from archaeologist.daemon.admission import Admission
from archaeologist.daemon.lifecycle import Claim
from contracts.messages import AnalysisRequested, CampaignId, Event, HeroId, RequestId, Succeeded, encode
from contracts.records import JobRecord, RequestRecord
from tests.fixtures import child
from tests.integration.daemon.house import CAMPAIGN, HERO, House, of, opened, queue_job, with_quick_children


@pytest_asyncio.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with opened(tmp_path) as found:
        yield found


def told(log: list[Event]) -> list[tuple[str, float | None]]:
    """The types of the events, and the values of those that are alerts."""
    return [(event.type, event.data.get("value")) for event in log if event.type != "analysis.started"]


COMPLETED = ("analysis.completed", None)


async def done_by_a_worker_that_died(house: House, *, alerts: int) -> JobRecord:
    """A job whose record says done, whose artifact lies in its place, and of which nobody heard yet."""
    house.save(100)
    request = AnalysisRequested(hero_id=HeroId(HERO), campaign_id=CampaignId(CAMPAIGN), checkpoint_step=100)
    record = await queue_job(Admission(house.books, house.settings), request, request_id="r")
    key, now = record.job.job_key, datetime.now(UTC)
    accepted = RequestRecord(request_id=RequestId("r"), state="accepted", job_key=key, at=record.queued_at)
    await house.books.requests.create("r", accepted)
    claimed = lifecycle.claimed(record, owner="gone:X", token=1, now=now)
    final = house.folder.layer_stats(100)
    outcome = Succeeded(
        artifact_sha256=write_whole(final, encode(child.artifact(record.job))), alerts=child.alerts(alerts)
    )
    claim = Claim(owner="gone:X", number=claimed.claim)
    done = lifecycle.done(claimed, claim, outcome, artifact_path=str(final), sketch_path=None, now=now)
    assert done is not None
    await house.books.jobs.change(key, lambda _: done)
    return done


async def test_each_alert_of_a_child_is_one_event_after_the_completed_one(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch, alerts=3)
    house.save(100)
    async with house.daemon():
        await house.request("r", checkpoint_step=100)
        _, job = await house.until_ended("r")
        await house.until_queue_is_empty()
    assert job is not None
    assert job.alerts == child.alerts(3)
    log = await house.log()
    assert told(log) == [COMPLETED, *(("analysis.alert", float(number)) for number in range(3))]
    alert = log[-2]
    assert (alert.severity, alert.data["severity"], alert.message) == (
        "warning",
        "warning",
        "Checkpoint 100: RankMe is 1",
    )
    assert log[-1].severity == "error"
    assert (alert.data["job_id"], alert.data["checkpoint_step"], alert.data["worker"]) == ("r", 100, "box")
    assert (alert.data["family"], alert.data["baseline"], alert.data["checkpoints"]) == ("representation", 100.0, 7)


async def test_a_forced_run_tells_its_own_alerts(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    with_quick_children(monkeypatch, alerts=2)
    house.save(100)
    async with house.daemon():
        await house.request("a", checkpoint_step=100)
        await house.until_ended("a")
        monkeypatch.setenv("CHILD_ALERTS", "1")
        await house.request("b", checkpoint_step=100, force=True)
        await house.until_event(of("b", "completed"))
        await house.until_queue_is_empty()
    first = [("analysis.alert", 0.0), ("analysis.alert", 1.0)]
    assert told(await house.log()) == [COMPLETED, *first, COMPLETED, first[0]]


@pytest.mark.parametrize("said", [0, 1, 2, 3])
async def test_a_death_between_any_two_events_loses_and_doubles_none(house: House, said: int) -> None:
    record = await done_by_a_worker_that_died(house, alerts=2)
    ending = list(announcements.ending(record, worker="gone", now=datetime.now(UTC)))
    for event, message_id in ending[:said]:
        await publish(house.bus, event.type, encode(event), message_id=message_id)
    async with house.daemon():
        await house.until_ended("r")
        await house.until_queue_is_empty()
    assert told(await house.log()) == [COMPLETED, ("analysis.alert", 0.0), ("analysis.alert", 1.0)]


async def test_a_done_job_that_has_to_run_again_tells_only_of_its_last_run(house: House) -> None:
    await done_by_a_worker_that_died(house, alerts=2)
    house.folder.layer_stats(100).unlink()
    async with house.daemon():
        await house.until_ended("r")
        await house.until_queue_is_empty()
    assert told(await house.log()) == [COMPLETED], "it ran again, and the real child found nothing to warn of"
