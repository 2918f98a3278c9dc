"""The daemon tells others what it is and does: its record in the bucket of workers.

Written whenever a job begins or ends, at most once a second, and at least every ``worker.heartbeat_seconds``. It goes
when the daemon ends; of one that was killed the next of that name on that machine removes it, else its age shows it.
"""

import asyncio
import os
import socket
from collections.abc import Awaitable
from datetime import UTC, datetime
from typing import Final

import structlog

import archaeologist
from archaeologist import tasks
from archaeologist.bus.connection import Bus
from archaeologist.daemon import gpus
from archaeologist.daemon.books import Books
from archaeologist.daemon.executor import Executor
from archaeologist.daemon.lifecycle import stamp
from archaeologist.daemon.workers import reason_for_none, running, slots, worker_key
from archaeologist.errors import TemporaryError
from archaeologist.settings import Settings
from contracts.records import WorkerGpu, WorkerRecord

log = structlog.get_logger(__name__)

DEADLINE_SECONDS: Final = 2.0
"""What cannot be told now is told again soon, and must not hold the daemon's end."""
CALM_SECONDS: Final = 1.0
"""Between two records, however fast jobs come and go."""
BUSY_SECONDS: Final = 5.0
"""Between two records while a job runs: they show how far it is."""
GPU_SECONDS: Final = 600.0
"""Asking the driver costs a tenth of a second of a core."""


class Presence:
    """This daemon's record.

    Args:
        bus: The connection.
        settings: Name, roles and limits.
        executor: Whose jobs are shown.
        incarnation: Of this process.
    """

    def __init__(self, bus: Bus, settings: Settings, executor: Executor, *, incarnation: str) -> None:
        self._workers = Books.on(bus, deadline_seconds=DEADLINE_SECONDS).workers
        self._settings = settings
        self._executor = executor
        self._incarnation = incarnation
        self._since = stamp(datetime.now(UTC))
        self._gpus: tuple[WorkerGpu, ...] = ()
        self._gpus_at: float | None = None

    async def keep(self, stop: asyncio.Event, done: asyncio.Event) -> None:
        """Tells until ``done``; from ``stop`` on, that the daemon ends."""
        await self._settled(self._remove_earlier())
        while not done.is_set():
            self._executor.changed.clear()
            await self._settled(self._workers.put(worker_key(record := self._record(stop)), record))
            await self._look_at_gpus()
            await tasks.pause(CALM_SECONDS, until=done)
            await self._until_news(done)
        await self._settled(self._workers.remove(worker_key(self._record(stop))))

    async def _until_news(self, done: asyncio.Event) -> None:
        most = self._settings.worker.heartbeat_seconds
        waits = [asyncio.ensure_future(self._executor.changed.wait()), asyncio.ensure_future(done.wait())]
        await asyncio.wait(
            waits,
            timeout=min(most, BUSY_SECONDS) if self._executor.runs else most,
            return_when=asyncio.FIRST_COMPLETED,
        )
        await tasks.end(*waits)

    def _record(self, stop: asyncio.Event) -> WorkerRecord:
        settings, runs = self._settings, self._executor.runs
        busy = [run.record.job.job_type for run in runs]
        return WorkerRecord(
            name=settings.worker.name,
            incarnation=self._incarnation,
            host=socket.gethostname(),
            pid=os.getpid(),
            root=str(settings.root_path),
            version=archaeologist.__version__,
            state="draining" if stop.is_set() else "busy" if runs else "idle",
            roles=settings.worker.roles,
            since=self._since,
            heartbeat_at=stamp(datetime.now(UTC)),
            heartbeat_seconds=settings.worker.heartbeat_seconds,
            slots=slots(settings, busy, is_draining=stop.is_set()),
            jobs=tuple(running(run.record, run.latest) for run in runs),
            gpus=self._gpus,
            note=reason_for_none(settings),
        )

    async def _look_at_gpus(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._gpus_at is None or now - self._gpus_at > GPU_SECONDS:
            self._gpus_at = now
            if (found := await asyncio.to_thread(gpus.look)) != self._gpus:
                self._gpus = found
                self._executor.changed.set()

    async def _remove_earlier(self) -> None:
        """What a daemon of this name left that was killed on this machine."""
        for record in (await self._workers.all()).values():
            is_ours = (record.name, record.host) == (self._settings.worker.name, socket.gethostname())
            if is_ours and not _is_alive(record.pid):
                await self._workers.remove(worker_key(record))

    async def _settled(self, call: Awaitable[object]) -> None:
        try:
            await call
        except TemporaryError as error:
            await log.adebug("the worker's state was not told", code=error.code, reason=str(error))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return pid != os.getpid()
