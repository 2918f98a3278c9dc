"""Who may ask: checked before anything is routed, and the headers that every reply carries.

A browser on this machine can be led by any site to send requests here. The name that a request comes under (Host) keeps
out pages whose own name was pointed at this address; Origin and Sec-Fetch-Site keep out pages of other sites; the token
keeps out other machines, where the server listens for them.
"""

import hmac
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from archaeologist.errors import ArchaeologistError, HostRefused, OriginRefused, ParameterInvalid, TokenWrong
from archaeologist.web.refusals import answer

LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})
READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})
SHOWN: Final = 100
"""Characters of a foreign header that an error repeats."""

CONTENT_SECURITY: Final = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS: Final[Mapping[str, str]] = {
    "content-security-policy": CONTENT_SECURITY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "x-frame-options": "DENY",
}
"""On every reply; one that sets its own keeps it."""

_AUTHORITY: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")
_ORIGIN: Final = re.compile(r"https?://(.+)")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a request must carry."""

    names: frozenset[str]
    """Names, in lower case, under which this server is asked for; addresses are always allowed: no site can claim them
    with a name of its own."""
    token: str | None = None
    """What a request that changes something must carry; None: nothing."""

    def check(self, method: str, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Passes a request, or raises.

        Raises:
            HostRefused: It came under a foreign name.
            OriginRefused: A page of another site sent it.
            TokenWrong: It changes something and lacks the token.
        """
        found = _collected(headers)
        host = self._host(found.get("host", []))
        self._check_origin(host, found)
        if method not in READING:
            self._check_token(found.get("authorization", []))

    def _host(self, values: list[str]) -> str:
        host = values[0].strip().lower() if len(values) == 1 else ""
        if not self._is_ours(host):
            shown = ", ".join(values)[:SHOWN]
            msg = f"Host {shown!r} is not a name of this server; name it in the setting web.allowed_hosts"
            raise HostRefused(msg)
        return host

    def _is_ours(self, authority: str) -> bool:
        match = _AUTHORITY.fullmatch(authority)
        if match is None:
            return False
        name = match[1].strip("[]").rstrip(".")
        return name in self.names or _is_address(name)

    def _check_origin(self, host: str, found: Mapping[str, list[str]]) -> None:
        for origin in found.get("origin", []):
            match = _ORIGIN.fullmatch(origin.strip().lower())
            authority = match[1] if match else ""
            name = authority.rpartition(":")[0] or authority
            if authority != host and not (name in self.names - LOOPBACK_NAMES and self._is_ours(authority)):
                msg = f"Origin {origin[:SHOWN]!r} is another site than Host {host!r}; open the page on this server"
                raise OriginRefused(msg)
        site, mode = (found.get(f"sec-fetch-{name}", [""])[0] for name in ("site", "mode"))
        if site in {"cross-site", "same-site"} and mode != "navigate" and "origin" not in found:
            msg = f"Sec-Fetch-Site {site!r}: a page of another site sent this; open the page on this server"
            raise OriginRefused(msg)

    def _check_token(self, values: list[str]) -> None:
        if self.token is None:
            return
        scheme, _, given = (values[0] if len(values) == 1 else "").partition(" ")
        is_right = hmac.compare_digest(given.strip().encode("latin-1", "replace"), self.token.encode())
        if scheme.lower() != "bearer" or not is_right:
            state = "wrong" if values else "missing"
            msg = f"the token is {state}; send 'Authorization: Bearer TOKEN' with what the server printed at its start"
            raise TokenWrong(msg)


def names_of(*more: str) -> frozenset[str]:
    """Names under which a server is asked for: this machine's own, and more."""
    return LOOPBACK_NAMES | {name.lower() for name in more}


class Guard:
    """An ASGI application behind the rules.

    Args:
        app: Who answers.
        rules: What a request must carry.
        on_status: Called with the status of each reply.
    """

    def __init__(self, app: ASGIApp, rules: Rules, *, on_status: Callable[[int], None] = lambda _: None) -> None:
        self._app = app
        self._rules = rules
        self._on_status = on_status

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or refuses it."""
        if scope["type"] != ScopeType.HTTP:
            return
        guarded = _with_headers(send, self._on_status)
        try:
            self._rules.check(str(scope["method"]), scope["headers"])
            check_text(scope["path"], scope["query_string"])
        except ArchaeologistError as error:
            await answer(guarded, error)
            return
        await self._app(scope, receive, guarded)


def check_text(path: str, query: bytes) -> None:
    """Passes an address that can be written down.

    Raises:
        ParameterInvalid: It has half a character, or bytes that an address cannot have.
    """
    if any("\ud800" <= character <= "\udfff" for character in path):
        msg = "the address has half a character; write it in UTF-8, as %XX"
        raise ParameterInvalid(msg)
    if not query.isascii():
        msg = "the query has bytes that are not ASCII; write them as %XX"
        raise ParameterInvalid(msg)


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine alone."""
    return host in LOOPBACK_NAMES or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _collected(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in headers:
        found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    return found


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _with_headers(send: Send, on_status: Callable[[int], None]) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            on_status(message["status"])
            headers = list(message.get("headers", []))
            there = {bytes(name).lower() for name, _ in headers}
            pairs = ((name.encode("latin-1"), value.encode("latin-1")) for name, value in HEADERS.items())
            message["headers"] = [*headers, *(pair for pair in pairs if pair[0] not in there)]
        await send(message)

    return sending
