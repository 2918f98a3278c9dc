"""The state of a worker: how it describes itself, and what others make of that. Pure.

``presence`` writes it; the command line and the web edge read it through ``control``, on any machine.
"""

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Final

from msgspec.structs import asdict, replace

from archaeologist.bus.queue import JOB_TYPES
from archaeologist.moments import moment_or_epoch
from archaeologist.settings import Settings
from contracts.http import Condition, WorkerEntry
from contracts.messages import JobType, Progress
from contracts.records import JobRecord, WorkerJob, WorkerRecord, WorkerSlots

SILENT_AFTER: Final = 3
"""Heartbeats that may be missed before a worker counts as silent."""


def worker_key(record: WorkerRecord) -> str:
    """Key of a worker's record. The incarnation at its end keeps a name that ends in a dot from making a wrong key."""
    return f"{record.name}/{record.incarnation}"


def condition(record: WorkerRecord, *, now: datetime) -> Condition:
    """What it does, or that it has not been heard of for too long: killed, frozen, or cut off."""
    is_silent = age_seconds(record, now=now) > SILENT_AFTER * record.heartbeat_seconds
    return "silent" if is_silent else record.state


def seen(record: WorkerRecord, *, now: datetime) -> WorkerEntry:
    """The worker as somebody else sees it now."""
    return WorkerEntry(**asdict(record), condition=condition(record, now=now), age_sec=age_seconds(record, now=now))


def age_seconds(record: WorkerRecord, *, now: datetime) -> float:
    """How long ago it last said anything, by the two machines' clocks."""
    return max(0.0, (now - moment_or_epoch(record.heartbeat_at)) / timedelta(seconds=1))


def served_types(settings: Settings) -> tuple[JobType, ...]:
    """The job types that a worker's roles allow it to take."""
    roles = set(settings.worker.roles)
    return tuple(name for name in JOB_TYPES if roles & set(settings.jobs.of(name).allowed_roles))


def reason_for_none(settings: Settings) -> str | None:
    """Why a worker takes no jobs at all; None where it takes some."""
    if served_types(settings):
        return None
    has = ", ".join(settings.worker.roles) or "none"
    wanted = dict.fromkeys(role for name in JOB_TYPES for role in settings.jobs.of(name).allowed_roles)
    return (
        f"takes no jobs: its roles are {has}, and jobs go to {', '.join(wanted) or 'none'}; set worker.roles, or"
        " allowed_roles of a job type"
    )


def slots(settings: Settings, busy: Collection[JobType], *, is_draining: bool) -> dict[JobType, WorkerSlots]:
    """What of each job type runs and could run besides.

    Args:
        settings: For limits and roles.
        busy: The type of each job that is in hand.
        is_draining: No more are taken.
    """
    found = {}
    for job_type in JOB_TYPES:
        running = sum(one == job_type for one in busy)
        is_taken = job_type in served_types(settings) and not is_draining
        room = settings.jobs.of(job_type).max_running - running if is_taken else 0
        found[job_type] = WorkerSlots(running=running, free=max(0, room))
    return found


def running(record: JobRecord, latest: Progress | None) -> WorkerJob:
    """A job that runs, with what its process last said of itself."""
    job = record.job
    known = WorkerJob(
        job_key=job.job_key,
        job_id=job.job_id,
        job_type=job.job_type,
        priority=job.priority,
        hero_id=job.hero_id,
        campaign_id=job.campaign_id,
        checkpoint_step=job.target.step,
        started_at=record.started_at,
    )
    if latest is None:
        return known
    return replace(
        known,
        stage=latest.stage,
        block=latest.block,
        blocks=latest.blocks,
        bytes_read=latest.bytes_read,
        bytes_total=latest.bytes_total,
        eta_sec=latest.eta_sec,
    )
