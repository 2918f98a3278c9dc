"""The walk: target and reference in lockstep, block by block, each byte read once, in constant memory.

``walk`` gives the blocks in the order of the model while its threads read and sum segments ahead. What a thread holds
is its two read buffers and one segment's sums, whatever the model's size. The threads read through ``_read``, the
one place where a block's bytes are at hand.
"""

import os
import queue
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from archaeologist.checkpoints.index import TensorEntry
from archaeologist.checkpoints.reader import Reader
from archaeologist.errors import CheckpointError
from archaeologist.excavation.plan import Pair, Plan, PlannedBlock
from archaeologist.excavation.tally import WIDTHS, Segment, Tally, TensorResult
from archaeologist.processes import seconds_since_start
from archaeologist.statistics import kernels
from contracts.messages import Progress

Bytes = npt.NDArray[np.uint8]

READ: Final = 1 << 19
"""Values read at a time. A multiple of the kernel's piece; with fewer the threads wait more for the interpreter."""
AHEAD_BYTES: Final = 1 << 27
"""Of the next block, read while the present one's bytes are in use: enough to keep the threads busy meanwhile."""
MAX_THREADS: Final = 16
"""When the number is not given: more threads than this wait for memory, and each holds buffers."""
PROGRESS_SECONDS: Final = 0.5
_STAGES: Final = ("walk_read", "walk_sums", "walk_room")

OnProgress = Callable[[Progress], None]


class ReferenceUnreadableError(Exception):
    """The reference failed while it was read; the cause says why. Whoever called decides what that means."""


class BlockResult(Struct, frozen=True, kw_only=True):
    """A block and its tensors' statistics, in stored order."""

    block: PlannedBlock
    tensors: tuple[TensorResult, ...]
    target: dict[str, Bytes] = {}
    """The target's bytes by stored name, where they are kept; valid until the next block is asked for."""
    reference: dict[str, Bytes] = {}
    """The reference's."""


def thread_count(asked: int) -> int:
    """How many threads to use: what was asked for, or with 0 one for each core that this process may use."""
    return asked or min(len(os.sched_getaffinity(0)), MAX_THREADS)


class _Room:
    """Memory that may be held; one thread takes and another gives back."""

    def __init__(self, size: int) -> None:
        """So many bytes."""
        self._free = size
        self._changed = threading.Condition()

    def take(self, size: int) -> None:
        """Waits until there are so many."""
        with self._changed:
            self._changed.wait_for(lambda: self._free >= size)
            self._free -= size

    def give(self, size: int) -> None:
        """They are free again."""
        with self._changed:
            self._free += size
            self._changed.notify_all()


class Walk:
    """A walk over the checkpoints of a plan; iterate over ``blocks`` once. Whoever starts it before that closes it."""

    def __init__(
        self,
        plan: Plan,
        *,
        target: Reader,
        reference: Reader | None = None,
        threads: int = 0,
        has_sketch: bool = False,
        kept_blocks: Collection[str] = (),
        on_progress: OnProgress = lambda _: None,
        read_values: int = READ,
    ) -> None:
        """Reads nothing yet.

        Args:
            plan: What to read.
            target: The target's open files.
            reference: The reference's, where the plan has one.
            threads: 0: one for each core.
            has_sketch: Whether sketches are made.
            kept_blocks: Names of blocks that come with their bytes. In memory are one block and ``AHEAD_BYTES`` of the
                next.
            on_progress: Called in the iterating thread after each block, and twice a second.
            read_values: Values read at a time, a multiple of the kernel's piece; it changes no result.
        """
        self._plan, self._size_bytes = plan, plan.size_bytes
        self._target = target
        self._reference = reference
        self._has_sketch = has_sketch
        self._kept_blocks = kept_blocks
        self._on_progress = on_progress
        self._read_values = read_values
        self._kept: dict[str, tuple[Bytes, Bytes]] = {}
        self._spare: dict[int, list[Bytes]] = {}
        largest = max((block.size_bytes for block in plan.blocks if block.name in kept_blocks), default=0)
        self._room = _Room(largest + min(largest, AHEAD_BYTES))
        self._segments = self._cut()
        self._cutting, self._lock = threading.Lock(), threading.Lock()
        self._results: queue.SimpleQueue[TensorResult | BaseException] = queue.SimpleQueue()
        self._is_over = threading.Event()
        self._is_started = False
        self._bytes_read = 0
        self._spent = dict.fromkeys(_STAGES, 0.0)
        self._first_read: float | None = None
        self._threads = [
            threading.Thread(target=self._work, name=f"walk-{number}", daemon=True)
            for number in range(thread_count(threads))
        ]
        self._started = time.monotonic()

    def start(self) -> None:
        """Reads and sums ahead from now on, as far as there is room for what is kept."""
        if self._is_started:
            return
        self._is_started = True
        self._started = time.monotonic()
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Ends the threads, wherever they are."""
        if not self._is_started:
            return
        self._is_over.set()
        self._room.give(self._size_bytes)
        for thread in self._threads:
            thread.join()
        self._spare.clear()

    def blocks(self) -> Generator[BlockResult, None, None]:
        """The blocks, each as soon as it and all before it are summed.

        Raises:
            CheckpointError: The target cannot be read to its end.
            ReferenceUnreadableError: The reference cannot.
        """
        self.start()
        found: dict[str, TensorResult] = {}
        try:
            for number, block in enumerate(self._plan.blocks):
                self._report(number)
                while not all(pair.target.name in found for pair in block.pairs):
                    self._collect(found, number)
                tensors = tuple(found.pop(pair.target.name) for pair in block.pairs)
                result = BlockResult(block=block, tensors=tensors)
                if block.name not in self._kept_blocks:
                    yield result
                    continue
                kept = self._with_bytes(result)
                yield kept
                self._give_back(kept)
                self._room.give(block.size_bytes)
            self._report(len(self._plan.blocks))
        finally:
            self.close()

    def timings(self) -> dict[str, float]:
        """Seconds by stage.

        ``start`` is from the start of the process to the first bytes. Of all threads together: ``walk_read``,
        ``walk_sums`` (the kernels), ``walk_room`` (waiting until kept bytes are no longer in use).
        """
        start = {} if self._first_read is None else {"start": self._first_read}
        return start | self._spent

    def _collect(self, found: dict[str, TensorResult], number: int) -> None:
        """Takes one tensor's result, or reports progress where none comes for a while."""
        try:
            result = self._results.get(timeout=PROGRESS_SECONDS)
        except queue.Empty:
            self._report(number)
            return
        if isinstance(result, BaseException):
            raise result
        found[result.pair.target.name] = result

    def _with_bytes(self, result: BlockResult) -> BlockResult:
        pairs = result.block.pairs
        kept = {pair.target.name: self._kept.pop(pair.target.name) for pair in pairs}
        return replace(
            result,
            target={name: mine for name, (mine, _) in kept.items()},
            reference={pair.reference.name: kept[pair.target.name][1] for pair in pairs if pair.reference},
        )

    def _give_back(self, result: BlockResult) -> None:
        """Blocks are alike: the next ones take these buffers; fresh memory costs as much as reading into it."""
        self._spare.clear()
        for buffer in (*result.target.values(), *result.reference.values()):
            self._spare.setdefault(buffer.size, []).append(buffer)

    def _buffer(self, size: int) -> Bytes:
        spare = self._spare.get(size)
        return spare.pop() if spare else np.empty(size, np.uint8)

    def _report(self, number: int) -> None:
        done, total = self._bytes_read, self._size_bytes
        elapsed = time.monotonic() - self._started
        self._on_progress(
            Progress(
                stage="weights",
                block=number,
                blocks=len(self._plan.blocks),
                bytes_read=done,
                bytes_total=total,
                eta_sec=round(elapsed * (total - done) / done, 1) if done else None,
            )
        )

    # In the threads.

    def _cut(self) -> Iterator[Segment]:
        """Every segment of every tensor, in the order of the walk; a tensor without values gives its result at once."""
        for block in self._plan.blocks:
            is_kept = block.name in self._kept_blocks
            for pair in block.pairs:
                if is_kept:
                    self._room.take(pair.size_bytes)
                    other = pair.reference.size if pair.reference else 0
                    self._kept[pair.target.name] = self._buffer(pair.target.size), self._buffer(other)
                tally = Tally(pair, has_sketch=self._has_sketch)
                if not tally.segments:
                    self._results.put(tally.result())
                for number in range(tally.segments):
                    yield Segment(tally, number)

    def _work(self) -> None:
        # Anything that ends a thread must reach the one that waits for its results.
        try:
            # Aligned for float32; the histogram is the largest of what a thread holds.
            target, reference = (np.empty(self._read_values * 4, np.uint8) for _ in range(2))
            counts = np.zeros((kernels.SUB_HISTOGRAMS, kernels.BINS), np.uint32)
            while not self._is_over.is_set():
                # A lock of its own: whoever waits here for room must not hold up those that sum what was read.
                asked = time.perf_counter()
                with self._cutting:
                    segment = next(self._segments, None)
                self._spend("walk_room", time.perf_counter() - asked)
                if segment is None or self._is_over.is_set():
                    return
                self._dig(segment, target, reference, counts)
                if segment.tally.add(segment, counts):
                    self._results.put(segment.tally.result())
        except BaseException as error:  # noqa: BLE001 - raised again by ``blocks``
            self._results.put(error)

    def _dig(self, segment: Segment, target: Bytes, reference: Bytes, counts: npt.NDArray[np.uint32]) -> None:
        pair = segment.tally.pair
        self._ask_ahead(pair, segment.start, segment.stop)
        window = segment.window(segment.start)
        kept = self._kept.get(pair.target.name)
        for start in range(segment.start, segment.stop, self._read_values):
            stop = min(start + self._read_values, segment.stop)
            before = time.perf_counter()
            into = _window(kept[0], pair.target, start) if kept else target
            mine = self._read(self._target, pair.target, start, stop, into)
            theirs = reference[:0]
            if pair.reference is not None:
                into = _window(kept[1], pair.reference, start) if kept else reference
                theirs = self._read_reference(pair.reference, start, stop, into)
            window[kernels.START] = start
            read = time.perf_counter()
            kernels.dig(
                mine,
                theirs,
                window,
                segment.sums,
                segment.counts,
                counts,
                segment.rows,
                segment.columns,
                segment.sketch,
            )
            summed = time.perf_counter()
            with self._lock:
                self._bytes_read += mine.size + theirs.size
                self._spent["walk_read"] += read - before
                self._spent["walk_sums"] += summed - read

    def _ask_ahead(self, pair: Pair, start: int, stop: int) -> None:
        """Lets the kernel read what this thread wants soon while it sums what is there."""
        sides = ((self._target, pair.target), (self._reference, pair.reference))
        for reader, entry in sides:
            if reader is not None and entry is not None:
                width = WIDTHS[entry.dtype]
                reader.ask_ahead(entry, start * width, (stop - start) * width)

    def _spend(self, stage: str, seconds: float) -> None:
        with self._lock:
            self._spent[stage] += seconds

    def _read(self, reader: Reader, entry: TensorEntry, start: int, stop: int, into: Bytes) -> Bytes:
        width = WIDTHS[entry.dtype]
        buffer = into[: (stop - start) * width]
        reader.read(entry, start * width, buffer.data)
        if self._first_read is None:
            self._first_read = seconds_since_start()
        return buffer

    def _read_reference(self, entry: TensorEntry, start: int, stop: int, into: Bytes) -> Bytes:
        if self._reference is None:
            msg = f"the plan has a reference for {entry.name!r} and the walk has none"
            raise ValueError(msg)
        try:
            return self._read(self._reference, entry, start, stop, into)
        except CheckpointError as error:
            raise ReferenceUnreadableError from error


def _window(kept: Bytes, entry: TensorEntry, start: int) -> Bytes:
    """A tensor's buffer from a value on."""
    return kept[start * WIDTHS[entry.dtype] :]
