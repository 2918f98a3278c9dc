"""One benchmark: reading, the child and the specification's approach in turn, so that a busy machine hits them all."""

import contextlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

import archaeologist
from archaeologist import api
from archaeologist.bench import disk, models, record
from archaeologist.bench.baseline import MEMORY
from archaeologist.bench.processes import Run, run_baseline, run_child, run_printing
from archaeologist.errors import ArchaeologistError
from archaeologist.probes.sets import load
from contracts.messages import DEFAULT_PROBES, Excavation, NeighbourOptions

RATES: Final = (sys.executable, "-m", "archaeologist.excavation.rates")
COLD_ROUNDS: Final = 3
EAGER: Final = NeighbourOptions(nice=0, io="normal")
"""As all the others that are measured: on a machine that somebody uses, priority would decide the comparison."""
START_TOKENS: Final = 64
"""Probe tokens of the run whose start with activations is taken: what comes after it does not count."""

Say = Callable[[str], None]


class Asked(Struct, frozen=True, kw_only=True):
    """What to measure."""

    rounds: int = 7
    threads: int = 0
    has_cold: bool = True
    has_specification: bool = True
    has_activations: bool = True


class Subject(NamedTuple):
    """What it is measured on."""

    label: str
    target: Path
    reference: Path | None

    @property
    def folders(self) -> list[Path]:
        """Both."""
        return [self.target, *([self.reference] if self.reference else [])]


@contextlib.contextmanager
def generated(size: str, folder: Path | None) -> Iterator[Subject]:
    """A generated pair, deleted at the end.

    Args:
        size: One of ``models.SIZES``.
        folder: Where; by default the machine's temporary folder.
    """
    with tempfile.TemporaryDirectory(prefix="archaeologist-bench-", dir=folder) as scratch:
        pair = models.make_pair(Path(scratch), models.SIZES[size])
        for side in pair:
            models.write_tokenizer(side, (probe.text for probe in load(DEFAULT_PROBES).probes))
        yield Subject(size, pair.target, pair.reference)


def measure(subject: Subject, asked: Asked, say: Say) -> record.BenchRecord:
    """What everything costs on a pair.

    Args:
        subject: The checkpoints.
        asked: What to leave out.
        say: Called with what is done next.

    Raises:
        ArchaeologistError: A checkpoint cannot be analysed.
    """
    with tempfile.TemporaryDirectory(prefix="archaeologist-bench-") as scratch:
        return _Measurement(subject, asked, say, Path(scratch)).taken()


class _Measurement:
    def __init__(self, subject: Subject, asked: Asked, say: Say, scratch: Path) -> None:
        self._subject, self._asked, self._say = subject, asked, say
        self._cache = api.default_cache()
        job = api.layer_stats_job(subject.target, reference=subject.reference, compute_activations=False)
        self._excavation = Excavation(
            job=job,
            artifact_path=str(scratch / "artifact.json"),
            sketch_path=str(scratch / "sketch.safetensors"),
            threads=asked.threads,
            neighbour=EAGER,
        )
        files = disk.weight_files(*subject.folders)
        self._bytes = sum(file.stat().st_size for file in files)
        self._left_out: dict[str, str] = {}

    def taken(self) -> record.BenchRecord:
        """Everything, in one run."""
        self._say("the first run compiles where it must, and fills the page cache")
        self._ours()
        self._say("each kernel")
        kernels = self._rates("kernels")
        reading, runs, theirs = self._rounds()
        mine = {
            name: statistics.median(run.seconds[name] for run in runs) for name in ("walk", "work", "load", "start")
        }
        gigabytes = self._bytes / 1e9
        cold, start_activations = self._cold(), self._start_with_activations()
        return record.BenchRecord(
            time=record.now(),
            commit=record.commit(),
            version=archaeologist.__version__,
            machine=record.machine(),
            pair=self._subject.label,
            gigabytes=gigabytes,
            rounds=self._asked.rounds,
            threads=self._asked.threads,
            reading_gb_s=statistics.median(reading) / 1e9,
            kernels=kernels,
            walk_gb_s=gigabytes / mine["walk"],
            walk_share=statistics.median(
                self._bytes / run.seconds["walk"] / rate for run, rate in zip(runs, reading, strict=True)
            ),
            work_seconds=mine["work"],
            process_seconds=statistics.median(run.process_seconds for run in runs),
            load_seconds=mine["load"],
            peak_mb=max(run.peak_mb for run in runs),
            start_seconds=mine["start"],
            start_activations_seconds=start_activations,
            specification=_compared(runs, theirs) if theirs else None,
            cold=cold,
            left_out=self._left_out,
        )

    def _ours(self) -> Run:
        return run_child(self._excavation, cache=self._cache)

    def _rates(self, what: str) -> dict[str, float]:
        command = (*RATES, what, *map(str, self._subject.folders), "--threads", str(self._asked.threads))
        return run_printing(command).seconds

    def _rounds(self) -> tuple[list[float], list[Run], list[Run]]:
        """Rates of reading, runs of the child and of the baseline, one of each in turn."""
        reading: list[float] = []
        runs: list[Run] = []
        theirs: list[Run] = []
        has_specification = self._asked.has_specification and self._fits()
        for number in range(1, self._asked.rounds + 1):
            self._say(f"round {number} of {self._asked.rounds}")
            reading.append(max(self._rates("reading").values()))
            runs.append(self._ours())
            if has_specification:
                try:
                    theirs.append(run_baseline(self._subject.folders))
                except ArchaeologistError as error:
                    has_specification = False
                    theirs.clear()
                    self._left_out["specification"] = str(error)
        return reading, runs, theirs

    def _fits(self) -> bool:
        largest = max(
            sum(file.stat().st_size for file in disk.weight_files(folder)) for folder in self._subject.folders
        )
        available = _available_bytes()
        needed = MEMORY * largest
        if needed > available:
            self._left_out["specification"] = (
                f"it needs {needed / 1e9:.0f} GB of memory, {available / 1e9:.0f} are free"
            )
        return needed <= available

    def _cold(self) -> record.Cold | None:
        if not self._asked.has_cold:
            return None
        files = disk.weight_files(*self._subject.folders)
        disk.drop(files)
        if (share := disk.resident_share(files)) > disk.MOST_RESIDENT:
            self._left_out["cold"] = f"{share:.0%} of a file stays in memory when it is dropped"
            return None
        rates: list[tuple[float, float]] = []
        rounds = min(COLD_ROUNDS, self._asked.rounds)
        for number in range(1, rounds + 1):
            self._say(f"cold, round {number} of {rounds}")
            try:
                disk.drop(files)
                dd = self._bytes / disk.dd_seconds(files) / 1e9
                disk.drop(files)
            except OSError as error:
                self._left_out["cold"] = str(error)
                return None
            rates.append((dd, self._bytes / self._ours().seconds["walk"] / 1e9))
        return record.Cold(
            dd_gb_s=statistics.median(dd for dd, _ in rates),
            walk_gb_s=statistics.median(walk for _, walk in rates),
            share=statistics.median(walk / dd for dd, walk in rates),
        )

    def _start_with_activations(self) -> float | None:
        """The second of two: the first one reads torch from the disk."""
        if not self._asked.has_activations:
            return None
        self._say("the start with activations")
        job = self._excavation.job
        options = replace(
            job.options, compute_activations=True, probe_dataset=DEFAULT_PROBES, max_probe_tokens=START_TOKENS
        )
        asked = replace(self._excavation, job=replace(job, options=options))
        try:
            found = [run_child(asked, cache=self._cache).seconds for _ in range(2)][-1]
        except ArchaeologistError as error:
            self._left_out["start with activations"] = str(error)
            return None
        if "model" not in found:
            self._left_out["start with activations"] = "the model could not be run"
            return None
        return found["start"]


def _available_bytes() -> int:
    """What Linux would give to a new process: free memory, and the page cache that it would take back."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _compared(runs: Sequence[Run], theirs: Sequence[Run]) -> record.Compared:
    def median(name: str) -> float:
        return statistics.median(run.seconds[name] for run in theirs)

    def ratio(name: str) -> float:
        return statistics.median(
            other.seconds[name] / run.seconds["work"] for run, other in zip(runs, theirs, strict=True)
        )

    return record.Compared(
        written_seconds=median("written"),
        work_seconds=median("work"),
        process_seconds=statistics.median(run.process_seconds for run in theirs),
        peak_mb=max(run.peak_mb for run in theirs),
        resident_mb=max(run.resident_mb for run in theirs),
        ratio_written=ratio("written"),
        ratio_work=ratio("work"),
        ratio_process=statistics.median(
            other.process_seconds / run.process_seconds for run, other in zip(runs, theirs, strict=True)
        ),
    )
