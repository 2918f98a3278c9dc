"""What a death in the middle leaves behind, put right: at start and every few minutes.

Deliveries repeat what they interrupted by themselves. This sweep is for what no message leads back to: a record that is
not at its end and whose message is gone, or lies there and comes to nobody; a finished record whose event was never
published; pins and temporary files that nobody needs any more; summaries that are behind. And pins and sketches are
kept within their budgets.
Every step can be done by several daemons at once.
"""

import asyncio
import time
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from archaeologist import metrics
from archaeologist.artifacts.paths import CampaignFolder, campaign_folders
from archaeologist.artifacts.store import temporaries
from archaeologist.artifacts.thinning import sketches, thin
from archaeologist.checkpoints import pins
from archaeologist.daemon import lifecycle, policy
from archaeologist.daemon.books import Books, campaign_key
from archaeologist.daemon.budgets import overdrawn, pins_budget_bytes, sketches_budget_bytes
from archaeologist.daemon.completion import Completion
from archaeologist.daemon.lifecycle import stamp
from archaeologist.daemon.summarizing import bring_up_to_date
from archaeologist.errors import ArtifactUnwritable, QueueFull
from archaeologist.moments import moment_or_epoch
from archaeologist.settings import Settings
from contracts.messages import Job, Side
from contracts.records import FINISHED, CampaignRecord, JobRecord

log = structlog.get_logger(__name__)

SETTLED_AFTER: Final = timedelta(seconds=60)
"""A record younger than this is left to whoever just wrote it."""

SUMMARY_SECONDS: Final = 60.0
"""What a campaign's summaries may take of a sweep; the next one goes on from there."""

SPARED_SECONDS: Final = 600.0
"""A pin or a temporary file younger than this may belong to a job whose record is being written."""


class Reconciliation:
    """The sweep over all records and pins."""

    def __init__(self, books: Books, completion: Completion, settings: Settings) -> None:
        self._books = books
        self._completion = completion
        self._settings = settings

    async def sweep(self) -> None:
        """One pass over everything."""
        records = list((await self._books.jobs.all()).values())
        metrics.note_records(records)
        await self._requeue(records)
        await self._announce(records)
        await self._mark_cancelled(records)
        folders = await asyncio.to_thread(lambda: list(campaign_folders(self._settings.root_path)))
        # Soon after the records were read: what is admitted meanwhile is spared by its pin's age.
        for folder in folders:
            await self._release(folder, records)
            await self._tidy(folder, records)
        await self._thin_pins(folders, records)
        await self._thin_sketches(folders)
        for folder in folders:
            await self._summarize(folder)
        await log.adebug("swept", records=len(records))

    async def _requeue(self, records: Iterable[JobRecord]) -> None:
        await self._books.queue.drop_forgotten()
        present = {key for _, _, key in await self._books.queue.subjects()}
        for record in records:
            if record.job.job_key not in present and self._needs_message(record):
                try:
                    await self._books.queue.put(record.job)
                except QueueFull as error:
                    await log.awarning("queued jobs without a message wait for room", reason=str(error))
                    return
                await log.awarning("a job had no message; put again", job_key=record.job.job_key, state=record.state)

    def _needs_message(self, record: JobRecord) -> bool:
        """Whether nobody is at work on a record that is not at its end, and was not for a while."""
        if record.state == "running":
            lease = self._settings.jobs.lease_seconds
            is_silent = lifecycle.is_silent(record, now=datetime.now(UTC), lease_seconds=lease)
            return is_silent and _is_old(record.heartbeat_at)
        if record.state == "done":
            return record.event_sequence is None and _is_old(record.finished_at)
        return record.state == "queued" and _is_old(record.queued_at)

    async def _announce(self, records: Iterable[JobRecord]) -> None:
        for record in records:
            is_overdue = record.state in FINISHED and record.event_sequence is None and _is_old(record.finished_at)
            if is_overdue and record.state != "done":
                # A done job without its event has its message on the queue, which leads somebody back to it.
                await self._completion.settle(record)

    async def _mark_cancelled(self, records: Iterable[JobRecord]) -> None:
        """Checkpoints whose only job was cancelled while it waited: whoever cancels it may not write to campaigns."""
        cancelled: dict[str, list[Job]] = {}
        for record in records:
            if record.state == "cancelled" and record.job.job_type == "layer_stats":
                key = campaign_key(record.job.hero_id, record.job.campaign_id)
                cancelled.setdefault(key, []).append(record.job)
        for key, jobs in cancelled.items():
            await self._books.campaigns.change(key, partial(_all_failed, jobs=jobs))

    async def _release(self, folder: CampaignFolder, records: Iterable[JobRecord]) -> None:
        keep = await self._needed(folder, records)
        released = await asyncio.to_thread(pins.release, folder.pins, keep=keep, older_than_seconds=SPARED_SECONDS)
        if released:
            await log.ainfo("pins released", campaign=str(folder.path), pins=released)

    async def _tidy(self, folder: CampaignFolder, records: Collection[JobRecord]) -> None:
        removed = await asyncio.to_thread(_remove_temporaries, folder, records)
        if removed:
            await log.ainfo("temporary files removed", campaign=str(folder.path), files=removed)

    async def _thin_pins(self, folders: Sequence[CampaignFolder], records: Sequence[JobRecord]) -> None:
        """The oldest pins that no job needs go, until what pins hold is within the budget."""
        by_pins = {folder.pins: folder for folder in folders}
        keep = {pinned: _names(_in_use(folder, records)) for pinned, folder in by_pins.items()}
        budget = await asyncio.to_thread(pins_budget_bytes, self._settings)
        given_up, held = await asyncio.to_thread(
            partial(pins.thin, by_pins, keep=keep, budget_bytes=budget, older_than_seconds=SPARED_SECONDS)
        )
        for holding in given_up:
            await self._tell_unpinned(by_pins[holding.pins], holding.name)
        if held > budget:
            why = "the rest is young or needed by jobs that wait or run; no further checkpoint is pinned"
            await log.awarning(f"{overdrawn(held, budget)}: {why}")

    async def _tell_unpinned(self, folder: CampaignFolder, name: str) -> None:
        """Says in the log and in the campaign's record that a pin was given up: the next analysis may miss it."""
        reason = f"its pin was given up on {stamp(datetime.now(UTC))[:10]}, oldest first, to keep within pins.max_gb"
        await log.awarning("a pin was given up to keep within pins.max_gb", campaign=str(folder.path), pin=name)
        step = int(name.partition("-")[0])
        await self._books.campaigns.change(
            campaign_key(folder.hero_id, folder.campaign_id),
            lambda record: policy.unpinned(record, step, reason=reason) if record else None,
        )

    async def _thin_sketches(self, folders: Sequence[CampaignFolder]) -> None:
        budget = sketches_budget_bytes(self._settings)
        try:
            given_up = await asyncio.to_thread(partial(thin, folders, budget_bytes=budget, now=datetime.now(UTC)))
        except ArtifactUnwritable as error:
            await log.awarning("sketches not thinned", code=error.code, reason=str(error))
            return
        for folder, steps in given_up.items():
            await log.awarning(
                "sketches were given up to keep within sketches.max_gb", campaign=str(folder.path), steps=steps
            )

    async def _summarize(self, folder: CampaignFolder) -> None:
        """Summaries that a job's end could not bring up to date, or that a score came too late for."""
        entry = await self._books.campaigns.get(campaign_key(folder.hero_id, folder.campaign_id))
        await bring_up_to_date(folder, entry.value if entry else None, seconds=SUMMARY_SECONDS)

    async def _needed(self, folder: CampaignFolder, records: Iterable[JobRecord]) -> set[str]:
        """Names of the pins that waiting and running jobs read, and that the next reference will be."""
        sides = _in_use(folder, records)
        entry = await self._books.campaigns.get(campaign_key(folder.hero_id, folder.campaign_id))
        if entry is not None:
            rules = self._settings.policy_for(folder.hero_id, folder.campaign_id)
            latest = policy.previous(entry.value, 10**18)
            best = policy.best(entry.value, -1, rule=rules.best) if rules.reference == "best" else None
            wanted = {candidate.job_key for candidate in (latest, best) if candidate is not None}
            own = (record.job for record in records if _is_of(record, folder))
            sides += [job.target for job in own if job.job_key in wanted]
        return _names(sides)


def _all_failed(campaign: CampaignRecord | None, *, jobs: Iterable[Job]) -> CampaignRecord | None:
    """The campaign's record with these jobs' checkpoints marked; None where there is nothing to mark."""
    marked = campaign
    for job in jobs:
        entry = policy.find(marked, job.target.step) if marked else None
        if marked is not None and entry is not None and (entry.job_key, entry.state) == (job.job_key, "admitted"):
            marked = policy.mark(marked, job.target, job_key=job.job_key, state="failed")
    return None if marked is campaign else marked


def _in_use(folder: CampaignFolder, records: Iterable[JobRecord]) -> list[Side]:
    """What waiting and running jobs of a campaign read."""
    waiting = [record.job for record in records if _is_of(record, folder) and record.state not in FINISHED]
    return [side for job in waiting for side in (job.target, job.reference) if side is not None]


def _names(sides: Iterable[Side]) -> set[str]:
    return {Path(side.read_path).name for side in sides}


def _is_of(record: JobRecord, folder: CampaignFolder) -> bool:
    return (record.job.hero_id, record.job.campaign_id) == (folder.hero_id, folder.campaign_id)


def _is_over(record: JobRecord) -> bool:
    return record.state in FINISHED and record.event_sequence is not None


def _remove_temporaries(folder: CampaignFolder, records: Collection[JobRecord]) -> list[str]:
    """What a worker left that died, or was frozen, while others brought its job to its end; the names. Blocking."""
    at_work = {record.job.job_key for record in records if not _is_over(record)}
    folders = {folder.layer_stats(0).parent, folder.layer_drift(0, 0).parent, folder.sketch(0).parent}
    for record in records:
        if (output := record.job.options.output_path) and _is_of(record, folder):
            folders |= {Path(output), Path(output).parent}
    removed = []
    for file in (file for place in sorted(folders) for file in temporaries(place)):
        try:
            if file.job_key not in at_work and time.time() - file.path.stat().st_mtime > SPARED_SECONDS:
                file.path.unlink()
                removed.append(file.path.name)
        except FileNotFoundError:
            continue
        except OSError as error:
            # A disk that is read-only now, for one: a later sweep finds it again.
            log.warning("a temporary file not removed", path=str(file.path), reason=str(error))
    return removed


def stored_bytes(root: Path) -> dict[str, int]:
    """What lies on the disk for later: kept by pins alone, and in sketches. Blocking."""
    folders = list(campaign_folders(root))
    return {
        "pins": pins.held_bytes(folder.pins for folder in folders),
        "sketches": sum(one.size_bytes for one in sketches(folders)),
    }


def _is_old(moment: str | None) -> bool:
    return moment is None or datetime.now(UTC) - moment_or_epoch(moment) > SETTLED_AFTER
