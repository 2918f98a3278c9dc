"""The Battle Log's events, made from job records: pure.

What each says is in ``contracts.messages``; the executor and intake publish them.
"""

import contextlib
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec

from archaeologist.daemon.decoding import MAX_DEPTH, depth_of
from archaeologist.daemon.lifecycle import stamp
from contracts import subjects
from contracts.artifacts import Alert
from contracts.messages import (
    AlertData,
    CancelledData,
    CompletedData,
    Event,
    EventData,
    EventError,
    FailedData,
    Progress,
    ProgressData,
    RequestId,
    Severity,
    StartedData,
)
from contracts.records import JobRecord
from contracts.ulid import new_ulid

MAX_REQUEST_BYTES: Final = 4096

_ALERT_SEVERITIES: Final[dict[str, Severity]] = {"warning": "warning", "critical": "error"}


class Announcement(NamedTuple):
    """An event, and the id under which it is published once."""

    event: Event
    message_id: str


def started(record: JobRecord, *, worker: str, device: str, now: datetime) -> Event:
    """A worker took the job."""
    job = record.job
    data = StartedData(
        **_identity(record, worker=worker, attempt=record.attempt + 1),
        reference_step=job.reference.step if job.reference else None,
        device=device if job.job_type == "layer_stats" and job.options.compute_activations else "cpu",
    )
    message = f"Analyzing checkpoint {job.target.step} ({job.job_type})"
    return _event(subjects.ANALYSIS_STARTED, data, message=message, severity="info", now=now)


def progress(record: JobRecord, line: Progress, *, worker: str, now: datetime) -> Event:
    """How far a running job is."""
    data = ProgressData(
        **_identity(record, worker=worker, attempt=record.attempt + 1),
        stage=line.stage,
        block=line.block,
        blocks=line.blocks,
        bytes_read=line.bytes_read,
        bytes_total=line.bytes_total,
        eta_sec=line.eta_sec,
    )
    message = f"Checkpoint {record.job.target.step}: {line.stage}, block {line.block} of {line.blocks}"
    return _event(subjects.ANALYSIS_PROGRESS, data, message=message, severity="info", now=now)


def ending(record: JobRecord, *, worker: str | None, now: datetime) -> Iterator[Announcement]:
    """Everything that a finished job has to say, in order: how it ended, then what it warns of."""
    yield Announcement(terminal(record, worker=worker, now=now), message_id(record))
    if record.state == "done":
        for number, found in enumerate(record.alerts, start=1):
            event = _alert(record, found, worker=worker, now=now)
            yield Announcement(event, _message_id(record, f"alert:{number}"))


def terminal(record: JobRecord, *, worker: str | None, now: datetime) -> Event:
    """How a finished job ended."""
    if record.state == "done":
        return _completed(record, worker=worker, now=now)
    if record.state == "failed":
        return _failed(record, worker=worker, now=now)
    data = CancelledData(**_identity(record, worker=worker, attempt=record.attempt), by=record.cancelled_by)
    message = f"Analysis of checkpoint {record.job.target.step} cancelled by {record.cancelled_by or 'unknown'}"
    return _event(subjects.ANALYSIS_CANCELLED, data, message=message, severity="warning", now=now)


def refused(error: EventError, *, request_id: RequestId, body: bytes, now: datetime) -> Event:
    """A message from which no job was made."""
    request = as_received(body)
    known = request if isinstance(request, dict) else {}
    payload = known.get("payload")
    fields = {**known, **payload} if isinstance(payload, dict) else known
    data = FailedData(
        job_id=request_id,
        job_type=_text(fields.get("job_type")),
        hero_id=_text(fields.get("hero_id")),
        campaign_id=_text(fields.get("campaign_id")),
        checkpoint_step=_number(fields.get("checkpoint_step")),
        error=error,
        request=request,
    )
    message = f"Request refused: {error.message}"
    return _event(subjects.ANALYSIS_FAILED, data, message=message, severity="error", now=now)


def message_id(record: JobRecord) -> str:
    """Deduplication id of a finished job's event: ``{key}:completed``; a forced run's number stands in between."""
    return _message_id(record, {"done": "completed"}.get(record.state, record.state))


def as_received(body: bytes) -> Any:
    """The message for an event: JSON where it is some, short and flat enough, else text cut at 4 KB.

    Each reader of the Battle Log decodes it again, within the event, and may bear less depth than we do.
    """
    if len(body) <= MAX_REQUEST_BYTES:
        with contextlib.suppress(msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            message = msgspec.json.decode(body)
            if depth_of(message) <= MAX_DEPTH:
                return message
    return body[:MAX_REQUEST_BYTES].decode("utf-8", errors="replace")


def _completed(record: JobRecord, *, worker: str | None, now: datetime) -> Event:
    job = record.job
    data = CompletedData(
        **_identity(record, worker=worker, attempt=record.attempt),
        reference_step=job.reference.step if job.reference and record.has_drift else None,
        most_changed_layer=record.most_changed_layer,
        most_changed_layer_relative=record.most_changed_layer_relative,
        duration_sec=record.duration_sec or 0.0,
        artifact_path=record.artifact_path or "",
        has_activations=record.has_activations,
        has_drift=record.has_drift,
        findings=record.findings,
        warnings=record.warnings,
    )
    message = f"Analysis complete for checkpoint {job.target.step}"
    if record.most_changed_layer:
        message += f" (most changed: {record.most_changed_layer})"
    return _event(subjects.ANALYSIS_COMPLETED, data, message=message, severity="success", now=now)


def _alert(record: JobRecord, alert: Alert, *, worker: str | None, now: datetime) -> Event:
    data = AlertData(
        **_identity(record, worker=worker, attempt=record.attempt),
        severity=alert.severity,
        family=alert.family,
        metric=alert.metric,
        block=alert.block,
        value=alert.value,
        baseline=alert.baseline,
        checkpoints=alert.checkpoints,
        confidence=alert.confidence,
    )
    message = f"Checkpoint {record.job.target.step}: {alert.message}"
    severity = _ALERT_SEVERITIES[alert.severity]
    return _event(subjects.ANALYSIS_ALERT, data, message=message, severity=severity, now=now)


def _message_id(record: JobRecord, name: str) -> str:
    run = "" if record.job.run == 1 else f"{record.job.run}:"
    return f"{record.job.job_key}:{run}{name}"


def _failed(record: JobRecord, *, worker: str | None, now: datetime) -> Event:
    error = record.error or EventError(code="internal_error", message="the job failed without a reason")
    data = FailedData(
        **_identity(record, worker=worker, attempt=record.attempt), error=error, request=record.job.request
    )
    message = f"Analysis of checkpoint {record.job.target.step} failed: {error.message}"
    return _event(subjects.ANALYSIS_FAILED, data, message=message, severity="error", now=now)


def _identity(record: JobRecord, *, worker: str | None, attempt: int) -> dict[str, Any]:
    job = record.job
    return {
        "job_id": job.job_id,
        "job_key": job.job_key,
        "job_type": job.job_type,
        "hero_id": job.hero_id,
        "campaign_id": job.campaign_id,
        "checkpoint_step": job.target.step,
        "attempt": attempt,
        "worker": worker,
    }


def _event(kind: str, data: EventData, *, message: str, severity: Severity, now: datetime) -> Event:
    return Event(type=kind, message=message, severity=severity, data=data, id=new_ulid(), time=stamp(now))


def _text(value: object) -> str | None:
    return value[:128] if isinstance(value, str) else None


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 else None
