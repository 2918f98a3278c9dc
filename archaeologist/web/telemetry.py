"""The daemon's own listener: ``/metrics`` for Prometheus, ``/health`` and ``/ready`` for a service manager or balancer.

The command line starts it beside the daemon where ``metrics.port`` is set. It has nothing else to tell and changes
nothing, so it is a plain ASGI application behind the web edge's guard.
"""

import asyncio
import socket
from typing import Final

import msgspec
import structlog
from litestar.types import ASGIApp, Receive, Scope, Send
from msgspec.structs import replace

from archaeologist import metrics
from archaeologist.daemon.pulse import Pulse, QueueGauge
from archaeologist.errors import RouteMissing
from archaeologist.settings import Settings
from archaeologist.web.guard import Guard, Rules, names_of
from archaeologist.web.refusals import answer
from archaeologist.web.service import address_of, listen, run_server
from contracts.http import Health

log = structlog.get_logger(__name__)

CONNECTIONS: Final = 32


def create(settings: Settings, pulse: Pulse) -> ASGIApp:
    """The application behind its guard."""
    queue = QueueGauge()

    async def application(scope: Scope, _receive: Receive, send: Send) -> None:
        match scope["path"]:
            case "/metrics":
                await queue.refresh(pulse.bus)
                await _reply(send, metrics.exposition(), kind=metrics.CONTENT_TYPE)
            case "/health":
                await _tell(send, None)
            case "/ready":
                await _tell(send, pulse.trouble(now=asyncio.get_running_loop().time()))
            case path:
                await answer(send, RouteMissing(f"{path[:100]!r} is not served; /metrics, /health and /ready are"))

    names = names_of(settings.metrics.host, socket.gethostname(), *settings.web.allowed_hosts)
    return Guard(application, Rules(names=names))


def listener(settings: Settings) -> socket.socket:
    """A socket that listens where ``metrics.host`` and ``metrics.port`` say.

    Raises:
        ListenImpossible: The port is taken, or the address is not this machine's.
    """
    ours = settings.metrics
    return listen(replace(settings.web, host=ours.host, port=ours.port), setting="metrics.port")


async def serve(settings: Settings, listening: socket.socket, pulse: Pulse, *, stop: asyncio.Event) -> None:
    """Answers until ``stop``."""
    await log.ainfo("metrics ready", address=address_of(listening))
    await run_server(create(settings, pulse), listening, connections=CONNECTIONS, stop=stop)


async def _tell(send: Send, trouble: str | None) -> None:
    health = Health(status="degraded" if trouble else "ok", reason=trouble)
    await _reply(send, msgspec.json.encode(health), kind="application/json", status=503 if trouble else 200)


async def _reply(send: Send, body: bytes, *, kind: str, status: int = 200) -> None:
    headers = [
        (b"content-type", kind.encode()),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
