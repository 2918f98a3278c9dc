"""The application: routes, errors, description and compression put together."""

from dataclasses import dataclass
from typing import Final, Self

from litestar import Litestar, Router
from litestar.config.compression import CompressionConfig
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.types import ASGIApp

import archaeologist
from archaeologist import metrics
from archaeologist.errors import ArchaeologistError
from archaeologist.settings import Settings
from archaeologist.web import analysis, condition, events, exhibits, jobs, page
from archaeologist.web.events import Streams
from archaeologist.web.guard import Guard, Rules, names_of
from archaeologist.web.jobs import Desk
from archaeologist.web.library import Library
from archaeologist.web.link import Link
from archaeologist.web.refusals import on_defect, on_http, on_known, only_known

GZIP_LEVEL: Final = 4
MINIMUM_COMPRESSED_BYTES: Final = 1024


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the routes work with."""

    library: Library
    link: Link
    desk: Desk
    streams: Streams

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The parts that these settings describe; ``link.keep`` brings the bus."""
        link = Link(settings.bus)
        return cls(library=Library(settings), link=link, desk=Desk(settings, link), streams=Streams(settings, link))


def create(settings: Settings, parts: Parts, *, token: str | None = None) -> ASGIApp:
    """The whole API behind its guard.

    Args:
        settings: All of them.
        parts: What the routes work with.
        token: What a request that changes something must carry; None: nothing.
    """
    application = Litestar(
        [*analysis.routes(), *exhibits.routes(), *jobs.routes(), *events.routes(), *condition.routes(), *page.routes()],
        dependencies={
            "library": Provide(lambda: parts.library, sync_to_thread=False),
            "desk": Provide(lambda: parts.desk, sync_to_thread=False),
            "streams": Provide(lambda: parts.streams, sync_to_thread=False),
        },
        exception_handlers={ArchaeologistError: on_known, HTTPException: on_http, Exception: on_defect},
        openapi_config=_description(),
        compression_config=CompressionConfig(
            backend="gzip",
            gzip_compress_level=GZIP_LEVEL,
            minimum_size=MINIMUM_COMPRESSED_BYTES,
            exclude_opt_key=analysis.ALREADY_ENCODED,
        ),
        request_max_body_size=settings.web.max_body_bytes,
        logging_config=None,
    )
    names = names_of(settings.web.host, *settings.web.allowed_hosts)
    return Guard(application, Rules(names=names, token=token), on_status=metrics.note_request)


def _description() -> OpenAPIConfig:
    return OpenAPIConfig(
        title="Model Archaeologist",
        version=archaeologist.__version__,
        description="What changed in a language model between two checkpoints. docs/http.md explains each route.",
        openapi_router=Router("/schema", route_handlers=[], include_in_schema=False, after_request=only_known),
        # The pages that draw such a document load their scripts from elsewhere: the document alone is served.
        render_plugins=[JsonRenderPlugin(path="/openapi.json")],
    )
