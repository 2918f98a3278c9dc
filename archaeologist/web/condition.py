"""How this server is: for a page's lamp, a balancer, a service manager."""

import asyncio
from collections import Counter
from datetime import UTC, datetime
from typing import get_args

from litestar import Response, get
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.types import ControllerRouterHandler

import archaeologist
from archaeologist import metrics
from archaeologist.bus.log import last_sequence
from archaeologist.daemon.books import Books
from archaeologist.daemon.control import DEADLINE_SECONDS, workers
from archaeologist.daemon.workers import seen
from archaeologist.errors import TemporaryError, TopologyMissing
from archaeologist.web.analysis import responses
from archaeologist.web.events import Streams
from archaeologist.web.jobs import UNCACHED, Desk
from contracts.http import Condition, Health, Status, WorkerEntry, Workers


@get("/health", tags=["condition"])
async def read_health() -> Response[Health]:
    """Whether this process answers."""
    return Response(Health(status="ok"), headers=UNCACHED)


@get(
    "/ready",
    tags=["condition"],
    responses={503: ResponseSpec(Health, generate_examples=False, description="Files are read, jobs are not taken.")},
)
async def read_ready(desk: NamedDependency[Desk]) -> Response[Health]:
    """Whether requests for jobs are taken too: 503 while the bus is down."""
    bus = desk.link.status
    if bus.connected:
        return Response(Health(status="ok"), headers=UNCACHED)
    reason = f"no connection to the bus at {bus.url}; files are read, jobs are not taken"
    return Response(Health(status="degraded", reason=reason), status_code=503, headers=UNCACHED)


@get("/api/status", tags=["condition"])
async def read_status(desk: NamedDependency[Desk], streams: NamedDependency[Streams]) -> Response[Status]:
    """The bus, the queue, the live streams."""
    found = Status(
        version=archaeologist.__version__,
        bus=desk.link.status,
        streams=streams.count,
        max_streams=desk.settings.web.max_streams,
        log_sequence=await _log_sequence(desk),
        queue=await _queue(desk),
        workers=await _conditions(desk),
    )
    return Response(found, headers=UNCACHED)


@get("/api/workers", tags=["condition"], responses=responses(Workers, has_etag=False))
async def read_workers(desk: NamedDependency[Desk]) -> Response[Workers]:
    """Every worker: its roles, its jobs and how far they are, its free slots, its GPU, and whether it is there."""
    found = await _workers(desk)
    return Response(Workers(workers=found, count=len(found)), headers=UNCACHED)


@get(
    "/metrics",
    tags=["condition"],
    media_type="text/plain",
    responses={
        200: ResponseSpec(str, generate_examples=False, media_type="text/plain", description="Prometheus's text form.")
    },
)
async def read_metrics(desk: NamedDependency[Desk], streams: NamedDependency[Streams]) -> Response[bytes]:
    """What Prometheus scrapes: docs/operations.md names every measure."""
    await desk.queue.refresh(desk.link.bus() if desk.link.is_connected else None)
    metrics.set_streams(streams.count)
    return Response(metrics.exposition(), media_type=metrics.CONTENT_TYPE, headers=UNCACHED)


def routes() -> list[ControllerRouterHandler]:
    """The handlers of this module."""
    return [read_health, read_ready, read_status, read_workers, read_metrics]


async def _workers(desk: Desk) -> tuple[WorkerEntry, ...]:
    now = datetime.now(UTC)
    return tuple(seen(record, now=now) for record in await workers(desk.link.bus()))


async def _conditions(desk: Desk) -> dict[str, int] | None:
    """How many workers are idle, busy, ending, silent."""
    try:
        found = Counter(worker.condition for worker in await _workers(desk))
    except TemporaryError:
        return None
    return {name: found[name] for name in get_args(Condition)}


async def _log_sequence(desk: Desk) -> int | None:
    """How far the Battle Log goes."""
    try:
        return await asyncio.wait_for(last_sequence(desk.link.bus()), DEADLINE_SECONDS)
    except (TemporaryError, TopologyMissing, TimeoutError):
        return None


async def _queue(desk: Desk) -> dict[str, dict[str, int]] | None:
    """How many jobs wait and are with a worker, by type."""
    try:
        backlog = await Books.on(desk.link.bus(), deadline_seconds=DEADLINE_SECONDS).queue.backlog()
    except TemporaryError:
        return None
    found: dict[str, dict[str, int]] = {}
    for (job_type, _), lying in backlog.items():
        counts = found.setdefault(job_type, {"waiting": 0, "in_flight": 0})
        counts["waiting"] += lying.waiting
        counts["in_flight"] += lying.in_flight
    return found
