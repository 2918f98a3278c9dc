"""The Battle Log live, as Server-Sent Events (html.spec.whatwg.org, 9.2).

Each event carries its sequence as id; a client that comes back with ``Last-Event-ID`` gets what it missed, from the
log itself. A stream stays open while the bus is away and says so; events go on where they stopped. What a client does
not take within a time ends its stream, and it may come back.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import msgspec
import structlog
from litestar import get
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import HeaderParameter, QueryParameter
from litestar.types import ASGIApp, ControllerRouterHandler, Receive, Scope, Send

from archaeologist import tasks
from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.bus.connection import Bus
from archaeologist.bus.log import LoggedEvent, events, last_sequence, start_of_last
from archaeologist.errors import BusUnavailable, ParameterInvalid, StreamsFull, TopologyMissing
from archaeologist.settings import Settings
from archaeologist.web.analysis import ALREADY_ENCODED, PERHAPS_A_NAME
from archaeologist.web.link import Link
from archaeologist.web.refusals import answer
from contracts import subjects
from contracts.http import Problem
from contracts.messages import Event

log = structlog.get_logger(__name__)

MAX_LAST: Final = 1000
MAX_SEQUENCE: Final = 2**63 - 1
WAITING: Final = 100
"""Events read ahead of the client; the rest stays in the log."""
LOOK_SECONDS: Final = 0.5
RETRY_SECONDS: Final = 0.5
CLIENT_RETRY_MILLISECONDS: Final = 2000

HEADERS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
)

_NOWHERE: Final = Path()


class Wanted(NamedTuple):
    """Which events a client wants, and from where on."""

    hero_id: str | None = None
    campaign_id: str | None = None
    types: tuple[str, ...] = subjects.BATTLE_LOG_SUBJECTS
    after: int | None = None
    """Behind this sequence."""
    last: int = 0
    """Where ``after`` is None: so many from the end of the log."""

    def covers(self, event: Event) -> bool:
        """Whether an event is of the hero and campaign."""
        data = event.data if isinstance(event.data, dict) else {}
        return all(
            wanted is None or data.get(name) == wanted
            for name, wanted in (("hero_id", self.hero_id), ("campaign_id", self.campaign_id))
        )


class Streams:
    """The live streams that are open.

    Args:
        settings: How many, and how patient.
        link: The bus.
    """

    def __init__(self, settings: Settings, link: Link) -> None:
        self._settings = settings.web
        self._link = link
        self._stop = asyncio.Event()
        self.count = 0

    def close(self) -> None:
        """Ends all of them, for good."""
        self._stop.set()

    def open(self, wanted: Wanted) -> ASGIApp:
        """The reply that is a live stream, or says that there are too many."""

        async def stream(_scope: Scope, receive: Receive, send: Send) -> None:
            if self.count >= self._settings.max_streams or self._stop.is_set():
                msg = f"{self.count} live streams are open and no more are served (web.max_streams); try again later"
                await answer(send, StreamsFull(msg))
                return
            self.count += 1
            try:
                await self._serve(wanted, receive, send)
            finally:
                self.count -= 1

        return stream

    async def _serve(self, wanted: Wanted, receive: Receive, send: Send) -> None:
        lines: asyncio.Queue[bytes] = asyncio.Queue(WAITING)
        reading = asyncio.create_task(_read(self._link, wanted, lines))
        ending = [asyncio.create_task(_until_gone(receive)), asyncio.create_task(self._stop.wait())]
        try:
            await send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
            is_taken = await self._relay(lines, send, until=[reading, *ending])
        finally:
            await tasks.end(reading, *ending)
        if is_taken and self._stop.is_set():
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _relay(self, lines: asyncio.Queue[bytes], send: Send, *, until: list[asyncio.Task[Any]]) -> bool:
        """Sends what is read, and signs of life, until one of the tasks ends; False: the client took nothing."""
        loop = asyncio.get_running_loop()
        told: bool | None = None
        chunk = f"retry: {CLIENT_RETRY_MILLISECONDS}\n\n".encode()
        spoke_at = loop.time()
        while not any(task.done() for task in until):
            if told is not self._link.is_connected:
                told = self._link.is_connected
                chunk += _bus_line(is_connected=told)
            if not chunk and loop.time() - spoke_at >= self._settings.heartbeat_seconds:
                chunk = b": alive\n\n"
            if chunk:
                if not await self._sent(send, chunk):
                    return False
                spoke_at = loop.time()
            chunk = await _next(lines, until)
        return True

    async def _sent(self, send: Send, chunk: bytes) -> bool:
        """Whether the client took it in time."""
        try:
            async with asyncio.timeout(self._settings.slow_client_seconds):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except TimeoutError:
            await log.awarning("live stream dropped", reason="its client takes nothing")
            return False
        return True


Whose = Annotated[
    str | None, QueryParameter(description="Only this hero's, or this campaign's.", schema_extra=PERHAPS_A_NAME)
]


@get(
    "/api/events",
    tags=["events"],
    opt={ALREADY_ENCODED: True},
    media_type="text/event-stream",
    responses={
        200: ResponseSpec(
            str, generate_examples=False, media_type="text/event-stream", description="Events as they come."
        ),
        400: ResponseSpec(Problem, generate_examples=False, description="A parameter breaks a rule."),
        503: ResponseSpec(Problem, generate_examples=False, description="Too many streams are open."),
    },
)
async def follow(
    streams: NamedDependency[Streams],
    *,
    hero_id: Annotated[str | None, QueryParameter(description="Only this hero's.", schema_extra=PERHAPS_A_NAME)] = None,
    campaign_id: Annotated[
        str | None, QueryParameter(description="Only this campaign's.", schema_extra=PERHAPS_A_NAME)
    ] = None,
    types: Annotated[str | None, QueryParameter(description="Only these types, with commas.")] = None,
    last: Annotated[int, QueryParameter(ge=0, le=MAX_LAST, description="Begin so many events before the end.")] = 0,
    last_event_id: Annotated[str | None, HeaderParameter(name="Last-Event-ID", description="Go on behind it.")] = None,
    after: Annotated[
        int | None, QueryParameter(ge=0, le=MAX_SEQUENCE, description="As Last-Event-ID, which comes before it.")
    ] = None,
) -> ASGIApp:
    """The Battle Log from now on, or from where the client was."""
    for name, value in (("hero_id", hero_id), ("campaign_id", campaign_id)):
        if value is not None:
            CampaignFolder.of(_NOWHERE, **{"hero_id": "any", "campaign_id": "any", name: value})
    position = after if last_event_id is None else _sequence(last_event_id)
    return streams.open(Wanted(hero_id, campaign_id, _types(types), position, last))


def routes() -> list[ControllerRouterHandler]:
    """The handlers of this module."""
    return [follow]


async def _read(link: Link, wanted: Wanted, lines: asyncio.Queue[bytes]) -> None:
    """Puts the events into the queue, in order, each once; waits for a bus that is away."""
    position = wanted.after
    while True:
        try:
            bus = link.bus()
            position = await _start(bus, position, wanted)
            async for logged in events(bus, after_sequence=position, follow=True, subjects=wanted.types):
                position = logged.sequence
                if wanted.covers(logged.event):
                    await lines.put(_line(logged))
        except (BusUnavailable, TopologyMissing) as error:
            await log.adebug("live stream waits", reason=str(error))
        await asyncio.sleep(RETRY_SECONDS)


async def _start(bus: Bus, position: int | None, wanted: Wanted) -> int:
    """The sequence behind which to read."""
    if position is None:
        return await start_of_last(bus, wanted.last, subjects=wanted.types)
    # Beyond the end: the log was made anew, and everything in it is news.
    return position if position <= await last_sequence(bus) else 0


async def _next(lines: asyncio.Queue[bytes], until: list[asyncio.Task[Any]]) -> bytes:
    """The next line; nothing where none came soon, or one of the tasks ended."""
    getting = asyncio.create_task(lines.get())
    await asyncio.wait({getting, *until}, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    if not getting.done():
        await tasks.end(getting)
    return b"" if getting.cancelled() else getting.result()


async def _until_gone(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _line(logged: LoggedEvent) -> bytes:
    return b"id: %d\ndata: %b\n\n" % (logged.sequence, msgspec.json.encode(logged.event))


def _bus_line(*, is_connected: bool) -> bytes:
    return b"event: bus\ndata: %b\n\n" % msgspec.json.encode({"connected": is_connected})


def _sequence(last_event_id: str) -> int:
    if not (last_event_id.isascii() and last_event_id.isdigit() and int(last_event_id[:20]) <= MAX_SEQUENCE):
        msg = f"Last-Event-ID {last_event_id[:40]!r} is not the id of an event; send the one that came last, or none"
        raise ParameterInvalid(msg)
    return int(last_event_id)


def _types(text: str | None) -> tuple[str, ...]:
    if text is None:
        return subjects.BATTLE_LOG_SUBJECTS
    chosen = tuple(name.strip() for name in text[:1000].split(",") if name.strip())
    if not chosen or any(name not in subjects.BATTLE_LOG_SUBJECTS for name in chosen):
        msg = f"types={text[:100]!r}: use some of {', '.join(subjects.BATTLE_LOG_SUBJECTS)}"
        raise ParameterInvalid(msg)
    return chosen
