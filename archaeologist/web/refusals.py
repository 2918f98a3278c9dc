"""Errors as HTTP replies: one table from an error's class to its status, one shape for the body."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.status_codes import HTTP_404_NOT_FOUND
from litestar.types import Send

from archaeologist import errors
from archaeologist.errors import ArchaeologistError
from contracts.http import Problem

log = structlog.get_logger(__name__)

JSON: Final = "application/json"
RETRY_AFTER_SECONDS: Final = "2"

STATUSES: Final[Mapping[type[ArchaeologistError], int]] = {
    errors.MessageInvalid: 400,
    errors.MessageMalformed: 400,
    errors.ParameterInvalid: 400,
    errors.HeroUnclear: 400,
    errors.TokenWrong: 401,
    errors.HostRefused: 403,
    errors.OriginRefused: 403,
    errors.PathOutsideRoot: 403,
    errors.ArtifactMissing: 404,
    errors.CampaignMissing: 404,
    errors.JobUnknown: 404,
    errors.RouteMissing: 404,
    errors.BodyTooLarge: 413,
    errors.MediaTypeUnsupported: 415,
    errors.TemporaryError: 503,
}
"""Whatever is not listed, itself or by its base, is 500: a file of ours is broken, or we are."""

_BY_STATUS: Final[Mapping[int, type[ArchaeologistError]]] = {
    400: errors.ParameterInvalid,
    404: errors.RouteMissing,
    405: errors.RouteMissing,
    413: errors.BodyTooLarge,
}


def status_of(error: ArchaeologistError) -> int:
    """The HTTP status of an error."""
    return next((STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES), 500)


def headers_of(status: int) -> dict[str, str]:
    """What a reply with this status carries beside its body."""
    more = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": RETRY_AFTER_SECONDS}}
    return {"Cache-Control": "no-store", **more.get(status, {})}


async def answer(send: Send, error: ArchaeologistError) -> None:
    """Sends an error as a whole reply, for what is refused before it is routed."""
    status, body = status_of(error), msgspec.json.encode(Problem(error=str(error), code=error.code))
    headers = {**headers_of(status), "Content-Type": JSON, "Content-Length": str(len(body))}
    pairs = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def on_known(_request: Request[Any, Any, Any], error: ArchaeologistError) -> Response[Problem]:
    """The reply to an error of ours."""
    return _reply(status_of(error), error)


def on_http(request: Request[Any, Any, Any], error: HTTPException) -> Response[Problem]:
    """The reply to what Litestar refuses: an address, a method, a parameter, a body's size."""
    kind = _BY_STATUS.get(error.status_code)
    if kind is None:
        return _reply(error.status_code, ArchaeologistError(error.detail))
    return _reply(error.status_code, kind(_sentence(request, error)), more=error.headers)


def on_defect(request: Request[Any, Any, Any], error: Exception) -> Response[Problem]:
    """The reply to a defect; the log has the traceback."""
    log.error("request failed", path=request.url.path, exc_info=error)
    return _reply(500, errors.InternalError(f"{type(error).__name__}; this is a defect, the server's log tells more"))


def only_known(response: Response[Any]) -> Response[Any]:
    """A reply of the description's routes, whose own words for an address that they do not know are a page."""
    if response.status_code != HTTP_404_NOT_FOUND:
        return response
    return _reply(HTTP_404_NOT_FOUND, errors.RouteMissing("nothing is served there; the description is at /schema"))


def _reply(status: int, error: ArchaeologistError, *, more: Mapping[str, str] | None = None) -> Response[Problem]:
    problem = Problem(error=str(error), code=error.code)
    return Response(problem, status_code=status, media_type=JSON, headers={**headers_of(status), **(more or {})})


def _sentence(request: Request[Any, Any, Any], error: HTTPException) -> str:
    path = request.url.path[:200]
    match error.status_code:
        case 404:
            return f"nothing is served at {path!r}; /schema lists what is"
        case 405:
            return f"{request.method} is not served at {path!r}; /schema lists what is"
        case 413:
            return "the body is larger than is read (setting web.max_body_bytes); send paths and not contents"
    if isinstance(error, ValidationException) and isinstance(error.extra, list):
        return "; ".join(_rule(request, item) for item in error.extra) or error.detail
    return f"{error.detail}; /schema lists the parameters"


def _rule(request: Request[Any, Any, Any], item: dict[str, Any]) -> str:
    """What is wrong with one parameter."""
    name = str(item.get("key", "a parameter"))
    value = request.query_params.get(name, request.path_params.get(name))
    return f"{name}={str(value)[:100]!r}: {item.get('message')}"
