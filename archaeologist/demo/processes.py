"""The demo's processes: started with a log of their own, stopped for certain, their last words at hand."""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn, Self

from archaeologist.errors import PermanentError
from archaeologist.processes import dying_with_parent, end

STOP_SECONDS: Final = 15.0
TAIL_LINES: Final = 15
TAIL_BYTES: Final = 16_384
MAX_LINE_BYTES: Final = 1 << 20


class DemoFailed(PermanentError):
    """The demo did not get to where it must; the message says what is missing."""

    code = "demo_failed"


class Program:
    """A Python module that runs as a process; what it prints goes to a log file.

    Its standard output may be read instead, see ``start``.
    """

    def __init__(self, name: str, process: asyncio.subprocess.Process, log_path: Path) -> None:
        self.name = name
        self.log_path = log_path
        self._process = process

    @classmethod
    async def start(
        cls,
        name: str,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        log_path: Path,
        is_read: bool = False,
    ) -> Self:
        """Starts ``python -m`` with these arguments.

        Args:
            name: For messages: "the daemon".
            arguments: The module and its arguments.
            environment: All of its environment.
            log_path: Where standard error goes, and standard output unless it is read.
            is_read: Whether ``lines`` will be read.
        """
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                *arguments,
                env=dict(environment),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if is_read else log,
                stderr=log,
                limit=MAX_LINE_BYTES,
                # Ctrl-C in the terminal is ours to handle: we stop them in order.
                start_new_session=True,
                preexec_fn=dying_with_parent(),
            )
        return cls(name, process, log_path)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def lines(self) -> asyncio.StreamReader:
        """Its standard output."""
        assert self._process.stdout is not None, "started without is_read"  # noqa: S101 -- a defect of the caller's
        return self._process.stdout

    async def wait(self) -> int:
        """Its exit code, once it ends."""
        return await self._process.wait()

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL if that is not enough."""
        await end(self._process, seconds=STOP_SECONDS)

    def fail(self, what: str, *, code: int | None = None, limit_seconds: float | None = None) -> NoReturn:
        """Raises the error that says what happened and how the log ends."""
        detail = f" (exit code {code})" if code is not None else ""
        detail += f" (more than {limit_seconds:g} s)" if limit_seconds is not None else ""
        msg = f"{self.name} {what}{detail}; its log {str(self.log_path)!r} ends with:\n{tail(self.log_path)}"
        raise DemoFailed(msg)


def tail(path: Path) -> str:
    """The last lines of a log; a word where it is empty or missing."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError as error:
        return f"(unreadable: {error.strerror})"
    return "\n".join(f"  {line}" for line in lines[-TAIL_LINES:]) or "  (nothing)"
