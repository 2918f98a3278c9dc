"""The daemon's ear: messages from trainers and people become jobs, skipped checkpoints or refusals.

Whatever comes, the loop goes on: a message that cannot be used becomes one ``analysis.failed`` and one dead letter. A
message is acknowledged only when everything that follows from it is recorded, so it may be handled twice. What is to be
done is decided once and written down before it is done; each step gives the same the second time.
"""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
from msgspec.structs import replace

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.bus.connection import Bus
from archaeologist.bus.consumer import Received
from archaeologist.daemon import announcements, policy
from archaeologist.daemon.admission import Admission
from archaeologist.daemon.books import Books, campaign_key
from archaeologist.daemon.dead_letters import Origin, bury
from archaeologist.daemon.decoding import Message, decode, digest_of, id_reused, request_id_of
from archaeologist.daemon.herald import announce
from archaeologist.daemon.lifecycle import stamp
from archaeologist.daemon.locating import resolve
from archaeologist.daemon.summarizing import keep_scores
from archaeologist.daemon.waiting import Waiting
from archaeologist.errors import CheckpointNotReady, InternalError, PermanentError, TemporaryError
from archaeologist.settings import Settings
from contracts import subjects
from contracts.messages import AnalysisRequested, CheckpointSaved, EventError, Job, RequestId, SkillEvaluated
from contracts.records import CampaignRecord, RequestRecord, SeenCheckpoint
from contracts.ulid import ulid_from

log = structlog.get_logger(__name__)


class Intake:
    """Handles each message of the CHECKPOINTS and REQUESTS streams."""

    def __init__(self, bus: Bus, books: Books, settings: Settings) -> None:
        self._bus = bus
        self._books = books
        self._settings = settings
        self._admission = Admission(books, settings)
        self._waiting = Waiting(settings)

    async def handle(self, received: Received) -> None:
        """One message, from bytes to an acknowledged outcome.

        Raises:
            TemporaryError: The bus is away; the message will come again.
        """
        request_id = request_id_of(received.data) or _id_from(received)
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                decided = await self._decided(received, request_id=request_id)
            except CheckpointNotReady as reason:
                await log.ainfo("waiting for a checkpoint", subject=received.subject, reason=str(reason))
                await received.nak(self._waiting.pause_seconds(received.time))
                return
            if decided.digest != digest_of(received.subject, received.data):
                decided = await self._reused(received, request_id=request_id)
            await self._end(decided, received)

    async def _end(self, decided: RequestRecord, received: Received) -> None:
        """Carries out what was decided, if that is not done yet."""
        if decided.state != "received":
            await received.ack()
        elif decided.job is None:
            await self._refuse(decided, received)
        else:
            await self._queue(decided, decided.job, received)

    # First what is to be done is written down. A daemon may die or freeze while it is carried out; whoever takes the
    # message then, or wakes up with it, does the same, although by now another reference, or none, would be chosen.

    async def _decided(self, received: Received, *, request_id: RequestId) -> RequestRecord:
        """What was decided about a request, first by whomever; another message may have had its id before."""
        entry = await self._books.requests.get(request_id)
        if entry is not None:
            return entry.value
        return await self._first(await self._decision(received, request_id=request_id))

    async def _reused(self, received: Received, *, request_id: RequestId) -> RequestRecord:
        """The refusal of a message that came under another one's id, under an id of its own."""
        return await self._first(_refused(id_reused(request_id), received, request_id=_id_from(received)))

    async def _first(self, decision: RequestRecord) -> RequestRecord:
        stands = await self._books.requests.change(decision.request_id, lambda record: record or decision)
        return stands or decision

    async def _decision(self, received: Received, *, request_id: RequestId) -> RequestRecord:
        try:
            message = decode(received.subject, received.data)
            return await self._admit(message, request_id=request_id, received=received)
        except TemporaryError:
            raise
        except Exception as error:  # noqa: BLE001 -- see _coded
            return _refused(await _coded(error, received), received, request_id=request_id)

    async def _admit(self, message: Message, *, request_id: RequestId, received: Received) -> RequestRecord:
        if isinstance(message, CheckpointSaved):
            return await self._saved(message, request_id=request_id, received=received)
        if isinstance(message, SkillEvaluated):
            return await self._evaluated(message, request_id=request_id, received=received)
        return await self._accept(message, request_id=request_id, received=received)

    async def _saved(self, saved: CheckpointSaved, *, request_id: RequestId, received: Received) -> RequestRecord:
        folder = CampaignFolder.of(self._settings.root_path, saved.hero_id, saved.campaign_id)
        # It may be gone by now; that matters only if it is to be analysed.
        path, step = resolve(self._settings, folder, path=saved.checkpoint_path, step=saved.checkpoint_step)
        rules = self._settings.policy_for(saved.hero_id, saved.campaign_id)
        seen = policy.Observation(
            step=step,
            path=str(path),
            metrics=saved.metrics,
            skills=saved.skills,
            skill_samples=saved.skill_samples,
            level=saved.level,
            model_ref=saved.model_ref,
        )
        record = await self._change_campaign(saved, lambda record: policy.observe(record, seen, policy=rules))
        if saved.skills:
            await keep_scores(folder, record)
        entry = policy.find(record, step)
        return await self._decide(saved, entry, request_id=request_id, received=received)

    async def _evaluated(
        self, evaluated: SkillEvaluated, *, request_id: RequestId, received: Received
    ) -> RequestRecord:
        rules = self._settings.policy_for(evaluated.hero_id, evaluated.campaign_id)
        record = await self._change_campaign(
            evaluated, lambda record: policy.observe_skill(record, evaluated, policy=rules)
        )
        folder = CampaignFolder.of(self._settings.root_path, evaluated.hero_id, evaluated.campaign_id)
        await keep_scores(folder, record)
        entry = policy.find(record, evaluated.checkpoint_step)
        if entry is not None and not entry.path:
            # The score came before its checkpoint; checkpoint.saved will find the level-up noted.
            return self._skipped(request_id, received, "checkpoint not announced yet")
        return await self._decide(evaluated, entry, request_id=request_id, received=received)

    async def _decide(
        self,
        message: CheckpointSaved | SkillEvaluated,
        entry: SeenCheckpoint | None,
        *,
        request_id: RequestId,
        received: Received,
    ) -> RequestRecord:
        rules = self._settings.policy_for(message.hero_id, message.campaign_id)
        if entry is None:
            return self._skipped(request_id, received, "older than what the campaign's record keeps")
        decision = policy.decide(entry, rules)
        if not decision.is_wanted:
            return self._skipped(request_id, received, decision.reason)
        request = AnalysisRequested(
            hero_id=message.hero_id,
            campaign_id=message.campaign_id,
            checkpoint_path=entry.path,
            checkpoint_step=entry.step,
            model_ref=entry.model_ref,
            priority="low",
            compute_activations=rules.compute_activations,
        )
        if job := await self._admission.repeated(entry, request):
            return _to_do(job, received, request_id=request_id)
        return await self._accept(request, request_id=request_id, received=received)

    async def _accept(self, request: AnalysisRequested, *, request_id: RequestId, received: Received) -> RequestRecord:
        await self._until_whole(request, received)
        job = await self._admission.decide(
            request, request_id=request_id, received=announcements.as_received(received.data)
        )
        return _to_do(job, received, request_id=request_id)

    async def _until_whole(self, request: AnalysisRequested, received: Received) -> None:
        """Nothing, once what is asked for may be examined.

        Raises:
            CheckpointNotReady: It is being written.
            PermanentError: It is not there, or not whole after all.
        """
        folder = CampaignFolder.of(self._settings.root_path, request.hero_id, request.campaign_id)
        is_announced = received.subject != subjects.ANALYSIS_REQUESTED
        for path, step in _asked_for(request):
            found, known = resolve(self._settings, folder, path=path, step=step)
            await asyncio.to_thread(self._waiting.check, found, since=received.time, is_announced=is_announced)
            if is_announced:
                await self._until_comparable(request, known, received)

    async def _until_comparable(self, request: AnalysisRequested, step: int, received: Received) -> None:
        """Nothing, once no checkpoint that was announced before this one, and is its reference, is still waited for.

        Raises:
            CheckpointNotReady: One is; without it this one would be compared with an older one, or with none.
        """
        awaited = await self._admission.awaited_reference(request, step)
        if awaited is None:
            return
        if await asyncio.to_thread(self._waiting.expects, Path(awaited.path), since=received.time):
            msg = f"checkpoint {step} is compared with checkpoint {awaited.step}, which is not whole yet"
            raise CheckpointNotReady(msg)

    async def _change_campaign(self, message: CheckpointSaved | SkillEvaluated, step: Any) -> CampaignRecord:
        empty = CampaignRecord(hero_id=message.hero_id, campaign_id=message.campaign_id)
        key = campaign_key(message.hero_id, message.campaign_id)
        record = await self._books.campaigns.change(key, lambda record: step(record or empty))
        return record or empty

    def _skipped(self, request_id: RequestId, received: Received, reason: str) -> RequestRecord:
        return RequestRecord(
            request_id=request_id,
            state="skipped",
            reason=reason,
            digest=digest_of(received.subject, received.data),
            at=stamp(datetime.now(UTC)),
        )

    # Then it is carried out, each step repeatable, and the message ends.

    async def _queue(self, decided: RequestRecord, job: Job, received: Received) -> None:
        message = decode(received.subject, received.data)
        force = isinstance(message, AnalysisRequested) and message.force
        try:
            record = await self._admission.admit(job, request_id=decided.request_id, force=force)
        except TemporaryError:
            raise
        except Exception as error:  # noqa: BLE001 -- see _coded
            refusal = _refused(await _coded(error, received), received, request_id=decided.request_id)
            await self._end(await self._instead(decided, refusal), received)
            return
        await log.ainfo(
            "accepted",
            request_id=decided.request_id,
            job_key=record.job.job_key,
            step=record.job.target.step,
            state=record.state,
        )
        await self._instead(decided, replace(decided, state="accepted", job=None, job_key=record.job.job_key))
        await received.ack()

    async def _refuse(self, decided: RequestRecord, received: Received) -> None:
        """Dead letter, ``analysis.failed``, the record, the end of the message."""
        request_id = decided.request_id
        reason = decided.error or EventError(code=InternalError.code, message="no reason recorded")
        event = announcements.refused(reason, request_id=request_id, body=received.data, now=datetime.now(UTC))
        await bury(self._bus, received.data, origin=Origin.of(received), error=reason, message_id=f"{request_id}:dead")
        await announce(self._bus, event, message_id=f"{request_id}:refused")
        await self._instead(decided, replace(decided, state="refused"))
        await log.awarning("refused", request_id=request_id, code=reason.code, reason=reason.message)
        await received.term(reason.code)

    async def _instead(self, decided: RequestRecord, outcome: RequestRecord) -> RequestRecord:
        """What stands once the outcome took the decision's place, if that was still there."""
        stands = await self._books.requests.change(
            decided.request_id, lambda record: outcome if record is None or record == decided else record
        )
        return stands or outcome


async def _coded(error: Exception, received: Received) -> PermanentError:
    """Why a message cannot be used. A defect of ours must not stop the loop, and repeating would repeat the defect."""
    if isinstance(error, PermanentError):
        return error
    await log.aexception("intake failed", subject=received.subject, sequence=received.sequence)
    return InternalError(f"{type(error).__name__}: {error}; this is a defect, the daemon's log has the traceback")


def _to_do(job: Job, received: Received, *, request_id: RequestId) -> RequestRecord:
    """The decision to run a job, or to join it."""
    return RequestRecord(
        request_id=request_id,
        state="received",
        job=job,
        job_key=job.job_key,
        digest=digest_of(received.subject, received.data),
        at=stamp(datetime.now(UTC)),
    )


def _refused(error: PermanentError, received: Received, *, request_id: RequestId) -> RequestRecord:
    """The decision to refuse a message."""
    return RequestRecord(
        request_id=request_id,
        state="received",
        error=EventError(code=error.code, message=str(error)),
        digest=digest_of(received.subject, received.data),
        at=stamp(datetime.now(UTC)),
    )


def _asked_for(request: AnalysisRequested) -> Iterator[tuple[str | None, int | None]]:
    """Path and step of what is analysed; a reference was analysed before, or is told as unavailable."""
    if request.job_type == "layer_drift":
        yield request.target_checkpoint_path, request.target_checkpoint_step
    else:
        yield request.checkpoint_path, request.checkpoint_step


def _id_from(received: Received) -> RequestId:
    """The id of a message that brings none: from its time and its place in its stream."""
    milliseconds = int(received.time.timestamp() * 1000)
    return RequestId(ulid_from(milliseconds, f"{received.stream}:{received.sequence}"))
