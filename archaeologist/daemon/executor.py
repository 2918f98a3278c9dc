"""Takes jobs off the queue while there is room for them, each into a run of its own.

One loop for all job types: it wakes when a message arrives or a slot becomes free, and looks by itself every few
seconds as a safety net. A job type has its own slots; within a type the better priority goes first, but one job of a
lower priority is served after every few of higher ones.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import msgspec
import structlog

from archaeologist import metrics, tasks
from archaeologist.bus.connection import Bus
from archaeologist.bus.consumer import Received
from archaeologist.bus.queue import JOB_TYPES, PRIORITIES, Backlog
from archaeologist.daemon import announcements, lifecycle, turns
from archaeologist.daemon.books import Books
from archaeologist.daemon.child import COMMAND
from archaeologist.daemon.completion import Completion
from archaeologist.daemon.dead_letters import Origin, bury
from archaeologist.daemon.herald import announce
from archaeologist.daemon.lifecycle import Claim, Standing
from archaeologist.daemon.run import Run, Runner, acknowledge
from archaeologist.daemon.slots import Slots
from archaeologist.daemon.workers import reason_for_none, served_types
from archaeologist.errors import BusUnavailable, TemporaryError, WorkerLost
from archaeologist.settings import Settings
from contracts import subjects
from contracts.messages import EventError, Job, JobType, Priority, RequestId
from contracts.records import JobRecord

log = structlog.get_logger(__name__)

TAKE_SECONDS = 0.5
"""Whoever waits for a job that another worker was faster to take is deaf for the rest."""
GLANCE_SECONDS = 0.1
LOOK_SECONDS = 0.02
COUNTED_SECONDS = 0.3
"""After a message's arrival in which the server may not have counted it yet."""
SLOT_SECONDS = (0.5, 1.5)
"""When a job is delivered again that found the cluster's slots taken."""


class Executor:
    """The slots of this machine and the loop that fills them."""

    def __init__(
        self, bus: Bus, books: Books, settings: Settings, *, owner: str, command: Sequence[str] = COMMAND
    ) -> None:
        self._bus = bus
        self._books = books
        self._settings = settings
        self._owner = owner
        self._runner = Runner(bus, books, settings, owner=owner, command=command)
        self._completion = Completion(bus, books, settings)
        self._runs: dict[str, Run] = {}
        self._slots = Slots(books, settings.jobs, owner=owner)
        self._job_types = served_types(settings)
        self._busy = dict.fromkeys(subjects.JOB_TYPES, 0)
        self._passed: dict[JobType, Mapping[Priority, int]] = {name: {} for name in JOB_TYPES}
        self._glanced_at: dict[tuple[JobType, Priority], float] = {}
        self._wake = asyncio.Event()
        self._arrived_at = -COUNTED_SECONDS
        self.changed = asyncio.Event()
        """Set whenever what runs here changes; whoever shows it clears it."""
        metrics.set_slots({name: settings.jobs.of(name).max_running for name in self._job_types})
        self.ticked_at = asyncio.get_event_loop().time()
        """When the loop last came round, for the watchdog."""

    async def serve(self, stop: asyncio.Event) -> None:
        """Runs jobs until ``stop``; then lets running ones finish within the grace, and hands back the others.

        Raises:
            BusUnavailable: The connection is closed for good.
        """
        await self._books.queue.on_arrival(self._arrived)
        if reason := reason_for_none(self._settings):
            await log.awarning(reason, worker=self._settings.worker.name)
        async with asyncio.TaskGroup() as group:
            stopping = group.create_task(self._wake_on(stop))
            while not stop.is_set():
                self.ticked_at = asyncio.get_running_loop().time()
                self._wake.clear()
                if not await self._start_one(group):
                    await self._idle()
            stopping.cancel()
            await self._wind_down()

    @property
    def runs(self) -> list[Run]:
        """What runs now."""
        return list(self._runs.values())

    def cancel(self, job_key: str) -> None:
        """Somebody cancelled a job; the record says so already."""
        if run := self._runs.get(job_key):
            run.stop.set()

    # Taking.

    async def _start_one(self, group: asyncio.TaskGroup) -> bool:
        try:
            for job_type in self._job_types:
                if self._busy[job_type] >= self._settings.jobs.of(job_type).max_running:
                    continue
                if received := await self._take(job_type):
                    self._occupy(job_type, 1)
                    group.create_task(self._deliver(job_type, received))
                    return True
        except TemporaryError as error:
            if self._bus.closed.is_set():
                raise
            await log.awarning("the queue cannot be read now", code=error.code, reason=str(error))
        return False

    async def _take(self, job_type: JobType) -> Received | None:
        lines = await self._books.queue.lines(job_type)
        waiting = {priority: line.waiting for priority, line in lines.items()}
        chosen = turns.choose(waiting, self._passed[job_type], low_after=self._settings.jobs.low_after)
        wanted = [(priority, GLANCE_SECONDS) for priority in self._perhaps_due(job_type, lines)]
        if chosen is not None:
            wanted.append((chosen, TAKE_SECONDS))
        if not wanted or await self._slots.are_taken(job_type):
            return None
        for priority, patience in wanted:
            if received := await self._books.queue.take(job_type, priority, timeout_seconds=patience):
                self._passed[job_type] = turns.after(priority, waiting, self._passed[job_type])
                return received
        return None

    def _perhaps_due(self, job_type: JobType, lines: Mapping[Priority, Backlog]) -> list[Priority]:
        """Priorities with nothing new, where what another worker holds or has handed back may be due again.

        Only a fetch finds that out. Where something new waits, the server delivers what is due before it.
        """
        own = Counter(run.record.job.priority for run in self._runs.values() if run.record.job.job_type == job_type)
        now = asyncio.get_running_loop().time()
        found = []
        for priority in PRIORITIES:
            is_held = lines[priority].in_flight > own[priority] and not lines[priority].waiting
            is_long_ago = now - self._glanced_at.get((job_type, priority), -1e9) >= self._settings.jobs.poll_seconds
            if is_held and is_long_ago:
                self._glanced_at[job_type, priority] = now
                found.append(priority)
        return found

    def _occupy(self, job_type: JobType, change: int) -> None:
        self._busy[job_type] += change
        metrics.set_running(job_type, self._busy[job_type])

    async def _idle(self) -> None:
        # Heard of a message before the server counts it among those that wait: look again soon, then as usual.
        is_uncounted = asyncio.get_running_loop().time() - self._arrived_at < COUNTED_SECONDS
        await tasks.pause(LOOK_SECONDS if is_uncounted else self._settings.jobs.poll_seconds, until=self._wake)

    def _arrived(self) -> None:
        self._arrived_at = asyncio.get_running_loop().time()
        self._wake.set()

    async def _wake_on(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._wake.set()
        self.changed.set()

    # One delivery.

    async def _deliver(self, job_type: JobType, received: Received) -> None:
        """Whatever happens to one job, the others and the loop go on."""
        try:
            await self._dispatch(received)
        except BusUnavailable:
            if self._bus.closed.is_set():
                raise
            await log.awarning("the bus went away; the job's message will come again", subject=received.subject)
        except Exception:  # noqa: BLE001 -- one job's defect must not end the others
            await log.aexception("a delivery failed", subject=received.subject)
            await received.nak(self._settings.jobs.retry_delay_seconds)
        finally:
            self._occupy(job_type, -1)
            self._wake.set()

    async def _dispatch(self, received: Received) -> None:
        job = await self._decode(received)
        if job is None:
            return
        # A delivery is a task of its own: everything that is logged in it from here on says whose it is.
        structlog.contextvars.bind_contextvars(job_key=job.job_key, job_id=job.job_id)
        entry = await self._books.jobs.get(job.job_key)
        record = entry.value if entry else await self._adopt(job)
        now = datetime.now(UTC)
        found = lifecycle.standing(
            record, owner=self._owner, token=received.sequence, now=now, limits=self._settings.jobs
        )
        if record.cancelled_by is not None and found in {Standing.FREE, Standing.ABANDONED, Standing.LOST_TOO_OFTEN}:
            await self._withdraw(record, received)
        elif found in {Standing.FREE, Standing.ABANDONED}:
            # A record that was adopted has forgotten what was before it.
            await self._claim(record, received, is_new=entry is not None and lifecycle.is_new(record))
        elif found is Standing.OURS:
            await self._reattach(record, received)
        elif found is Standing.BUSY:
            await received.nak(self._settings.jobs.lease_seconds)
        elif found is Standing.LOST_TOO_OFTEN:
            await self._give_up(record, received)
        elif await self._completion.settle(record):
            await asyncio.to_thread(self._completion.clean, job, up_to_claim=record.claim)
            await acknowledge(received, record, self._books)
        else:
            await log.awarning("done, but its artifact is gone: running it again", job_key=job.job_key)
            await self._claim(record, received)

    async def _decode(self, received: Received) -> Job | None:
        try:
            return msgspec.json.decode(received.data, type=Job)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            msg = f"queue message {received.subject!r} is not a job ({error}); only the daemon publishes there"
            reason = EventError(code="message_invalid", message=msg)
            request_id = RequestId(f"{received.stream}-{received.sequence}")
            await bury(
                self._bus, received.data, origin=Origin.of(received), error=reason, message_id=f"{request_id}:dead"
            )
            event = announcements.refused(reason, request_id=request_id, body=received.data, now=datetime.now(UTC))
            await announce(self._bus, event, message_id=f"{request_id}:refused")
            await received.term(reason.code)
            return None

    async def _adopt(self, job: Job) -> JobRecord:
        """The record of a job whose record is gone, a bucket purged for instance: the message has all it needs."""
        record = lifecycle.queued(job, request_id=job.job_id, now=datetime.now(UTC))
        await self._books.jobs.create(job.job_key, record)
        entry = await self._books.jobs.get(job.job_key)
        return entry.value if entry else record

    async def _claim(self, found: JobRecord, received: Received, *, is_new: bool = False) -> None:
        """Claims by compare-and-set what was found, and runs it; somebody else's turn if it changed meanwhile."""
        job = found.job
        if not await self._slots.acquire(job.job_type, job.job_key):
            await received.nak(random.uniform(*SLOT_SECONDS))  # noqa: S311 -- so that two do not meet again
            return
        try:
            await self._run(found, received, is_new=is_new)
        finally:
            await self._slots.release(job.job_type, job.job_key)

    async def _run(self, found: JobRecord, received: Received, *, is_new: bool) -> None:
        now = datetime.now(UTC)
        wanted = lifecycle.claimed(found, owner=self._owner, token=received.sequence, now=now)
        record = await self._books.jobs.change(found.job.job_key, lambda record: wanted if record == found else None)
        if record != wanted:
            await received.nak(1.0)
            return
        claim = Claim(owner=self._owner, number=wanted.claim)
        run = Run(record=wanted, claim=claim, delivery=received, is_new=is_new)
        self._runs[run.key] = run
        self.changed.set()
        try:
            await self._runner.execute(run)
        finally:
            # One that lost its lease while it was frozen may end after the same job was taken here once more.
            if self._runs.get(run.key) is run:
                del self._runs[run.key]
            self.changed.set()

    async def _reattach(self, record: JobRecord, received: Received) -> None:
        """The server repeated the message of a job that runs here, after an outage longer than the lease."""
        if run := self._runs.get(record.job.job_key):
            run.delivery = received
            return
        # Our own name without a run: the run ended without being able to say so.
        await self._claim(record, received)

    async def _withdraw(self, record: JobRecord, received: Received) -> None:
        """Ends a job that was cancelled, and whose worker died before it heard of that."""
        wanted = lifecycle.withdrawn(record, now=datetime.now(UTC))
        stands = await self._books.jobs.change(record.job.job_key, lambda now: wanted if now == record else None)
        if stands != wanted:
            await received.nak(1.0)
            return
        await self._completion.settle(wanted)
        await asyncio.to_thread(self._completion.clean, wanted.job, up_to_claim=wanted.claim)
        await acknowledge(received, wanted, self._books)

    async def _give_up(self, record: JobRecord, received: Received) -> None:
        lost = record.lost_workers + 1
        msg = f"{lost} workers died while they ran it, the limit is {self._settings.jobs.max_lost_workers}"
        error = WorkerLost(f"{msg}; look for an out-of-memory kill in the machine's log, then request it with force")
        reason = EventError(code=error.code, message=str(error))
        now = datetime.now(UTC)
        failed = await self._books.jobs.change(
            record.job.job_key,
            lambda current: lifecycle.failed(current, reason, now=now) if current == record else None,
        )
        if failed is not None and failed.state == "failed":
            await self._completion.settle(failed)
            await asyncio.to_thread(self._completion.clean, failed.job, up_to_claim=failed.claim)
        await acknowledge(received, failed, self._books)

    # Stopping.

    async def _wind_down(self) -> None:
        """Waits for the running jobs; past the grace their children are stopped and the jobs handed back."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.jobs.grace_seconds
        while any(self._busy.values()) and loop.time() < deadline:
            self._wake.clear()
            self.ticked_at = loop.time()
            try:
                await asyncio.wait_for(self._wake.wait(), timeout=min(1.0, max(0.0, deadline - loop.time())))
            except TimeoutError:
                continue
        for run in self._runs.values():
            run.stop.set()
