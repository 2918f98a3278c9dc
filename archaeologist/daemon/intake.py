"""The daemon's ear: messages from trainers and people become jobs, skipped checkpoints or refusals.

Whatever comes, the loop goes on: a message that cannot be used becomes one ``analysis.failed`` and one dead letter. A
message is acknowledged only when everything that follows from it is recorded, so it may be handled twice; each step
gives the same the second time.
"""

import asyncio
import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import structlog

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.bus.connection import Bus
from archaeologist.bus.consumer import Received
from archaeologist.daemon import announcements, policy
from archaeologist.daemon.admission import Admission
from archaeologist.daemon.books import Books, campaign_key
from archaeologist.daemon.dead_letters import Origin, bury
from archaeologist.daemon.decoding import Message, decode, request_id_of
from archaeologist.daemon.herald import announce
from archaeologist.daemon.lifecycle import stamp
from archaeologist.daemon.locating import resolve
from archaeologist.daemon.summarizing import keep_scores
from archaeologist.daemon.waiting import Waiting
from archaeologist.errors import ArchaeologistError, CheckpointNotReady, InternalError, PermanentError, RequestIdReused
from archaeologist.settings import Settings
from contracts import subjects
from contracts.messages import AnalysisRequested, CheckpointSaved, EventError, RequestId, SkillEvaluated
from contracts.records import CampaignRecord, JobRecord, RequestRecord, SeenCheckpoint
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
            await self._handle(received, request_id=request_id)

    async def _handle(self, received: Received, *, request_id: RequestId) -> None:
        try:
            if await self._is_settled(request_id, received):
                await received.ack()
                return
            message = decode(received.subject, received.data)
            outcome = await self._admit(message, request_id=request_id, received=received)
        except PermanentError as error:
            await self._refuse(error, request_id=request_id, received=received)
            return
        except CheckpointNotReady as reason:
            await log.ainfo("waiting for a checkpoint", subject=received.subject, reason=str(reason))
            await received.nak(self._waiting.pause_seconds(received.time))
            return
        except ArchaeologistError:
            raise
        except Exception as error:  # noqa: BLE001 -- see the comment
            # A defect of ours must not stop the loop, and repeating the message would repeat the defect.
            await log.aexception("intake failed", subject=received.subject, sequence=received.sequence)
            msg = f"{type(error).__name__}: {error}; this is a defect, the daemon's log has the traceback"
            await self._refuse(InternalError(msg), request_id=request_id, received=received)
            return
        await self._settle(outcome, received)

    async def _is_settled(self, request_id: RequestId, received: Received) -> bool:
        """Whether this very message was handled before.

        Raises:
            RequestIdReused: The id belongs to another message.
        """
        entry = await self._books.requests.get(request_id)
        if entry is None:
            return False
        if entry.value.digest != _digest(received):
            msg = f"request_id {request_id!r} was used for another request; use a new id for each request"
            raise RequestIdReused(msg)
        return True

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
        if record := await self._admission.repeated(entry, request_id=request_id):
            return self._accepted(record, request_id=request_id, received=received)
        request = AnalysisRequested(
            hero_id=message.hero_id,
            campaign_id=message.campaign_id,
            checkpoint_path=entry.path,
            checkpoint_step=entry.step,
            model_ref=entry.model_ref,
            priority="low",
            compute_activations=rules.compute_activations,
        )
        return await self._accept(request, request_id=request_id, received=received)

    async def _accept(self, request: AnalysisRequested, *, request_id: RequestId, received: Received) -> RequestRecord:
        await self._until_whole(request, received)
        record = await self._admission.admit(
            request, request_id=request_id, received=announcements.as_received(received.data)
        )
        await log.ainfo(
            "accepted",
            request_id=request_id,
            job_key=record.job.job_key,
            step=record.job.target.step,
            state=record.state,
        )
        return self._accepted(record, request_id=request_id, received=received)

    async def _until_whole(self, request: AnalysisRequested, received: Received) -> None:
        """Nothing, once what is asked for may be examined.

        Raises:
            CheckpointNotReady: It is being written.
            PermanentError: It is not there, or not whole after all.
        """
        folder = CampaignFolder.of(self._settings.root_path, request.hero_id, request.campaign_id)
        is_announced = received.subject != subjects.ANALYSIS_REQUESTED
        for path, step in _asked_for(request):
            found, _ = resolve(self._settings, folder, path=path, step=step)
            await asyncio.to_thread(self._waiting.check, found, since=received.time, is_announced=is_announced)

    def _accepted(self, record: JobRecord, *, request_id: RequestId, received: Received) -> RequestRecord:
        return RequestRecord(
            request_id=request_id,
            state="accepted",
            job_key=record.job.job_key,
            digest=_digest(received),
            at=stamp(datetime.now(UTC)),
        )

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
            digest=_digest(received),
            at=stamp(datetime.now(UTC)),
        )

    async def _settle(self, outcome: RequestRecord, received: Received) -> None:
        await self._books.requests.create(outcome.request_id, outcome)
        await received.ack()

    async def _refuse(self, error: ArchaeologistError, *, request_id: RequestId, received: Received) -> None:
        """Dead letter, ``analysis.failed``, the record, the end of the message: in this order, each repeatable."""
        if isinstance(error, RequestIdReused):
            request_id = _id_from(received)
        reason = EventError(code=error.code, message=str(error))
        event = announcements.refused(reason, request_id=request_id, body=received.data, now=datetime.now(UTC))
        await bury(self._bus, received.data, origin=Origin.of(received), error=reason, message_id=f"{request_id}:dead")
        await announce(self._bus, event, message_id=f"{request_id}:refused")
        outcome = RequestRecord(
            request_id=request_id,
            state="refused",
            error=reason,
            digest=_digest(received),
            at=stamp(datetime.now(UTC)),
        )
        await self._books.requests.create(request_id, outcome)
        await log.awarning("refused", request_id=request_id, code=error.code, reason=str(error))
        await received.term(error.code)


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


def _digest(received: Received) -> str:
    return hashlib.sha256(received.subject.encode() + b"\0" + received.data).hexdigest()
