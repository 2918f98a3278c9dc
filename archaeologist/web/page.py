"""The page: one document, its style sheet and its modules, all from here. It reads what it shows from the API."""

import importlib.metadata
from collections.abc import Sequence
from importlib import resources
from typing import Any, Final

import msgspec
from litestar import Request, Response, Router, get
from litestar.di import NamedDependency
from litestar.params import FromPath
from litestar.types import ControllerRouterHandler

import archaeologist
from archaeologist.analyses import ANALYSES
from archaeologist.errors import RouteMissing
from archaeologist.settings import LinkSettings
from archaeologist.web import manual
from archaeologist.web.analysis import ALREADY_ENCODED
from archaeologist.web.documents import respond
from archaeologist.web.library import Library

HTML: Final = "text/html"
STYLE: Final = "text/css"
SCRIPT: Final = "text/javascript"
FOREVER: Final = {"Cache-Control": "public, max-age=31536000, immutable"}
"""Of what has its version in its address."""
SHOWN: Final = 100

POLICY: Final = {
    # plotly sets styles as it draws; no script but files of this server, and nothing from elsewhere.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:;"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}
FILES: Final = {
    "page.css": STYLE,
    "page.js": SCRIPT,
    "api.js": SCRIPT,
    "campaign.js": SCRIPT,
    "checkpoints.js": SCRIPT,
    "definitions.js": SCRIPT,
    "dom.js": SCRIPT,
    "events.js": SCRIPT,
    "figures.js": SCRIPT,
    "jobs.js": SCRIPT,
    "sections.js": SCRIPT,
    "strata.js": SCRIPT,
    "theme.js": SCRIPT,
}
"""What lies in the package, by name."""

Asked = Request[Any, Any, Any]


@get("/", sync_to_thread=True)
def read_root(request: Asked, library: NamedDependency[Library]) -> Response[bytes]:
    """The page, for who types the bare address."""
    return _page(request, library)


@get("/analysis", sync_to_thread=True)
def read_page(request: Asked, library: NamedDependency[Library]) -> Response[bytes]:
    """The page."""
    return _page(request, library)


@get(manual.PLACE, sync_to_thread=True)
def read_statistics(request: Asked, library: NamedDependency[Library]) -> Response[bytes]:
    """What every number is."""
    return respond(request, library.shelf, ("statistics",), manual.document, media_type=HTML, headers=POLICY)


@get("/assets/{name:str}", sync_to_thread=True)
def read_asset(request: Asked, library: NamedDependency[Library], name: FromPath[str]) -> Response[bytes]:
    """A file of the page."""
    if name == _plotly_name():
        return respond(request, library.shelf, ("plotly", name), _plotly, media_type=SCRIPT, headers=FOREVER)
    if name == "definitions.json":
        return respond(request, library.shelf, ("asset", name), manual.glossary)
    if name == "themes.json":
        return respond(request, library.shelf, ("asset", name), _themes)
    if name == "base.css":
        return respond(request, library.shelf, ("asset", name), _base, media_type=STYLE)
    if name == "narrow.js":
        return respond(request, library.shelf, ("asset", name), lambda: _of_report(name).encode(), media_type=SCRIPT)
    if name not in FILES:
        msg = f"nothing is served at '/assets/{name[:SHOWN]}'; the page at /analysis names its files"
        raise RouteMissing(msg)
    body = (resources.files("archaeologist.web") / "assets" / name).read_bytes()
    # The body itself in the key: who edits a file sees it at the next load.
    return respond(request, library.shelf, ("asset", name, body), lambda: body, media_type=FILES[name])


def routes() -> list[ControllerRouterHandler]:
    """The handlers of this module."""
    handlers = [read_root, read_page, read_statistics, read_asset]
    return [Router("/", include_in_schema=False, opt={ALREADY_ENCODED: True}, route_handlers=handlers)]


def _page(request: Asked, library: Library) -> Response[bytes]:
    links = library.settings.web.links
    key = ("page", *((link.title, link.address) for link in links))
    return respond(request, library.shelf, key, lambda: _document(links), media_type=HTML, headers=POLICY)


def _document(links: Sequence[LinkSettings]) -> bytes:
    found = manual.ENVIRONMENT.get_template("page.html.jinja").render(
        version=archaeologist.__version__, plotly=_plotly_name(), analyses=ANALYSES, links=links
    )
    return found.encode()


def _plotly_name() -> str:
    return f"plotly-{importlib.metadata.version('plotly')}.js"


def _plotly() -> bytes:
    from plotly.offline import get_plotlyjs  # noqa: PLC0415 -- large, and needed once

    return str(get_plotlyjs()).encode()


def _themes() -> bytes:
    from archaeologist.figures.themes import THEMES, template  # noqa: PLC0415 -- as above

    return msgspec.json.encode({name: template(theme).to_plotly_json() for name, theme in THEMES.items()})


def _base() -> bytes:
    """The report's style sheet below both themes; the reader's choice comes before the system's."""
    from archaeologist.figures.themes import DARK, FONTS, LIGHT, variables  # noqa: PLC0415 -- as above

    dark, light = (f"{variables(theme)} color-scheme: {name};" for name, theme in (("dark", DARK), ("light", LIGHT)))
    report = _of_report("report.css")
    return (
        f":root {{ {FONTS} {dark} }}\n"
        f"@media (prefers-color-scheme: light) {{ :root:not([data-theme='dark']) {{ {light} }} }}\n"
        f":root[data-theme='light'] {{ {light} }}\n{report}"
    ).encode()


def _of_report(name: str) -> str:
    """A file that report and page share."""
    return (resources.files("archaeologist.report") / "templates" / name).read_text(encoding="utf-8")
