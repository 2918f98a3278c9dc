"""The lives of jobs on a real bus: ended well, refused, repeated, cancelled, taken over, handed back."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from msgspec.structs import replace
from structlog.testing import capture_logs

from archaeologist.artifacts.store import read_layer_stats, temporary_path, write_whole
from archaeologist.bus.log import find_message
from archaeologist.daemon import control, lifecycle
from archaeologist.daemon.admission import Admission
from archaeologist.daemon.lifecycle import Claim
from archaeologist.settings import GpuSettings
from contracts import subjects
from contracts.messages import AnalysisRequested, CampaignId, HeroId, Succeeded, encode
from contracts.records import JobRecord, RequestRecord
from tests.fixtures import child
from tests.fixtures.waiting import until
from tests.integration.daemon.house import (
    CAMPAIGN,
    HERO,
    PATIENCE_SECONDS,
    House,
    of,
    opened,
    queue_job,
    with_quick_children,
)


@pytest_asyncio.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with opened(tmp_path) as found:
        yield found


def left_over(house: House) -> list[str]:
    return sorted(path.name for path in house.folder.path.rglob("*.tmp"))


async def admitted(house: House, step: int, request_id: str) -> JobRecord:
    """A job on the queue, with no daemon about."""
    request = AnalysisRequested(hero_id=HeroId(HERO), campaign_id=CampaignId(CAMPAIGN), checkpoint_step=step)
    admission = Admission(house.books, house.settings)
    return await queue_job(admission, request, request_id=request_id)


async def test_a_saved_checkpoint_becomes_an_artifact_and_a_completed_event(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch)
    house.save(100)
    house.save(200)
    async with house.daemon():
        for step in (100, 200):
            await house.say("checkpoint.saved", checkpoint_path=f"checkpoint-{step}", request_id=f"s{step}")
        _, first = await house.until_ended("s100")
        _, second = await house.until_ended("s200")
    assert first is not None
    assert second is not None
    assert first.job.reference is None
    assert second.job.reference is not None
    assert second.job.reference.step == 100
    completed = await house.until_event(of("s200", "completed"))
    assert Path(completed.data["artifact_path"]) == house.folder.layer_stats(200)
    assert read_layer_stats(house.folder.layer_stats(200)).job_key == second.job.job_key
    assert house.folder.sketch(200).read_bytes() == b"sketch"
    assert [event.type for event in await house.log() if event.data["job_id"] == "s200"] == [
        "analysis.started",
        "analysis.completed",
    ]
    assert left_over(house) == []


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"checkpoint_step": 999}, "checkpoint_missing"),
        ({"checkpoint_path": "/etc"}, "path_outside_root"),
        ({"checkpoint_path": "../../../../../../etc/passwd"}, "path_outside_root"),
        ({"checkpoint_path": "link-out", "checkpoint_step": 1}, "path_outside_root"),
        ({"checkpoint_path": "unnumbered"}, "step_unknown"),
        ({"checkpoint_path": "empty", "checkpoint_step": 1}, "checkpoint_empty"),
        ({"checkpoint_step": 100, "reference_checkpoint_step": 998}, "reference_unavailable"),
        ({"checkpoint_step": 100, "output_path": "/etc/x"}, "path_outside_root"),
        ({"checkpoint_step": "100"}, "message_invalid"),
        ({"job_type": "layer_magic"}, "job_type_unknown"),
        ({}, "message_invalid"),
    ],
)
async def test_an_inadmissible_request_fails_once_with_its_code_and_a_dead_letter(
    house: House, fields: dict[str, object], code: str
) -> None:
    house.save(100)
    checkpoints = house.folder.checkpoints
    (checkpoints / "empty").mkdir()
    (checkpoints / "link-out").symlink_to("/etc")
    (checkpoints / "checkpoint-100").rename(checkpoints / "kept")
    (checkpoints / "unnumbered").symlink_to(checkpoints / "kept")
    house.save(100)
    async with house.daemon():
        await house.request("bad", **fields)
        request, job = await house.until_ended("bad")
        await house.request("bad", **fields)
        await house.say_raw("analysis.requested", b"not json")
        await house.until_event(lambda event: event.data.get("request") == "not json")
    assert (request.state, job) == ("refused", None)
    assert request.error is not None
    assert request.error.code == code
    failures = [event for event in await house.log() if event.data["job_id"] == "bad"]
    assert [(event.type, event.data["error"]["code"]) for event in failures] == [("analysis.failed", code)]
    dead = await find_message(
        house.bus, subjects.DEAD, "bad:dead", subject=subjects.dead_subject(code), since=datetime.now(UTC)
    )
    assert dead is not None


async def test_one_id_for_two_different_requests_is_refused_and_the_first_one_stands(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch)
    house.save(100)
    async with house.daemon():
        await house.request("mine", checkpoint_step=100)
        await house.until_ended("mine")
        await house.request("mine", checkpoint_step=100, priority="high")
        failed = await house.until_event(lambda event: event.type == "analysis.failed")
        request, _ = await house.until_ended("mine")
    assert failed.data["error"]["code"] == "request_id_reused"
    assert request.state == "accepted"


async def test_requests_for_the_same_are_one_job_and_force_runs_it_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch, seconds=0.3)
    house.save(100)
    async with house.daemon():
        for request_id in ("a", "b"):
            await house.request(request_id, checkpoint_step=100)
        _, first = await house.until_ended("b")
        await house.request("c", checkpoint_step=100)
        await house.until_ended("c")
        await house.request("d", checkpoint_step=100, force=True)
        await house.until_event(of("d", "completed"))
        _, again = await house.until_ended("d")
    assert first is not None
    assert again is not None
    assert set(again.request_ids) == {"a", "b", "c", "d"}
    assert (first.job.run, again.job.run) == (1, 2)
    kinds = Counter(event.type for event in await house.log())
    assert kinds == {"analysis.started": 2, "analysis.completed": 2}


async def test_a_repeated_announcement_is_no_second_job_although_the_policy_now_names_a_reference(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch)
    house.save(100)
    house.save(200)
    async with house.daemon():
        for number, step in enumerate((200, 100, 200)):
            await house.say("checkpoint.saved", checkpoint_path=f"checkpoint-{step}", request_id=f"s{number}")
            await house.until_ended(f"s{number}")
        _, first = await house.until_ended("s0")
        _, third = await house.until_ended("s2")
    assert first is not None
    assert third is not None
    assert first.job.job_key == third.job.job_key


async def test_a_step_that_contradicts_the_folder_s_name_counts_and_is_told(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch)
    path = str(house.save(300))
    async with house.daemon():
        await house.request("R", checkpoint_path=path, checkpoint_step=500)
        _, job = await house.until_ended("R")
        await house.request("S", checkpoint_path=path, checkpoint_step=300)
        _, same = await house.until_ended("S")
    assert job is not None
    assert same is not None
    assert job.job.target.step == 500
    told = [note for note in job.job.notes if "analysed as step 500" in note]
    assert told == [f"analysed as step 500, as it was sent, although the folder's name says 300: {path}"]
    assert not [note for note in same.job.notes if "as it was sent" in note]


async def test_an_overwritten_checkpoint_is_another_job_and_the_older_artifact_is_kept(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch)
    house.save(100)
    async with house.daemon():
        await house.request("old", checkpoint_step=100)
        _, old = await house.until_ended("old")
        for file in (house.folder.checkpoints / "checkpoint-100").iterdir():
            file.unlink()
        house.save(100, seed=7)
        await house.request("new", checkpoint_step=100)
        _, new = await house.until_ended("new")
    assert old is not None
    assert new is not None
    assert old.job.job_key != new.job.job_key
    assert read_layer_stats(house.folder.layer_stats(100)).job_key == new.job.job_key
    assert read_layer_stats(house.folder.superseded(old.job.job_key)).job_key == old.job.job_key


async def test_a_failed_child_is_one_failed_event_and_final(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    with_quick_children(monkeypatch, fate="fail")
    house.save(100)
    async with house.daemon():
        await house.request("r", checkpoint_step=100)
        _, job = await house.until_ended("r")
        await house.until_queue_is_empty()
    assert job is not None
    assert job.error is not None
    assert (job.state, job.attempt, job.error.code) == ("failed", 1, "shard_missing")
    assert [event.type for event in await house.log()] == ["analysis.started", "analysis.failed"]


async def test_an_artifact_that_cannot_be_written_fails_the_job_and_leaves_nothing(house: House) -> None:
    house.save(100)
    house.folder.analysis.mkdir(parents=True)
    (house.folder.analysis / "layer_stats").write_text("a file where the folder should be")
    async with house.daemon():
        await house.request("r", checkpoint_step=100)
        _, job = await house.until_ended("r")
        (house.folder.analysis / "layer_stats").unlink()
        await house.request("again", checkpoint_step=100, force=True)
        await house.until_event(of("again", "completed"))
    assert job is not None
    assert job.error is not None
    assert job.error.code == "artifact_unwritable"
    assert left_over(house) == []


async def test_a_killed_child_fails_with_the_signal_in_its_message(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch, fate="crash")
    house.save(100)
    async with house.daemon():
        await house.request("r", checkpoint_step=100)
        _, job = await house.until_ended("r")
    assert job is not None
    assert job.error is not None
    assert job.error.code == "job_crashed"
    assert "signal 9" in job.error.message


async def test_a_child_that_cannot_run_now_is_tried_again_and_counts_as_no_attempt(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch, fate="later")
    house.save(100)
    house.settings = replace(house.settings, gpu=GpuSettings(device="cuda", when_full="wait"))
    with capture_logs() as log:
        async with house.daemon():
            await house.request("r", checkpoint_step=100)
            started = await house.until_event(of("r", "started"))
            # Not before the child is there, which has its fate from the environment.
            await until(lambda: any(entry["event"] == "handed back" for entry in log), seconds=PATIENCE_SECONDS)
            monkeypatch.setenv("CHILD_FATE", "succeed")
            _, job = await house.until_ended("r")
    assert started.data["device"] == "cuda"
    assert job is not None
    assert (job.state, job.attempt, job.lost_workers) == ("done", 1, 0)
    back = next(entry for entry in log if entry["event"] == "handed back")
    assert (back["code"], back["delay_seconds"]) == ("gpu_memory_short", house.settings.jobs.retry_delay_seconds)
    gave_way = next(entry for entry in log if entry["event"] == "the forward pass gave way")
    assert gave_way["steps"] == ("out of GPU memory at 1024 tokens a batch: 512",)


async def test_a_queued_job_is_cancelled_at_once_and_never_runs(house: House) -> None:
    house.save(100)
    record = await admitted(house, 100, "r")
    cancelled = await control.cancel(house.bus, record.job.job_key, by="ann")
    assert cancelled.state == "cancelled"
    assert await house.books.queue.subjects() == []
    async with house.daemon():
        assert [(event.type, event.data["by"]) for event in await house.log()] == [("analysis.cancelled", "ann")]


async def test_a_running_job_is_cancelled_by_the_worker_that_runs_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch, seconds=60)
    house.save(100)
    async with house.daemon():
        await house.request("r", checkpoint_step=100)
        await house.until_event(of("r", "started"))
        await control.cancel(house.bus, "r", by="ann")
        event = await house.until_event(of("r", "cancelled"))
        await house.until_queue_is_empty()
    assert event.data["by"] == "ann"
    assert left_over(house) == []


@pytest.mark.parametrize("lost", [0, 9])
async def test_a_job_whose_worker_died_before_it_heard_of_the_cancellation_is_cancelled_by_the_next(
    house: House, monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    with_quick_children(monkeypatch)
    house.save(100)
    record = await admitted(house, 100, "r")
    long_ago = datetime.now(UTC) - timedelta(minutes=5)
    running = lifecycle.claimed(replace(record, lost_workers=lost), owner="gone:X", token=1, now=long_ago)
    await house.books.jobs.change(record.job.job_key, lambda _: running)
    asked = await control.cancel(house.bus, record.job.job_key, by="ann")
    assert (asked.state, asked.cancelled_by) == ("running", "ann")
    async with house.daemon():
        event = await house.until_event(of("r", "cancelled"))
        await house.until_queue_is_empty()
    assert event.data["by"] == "ann"
    assert [told.type for told in await house.log()] == ["analysis.cancelled"]


async def test_a_stopping_daemon_hands_its_job_to_the_next_one(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    with_quick_children(monkeypatch, seconds=60)
    house.save(100)
    async with house.daemon(name="first"):
        await house.request("r", checkpoint_step=100)
        await house.until_event(of("r", "started"))
    request, _ = await control.find(house.bus, "r")
    assert request is not None
    record = await house.books.jobs.get(str(request.job_key))
    assert record is not None
    assert (record.value.state, record.value.lost_workers, record.value.attempt) == ("queued", 0, 0)
    with_quick_children(monkeypatch)
    async with house.daemon(name="second"):
        await house.until_ended("r")
    assert [event.data["worker"] for event in await house.log()] == ["first", "second", "second"]


async def test_a_stopping_daemon_lets_its_job_finish_within_the_grace(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch, seconds=1)
    house.save(100)
    async with house.daemon(grace_seconds=30.0):
        await house.request("r", checkpoint_step=100)
        await house.until_event(of("r", "started"))
    assert [event.type for event in await house.log()] == ["analysis.started", "analysis.completed"]


async def test_a_worker_that_stays_silent_past_its_lease_loses_the_job_and_says_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch, seconds=5)
    house.save(100)
    async with house.daemon(name="frozen", heartbeat_seconds=1000.0, grace_seconds=30.0):
        await house.request("r", checkpoint_step=100)
        await house.until_event(of("r", "progress"))  # by now the child has its seconds from the environment
        monkeypatch.setenv("CHILD_SECONDS", "0")
        async with house.daemon(name="second"):
            _, job = await house.until_ended("r")
    assert job is not None
    assert (job.state, job.lost_workers) == ("done", 1)
    completed = [event for event in await house.log() if event.type == "analysis.completed"]
    assert [event.data["worker"] for event in completed] == ["second"]
    assert left_over(house) == []


async def test_the_third_lost_worker_fails_the_job(house: House) -> None:
    house.save(100)
    record = await admitted(house, 100, "r")
    await house.books.requests.create("r", _request_of(record))
    lost = lifecycle.claimed(record, owner="gone:X", token=1, now=datetime.now(UTC))
    await house.books.jobs.change(record.job.job_key, lambda _: replace(lost, lost_workers=2))
    async with house.daemon():
        _, job = await house.until_ended("r")
        await house.until_queue_is_empty()
    assert job is not None
    assert job.error is not None
    assert (job.error.code, job.lost_workers, job.attempt) == ("worker_lost", 3, 0)


@pytest.mark.parametrize("is_in_place", [False, True])
async def test_a_death_between_done_and_the_event_loses_and_doubles_nothing(
    house: House,
    is_in_place: bool,  # noqa: FBT001 -- a parameter of a table
) -> None:
    house.save(100)
    record = await admitted(house, 100, "r")
    await house.books.requests.create("r", _request_of(record))
    claimed = lifecycle.claimed(record, owner="gone:X", token=1, now=datetime.now(UTC))
    final = house.folder.layer_stats(100)
    where = final if is_in_place else temporary_path(final, record.job.job_key, claimed.claim)
    digest = write_whole(where, encode(child.artifact(record.job)))
    done = lifecycle.done(
        claimed,
        Claim(owner="gone:X", number=claimed.claim),
        Succeeded(artifact_sha256=digest),
        artifact_path=str(final),
        sketch_path=None,
        now=datetime.now(UTC),
    )
    await house.books.jobs.change(record.job.job_key, lambda _: done)
    async with house.daemon():
        await house.until_ended("r")
        await house.until_queue_is_empty()
    assert [event.type for event in await house.log()] == ["analysis.completed"]
    assert read_layer_stats(final).job_key == record.job.job_key
    assert left_over(house) == []


async def test_a_done_job_whose_artifact_is_lost_before_its_event_runs_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch)
    house.save(100)
    record = await admitted(house, 100, "r")
    await house.books.requests.create("r", _request_of(record))
    claimed = lifecycle.claimed(record, owner="gone:X", token=1, now=datetime.now(UTC))
    done = lifecycle.done(
        claimed,
        Claim(owner="gone:X", number=claimed.claim),
        Succeeded(artifact_sha256=""),
        artifact_path=str(house.folder.layer_stats(100)),
        sketch_path=None,
        now=datetime.now(UTC),
    )
    await house.books.jobs.change(record.job.job_key, lambda _: done)
    async with house.daemon():
        await house.until_ended("r")
    assert read_layer_stats(house.folder.layer_stats(100)).job_key == record.job.job_key
    assert [event.type for event in await house.log()] == ["analysis.started", "analysis.completed"]


async def test_a_server_killed_while_a_job_runs_changes_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    with_quick_children(monkeypatch, seconds=3)
    house.save(100)
    async with house.daemon():
        await house.request("r", checkpoint_step=100)
        await house.until_event(of("r", "started"))
        await house.server.kill()
        await asyncio.sleep(2.5)  # longer than the lease: the message will be delivered again
        await house.server.start()
        _, job = await house.until_ended("r")
        await house.until_queue_is_empty()
    assert job is not None
    assert (job.state, job.lost_workers) == ("done", 0)
    assert [event.type for event in await house.log()] == ["analysis.started", "analysis.completed"]


async def test_a_higher_priority_moves_a_waiting_job_up(house: House) -> None:
    house.save(100)
    record = await admitted(house, 100, "r")
    request = AnalysisRequested(
        hero_id=HeroId(HERO), campaign_id=CampaignId(CAMPAIGN), checkpoint_step=100, priority="high"
    )
    again = await queue_job(Admission(house.books, house.settings), request, request_id="q")
    assert again.job.job_key == record.job.job_key
    assert await house.books.queue.subjects() == [("layer_stats", "high", record.job.job_key)]


async def test_the_reference_survives_the_trainers_rotation(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    with_quick_children(monkeypatch)
    job: JobRecord | None = None
    async with house.daemon():
        for step in (100, 200):
            folder = house.save(step)
            await house.say("checkpoint.saved", checkpoint_path=folder.name, request_id=f"s{step}")
            _, job = await house.until_ended(f"s{step}")
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
    assert job is not None
    assert job.job.reference is not None
    assert Path(job.job.reference.read_path).parent == house.folder.pins
    assert job.job.reference.path == str(house.folder.checkpoints / "checkpoint-100")


def _request_of(record: JobRecord) -> RequestRecord:
    return RequestRecord(
        request_id=record.job.job_id,
        state="accepted",
        job_key=record.job.job_key,
        at=lifecycle.stamp(datetime.now(UTC)),
    )
