"""One child process for one job: started, fed, followed, limited, reaped.

The child (``python -m archaeologist.job``) reads an Excavation on standard input and writes ChildLines on a pipe of its
own. Its word counts: an outcome line decides, and only where there is none does the exit code. Called by the executor
and by ``api``; neither imports what the child imports, so a crash in compiled code takes nobody along.
"""

import asyncio
import contextlib
import hashlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Final

import msgspec
import structlog

from archaeologist import tasks
from archaeologist.daemon.outputs import keep_output
from archaeologist.errors import ArtifactUnwritable, JobCrashed, JobTimedOut
from contracts.messages import ChildLine, EventError, Excavation, Failed, Progress, Succeeded, encode

log = structlog.get_logger(__name__)

COMMAND: Final = (sys.executable, "-m", "archaeologist.job")
EXIT_RETRYABLE: Final = 75
"""EX_TEMPFAIL of sysexits.h: not now, for want of GPU memory for instance."""

MAX_LINE_BYTES: Final = 1 << 20
"""An outcome with all its findings takes a few KB."""
TAIL_BYTES: Final = 64 << 10
SHOWN_LINES: Final = 8
SHOWN_CHARACTERS: Final = 1500
DRAIN_SECONDS: Final = 5.0
"""After the exit: what a pipe still holds is there at once, unless a stranger keeps the pipe open."""
KEPT_FROM_CHILD: Final = ("ARCHAEOLOGIST_", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""Beginnings of the variables that it does not get."""
ASK_AGAIN: Final = "ask again with force, and report it if it repeats"

_decoder = msgspec.json.Decoder(ChildLine)


@dataclass(frozen=True, kw_only=True)
class ChildLimits:
    """How long a child may live."""

    time_limit_seconds: float | None
    """None: without limit, for a person at a terminal."""
    kill_after_seconds: float
    """From SIGTERM to SIGKILL."""


class Stopped(msgspec.Struct, frozen=True, kw_only=True):
    """The child was ended by the caller's ``stop`` before it had an outcome."""


class _Ending(Enum):
    EXITED = auto()
    TIMED_OUT = auto()
    STOPPED = auto()


async def run_child(
    excavation: Excavation,
    *,
    limits: ChildLimits,
    on_progress: Callable[[Progress], None],
    cache: Path,
    stop: asyncio.Event | None = None,
    command: Sequence[str] = COMMAND,
    output: Path | None = None,
) -> Succeeded | Failed | Stopped:
    """The outcome of one job in a fresh process, which is gone when this returns, raises or is cancelled.

    Args:
        excavation: What to do.
        limits: Time limits, in seconds.
        on_progress: Called in the event loop with each progress line; must return at once.
        cache: Folder for compiled kernels; made if it is missing.
        stop: Once set, the child is ended: SIGTERM, then SIGKILL.
        command: Program and arguments, before ``--lines-fd N``; tests run others.
        output: Where the end of what it prints is kept.

    Raises:
        ArtifactUnwritable: The cache folder cannot be made.
    """
    environment = child_environment(os.environ, cache=_made(cache))
    async with _started(command, environment) as child:
        child.send(encode(excavation) + b"\n")
        following = asyncio.create_task(child.follow(on_progress))
        listening = asyncio.create_task(child.listen())
        try:
            ending = await child.until_end(limits, stop)
            child.signal(signal.SIGKILL)  # what it may have started itself and left in its group
            _, late = await asyncio.wait({following, listening}, timeout=DRAIN_SECONDS)
        finally:
            await tasks.end(following, listening)
        if output is not None:
            await asyncio.to_thread(keep_output, output, child.tail)
        if late:
            await log.awarning("a process outside the child's group holds its pipes", pid=child.pid)
        if not following.cancelled():
            following.result()  # raises what on_progress raised
        return _verdict(child, ending, excavation, limits)


def child_environment(environ: Mapping[str, str], *, cache: Path) -> dict[str, str]:
    """The child's environment: the parent's without settings and secrets, with the kernels' cache.

    It reads no setting, and runs code of libraries over files that anybody may have written.
    """
    kept = {name: value for name, value in environ.items() if not name.upper().startswith(KEPT_FROM_CHILD)}
    return {"PYTHONFAULTHANDLER": "1", **kept, "NUMBA_CACHE_DIR": str(kernels_folder(cache))}


def kernels_folder(cache: Path) -> Path:
    """Where the compiled code of just these sources lies: numba itself sees no change in what a kernel calls."""
    digest = hashlib.sha256()
    for file in sorted((Path(__file__).parents[1] / "statistics").glob("*.py")):
        digest.update(file.read_bytes())
    return cache / digest.hexdigest()[:16]


def without_bus(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment without the bus's address and credentials, for programs that need neither."""
    return {name: value for name, value in environ.items() if not _is_of_the_bus(name.upper())}


def _is_of_the_bus(variable: str) -> bool:
    return variable == "ARCHAEOLOGIST_NATS_URL" or variable.startswith("ARCHAEOLOGIST_BUS")


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"cache folder {str(folder)!r} cannot be made: {error}; make its parent writable"
        raise ArtifactUnwritable(msg) from error
    return folder


class _Child:
    """A running child and what it has said so far."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        *,
        stdin: asyncio.WriteTransport,
        lines: asyncio.StreamReader,
        output: asyncio.StreamReader,
    ) -> None:
        self._process = process
        self._stdin = stdin
        self._lines = lines
        self._output = output
        self._tail = bytearray()
        self.outcome: Succeeded | Failed | None = None
        self.complaint: str | None = None
        """What was wrong with a line of its, after which it was killed."""

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        return self._process.returncode

    def send(self, content: bytes) -> None:
        """Writes to standard input, which then stays open: its end tells the child that its parent died."""
        self._stdin.write(content)

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the child's group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    async def follow(self, on_progress: Callable[[Progress], None]) -> None:
        """Reads lines to their end. A line that is none of ours ends the child: nothing after it can be trusted."""
        try:
            async for line in self._lines:
                if not line.endswith(b"\n"):
                    return  # cut off in the middle by its death; the exit code tells of that
                message = _decoder.decode(line)
                if isinstance(message, Progress):
                    on_progress(message)
                else:
                    self.outcome = message
        except (msgspec.DecodeError, ValueError) as error:
            # ValueError: StreamReader's word for a line over its limit.
            self.complaint = str(error)
            self.signal(signal.SIGKILL)
        except Exception:
            self.signal(signal.SIGKILL)
            raise

    async def listen(self) -> None:
        """Keeps the last of what the child prints; reads on, because a full pipe would stop it."""
        while content := await self._output.read(TAIL_BYTES):
            self._tail += content
            del self._tail[:-TAIL_BYTES]

    async def until_end(self, limits: ChildLimits, stop: asyncio.Event | None) -> _Ending:
        """Waits for the exit, and brings it about when the time is up or ``stop`` is set."""
        exiting = asyncio.create_task(self._process.wait())
        stopping = asyncio.create_task((stop or asyncio.Event()).wait())
        try:
            done, _ = await asyncio.wait(
                {exiting, stopping}, timeout=limits.time_limit_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if exiting in done:
                return _Ending.EXITED
            self.signal(signal.SIGTERM)
            await asyncio.wait({exiting}, timeout=limits.kill_after_seconds)
            self.signal(signal.SIGKILL)
            await exiting
            return _Ending.STOPPED if stopping in done else _Ending.TIMED_OUT
        finally:
            exiting.cancel()
            stopping.cancel()

    async def destroy(self) -> None:
        """Leaves nothing running and nothing unreaped."""
        if self.exit_code is None:  # else its number may be another process's by now
            self.signal(signal.SIGKILL)
        await asyncio.shield(self._process.wait())

    @property
    def tail(self) -> bytes:
        """The end of what it printed."""
        return bytes(self._tail)

    def last_words(self) -> str:
        """The end of what it printed, on one line."""
        lines = [line.strip() for line in self._tail.decode(errors="replace").splitlines() if line.strip()]
        return " | ".join(lines[-SHOWN_LINES:])[-SHOWN_CHARACTERS:]


@contextlib.asynccontextmanager
async def _started(command: Sequence[str], environment: Mapping[str, str]) -> AsyncIterator[_Child]:
    async with contextlib.AsyncExitStack() as stack:
        # Pipes of our own instead of asyncio's: its wait() may wait for every pipe of a process to close, and a
        # grandchild that holds one open would keep a finished job waiting.
        stdin_read, stdin_write = os.pipe()
        lines_read, lines_write = os.pipe()
        output_read, output_write = os.pipe()
        theirs = contextlib.ExitStack()
        for descriptor in (stdin_read, lines_write, output_write):
            theirs.callback(os.close, descriptor)
        with theirs:
            stdin = await _writer(stdin_write, stack)
            lines = await pipe_reader(lines_read, MAX_LINE_BYTES, stack)
            output = await pipe_reader(output_read, TAIL_BYTES, stack)
            process = await asyncio.create_subprocess_exec(
                *command,
                "--lines-fd",
                str(lines_write),
                stdin=stdin_read,
                stdout=output_write,
                stderr=output_write,
                pass_fds=(lines_write,),
                start_new_session=True,
                env=dict(environment),
            )
        child = _Child(process, stdin=stdin, lines=lines, output=output)
        stack.push_async_callback(child.destroy)
        yield child


async def pipe_reader(descriptor: int, limit: int, stack: contextlib.AsyncExitStack) -> asyncio.StreamReader:
    """Reads a pipe's end until the stack closes, whoever else holds the other."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=limit, loop=loop)
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader, loop=loop), os.fdopen(descriptor, "rb", buffering=0)
    )
    stack.callback(transport.close)
    return reader


async def _writer(descriptor: int, stack: contextlib.AsyncExitStack) -> asyncio.WriteTransport:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, os.fdopen(descriptor, "wb", buffering=0))
    # Closed already where the child ended first, and abort() is not to be called twice.
    stack.callback(lambda: None if transport.is_closing() else transport.abort())
    return transport


def _verdict(
    child: _Child, ending: _Ending, excavation: Excavation, limits: ChildLimits
) -> Succeeded | Failed | Stopped:
    # An artifact that is whole stays one, whatever happened to the process after it said so.
    if isinstance(child.outcome, Succeeded):
        return child.outcome
    if ending is _Ending.STOPPED:
        return Stopped()
    if ending is _Ending.TIMED_OUT:
        return _failed(JobTimedOut.code, _too_long(excavation, limits))
    if child.complaint is not None:
        return _failed(
            JobCrashed.code, _explained(f"the child process wrote no line of ours ({child.complaint})", child)
        )
    is_retryable = child.exit_code == EXIT_RETRYABLE
    if child.outcome is not None:
        return msgspec.structs.replace(child.outcome, retryable=child.outcome.retryable or is_retryable)
    return _failed(JobCrashed.code, _explained(_cause(child.exit_code), child), retryable=is_retryable)


def _failed(code: str, message: str, *, retryable: bool = False) -> Failed:
    return Failed(error=EventError(code=code, message=message), retryable=retryable)


def _too_long(excavation: Excavation, limits: ChildLimits) -> str:
    setting = f"jobs.{excavation.job.job_type}.time_limit_seconds"
    return f"the job ran longer than its limit of {limits.time_limit_seconds:g} s; raise the setting {setting}"


def _explained(cause: str, child: _Child) -> str:
    words = child.last_words()
    return f"{cause}; it last printed: {words}" if words else f"{cause}; it printed nothing"


def _cause(exit_code: int | None) -> str:
    match exit_code:
        case None:
            return "the child process was lost"
        case 0:
            return "the child process ended without an outcome (exit code 0); this is a defect, please report it"
        case -9:
            return (
                "the child process was killed (signal 9); out of memory? free some, lower worker.threads, or look into"
                " the kernel's log"
            )
        case code if code < 0:
            return f"the child process was ended by {_signal_name(-code)}; {ASK_AGAIN}"
        case code:
            return f"the child process ended with exit code {code} and no outcome; {ASK_AGAIN}"


def _signal_name(number: int) -> str:
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"
