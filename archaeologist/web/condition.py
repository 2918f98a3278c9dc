"""How this server is: for a page's lamp, a balancer, a service manager."""

from litestar import Response, get
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.types import ControllerRouterHandler

import archaeologist
from archaeologist.daemon.books import Books
from archaeologist.daemon.control import DEADLINE_SECONDS
from archaeologist.errors import TemporaryError
from archaeologist.web.events import Streams
from archaeologist.web.jobs import UNCACHED, Desk
from contracts.http import Health, Status


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
        queue=await _queue(desk),
    )
    return Response(found, headers=UNCACHED)


def routes() -> list[ControllerRouterHandler]:
    """The handlers of this module."""
    return [read_health, read_ready, read_status]


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
