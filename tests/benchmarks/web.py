"""Times the HTTP API's answers on a long campaign, as a client on this machine sees them.

``python -m tests.benchmarks.web [--checkpoints 2000] [--rounds 200] [--folder DIR]``. The campaign is that of
``tests.benchmarks.summaries``: artifacts of 399 tensors in 39 blocks. A server process of its own answers; the client
reads every byte and does not unpack it. Nothing is asserted.
"""

import argparse
import asyncio
import contextlib
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import httpx

from archaeologist.summaries.chronicle import rebuild
from tests.benchmarks.summaries import Campaign
from tests.fixtures.histories import CAMPAIGN, HERO, folder_in
from tests.fixtures.servers import free_port

BASE: Final = f"/api/analysis/{CAMPAIGN}"
PAGES: Final = {
    "list": f"{BASE}/layer_stats?hero_id={HERO}",
    "drift_timeline": f"{BASE}/drift_timeline?hero_id={HERO}",
    "drift_timeline, the specification's fields": f"{BASE}/drift_timeline?hero_id={HERO}&fields=drift_l2,drift_cosine",
    "top_movers": f"{BASE}/top_movers?hero_id={HERO}&n=10",
    "health_timeline": f"{BASE}/health_timeline?hero_id={HERO}",
    "stability": f"{BASE}/stability?hero_id={HERO}",
    "one artifact": f"{BASE}/layer_stats/200?hero_id={HERO}",
    "campaigns": "/api/campaigns",
    "submodule_drift of one block": f"{BASE}/submodule_drift?hero_id={HERO}&layers=layers.3.",
    "strata, 39 rows of blocks": f"{BASE}/figures/strata?hero_id={HERO}&metric=relative_l2",
    "strata, 399 rows of submodules": f"{BASE}/figures/strata?hero_id={HERO}&metric=l2&rows=submodule",
    "strata, the same by another metric": f"{BASE}/figures/strata?hero_id={HERO}&metric=relative_l2&rows=submodule",
    "layer detail": f"{BASE}/figures/layer?hero_id={HERO}&block=model.layers.3",
}


async def main() -> None:
    """Makes the campaign, starts the server, asks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    with campaign_of(options.checkpoints, within=options.folder) as root:
        print(f"{options.checkpoints} checkpoints, warm, milliseconds:")  # noqa: T201
        async with serving(root) as address, httpx.AsyncClient(base_url=address, trust_env=False, timeout=60) as client:
            for name, path in PAGES.items():
                await _measured(client, name, path, options.rounds)


@contextlib.contextmanager
def campaign_of(checkpoints: int, *, within: Path | None) -> Iterator[Path]:
    """A root with a campaign and its summaries, for the length of a block."""
    root = Path(tempfile.mkdtemp(dir=within))
    try:
        folder = folder_in(root)
        campaign = Campaign(folder, real_from=checkpoints)
        for _ in range(checkpoints):
            campaign.add()
        rebuild(folder)
        yield root
    finally:
        shutil.rmtree(root)


@contextlib.asynccontextmanager
async def serving(root: Path) -> AsyncIterator[str]:
    """The address of a server process without a bus, for the length of a block."""
    port = free_port()
    command = ("-m", "archaeologist", "web", "--port", str(port), "--root", str(root))
    nowhere = ("--nats-url", f"nats://127.0.0.1:{free_port()}")
    server = await asyncio.create_subprocess_exec(
        sys.executable, *command, *nowhere, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        assert server.stdout is not None
        await server.stdout.readline()
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        await server.wait()


async def _measured(client: httpx.AsyncClient, name: str, address: str, rounds: int) -> None:
    plain, packed = {"Accept-Encoding": "identity"}, {"Accept-Encoding": "gzip"}
    first, size, etag = await _asked(client, address, packed)
    taken = sorted([(await _asked(client, address, packed))[0] for _ in range(rounds)])
    whole = sorted([(await _asked(client, address, plain))[0] for _ in range(rounds)])
    known = sorted([(await _asked(client, address, {"If-None-Match": etag}))[0] for _ in range(rounds)])
    tail = int(0.95 * rounds)
    sent = f"{statistics.median(taken):6.1f}, 95 % {taken[tail]:6.1f}, {size / 1e6:5.2f} MB"
    rest = f"plain 95 % {whole[tail]:6.1f}; 304 95 % {known[tail]:6.1f}"
    print(f"  {name:43} first {first:7.1f}; gzip {sent}; {rest}")  # noqa: T201


async def _asked(client: httpx.AsyncClient, address: str, headers: dict[str, str]) -> tuple[float, int, str]:
    """Milliseconds, bytes and ETag of an answer."""
    before = time.perf_counter()
    size = 0
    async with client.stream("GET", address, headers=headers) as reply:
        async for part in reply.aiter_raw():
            size += len(part)
    assert reply.status_code in {200, 304}, reply.status_code
    return (time.perf_counter() - before) * 1000, size, reply.headers.get("etag", "none")


if __name__ == "__main__":
    asyncio.run(main())
