"""What people ask of jobs and workers: find them, cancel a job. For the command line and the web edge, anywhere."""

from datetime import UTC, datetime
from typing import Final

from archaeologist.bus.connection import Bus, publish_core
from archaeologist.daemon import announcements, lifecycle
from archaeologist.daemon.books import Books
from archaeologist.daemon.herald import announce
from archaeologist.errors import JobUnknown
from contracts import subjects
from contracts.records import JobRecord, RequestRecord, WorkerRecord

DEADLINE_SECONDS: Final = 5.0
"""A person waits."""


async def find(bus: Bus, identifier: str) -> tuple[RequestRecord | None, JobRecord | None]:
    """The request and the job behind a request's id or a job's key; None for what is not there (yet)."""
    memory = Books.on(bus, deadline_seconds=DEADLINE_SECONDS)
    request = await memory.requests.get(identifier)
    key = request.value.job_key if request else identifier
    job = await memory.jobs.get(key) if key else None
    return (request.value if request else None, job.value if job else None)


def unknown(identifier: str, *, listing: str) -> str:
    """What to say of an id behind which there is no job.

    Args:
        identifier: As it was given; cut where it is too long to be one.
        listing: What shows the jobs, in the words of whoever is asked.
    """
    return (
        f"no job is known by {identifier[:128]!r}; {listing} shows those that are; a request has none until a daemon"
        " takes it and its checkpoint is whole (readiness.wait_seconds at most), and sending it again with the same id"
        " does no harm"
    )


async def workers(bus: Bus) -> list[WorkerRecord]:
    """Every worker that was heard of within a day, by name, the oldest first."""
    found = (await Books.on(bus, deadline_seconds=DEADLINE_SECONDS).workers.all()).values()
    return sorted(found, key=lambda worker: (worker.name, worker.since))


async def cancel(bus: Bus, identifier: str, *, by: str) -> JobRecord:
    """The job's record after its cancellation; a running job's owner stops it, and a finished one stays as it is.

    Raises:
        JobUnknown: No request or job has this id.
    """
    _, found = await find(bus, identifier)
    if found is None:
        raise JobUnknown(unknown(identifier, listing="`archaeologist jobs list`"))
    memory, now = Books.on(bus, deadline_seconds=DEADLINE_SECONDS), datetime.now(UTC)
    key = found.job.job_key
    record = await memory.jobs.change(
        key, lambda record: lifecycle.cancelled(record, by=by, now=now) if record else None
    )
    record = record or found
    if record.state == "running":
        await publish_core(bus, subjects.cancel_subject(key), b"")
    elif record.state == "cancelled" and record.event_sequence is None:
        await memory.queue.remove(record.job.job_type, record.job.priority, key)
        event = announcements.terminal(record, worker=None, now=now)
        published = await announce(bus, event, message_id=announcements.message_id(record))
        run = record.job.run
        record = (
            await memory.jobs.change(
                key, lambda record: lifecycle.announced(record, published.sequence, run=run) if record else None
            )
            or record
        )
    return record
