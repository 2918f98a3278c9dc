"""One delivery from the queue: claim, child process, outcome.

The record decides at each turn. A worker that finds its claim gone stops its child and leaves no trace.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog
from msgspec.structs import replace

from archaeologist import metrics, tasks
from archaeologist.bus.connection import Bus
from archaeologist.bus.consumer import Received
from archaeologist.daemon import announcements, lifecycle
from archaeologist.daemon.books import Books
from archaeologist.daemon.child import COMMAND, ChildLimits, Stopped, run_child
from archaeologist.daemon.completion import Completion, places
from archaeologist.daemon.herald import announce
from archaeologist.daemon.lifecycle import Claim
from archaeologist.daemon.locating import here
from archaeologist.daemon.outputs import output_path
from archaeologist.errors import ArchaeologistError, ArtifactUnwritable, BusUnavailable, CheckpointMissing
from archaeologist.jobs import as_named
from archaeologist.settings import Settings
from contracts.messages import EventError, Excavation, Failed, Progress, Succeeded
from contracts.records import JobRecord

log = structlog.get_logger(__name__)

PROGRESS_SECONDS = 1.0
PROGRESS_TTL_SECONDS = 3600


@dataclass(eq=False)
class Run:
    """A claimed job while its child works."""

    record: JobRecord
    claim: Claim
    delivery: Received
    """Replaced when the server repeats the message while the job runs."""
    is_new: bool
    """Nobody claimed this run of the job before."""
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    """Set: end the child now."""
    is_lost: bool = False
    """The record has another owner."""
    latest: Progress | None = None

    @property
    def key(self) -> str:
        """The job's key."""
        return self.record.job.job_key

    @property
    def is_first(self) -> bool:
        """Whether nobody but this run can have brought the job to an end."""
        return self.is_new and self.delivery.deliveries == 1


class Runner:
    """Runs claimed jobs to their end."""

    def __init__(
        self, bus: Bus, books: Books, settings: Settings, *, owner: str, command: Sequence[str] = COMMAND
    ) -> None:
        self._bus = bus
        self._books = books
        self._settings = settings
        self._owner = owner
        self._command = command
        self._completion = Completion(bus, books, settings)

    async def execute(self, run: Run) -> None:
        """From the claim to the acknowledgement."""
        await self._clean(run, up_to_claim=run.claim.number - 1)
        await self._announce_start(run)
        await log.ainfo("job started", job_type=run.record.job.job_type, step=run.record.job.target.step)
        started_at = asyncio.get_running_loop().time()
        outcome = await self._watch_child(run)
        seconds, ended = asyncio.get_running_loop().time() - started_at, _name(run, outcome)
        bytes_read = run.latest.bytes_read if run.latest else 0
        metrics.note_run(run.record.job.job_type, ended, seconds=seconds, bytes_read=bytes_read)
        await log.ainfo("job ended", outcome=ended, seconds=round(seconds, 3), bytes_read=bytes_read)
        if run.is_lost:
            await self._discard(run)
        elif isinstance(outcome, Stopped):
            await self._stopped(run)
        elif isinstance(outcome, Failed) and outcome.retryable:
            await self._hand_back(run, delay_seconds=self._settings.jobs.retry_delay_seconds, reason=outcome.error)
        else:
            if isinstance(outcome, Succeeded) and outcome.steps:
                await log.awarning("the forward pass gave way", job_key=run.key, steps=outcome.steps)
            await self._finish(run, outcome)

    async def _announce_start(self, run: Run) -> None:
        event = announcements.started(
            run.record, worker=self._settings.worker.name, device=self._settings.gpu.device, now=datetime.now(UTC)
        )
        await announce(self._bus, event, message_id=f"{run.key}:{run.claim.number}:started")

    # While the child works.

    async def _watch_child(self, run: Run) -> Succeeded | Failed | Stopped:
        """The child's outcome; meanwhile heartbeats and progress go out."""
        companions = [asyncio.create_task(self._beat(run)), asyncio.create_task(self._report(run))]
        try:
            return await self._run_child(run)
        except ArtifactUnwritable as error:
            return Failed(error=EventError(code=error.code, message=str(error)))
        finally:
            await tasks.end(*companions)

    async def _run_child(self, run: Run) -> Succeeded | Failed | Stopped:
        job, worker = run.record.job, self._settings.worker
        where = places(job, run.claim.number, settings=self._settings)
        excavation = Excavation(
            job=replace(
                job,
                target=here(job.target, self._settings),
                reference=here(job.reference, self._settings) if job.reference else None,
            ),
            artifact_path=str(where.temporary_artifact),
            sketch_path=str(where.temporary_sketch) if where.temporary_sketch else None,
            history_path=str(where.history),
            worker=worker.name,
            threads=worker.threads,
            drop_page_cache=worker.drop_page_cache,
            neighbour=self._settings.neighbour_options,
            allowed=tuple(map(str, self._settings.allowed_roots)),
            activations=self._settings.forward_options(job.options.model_ref),
            gpu=self._settings.gpu_options,
        )
        limits = self._settings.jobs
        return await run_child(
            excavation,
            limits=ChildLimits(
                time_limit_seconds=limits.of(job.job_type).time_limit_seconds,
                kill_after_seconds=limits.kill_after_seconds,
            ),
            on_progress=lambda line: setattr(run, "latest", line),
            stop=run.stop,
            cache=self._settings.state_path / "cache" / "numba",
            command=self._command,
            output=output_path(self._settings, job.job_key),
        )

    async def _beat(self, run: Run) -> None:
        """Keeps the lease and the record alive; notices a lost claim and a cancellation."""
        while True:
            await asyncio.sleep(self._settings.jobs.heartbeat_seconds)
            try:
                await run.delivery.in_progress()
                await self._check(run)
            except BusUnavailable:
                # The job goes on: its record decides at the end whether it was in vain.
                await log.awarning("no heartbeat: the bus is away", job_key=run.key)

    async def _check(self, run: Run) -> None:
        now = datetime.now(UTC)
        record = await self._books.jobs.change(
            run.key, lambda record: lifecycle.alive(record, run.claim, now=now) if record else None
        )
        if record is None or not lifecycle.holds(record, run.claim):
            run.is_lost = True
            run.stop.set()
        elif record.cancelled_by is not None:
            run.stop.set()

    async def _report(self, run: Run) -> None:
        """Progress events, at most one a second; they are worth nothing late, so none is repeated."""
        number, told = 0, None
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            line = run.latest
            if line is None or line is told:
                continue
            number, told = number + 1, line
            event = announcements.progress(run.record, line, worker=self._settings.worker.name, now=datetime.now(UTC))
            with contextlib.suppress(ArchaeologistError):
                await announce(
                    self._bus,
                    event,
                    message_id=f"{run.key}:{run.claim.number}:progress:{number}",
                    ttl_seconds=PROGRESS_TTL_SECONDS,
                    deadline_seconds=PROGRESS_SECONDS,
                )

    # After the child.

    async def _finish(self, run: Run, outcome: Succeeded | Failed) -> None:
        record = await self._decide(run, outcome)
        if record is None:
            await self._discard(run)
            return
        try:
            is_settled = await self._completion.settle(record, is_first=run.is_first)
        except ArtifactUnwritable as error:
            record = await self._decide(run, Failed(error=EventError(code=error.code, message=str(error))))
            is_settled = record is None or await self._completion.settle(record, is_first=run.is_first)
        if not is_settled:
            await run.delivery.nak()
            return
        await self._clean(run, up_to_claim=run.claim.number)
        await acknowledge(run.delivery, record, self._books)

    async def _decide(self, run: Run, outcome: Succeeded | Failed) -> JobRecord | None:
        """The record with the outcome in it; None where the claim was lost."""
        now = datetime.now(UTC)
        job = run.record.job
        where = places(job, run.claim.number, settings=self._settings)

        def step(record: JobRecord | None) -> JobRecord | None:
            if record is None:
                return None
            if isinstance(outcome, Failed):
                error = explained(outcome.error, job.notes)
                error = replace(error, message=as_named(error.message, job))
                return lifecycle.failed(record, error, claim=run.claim, now=now)
            return lifecycle.done(
                record,
                run.claim,
                outcome,
                artifact_path=str(where.artifact),
                sketch_path=str(where.sketch) if where.sketch else None,
                now=now,
            )

        # Judged by what stands at the end: an update whose confirmation was lost is found already made.
        record = await self._books.jobs.change(run.key, step)
        return record if record is not None and lifecycle.is_ended_by(record, run.claim) else None

    async def _stopped(self, run: Run) -> None:
        """The child was ended from here: by a cancellation, or because the daemon stops."""
        now = datetime.now(UTC)
        record = await self._books.jobs.change(
            run.key, lambda record: lifecycle.stopped(record, run.claim, now=now) if record else None
        )
        if record is not None and record.state == "cancelled":
            await self._clean(run, up_to_claim=run.claim.number)
            await self._completion.settle(record, is_first=run.is_first)
            await run.delivery.ack_sync()
            return
        await self._hand_back(run, delay_seconds=0)

    async def _hand_back(self, run: Run, *, delay_seconds: float, reason: EventError | None = None) -> None:
        now = datetime.now(UTC)
        await self._clean(run, up_to_claim=run.claim.number)
        record = await self._books.jobs.change(
            run.key, lambda record: lifecycle.handed_back(record, run.claim, now=now) if record else None
        )
        if record is not None and record.state == "cancelled":
            await self._completion.settle(record)
            await run.delivery.ack_sync()
            return
        why = {"code": reason.code, "reason": reason.message} if reason else {}
        await log.ainfo("handed back", job_key=run.key, delay_seconds=delay_seconds, **why)
        await run.delivery.nak(delay_seconds)

    async def _clean(self, run: Run, *, up_to_claim: int) -> None:
        await asyncio.to_thread(self._completion.clean, run.record.job, up_to_claim=up_to_claim)

    async def _discard(self, run: Run) -> None:
        """Another worker has the job: this one's files go, its message is not ours to acknowledge."""
        await self._clean(run, up_to_claim=run.claim.number)
        await log.awarning("claim lost, result discarded", job_key=run.key)


def _name(run: Run, outcome: Succeeded | Failed | Stopped) -> str:
    """How a run ended, for the measures."""
    if run.is_lost:
        return "lost"
    if isinstance(outcome, Stopped):
        return "stopped"
    if isinstance(outcome, Failed):
        return "handed_back" if outcome.retryable else "failed"
    return "done"


def explained(error: EventError, notes: Sequence[str]) -> EventError:
    """The error; where the checkpoint is gone, with what was noted at admission: that it was not pinned, for one."""
    if error.code != CheckpointMissing.code or not notes:
        return error
    return replace(error, message=f"{error.message} (when the job was made: {'; '.join(notes)})")


async def acknowledge(delivery: Received, record: JobRecord | None, books: Books) -> None:
    """Ends a finished job's message, unless the job was queued anew meanwhile: then the message is its token."""
    if record is not None:
        entry = await books.jobs.get(record.job.job_key)
        if entry is not None and entry.value.state == "queued":
            await delivery.nak()
            return
        if record.state == "failed" and record.error is not None:
            await delivery.term(record.error.code)
            return
    await delivery.ack_sync()
