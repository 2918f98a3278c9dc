"""The daemon's part in archiving: once a day, below everything else; what goes wrong is logged."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from typing import Final

import structlog

from archaeologist import tasks
from archaeologist.artifacts.archive import DAY_SECONDS, archive, rule_of
from archaeologist.artifacts.paths import campaign_folders
from archaeologist.errors import ArchaeologistError
from archaeologist.settings import Settings

log = structlog.get_logger(__name__)

NICE: Final = 19
"""The lowest priority there is, of the thread alone."""


async def archive_daily(settings: Settings, stop: asyncio.Event) -> None:
    """Archives every campaign at the start and then once a day; returns when ``stop`` is set."""
    if settings.archive.warm_root is None or not settings.archive.daily:
        await stop.wait()
    while not stop.is_set():
        await _in_background(lambda: archive_all(settings, is_stopped=stop.is_set), stop)
        await tasks.pause(DAY_SECONDS, until=stop)


def archive_all(settings: Settings, *, is_stopped: Callable[[], bool]) -> None:
    """Every campaign once. Blocking; raises nothing."""
    try:
        rule = rule_of(settings)
        for folder in campaign_folders(settings.root_path):
            if is_stopped():
                return
            if not folder.has_artifacts:
                continue
            report = archive(folder, rule, is_stopped=is_stopped)
            if report.error or report.left_out:
                files = [one.file for one in report.left_out]
                log.warning("archived in part", campaign=report.campaign, reason=report.error, left_out=files)
            if report.archived:
                log.info("archived", campaign=report.campaign, artifacts=report.archived, bytes=report.bytes_before)
    except ArchaeologistError as error:
        log.warning("nothing archived", code=error.code, reason=str(error))
    except Exception:
        log.exception("archiving failed")


async def _in_background(work: Callable[[], None], stop: asyncio.Event) -> None:
    """Runs it in a thread of its own; returns at its end or at the stop, whichever is first.

    A disk that does not answer holds the thread for ever, and must not hold the daemon's end. Dying in the middle of an
    artifact is one of the deaths that ``archive`` is made for.
    """
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def run() -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        work()
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(done.set)

    threading.Thread(target=run, name="archive", daemon=True).start()
    waits = [asyncio.ensure_future(done.wait()), asyncio.ensure_future(stop.wait())]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    await tasks.end(*waits)
