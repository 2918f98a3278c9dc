"""Runs the child, the baseline and ``dd`` as processes of their own, and takes their time and memory."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from archaeologist.artifacts.store import read_layer_stats
from archaeologist.bench.baseline import SPECIFICATION
from archaeologist.daemon.child import COMMAND, child_environment
from archaeologist.errors import JobCrashed
from contracts.messages import ChildLine, Excavation, Failed, Succeeded

_SAMPLE_SECONDS: Final = 0.005


class Run(Struct, frozen=True, kw_only=True):
    """One process."""

    process_seconds: float
    """From its start to its end."""
    peak_mb: float
    """Anonymous memory, of 2²⁰ bytes; the files that it maps are not counted."""
    resident_mb: float
    """All that is resident, mapped files included."""
    seconds: dict[str, float] = {}
    """What it says itself: of the child ``work`` (all but loading the compiled code) and the artifact's timings."""


class Sampler(threading.Thread):
    """Follows a process's anonymous memory, and all that is resident."""

    def __init__(self, pid: int) -> None:
        """Starts nothing yet."""
        super().__init__(daemon=True)
        self._status = Path(f"/proc/{pid}/status")
        self.peak_mb = 0.0
        self.resident_mb = 0.0

    def run(self) -> None:
        """Until the process ends."""
        try:
            while True:
                for line in self._status.read_text().splitlines():
                    if line.startswith("RssAnon:"):
                        self.peak_mb = max(self.peak_mb, int(line.split()[1]) / 1024)
                    elif line.startswith("VmRSS:"):
                        self.resident_mb = max(self.resident_mb, int(line.split()[1]) / 1024)
                time.sleep(_SAMPLE_SECONDS)
        except OSError:
            return  # the process has ended


def run_child(excavation: Excavation, *, cache: Path) -> Run:
    """One run of the child.

    Raises:
        JobCrashed: It failed.
    """
    reading, writing = os.pipe()
    started = time.perf_counter()
    process = subprocess.Popen(
        [*COMMAND, "--lines-fd", str(writing)],
        stdin=subprocess.PIPE,
        pass_fds=(writing,),
        env=child_environment(os.environ, cache=cache),
    )
    os.close(writing)
    sampler = Sampler(process.pid)
    sampler.start()
    assert process.stdin is not None  # noqa: S101 - a pipe was asked for
    process.stdin.write(msgspec.json.encode(excavation) + b"\n")
    process.stdin.flush()
    last = b""
    with os.fdopen(reading, "rb") as lines:
        for line in lines:
            last = line
    process.wait()
    process_seconds = time.perf_counter() - started
    process.stdin.close()
    sampler.join()
    outcome = msgspec.json.decode(last, type=ChildLine) if last else None
    if not isinstance(outcome, Succeeded):
        why = f"{outcome.error.code}: {outcome.error.message}" if isinstance(outcome, Failed) else "it said nothing"
        msg = f"the child ended with {process.returncode}: {why}"
        raise JobCrashed(msg)
    artifact = read_layer_stats(Path(excavation.artifact_path))
    return Run(
        process_seconds=process_seconds,
        peak_mb=sampler.peak_mb,
        resident_mb=sampler.resident_mb,
        seconds={**artifact.timings, "work": artifact.compute_duration_sec - artifact.timings["load"]},
    )


def run_baseline(folders: Sequence[Path]) -> Run:
    """One run of the specification's approach.

    Args:
        folders: The target's, and the reference's where there is one.

    Raises:
        JobCrashed: It failed.
    """
    command = [sys.executable, "-W", "ignore", "-c", SPECIFICATION]
    return run_printing([*command, *map(str, folders)], {"HF_HUB_OFFLINE": "1"})


def run_printing(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Run:
    """One run of a program whose last line is JSON: numbers by name.

    Raises:
        JobCrashed: It failed.
    """
    started = time.perf_counter()
    process = subprocess.Popen(
        list(command),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **(environment or {})},
    )
    sampler = Sampler(process.pid)
    sampler.start()
    output, complaint = process.communicate()
    process_seconds = time.perf_counter() - started
    sampler.join()
    if process.returncode != 0:
        last = complaint.decode(errors="replace").strip().splitlines()[-1:] or ["it printed nothing"]
        msg = f"{Path(command[0]).name} ended with {process.returncode}: {last[0]}"
        raise JobCrashed(msg)
    lines = output.decode().splitlines()
    return Run(
        process_seconds=process_seconds,
        peak_mb=sampler.peak_mb,
        resident_mb=sampler.resident_mb,
        seconds=json.loads(lines[-1]) if lines else {},
    )
