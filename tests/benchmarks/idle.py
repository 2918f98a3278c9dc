"""What the daemon costs at rest, how soon it begins, and whether a backlog is absorbed: real server, real processes.

``python -m tests.benchmarks.idle [--seconds 60] [--starts 60] [--messages 10000] [--only idle|latency|backlog]``.
Nothing is asserted.

- idle: the daemon's processor time while nothing happens, as a share of one core, and the server's.
- latency: from ``checkpoint.saved`` published to ``analysis.started`` received, one after the other, each with a free
  slot. The checkpoints are real and tiny; the child computes nothing.
- backlog: so many distinct ``checkpoint.saved`` messages, published while no daemon is there. One without a role, so
  that nothing is run meanwhile, makes jobs of them. Every message must have its record, every record its job, every job
  its message on the queue; what is beyond the queue's ceiling must be refused with an event. The checkpoints are links
  to the bytes of one.
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Final

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.bus.connection import Bus, connected
from archaeologist.bus.log import events
from archaeologist.bus.topology import MAX_QUEUED, ensure
from archaeologist.daemon import control
from archaeologist.daemon.books import Books
from archaeologist.settings import BusSettings, Settings
from contracts import subjects
from tests.fixtures.checkpoints import write_checkpoint
from tests.fixtures.servers import Server
from tests.fixtures.waiting import until_asked

PATIENCE_SECONDS: Final = 600.0
LOOK_SECONDS: Final = 0.2
SETTLE_SECONDS: Final = 5.0
"""After its start, for the first sweep."""
A_CAMPAIGN: Final = 500
"""Checkpoints of one campaign in the backlog."""
BEYOND: Final = 10
"""Requests that come when the queue is at its ceiling."""
TICKS: Final = os.sysconf("SC_CLK_TCK")

DAEMON: Final = (sys.executable, "-m", "archaeologist", "daemon")
PROGRAM: Final = """
import asyncio
from archaeologist import logs
from archaeologist.daemon import service
from archaeologist.settings import load
from tests.fixtures.child import COMMAND
settings = load()
logs.configure(settings.log)
asyncio.run(service.run(settings, command=COMMAND))
"""
QUICK: Final = (sys.executable, "-c", PROGRAM)
"""The same daemon with children that compute nothing."""


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 -- what it is for


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far, without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


class House:
    """A server, a root, a connection."""

    def __init__(self, root: Path, server: Server, bus: Bus) -> None:
        self.root, self.server, self.bus = root, server, bus
        self.books = Books.on(bus)

    @contextlib.asynccontextmanager
    async def daemon(self, command: tuple[str, ...], **settings: str) -> AsyncIterator[int]:
        """A daemon's process id, from when it is ready until it has ended well."""
        environment = {
            **os.environ,
            "ARCHAEOLOGIST_ROOT": str(self.root),
            "ARCHAEOLOGIST_NATS_URL": self.server.url,
            "ARCHAEOLOGIST_POLICY__EVERY": "1",
            "ARCHAEOLOGIST_LOG__LEVEL": "error",
            **settings,
        }
        process = await asyncio.create_subprocess_exec(*command, env=environment)
        try:
            await until_asked(lambda: self._is_there(process.pid), seconds=PATIENCE_SECONDS)
            yield process.pid
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()

    async def _is_there(self, pid: int) -> bool:
        return pid in {worker.pid for worker in await control.workers(self.bus)}

    async def is_at_rest(self) -> bool:
        """Whether no job waits or runs."""
        return not await self.books.queue.subjects()


@contextlib.asynccontextmanager
async def opened() -> AsyncIterator[House]:
    """A house that is taken down again."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        root.mkdir()
        async with Server(Path(folder) / "nats") as server:
            settings = Settings(root=str(root), bus=BusSettings(url=server.url))
            async with connected(settings.bus, name="benchmark") as bus:
                await ensure(bus, settings)
                yield House(root.resolve(), server, bus)


async def measure_idle(house: House, *, seconds: float) -> None:
    async with house.daemon(DAEMON) as pid:
        await asyncio.sleep(SETTLE_SECONDS)
        before, served, started = cpu_seconds(pid), cpu_seconds(house.server.pid), time.perf_counter()
        await asyncio.sleep(seconds)
        took = time.perf_counter() - started
        own, servers = cpu_seconds(pid) - before, cpu_seconds(house.server.pid) - served
    say(f"idle: {own / took:.2%} of a core over {took:.0f} s; the server {servers / took:.2%}")


async def measure_latency(house: House, *, starts: int) -> None:
    folder = CampaignFolder.of(house.root, "dio", "latency")
    took = []
    heard: asyncio.Queue[float] = asyncio.Queue()

    async def on_started(_message: object) -> None:
        heard.put_nowait(time.perf_counter())

    await house.bus.client.subscribe(subjects.ANALYSIS_STARTED, cb=on_started)
    async with house.daemon(QUICK):
        for step in range(starts):
            write_checkpoint(folder.checkpoints / f"checkpoint-{step}", seed=step)
            body = announcement("latency", step)
            sent = time.perf_counter()
            await house.bus.jetstream.publish(subjects.CHECKPOINT_SAVED, body)
            took.append(await heard.get() - sent)
            await until_asked(house.is_at_rest, seconds=PATIENCE_SECONDS)
    cut = statistics.quantiles(took, n=20)
    say(
        f"latency: checkpoint.saved to analysis.started, median {1000 * statistics.median(took):.0f} ms of {starts},"
        f" 95 % within {1000 * cut[-1]:.0f} ms, longest {1000 * max(took):.0f} ms"
    )


async def measure_backlog(house: House, *, messages: int) -> None:
    asked = dict(backlog(house.root, messages + BEYOND))
    bodies = list(asked.items())
    before = time.perf_counter()
    for start in range(0, messages, 200):
        await asyncio.gather(*(put(house, name, body) for name, body in bodies[start : min(start + 200, messages)]))
    published = time.perf_counter() - before
    before = time.perf_counter()
    async with house.daemon(QUICK, ARCHAEOLOGIST_WORKER__NAME="intake", **without_roles(house.root)) as pid:
        await until_requests(house, messages)
        took, own = time.perf_counter() - before, cpu_seconds(pid)
        states = await check(house, dict(bodies[:messages]))
        for name, body in bodies[messages:]:
            await put(house, name, body)
        await until_requests(house, messages + BEYOND)
        beyond = await check(house, dict(bodies[messages:]))
    refused = [event.event async for event in events(house.bus, follow=False, subjects=[subjects.ANALYSIS_FAILED])]
    say(
        f"backlog: {messages} messages published in {published:.1f} s, absorbed in {took:.1f} s"
        f" ({messages / took:.0f} a second, {own / messages * 1000:.1f} ms of processor time each): {dict(states)};"
        f" {BEYOND} more: {dict(beyond)}, {len(refused)} analysis.failed"
    )


def backlog(root: Path, count: int) -> Iterator[tuple[str, bytes]]:
    """So many announcements by request id, their checkpoints on the disk."""
    original = write_checkpoint(root / "original", seed=0)
    for number in range(count):
        campaign, step = f"b{number // A_CAMPAIGN}", number % A_CAMPAIGN
        folder = CampaignFolder.of(root, "dio", campaign).checkpoints / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        for file in original.iterdir():
            os.link(file, folder / file.name)
        name = f"{campaign}-{step}"
        yield name, announcement(campaign, step, request_id=name)


def announcement(campaign: str, step: int, **more: str) -> bytes:
    fields = {"hero_id": "dio", "campaign_id": campaign, "checkpoint_path": f"checkpoint-{step}", **more}
    return json.dumps(fields).encode()


async def put(house: House, name: str, body: bytes) -> None:
    await house.bus.jetstream.publish(subjects.CHECKPOINT_SAVED, body, headers={subjects.MESSAGE_ID: name})


def without_roles(root: Path) -> Mapping[str, str]:
    """A worker that makes jobs of requests and takes none."""
    config = root / "intake.toml"
    config.write_text('[worker]\nroles = ["none"]\n')
    return {"ARCHAEOLOGIST_CONFIG": str(config)}


async def until_requests(house: House, count: int) -> None:
    async def are_there() -> bool:
        await asyncio.sleep(LOOK_SECONDS)
        info = await house.bus.jetstream.stream_info(f"KV_{subjects.REQUEST_RECORDS}")
        return bool(info.state.messages >= count)

    await until_asked(are_there, seconds=PATIENCE_SECONDS)


async def check(house: House, asked: Mapping[str, bytes]) -> Counter[str]:
    """How many of the requests ended how; ``LOST`` are those of which a part is missing."""
    requests, jobs = await house.books.requests.all(), await house.books.jobs.all()
    queued = Counter(key for _, _, key in await house.books.queue.subjects())
    states: Counter[str] = Counter()
    for name in asked:
        request = requests.get(name)
        job = jobs.get(request.job_key or "") if request else None
        if request is None:
            states["LOST: no record"] += 1
        elif request.state == "accepted" and (job is None or queued[job.job.job_key] != 1):
            states["LOST: accepted without a job on the queue"] += 1
        else:
            states[f"refused as {request.error.code}" if request.error else request.state] += 1
    return states


async def run(arguments: argparse.Namespace) -> None:
    if arguments.only in {None, "idle"}:
        async with opened() as house:
            await measure_idle(house, seconds=arguments.seconds)
    if arguments.only in {None, "latency"}:
        async with opened() as house:
            await measure_latency(house, starts=arguments.starts)
    if arguments.only in {None, "backlog"}:
        async with opened() as house:
            await measure_backlog(house, messages=arguments.messages)


def main() -> None:
    parser = argparse.ArgumentParser(description="The daemon at rest, its latency, and a backlog.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--starts", type=int, default=60)
    parser.add_argument("--messages", type=int, default=MAX_QUEUED)
    parser.add_argument("--only", choices=["idle", "latency", "backlog"])
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
