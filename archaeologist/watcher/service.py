"""The watcher's life: wakes when something changes or it is time, looks, and sees that each message arrives.

Looking and sending are two tasks with the ledger between them: a bus that is away stops no looking, and what was found
meanwhile goes out in its order when the bus is back.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Final, NamedTuple

import structlog
import watchfiles
from msgspec import Struct
from msgspec.structs import replace

from archaeologist import tasks
from archaeologist.bus.connection import Bus, connected
from archaeologist.bus.publisher import publish
from archaeologist.errors import BusUnavailable, PermanentError, TemporaryError
from archaeologist.settings import BusSettings
from archaeologist.watcher.ledger import Ledger, LedgerFile
from archaeologist.watcher.mounts import is_shared
from archaeologist.watcher.survey import Rules, Survey
from contracts import subjects
from contracts.messages import CheckpointSaved, RequestId, encode

log = structlog.get_logger(__name__)

SOON_SECONDS: Final = 0.5
"""Between looks at what is not whole yet."""
SELDOM_SECONDS: Final = 60.0
"""Between looks where inotify tells of changes: it may lose some."""
POLL_SECONDS: Final = 10.0
DEBOUNCE_MILLISECONDS: Final = 500
PUBLISH_SECONDS: Final = 5.0
LONGEST_RETRY_SECONDS: Final = 15.0
ONCE_SECONDS: Final = 10.0
"""How long a single look waits for the bus to confirm one more."""
BATCH: Final = 200
"""Messages that are confirmed before the ledger is written; of those, a death sends some again, under their ids."""


class Watch(Struct, frozen=True, kw_only=True):
    """What is watched, and how."""

    rules: Rules
    poll_seconds: float | None = None
    """Look so often instead of waiting for inotify; None: inotify where it hears everything."""
    only_new: bool = False
    """What is there when a folder is first watched is passed over."""


async def run(watch: Watch, file: LedgerFile, empty: Ledger, *, bus: BusSettings, stop: asyncio.Event) -> None:
    """Watches until the event is set.

    Raises:
        WatcherRunning: Another process watches the folder for this campaign.
        ArtifactInvalid: The ledger is damaged.
        ArtifactUnwritable: The ledger cannot be written.
    """
    with file.held():
        watcher = await asyncio.to_thread(_Watcher.begun, watch, file, empty)
        async with asyncio.TaskGroup() as group:
            for duty in (watcher.look_until(stop), watcher.deliver_until(stop, bus)):
                # The group cancels the other when one fails, but only once, and that can get lost (see tasks.end).
                group.create_task(duty).add_done_callback(lambda _: stop.set())


class Once(NamedTuple):
    """What came of a single look: numbers of checkpoints."""

    announced: int
    not_whole: int
    """Each was told, with what it lacks."""


async def run_once(watch: Watch, file: LedgerFile, empty: Ledger, *, bus: BusSettings) -> Once:
    """Announces what is there.

    Raises:
        BusUnavailable: Not everything was confirmed; the next run goes on with it.
        WatcherRunning: As for ``run``.
    """
    with file.held():
        watcher = await asyncio.to_thread(_Watcher.begun, watch, file, empty)
        not_whole = await watcher.look_until_settled()
        waiting = len(watcher.ledger.pending)
        stop = asyncio.Event()
        delivering = asyncio.create_task(watcher.deliver_until(stop, bus))
        await watcher.until_delivered(ONCE_SECONDS)
        stop.set()
        await tasks.end(delivering)
        if left := len(watcher.ledger.pending):
            msg = f"{left} of {waiting} checkpoints were not announced, the bus did not answer; run it again"
            raise BusUnavailable(msg)
        return Once(waiting, not_whole)


class _Watcher:
    """The ledger in memory, and who changes it: both tasks, on one event loop."""

    def __init__(self, watch: Watch, file: LedgerFile, ledger: Ledger) -> None:
        self._watch = watch
        self._file = file
        self.ledger = ledger
        self._survey = Survey(watch.rules, ledger.known)
        self._writing = asyncio.Lock()
        self._changed = asyncio.Event()
        self._advanced = asyncio.Event()
        self._is_delivered = False

    @classmethod
    def begun(cls, watch: Watch, file: LedgerFile, empty: Ledger) -> "_Watcher":
        """A watcher that goes on where the last one ended. Blocking."""
        ledger = file.read()
        if ledger is None:
            ledger = empty
            if watch.only_new:
                # Without waiting for quiet: one that is in the middle of being written is mostly not whole.
                for found in Survey(replace(watch.rules, quiet_seconds=0.0), {}).look(empty):
                    ledger = ledger.with_known(found.name, found.fingerprint, message=None)
            file.write(ledger)
        return cls(watch, file, ledger)

    # Looking.

    async def look_until(self, stop: asyncio.Event) -> None:
        """Looks at each wake."""
        await log.ainfo("watching", folder=str(self._watch.rules.folder), pattern=self._watch.rules.pattern)
        async for _ in _wakes(self._watch, self._survey, stop):
            await self._look()

    async def look_until_settled(self) -> int:
        """Looks until what is there is whole, or has not changed for long enough to be called broken; how many are."""
        patience = self._watch.rules.quiet_seconds + SOON_SECONDS
        await self._look()
        while any(still < patience for still in self._survey.unsettled.values()):
            await asyncio.sleep(SOON_SECONDS)
            await self._look()
        return self._survey.tell_lacking()

    async def _look(self) -> None:
        new = await asyncio.to_thread(lambda: list(self._survey.look(self.ledger)))
        if not new:
            return
        ledger = self.ledger
        for found in new:
            ledger = ledger.with_known(found.name, found.fingerprint, message=found.message)
        # On the disk before it is sent: a death in between sends it after the restart.
        await self._keep(ledger.thinned(self._survey.present))
        await log.ainfo("found", steps=[found.message.checkpoint_step for found in new])
        self._changed.set()

    async def _keep(self, ledger: Ledger) -> None:
        # Taken over before anything is waited for, so that neither task overwrites what the other did.
        self.ledger = ledger
        async with self._writing:
            await asyncio.to_thread(self._file.write, self.ledger)

    # Sending.

    async def until_delivered(self, patience_seconds: float) -> None:
        """Waits until everything is confirmed, or nothing more was for so long."""
        while not self._is_delivered:
            self._advanced.clear()
            try:
                await asyncio.wait_for(self._advanced.wait(), patience_seconds)
            except TimeoutError:
                return

    async def deliver_until(self, stop: asyncio.Event, bus: BusSettings) -> None:
        """Sends what is pending, in its order, for as long as it takes."""
        retry, told = SOON_SECONDS, ""
        while not stop.is_set():
            try:
                await self._deliver(bus)
            except TemporaryError as error:
                if told != error.code:
                    await log.awarning("not announced yet, trying again", code=error.code, reason=str(error))
                told = error.code
                await tasks.pause(retry, until=stop)
                retry = min(2 * retry, LONGEST_RETRY_SECONDS)
            else:
                retry, told = SOON_SECONDS, ""
                self._is_delivered = True
                self._advanced.set()
                await self._until_changed(stop)

    async def _deliver(self, bus: BusSettings) -> None:
        self._changed.clear()
        if not self.ledger.pending:
            return
        async with connected(bus, name="archaeologist-watch") as connection:
            while self.ledger.pending:
                confirmed: set[RequestId | None] = set()
                try:
                    for message in self.ledger.pending[:BATCH]:
                        await _publish(connection, message)
                        confirmed.add(message.request_id)
                        self._advanced.set()
                finally:
                    # From the ledger of now: looking may have added to it meanwhile.
                    await self._keep(self.ledger.without_pending(confirmed))

    async def _until_changed(self, stop: asyncio.Event) -> None:
        waits = {asyncio.ensure_future(self._changed.wait()), asyncio.ensure_future(stop.wait())}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        await tasks.end(*waits)


async def _publish(connection: Bus, message: CheckpointSaved) -> None:
    """Sends a message and waits for its confirmation; what the bus never takes is told and passed over."""
    try:
        await publish(
            connection,
            subjects.CHECKPOINT_SAVED,
            encode(message),
            message_id=str(message.request_id),
            deadline_seconds=PUBLISH_SECONDS,
        )
    except PermanentError as error:
        await log.aerror("not announced", step=message.checkpoint_step, code=error.code, reason=str(error))
    else:
        await log.ainfo("announced", step=message.checkpoint_step, request_id=message.request_id)


async def _wakes(watch: Watch, survey: Survey, stop: asyncio.Event) -> AsyncGenerator[None]:
    """When to look: once at first, then whenever something may have changed."""
    poll_seconds = watch.poll_seconds
    if poll_seconds is None and await asyncio.to_thread(is_shared, watch.rules.folder):
        poll_seconds = POLL_SECONDS
        await log.ainfo("looked at again and again: others may write to its file system", seconds=poll_seconds)
    is_told = False
    while not stop.is_set():
        yield
        if poll_seconds is None and watch.rules.folder.is_dir():
            try:
                async with contextlib.aclosing(_changes(watch, survey, stop)) as changes:
                    async for _ in changes:
                        yield
            except (OSError, RuntimeError) as error:
                # The user's limit of inotify watches, for instance.
                poll_seconds = POLL_SECONDS
                await log.awarning("no inotify, looking again and again", reason=str(error), seconds=poll_seconds)
            continue
        if not watch.rules.folder.is_dir() and not is_told:
            await log.awarning("the folder is not there yet", folder=str(watch.rules.folder))
            is_told = True
        await tasks.pause(SOON_SECONDS if survey.unsettled else poll_seconds or SOON_SECONDS, until=stop)


async def _changes(watch: Watch, survey: Survey, stop: asyncio.Event) -> AsyncGenerator[None]:
    """Until the folder is another one: each change that inotify tells, and now and then without any."""
    folder = watch.rules.folder
    inode = folder.stat().st_ino
    loop = asyncio.get_running_loop()
    looked = loop.time()
    changes = watchfiles.awatch(
        folder,
        watch_filter=None,
        debounce=DEBOUNCE_MILLISECONDS,
        rust_timeout=int(SOON_SECONDS * 1000),
        yield_on_timeout=True,
        stop_event=stop,
        force_polling=False,
        ignore_permission_denied=True,
    )
    async with contextlib.aclosing(changes):
        async for changed in changes:
            if not folder.is_dir() or folder.stat().st_ino != inode:
                return
            if changed or survey.unsettled or loop.time() - looked >= SELDOM_SECONDS:
                looked = loop.time()
                yield
