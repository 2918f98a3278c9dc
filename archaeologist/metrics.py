"""What Prometheus reads: every measure with its name, its labels and its meaning, and what a scrape gets.

Whoever does something notes it here. The measures belong to the process, so `up` has one set of them for the daemon and
the web edge. A label has few values, whatever comes over the bus: job types and codes that are known, and the campaigns
analysed last. Only this module imports ``prometheus_client``.
"""

import platform
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

import archaeologist
from archaeologist.errors import ArchaeologistError, PermanentError
from archaeologist.moments import moment_or_epoch
from contracts import subjects
from contracts.messages import AlertData, CompletedData, Event, FailedData
from contracts.records import JobRecord

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

MAX_CAMPAIGNS: Final = 100
"""Campaigns with a series of their own; the one analysed longest ago gives way."""
OTHER: Final = "other"
FAMILIES: Final = ("representation", "entropy", "repetition", "divergence", "weights")
SEVERITIES: Final = ("warning", "critical")
OUTCOMES: Final = ("done", "failed", "stopped", "handed_back", "lost")
STAGES: Final = ("request", "job")
TARGETS: Final = ("command", "webhook")
TELLINGS: Final = ("told", "failed", "given_up", "too_old")
KINDS: Final = ("pins", "sketches")
SECONDS: Final = (0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600)
"""The upper bounds of durations; a job's own limit is 1800 s by default."""

REGISTRY: Final = CollectorRegistry()

_BUILD: Final = Info("archaeologist_build", "Which version this is.", registry=REGISTRY)
_CONNECTED: Final = Gauge(
    "archaeologist_bus_connected", "Whether the bus is there: 1 or 0.", ["service"], registry=REGISTRY
)
_QUEUE: Final = Gauge(
    "archaeologist_queue_jobs",
    "Jobs on the queue of the whole bus: waiting, or with a worker. Absent while the bus is away.",
    ["job_type", "priority", "state"],
    registry=REGISTRY,
)
_SLOTS: Final = Gauge(
    "archaeologist_job_slots", "Jobs that this worker may run at once.", ["job_type"], registry=REGISTRY
)
_RUNNING: Final = Gauge(
    "archaeologist_jobs_running", "Jobs that this worker has in hand.", ["job_type"], registry=REGISTRY
)
_DURATION: Final = Histogram(
    "archaeologist_job_duration_seconds",
    "From the start of a job's process to its end, on this worker.",
    ["job_type", "outcome"],
    buckets=SECONDS,
    registry=REGISTRY,
)
_READ: Final = Counter(
    "archaeologist_job_read_bytes",
    "Bytes of checkpoints that jobs of this worker read.",
    ["job_type"],
    registry=REGISTRY,
)
_EVENTS: Final = Counter(
    "archaeologist_events_published", "Events that this process put into the Battle Log.", ["type"], registry=REGISTRY
)
_FAILURES: Final = Counter(
    "archaeologist_failures",
    "analysis.failed by error code: what was refused (request) and what ended without an artifact (job).",
    ["stage", "code"],
    registry=REGISTRY,
)
_ALERTS: Final = Counter(
    "archaeologist_alerts", "analysis.alert by family and severity.", ["family", "severity"], registry=REGISTRY
)
_STEP: Final = Gauge(
    "archaeologist_last_analysed_step",
    "Step of the checkpoint analysed last, of the campaigns analysed last.",
    ["hero_id", "campaign_id"],
    registry=REGISTRY,
)
_ANALYSED: Final = Gauge(
    "archaeologist_last_analysed_timestamp_seconds",
    "When a checkpoint of the campaign was analysed last.",
    ["hero_id", "campaign_id"],
    registry=REGISTRY,
)
_STORED: Final = Gauge(
    "archaeologist_stored_bytes",
    "Bytes on this machine's disk: of checkpoints that the trainer has deleted and pins keep, and of sketches.",
    ["kind"],
    registry=REGISTRY,
)
_SWEPT: Final = Gauge(
    "archaeologist_last_sweep_timestamp_seconds",
    "When the daemon last looked for what was left over.",
    registry=REGISTRY,
)
_TOLD: Final = Counter(
    "archaeologist_notifications",
    "What became of telling the user's command or webhook.",
    ["target", "outcome"],
    registry=REGISTRY,
)
_STREAMS: Final = Gauge("archaeologist_live_streams", "Live streams open at the web edge.", registry=REGISTRY)
_REQUESTS: Final = Counter(
    "archaeologist_http_requests",
    "Requests that the web edge answered, by status class.",
    ["status"],
    registry=REGISTRY,
)

_analysed: Final[OrderedDict[tuple[str, str], str]] = OrderedDict()
"""When each campaign with series was analysed last, the longest ago first."""


def exposition() -> bytes:
    """Every measure, in Prometheus's text form."""
    return generate_latest(REGISTRY)


def watch_bus(service: str, is_connected: Callable[[], bool]) -> None:
    """Asks at each scrape whether a service's connection is there."""
    _CONNECTED.labels(service).set_function(lambda: float(is_connected()))


def set_queue(jobs: Mapping[tuple[str, str, str], int]) -> None:
    """Jobs by type, priority and state; empty: nobody knows."""
    _QUEUE.clear()
    for labels, count in jobs.items():
        _QUEUE.labels(*labels).set(count)


def set_slots(slots: Mapping[str, int]) -> None:
    """How many jobs of each type this worker may run at once."""
    for job_type, count in slots.items():
        _SLOTS.labels(job_type).set(count)
        _RUNNING.labels(job_type).set(0)


def set_running(job_type: str, count: int) -> None:
    """How many jobs of a type this worker has in hand."""
    _RUNNING.labels(job_type).set(count)


def note_run(job_type: str, outcome: str, *, seconds: float, bytes_read: int) -> None:
    """A job's process has ended."""
    _DURATION.labels(job_type, outcome).observe(seconds)
    _READ.labels(job_type).inc(bytes_read)


def note_event(event: Event) -> None:
    """An event was put into the Battle Log by this process."""
    _EVENTS.labels(event.type if event.type in subjects.BATTLE_LOG_SUBJECTS else OTHER).inc()
    data = event.data
    if isinstance(data, FailedData):
        _FAILURES.labels("job" if data.job_key else "request", _known_code(data.error.code)).inc()
    elif isinstance(data, AlertData):
        family = data.family if data.family in FAMILIES else OTHER
        _ALERTS.labels(family, data.severity).inc()
    elif isinstance(data, CompletedData) and data.job_type == "layer_stats":
        _note_analysed(str(data.hero_id), str(data.campaign_id), step=data.checkpoint_step or 0, at=event.time)


def note_records(records: Iterable[JobRecord]) -> None:
    """What the records say of the campaigns: other workers' jobs, and what was before this process."""
    done = [record for record in records if record.state == "done" and record.job.job_type == "layer_stats"]
    for record in sorted(done, key=lambda record: record.finished_at or ""):
        job = record.job
        _note_analysed(job.hero_id, job.campaign_id, step=job.target.step, at=record.finished_at or record.queued_at)


def note_sweep(*, at: datetime, stored_bytes: Mapping[str, int]) -> None:
    """The daemon has looked for what was left over, and how much lies there."""
    _SWEPT.set(at.timestamp())
    for kind, count in stored_bytes.items():
        _STORED.labels(kind).set(count)


def note_telling(target: str, outcome: str) -> None:
    """The user's command or webhook was told of an event, or was not."""
    _TOLD.labels(target, outcome).inc()


def note_request(status: int) -> None:
    """The web edge answered."""
    _REQUESTS.labels(f"{status // 100}xx").inc()


def set_streams(count: int) -> None:
    """How many live streams are open."""
    _STREAMS.set(count)


def _note_analysed(hero_id: str, campaign_id: str, *, step: int, at: str) -> None:
    key = (hero_id, campaign_id)
    if at < _analysed.get(key, ""):
        return
    _analysed[key] = at
    _analysed.move_to_end(key)
    _STEP.labels(*key).set(step)
    _ANALYSED.labels(*key).set(moment_or_epoch(at).timestamp())
    while len(_analysed) > MAX_CAMPAIGNS:
        oldest = min(_analysed, key=lambda known: _analysed[known])
        del _analysed[oldest]
        _STEP.remove(*oldest)
        _ANALYSED.remove(*oldest)


def _known_code(code: str) -> str:
    return code if code in {kind.code for kind in _descendants(ArchaeologistError)} else OTHER


def _descendants(kind: type[ArchaeologistError]) -> Iterable[type[ArchaeologistError]]:
    for below in kind.__subclasses__():
        yield below
        yield from _descendants(below)


def _prepare() -> None:
    """Every series whose labels are known from the start is there with zero: a rate needs a value before the first."""
    ProcessCollector(registry=REGISTRY)
    _BUILD.info({"version": archaeologist.__version__, "python": platform.python_version()})
    for kind in subjects.BATTLE_LOG_SUBJECTS:
        _EVENTS.labels(kind)
    for job_type in subjects.JOB_TYPES:
        _READ.labels(job_type)
        for outcome in OUTCOMES:
            _DURATION.labels(job_type, outcome)
    for family in FAMILIES:
        for severity in SEVERITIES:
            _ALERTS.labels(family, severity)
    for stage in STAGES:
        for error in _descendants(PermanentError):  # a temporary one ends neither a request nor a job
            _FAILURES.labels(stage, error.code)
        _FAILURES.labels(stage, OTHER)
    for target in TARGETS:
        for outcome in TELLINGS:
            _TOLD.labels(target, outcome)


_prepare()
