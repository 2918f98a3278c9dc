"""Jobs over HTTP: ask, look, take back. What is asked goes to the bus as it would from the command line."""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
from litestar import Request, Response, Router, delete, get, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import OpenAPIMediaType, Operation, RequestBody, Schema
from litestar.params import FromPath, QueryParameter
from litestar.types import ControllerRouterHandler

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.bus.connection import Bus
from archaeologist.bus.publisher import publish
from archaeologist.bus.records import KEY
from archaeologist.daemon import control
from archaeologist.daemon.books import Books
from archaeologist.daemon.decoding import decode, digest_of, flattened, id_reused, json_object
from archaeologist.daemon.locating import mapped, output_place
from archaeologist.daemon.pulse import QueueGauge
from archaeologist.errors import (
    ArchaeologistError,
    CampaignMissing,
    HeroUnclear,
    JobUnknown,
    MediaTypeUnsupported,
    MessageMalformed,
    PermanentError,
    TemporaryError,
)
from archaeologist.paths import resolve_under
from archaeologist.settings import Settings
from archaeologist.web.analysis import responses
from archaeologist.web.campaigns import find
from archaeologist.web.link import Link
from archaeologist.web.listings import following
from archaeologist.web.refusals import headers_of, status_of
from contracts import subjects
from contracts.documents import json_schema
from contracts.http import Answer, JobEntry, Jobs, JobStatus, Problem
from contracts.messages import AnalysisRequested, EventError
from contracts.records import JobRecord, JobState, RequestRecord
from contracts.ulid import new_ulid

PUBLISH_SECONDS: Final = 4.0
"""Below the five seconds after which the specification's client gives up."""
INTAKE_SECONDS: Final = 0.8
INTAKE_LOOK_SECONDS: Final = 0.03
"""Intake takes milliseconds; whoever asks hears what became of it, where a daemon runs."""
REMEMBERED: Final = 10_000
PAGE: Final = 500
DEFAULT_PAGE: Final = 50
NOT_A_REQUEST: Final = (MessageMalformed, CampaignMissing, HeroUnclear)
"""What cannot even be told whose request it is; every other refusal is an answer."""
PATHS: Final = (
    "checkpoint_path",
    "reference_checkpoint_path",
    "base_checkpoint_path",
    "target_checkpoint_path",
)

JobLimit = Annotated[int, QueryParameter(ge=1, le=PAGE, description="Most entries in one reply.")]
JobOffset = Annotated[int, QueryParameter(ge=0, le=10**9, description="Entries to pass over.")]
State = Annotated[JobState | None, QueryParameter(description="Only these.")]
Whose = Annotated[str | None, QueryParameter(description="Only this hero's, or this campaign's.")]


class Desk:
    """What the routes of jobs need, and the requests that were published here of late.

    Args:
        settings: For roots and path mappings.
        link: The bus.
    """

    def __init__(self, settings: Settings, link: Link) -> None:
        self.settings = settings
        self.link = link
        self.queue = QueueGauge()
        self._published: OrderedDict[str, None] = OrderedDict()

    def remember(self, request_id: str) -> None:
        """Notes a request that is on the bus: until intake takes it, no record has it."""
        self._published[request_id] = None
        while len(self._published) > REMEMBERED:
            self._published.popitem(last=False)

    def has_published(self, request_id: str) -> bool:
        """Whether a request went out here."""
        return request_id in self._published


@dataclass
class AskOperation(Operation):
    """The route's description with its body, which the handler reads itself: a refused one is answered, not failed."""

    def __post_init__(self) -> None:
        """Adds the body."""
        request = json_schema(subjects.ANALYSIS_REQUESTED)
        properties = request["anyOf"][0]["properties"]
        # Without its type: what is not an object is answered with the rule, as every refusal.
        payload = Schema(description="An object with the same fields, as the specification nests them.")
        described = {name: Schema(description=_words(field)) for name, field in properties.items()}
        schema = Schema(
            type="object",  # type: ignore[arg-type]
            description="analysis.requested, flat or with its fields under payload; contracts/schemas has its rules.",
            properties={**described, "payload": payload},
        )
        self.request_body = RequestBody(content={"application/json": OpenAPIMediaType(schema=schema)}, required=True)


def _words(field: Mapping[str, Any]) -> str:
    return str(field.get("description", ""))


def _answers() -> dict[int, ResponseSpec]:
    described = {
        200: "Accepted, or refused with the rule.",
        400: "Not a JSON object.",
        503: "The bus is down; nothing was sent, or it is not known whether it was stored.",
    }
    problems = {401: "The token is missing or wrong.", 403: "Another site.", 413: "Too large.", 415: "Not JSON."}
    return {
        **{
            status: ResponseSpec(Answer, generate_examples=False, description=text)
            for status, text in described.items()
        },
        **{
            status: ResponseSpec(Problem, generate_examples=False, description=text)
            for status, text in problems.items()
        },
    }


@post("/", status_code=200, responses=_answers(), operation_class=AskOperation)
async def ask(request: Request[Any, Any, Any], desk: NamedDependency[Desk]) -> Response[Answer]:
    """Asks for an analysis: publishes ``analysis.requested``."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        msg = f"Content-Type {kind[:100]!r}; send the request as application/json"
        raise MediaTypeUnsupported(msg)
    body = await request.body()
    request_id: str | None = None
    try:
        request_id, outgoing = _checked(body, desk.settings)
        bus = desk.link.bus()
        digest = digest_of(subjects.ANALYSIS_REQUESTED, outgoing)
        # With the digest: another body under the same id reaches intake, which refuses it, and is not passed over.
        message_id = f"{request_id}:{digest[:16]}"
        await publish(
            bus, subjects.ANALYSIS_REQUESTED, outgoing, message_id=message_id, deadline_seconds=PUBLISH_SECONDS
        )
    except PermanentError as error:
        return _refusal(error, request_id, status=400 if isinstance(error, NOT_A_REQUEST) else 200)
    except TemporaryError as error:
        return _refusal(error, request_id, status=status_of(error))
    desk.remember(request_id)
    return Response(await _intake_says(bus, request_id, digest=digest))


@get("/", responses=responses(Jobs, has_etag=False))
async def list_jobs(
    desk: NamedDependency[Desk],
    *,
    status: State = None,
    hero_id: Whose = None,
    campaign_id: Whose = None,
    limit: JobLimit = DEFAULT_PAGE,
    offset: JobOffset = 0,
) -> Response[Jobs]:
    """Jobs, the newest first."""
    memory = Books.on(desk.link.bus(), deadline_seconds=control.DEADLINE_SECONDS)
    records = [
        record
        for record in (await memory.jobs.all()).values()
        if status in {None, record.state}
        and hero_id in {None, record.job.hero_id}
        and campaign_id in {None, record.job.campaign_id}
    ]
    newest = sorted(records, key=lambda record: (record.queued_at, record.job.job_key), reverse=True)
    page = newest[offset : offset + limit]
    found = Jobs(
        jobs=tuple(entry(record.job.job_id, job=record) for record in page),
        count=len(records),
        next_offset=following(offset, len(page), len(records)),
    )
    return Response(found, headers=UNCACHED)


@get("/{job_id:str}", responses=responses(JobEntry, has_etag=False))
async def read_job(desk: NamedDependency[Desk], job_id: FromPath[str]) -> Response[JobEntry]:
    """One job, by the id of a request or by its key."""
    request, job = await control.find(desk.link.bus(), _identifier(job_id))
    if request is None and job is None and not desk.has_published(job_id):
        raise _unknown(job_id)
    return Response(entry(job_id, request=request, job=job), headers=UNCACHED)


@delete("/{job_id:str}", status_code=200, responses=responses(Answer, has_etag=False))
async def cancel_job(
    request: Request[Any, Any, Any], desk: NamedDependency[Desk], job_id: FromPath[str]
) -> Response[Answer]:
    """Takes a job back: a waiting one at once, a running one by stopping it."""
    by = f"http:{request.client.host if request.client else 'unknown'}"
    try:
        record = await control.cancel(desk.link.bus(), _identifier(job_id), by=by)
    except JobUnknown as error:
        raise _unknown(job_id) from error
    return Response(_cancellation(job_id, record), headers=UNCACHED)


UNCACHED: Final = {"Cache-Control": "no-store"}


def entry(job_id: str, *, request: RequestRecord | None = None, job: JobRecord | None = None) -> JobEntry:
    """What is known of a job, or of a request that led to none (yet)."""
    if job is None:
        return JobEntry(
            job_id=job_id,
            status=_request_status(request),
            job_key=request.job_key if request else None,
            error=request.error if request else None,
            reason=request.reason if request else None,
        )
    made = job.job
    same = {name: getattr(job, name) for name in _SAME}
    return JobEntry(
        job_id=job_id,
        status=job.state,
        job_key=made.job_key,
        job_type=made.job_type,
        hero_id=made.hero_id,
        campaign_id=made.campaign_id,
        checkpoint_step=made.target.step,
        checkpoint_path=made.target.path,
        reference_step=made.reference.step if made.reference else None,
        reference_path=made.reference.path if made.reference else None,
        priority=made.priority,
        worker=job.owner,
        notes=made.notes,
        **same,
    )


_SAME: Final = tuple(
    {field.name for field in msgspec.structs.fields(JobEntry)}
    & {field.name for field in msgspec.structs.fields(JobRecord)}
)
"""Fields that an entry has as the record has them."""


def routes() -> list[ControllerRouterHandler]:
    """The handlers of this module."""
    return [Router("/api/jobs", tags=["jobs"], route_handlers=[ask, list_jobs, read_job, cancel_job])]


def _checked(body: bytes, settings: Settings) -> tuple[str, bytes]:
    """The request's id and what is published, once it has passed what can be said without the daemon.

    Raises:
        PermanentError: Intake would refuse it.
    """
    fields = _with_hero(flattened(json_object(body)), settings)
    given = fields.get("request_id")
    request_id = new_ulid() if given is None else given
    # Sorted: the same fields in another order are the same request.
    outgoing = msgspec.json.encode({**fields, "request_id": request_id}, order="sorted")
    message = decode(subjects.ANALYSIS_REQUESTED, outgoing)
    assert isinstance(message, AnalysisRequested)  # noqa: S101 -- what this subject decodes to
    folder = CampaignFolder.of(settings.root_path, message.hero_id, message.campaign_id)
    for name in PATHS:
        if (path := getattr(message, name)) is not None:
            resolve_under(folder.checkpoints / mapped(path, settings.paths), settings.allowed_roots)
    if message.output_path is not None:
        output_place(settings, message.output_path)
    return request_id, outgoing


def _with_hero(fields: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """The fields of a request; a hero that is left out is the campaign's only one."""
    campaign_id = fields.get("campaign_id")
    if fields.get("hero_id") is not None or not isinstance(campaign_id, str):
        return fields
    return {**fields, "hero_id": find(settings, campaign_id, None).hero_id}


async def _intake_says(bus: Bus, request_id: str, *, digest: str) -> Answer:
    """What intake made of a request that is on the bus; ``received`` where it says nothing soon."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + INTAKE_SECONDS
    request: RequestRecord | None = None
    job: JobRecord | None = None
    while loop.time() < deadline:
        try:
            request, job = await asyncio.wait_for(control.find(bus, request_id), timeout=deadline - loop.time())
        except (TemporaryError, TimeoutError):
            break
        if request is not None and request.digest not in {None, digest}:
            return _refused(id_reused(request_id), job_id=None)
        if _request_status(request) != "received" or job is not None:
            break
        await asyncio.sleep(INTAKE_LOOK_SECONDS)
    return _told(request_id, request, job)


def _told(request_id: str, request: RequestRecord | None, job: JobRecord | None) -> Answer:
    if request is not None and request.error is not None and job is None:
        return _refused(request.error, job_id=request_id)
    status = job.state if job is not None else _request_status(request)
    words = {
        "received": "the request is on the bus; a daemon that runs takes it, once its checkpoint is whole",
        "queued": "the job is queued",
        "done": "the same job is done already; send force: true to run it again",
        "failed": "the same job has failed; GET /api/jobs/{id} says why",
        "cancelled": "the same job was cancelled",
    }
    return Answer(accepted=True, job_id=request_id, message=words.get(status, f"the job is {status}"), status=status)


def _refused(error: EventError | ArchaeologistError, *, job_id: str | None) -> Answer:
    text = error.message if isinstance(error, EventError) else str(error)
    return Answer(accepted=False, job_id=job_id, message=text, status="refused", code=error.code, error=text)


def _request_status(request: RequestRecord | None) -> JobStatus:
    if request is not None and request.state in {"refused", "skipped"}:
        return "refused" if request.state == "refused" else "skipped"
    return "received"


def _refusal(error: ArchaeologistError, request_id: str | None, *, status: int) -> Response[Answer]:
    text = str(error)
    if isinstance(error, TemporaryError):
        text = f"{text} To ask again without asking twice, send request_id {request_id!r}."
    answer = Answer(
        accepted=False,
        job_id=request_id if isinstance(error, TemporaryError) else None,
        message=text,
        status=None,
        code=error.code,
        error=text,
    )
    return Response(answer, status_code=status, headers=headers_of(status))


def _cancellation(job_id: str, record: JobRecord) -> Answer:
    words = {
        "cancelled": "the job is cancelled",
        "running": "the job is running; its worker was told to stop",
    }
    message = words.get(record.state, f"the job is {record.state} already; nothing to cancel")
    return Answer(accepted=record.state in words, job_id=job_id, message=message, status=record.state)


def _identifier(job_id: str) -> str:
    """The id, if it can be one.

    Raises:
        JobUnknown: It cannot.
    """
    if len(job_id) > 128 or not KEY.fullmatch(job_id):  # noqa: PLR2004 -- longer than any id
        raise _unknown(job_id)
    return job_id


def _unknown(job_id: str) -> JobUnknown:
    return JobUnknown(control.unknown(job_id, listing="GET /api/jobs"))
