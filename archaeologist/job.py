"""The child process: one job, one walk, one artifact; ``python -m archaeologist.job --lines-fd N``.

Started by ``daemon.child`` with one ``Excavation`` as a line of JSON on standard input, which then stays open: its end
means that the parent is gone, and so is the child. What it has to say are lines of JSON on descriptor N: progress, and
at last ``Succeeded`` or ``Failed``. It exits with 0, 1 (trying again gives the same) or 75 (later may succeed). SIGTERM
ends it at once: the temporary files it leaves are its caller's to remove.
"""

import argparse
import contextlib
import ctypes
import errno
import os
import platform
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from archaeologist.errors import ArchaeologistError, InternalError, MemoryCapped, MessageMalformed, TemporaryError
from archaeologist.processes import uncollected
from contracts.messages import ChildLine, EventError, Excavation, Failed, NeighbourOptions, Progress, Succeeded

EXIT_PERMANENT: Final = 1
EXIT_TEMPORARY: Final = os.EX_TEMPFAIL

MAX_REQUEST_BYTES: Final = 1 << 20
"""Of the line on standard input."""
OOM_SCORE: Final = 500
"""When memory runs out the kernel takes this process before the daemon."""
PROGRESS_SECONDS: Final = 0.25
_SHORT_OF_MEMORY: Final = "the job got no more memory; raise worker.memory_mb, lower worker.threads, or free some"
_SHORTAGES: Final = ("failed to map segment", "cannot allocate memory", "can't start new thread")
"""In errors that are known by their text alone."""
_IOPRIO_SET: Final = {"x86_64": 251, "aarch64": 30}
"""Number of the system call ioprio_set(2), which has no function in the C library."""
_THIS_THREAD: Final = 1
_IO_PRIORITIES: Final = {"low": 2 << 13 | 7, "idle": 3 << 13}
PR_SET_PDEATHSIG: Final = 1
"""Of prctl(2)."""
M_TRIM_THRESHOLD: Final = (-1, 1 << 25)
M_MMAP_THRESHOLD: Final = (-3, 1 << 23)
"""Of glibc's mallopt(3). By itself it learns from large allocations to keep them: a third more memory at 4B, from holes
between the activations of several threads."""


def main() -> int:
    """Runs the job on standard input; the exit code."""
    parser = argparse.ArgumentParser(prog="archaeologist.job", description="Runs one job; started by the daemon.")
    parser.add_argument("--lines-fd", type=int, required=True, help="descriptor for the lines of JSON")
    lines = _Lines(parser.parse_args().lines_fd)
    # Before NumPy is loaded: blocks share the processors, and threads within one product only wait for each other.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Before transformers is loaded, which looks once: a checkpoint's files can name others on a hub.
    os.environ["HF_HUB_OFFLINE"] = "1"
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    _die_with_parent()
    _yield_memory()
    started = time.perf_counter()
    try:
        excavation = _read_excavation()
        _stand_back(excavation.neighbour)
        outcome: Succeeded | Failed = _run(excavation, lines.progress, started)
    except ArchaeologistError as error:
        outcome = _failed(error, error)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent must be told
        traceback.print_exc()
        outcome = _failed(_unexpected(error), error)
    lines.write(outcome)
    if isinstance(outcome, Succeeded):
        return 0
    return EXIT_TEMPORARY if outcome.retryable else EXIT_PERMANENT


class _Lines:
    """The lines of JSON to the parent."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._last = -PROGRESS_SECONDS

    def progress(self, progress: Progress) -> None:
        """Writes a report, unless one was just written; the last one always."""
        now = time.monotonic()
        if now - self._last >= PROGRESS_SECONDS or progress.block == progress.blocks:
            self._last = now
            self.write(progress)

    def write(self, line: ChildLine) -> None:
        """Writes a line whole. A parent that no longer listens is no reason to fail here: standard input tells."""
        content = msgspec.json.encode(line) + b"\n"
        with contextlib.suppress(BrokenPipeError):
            while content:
                content = content[os.write(self._descriptor, content) :]


def _read_excavation() -> Excavation:
    """The job on standard input; from then on a thread leaves the process when that ends.

    Raises:
        MessageMalformed: It is not one line of JSON with an excavation.
    """
    line = bytearray()
    # Not sys.stdin: a buffered reader would hold a lock that the interpreter wants at its end.
    while not line.endswith(b"\n") and len(line) <= MAX_REQUEST_BYTES and (part := os.read(0, 65_536)):
        line += part
    threading.Thread(target=_leave_with_parent, name="parent", daemon=True).start()
    try:
        return msgspec.json.decode(line, type=Excavation)
    except msgspec.DecodeError as error:
        msg = f"standard input is not one line of JSON with an excavation: {error}; start jobs with archaeologist"
        raise MessageMalformed(msg) from error


def _leave_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(EXIT_TEMPORARY)


def _run(excavation: Excavation, on_progress: Callable[[Progress], None], started: float) -> Succeeded:
    # Here, so that a malformed request and a dead parent are noticed before the compiler is loaded.
    with uncollected():
        from archaeologist.artifacts.store import write_whole  # noqa: PLC0415
        from archaeologist.excavation import layer_drift, layer_stats  # noqa: PLC0415
        from archaeologist.excavation.survey import findings  # noqa: PLC0415
        from contracts.artifacts import LayerStats  # noqa: PLC0415

    kind = layer_drift if excavation.job.job_type == "layer_drift" else layer_stats
    artifact, found = kind.excavate(excavation, on_progress)
    digest = write_whole(Path(excavation.artifact_path), msgspec.json.encode(artifact))
    drift = found.global_drift
    alerts = artifact.alerts if isinstance(artifact, LayerStats) else ()
    return Succeeded(
        artifact_sha256=digest,
        has_sketch=found.has_sketch,
        has_activations=found.forward is not None and bool(found.forward.activation_stats),
        has_drift=drift is not None,
        most_changed_layer=drift.most_changed_layer if drift else None,
        most_changed_layer_relative=drift.most_changed_layer_relative if drift else None,
        duration_sec=round(time.perf_counter() - started, 6),
        findings=findings(found, excavation.job, alerts=alerts),
        alerts=alerts,
        warnings=artifact.warnings,
        steps=found.forward.forward.steps if found.forward and found.forward.forward else (),
    )


def _unexpected(error: Exception) -> ArchaeologistError:
    """The coded error of one that nothing here raises."""
    if any(_is_shortage(one) for one in _chain(error)):
        return MemoryCapped(_SHORT_OF_MEMORY)
    what = "see the log of the worker" if isinstance(error, OSError) else "this is a defect, please report it"
    return InternalError(f"{type(error).__name__}: {error}; {what}")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_shortage(error: BaseException) -> bool:
    """Whether memory was short: what Python, the loader of libraries and libraries that wrap its errors say then."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if isinstance(error, SystemError):
        # Python ends so where it cannot even say that there is no memory, in the middle of an import for one.
        limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS))
        return any(limit != resource.RLIM_INFINITY for limit in limits)
    return any(words in str(error).lower() for words in _SHORTAGES)


def _failed(error: ArchaeologistError, cause: BaseException) -> Failed:
    is_temporary = isinstance(cause, TemporaryError)
    return Failed(error=EventError(code=error.code, message=str(error)), retryable=is_temporary)


def _die_with_parent() -> None:
    """Makes the kernel end this process with its parent; best effort.

    The end of standard input is noticed by a thread, which a hung or frozen process does not run.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _yield_memory() -> None:
    """Lets others go first when memory runs short; best effort."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE), encoding="ascii")
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(*M_MMAP_THRESHOLD)
        mallopt(*M_TRIM_THRESHOLD)


def _stand_back(neighbour: NeighbourOptions) -> None:
    """Lets others go first at processors and disks, as set; threads that are started later do the same. Best effort."""
    with contextlib.suppress(OSError):
        os.nice(neighbour.nice)
    number = _IOPRIO_SET.get(platform.machine())
    if neighbour.io != "normal" and number is not None:
        # Of this thread; those that it starts take it over.
        ctypes.CDLL(None).syscall(number, _THIS_THREAD, 0, _IO_PRIORITIES[neighbour.io])
    if neighbour.memory_mb:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_DATA, (neighbour.memory_mb * 1_000_000,) * 2)


if __name__ == "__main__":
    sys.exit(main())
