"""Memory at 70B, and several workers on one queue.

``python -m tests.benchmarks.scale memory [--size 70b] [--folder DIR]`` walks a generated pair whose shards are holes,
which take no disk. Holes read as zeros and come from no disk: the figure is the peak memory, and the time says nothing
about rates. Nothing is asserted.

``python -m tests.benchmarks.scale workers [--jobs 24] [--most 4]`` lets 1, 2, … daemons on as many simulated hosts (a
process each, with a name, a state folder and one job at a time) finish the same backlog from one queue. The jobs wait
more than they compute (a limit on the rate of reading), so that two cores can show more than two hosts.
"""

import argparse
import asyncio
import contextlib
import os
import tempfile
import time
from pathlib import Path

from archaeologist import api
from archaeologist.bench import models
from archaeologist.bench.disk import weight_files
from archaeologist.bench.processes import run_child
from contracts.messages import Excavation
from tests.fixtures.programs import Daemon
from tests.integration.daemon.house import House, opened

SHAPE = models.Shape(layers=4, hidden=256, heads=2, intermediate=512, key_value_heads=1, vocabulary=8000)
JOB_SECONDS = 8.0
"""Of one job, by the limit on its rate."""


def memory(size: str, folder: Path) -> None:
    """Prints the child's peak memory over a pair of holes."""
    pair = models.make_pair(folder / "pair", models.SIZES[size], has_holes=True)
    job = api.layer_stats_job(pair.target, reference=pair.reference, compute_activations=False)
    asked = Excavation(job=job, artifact_path=str(folder / "artifact"), sketch_path=str(folder / "sketch"))
    total = sum(file.stat().st_size for file in weight_files(*pair))
    on_disk = sum(file.stat().st_blocks * 512 for file in weight_files(*pair))
    found = run_child(asked, cache=api.default_cache())
    print(  # noqa: T201
        f"{size}: {total / 1e9:.0f} GB in both checkpoints, {on_disk / 1e6:.1f} MB on the disk;"
        f" peak {found.peak_mb:.0f} MB anonymous, {found.resident_mb:.0f} MB resident;"
        f" {found.process_seconds:.0f} s, which says nothing about rates"
    )


async def drained(house: House, steps: range, *, hosts: int, rate: float) -> float:
    """Seconds that so many hosts take for the steps' jobs."""
    asked = [f"{hosts}-{step}" for step in steps]
    for request, step in zip(asked, steps, strict=True):
        await house.request(request, checkpoint_step=step, reference="none", compute_activations=False)
    environment = {
        "ARCHAEOLOGIST_POLICY__AUTOMATIC": "false",
        "ARCHAEOLOGIST_WORKER__THREADS": "1",
        "ARCHAEOLOGIST_WORKER__READ_MB_PER_SECOND": f"{rate:.3f}",
        "ARCHAEOLOGIST_JOBS__POLL_SECONDS": "0.2",
    }
    async with contextlib.AsyncExitStack() as running:
        started = time.monotonic()
        for number in range(hosts):
            named = environment | {"ARCHAEOLOGIST_WORKER__NAME": f"host-{number}"}
            root = Path(house.settings.root)
            host = Daemon(root=root, url=house.server.url, environment=named, log=f"host-{number}.log")
            await running.enter_async_context(host)
        for request in asked:
            _, job = await house.until_ended(request)
            if job is None or job.state != "done":
                msg = f"a job did not end well: {job}"
                raise SystemExit(msg)
        return time.monotonic() - started


async def workers(jobs: int, most: int, folder: Path) -> None:
    """Prints how long 1, 2, … hosts take for the same number of jobs."""
    async with opened(folder) as house:
        size = 0
        for step in range(jobs * most + 1):
            made = models.make(house.folder.checkpoints / f"checkpoint-{step + 1}", SHAPE, moved=0.001 * step)
            size = sum(file.stat().st_size for file in weight_files(made))
        rate = size / 1e6 / JOB_SECONDS
        await drained(house, range(1, 2), hosts=1, rate=1000)  # compiles
        first = 0.0
        for hosts in range(1, most + 1):
            start = 2 + (hosts - 1) * jobs
            seconds = await drained(house, range(start, start + jobs), hosts=hosts, rate=rate)
            first = first or seconds
            print(f"{hosts} hosts: {jobs} jobs in {seconds:.1f} s, {first / seconds:.2f} times one host")  # noqa: T201


def main() -> None:
    """Runs what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("memory", "workers"))
    parser.add_argument("--size", default="70b", choices=models.SIZES)
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--most", type=int, default=4)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        os.environ.setdefault("XDG_CACHE_HOME", str(api.default_cache().parents[1]))
        if asked.what == "memory":
            memory(asked.size, Path(folder))
        else:
            asyncio.run(workers(asked.jobs, asked.most, Path(folder)))


if __name__ == "__main__":
    main()
