"""The log: structured, JSON under a service manager, readable on a terminal.

systemd's journal also gets each line's priority, so that ``journalctl -p warning`` finds what it should (sd-daemon(3)).

``configure`` is called once by a program's entry point. Modules of ``bus`` and ``trainers`` log through the standard
library with ``extra=`` (a trainer need not have structlog), the others through structlog; both come out alike, on
standard error.
"""

import io
import json
import logging
import os
import sys
from collections.abc import MutableMapping
from typing import Any, Final, TextIO

import structlog

from archaeologist.settings import LogSettings
from archaeologist.texts import escaped, escaped_json

PRIORITIES: Final = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
"""Of syslog(3), by level."""


def _without_colours(_logger: Any, _name: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Leaves out the second copy of its message that uvicorn gives, for terminals."""
    record.pop("color_message", None)
    return record


_SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.ExtraAdder(),
    _without_colours,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def configure(settings: LogSettings) -> None:
    """Sends structlog's and the standard library's records to standard error in one form."""
    readable = settings.format == "console" or (settings.format == "auto" and sys.stderr.isatty())
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_write_traceback)
        if readable
        else structlog.processors.JSONRenderer(_json, ensure_ascii=False)
    )
    prepared: list[Any] = [_escape] if readable else [structlog.processors.format_exc_info]
    handler = logging.StreamHandler(sys.stderr)
    formatter = _JournalFormatter if _is_journal(sys.stderr) else structlog.stdlib.ProcessorFormatter
    handler.setFormatter(
        formatter(
            foreign_pre_chain=_SHARED,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *prepared, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=settings.level.upper(), force=True)
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


class _JournalFormatter(structlog.stdlib.ProcessorFormatter):
    """Puts the priority before each line; the journal takes it off again."""

    def format(self, record: logging.LogRecord) -> str:
        # Not splitlines, which takes more for ends of lines than JSON escapes and the journal does.
        priority = PRIORITIES.get(record.levelno, PRIORITIES[logging.INFO])
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).split("\n"))


def _is_journal(stream: TextIO) -> bool:
    """Whether the journal reads a stream: ``JOURNAL_STREAM`` names its device and inode (systemd.exec(5))."""
    try:
        status = os.fstat(stream.fileno())
    except OSError:  # no file at all
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _json(event: Any, **how: Any) -> str:
    return escaped_json(json.dumps(event, **how))


def _escape(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A processor: what others sent must not look like lines of ours. JSON is escaped as such."""
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = escaped(value)
    return event


def _write_traceback(output: TextIO, raised: Any) -> None:
    # Not the pretty ones, which print every local variable, credentials too.
    plain = io.StringIO()
    structlog.dev.plain_traceback(plain, raised)
    output.write("\n".join(map(escaped, plain.getvalue().split("\n"))))
