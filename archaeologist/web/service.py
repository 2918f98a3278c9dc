"""The API as a running server: its socket, its token, its connection to the bus, a clean end.

``serve`` is called by the command line, alone or beside the daemon in ``up``.
"""

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import structlog
import uvicorn
from litestar.types import ASGIApp
from msgspec.structs import replace

from archaeologist import tasks
from archaeologist.errors import ListenImpossible
from archaeologist.settings import Settings, WebSettings
from archaeologist.web.app import Parts, create
from archaeologist.web.guard import is_loopback

log = structlog.get_logger(__name__)

BACKLOG: Final = 128
GRACE_SECONDS: Final = 5
"""How long replies that are being sent may go on at the end."""
CONNECTIONS: Final = 200
"""Beside the live streams."""
TOKEN_FILE: Final = "web.token"  # noqa: S105 -- a name


def listen(
    settings: WebSettings, *, is_port_free_to_choose: bool = False, setting: str = "--port or web.port"
) -> socket.socket:
    """A socket that listens where the settings say.

    Args:
        settings: Address and port.
        is_port_free_to_choose: Where the port is taken, any other will do.
        setting: What the port is chosen with, for the error.

    Raises:
        ListenImpossible: The port is taken, or the address is not this machine's.
    """
    try:
        return _bound(settings, settings.port)
    except OSError as error:
        if is_port_free_to_choose and settings.port:
            return listen_on_any(settings)
        reason = error.strerror or error
        msg = (
            f"nothing can listen on {settings.host!r}, port {settings.port}: {reason}; stop what uses the port, or"
            f" choose another with {setting}"
        )
        raise ListenImpossible(msg) from error


def listen_on_any(settings: WebSettings) -> socket.socket:
    """A socket on any free port of the address; errors as for ``listen``."""
    return listen(replace(settings, port=0))


def address_of(listener: socket.socket) -> str:
    """The address that a person on this machine types."""
    host, port = listener.getsockname()[:2]
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 -- compared, not bound
    return f"http://{f'[{reachable}]' if ':' in reachable else reachable}:{port}"


def token_for(settings: Settings) -> str | None:
    """What a request that changes something must carry; None where only this machine is listened to and none is set.

    One that is made is kept in the state folder, so that what a person was told stays true.

    Raises:
        ListenImpossible: It cannot be kept.
    """
    if settings.web.token is not None or is_loopback(settings.web.host):
        return settings.web.token
    path = settings.state_path / TOKEN_FILE
    try:
        return _kept(path)
    except OSError as error:
        msg = f"the token cannot be kept in {str(path)!r}: {error.strerror or error}; set web.token"
        raise ListenImpossible(msg) from error


async def serve(settings: Settings, listener: socket.socket, *, token: str | None, stop: asyncio.Event) -> None:
    """Serves until ``stop``.

    Args:
        settings: All of them.
        listener: From ``listen``; closed at the end.
        token: From ``token_for``.
        stop: Ends live streams and, once replies under way are sent, the server.

    Raises:
        SettingInvalid: The bus's address or credentials are wrong.
    """
    parts = Parts.of(settings)
    application = create(settings, parts, token=token)
    connections = settings.web.max_streams + CONNECTIONS
    serving = asyncio.create_task(run_server(application, listener, connections=connections, stop=stop))
    linking = asyncio.create_task(parts.link.keep(stop))
    stopping = asyncio.create_task(stop.wait())
    try:
        await log.ainfo("web ready", address=address_of(listener))
        await asyncio.wait({serving, linking, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        parts.streams.close()
        stop.set()
        await asyncio.wait({serving})
        await tasks.end(stopping)
        await asyncio.wait({linking})
    for task in (linking, serving):
        task.result()


async def run_server(application: ASGIApp, listener: socket.socket, *, connections: int, stop: asyncio.Event) -> None:
    """Serves an application until ``stop``, and closes the listener.

    Args:
        application: Who answers.
        listener: From ``listen``.
        connections: How many at once.
        stop: Ends it, once replies under way are sent.
    """
    server = _Server(_config(application, connections=connections))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        server.should_exit = True
        await asyncio.wait({serving})
        await tasks.end(stopping)
        listener.close()
    serving.result()


class _Server(uvicorn.Server):
    """Leaves the signals to the program."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _config(application: ASGIApp, *, connections: int) -> uvicorn.Config:
    return uvicorn.Config(
        application,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=connections,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


def _bound(settings: WebSettings, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # With the protocol named, asyncio turns Nagle's algorithm off, which holds small replies back for 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # A client that stops taking what was sent is cut off by the kernel; accepted sockets inherit it (tcp(7)).
        patience = int(settings.slow_client_seconds * 1000)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, patience)
        listener.bind((settings.host, port))
        listener.listen(BACKLOG)
    except (OSError, UnicodeError) as error:
        listener.close()
        raise error if isinstance(error, OSError) else OSError(str(error)) from error
    listener.setblocking(False)  # noqa: FBT003 -- the standard library's own
    return listener


def _kept(path: Path) -> str:
    if path.is_file() and (kept := path.read_text(encoding="ascii").strip()):
        return kept
    token = secrets.token_urlsafe(24)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(f"{token}\n")
    return token
