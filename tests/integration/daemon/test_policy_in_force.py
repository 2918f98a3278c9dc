"""The policy on a real bus: every Nth, level-ups, references, path mapping; and what the sweep puts right."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from msgspec.structs import replace

from archaeologist.checkpoints import pins
from archaeologist.daemon import control, lifecycle, policy, reconciliation
from archaeologist.daemon.admission import Admission
from archaeologist.daemon.books import campaign_key
from archaeologist.daemon.completion import Completion
from archaeologist.daemon.reconciliation import Reconciliation
from archaeologist.settings import BestReference, PathMapping, PinSettings, PolicySettings
from contracts.messages import AnalysisRequested, CampaignId, HeroId, RequestId
from contracts.records import CampaignRecord, JobRecord, JobState, RequestRecord, SeenCheckpoint
from tests.fixtures.checkpoints import write_checkpoint
from tests.integration.daemon.house import CAMPAIGN, HERO, House, opened, queue_job, with_quick_children


@pytest_asyncio.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    with_quick_children(monkeypatch)
    async with opened(tmp_path) as found:
        yield found


def under(house: House, policy: PolicySettings) -> None:
    house.settings = replace(house.settings, policy=policy)


async def announced(house: House, step: int, **fields: object) -> tuple[RequestRecord, JobRecord | None]:
    """What became of a checkpoint that was saved and announced."""
    await house.say("checkpoint.saved", checkpoint_path=f"checkpoint-{step}", request_id=f"s{step}", **fields)
    return await house.until_ended(f"s{step}")


async def test_every_third_checkpoint_is_analysed_and_the_others_are_skipped_with_the_reason(house: House) -> None:
    under(house, PolicySettings(every=3))
    for step in (10, 20, 30, 40):
        house.save(step)
    async with house.daemon():
        states = [(await announced(house, step))[0] for step in (10, 20, 30, 40)]
    assert [request.state for request in states] == ["accepted", "skipped", "skipped", "accepted"]
    assert states[1].reason is not None
    assert "every 3" in states[1].reason
    assert sorted(path.name for path in house.folder.pins.iterdir() if "20-" in path.name) == []


async def test_a_request_with_its_artifact_elsewhere_does_not_stand_for_the_automatic_analysis(house: House) -> None:
    house.save(10)
    async with house.daemon():
        await house.request("mine", checkpoint_step=10, output_path="elsewhere", compute_activations=False)
        await house.until_ended("mine")
        _, automatic = await announced(house, 10)
    assert automatic is not None
    assert automatic.job.options.output_path is None
    assert house.folder.layer_stats(10).is_file()


async def test_a_checkpoint_whose_only_job_was_cancelled_is_no_reference_after_the_sweep(house: House) -> None:
    house.save(10)
    house.save(20)
    async with house.daemon():
        await announced(house, 10)
    request = AnalysisRequested(hero_id=HeroId(HERO), campaign_id=CampaignId(CAMPAIGN), checkpoint_step=20)
    waiting = await queue_job(Admission(house.books, house.settings), request, request_id="r")
    await control.cancel(house.bus, waiting.job.job_key, by="ann")
    await Reconciliation(house.books, Completion(house.bus, house.books, house.settings), house.settings).sweep()
    entry = await house.books.campaigns.get(campaign_key(HERO, CAMPAIGN))
    assert entry is not None
    assert [(one.step, one.state) for one in entry.value.checkpoints] == [(10, "analysed"), (20, "failed")]
    nearest = policy.previous(entry.value, 30)
    assert nearest is not None
    assert nearest.step == 10


async def test_a_path_below_both_ends_of_a_mapping_is_rewritten_once(house: House) -> None:
    """A container that mounts a folder of this machine under a name above it."""
    above = str(house.folder.root.parent)
    house.settings = replace(house.settings, paths=(PathMapping(source=above, to=str(house.folder.root)),))
    checkpoint = house.save(10)
    seen_there = f"{above}/{checkpoint.relative_to(house.folder.root)}"
    async with house.daemon():
        await house.say("checkpoint.saved", checkpoint_path=seen_there, checkpoint_step=10, request_id="s10")
        request, job = await house.until_ended("s10")
    assert request.state == "accepted", request.error
    assert job is not None
    assert (job.state, job.job.target.path) == ("done", str(checkpoint))


async def test_an_automatic_analysis_has_the_policys_options_and_a_request_its_own(house: House) -> None:
    under(house, PolicySettings(analyses=("spectra", "htsr"), compute_activations=False))
    house.save(10)
    async with house.daemon():
        _, automatic = await announced(house, 10)
        jobs: list[JobRecord | None] = []
        for analyses in (["htsr", "spectra"], [], ["htsr", "htsr"]):
            request_id = f"r{len(jobs)}"
            await house.say(
                "analysis.requested",
                checkpoint_step=10,
                request_id=request_id,
                compute_activations=False,
                analyses=analyses,
            )
            jobs.append((await house.until_ended(request_id))[1])
    assert automatic is not None
    assert automatic.job.options.analyses == ("htsr", "spectra")
    assert [job.job.options.analyses for job in jobs if job] == [("htsr", "spectra"), (), ("htsr",)]
    assert jobs[0] is not None
    assert jobs[0].job.job_key == automatic.job.job_key


async def test_an_unknown_analysis_is_refused_with_the_known_ones(house: House) -> None:
    async with house.daemon():
        await house.say("analysis.requested", checkpoint_step=10, request_id="r1", analyses=["speed"])
        request, job = await house.until_ended("r1")
    assert (request.state, job) == ("refused", None)
    assert request.error is not None
    assert request.error.code == "analysis_unknown"
    assert "spectra, attention, generations, htsr" in request.error.message


async def test_an_unwanted_checkpoint_may_be_gone_by_the_time_it_is_heard_of(house: House) -> None:
    under(house, PolicySettings(every=3))
    house.save(10)
    async with house.daemon():
        await announced(house, 10)
        request, _ = await announced(house, 20)
    assert request.state == "skipped"
    assert [event.type for event in await house.log() if event.type == "analysis.failed"] == []


async def test_a_skill_that_levels_up_has_its_checkpoint_analysed(house: House) -> None:
    under(house, PolicySettings(every=100))
    for step in (10, 20):
        house.save(step)
    async with house.daemon():
        await announced(house, 10, skills={"BIN": 0.15})
        await announced(house, 20)
        await house.say("skill.evaluated", checkpoint_step=20, skill="BIN", score=0.42, request_id="up")
        request, job = await house.until_ended("up")
        await house.say("skill.evaluated", checkpoint_step=20, skill="BIN", score=0.45, request_id="same")
        again, same = await house.until_ended("same")
    assert request.state == "accepted"
    assert job is not None
    assert (job.job.target.step, job.job.priority) == (20, "low")
    assert job.job.reference is not None
    assert again.state == "accepted"
    assert same is not None
    assert same.job.job_key == job.job.job_key


async def test_the_reference_is_the_best_the_base_or_none_as_the_settings_say(house: House, tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "elsewhere" / "base", seed=0)
    under(house, PolicySettings(every=1, reference="best", best=BestReference(metric="eval_loss"), base=str(base)))
    for step, loss in ((10, 3.0), (20, 1.0), (30, 2.0), (40, 2.0)):
        house.save(step)
        async with house.daemon():
            _, job = await announced(house, step, metrics={"eval_loss": loss})
        assert job is not None
        assert job.job.reference is None if step == 10 else job.job.reference is not None
    async with house.daemon():
        _, last = await house.until_ended("s40")
        for which in ("base", "none"):
            await house.request(which, checkpoint_step=40, reference=which)
        _, against_base = await house.until_ended("base")
        _, alone = await house.until_ended("none")
    assert last is not None
    assert last.job.reference is not None
    assert last.job.reference.step == 20
    assert against_base is not None
    assert against_base.job.reference is not None
    assert against_base.job.reference.path == str(base)
    assert alone is not None
    assert alone.job.reference is None


async def test_a_reference_that_the_policy_chose_and_that_is_gone_is_left_out_and_said(house: House) -> None:
    house.settings = replace(house.settings, pins=PinSettings(enabled=False))
    job: JobRecord | None = None
    async with house.daemon():
        for step in (10, 20):
            folder = house.save(step)
            _, job = await announced(house, step)
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
    assert job is not None
    assert job.job.reference is None
    assert job.warnings == ("no drift: checkpoint 10 is gone and was not pinned",)


async def test_a_trainers_own_path_is_mapped_to_this_machines(house: House) -> None:
    house.settings = replace(house.settings, paths=(PathMapping(source="/scratch/run", to=str(house.folder.path)),))
    house.save(10)
    async with house.daemon():
        path = "/scratch/run/checkpoints/checkpoint-10"
        await house.say("checkpoint.saved", checkpoint_path=path, request_id="r")
        _, job = await house.until_ended("r")
    assert job is not None
    assert job.job.target.path == str(house.folder.checkpoints / "checkpoint-10")


async def test_the_sweep_queues_what_lost_its_message_and_announces_what_lost_its_event(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciliation, "SETTLED_AFTER", timedelta())
    house.save(10)
    house.save(20)
    waiting, ended = await admitted(house, 10), await admitted(house, 20)
    for record in (waiting, ended):
        await house.books.queue.remove(record.job.job_type, record.job.priority, record.job.job_key)
    now = datetime.now(UTC)
    await house.books.jobs.change(
        ended.job.job_key, lambda record: lifecycle.cancelled(record, by="ann", now=now) if record else None
    )
    await Reconciliation(house.books, Completion(house.bus, house.books, house.settings), house.settings).sweep()
    assert [key for _, _, key in await house.books.queue.subjects()] == [waiting.job.job_key]
    assert [event.type for event in await house.log()] == ["analysis.cancelled"]


async def test_the_sweep_keeps_the_pins_of_waiting_jobs_and_of_the_next_reference(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (10, 20, 30):
        house.save(step)
    async with house.daemon():
        for step in (10, 20):
            await announced(house, step)
    waiting = await admitted(house, 30)
    assert len(pins.listed(house.folder.pins)) == 3
    monkeypatch.setattr(reconciliation, "SPARED_SECONDS", 0.0)
    sweep = Reconciliation(house.books, Completion(house.bus, house.books, house.settings), house.settings).sweep
    await sweep()
    assert waiting.job.reference is not None
    needed = {Path(side.read_path).name for side in (waiting.job.target, waiting.job.reference)}
    assert set(pins.listed(house.folder.pins)) == needed
    async with house.daemon():
        await house.until_queue_is_empty()
    await sweep()
    assert set(pins.listed(house.folder.pins)) == {Path(waiting.job.target.read_path).name}


async def test_a_message_that_is_no_job_on_the_queue_is_buried_and_the_loop_goes_on(house: House) -> None:
    house.save(10)
    async with house.daemon():
        await house.say_raw("archaeologist.jobs.layer_stats.high.x", json.dumps({"not": "a job"}).encode())
        failed = await house.until_event(lambda event: event.type == "analysis.failed")
        await house.request("r", checkpoint_step=10)
        _, job = await house.until_ended("r")
    assert failed.data["error"]["code"] == "message_invalid"
    assert job is not None
    assert job.state == "done"


async def admitted(house: House, step: int) -> JobRecord:
    """A job on the queue, with no daemon about."""
    request = AnalysisRequested(hero_id=HeroId(HERO), campaign_id=CampaignId(CAMPAIGN), checkpoint_step=step)
    admission = Admission(house.books, house.settings)
    return await queue_job(admission, request, request_id=f"r{step}")


async def marked(house: House, step: int) -> SeenCheckpoint:
    """A checkpoint as the campaign's record has it."""
    entry = await house.books.campaigns.get(campaign_key(HERO, CAMPAIGN))
    assert entry is not None
    found = policy.find(entry.value, step)
    assert found is not None
    return found


def wish(step: int, **more: Any) -> AnalysisRequested:
    """A request that somebody wrote by hand."""
    return AnalysisRequested(hero_id=HeroId(HERO), campaign_id=CampaignId(CAMPAIGN), checkpoint_step=step, **more)


@pytest.mark.parametrize(("ended", "shown"), [("done", "analysed"), ("failed", "failed"), ("cancelled", "failed")])
async def test_a_job_that_ends_before_its_checkpoint_is_marked_is_not_left_as_admitted(
    house: House, monkeypatch: pytest.MonkeyPatch, ended: JobState, shown: str
) -> None:
    house.save(10)
    admission = Admission(house.books, house.settings)
    job = await admission.decide(wish(10), request_id=RequestId("r1"), received={})
    change = house.books.campaigns.change

    async def after_its_end(*arguments: Any) -> CampaignRecord | None:
        await house.books.jobs.change(job.job_key, lambda record: replace(record, state=ended) if record else None)
        return await change(*arguments)

    monkeypatch.setattr(house.books.campaigns, "change", after_its_end)
    await admission.admit(job, request_id=RequestId("r1"))
    assert (await marked(house, 10)).state == shown


async def test_who_asks_again_for_an_earlier_analysis_leaves_the_newest_in_the_campaigns_record(house: House) -> None:
    house.save(10)
    keys: list[str] = []
    async with house.daemon():
        for name, reference in (("r1", "none"), ("r2", "previous"), ("r3", "none")):
            await house.request(name, checkpoint_step=10, reference=reference, model_ref=reference)
            _, job = await house.until_ended(name)
            assert job is not None
            keys.append(job.job.job_key)
    assert keys[0] == keys[2]
    seen = await marked(house, 10)
    assert (seen.job_key, seen.state) == (keys[1], "analysed")
