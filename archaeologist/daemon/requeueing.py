"""A second chance for what failed: dead letters and failed jobs become requests again.

Used by the command line, on any machine. Each letter leads to one request, whose id comes from the letter's place, so
asking twice asks once. A job that failed is asked for anew with ``force``; a message that was refused is sent as it
came. What cannot be, a letter that is no JSON for instance, is left out with the reason.
"""

from collections.abc import Collection
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from archaeologist.bus.connection import Bus
from archaeologist.bus.letters import letters, read_letter
from archaeologist.bus.publisher import publish
from archaeologist.daemon import control
from archaeologist.daemon.books import Books
from archaeologist.daemon.decoding import flattened, json_object
from archaeologist.errors import JobUnknown, MessageMalformed, PermanentError
from archaeologist.moments import moment_or_epoch
from contracts import subjects
from contracts.messages import Job, RequestId
from contracts.records import DeadLetter, JobRecord, Requeued
from contracts.ulid import ulid_from

INCOMING: Final = (*subjects.CHECKPOINTS_SUBJECTS, *subjects.REQUESTS_SUBJECTS)
MAX_SEQUENCE_DIGITS: Final = 19
"""Longer is a job's key that happens to have digits only."""


async def requeue(bus: Bus, identifiers: Collection[str] = (), *, code: str | None = None) -> list[Requeued]:
    """What became of each letter and job.

    Args:
        bus: The connection.
        identifiers: Sequences of dead letters, ids of requests, keys of jobs; empty: every letter.
        code: Of all letters only those with this error code.

    Raises:
        JobUnknown: One of the identifiers names nothing that failed.
        BusUnavailable: The server is away.
    """
    desk = _Desk(bus)
    known = await letters(bus)
    if not identifiers:
        chosen = [letter for letter in known if code in {None, letter.code}]
        return [await desk.requeue_letter(letter, newest=_newest(known)) for letter in chosen]
    return [await desk.requeue_named(identifier, known) for identifier in dict.fromkeys(identifiers)]


def request_for(job: Job) -> dict[str, Any]:
    """The fields of a request for a job that failed: the same checkpoints and options, run whatever was before.

    A reference that a policy chose is chosen again by the same rule; one that was named is named again.
    """
    asked, options = flattened(job.request), job.options
    is_drift = job.job_type == "layer_drift"
    fields = {
        "hero_id": job.hero_id,
        "campaign_id": job.campaign_id,
        "job_type": job.job_type,
        "priority": job.priority,
        "force": True,
        "model_ref": options.model_ref,
        "output_path": options.output_path,
        **_side("target_checkpoint" if is_drift else "checkpoint", job.target.path, job.target.step),
    }
    if job.reference is not None and (is_drift or job.reference_is_explicit):
        name = "base_checkpoint" if is_drift else "reference_checkpoint"
        fields |= _side(name, job.reference.path, job.reference.step)
    if is_drift:
        return {**fields, "metrics": list(options.metrics)}
    return {
        **fields,
        "reference": asked.get("reference"),
        "compute_drift": asked.get("compute_drift"),
        "compute_activations": options.compute_activations,
        "probe_dataset": options.probe_dataset,
        "max_probe_tokens": options.max_probe_tokens,
        "analyses": list(options.analyses),
    }


class _Desk:
    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._books = Books.on(bus, deadline_seconds=control.DEADLINE_SECONDS)

    async def requeue_named(self, identifier: str, known: list[DeadLetter]) -> Requeued:
        """The letter with this sequence, or the newest of the request or job with this id."""
        if identifier.isdecimal() and len(identifier) <= MAX_SEQUENCE_DIGITS:
            found = [letter for letter in known if letter.sequence == int(identifier)]
            job = None
        else:
            _, job = await control.find(self._bus, identifier)
            names = {identifier, job.job.job_key if job else identifier}
            found = [letter for letter in known if _job_key(letter) in names or letter.owner in names]
        if found:
            return await self.requeue_letter(found[-1], newest=_newest(known))
        if job is None:
            msg = f"{identifier!r} names no dead letter and no job; `archaeologist jobs dead` lists the letters"
            raise JobUnknown(msg)
        return await self._requeue_job(job, sequence=None)

    async def requeue_letter(self, letter: DeadLetter, *, newest: dict[str, int]) -> Requeued:
        """One letter; of several of one job the newest counts."""
        if key := _job_key(letter):
            entry = await self._books.jobs.get(key)
            if newest.get(key, letter.sequence) != letter.sequence:
                return _left_out(letter.sequence, letter.code, f"letter {newest[key]} is a later one of the same job")
            if entry is not None:
                return await self._requeue_job(entry.value, sequence=letter.sequence)
        body = await read_letter(self._bus, letter.sequence)
        try:
            subject, fields = _again(letter, body or b"")
        except PermanentError as error:
            return _left_out(letter.sequence, letter.code, str(error))
        asked = await self._ask(subject, fields, source=f"{subjects.DEAD}:{letter.sequence}", at=letter.at)
        return replace(asked, sequence=letter.sequence, code=letter.code)

    async def _requeue_job(self, record: JobRecord, *, sequence: int | None) -> Requeued:
        code = record.error.code if record.error else None
        if record.state != "failed":
            return _left_out(sequence, code, f"job {record.job.job_key} is {record.state} by now")
        asked = await self._ask(
            subjects.ANALYSIS_REQUESTED,
            request_for(record.job),
            source=f"{record.job.job_key}:{record.job.run}",
            at=record.finished_at or record.queued_at,
        )
        return replace(asked, sequence=sequence, code=code)

    async def _ask(self, subject: str, fields: dict[str, Any], *, source: str, at: str) -> Requeued:
        """Publishes a request under the id that follows from what it is made of, if that was not done before."""
        milliseconds = int(moment_or_epoch(at).timestamp() * 1000)
        request_id = RequestId(ulid_from(milliseconds, f"requeue:{source}"))
        is_known = await self._books.requests.get(request_id) is not None
        if not is_known:
            body = msgspec.json.encode({**fields, "request_id": request_id})
            published = await publish(
                self._bus, subject, body, message_id=request_id, deadline_seconds=control.DEADLINE_SECONDS
            )
            is_known = published.is_duplicate
        return Requeued(action="asked_before" if is_known else "asked", request_id=request_id)


def _again(letter: DeadLetter, body: bytes) -> tuple[str, dict[str, Any]]:
    """Where a letter's message is sent again, and what.

    Raises:
        PermanentError: It cannot be.
    """
    if letter.subject in INCOMING:
        return letter.subject, json_object(body)
    try:
        job = msgspec.json.decode(body, type=Job)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        msg = f"it is from {letter.subject!r} and no job ({error}); publish what was meant anew"
        raise MessageMalformed(msg) from error
    return subjects.ANALYSIS_REQUESTED, request_for(job)


def _newest(known: list[DeadLetter]) -> dict[str, int]:
    """Sequence of the newest letter of each job."""
    return {key: letter.sequence for letter in known if (key := _job_key(letter))}


def _job_key(letter: DeadLetter) -> str | None:
    """The job that a letter is of; None: it is of a message from which no job was made."""
    prefix = subjects.JOBS_SUBJECTS[0].rstrip(">")
    return letter.subject.rpartition(".")[2] if letter.subject.startswith(prefix) else None


def _side(name: str, path: str, step: int) -> dict[str, Any]:
    return {f"{name}_path": path, f"{name}_step": step}


def _left_out(sequence: int | None, code: str | None, reason: str) -> Requeued:
    return Requeued(sequence=sequence, code=code, action="left_out", reason=reason)
