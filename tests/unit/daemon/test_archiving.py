"""The daemon's archiving: once at the start, in its own time, and nothing that goes wrong there reaches a job."""

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.artifacts.storage import archived_path
from archaeologist.daemon import archiving
from archaeologist.daemon.archiving import archive_all, archive_daily
from archaeologist.settings import ArchiveSettings, Settings
from tests.fixtures.histories import CAMPAIGN, HERO, folder_in, put_all


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A campaign of two checkpoints whose artifacts are due."""
    (tmp_path / "warm" / "campaigns").mkdir(parents=True)
    folder = folder_in(tmp_path / "hot")
    put_all(folder, {step: {"lm_head.weight": np.full(4, float(step))} for step in (100, 200)})
    for step in (100, 200):
        os.utime(folder.layer_stats(step), (0, 0))
    return Settings(root=str(tmp_path / "hot"), archive=ArchiveSettings(warm_root=str(tmp_path / "warm")))


def archived(settings: Settings) -> int:
    folder = CampaignFolder.of(settings.root_path, HERO, CAMPAIGN)
    return sum(archived_path(folder.layer_stats(step)).is_symlink() for step in (100, 200))


async def test_every_campaign_is_archived_at_the_start_at_the_lowest_priority(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, done = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    priorities: list[int] = []

    def told(settings: Settings, *, is_stopped: Callable[[], bool]) -> None:
        priorities.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        archive_all(settings, is_stopped=is_stopped)
        loop.call_soon_threadsafe(done.set)

    monkeypatch.setattr(archiving, "archive_all", told)
    duty = asyncio.create_task(archive_daily(settings, stop))
    await asyncio.wait_for(done.wait(), 30)
    assert archived(settings) == 2
    assert priorities == [19]
    assert os.getpriority(os.PRIO_PROCESS, 0) < 19
    assert not duty.done()
    stop.set()
    await asyncio.wait_for(duty, 30)


async def test_a_disk_that_does_not_answer_does_not_hold_the_end(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, answers, inside = asyncio.Event(), threading.Event(), threading.Event()

    def hangs(*_: object, **__: object) -> None:
        inside.set()
        answers.wait(30)

    monkeypatch.setattr(archiving, "archive_all", hangs)
    duty = asyncio.create_task(archive_daily(settings, stop))
    assert await asyncio.to_thread(inside.wait, 30)
    stop.set()
    await asyncio.wait_for(duty, 30)
    answers.set()


@pytest.mark.parametrize("own", [ArchiveSettings(), ArchiveSettings(warm_root="/nowhere", daily=False)])
async def test_without_a_warm_root_or_the_daily_run_it_only_waits(own: ArchiveSettings, settings: Settings) -> None:
    stop = asyncio.Event()
    duty = asyncio.create_task(archive_daily(Settings(root=settings.root, archive=own), stop))
    await asyncio.sleep(0)
    assert not duty.done()
    stop.set()
    await asyncio.wait_for(duty, 30)
    assert archived(settings) == 0


def test_a_warm_root_that_is_away_and_a_defect_are_logged_and_raised_to_nobody(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm = Path(settings.archive.warm_root or "")
    warm.rename(warm.with_name("away"))
    archive_all(settings, is_stopped=lambda: False)
    warm.with_name("away").rename(warm)
    archive_all(settings, is_stopped=lambda: True)
    assert archived(settings) == 0

    def fails(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(archiving, "archive", fails)
    archive_all(settings, is_stopped=lambda: False)
    assert archived(settings) == 0
