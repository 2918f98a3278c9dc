"""The records in the key-value buckets: what decides the life of a job, and what a campaign has seen.

Every change of a record is a compare-and-set on its revision. The record decides; acks and events only follow.
"""

from typing import Literal

from msgspec import Struct

from contracts.artifacts import Alert
from contracts.messages import EventError, Job, JobKey, JobType, Priority, RequestId
from contracts.prepared import prepare

JobState = Literal["queued", "running", "done", "failed", "cancelled"]
RequestState = Literal["received", "accepted", "refused", "skipped"]
WorkerState = Literal["idle", "busy", "draining"]

FINISHED: frozenset[JobState] = frozenset({"done", "failed", "cancelled"})


class JobRecord(Struct, frozen=True, kw_only=True):
    """The life of one job, in bucket ``archaeologist_jobs`` under its key."""

    job: Job
    state: JobState
    request_ids: tuple[RequestId, ...] = ()
    """Requests that asked for this job, the first 100."""
    claim: int = 0
    """Counts claims; a worker whose number is no longer this one has lost the job."""
    owner: str | None = None
    """The worker process that claimed it last: name and incarnation."""
    token: int | None = None
    """Sequence of the queue message that the claim rests on."""
    heartbeat_at: str | None = None
    """When the owner last said that it is alive."""
    attempt: int = 0
    """Runs that ended by the job's own doing."""
    lost_workers: int = 0
    """Runs that ended by a worker's death."""
    queued_at: str
    started_at: str | None = None
    finished_at: str | None = None
    cancelled_by: str | None = None
    """Set while running: a request to stop; set when cancelled: who asked."""
    device: str | None = None
    artifact_path: str | None = None
    artifact_sha256: str | None = None
    sketch_path: str | None = None
    has_activations: bool = False
    has_drift: bool = False
    most_changed_layer: str | None = None
    most_changed_layer_relative: str | None = None
    duration_sec: float | None = None
    findings: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    alerts: tuple[Alert, ...] = ()
    """Each becomes one event, after the completed event."""
    error: EventError | None = None
    event_sequence: int | None = None
    """Sequence of the terminal event in BATTLE_LOG; null: it, or an alert that belongs to it, is not yet published."""


class RequestRecord(Struct, frozen=True, kw_only=True):
    """What became of one request, in bucket ``archaeologist_requests`` under its id."""

    request_id: RequestId
    state: RequestState
    """received: decided, and what was decided is being carried out."""
    job: Job | None = None
    """While received: the job that was decided on, the same for whoever carries it out."""
    job_key: JobKey | None = None
    error: EventError | None = None
    digest: str | None = None
    """SHA-256 of the message: one id cannot stand for two requests."""
    reason: str | None = None
    """Why a checkpoint was skipped by the sampling policy."""
    at: str


class DeadLetter(Struct, frozen=True, kw_only=True):
    """A message in ``ARCHAEOLOGIST_DEAD`` by its headers: where it came from and what was wrong."""

    sequence: int
    """In ``ARCHAEOLOGIST_DEAD``."""
    at: str
    code: str
    reason: str
    subject: str
    """On which it came."""
    owner: str
    """The request's id, or the job's key and its end."""
    stream: str
    stream_sequence: int


class Requeued(Struct, frozen=True, kw_only=True):
    """What ``jobs requeue`` did for one dead letter or failed job."""

    action: Literal["asked", "asked_before", "left_out"]
    sequence: int | None = None
    """Of the letter; null: the job has none any more."""
    code: str | None = None
    request_id: RequestId | None = None
    """Of the new request, the same each time."""
    reason: str | None = None
    """Why it was left out."""


class SeenCheckpoint(Struct, frozen=True, kw_only=True):
    """A checkpoint that a trainer announced or a job analysed."""

    step: int
    path: str
    """Resolved, on this machine."""
    ordinal: int | None = None
    """Its place among the distinct checkpoints announced, from 0; null: only ever requested by hand."""
    metrics: dict[str, float | None] = {}
    skills: dict[str, float] = {}
    skill_samples: dict[str, int] = {}
    """How many samples a skill's score is from, where that was said."""
    level: int | None = None
    level_up: str | None = None
    """The reason, where this checkpoint was a level-up."""
    model_ref: str | None = None
    job_key: JobKey | None = None
    """Its layer_stats job: the one that analysed it, else the latest."""
    fingerprint: str | None = None
    """Of the bytes that this job was made for."""
    state: Literal["seen", "admitted", "analysed", "failed"] = "seen"
    unpinned: str | None = None
    """Why its pin was given up before its time, where it was."""


class CampaignRecord(Struct, frozen=True, kw_only=True):
    """What a campaign has seen, in bucket ``archaeologist_campaigns`` under ``{hero}/{campaign}/record``."""

    hero_id: str
    campaign_id: str
    announced: int = 0
    """Distinct checkpoints announced so far."""
    checkpoints: tuple[SeenCheckpoint, ...] = ()
    """By step, the newest 1000 and whatever a policy still needs."""
    best_scores: dict[str, float] = {}
    """The best score of each skill so far."""
    level: int | None = None


class WorkerJob(Struct, frozen=True, kw_only=True):
    """A job that a worker runs, and how far it is."""

    job_key: JobKey
    job_id: RequestId
    job_type: JobType
    priority: Priority
    hero_id: str
    campaign_id: str
    checkpoint_step: int
    started_at: str | None = None
    stage: str | None = None
    """Null: its process has not said anything yet."""
    block: int = 0
    blocks: int = 0
    bytes_read: int = 0
    bytes_total: int = 0
    eta_sec: float | None = None


class WorkerSlots(Struct, frozen=True, kw_only=True):
    """How many jobs of one type a worker runs, and could run besides."""

    running: int
    free: int
    """0 where the worker's roles do not allow the type, and while it ends."""


class WorkerGpu(Struct, frozen=True, kw_only=True):
    """A GPU of a worker's machine, as its driver names it."""

    name: str
    memory_bytes: int | None = None
    free_bytes: int | None = None
    """When the worker last asked: at its start and every ten minutes."""


class WorkerRecord(Struct, frozen=True, kw_only=True):
    """A worker as it last described itself, in bucket ``archaeologist_workers`` under ``{name}/{incarnation}``.

    Each daemon writes its own; it goes when the daemon ends, or a day after its last sign of life.
    """

    name: str
    incarnation: str
    """Of this process: a daemon that is started again has another."""
    host: str
    pid: int
    root: str
    version: str
    state: WorkerState
    """``draining``: it was told to end and takes no more jobs."""
    roles: tuple[str, ...]
    since: str
    """When it was started."""
    heartbeat_at: str
    """When it last wrote this."""
    heartbeat_seconds: float
    """How often it does at least; three times that without one: it is silent."""
    slots: dict[JobType, WorkerSlots] = {}
    jobs: tuple[WorkerJob, ...] = ()
    gpus: tuple[WorkerGpu, ...] = ()
    """Empty: none, or no driver that could be asked."""
    note: str | None = None
    """Why it takes no jobs, where it takes none."""


class SlotHolder(Struct, frozen=True, kw_only=True):
    """A worker that runs a job under a limit of the whole cluster."""

    owner: str
    """Name and incarnation, as in the job's record."""
    job_key: JobKey
    at: str


class SlotRecord(Struct, frozen=True, kw_only=True):
    """Who holds the cluster's slots of one job type, in bucket ``archaeologist_slots`` under the type's name."""

    holders: tuple[SlotHolder, ...] = ()


prepare(__name__)
