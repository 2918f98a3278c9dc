"""One connection to the bus, and what survives its loss.

nats-py gives up after two minutes by default and then stays closed for good; here it reconnects for ever, and
``closed`` is set if it ends all the same, so that a daemon can end with an error instead of hanging. Logs through the
standard library: this module runs inside trainers too.
"""

import asyncio
import contextlib
import importlib.util
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from archaeologist import tasks
from archaeologist.errors import BusUnavailable, SettingInvalid
from archaeologist.settings import BusSettings

if TYPE_CHECKING:
    from nats.js import JetStreamContext

log = logging.getLogger(__name__)

CLOSE_SECONDS: Final = 5.0
RECONNECT_WAIT_SECONDS: Final = 0.5
RETRY_SECONDS: Final = 2.0
RESET_SECONDS: Final = 0.1
REQUEST_SECONDS: Final = 5.0
"""How long one JetStream request may take."""
RECENT_SECONDS: Final = 10.0
"""A complaint of the server explains a timeout only when it came about then."""
CREDENTIALS_MARKS: Final = ("BEGIN NATS USER JWT", "BEGIN USER NKEY SEED")
SCHEMES: Final = frozenset({"nats", "tls", "ws", "wss"})


class Bus:
    """A connection and its JetStream context."""

    def __init__(self, *, shown: str) -> None:
        self.client = Client()
        self.jetstream: JetStreamContext = self.client.jetstream(timeout=REQUEST_SECONDS)
        self.shown = shown
        """The address without its secrets, for messages."""
        self.closed = asyncio.Event()
        """Set when the connection is closed for good."""
        self._up = asyncio.Event()
        self._complaint: tuple[float, str] | None = None
        self._is_established = False
        self._refused: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def is_connected(self) -> bool:
        """Whether the server is there right now."""
        return bool(self.client.is_connected)

    @property
    def last_error(self) -> str | None:
        """What the server complained of just now: a denied publish, a timeout to its caller, is told nowhere else."""
        if self._complaint is None or time.monotonic() - self._complaint[0] > RECENT_SECONDS:
            return None
        return self._complaint[1]

    @property
    def refusal(self) -> str | None:
        """Why the server did not let us in; what broke off afterwards does not explain it."""
        is_told = self._refused.done() and not self._refused.cancelled()
        return self._refused.result() if is_told else None

    @property
    def reconnects(self) -> int:
        """How often the connection was lost and made again."""
        return int(self.client.stats["reconnects"])

    async def until_connected(self, timeout_seconds: float = REQUEST_SECONDS) -> None:
        """Returns once the server is there. What is sent while it is away fills a buffer, and is sent late.

        Raises:
            BusUnavailable: It did not come within the time, or the connection is closed for good.
        """
        if not self.is_connected and not self.client.is_closed:
            self._up.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._up.wait(), timeout=timeout_seconds)
        if not self.is_connected:
            state = "closed for good" if self.client.is_closed else "lost"
            msg = f"the connection to the bus at {self.shown} is {state}; is the server up?"
            raise BusUnavailable(msg)

    async def flush(self, timeout_seconds: float = REQUEST_SECONDS) -> None:
        """Returns once the server has read everything that was sent before.

        Raises:
            nats.errors.Error, OSError: It is away, or does not answer within the time.
        """
        # nats-py writes a ping at once, past what is still to be written: only the second one comes after that.
        async with asyncio.timeout(timeout_seconds):
            for _ in range(2):
                await self.client.flush()

    async def close(self) -> None:
        """Flushes and closes within seconds; never raises."""
        self._is_established = False
        with contextlib.suppress(Exception):
            # A client that is down cannot flush, and close() itself can raise ConnectionResetError.
            await asyncio.wait_for(self._flush_and_close(), timeout=CLOSE_SECONDS)
        self.closed.set()

    async def _flush_and_close(self) -> None:
        if self.client.is_connected:
            with contextlib.suppress(nats.errors.Error, OSError):
                await self.flush(timeout_seconds=2)
        await self.client.close()

    async def _open(self, options: dict[str, Any]) -> None:
        """Connects, or raises once the server has refused the credentials: asking again gives the same."""
        connecting = asyncio.ensure_future(self.client.connect(**options, **self._callbacks()))
        either: set[asyncio.Future[Any]] = {connecting, self._refused}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not connecting.done():
                raise nats.errors.Error(self._refused.result())
            await connecting
            self._is_established = True
        finally:
            await tasks.end(connecting, self._refused)

    def _callbacks(self) -> dict[str, Any]:
        return {
            "error_cb": self._on_error,
            "disconnected_cb": self._on_disconnect,
            "reconnected_cb": self._on_reconnect,
            "closed_cb": self._on_closed,
        }

    async def _on_error(self, error: Exception) -> None:
        reason = str(error) or type(error).__name__
        self._complaint = (time.monotonic(), reason)
        if self._is_established:
            log.warning("bus error", extra={"reason": reason})
        elif "authorization" in reason.lower() and not self._refused.done():
            self._refused.set_result(reason)

    async def _on_disconnect(self) -> None:
        if self._is_established:
            log.warning("bus disconnected", extra={"bus": self.shown})

    async def _on_reconnect(self) -> None:
        log.info("bus connected again", extra={"bus": self.shown})
        self._up.set()

    async def _on_closed(self) -> None:
        self.closed.set()
        self._up.set()


async def connect(settings: BusSettings, *, name: str, wait: bool = False) -> Bus:
    """A connection.

    Args:
        settings: Address, credentials, TLS.
        name: Shown in the server's list of connections.
        wait: Try for ever, with a log line a failure, instead of once.

    Raises:
        BusUnavailable: Nobody answers, or refuses, within ``connect_timeout_seconds``.
        SettingInvalid: The address cannot be read, or a file of credentials or certificates is not there.
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
    await bus.until_connected(0)
    try:
        await bus.client.publish(subject, payload)
        await bus.flush()
    except (nats.errors.Error, OSError) as error:
        msg = f"{subject!r} could not be published: {error}; the bus at {bus.shown} is away, try again"
        raise BusUnavailable(msg) from error


async def subscribe_core(bus: Bus, subject: str, callback: Callable[[str], None]) -> None:
    """Calls back with the subject of each message; nats-py subscribes again after a reconnect."""

    async def on_message(message: Msg) -> None:
        callback(message.subject)

    await bus.client.subscribe(subject, cb=on_message)


def shown_address(url: str) -> str:
    """The address without user, password and token.

    Raises:
        SettingInvalid: It is not an address.
    """
    return ",".join(_without_secrets(server) for server in _servers(url))


def _servers(url: str) -> list[str]:
    """The addresses between the commas, each with its scheme."""
    servers = [server.strip() for server in url.split(",") if server.strip()]
    return [server if "://" in server else f"nats://{server}" for server in servers] or [""]


def _without_secrets(server: str) -> str:
    try:
        parts = urlsplit(server)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        parts, port = urlsplit(""), ""
    # A password with a slash would be taken for a path: nothing of such an address may be shown.
    if parts.scheme not in SCHEMES or not parts.hostname or "@" in f"{parts.path}{parts.query}{parts.fragment}":
        msg = (
            "bus.url holds what is not an address (not shown, for it may hold a password); write nats://HOST:PORT, with"
            f" one of {', '.join(sorted(SCHEMES))}; secrets with special characters belong in bus.password or bus.token"
        )
        raise SettingInvalid(msg) from None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{port}"


async def _connect_once(settings: BusSettings, *, name: str) -> Bus:
    shown, options = shown_address(settings.url), _options(settings, name=name)
    timeout = settings.connect_timeout_seconds
    reason = ""
    # nats-py's own timeout is a try's; max_reconnect_attempts=-1 would let it try for ever.
    deadline = asyncio.get_running_loop().time() + timeout
    while (left := deadline - asyncio.get_running_loop().time()) > 0:
        bus = Bus(shown=shown)
        try:
            await asyncio.wait_for(bus._open(options), timeout=left)  # noqa: SLF001 -- the other half of this module
        except BaseException as error:
            await bus.close()
            if not isinstance(error, (nats.errors.Error, OSError, TimeoutError, ValueError)):
                raise
            reason = bus.refusal or bus.last_error or str(error) or type(error).__name__
            if bus.refusal or not isinstance(error, ConnectionResetError):
                break
            # A server that refuses the credentials may hang up before its reason was read: the next try may hear it.
            await asyncio.sleep(RESET_SECONDS)
        else:
            return bus
    msg = (
        f"no connection to the bus at {shown} within {timeout:g} s ({reason}); start `archaeologist up` or a"
        " nats-server with JetStream, or set ARCHAEOLOGIST_NATS_URL"
    )
    raise BusUnavailable(msg)


def _options(settings: BusSettings, *, name: str) -> dict[str, Any]:
    servers = _servers(settings.url)
    if any(server.startswith("ws") for server in servers) and importlib.util.find_spec("aiohttp") is None:
        msg = f"bus.url = {shown_address(settings.url)} needs WebSockets; run `pip install aiohttp` or write nats://"
        raise SettingInvalid(msg)
    options: dict[str, Any] = {
        "servers": servers,
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
        options["user_credentials"] = _secret("bus.credentials", settings.credentials, *CREDENTIALS_MARKS)
    if settings.nkey_seed:
        options["nkeys_seed"] = _secret("bus.nkey_seed", settings.nkey_seed, "SU")
    return {key: value for key, value in options.items() if value is not None}


def _file(setting: str, path: str) -> str:
    found = Path(path).expanduser()
    if not found.is_file():
        msg = f"{setting} = {path!r}: no such file; name an existing one or leave the setting out"
        raise SettingInvalid(msg)
    return str(found)


def _secret(setting: str, path: str, *marks: str) -> str:
    """A file that holds a secret of the right kind: nats-py stumbles over any other, or shows what it holds."""
    found = _file(setting, path)
    try:
        content = Path(found).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{setting} = {path!r} cannot be read ({type(error).__name__}); give this user the right to"
        raise SettingInvalid(msg) from error
    if not all(mark in content for mark in marks):
        msg = f"{setting} = {path!r} holds something else; it must be the file that `nsc` or `nk` made"
        raise SettingInvalid(msg)
    return found


def _tls(settings: BusSettings) -> ssl.SSLContext | None:
    if not (settings.tls_ca or settings.tls_cert):
        return None
    authority = _file("bus.tls_ca", settings.tls_ca) if settings.tls_ca else None
    certificate = _file("bus.tls_cert", settings.tls_cert) if settings.tls_cert else None
    key = _file("bus.tls_key", settings.tls_key) if settings.tls_key else None
    try:
        context = ssl.create_default_context(cafile=authority)
        if certificate:
            context.load_cert_chain(certificate, key)
    except OSError as error:
        msg = f"bus.tls_ca, bus.tls_cert and bus.tls_key: {error}; they must be readable PEM files that belong together"
        raise SettingInvalid(msg) from error
    return context
