"""``python -m tests.faults.frozen``: a daemon freezes past its lease beside a second one, and wakes up.

With the numbers of an installation (a lease of two minutes, three minutes frozen) unless others are given. The jobs
that the first one runs end while it is frozen; the second one takes them over, and what is sent meanwhile. The first
one stays frozen until it has. Exits with 0 when the checker finds nothing.
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from archaeologist.bus.connection import Bus
from archaeologist.bus.publisher import publish
from archaeologist.daemon.books import Books
from contracts import subjects
from tests.faults.checker import check
from tests.faults.evidence import Finding, History, Sent
from tests.faults.history import read_history
from tests.faults.plan import CAMPAIGNS, HERO, LOST, Plan
from tests.faults.quiet import until_quiet
from tests.faults.stage import Stage
from tests.fixtures.waiting import until_asked

STEPS = tuple(range(100, 700, 100))
FEW = 4
"""Jobs that run when the daemon freezes; as many as it runs of one type."""


def main() -> int:
    """Runs it once; 1 when the checker found something."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.frozen")
    parser.add_argument("--lease", type=float, default=120.0, help="seconds")
    parser.add_argument("--frozen", type=float, default=180.0, help="seconds")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="frozen-"))
    os.environ.setdefault("XDG_CACHE_HOME", str(folder / "cache"))
    history, findings = asyncio.run(freeze(folder, lease_seconds=options.lease, frozen_seconds=options.frozen))
    taken_over = sum(bool(job.get("lost_workers")) for job in history.jobs.values())
    sys.stdout.write(f"{len(history.sent)} requests, {len(history.jobs)} jobs, {taken_over} taken over\n")
    sys.stdout.write(f"verdict: {len(findings)} findings\n" + "".join(f"  {finding}\n" for finding in findings))
    shutil.rmtree(folder, ignore_errors=True)
    return 1 if findings else 0


async def freeze(folder: Path, *, lease_seconds: float, frozen_seconds: float) -> tuple[History, list[Finding]]:
    """What the freeze left, and what of it must not be."""
    stage = Stage(folder, Plan(steps=STEPS), boxes=2, may_mount=False, seed=0, lease_seconds=lease_seconds)
    first, second = stage.boxes
    async with stage.opened() as bus:
        await second.stop()
        sent = await _request(bus, CAMPAIGNS[0])
        await until_asked(lambda: _are_running(bus, FEW), seconds=60)
        await first.daemon.signal(signal.SIGSTOP)
        await second.replace()
        sent += await _request(bus, CAMPAIGNS[1])
        await asyncio.sleep(frozen_seconds)
        with contextlib.suppress(TimeoutError):  # what was not taken over is for the caller to say
            await until_asked(lambda: _are_taken_over(bus, FEW - 1), seconds=60)
        await first.daemon.signal(signal.SIGCONT)
        await until_quiet(bus)
        await stage.tidy()
        history = await read_history(stage.server.url, stage.root, sent)
    return history, check(history)


async def _request(bus: Bus, campaign: str) -> list[Sent]:
    """Asks for every drift of a campaign; each takes a while."""
    sent = []
    for base, to in ((base, to) for base in STEPS for to in STEPS if base < to):
        request_id = f"{campaign}-{base}-{to}"
        body = {"job_type": "layer_drift", "base_checkpoint_step": base, "target_checkpoint_step": to}
        body |= {"hero_id": HERO, "campaign_id": campaign, "request_id": request_id, "fate": "slow"}
        data = json.dumps(body).encode()
        await publish(bus, subjects.ANALYSIS_REQUESTED, data, message_id=request_id)
        sent.append(Sent(request_id, LOST | {"completed"}, subjects.ANALYSIS_REQUESTED, data))
    return sent


async def _are_running(bus: Bus, count: int) -> bool:
    records = (await Books.on(bus).jobs.all()).values()
    return sum(record.state == "running" for record in records) >= count


async def _are_taken_over(bus: Bus, count: int) -> bool:
    return sum(bool(record.lost_workers) for record in (await Books.on(bus).jobs.all()).values()) >= count


if __name__ == "__main__":
    sys.exit(main())
