"""The life of a job as pure steps on its record: queued → running → done, failed or cancelled.

Each function takes the record as it stands and returns the one that should replace it, or None where the caller has
no business changing it (it lost the job). The executor, intake and control apply them by compare-and-set.
"""

from datetime import datetime, timedelta
from enum import Enum, auto
from typing import NamedTuple

from msgspec.structs import replace

from archaeologist.moments import moment_or_epoch
from archaeologist.settings import JobsSettings
from contracts.messages import EventError, Job, RequestId, Succeeded
from contracts.records import FINISHED, JobRecord

MAX_REQUEST_IDS = 100


class Standing(Enum):
    """What a delivery from the queue finds."""

    FREE = auto()
    """Queued: claim it."""
    ABANDONED = auto()
    """Running, its owner gone: claim it, the loss counts."""
    LOST_TOO_OFTEN = auto()
    """Running, its owner gone once too often: the job fails."""
    OURS = auto()
    """Running in this very process; the server repeated the message."""
    BUSY = auto()
    """Running elsewhere under another message; look again later."""
    FINISHED = auto()
    """Done, failed or cancelled: only its event and the ack may be missing."""


class Claim(NamedTuple):
    """Who holds a job: the worker's process and the number of the claim."""

    owner: str
    number: int


def queued(job: Job, *, request_id: RequestId, now: datetime) -> JobRecord:
    """The record of a new job."""
    return JobRecord(job=job, state="queued", request_ids=(request_id,), queued_at=stamp(now))


def joined(record: JobRecord, request_id: RequestId) -> JobRecord:
    """The record with one more request that asked for the same."""
    if request_id in record.request_ids:
        return record
    return replace(record, request_ids=(*record.request_ids, request_id)[-MAX_REQUEST_IDS:])


def rerun(record: JobRecord, job: Job, *, request_id: RequestId, now: datetime) -> JobRecord | None:
    """A finished job queued anew, by ``force``; None while its terminal event is not yet out."""
    if record.state not in FINISHED or record.event_sequence is None:
        return None
    again = replace(job, run=record.job.run + 1)
    ids = joined(record, request_id).request_ids
    return JobRecord(job=again, state="queued", request_ids=ids, claim=record.claim, queued_at=stamp(now))


def standing(record: JobRecord, *, owner: str, token: int, now: datetime, limits: JobsSettings) -> Standing:
    """What a worker that was handed the message ``token`` finds."""
    if record.state in FINISHED:
        return Standing.FINISHED
    if record.state == "queued":
        return Standing.FREE
    if record.owner == owner:
        return Standing.OURS
    if record.token != token and not is_silent(record, now=now, lease_seconds=limits.lease_seconds):
        return Standing.BUSY
    return Standing.LOST_TOO_OFTEN if record.lost_workers + 1 >= limits.max_lost_workers else Standing.ABANDONED


def claimed(record: JobRecord, *, owner: str, token: int, now: datetime) -> JobRecord:
    """The record taken over by a worker."""
    return replace(
        record,
        state="running",
        owner=owner,
        token=token,
        claim=record.claim + 1,
        lost_workers=record.lost_workers + (record.state == "running"),
        heartbeat_at=stamp(now),
        started_at=stamp(now),
        finished_at=None,
        artifact_path=None,
        error=None,
    )


def is_new(record: JobRecord) -> bool:
    """Whether no worker ever claimed this run of the job, so that nobody can have finished it before."""
    return record.state == "queued" and record.started_at is None


def alive(record: JobRecord, claim: Claim, *, now: datetime) -> JobRecord | None:
    """The record with a heartbeat."""
    return replace(record, heartbeat_at=stamp(now)) if holds(record, claim) else None


def handed_back(record: JobRecord, claim: Claim, *, now: datetime) -> JobRecord | None:
    """The record queued again, because its worker stops or cannot run it now; cancelled, if that was asked for."""
    if not holds(record, claim):
        return None
    return stopped(record, claim, now=now) or replace(record, state="queued", owner=None, queued_at=stamp(now))


def done(
    record: JobRecord,
    claim: Claim,
    outcome: Succeeded,
    *,
    artifact_path: str,
    sketch_path: str | None,
    now: datetime,
) -> JobRecord | None:
    """The record of a job whose artifact lies whole in its temporary file."""
    if not holds(record, claim):
        return None
    return replace(
        record,
        state="done",
        attempt=record.attempt + 1,
        finished_at=stamp(now),
        artifact_path=artifact_path,
        artifact_sha256=outcome.artifact_sha256,
        sketch_path=sketch_path if outcome.has_sketch else None,
        has_activations=outcome.has_activations,
        has_drift=outcome.has_drift,
        most_changed_layer=outcome.most_changed_layer,
        most_changed_layer_relative=outcome.most_changed_layer_relative,
        duration_sec=outcome.duration_sec,
        findings=outcome.findings,
        warnings=tuple(dict.fromkeys((*record.job.notes, *outcome.warnings))),
        alerts=outcome.alerts,
    )


def failed(record: JobRecord, error: EventError, *, now: datetime, claim: Claim | None = None) -> JobRecord | None:
    """The record of a job that ended without an artifact.

    A claim that is not the record's gives None. Without a claim the job's worker is known to be lost.
    """
    if claim is not None and not (holds(record, claim) or _is_unannounced(record, claim)):
        return None
    own_doing = claim is not None
    return replace(
        record,
        state="failed",
        attempt=record.attempt + (own_doing and record.state == "running"),
        lost_workers=record.lost_workers + (not own_doing),
        finished_at=stamp(now),
        artifact_path=None,
        error=error,
    )


def cancelled(record: JobRecord, *, by: str, now: datetime) -> JobRecord | None:
    """A queued job's record cancelled, a running one's marked for its owner; None when it is finished."""
    if record.state in FINISHED:
        return None
    if record.state == "queued":
        return replace(record, state="cancelled", cancelled_by=by, finished_at=stamp(now))
    return replace(record, cancelled_by=record.cancelled_by or by)


def stopped(record: JobRecord, claim: Claim, *, now: datetime) -> JobRecord | None:
    """A running job's record after its owner stopped it for a cancellation."""
    if not holds(record, claim) or record.cancelled_by is None:
        return None
    return replace(record, state="cancelled", finished_at=stamp(now))


def withdrawn(record: JobRecord, *, now: datetime) -> JobRecord:
    """The record of a job that somebody cancelled and whose worker is gone."""
    return replace(record, state="cancelled", finished_at=stamp(now))


def announced(record: JobRecord, sequence: int, *, run: int) -> JobRecord | None:
    """The record with the sequence of its terminal event."""
    if record.job.run != run or record.event_sequence is not None or record.state not in FINISHED:
        return None
    return replace(record, event_sequence=sequence)


def holds(record: JobRecord, claim: Claim) -> bool:
    """Whether a worker still has the job that it claimed."""
    return record.state == "running" and record.owner == claim.owner and record.claim == claim.number


def is_run_by(record: JobRecord, owner: str, *, now: datetime, lease_seconds: float) -> bool:
    """Whether a job runs in a worker that still gives signs of life."""
    return (
        record.state == "running"
        and record.owner == owner
        and not is_silent(record, now=now, lease_seconds=lease_seconds)
    )


def is_ended_by(record: JobRecord, claim: Claim) -> bool:
    """Whether a finished record was finished under this claim."""
    return record.state in FINISHED and record.owner == claim.owner and record.claim == claim.number


def is_silent(record: JobRecord, *, now: datetime, lease_seconds: float) -> bool:
    """Whether the owner missed two leases: twice, because the two clocks may differ."""
    if record.heartbeat_at is None:
        return True
    return now - moment_or_epoch(record.heartbeat_at) > timedelta(seconds=2 * lease_seconds)


def stamp(moment: datetime) -> str:
    """RFC 3339 in UTC with milliseconds."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _is_unannounced(record: JobRecord, claim: Claim) -> bool:
    """Done by this claim, but its artifact could not be put in place and nothing was published."""
    return record.state == "done" and record.claim == claim.number and record.event_sequence is None
