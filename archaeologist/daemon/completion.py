"""The end of a job: artifact in place, campaign marked, summaries, terminal event and alerts out, acknowledged.

The order is the contract's: the record is set to done first, by whoever still holds the claim; everything after that
can be repeated by anybody who finds the record finished, and ends the same.
"""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.artifacts.store import has_content, put_in_place, remove_temporaries, temporary_path
from archaeologist.bus.connection import Bus
from archaeologist.bus.log import find_message
from archaeologist.daemon import announcements, lifecycle, policy
from archaeologist.daemon.announcements import Announcement
from archaeologist.daemon.books import Books, campaign_key
from archaeologist.daemon.dead_letters import Origin, bury
from archaeologist.daemon.herald import announce
from archaeologist.daemon.locating import mapped
from archaeologist.daemon.summarizing import bring_up_to_date
from archaeologist.moments import moment_or_epoch
from archaeologist.settings import Settings
from contracts import subjects
from contracts.messages import EventError, Job, encode
from contracts.records import CampaignRecord, JobRecord

log = structlog.get_logger(__name__)

ALONE_SECONDS: Final = 30.0
"""A sweep takes up what was finished a minute ago."""


class Places(NamedTuple):
    """Where a job's files go: final paths, the temporary ones of a claim, what an older artifact makes room to.

    ``history`` is where the campaign's earlier artifacts lie.
    """

    artifact: Path
    sketch: Path | None
    superseded: Path
    history: Path
    temporary_artifact: Path
    temporary_sketch: Path | None


def places(job: Job, claim: int, *, settings: Settings) -> Places:
    """The paths of a job's artifact and sketch."""
    folder = CampaignFolder.of(settings.root_path, job.hero_id, job.campaign_id)
    output = Path(mapped(job.options.output_path, settings.paths)) if job.options.output_path else None
    if job.job_type == "layer_stats":
        default = folder.layer_stats(job.target.step)
        artifact = output / default.name if output else default
        sketch: Path | None = folder.sketch(job.target.step)
    else:
        base_step = job.reference.step if job.reference else 0
        artifact = output or folder.layer_drift(base_step, job.target.step)
        sketch = None
    return Places(
        artifact=artifact,
        sketch=sketch,
        superseded=folder.superseded(job.job_key),
        history=folder.layer_stats(job.target.step).parent,
        temporary_artifact=temporary_path(artifact, job.job_key, claim),
        temporary_sketch=temporary_path(sketch, job.job_key, claim) if sketch else None,
    )


class Completion:
    """Brings finished records to their end; used by the executor and by reconciliation."""

    def __init__(self, bus: Bus, books: Books, settings: Settings) -> None:
        self._bus = bus
        self._books = books
        self._settings = settings

    async def settle(self, record: JobRecord, *, is_first: bool = False) -> bool:
        """What a finished record still lacks: files, mark, events. False: its artifact is lost, run it again.

        Args:
            record: As it was finished.
            is_first: The caller has just finished it, and nobody can have done so before.

        Raises:
            BusUnavailable: The connection is closed for good; the queue's message will bring somebody else here.
        """
        if record.event_sequence is not None:
            return True
        if record.state == "done" and not await asyncio.to_thread(self._install, record):
            return False
        campaign = await self._mark(record)
        if record.state == "done" and record.job.job_type == "layer_stats":
            await bring_up_to_date(self._folder(record.job), campaign)
        if record.state == "failed":
            await self._bury(record)
        sequence = await self._announce(record, is_first=is_first)
        await self._books.jobs.change(
            record.job.job_key,
            lambda now: lifecycle.announced(now, sequence, run=record.job.run) if now else None,
        )
        return True

    def clean(self, job: Job, *, up_to_claim: int) -> None:
        """Removes the temporary files that a claim on a job and those before it left. Blocking.

        A worker that was frozen before it called this wakes up while another may be at work under a later claim.
        """
        where = places(job, 0, settings=self._settings)
        for file in (where.artifact, where.sketch):
            if file is None:
                continue
            try:
                remove_temporaries(file.parent, job.job_key, up_to_claim=up_to_claim)
            except OSError as error:
                # A disk that is read-only now, for one: a sweep finds them later.
                log.warning("temporary files not removed", folder=str(file.parent), reason=str(error))

    def _install(self, record: JobRecord) -> bool:
        where = places(record.job, record.claim, settings=self._settings)
        if where.temporary_sketch and where.sketch and where.temporary_sketch.exists():
            put_in_place(where.temporary_sketch, where.sketch, superseded_folder=None)
        if where.temporary_artifact.exists():
            put_in_place(where.temporary_artifact, where.artifact, superseded_folder=where.superseded.parent)
        # By its content: another job's artifact, or one of an earlier run, may lie in its place.
        return any(has_content(path, record.artifact_sha256) for path in (where.artifact, where.superseded))

    def _folder(self, job: Job) -> CampaignFolder:
        return CampaignFolder.of(self._settings.root_path, job.hero_id, job.campaign_id)

    async def _mark(self, record: JobRecord) -> CampaignRecord | None:
        job = record.job
        if job.job_type != "layer_stats":
            return None
        state: policy.Mark = "analysed" if record.state == "done" else "failed"
        return await self._books.campaigns.change(
            campaign_key(job.hero_id, job.campaign_id),
            lambda campaign: policy.mark(campaign, job.target, job_key=job.job_key, state=state) if campaign else None,
        )

    async def _announce(self, record: JobRecord, *, is_first: bool) -> int:
        """Sequence of the terminal event, once it and every alert are in the log."""
        first, *alerts = announcements.ending(record, worker=_worker_of(record), now=datetime.now(UTC))
        sequence = await self._publish_once(first, record, is_first=is_first)
        for alert in alerts:
            await self._publish_once(alert, record, is_first=is_first)
        return sequence

    async def _publish_once(self, announcement: Announcement, record: JobRecord, *, is_first: bool) -> int:
        event, message_id = announcement
        if not (is_first and self._is_alone(record)):
            since = moment_or_epoch(record.finished_at or record.queued_at)
            # The server's own deduplication forgets after a day; the stream itself does not.
            earlier = await find_message(self._bus, subjects.BATTLE_LOG, message_id, subject=event.type, since=since)
            if earlier is not None:
                return earlier
        return (await announce(self._bus, event, message_id=message_id)).sequence

    def _is_alone(self, record: JobRecord) -> bool:
        """Whether a record was finished so lately that nobody else can have come to it, by lease or by sweep.

        It is the wall clock that tells a worker that it was frozen, or its machine asleep, or its clock set back.
        """
        limit = min(ALONE_SECONDS, self._settings.jobs.lease_seconds / 2)
        age = datetime.now(UTC) - moment_or_epoch(record.finished_at or record.queued_at)
        return timedelta(0) <= age < timedelta(seconds=limit)

    async def _bury(self, record: JobRecord) -> None:
        job = record.job
        origin = Origin(subjects.job_subject(job.job_type, job.priority, job.job_key), subjects.JOBS, record.token or 0)
        error = record.error or EventError(code="internal_error", message="no reason recorded")
        message_id = f"{announcements.message_id(record)}:dead"
        await bury(self._bus, encode(job), origin=origin, error=error, message_id=message_id)


def _worker_of(record: JobRecord) -> str | None:
    return record.owner.rpartition(":")[0] if record.owner else None
