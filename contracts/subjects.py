"""Every stream, subject, durable, bucket and header name on the bus, once.

A name is written here and nowhere else. This module holds names only: limits and retention are in
``archaeologist.bus.topology``.
"""

from typing import Final

# Streams and the subjects that each captures.
CHECKPOINTS: Final = "CHECKPOINTS"
REQUESTS: Final = "REQUESTS"
BATTLE_LOG: Final = "BATTLE_LOG"
JOBS: Final = "ARCHAEOLOGIST_JOBS"
DEAD: Final = "ARCHAEOLOGIST_DEAD"

CHECKPOINT_SAVED: Final = "checkpoint.saved"
SKILL_EVALUATED: Final = "skill.evaluated"
ANALYSIS_REQUESTED: Final = "analysis.requested"

ANALYSIS_STARTED: Final = "analysis.started"
ANALYSIS_PROGRESS: Final = "analysis.progress"
ANALYSIS_COMPLETED: Final = "analysis.completed"
ANALYSIS_FAILED: Final = "analysis.failed"
ANALYSIS_CANCELLED: Final = "analysis.cancelled"
ANALYSIS_ALERT: Final = "analysis.alert"

CHECKPOINTS_SUBJECTS: Final = (CHECKPOINT_SAVED, SKILL_EVALUATED)
REQUESTS_SUBJECTS: Final = (ANALYSIS_REQUESTED,)
# Listed one by one: ``analysis.>`` would overlap with REQUESTS (server error 10065).
BATTLE_LOG_SUBJECTS: Final = (
    ANALYSIS_STARTED,
    ANALYSIS_PROGRESS,
    ANALYSIS_COMPLETED,
    ANALYSIS_FAILED,
    ANALYSIS_CANCELLED,
    ANALYSIS_ALERT,
)
JOBS_SUBJECTS: Final = ("archaeologist.jobs.>",)
DEAD_SUBJECTS: Final = ("archaeologist.dead.>",)

JOB_TYPES: Final = ("layer_stats", "layer_drift")
PRIORITIES: Final = ("high", "normal", "low")
"""From the first served to the last."""

# Durable consumers of intake, shared by every daemon on the bus.
INTAKE_CHECKPOINTS: Final = "archaeologist-intake-checkpoints"
INTAKE_REQUESTS: Final = "archaeologist-intake-requests"

# Durable consumers of the Battle Log that tell the user's command and webhook, shared by every daemon that has one.
NOTIFY_COMMAND: Final = "archaeologist-notify-command"
NOTIFY_WEBHOOK: Final = "archaeologist-notify-webhook"

# Key-value buckets.
JOB_RECORDS: Final = "archaeologist_jobs"
REQUEST_RECORDS: Final = "archaeologist_requests"
CAMPAIGN_RECORDS: Final = "archaeologist_campaigns"
WORKER_RECORDS: Final = "archaeologist_workers"
SLOT_RECORDS: Final = "archaeologist_slots"

# Headers.
MESSAGE_ID: Final = "Nats-Msg-Id"
MESSAGE_TTL: Final = "Nats-TTL"
DEAD_SUBJECT: Final = "Archaeologist-Subject"
DEAD_STREAM: Final = "Archaeologist-Stream"
DEAD_SEQUENCE: Final = "Archaeologist-Sequence"
DEAD_CODE: Final = "Archaeologist-Error-Code"
DEAD_REASON: Final = "Archaeologist-Error-Reason"


def job_subject(job_type: str, priority: str, job_key: str) -> str:
    """Subject of one job's message on the queue."""
    return f"archaeologist.jobs.{job_type}.{priority}.{job_key}"


def job_filter(job_type: str, priority: str) -> str:
    """Subject filter of every queued job of a type and a priority."""
    return f"archaeologist.jobs.{job_type}.{priority}.*"


def job_durable(job_type: str, priority: str) -> str:
    """Durable consumer that serves a type and a priority."""
    return f"archaeologist-{job_type}-{priority}"


def dead_subject(code: str) -> str:
    """Subject of the dead letters with an error code."""
    return f"archaeologist.dead.{code}"


def cancel_subject(job_key: str) -> str:
    """Core subject (no stream) on which a running job's owner hears of its cancellation."""
    return f"archaeologist.control.cancel.{job_key}"
