"""The log: structured, JSON under a service manager, readable on a terminal.

``configure`` is called once by a program's entry point. Modules of ``bus`` and ``trainers`` log through the standard
library with ``extra=`` (a trainer need not have structlog), the others through structlog; both come out alike, on
standard error.
"""

import logging
import sys
from typing import Any

import structlog

from archaeologist.settings import LogSettings

_SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.ExtraAdder(),
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def configure(settings: LogSettings) -> None:
    """Sends structlog's and the standard library's records to standard error in one form."""
    readable = settings.format == "console" or (settings.format == "auto" and sys.stderr.isatty())
    renderer: Any = (
        # Plain tracebacks: the pretty ones print every local variable, credentials too.
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        if readable
        else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    exceptions = [] if readable else [structlog.processors.format_exc_info]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *exceptions, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=settings.level.upper(), force=True)
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
