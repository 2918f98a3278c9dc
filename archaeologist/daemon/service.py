"""The daemon: everything that runs in its process, from the first connection to a clean end.

``run`` is called by the command line. If one of its tasks dies, all stop and the process ends with the error: a
service manager starts a whole daemon again, never a half one.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime

import structlog

from archaeologist import metrics, tasks
from archaeologist.artifacts.paths import CAMPAIGNS
from archaeologist.bus.connection import Bus, connected, subscribe_core
from archaeologist.bus.consumer import consume
from archaeologist.bus.topology import ensure
from archaeologist.daemon.archiving import archive_daily
from archaeologist.daemon.books import Books
from archaeologist.daemon.child import COMMAND
from archaeologist.daemon.completion import Completion
from archaeologist.daemon.executor import Executor
from archaeologist.daemon.intake import Intake
from archaeologist.daemon.notification import Notification, notifications
from archaeologist.daemon.presence import Presence
from archaeologist.daemon.pulse import Pulse
from archaeologist.daemon.reconciliation import Reconciliation, stored_bytes
from archaeologist.errors import BusUnavailable, TemporaryError
from archaeologist.settings import Settings
from archaeologist.watchdog import notify, watch
from contracts import subjects
from contracts.ulid import new_ulid

log = structlog.get_logger(__name__)

SWEEP_SECONDS = 300.0
ENSURE_RETRY_SECONDS = 2.0


async def run(
    settings: Settings,
    *,
    stop: asyncio.Event | None = None,
    pulse: Pulse | None = None,
    command: Sequence[str] = COMMAND,
) -> None:
    """Serves until SIGTERM, SIGINT or ``stop``.

    Args:
        settings: In force for as long as it runs.
        stop: Ends it as a signal does.
        pulse: Shows from outside how it is.
        command: The child's program and arguments; tests run others.

    Raises:
        BusUnavailable: The connection was closed for good.
    """
    stop, pulse = stop or asyncio.Event(), pulse or Pulse()
    with tasks.stopped_by_signals(stop):
        async with _until(stop, settings) as bus:
            if bus is not None:
                pulse.begin(bus)
                await _serve(bus, settings, stop, pulse=pulse, command=command)
    await log.ainfo("stopped")


async def _serve(bus: Bus, settings: Settings, stop: asyncio.Event, *, pulse: Pulse, command: Sequence[str]) -> None:
    await _ensure(bus, settings, stop)
    incarnation = new_ulid()
    owner = f"{settings.worker.name}:{incarnation}"
    memory = Books.on(bus)
    intake = Intake(bus, memory, settings)
    executor = Executor(bus, memory, settings, owner=owner, command=command)
    pulse.ticked_at = lambda: executor.ticked_at
    reconciliation = Reconciliation(memory, Completion(bus, memory, settings), settings)
    presence = Presence(bus, settings, executor, incarnation=incarnation)
    prefix = subjects.cancel_subject("")
    await subscribe_core(bus, f"{prefix}*", lambda subject: executor.cancel(subject.removeprefix(prefix)))
    done = asyncio.Event()

    async def work() -> None:
        await executor.serve(stop)
        done.set()

    async def listen(stream: str, durable: str) -> None:
        await consume(bus, stream, durable, intake.handle, stop=stop, ensure=lambda: ensure(bus, settings))

    async def tell(durable: str, notification: Notification) -> None:
        await consume(
            bus, subjects.BATTLE_LOG, durable, notification.handle, stop=stop, ensure=lambda: ensure(bus, settings)
        )

    duties = (
        listen(subjects.CHECKPOINTS, subjects.INTAKE_CHECKPOINTS),
        listen(subjects.REQUESTS, subjects.INTAKE_REQUESTS),
        work(),
        _sweep(reconciliation, settings, stop),
        archive_daily(settings, stop),
        *(tell(durable, teller) for durable, teller in notifications(settings.notify, os.environ).items()),
        presence.keep(stop, done),
        _end_with(bus, done),
        watch(lambda: executor.ticked_at, done),
    )
    async with asyncio.TaskGroup() as group:
        for duty in duties:
            # The group cancels the others when one fails, but only once, and that can get lost (see tasks.end).
            group.create_task(duty).add_done_callback(lambda _: stop.set())
        notify("READY=1")
        await log.ainfo("ready", worker=settings.worker.name, root=str(settings.root_path))
        if not await asyncio.to_thread(os.path.isdir, settings.root_path / CAMPAIGNS):
            await log.awarning(
                f"no {CAMPAIGNS} folder under the root yet; if it lies elsewhere, start with another root",
                root=str(settings.root_path),
            )


async def _ensure(bus: Bus, settings: Settings, stop: asyncio.Event) -> None:
    """The topology, tried until it stands: the server may have just begun to answer."""
    while not stop.is_set():
        try:
            await ensure(bus, settings)
        except TemporaryError as error:
            await log.awarning("the bus is not ready", reason=str(error))
            await tasks.pause(ENSURE_RETRY_SECONDS, until=stop)
        else:
            return


async def _sweep(reconciliation: Reconciliation, settings: Settings, stop: asyncio.Event) -> None:
    while not stop.is_set():
        try:
            await reconciliation.sweep()
            lying = await asyncio.to_thread(stored_bytes, settings.root_path)
            metrics.note_sweep(at=datetime.now(UTC), stored_bytes=lying)
        except TemporaryError as error:
            await log.awarning("sweep put off", reason=str(error))
        except Exception:  # noqa: BLE001 -- see the comment
            # The sweep is a safety net: a defect in it must not end the daemon that it serves.
            await log.aexception("sweep failed")
        await tasks.pause(SWEEP_SECONDS, until=stop)


async def _end_with(bus: Bus, done: asyncio.Event) -> None:
    """Ends the daemon when the connection is closed for good."""
    closed = asyncio.ensure_future(bus.closed.wait())
    finished = asyncio.ensure_future(done.wait())
    await asyncio.wait({closed, finished}, return_when=asyncio.FIRST_COMPLETED)
    closed.cancel()
    finished.cancel()
    if bus.closed.is_set() and not done.is_set():
        msg = "the connection to the bus was closed for good; the log says why, restart the daemon"
        raise BusUnavailable(msg)


@contextlib.asynccontextmanager
async def _until(stop: asyncio.Event, settings: Settings) -> AsyncIterator[Bus | None]:
    """A connection, waited for as long as it takes; None when ``stop`` comes first."""
    async with contextlib.AsyncExitStack() as stack:
        connecting = asyncio.ensure_future(
            stack.enter_async_context(connected(settings.bus, name=settings.worker.name, wait=True))
        )
        stopping = asyncio.ensure_future(stop.wait())
        await asyncio.wait({connecting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if connecting.done():
            yield connecting.result()
            return
        await tasks.end(connecting)
        yield None
