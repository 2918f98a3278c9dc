"""What it costs to say how a job ended, in a Battle Log that has much to say: real server, no daemon.

``python -m tests.benchmarks.ending [--events 10000] [--jobs 30]``. Nothing is asserted.

The log gets so many ``analysis.failed`` events, all within the ten minutes that are looked through for one that may
have been published before. Then failed jobs are settled in turns, as their first end and as one that may be a
repetition: dead letter, event, record.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from archaeologist.bus.connection import Bus, connected
from archaeologist.bus.log import find_message
from archaeologist.bus.publisher import publish
from archaeologist.bus.topology import ensure
from archaeologist.daemon import announcements, lifecycle
from archaeologist.daemon.books import Books
from archaeologist.daemon.completion import Completion
from archaeologist.settings import BusSettings, Settings
from contracts import subjects
from contracts.messages import EventError, JobKey, Side, encode
from contracts.records import JobRecord
from tests.fixtures.jobs import layer_stats_job
from tests.fixtures.servers import Server

AT_ONCE: Final = 200


def main() -> None:
    """Prints what was measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.ending")
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=30, help="of each kind")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_measure(Path(folder), events=options.events, jobs=options.jobs))


async def _measure(folder: Path, *, events: int, jobs: int) -> None:
    async with Server(folder / "nats") as server:
        settings = Settings(root=str(folder / "root"), bus=BusSettings(url=server.url))
        async with connected(settings.bus, name="benchmark") as bus:
            await ensure(bus, settings)
            await _fill(bus, events)
            seconds = [await _find(bus) for _ in range(3)]
            _tell(f"{events} events: looked through in {statistics.median(seconds):.3f} s")
            completion = Completion(bus, Books.on(bus), settings)
            taken: dict[bool, list[float]] = {True: [], False: []}
            for number in range(2 * jobs):
                is_first = number % 2 == 0
                taken[is_first].append(await _settle(bus, completion, number, is_first=is_first))
            for is_first, name in ((True, "first end"), (False, "may be a repetition")):
                _tell(f"{name}: settled in {1000 * statistics.median(taken[is_first]):.1f} ms")


def _failed(number: int) -> JobRecord:
    side = Side(path="/c/1", step=number, read_path="/c/1", fingerprint="f")
    job = layer_stats_job(side, job_key=JobKey(f"job{number}"))
    now = datetime.now(UTC)
    record = lifecycle.claimed(lifecycle.queued(job, request_id=job.job_id, now=now), owner="box:1", token=1, now=now)
    error = EventError(code="shard_missing", message="a shard is missing; save the checkpoint again")
    return lifecycle.failed(record, error, now=now) or record


async def _fill(bus: Bus, count: int) -> None:
    """As many events as there were jobs in the last minutes."""
    for start in range(0, count, AT_ONCE):
        numbers = range(start, min(count, start + AT_ONCE))
        await asyncio.gather(*(_publish(bus, 1_000_000 + number) for number in numbers))


async def _publish(bus: Bus, number: int) -> None:
    record = _failed(number)
    event = announcements.terminal(record, worker="box", now=datetime.now(UTC))
    await publish(bus, event.type, encode(event), message_id=announcements.message_id(record))


async def _find(bus: Bus) -> float:
    return await _timed(
        lambda: find_message(
            bus, subjects.BATTLE_LOG, "nobody's", subject=subjects.ANALYSIS_FAILED, since=datetime.now(UTC)
        )
    )


async def _settle(bus: Bus, completion: Completion, number: int, *, is_first: bool) -> float:
    record = _failed(number)
    await Books.on(bus).jobs.create(record.job.job_key, record)
    return await _timed(lambda: completion.settle(record, is_first=is_first))


async def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    await call()  # type: ignore[misc]
    return time.perf_counter() - started


def _tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
