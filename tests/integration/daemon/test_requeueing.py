"""Dead letters and failed jobs asked for again: once each, and what cannot be is said."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from archaeologist.bus.letters import letters
from archaeologist.daemon.requeueing import requeue
from archaeologist.errors import JobUnknown
from contracts import subjects
from contracts.records import Requeued
from tests.integration.daemon.house import House, opened, with_quick_children


@pytest_asyncio.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with opened(tmp_path) as found:
        yield found


def id_of(done: Requeued) -> str:
    assert done.request_id is not None
    return done.request_id


async def test_a_failed_job_is_asked_for_anew_by_letter_by_request_and_by_key_and_runs_once(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch, fate="fail")
    house.save(100)
    house.save(200)
    async with house.daemon():
        fields = {"checkpoint_step": 200, "reference_checkpoint_step": 100, "compute_activations": False}
        await house.request("r", **fields, priority="high")
        _, failed = await house.until_ended("r")
    assert failed is not None
    (letter,) = await letters(house.bus)
    monkeypatch.setenv("CHILD_FATE", "succeed")
    names = (str(letter.sequence), "r", failed.job.job_key)
    done = [one for name in names for one in await requeue(house.bus, [name])]
    async with house.daemon():
        _, again = await house.until_ended(id_of(done[0]))
        late = await requeue(house.bus, ["r"])
        await house.until_queue_is_empty()
    assert (letter.code, letter.owner) == ("shard_missing", f"{failed.job.job_key}:failed")
    assert len({one.request_id for one in done}) == 1
    assert [one.action for one in done] == ["asked", "asked_before", "asked_before"]
    assert again is not None
    assert (again.state, again.job.run, again.job.job_key) == ("done", 2, failed.job.job_key)
    assert (again.job.priority, again.job.options) == ("high", failed.job.options)
    assert [(one.action, one.reason) for one in late] == [("left_out", f"job {failed.job.job_key} is done by now")]
    kinds = [event.type for event in await house.log()]
    assert kinds.count("analysis.started") == 2
    assert kinds.count("analysis.completed") == 1


async def test_all_letters_of_a_code_are_asked_for_and_the_others_left_alone(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch)
    async with house.daemon():
        await house.request("missing", checkpoint_step=100)
        await house.request("outside", checkpoint_path="/etc")
        await house.say("checkpoint.saved", checkpoint_path="checkpoint-200", request_id="saved")
        await house.say_raw("analysis.requested", b"not json")
        for request_id in ("missing", "outside", "saved"):
            await house.until_ended(request_id)
        await house.until_event(lambda event: event.data.get("request") == "not json")
        for step in (100, 200):
            house.save(step)
        done = await requeue(house.bus, code="checkpoint_missing")
        ended = [await house.until_ended(id_of(one)) for one in done]
        everything = await requeue(house.bus)
    assert [job.state for _, job in ended if job is not None] == ["done", "done"]
    assert {job.job.target.step: job.job.priority for _, job in ended if job is not None} == {100: "normal", 200: "low"}
    assert sorted((one.code, one.action) for one in everything) == [
        ("checkpoint_missing", "asked_before"),
        ("checkpoint_missing", "asked_before"),
        ("message_malformed", "left_out"),
        ("path_outside_root", "asked"),
    ]


async def test_of_several_letters_of_one_job_the_newest_counts(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    with_quick_children(monkeypatch, fate="fail")
    house.save(100)
    async with house.daemon():
        await house.request("r", checkpoint_step=100)
        await house.until_ended("r")
        monkeypatch.setenv("CHILD_FATE", "crash")
        (first,) = await requeue(house.bus)
        await house.until_ended(id_of(first))
        by_code = await requeue(house.bus, code="shard_missing")
        older, newer = await requeue(house.bus)
        await house.until_ended(id_of(newer))
        (named,) = await requeue(house.bus, [str(older.sequence)])
    assert (older.action, newer.action) == ("left_out", "asked")
    assert (older.code, newer.code) == ("shard_missing", "job_crashed")
    assert by_code == [older], "what it failed of last is not what was asked for"
    assert f"letter {newer.sequence} is a later one" in str(older.reason)
    assert named.action == "left_out"


async def test_a_failed_job_without_a_letter_is_asked_for_from_its_record(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch, fate="fail")
    house.save(100)
    async with house.daemon():
        await house.request("r", checkpoint_step=100)
        await house.until_ended("r")
        await house.bus.jetstream.purge_stream(subjects.DEAD)
        monkeypatch.setenv("CHILD_FATE", "succeed")
        (done,) = await requeue(house.bus, ["r"])
        _, job = await house.until_ended(id_of(done))
    assert (done.sequence, done.code, done.action) == (None, "shard_missing", "asked")
    assert job is not None
    assert job.state == "done"


async def test_a_layer_drift_job_keeps_its_two_sides_and_its_metrics(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch, fate="fail")
    house.save(100)
    house.save(200)
    async with house.daemon():
        await house.request(
            "d", job_type="layer_drift", base_checkpoint_step=100, target_checkpoint_step=200, metrics=["cosine"]
        )
        _, failed = await house.until_ended("d")
        monkeypatch.setenv("CHILD_FATE", "succeed")
        (done,) = await requeue(house.bus, ["d"])
        _, again = await house.until_ended(id_of(done))
    assert failed is not None
    assert again is not None
    assert (again.state, again.job.job_key) == ("done", failed.job.job_key)
    assert again.job.options == failed.job.options


async def test_what_names_nothing_is_said(house: House) -> None:
    for name in ("4711", "nobody", "*"):
        with pytest.raises(JobUnknown, match="jobs dead"):
            await requeue(house.bus, [name])
    assert await requeue(house.bus) == []
