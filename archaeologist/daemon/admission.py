"""From a valid request to one job on the queue: what is compared, its key, its record, its message.

Every step can be repeated: a request that comes twice, or whose intake died in the middle, ends in the same job. The
record in the bucket decides what there is; the queue's message is only a token for it.
"""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import structlog
from msgspec.structs import replace

from archaeologist.analyses import known_analyses
from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.checkpoints import pins
from archaeologist.daemon import lifecycle, locating, policy
from archaeologist.daemon.books import Books, campaign_key
from archaeologist.daemon.budgets import PinBudget
from archaeologist.daemon.lifecycle import stamp
from archaeologist.errors import ArchaeologistError, CheckpointMissing, PermanentError, QueueFull, ReferenceUnavailable
from archaeologist.jobs import job_key
from archaeologist.probes.sets import digest
from archaeologist.settings import PolicySettings, Settings
from contracts import subjects
from contracts.messages import AnalysisRequested, DriftMetric, Job, JobOptions, RequestId, Side
from contracts.records import FINISHED, CampaignRecord, JobRecord, SeenCheckpoint

log = structlog.get_logger(__name__)

OCCUPIED_RETRY_SECONDS: Final = 0.2
OCCUPIED_TRIES: Final = 50


class Reference(NamedTuple):
    """What a job compares with, if anything."""

    side: Side | None = None
    is_explicit: bool = False
    notes: tuple[str, ...] = ()


class Admission:
    """Makes jobs of requests."""

    def __init__(self, books: Books, settings: Settings) -> None:
        self._books = books
        self._settings = settings
        self._pins = PinBudget(settings)

    async def decide(self, request: AnalysisRequested, *, request_id: RequestId, received: Any) -> Job:
        """The job that a request asks for, as things stand now; only its checkpoints are pinned.

        Raises:
            PermanentError: The request is inadmissible.
        """
        folder = CampaignFolder.of(self._settings.root_path, request.hero_id, request.campaign_id)
        job = await self._job(request, folder, request_id=request_id, received=received)
        entry = await self._books.jobs.get(job.job_key)
        is_new = entry is None or (
            bool(request.force) and entry.value.state in FINISHED and request_id not in entry.value.request_ids
        )
        return await self._within_limits(job) if is_new else job

    async def admit(self, job: Job, *, request_id: RequestId, force: bool = False) -> JobRecord:
        """The record of a job, new or joined by the request, with its message on the queue."""
        job = await asyncio.to_thread(_readable, job)
        record = await self._record(job, request_id=request_id, force=force)
        if job.job_type == "layer_stats" and record.state not in {"failed", "cancelled"}:
            await self._mark(record)
        return record

    async def repeated(self, entry: SeenCheckpoint, request: AnalysisRequested) -> Job | None:
        """The job already made for an announced checkpoint; None where there is none for these bytes.

        By then the policy may name another reference, which would make another job of the same announcement. A job
        that somebody asked for otherwise, with its artifact elsewhere or without activations, does not stand for it.
        """
        if entry.job_key is None or entry.state not in {"admitted", "analysed"}:
            return None
        known = await self._books.jobs.get(entry.job_key)
        if known is None or not await asyncio.to_thread(self._is_unchanged, entry, known.value.job.target):
            return None
        options = known.value.job.options
        is_less = request.compute_activations and not options.compute_activations
        return None if options.output_path is not None or is_less else known.value.job

    async def awaited_reference(self, request: AnalysisRequested, step: int) -> SeenCheckpoint | None:
        """The announced checkpoint that this one is to be compared with and that has yet to be admitted itself."""
        if not _takes_remembered(request):
            return None
        rules = self._settings.policy_for(request.hero_id, request.campaign_id)
        if (request.reference or rules.reference) != "previous":
            return None
        record = await self._books.campaigns.get(campaign_key(request.hero_id, request.campaign_id))
        return policy.awaited(record.value, step, rules=rules) if record else None

    def _is_unchanged(self, entry: SeenCheckpoint, analysed: Side) -> bool:
        """Whether a checkpoint still has the bytes that its job was made for; gone counts as unchanged. Blocking."""
        try:
            now = locating.examine(Path(entry.path), entry.step, settings=self._settings)
        except CheckpointMissing:
            return True
        except PermanentError:
            return False
        return now.fingerprint == analysed.fingerprint

    async def _job(
        self, request: AnalysisRequested, folder: CampaignFolder, *, request_id: RequestId, received: Any
    ) -> Job:
        is_drift = request.job_type == "layer_drift"
        path = request.target_checkpoint_path if is_drift else request.checkpoint_path
        step = request.target_checkpoint_step if is_drift else request.checkpoint_step
        target = await asyncio.to_thread(self._locate, folder, path, step)
        chosen = await self._reference(request, folder, target.side)
        options = await asyncio.to_thread(self._options, request, has_reference=chosen.side is not None)
        key = job_key(
            job_type=request.job_type,
            hero_id=request.hero_id,
            campaign_id=request.campaign_id,
            target=target.side,
            reference=chosen.side,
            options=options,
        )
        return Job(
            job_key=key,
            job_id=request_id,
            job_type=request.job_type,
            priority=request.priority,
            hero_id=request.hero_id,
            campaign_id=request.campaign_id,
            target=target.side,
            reference=chosen.side,
            reference_is_explicit=chosen.is_explicit,
            options=options,
            created_at=stamp(datetime.now(UTC)),
            request=received if isinstance(received, dict) else {},
            notes=(*target.notes, *chosen.notes, *_contradictions(request)),
        )

    def _locate(self, folder: CampaignFolder, path: str | None, step: int | None) -> locating.Located:
        """Blocking: resolve, read the index, fingerprint, pin."""
        found, known_step = locating.resolve(self._settings, folder, path=path, step=step)
        base = self._settings.policy_for(folder.hero_id, folder.campaign_id).base
        side = locating.examine(found, known_step, settings=self._settings, base=base)
        return locating.pinned(side, folder, settings=self._settings, reason=self._pins.reason_for_none())

    def _options(self, request: AnalysisRequested, *, has_reference: bool) -> JobOptions:
        """Blocking: reads the probe set."""
        metrics: tuple[DriftMetric, ...] = tuple(sorted(set(request.metrics or ("l2", "cosine"))))
        output = request.output_path
        if output is not None:
            output = str(locating.output_place(self._settings, output))
        is_drift = request.job_type == "layer_drift"
        wants_activations = request.compute_activations and not is_drift
        activations = self._settings.activations
        probes = request.probe_dataset or activations.probes
        rules = self._settings.policy_for(request.hero_id, request.campaign_id)
        analyses = rules.analyses if request.analyses is None else request.analyses
        return JobOptions(
            compute_activations=wants_activations,
            compute_drift=has_reference,
            # Of the settings where the request is silent, so that other probes are another job.
            probe_dataset=probes if wants_activations else None,
            probes_sha256=digest(probes, folder=self._settings.probes_path) if wants_activations else None,
            max_probe_tokens=(request.max_probe_tokens or activations.max_probe_tokens) if wants_activations else None,
            model_ref=request.model_ref,
            metrics=metrics,
            output_path=output,
            analyses=() if is_drift else known_analyses(analyses),
        )

    # The reference.

    async def _reference(self, request: AnalysisRequested, folder: CampaignFolder, target: Side) -> Reference:
        if request.job_type == "layer_drift":
            return await self._named(folder, request.base_checkpoint_path, request.base_checkpoint_step)
        if request.compute_drift is False:
            return Reference()
        if not _takes_remembered(request):
            return await self._named(folder, request.reference_checkpoint_path, request.reference_checkpoint_step)
        rules = self._settings.policy_for(request.hero_id, request.campaign_id)
        which = request.reference or rules.reference
        if which == "none":
            return Reference()
        if which == "base":
            return await self._base(rules)
        return await self._remembered(folder, rules, target=target, which=which)

    async def _named(self, folder: CampaignFolder, path: str | None, step: int | None) -> Reference:
        """A reference that the request names: it must be there, on disk or still pinned."""
        try:
            located = await asyncio.to_thread(self._locate, folder, path, step)
        except PermanentError as error:
            if path is None and step is not None and (held := await self._held(folder, step)):
                return Reference(held, is_explicit=True)
            msg = f"reference: {error}"
            raise ReferenceUnavailable(msg) from error
        return Reference(located.side, is_explicit=True, notes=located.notes)

    async def _held(self, folder: CampaignFolder, step: int) -> Side | None:
        """An analysed checkpoint that the trainer removed and a pin still holds."""
        record = await self._books.campaigns.get(campaign_key(folder.hero_id, folder.campaign_id))
        entry = policy.find(record.value, step) if record else None
        return (await self._side_of(entry, folder)) if entry else None

    async def _base(self, rules: PolicySettings) -> Reference:
        if rules.base is None:
            return Reference(notes=("no drift: reference is 'base' but no policy.base is set for this campaign",))
        try:
            side = await asyncio.to_thread(locating.base, rules.base, settings=self._settings)
        except (OSError, PermanentError) as error:
            return Reference(notes=(f"no drift: policy.base {rules.base!r} cannot be read: {error}",))
        return Reference(side)

    async def _remembered(
        self, folder: CampaignFolder, rules: PolicySettings, *, target: Side, which: str
    ) -> Reference:
        record = await self._books.campaigns.get(campaign_key(folder.hero_id, folder.campaign_id))
        campaign = record.value if record else CampaignRecord(hero_id=folder.hero_id, campaign_id=folder.campaign_id)
        if which == "best":
            entry = policy.best(campaign, target.step, rule=rules.best)
            missing = f"no drift: no other analysed checkpoint has the metric {rules.best.metric!r}"
        else:
            entry = policy.previous(campaign, target.step)
            missing = "no drift: no earlier checkpoint of this campaign is analysed"
        if entry is None:
            return Reference(notes=(missing,))
        side = await self._side_of(entry, folder)
        if side is None:
            reason = entry.unpinned or "was not pinned"
            return Reference(notes=(f"no drift: checkpoint {entry.step} is gone and {reason}",))
        return Reference(side)

    async def _side_of(self, entry: SeenCheckpoint, folder: CampaignFolder) -> Side | None:
        """The bytes that an earlier job analysed, where they still are."""
        record = await self._books.jobs.get(entry.job_key) if entry.job_key else None
        if record is None:
            return None
        earlier = record.value.job.target
        for place in dict.fromkeys((earlier.read_path, earlier.path)):
            here = Path(locating.mapped(place, self._settings.paths))
            if here.parent == folder.pins:
                # A sweep that does not know of this job yet must not take it.
                await asyncio.to_thread(pins.renew, folder.pins, here.name)
            try:
                side = await asyncio.to_thread(
                    locating.examine, here, entry.step, settings=self._settings, recorded=Path(earlier.path)
                )
            except ArchaeologistError:
                continue
            if side.fingerprint == earlier.fingerprint:
                return replace(side, base_path=earlier.base_path, base_fingerprint=earlier.base_fingerprint)
        return None

    # The record and the queue.

    async def _record(self, job: Job, *, request_id: RequestId, force: bool) -> JobRecord:
        now = datetime.now(UTC)
        entry = await self._books.jobs.get(job.job_key)
        if entry is None:
            fresh = lifecycle.queued(job, request_id=request_id, now=now)
            if (revision := await self._books.jobs.create(job.job_key, fresh)) is not None:
                await self._put_first(fresh, revision)
                return fresh
            return await self._record(job, request_id=request_id, force=force)
        is_repeat = request_id in entry.value.request_ids
        if force and not is_repeat and entry.value.state in FINISHED:
            return await self._rerun(job, request_id=request_id)
        return await self._join(job, request_id=request_id)

    async def _within_limits(self, job: Job) -> Job:
        """The job with a note where its type's queue is full.

        Raises:
            QueueFull: The settings say that a full queue refuses.
        """
        limits = self._settings.jobs.of(job.job_type)
        if limits.when_full == "allow":
            return job
        pending = sum(line.waiting for line in (await self._books.queue.lines(job.job_type)).values())
        if pending < limits.max_pending:
            return job
        msg = f"{pending} {job.job_type} jobs are waiting, the limit is {limits.max_pending} (jobs.{job.job_type})"
        if limits.when_full == "reject":
            refusal = f"{msg}; ask again later or raise max_pending"
            raise QueueFull(refusal)
        await log.awarning("queue is long", job_key=job.job_key, pending=pending)
        return replace(job, notes=(*job.notes, msg))

    async def _join(self, job: Job, *, request_id: RequestId) -> JobRecord:
        before: JobRecord | None = None

        def step(record: JobRecord | None) -> JobRecord | None:
            nonlocal before
            before = record
            if record is None:
                return None
            record = lifecycle.joined(record, request_id)
            if record.state == "queued" and _is_higher(job.priority, record.job.priority):
                record = replace(record, job=replace(record.job, priority=job.priority))
            return record

        record = await self._books.jobs.change(job.job_key, step)
        if record is None or before is None:
            return await self._record(job, request_id=request_id, force=False)
        if record.state == "queued":
            if before.job.priority != record.job.priority:
                await self._books.queue.remove(job.job_type, before.job.priority, job.job_key)
            # Put again in any case: whoever made the record may have died before its message was out.
            try:
                await self._books.queue.put(record.job)
            except QueueFull:
                # The job was admitted before and keeps its place: the sweep puts its message when there is room.
                await log.awarning("the queue is full, a queued job's message waits", job_key=job.job_key)
        return record

    async def _rerun(self, job: Job, *, request_id: RequestId) -> JobRecord:
        now = datetime.now(UTC)
        ended: JobRecord | None = None

        def step(record: JobRecord | None) -> JobRecord | None:
            nonlocal ended
            ended = record
            return lifecycle.rerun(record, job, request_id=request_id, now=now) if record else None

        for _ in range(OCCUPIED_TRIES):
            record = await self._books.jobs.change(job.job_key, step)
            if record is not None and request_id in record.request_ids:
                await self._put_again(record, ended)
                return record
            # Finished, but its event is not out yet: its worker is about to.
            await asyncio.sleep(OCCUPIED_RETRY_SECONDS)
        return await self._join(job, request_id=request_id)

    async def _put_first(self, record: JobRecord, revision: int) -> None:
        """The message of a new job; where the queue is full, the record goes as it came.

        Raises:
            QueueFull: The job is refused, and no trace of it is left to run later.
        """
        try:
            await self._put(record)
        except QueueFull:
            if await self._books.jobs.remove(record.job.job_key, revision=revision):
                raise
            # Somebody joined meanwhile and was told so: the job stays, and the sweep puts its message.

    async def _put_again(self, record: JobRecord, ended: JobRecord | None) -> None:
        """The message of a job that is run anew; where the queue is full, what had ended stays ended.

        Raises:
            QueueFull: The job is refused.
        """
        try:
            await self._put(record)
        except QueueFull:
            await self._books.jobs.change(record.job.job_key, lambda now: ended if now == record else None)
            raise

    async def _put(self, record: JobRecord) -> None:
        """The job's message on the queue; waits while an earlier run's message still lies there unacknowledged."""
        for _ in range(OCCUPIED_TRIES):
            if await self._books.queue.put(record.job):
                return
            entry = await self._books.jobs.get(record.job.job_key)
            if entry is None or entry.value.state != "queued":
                return
            await asyncio.sleep(OCCUPIED_RETRY_SECONDS)
        await log.awarning("the job's subject stays occupied; its message there will do", job_key=record.job.job_key)

    async def _mark(self, record: JobRecord) -> None:
        """Says in the campaign's record that its checkpoint has this job.

        A quick one may have ended meanwhile, and who ended it found no mark to change: so it is looked at once more.
        """
        job = record.job
        await self._mark_as(job, "analysed" if record.state == "done" else "admitted")
        now = await self._books.jobs.get(job.job_key)
        if now is not None and now.value.state in FINISHED:
            await self._mark_as(job, "analysed" if now.value.state == "done" else "failed")

    async def _mark_as(self, job: Job, state: policy.Mark) -> None:
        empty = CampaignRecord(hero_id=job.hero_id, campaign_id=job.campaign_id)

        def step(record: CampaignRecord | None) -> CampaignRecord | None:
            # Who asks for an earlier analysis of the same bytes again leaves the newest in the record.
            if record is not None and policy.is_analysed(record, job.target):
                return None
            return policy.mark(record or empty, job.target, job_key=job.job_key, state=state)

        await self._books.campaigns.change(campaign_key(job.hero_id, job.campaign_id), step)


def _readable(job: Job) -> Job:
    """The job with its checkpoints read in place where a pin went since it was decided on. Blocking."""

    def there(side: Side) -> Side:
        is_gone = not Path(side.read_path).exists() and Path(side.path).exists()
        return replace(side, read_path=side.path) if is_gone else side

    return replace(job, target=there(job.target), reference=there(job.reference) if job.reference else None)


def _contradictions(request: AnalysisRequested) -> Iterator[str]:
    """Steps that a request gives to folders whose names have others."""
    is_drift = request.job_type == "layer_drift"
    for side in ("base_checkpoint", "target_checkpoint") if is_drift else ("checkpoint", "reference_checkpoint"):
        if said := locating.contradiction(getattr(request, f"{side}_path"), getattr(request, f"{side}_step")):
            yield said


def _takes_remembered(request: AnalysisRequested) -> bool:
    """Whether the reference is left to the policy."""
    return (
        request.job_type == "layer_stats"
        and request.compute_drift is not False
        and request.reference_checkpoint_path is None
        and request.reference_checkpoint_step is None
    )


def _is_higher(one: str, other: str) -> bool:
    return subjects.PRIORITIES.index(one) < subjects.PRIORITIES.index(other)
