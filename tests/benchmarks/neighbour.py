"""How much a second process loses while a job runs: one that reads its own working set over and over.

``python -m tests.benchmarks.neighbour [--size 0.6b] [--working-set 2000] [--seconds 8] [--rounds 3] [--folder DIR]``.
The neighbour reads a file of so many MB, whose pages lie in the page cache, at its own priority and counts what it gets
through: alone, beside jobs with the defaults, beside jobs without any (``nice`` 0, no I/O priority, page cache kept),
and again, in turn. Jobs follow each other without a pause; between them the checkpoint's pages are dropped, so that
half of the jobs read from the disk. Nothing is asserted.
"""

import argparse
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path

from msgspec.structs import replace

from archaeologist import api
from archaeologist.bench import models
from archaeologist.bench.disk import drop, resident_share, weight_files
from archaeologist.bench.processes import run_child
from archaeologist.settings import Settings
from contracts.messages import Excavation, NeighbourOptions

CHUNK = 1 << 20
EAGER = NeighbourOptions(nice=0, io="normal")


def read_for(file: Path, seconds: float) -> float:
    """MB a second that are read, in a process of its own, so that no lock of ours holds it up."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        buffer, done = bytearray(CHUNK), 0
        descriptor, size = os.open(file, os.O_RDONLY), file.stat().st_size
        until = time.monotonic() + seconds
        started = time.monotonic()
        while time.monotonic() < until:
            for start in range(0, size, CHUNK):
                done += os.preadv(descriptor, [buffer], start)
                if time.monotonic() >= until:
                    break
        os.write(writing, str(done / (time.monotonic() - started) / 1e6).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as found:
        rate = float(found.read())
    os.waitpid(child, 0)
    return rate


class Jobs(threading.Thread):
    """Runs one job after the other until it is told to end."""

    def __init__(self, excavation: Excavation, files: list[Path]) -> None:
        super().__init__(daemon=True)
        self.is_over = threading.Event()
        self.done = 0
        self._excavation, self._files = excavation, files

    def run(self) -> None:
        while not self.is_over.is_set():
            if self.done % 2:
                drop(self._files)
            run_child(self._excavation, cache=api.default_cache())
            self.done += 1


def beside(excavation: Excavation, files: list[Path], file: Path, seconds: float) -> float:
    """The neighbour's rate beside jobs."""
    jobs = Jobs(excavation, files)
    jobs.start()
    rate = read_for(file, seconds)
    jobs.is_over.set()
    jobs.join()
    return rate


def main() -> None:
    """Prints the neighbour's rates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="0.6b", choices=models.SIZES)
    parser.add_argument("--working-set", type=int, default=2000, help="MB")
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as temporary:
        folder = Path(temporary)
        pair = models.make_pair(folder / "pair", models.SIZES[asked.size])
        own = folder / "working-set"
        with own.open("wb") as file:
            for _ in range(asked.working_set):
                file.write(os.urandom(1_000_000))
        job = api.layer_stats_job(pair.target, reference=pair.reference, compute_activations=False)
        polite = Excavation(
            job=job,
            artifact_path=str(folder / "artifact"),
            drop_page_cache=True,
            neighbour=Settings().neighbour_options,
        )
        eager = replace(polite, neighbour=EAGER, drop_page_cache=False)
        run_child(polite, cache=api.default_cache())
        read_for(own, 2)
        kept: dict[str, list[float]] = {"with the defaults": [], "without": []}
        for _ in range(asked.rounds):
            alone = read_for(own, asked.seconds)
            for name, excavation in (("with the defaults", polite), ("without", eager)):
                kept[name].append(beside(excavation, weight_files(*pair), own, asked.seconds) / alone)
            print(f"alone {alone:.0f} MB/s; {resident_share([own]):.0%} of the working set in memory")  # noqa: T201
        for name, shares in kept.items():
            print(f"{name}: {statistics.median(shares):.2f} of its speed ({min(shares):.2f} to {max(shares):.2f})")  # noqa: T201


if __name__ == "__main__":
    main()
