"""Tells a command or a webhook of the user's what happened: alerts and failures, if nothing else is set.

Each of the two reads the Battle Log by a durable consumer of its own, which all daemons share, so an event is told by
one of them, after a restart too: at least once, twice where a daemon dies between the telling and its acknowledgement.
What fails is tried again with longer and longer pauses and then given up and logged. It runs beside the jobs and
disturbs none.
"""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import msgspec
import structlog

from archaeologist import metrics, tasks
from archaeologist.bus.consumer import Received
from archaeologist.daemon.child import pipe_reader, without_bus
from archaeologist.settings import NotifySettings
from contracts import subjects
from contracts.messages import Event, Severity

log = structlog.get_logger(__name__)

TOO_OLD: Final = timedelta(hours=1)
"""What nobody was told for so long is no news: the hooks were switched off, or the bus was away."""
FIRST_PAUSE_SECONDS: Final = 5.0
LONGEST_PAUSE_SECONDS: Final = 300.0
KILL_AFTER_SECONDS: Final = 2.0
TAIL_BYTES: Final = 2000
LISTEN_SECONDS: Final = 0.5
RANK: Final[Mapping[Severity, int]] = {"info": 0, "success": 0, "warning": 1, "error": 2}
PASSING: Final = frozenset({408, 425, 429})
"""Status codes below 500 after which asking again makes sense."""


Teller = Callable[[Event], Awaitable[None]]
"""Tells one event, or raises ``NotTold``."""


class NotTold(Exception):
    """The command or the webhook did not take it."""

    def __init__(self, reason: str, *, is_final: bool = False) -> None:
        super().__init__(reason)
        self.is_final = is_final
        """Trying again would give the same."""


class Notification:
    """Tells one target, event by event.

    Args:
        settings: What is told, and how patiently.
        target: Which of the two, for the log and the measures.
        tell: How.
    """

    def __init__(self, settings: NotifySettings, target: Literal["command", "webhook"], tell: Teller) -> None:
        self._settings = settings
        self._target = target
        self._tell = tell

    async def handle(self, received: Received) -> None:
        """One event, from the log to an acknowledgement; raises nothing of the target's."""
        event = _decoded(received)
        if event is None or not is_wanted(event, self._settings):
            await received.ack()
            return
        if datetime.now(UTC) - received.time > TOO_OLD:
            await self._end(received, event, "too_old")
            return
        await received.in_progress()
        try:
            await self._tell(event)
        except NotTold as error:
            await self._again(received, event, error)
        else:
            await self._end(received, event, "told")

    async def _again(self, received: Received, event: Event, error: NotTold) -> None:
        if error.is_final or received.deliveries >= self._settings.attempts:
            await self._end(received, event, "given_up", reason=str(error), tries=received.deliveries)
            return
        metrics.note_telling(self._target, "failed")
        pause = pause_seconds(received.deliveries)
        await self._log(event).awarning("not told, trying again", reason=str(error), pause_seconds=pause)
        await received.nak(pause)

    async def _end(self, received: Received, event: Event, outcome: str, **more: Any) -> None:
        metrics.note_telling(self._target, outcome)
        about = self._log(event)
        say = about.adebug if outcome == "told" else about.awarning
        await say(f"notification {outcome.replace('_', ' ')}", **more)
        await received.ack()

    def _log(self, event: Event) -> Any:
        return log.bind(target=self._target, event_id=event.id, type=event.type)


def notifications(settings: NotifySettings, environ: Mapping[str, str]) -> dict[str, Notification]:
    """What is to be told, by the durable consumer that brings it; empty where nothing is set."""
    found = {}
    if settings.command:
        command = Command(settings, environ)
        found[subjects.NOTIFY_COMMAND] = Notification(settings, "command", command)
    if settings.webhook:
        found[subjects.NOTIFY_WEBHOOK] = Notification(settings, "webhook", Webhook(settings))
    return found


def is_wanted(event: Event, settings: NotifySettings) -> bool:
    """Whether an event is of a type and at least of the severity that is told."""
    return event.type.removeprefix("analysis.") in settings.events and RANK[event.severity] >= RANK[settings.severity]


def pause_seconds(tries: int) -> float:
    """How long to wait after so many tries: 5 s, 15 s, 45 s, … five minutes at most."""
    return min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 3.0 ** min(tries - 1, 10))


class Command:
    """A program of the user's: the event as JSON on standard input, no shell, a time limit."""

    def __init__(self, settings: NotifySettings, environ: Mapping[str, str]) -> None:
        self._command = settings.command
        self._limit_seconds = settings.timeout_seconds
        self._environment = without_bus(environ)

    async def __call__(self, event: Event) -> None:
        """Runs it.

        Raises:
            NotTold: It cannot be started, ended with another code than 0, or was killed at the time limit.
        """
        async with contextlib.AsyncExitStack() as stack:
            process, words = await self._started(event, stack)
            listening = asyncio.create_task(_last_words(words))
            stack.push_async_callback(tasks.end, listening)
            try:
                code = await asyncio.wait_for(process.wait(), timeout=self._limit_seconds)
            except BaseException as error:
                await _destroy(process)
                if not isinstance(error, TimeoutError):
                    raise
                msg = f"{self._command[0]!r} ran longer than {self._limit_seconds:g} s and was killed"
                raise NotTold(msg) from error
            if code:
                # A process that it left behind may keep the pipe open for ever.
                done, _ = await asyncio.wait({listening}, timeout=LISTEN_SECONDS)
                said = listening.result() if done else ""
                msg = f"{self._command[0]!r} ended with code {code}: {said or 'it said nothing'}"
                raise NotTold(msg)

    async def _started(
        self, event: Event, stack: contextlib.AsyncExitStack
    ) -> tuple[asyncio.subprocess.Process, asyncio.StreamReader]:
        # Neither is a pipe of asyncio's, whose wait() waits for all who hold one; who reads nothing stops nobody.
        content = os.memfd_create("event")
        reading, writing = os.pipe()
        theirs = contextlib.ExitStack()
        theirs.callback(os.close, content)
        theirs.callback(os.close, writing)
        with theirs:
            words = await pipe_reader(reading, TAIL_BYTES, stack)
            os.write(content, msgspec.json.encode(event) + b"\n")
            os.lseek(content, 0, os.SEEK_SET)
            try:
                process = await asyncio.create_subprocess_exec(
                    *self._command,
                    stdin=content,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=writing,
                    env=self._environment,
                    start_new_session=True,
                )
            except OSError as error:
                msg = f"{self._command[0]!r} cannot be started: {error.strerror or error}"
                raise NotTold(msg) from error
        return process, words


class Webhook:
    """An address of the user's: the event is posted; redirects are not followed, what is answered is not read."""

    def __init__(self, settings: NotifySettings) -> None:
        self._address = str(settings.webhook)
        self._headers = dict(settings.webhook_headers)
        self._limit_seconds = settings.timeout_seconds
        # The rest of such an address is often its secret.
        self._shown = f"the webhook at {urlsplit(self._address).hostname}"
        logging.getLogger("httpx").setLevel(logging.WARNING)  # below that it logs whole addresses

    async def __call__(self, event: Event) -> None:
        """Posts it.

        Raises:
            NotTold: No answer in time, or not a 2xx.
        """
        import httpx  # noqa: PLC0415 -- 10 MB that a daemon without a webhook does without

        headers = {"content-type": "application/json", **self._headers}
        try:
            async with (
                asyncio.timeout(self._limit_seconds),
                httpx.AsyncClient(timeout=self._limit_seconds, follow_redirects=False) as client,
                client.stream("POST", self._address, content=body(event), headers=headers) as reply,
            ):
                status = reply.status_code
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError, ValueError) as error:
            msg = f"{self._shown} did not answer within {self._limit_seconds:g} s ({type(error).__name__})"
            raise NotTold(msg) from error
        if not 200 <= status < 300:  # noqa: PLR2004 -- HTTP's
            is_final = status < 500 and status not in PASSING  # noqa: PLR2004 -- HTTP's
            msg = f"{self._shown} answered {status}"
            raise NotTold(msg, is_final=is_final)


def body(event: Event) -> bytes:
    """The event, and its message once more as ``text``, which is what chat services show."""
    return msgspec.json.encode({"text": event.message, **msgspec.to_builtins(event)})


def _decoded(received: Received) -> Event | None:
    try:
        return msgspec.json.decode(received.data, type=Event)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


async def _last_words(words: asyncio.StreamReader) -> str:
    """The end of what a program says, on one line; reads on, because a full pipe would stop it."""
    tail = b""
    while content := await words.read(TAIL_BYTES):
        tail = (tail + content)[-TAIL_BYTES:]
    return " ".join(tail.decode(errors="replace").split())


async def _destroy(process: asyncio.subprocess.Process) -> None:
    """Leaves nothing of its group running."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        await asyncio.wait({asyncio.ensure_future(process.wait())}, timeout=KILL_AFTER_SECONDS)
