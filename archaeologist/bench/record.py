"""The record of one benchmark: what was measured, on what, and the line of the table that keeps its history."""

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

import archaeologist

_HEADINGS: Final = (
    "date",
    "commit",
    "machine",
    "pair",
    "reading GB/s",
    "walk GB/s (share of reading)",
    "times the specification's approach: work, process",
    "peak MB",
    "start s (with activations)",
    "cold: walk, dd GB/s",
)


class Machine(Struct, frozen=True, kw_only=True):
    """What it ran on."""

    processor: str
    cores: int
    memory_gb: float
    system: str


class Compared(Struct, frozen=True, kw_only=True):
    """The specification's approach beside ours, medians of alternating runs."""

    written_seconds: float
    """Its work as it is written, after the libraries' import."""
    work_seconds: float
    """The same without loading the model's class."""
    process_seconds: float
    peak_mb: float
    resident_mb: float
    ratio_written: float
    """How many times ours: its work against all of the child's after the compiled code is loaded."""
    ratio_work: float
    ratio_process: float


class Cold(Struct, frozen=True, kw_only=True):
    """With the page cache dropped before each run, medians of alternating runs."""

    dd_gb_s: float
    walk_gb_s: float
    """From the first byte that the walk reads to the last."""
    share: float


class BenchRecord(Struct, frozen=True, kw_only=True):
    """One run of ``archaeologist bench``; the page cache is warm where nothing else is said."""

    time: str
    commit: str
    version: str
    machine: Machine
    pair: str
    """What was measured on: a generated size, or ``given``."""
    gigabytes: float
    """Of weights in target and reference together, 10⁹ bytes each."""
    rounds: int
    threads: int
    """0: one for each core."""
    reading_gb_s: float
    """Bytes read and dropped, with the buffer that is fastest."""
    kernels: dict[str, float]
    """Nanoseconds a value on one core, data in the cache; each with what stands before it."""
    walk_gb_s: float
    walk_share: float
    """Of the reading rate; medians of alternating runs."""
    work_seconds: float
    """Of the child: headers, fingerprints, walk, artifact."""
    process_seconds: float
    load_seconds: float
    """Loading the compiled code from its cache."""
    peak_mb: float
    """Anonymous memory of the child, 2²⁰ bytes, the most of all runs."""
    start_seconds: float
    """From the start of the process to the first byte that the walk reads; weights and drift only."""
    start_activations_seconds: float | None = None
    specification: Compared | None = None
    cold: Cold | None = None
    left_out: dict[str, str] = {}
    """What was not measured, and why."""


def machine() -> Machine:
    """This one."""
    information = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    name = re.search(r"^model name\s*:\s*(.+)$", information, re.MULTILINE)
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return Machine(
        processor=name[1].strip() if name else platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory_gb=round(pages * page / 1e9, 1),
        system=f"{platform.system()} {platform.release().split('-')[0]}",
    )


def commit() -> str:
    """The commit that this program is of, with + where it has been changed; the version where it is installed."""
    folder = Path(archaeologist.__file__).parent
    command = ("git", "-C", str(folder), "describe", "--always", "--dirty=+", "--abbrev=8")
    try:
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return archaeologist.__version__
    return found or archaeologist.__version__


def now() -> str:
    """RFC 3339, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def row(record: BenchRecord) -> str:
    """The record as a line of the table."""
    ours, theirs, cold = record, record.specification, record.cold
    cells = (
        record.time[:10],
        record.commit,
        f"{record.machine.processor}, {record.machine.cores} cores",
        f"{record.pair}, {record.gigabytes:.2f} GB",
        f"{ours.reading_gb_s:.1f}",
        f"{ours.walk_gb_s:.2f} ({ours.walk_share:.2f})",
        f"{theirs.ratio_work:.1f}, {theirs.ratio_process:.1f}" if theirs else "-",
        f"{ours.peak_mb:.0f}",
        f"{ours.start_seconds:.2f}"
        + (f" ({ours.start_activations_seconds:.2f})" if ours.start_activations_seconds is not None else ""),
        f"{cold.walk_gb_s:.2f}, {cold.dd_gb_s:.2f}" if cold else "-",
    )
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |\n"


def append(record: BenchRecord, file: Path) -> None:
    """Adds the record's line to the table at the end of a file; one that is empty or missing gets the table's head."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as table:
        if table.tell() == 0:
            table.write(f"| {' | '.join(_HEADINGS)} |\n{'|---' * len(_HEADINGS)}|\n")
        table.write(row(record))


def encode(record: BenchRecord) -> bytes:
    """The record as JSON."""
    return msgspec.json.encode(record)
