"""Checkpoints that are still being written are waited for; other messages go on meanwhile."""

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from archaeologist.settings import ReadinessSettings
from tests.fixtures.checkpoints import write_checkpoint
from tests.integration.daemon.house import House, opened, with_quick_children

PATIENT = ReadinessSettings(quiet_seconds=0.2, idle_seconds=60.0, wait_seconds=90.0, poll_seconds=0.1)


@pytest.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    with_quick_children(monkeypatch)
    async with opened(tmp_path) as found:
        found.settings = replace(found.settings, readiness=PATIENT)
        yield found


def half_written(house: House, step: int) -> tuple[Path, Path]:
    """A trainer's folder in the middle of being written, and where it lies whole."""
    whole = write_checkpoint(house.folder.path / "whole", step=step)
    folder = house.folder.checkpoints / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    shutil.copy(whole / "model.safetensors", folder)
    os.truncate(folder / "model.safetensors", 3000)
    shutil.copy(whole / "training_args.bin", folder)
    return folder, whole


def finish(folder: Path, whole: Path) -> None:
    for name in ("config.json", "model.safetensors", "trainer_state.json"):
        shutil.copy(whole / name, folder)


async def saved(house: House, request_id: str, folder: Path) -> None:
    await house.say("checkpoint.saved", checkpoint_path=str(folder), request_id=request_id)


async def is_waiting(house: House, request_id: str) -> bool:
    """Whether the daemon has seen it and left it open; told by one that came later and is done."""
    return await house.books.requests.get(request_id) is None


async def test_a_checkpoint_that_is_being_written_is_analysed_when_it_is_whole(house: House) -> None:
    folder, whole = half_written(house, 100)
    before = {path.name for path in folder.iterdir()}
    async with house.daemon():
        await saved(house, "early", folder)
        await house.request("other", checkpoint_path=str(write_checkpoint(house.folder.checkpoints / "checkpoint-7")))
        request, _ = await house.until_ended("other")
        assert request.state == "accepted"
        assert await is_waiting(house, "early")
        assert {path.name for path in folder.iterdir()} == before
        finish(folder, whole)
        request, job = await house.until_ended("early")
    assert request.state == "accepted"
    assert job is not None
    assert job.state == "done"


async def test_a_trainers_folder_waits_for_its_last_file(house: House) -> None:
    folder, whole = half_written(house, 100)
    async with house.daemon():
        finish(folder, whole)
        (folder / "trainer_state.json").unlink()
        await saved(house, "early", folder)
        await house.request("other", checkpoint_path=str(write_checkpoint(house.folder.checkpoints / "checkpoint-7")))
        await house.until_ended("other")
        assert await is_waiting(house, "early")
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": 100}))
        request, _ = await house.until_ended("early")
    assert request.state == "accepted"


async def test_a_copy_with_the_times_of_the_original_is_waited_for(house: House) -> None:
    folder, whole = half_written(house, 100)
    for file in (*folder.iterdir(), *whole.iterdir()):
        os.utime(file, (0, 0))
    async with house.daemon():
        await saved(house, "early", folder)
        await house.request("other", checkpoint_path=str(write_checkpoint(house.folder.checkpoints / "checkpoint-7")))
        await house.until_ended("other")
        assert await is_waiting(house, "early")
        for name in ("config.json", "model.safetensors", "trainer_state.json"):
            shutil.copy2(whole / name, folder)
        request, _ = await house.until_ended("early")
    assert request.state == "accepted"


async def test_waiting_outlives_the_daemon(house: House) -> None:
    folder, whole = half_written(house, 100)
    async with house.daemon():
        await saved(house, "early", folder)
        await house.request("other", checkpoint_path=str(write_checkpoint(house.folder.checkpoints / "checkpoint-7")))
        await house.until_ended("other")
    assert await is_waiting(house, "early")
    finish(folder, whole)
    async with house.daemon():
        request, _ = await house.until_ended("early")
    assert request.state == "accepted"


async def test_many_that_wait_hold_no_other_up(house: House) -> None:
    async with house.daemon():
        for step in range(40):
            await saved(house, f"absent-{step}", house.folder.checkpoints / f"checkpoint-{1000 + step}")
        await house.say(
            "checkpoint.saved",
            checkpoint_path=str(write_checkpoint(house.folder.checkpoints / "checkpoint-7", step=7)),
            request_id="other",
        )
        request, _ = await house.until_ended("other")
    assert request.state == "accepted"


async def test_a_checkpoint_waits_for_its_reference_to_be_whole(house: House) -> None:
    folder, whole = half_written(house, 100)
    later = write_checkpoint(house.folder.checkpoints / "checkpoint-200", step=200)
    async with house.daemon():
        await saved(house, "first", folder)
        await saved(house, "second", later)
        await house.request("other", checkpoint_path=str(write_checkpoint(house.folder.checkpoints / "checkpoint-7")))
        await house.until_ended("other")
        assert await is_waiting(house, "second")
        finish(folder, whole)
        _, job = await house.until_ended("second")
    assert job is not None
    assert job.job.reference is not None
    assert job.job.reference.step == 100


async def test_a_reference_that_never_becomes_whole_is_not_waited_for_longer_than_itself(house: House) -> None:
    folder, _ = half_written(house, 100)
    later = write_checkpoint(house.folder.checkpoints / "checkpoint-200", step=200)
    house.settings = replace(house.settings, readiness=replace(PATIENT, idle_seconds=0.5))
    async with house.daemon():
        await saved(house, "first", folder)
        await saved(house, "second", later)
        _, job = await house.until_ended("second")
        shutil.rmtree(folder)
        third = write_checkpoint(house.folder.checkpoints / "checkpoint-150", step=150)
        await saved(house, "third", third)
        _, after = await house.until_ended("third")
    assert job is not None
    assert job.job.reference is None
    assert after is not None
    assert after.job.reference is None


@pytest.mark.parametrize(
    ("rules", "code"),
    [
        ({"idle_seconds": 0.5}, "header_invalid"),
        ({"wait_seconds": 0.5}, "header_invalid"),
    ],
)
async def test_a_checkpoint_that_never_becomes_whole_ends_with_its_code(
    house: House, rules: dict[str, float], code: str
) -> None:
    folder, _ = half_written(house, 100)
    house.settings = replace(house.settings, readiness=replace(PATIENT, **rules))
    async with house.daemon():
        await saved(house, "early", folder)
        request, _ = await house.until_ended("early")
    assert request.state == "refused"
    assert request.error is not None
    assert request.error.code == code


async def test_a_checkpoint_that_changes_for_ever_is_given_up(house: House) -> None:
    folder = write_checkpoint(house.folder.checkpoints / "checkpoint-100")
    house.settings = replace(house.settings, readiness=replace(PATIENT, quiet_seconds=10.0, wait_seconds=1.0))

    async def touch() -> None:
        while True:
            os.utime(folder / "model.safetensors")
            await asyncio.sleep(0.05)

    touching = asyncio.create_task(touch())
    async with house.daemon():
        await saved(house, "early", folder)
        request, _ = await house.until_ended("early")
    touching.cancel()
    assert request.error is not None
    assert request.error.code == "checkpoint_unfinished"
    assert "readiness.wait_seconds" in request.error.message


async def test_what_a_person_asks_for_is_there_or_not(house: House) -> None:
    async with house.daemon():
        await house.request("gone", checkpoint_step=999)
        request, _ = await house.until_ended("gone")
    assert request.error is not None
    assert request.error.code == "checkpoint_missing"
