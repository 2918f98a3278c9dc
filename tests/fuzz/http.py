"""Malformed HTTP requests to the whole API in this process, below what a client library would let through."""

import asyncio
import random
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgspec

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.artifacts.store import write_whole
from archaeologist.errors import InternalError
from archaeologist.settings import Settings
from tests.fixtures.artifacts import layer_drift, layer_stats
from tests.fixtures.web import application
from tests.fuzz.decoders import MESSAGES
from tests.fuzz.mutations import VALUES, mutated
from tests.fuzz.running import Tally, resident_bytes

NAME: Final = "HTTP request"

PATHS: Final = (
    "/",
    "/analysis",
    "/assets/page.js",
    "/api/campaigns",
    "/api/analysis/c1/layer_stats",
    "/api/analysis/c1/layer_stats/100",
    "/api/analysis/c1/drift_timeline",
    "/api/analysis/c1/health_timeline",
    "/api/analysis/c1/top_movers",
    "/api/analysis/c1/stability",
    "/api/analysis/c1/skill_impact",
    "/api/analysis/c1/layer_drift",
    "/api/analysis/c1/layer_drift/100-200",
    "/api/analysis/c1/contents",
    "/api/analysis/c1/findings",
    "/api/analysis/c1/cards",
    "/api/analysis/c1/figures/strata",
    "/api/analysis/c1/tables/checkpoints",
    "/api/jobs",
    "/api/jobs/01HXREQUEST",
    "/api/workers",
    "/api/events",
    "/health",
    "/ready",
    "/metrics",
    "/schema/openapi.json",
)
PARAMETERS: Final = (
    "hero_id=dio",
    "limit=5",
    "offset=1",
    "layers=lm_head",
    "fields=l2",
    "first_step=1",
    "last_step=200",
    "n=3",
    "metric=l2",
    "block=lm_head",
    "skill=BIN",
    "status=done",
    "campaign_id=c1",
    "types=analysis.failed",
    "last=2",
    "after=1",
)
METHODS: Final = ("GET", "GET", "GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "FOO")


def request(chance: random.Random) -> tuple[dict[str, Any], bytes]:
    """An ASGI scope and a body."""
    path = chance.choice(PATHS)
    if chance.random() < 0.5:
        path = "/".join(_odd(chance, part) if chance.random() < 0.3 else part for part in path.split("/"))
    raw = (
        quote(path, safe="/%", errors="surrogatepass").encode()
        if chance.random() < 0.8
        else path.encode("utf-8", "replace")
    )
    chosen = chance.sample(PARAMETERS, chance.randint(0, 3))
    pairs = (f"{name}={_odd(chance, value)}" for name, _, value in (one.partition("=") for one in chosen))
    query = "&".join(pairs).encode("utf-8", "replace")
    query = quote(query, safe="&=").encode() if chance.random() < 0.7 else query
    if chance.random() < 0.1:
        query = mutated(chance, query)
    body = mutated(chance, _seed(chance)) if chance.random() < 0.6 else b""
    headers = [(b"host", b"127.0.0.1:8767"), (b"content-type", b"application/json")]
    if chance.random() < 0.3:
        name = chance.choice(
            (b"host", b"origin", b"last-event-id", b"if-none-match", b"accept-encoding", b"authorization")
        )
        headers.append((name, mutated(chance, b'http://127.0.0.1:8767, W/"x", gzip;q=0, 12')[:2000]))
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST" if body and path == "/api/jobs" else chance.choice(METHODS),
        "scheme": "http",
        "path": path,
        "raw_path": raw,
        "root_path": "",
        "query_string": query,
        "headers": headers,
        "client": ("127.0.0.1", 5000),
        "server": ("127.0.0.1", 8767),
        "state": {},
    }
    return scope, body


def _odd(chance: random.Random, text: str) -> str:
    return text if chance.random() < 0.4 else str(chance.choice(VALUES))[:3000]


def _seed(chance: random.Random) -> bytes:
    return msgspec.json.encode(chance.choice(MESSAGES["analysis.requested"]))


async def run(*, inputs: int, seed: int) -> Tally:
    """Asks so many times, of a campaign that has artifacts, without a bus."""
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        root = Path(place).resolve()
        folder = CampaignFolder.of(root, "dio", "c1")
        for step in (100, 200):
            write_whole(folder.layer_stats(step), msgspec.json.encode(layer_stats(f"key{step}", step=step)))
        write_whole(folder.layer_drift(100, 200), msgspec.json.encode(layer_drift()))
        api = application(Settings(root=str(root)))
        before = resident_bytes()
        for number in range(inputs):
            if number == min(500, inputs // 2):
                before = resident_bytes()
            scope, body = request(random.Random(zlib.crc32(f"{NAME}:{seed}:{number}".encode())))
            started = time.perf_counter()
            try:
                code = await asyncio.wait_for(_asked(api, scope, body), timeout=30)
                tally.add(code, time.perf_counter() - started)
            except Exception as error:  # noqa: BLE001 -- whatever it is, it is what is looked for
                tally.crash(number, error, repr((scope["method"], scope["path"], scope["query_string"], body)).encode())
        tally.growth_bytes = resident_bytes() - before
    return tally


async def _asked(api: Any, scope: dict[str, Any], body: bytes) -> str | None:
    """The code of the reply; None where it is no error. A reply without one, or as a defect of ours, is a crash."""
    sent: list[dict[str, Any]] = []
    received = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        return received.pop() if received else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await api(scope, receive, send)
    status = sent[0]["status"]
    if status < 400 or scope["method"] == "HEAD":
        assert status != 500
        return None
    if scope["path"] == "/ready":
        return f"ready {status}"
    content = b"".join(message.get("body", b"") for message in sent[1:])
    problem = msgspec.json.decode(content)
    assert problem["error"], problem
    code = str(problem["code"])
    assert code != InternalError.code, problem
    return code
