"""Replies that are made once and sent many times: whole bodies, plain and compressed, each under an ETag.

The ETag is made of what the body is made from (which file, its size and times, which part of it), so that an unchanged
one is answered with 304 without reading the file.
"""

import gzip
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import msgspec
from litestar import Request, Response

import archaeologist
from archaeologist.web.refusals import JSON

COMPRESSION_LEVEL: Final = 4
"""From here on gzip gets slower faster than its output gets smaller, for JSON of numbers."""
WORTH_COMPRESSING_BYTES: Final = 1024

Key = tuple[object, ...]
"""What a body is made from: text and numbers."""


class Document(NamedTuple):
    """A body, plain and compressed."""

    body: bytes
    packed: bytes | None
    """None where it is not worth it."""

    @property
    def size(self) -> int:
        """Bytes in memory."""
        return len(self.body) + len(self.packed or b"")


class Shelf:
    """The documents used last, up to a size; safe for threads.

    Args:
        max_bytes: Of all together.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._documents: OrderedDict[str, Document] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._making = threading.Lock()

    def get(self, etag: str, make: Callable[[], bytes]) -> Document:
        """The document under an ETag, made if it is not there: one at a time, because the largest take all cores."""
        if found := self._found(etag):
            return found
        with self._making:
            if found := self._found(etag):
                return found
            body = make()
            is_worth_it = len(body) >= WORTH_COMPRESSING_BYTES
            document = Document(body, gzip.compress(body, COMPRESSION_LEVEL, mtime=0) if is_worth_it else None)
            self._put(etag, document)
        return document

    def _found(self, etag: str) -> Document | None:
        with self._lock:
            document = self._documents.get(etag)
            if document is not None:
                self._documents.move_to_end(etag)
        return document

    def _put(self, etag: str, document: Document) -> None:
        with self._lock:
            self._documents[etag] = document
            self._bytes += document.size
            while self._bytes > self._max_bytes:
                _, dropped = self._documents.popitem(last=False)
                self._bytes -= dropped.size


def signature(path: Path) -> tuple[int, ...] | None:
    """What changes with a file: its identity, size and times; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def etag_of(key: Key) -> str:
    """The ETag of what is made from a key. Weak: the same body may be sent compressed or not."""
    digest = hashlib.sha256(msgspec.json.encode([archaeologist.__version__, *key])).hexdigest()
    return f'W/"{digest[:32]}"'


def respond(
    request: Request[Any, Any, Any],
    shelf: Shelf,
    key: Key,
    make: Callable[[], bytes],
    *,
    is_behind: bool = False,
    media_type: str = JSON,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> Response[bytes]:
    """The reply with a document, or 304 where the client has it.

    Args:
        request: For what the client has and takes.
        shelf: Where documents are kept.
        key: What the body is made from.
        make: Makes it.
        is_behind: The summaries that it is made from do not yet know the newest artifacts; a header says so.
        media_type: Of the body.
        headers: Of the reply, beside or in place of those that every one has.
    """
    etag = etag_of(key)
    told = {"ETag": etag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding", **headers}
    if is_behind:
        told["Archaeologist-Summaries"] = "behind"
    if _has(request.headers.get("if-none-match", ""), etag):
        return Response(b"", status_code=304, headers=told, media_type=media_type)
    document = shelf.get(etag, make)
    if document.packed is not None and _takes_gzip(request.headers.get("accept-encoding", "")):
        return Response(document.packed, headers={**told, "Content-Encoding": "gzip"}, media_type=media_type)
    return Response(document.body, headers=told, media_type=media_type)


def _has(if_none_match: str, etag: str) -> bool:
    given = [value.strip() for value in if_none_match.split(",")]
    return "*" in given or etag.removeprefix("W/") in (value.removeprefix("W/") for value in given)


def _takes_gzip(accept_encoding: str) -> bool:
    """Whether gzip is among the encodings, with a weight above 0 (RFC 9110, 12.5.3)."""
    for item in accept_encoding.lower().split(","):
        name, _, parameters = item.partition(";")
        if name.strip() in {"gzip", "*"}:
            weight = parameters.strip().removeprefix("q=")
            return weight not in {"0", "0.0", "0.00", "0.000"}
    return False
