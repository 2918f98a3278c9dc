"""One connection to the bus, and what survives its loss.

nats-py gives up after two minutes by default and then stays closed for good; here it reconnects for ever, and
``closed`` is set if it ends all the same, so that a daemon can end with an error instead of hanging. Logs through the
standard library: this module runs inside trainers too.
"""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from archaeologist.errors import BusUnavailable, SettingInvalid
from archaeologist.settings import BusSettings

if TYPE_CHECKING:
    from nats.js import JetStreamContext

log = logging.getLogger(__name__)

CLOSE_SECONDS: Final = 5.0
RECONNECT_WAIT_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 2.0
FLUSH_SECONDS: Final = 5
REQUEST_SECONDS: Final = 5.0
"""How long one JetStream request may take."""


class Bus:
    """A connection and its JetStream context."""

    def __init__(self, client: Client, *, shown: str, closed: asyncio.Event) -> None:
        self.client = client
        self.jetstream: JetStreamContext = client.jetstream(timeout=REQUEST_SECONDS)
        self.shown = shown
        """The address without its secrets, for messages."""
        self.closed = closed
        """Set when the connection is closed for good."""
        self.last_error: str | None = None
        """What the server complained of last; a denied publish is told nowhere else."""

    @property
    def is_connected(self) -> bool:
        """Whether the server is there right now."""
        return bool(self.client.is_connected)

    async def close(self) -> None:
        """Flushes and closes within seconds; never raises."""
        with contextlib.suppress(Exception):
            # A client that is down cannot flush, and close() itself can raise ConnectionResetError.
            await asyncio.wait_for(self._flush_and_close(), timeout=CLOSE_SECONDS)
        self.closed.set()

    async def _flush_and_close(self) -> None:
        if self.client.is_connected:
            with contextlib.suppress(nats.errors.Error, OSError):
                await self.client.flush(timeout=2)
        await self.client.close()


async def connect(settings: BusSettings, *, name: str, wait: bool = False) -> Bus:
    """A connection.

    Args:
        settings: Address, credentials, TLS.
        name: Shown in the server's list of connections.
        wait: Try for ever, with a log line a failure, instead of once.

    Raises:
        BusUnavailable: Nobody answers, or refuses, within ``connect_timeout_seconds``.
        SettingInvalid: A file of credentials or certificates is not there.
    """
    while True:
        try:
            return await _connect_once(settings, name=name)
        except BusUnavailable as error:
            if not wait:
                raise
            log.warning("waiting for the bus", extra={"reason": str(error)})
            await asyncio.sleep(RETRY_SECONDS)


@contextlib.asynccontextmanager
async def connected(settings: BusSettings, *, name: str, wait: bool = False) -> AsyncIterator[Bus]:
    """A connection for the length of a block."""
    bus = await connect(settings, name=name, wait=wait)
    try:
        yield bus
    finally:
        await bus.close()


async def publish_core(bus: Bus, subject: str, payload: bytes) -> None:
    """Publishes outside any stream: whoever listens hears it, nobody stores it.

    Raises:
        BusUnavailable: There is no connection now.
    """
    try:
        await bus.client.publish(subject, payload)
        await bus.client.flush(timeout=FLUSH_SECONDS)
    except (nats.errors.Error, OSError) as error:
        msg = f"{subject!r} could not be published: {error}; the bus at {bus.shown} is away, try again"
        raise BusUnavailable(msg) from error


async def subscribe_core(bus: Bus, subject: str, callback: Callable[[str], None]) -> None:
    """Calls back with the subject of each message; nats-py subscribes again after a reconnect."""

    async def on_message(message: Msg) -> None:
        callback(message.subject)

    await bus.client.subscribe(subject, cb=on_message)


def shown_address(url: str) -> str:
    """The address without user, password and token."""
    return ",".join(_without_secrets(server.strip()) for server in url.split(","))


def _without_secrets(server: str) -> str:
    try:
        parts = urlsplit(server if "://" in server else f"nats://{server}")
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "(unreadable address)"
    return f"{parts.scheme}://{parts.hostname or ''}{port}"


async def _connect_once(settings: BusSettings, *, name: str) -> Bus:
    shown = shown_address(settings.url)
    client = Client()
    closed = asyncio.Event()
    holder: list[Bus] = []
    options = {
        **_options(settings, name=name),
        **_callbacks(shown, closed, holder),
    }
    timeout = settings.connect_timeout_seconds
    try:
        # nats-py's own timeout is a try's; max_reconnect_attempts=-1 would let it try for ever.
        await asyncio.wait_for(client.connect(**options), timeout=timeout)
    except Exception as error:
        with contextlib.suppress(Exception):
            await asyncio.wait_for(client.close(), timeout=1)
        if isinstance(error, (nats.errors.Error, OSError, TimeoutError, ssl.SSLError, ValueError)):
            reason = str(error) or type(error).__name__
            msg = (
                f"no connection to the bus at {shown} within {timeout:g} s ({reason}); start `archaeologist up` or a"
                " nats-server with JetStream, or set ARCHAEOLOGIST_NATS_URL"
            )
            raise BusUnavailable(msg) from error
        raise
    bus = Bus(client, shown=shown, closed=closed)
    holder.append(bus)
    return bus


def _options(settings: BusSettings, *, name: str) -> dict[str, Any]:
    options: dict[str, Any] = {
        "servers": [server.strip() for server in settings.url.split(",") if server.strip()],
        "name": name,
        "connect_timeout": settings.connect_timeout_seconds,
        "max_reconnect_attempts": -1,
        "reconnect_time_wait": RECONNECT_WAIT_SECONDS,
        "ping_interval": 20,
        "max_outstanding_pings": 2,
        "inbox_prefix": settings.inbox_prefix,
        "user": settings.user,
        "password": settings.password,
        "token": settings.token,
        "tls": _tls(settings),
    }
    if settings.credentials:
        options["user_credentials"] = _file("bus.credentials", settings.credentials)
    if settings.nkey_seed:
        options["nkeys_seed"] = _file("bus.nkey_seed", settings.nkey_seed)
    return {key: value for key, value in options.items() if value is not None}


def _file(setting: str, path: str) -> str:
    found = Path(path).expanduser()
    if not found.is_file():
        msg = f"{setting} = {path!r}: no such file; name an existing one or leave the setting out"
        raise SettingInvalid(msg)
    return str(found)


def _tls(settings: BusSettings) -> ssl.SSLContext | None:
    if not (settings.tls_ca or settings.tls_cert):
        return None
    context = ssl.create_default_context(cafile=_file("bus.tls_ca", settings.tls_ca) if settings.tls_ca else None)
    if settings.tls_cert:
        key = _file("bus.tls_key", settings.tls_key) if settings.tls_key else None
        context.load_cert_chain(_file("bus.tls_cert", settings.tls_cert), key)
    return context


def _callbacks(shown: str, closed: asyncio.Event, holder: list[Bus]) -> dict[str, Any]:
    async def on_error(error: Exception) -> None:
        # A denied publish looks like a timeout to its caller: only this tells why.
        reason = str(error) or type(error).__name__
        if holder:
            holder[0].last_error = reason
            log.warning("bus error", extra={"reason": reason})

    async def on_disconnect() -> None:
        if holder and not closed.is_set():
            log.warning("bus disconnected", extra={"bus": shown})

    async def on_reconnect() -> None:
        log.info("bus connected again", extra={"bus": shown})

    async def on_closed() -> None:
        closed.set()

    return {
        "error_cb": on_error,
        "disconnected_cb": on_disconnect,
        "reconnected_cb": on_reconnect,
        "closed_cb": on_closed,
    }
