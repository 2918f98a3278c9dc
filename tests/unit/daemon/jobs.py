"""Jobs and records for the tests of this folder."""

from datetime import UTC, datetime, timedelta

from archaeologist.daemon import lifecycle
from archaeologist.daemon.lifecycle import Claim
from contracts.messages import CampaignId, HeroId, Job, JobKey, Priority, RequestId, Side, Succeeded
from contracts.records import JobRecord

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
OWNER = "box:A"
OTHER = "box:B"
REQUEST = RequestId("R1")


def job(*, step: int = 100, priority: Priority = "normal") -> Job:
    """A layer_stats job."""
    return Job(
        job_key=JobKey(f"key{step}"),
        job_id=REQUEST,
        job_type="layer_stats",
        priority=priority,
        hero_id=HeroId("dio"),
        campaign_id=CampaignId("c1"),
        target=Side(path=f"/x/checkpoint-{step}", step=step, read_path=f"/x/checkpoint-{step}", fingerprint="f"),
        created_at=lifecycle.stamp(NOW),
    )


def queued() -> JobRecord:
    """A job just queued."""
    return lifecycle.queued(job(), request_id=REQUEST, now=NOW)


def running(*, token: int = 7) -> tuple[JobRecord, Claim]:
    """A job that OWNER runs."""
    record = lifecycle.claimed(queued(), owner=OWNER, token=token, now=NOW)
    return record, Claim(owner=OWNER, number=record.claim)


def succeeded() -> Succeeded:
    """A child's good outcome."""
    return Succeeded(artifact_sha256="0" * 64, has_drift=True, most_changed_layer="model.layers.3", duration_sec=1.5)


def done() -> JobRecord:
    """A job that ended well, its event not yet out."""
    record, claim = running()
    finished = lifecycle.done(record, claim, succeeded(), artifact_path="/a.json", sketch_path=None, now=later(9))
    assert finished is not None
    return finished


def later(seconds: float) -> datetime:
    """A moment after NOW."""
    return NOW + timedelta(seconds=seconds)
