"""What the machine can do at best, for ``archaeologist bench``: reading bytes and dropping them, and each kernel.

``python -m archaeologist.excavation.rates reading|kernels …`` prints one line of JSON: numbers by name. A process of
its own, because the compiled kernels are the child's and never the command line's.
"""

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from archaeologist.checkpoints.index import TensorEntry, read_index
from archaeologist.checkpoints.reader import Reader
from archaeologist.excavation.tally import KINDS, WIDTHS, aligned
from archaeologist.excavation.walk import thread_count
from archaeologist.statistics import kernels

BUFFERS: Final = (1 << 17, 1 << 19, 1 << 21)
"""Bytes read at a time; which one is fastest depends on the processor's caches, and the fastest counts."""
PART: Final = 1 << 25
"""Bytes that one thread reads before it takes the next part."""
VALUES: Final = 1 << 17
"""Of each kernel's sample, which stays in the second-level cache."""
COLUMNS: Final = 1024
REPEATS: Final = 200

Bytes = npt.NDArray[np.uint8]


class Part(NamedTuple):
    """What the kernel is asked for."""

    has_rows: bool = False
    """Row and column sums."""
    has_sketch: bool = False
    has_reference: bool = False


ALL: Final = Part(has_rows=True, has_sketch=True, has_reference=True)
PARTS: Final = {
    "histogram and norms": Part(),
    "and rows and columns": Part(has_rows=True),
    "and sketch": Part(has_rows=True, has_sketch=True),
    "and drift": ALL,
}


def reading(folders: Sequence[Path], *, threads: int) -> dict[str, float]:
    """Bytes a second that are read and dropped, by size of the buffer."""
    with ExitStack() as files:
        indexes = [read_index(folder, allowed=(Path("/"),)) for folder in folders]
        sides = [(index, files.enter_context(Reader(index))) for index in indexes]
        total = sum(entry.size for index in indexes for entry in index.tensors.values())
        found = {}
        for size in BUFFERS:
            parts = (
                (reader, entry, start)
                for index, reader in sides
                for entry in index.tensors.values()
                for start in range(0, entry.size, PART)
            )
            started = time.perf_counter()
            _drop(parts, size, threads=thread_count(threads))
            found[str(size)] = total / (time.perf_counter() - started)
    return found


def _drop(parts: Iterator[tuple[Reader, TensorEntry, int]], size: int, *, threads: int) -> None:
    lock = threading.Lock()

    def work() -> None:
        buffer = memoryview(bytearray(size))
        while True:
            with lock:
                part = next(parts, None)
            if part is None:
                return
            reader, entry, first = part
            for start in range(first, min(first + PART, entry.size), size):
                reader.read(entry, start, buffer[: min(size, entry.size - start)])

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def kernel_rates() -> dict[str, float]:
    """Nanoseconds a value on one core, of each kernel with what stands before it, by dtype; data in the cache."""
    kernels.load()
    found = {}
    for dtype in ("BF16", "F16", "F32", "F8_E4M3"):
        target, reference = _stored(dtype, seed=1), _stored(dtype, seed=2)
        for part, asked in PARTS.items():
            found[f"{dtype} {part}"] = _nanoseconds(_calling(dtype, target, reference, asked))
        found[f"{dtype} all, equal bytes"] = _nanoseconds(_calling(dtype, target, target.copy(), ALL))
    return found


def _stored(dtype: str, *, seed: int) -> Bytes:
    values = (np.random.default_rng(seed).standard_normal(VALUES) * 0.02).astype(np.float32)
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    if dtype == "F8_E4M3":
        # A sign, a few exponents, a fraction: no NaN.
        return np.random.default_rng(seed).integers(0x20, 0x60, VALUES, np.uint8)
    return values.astype(np.float16 if dtype == "F16" else np.float32).view(np.uint8)


def _calling(dtype: str, target: Bytes, reference: Bytes, asked: Part) -> Callable[[], None]:
    window = np.zeros(kernels.WINDOW_SIZE, np.int64)
    window[kernels.KIND] = KINDS[dtype]
    window[kernels.REFERENCE_KIND] = KINDS[dtype] if asked.has_reference else kernels.ABSENT
    window[kernels.COLUMNS] = COLUMNS if asked.has_rows else 0
    window[kernels.SKETCHED] = kernels.PROJECTED if asked.has_sketch else kernels.NO_SKETCH
    arguments = (
        target,
        reference if asked.has_reference else reference[:0],
        window,
        np.zeros(kernels.SUMS_SIZE),
        np.zeros(kernels.COUNTS_SIZE, np.int64),
        np.zeros((kernels.SUB_HISTOGRAMS, kernels.BINS), np.uint32),
        np.zeros(VALUES // COLUMNS if asked.has_rows else 0),
        aligned(COLUMNS if asked.has_rows else 0),
        aligned(kernels.PIECE),
    )
    assert target.size == VALUES * WIDTHS[dtype]  # noqa: S101 - what the rate is divided by
    return lambda: kernels.dig(*arguments)


def _nanoseconds(call: Callable[[], None]) -> float:
    """The fastest of many: whatever else runs only adds."""
    best = float("inf")
    for _ in range(REPEATS):
        started = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - started)
    return best / VALUES * 1e9


def main() -> None:
    """Prints what was asked for."""
    parser = argparse.ArgumentParser(
        prog="archaeologist.excavation.rates", description="Started by archaeologist bench."
    )
    parser.add_argument("what", choices=("reading", "kernels"))
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--threads", type=int, default=0)
    asked = parser.parse_args()
    found = kernel_rates() if asked.what == "kernels" else reading(asked.folders, threads=asked.threads)
    sys.stdout.write(f"{json.dumps(found)}\n")


if __name__ == "__main__":
    main()
