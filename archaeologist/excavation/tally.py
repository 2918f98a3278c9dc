"""One tensor's sums, collected from its segments in their order.

A tensor is cut into segments of ``SEGMENT`` values at fixed offsets. Threads sum segments in any order; a tally adds
the sums up in the order of the segments, so that neither the number of threads nor the size of a read changes a bit.
"""

import threading
from typing import Final

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from archaeologist.excavation.plan import Pair
from archaeologist.statistics import float8, kernels, sketch
from archaeologist.statistics.distribution import Distribution, Moments, from_bits, from_moments
from archaeologist.statistics.drift import PairSums
from archaeologist.statistics.weights import growth_of, tensor_weights
from contracts.artifacts import TensorWeights

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

SEGMENT: Final = 1 << 22
"""Values; a multiple of the kernel's piece."""
MAX_LINES: Final = 1 << 22
"""A matrix with more rows or columns than this is not searched for dead ones: their sums would take 32 MB and more."""

KINDS: Final = {"BF16": kernels.BF16, "F16": kernels.F16, "F32": kernels.F32, **kernels.FLOAT8}
WIDTHS: Final = {"BF16": 2, "F16": 2, "F32": 4, **dict.fromkeys(kernels.FLOAT8, 1)}
"""Bytes of a value."""
_STEPS: Final = {
    "BF16": 2.0**-7,
    "F16": 2.0**-10,
    "F32": 2.0**-23,
    **{dtype: 2.0**-form.fraction_bits for dtype, form in float8.FORMATS.items()},
}
"""From 1 to the next value."""

_LINE: Final = 64
"""Bytes of a line of the cache."""

_ADDED: Final = [
    kernels.SQUARES,
    kernels.DIFFERENCE,
    kernels.PAIR_SQUARES,
    kernels.REFERENCE_SQUARES,
    kernels.PRODUCTS,
]


class TensorResult(Struct, frozen=True, kw_only=True):
    """What is known about one tensor once all its segments are summed."""

    pair: Pair
    weights: TensorWeights
    drift: PairSums | None = None
    """None without a counterpart in the reference."""
    sketch: Floats | None = None


class Segment:
    """The sums of one segment; the arrays that the kernel adds to."""

    def __init__(self, tally: "Tally", number: int) -> None:
        self.tally = tally
        self.number = number
        self.start = number * SEGMENT
        self.stop = min(self.start + SEGMENT, tally.pair.count)
        self.sums = _empty_sums()
        self.counts: Integers = np.zeros(kernels.COUNTS_SIZE, np.int64)
        length = tally.row_length
        self.first_row = self.start // length if length else 0
        touched = (self.stop - 1) // length - self.first_row + 1 if length else 0
        # The first segment's arrays become the tensor's.
        self.rows: Floats = np.zeros(tally.lines if number == 0 else touched)
        self.columns, self.sketch = aligned(length), aligned(tally.sketch_size)

    def window(self, start: int) -> Integers:
        """What the kernel is told about values from ``start`` on."""
        pair = self.tally.pair
        window = np.zeros(kernels.WINDOW_SIZE, np.int64)
        window[kernels.KIND] = KINDS[pair.target.dtype]
        window[kernels.REFERENCE_KIND] = KINDS[pair.reference.dtype] if pair.reference else kernels.ABSENT
        window[kernels.START] = start
        window[kernels.COLUMNS] = self.tally.row_length
        window[kernels.FIRST_ROW] = self.first_row
        window[kernels.KEY] = self.tally.key
        window[kernels.SKETCHED] = self.tally.sketched
        return window


class Tally:
    """Collects the segments of one tensor. ``add`` is called from several threads."""

    def __init__(self, pair: Pair, *, has_sketch: bool) -> None:
        self.pair = pair
        self.segments = -(-pair.count // SEGMENT)
        shape = pair.target.shape
        is_matrix = len(shape) == 2 and pair.count > 0 and max(shape) <= MAX_LINES  # noqa: PLR2004 - rows and columns
        self.row_length = shape[1] if is_matrix else 0
        self.key = np.uint64(sketch.tensor_key(pair.name)).view(np.int64)
        self.sketched = kernels.NO_SKETCH
        if has_sketch:
            self.sketched = kernels.WHOLE if pair.count <= sketch.WIDTH else kernels.PROJECTED
        self.sketch_size = sketch.size_of(pair.count) if has_sketch else 0
        self.lines = shape[0] if is_matrix else 0
        self._sums: Floats = _empty_sums()
        self._counts: Integers = np.zeros(kernels.COUNTS_SIZE, np.int64)
        self._rows: Floats = np.zeros(0)
        self._columns: Floats = self._rows
        self._sketch: Floats = self._rows
        self._histogram: Integers = np.zeros(0, np.int64)
        self._waiting: dict[int, Segment] = {}
        self._next = 0
        self._lock = threading.Lock()

    def add(self, segment: Segment, histogram: npt.NDArray[np.uint32]) -> bool:
        """Adds a segment's sums, now or when those before it are there. True: it was the tensor's last.

        Args:
            segment: Summed to its end; left alone by the caller from now on.
            histogram: Its counts by bit pattern, as the kernel leaves them; emptied.
        """
        with self._lock:
            if not self._histogram.size:
                self._histogram = np.zeros(kernels.BINS, np.int64)
            kernels.take_counts(histogram, self._histogram)
            self._waiting[segment.number] = segment
            while (ready := self._waiting.pop(self._next, None)) is not None:
                self._merge(ready)
                self._next += 1
            return self._next == self.segments

    def _merge(self, segment: Segment) -> None:
        if segment.number == 0:
            self._sums, self._counts, self._sketch = segment.sums, segment.counts, segment.sketch
            self._rows, self._columns = segment.rows, segment.columns
            return
        sums, more = self._sums, segment.sums
        # Before the counts are added: the update of the moments needs the number of values so far.
        if size := int(segment.counts[kernels.FINITE]):
            merged = [float(more[entry]) for entry in (kernels.MEAN, kernels.M2, kernels.M3, kernels.M4)]
            kernels.merge_moments(int(self._counts[kernels.FINITE]), sums, size, *merged)
        self._counts += segment.counts
        sums[_ADDED] += more[_ADDED]
        sums[kernels.LARGEST] = max(sums[kernels.LARGEST], more[kernels.LARGEST])
        sums[kernels.MINIMUM] = min(sums[kernels.MINIMUM], more[kernels.MINIMUM])
        sums[kernels.MAXIMUM] = max(sums[kernels.MAXIMUM], more[kernels.MAXIMUM])
        self._rows[segment.first_row : segment.first_row + segment.rows.size] += segment.rows
        self._columns += segment.columns
        self._sketch += segment.sketch

    def result(self) -> TensorResult:
        """The tensor's statistics; called once, after the last segment."""
        drift = self._pair_sums() if self.pair.reference else None
        weights = tensor_weights(
            self._distribution(),
            dtype=self.pair.target.dtype,
            shape=self.pair.target.shape,
            row_squares=self._rows if self.row_length else None,
            column_squares=self._columns if self.row_length else None,
            growth=growth_of(drift.squares, drift.reference_squares) if drift else None,
        )
        return TensorResult(
            pair=self.pair, weights=weights, drift=drift, sketch=self._sketch if self.sketched else None
        )

    def _distribution(self) -> Distribution:
        histogram = self._histogram if self._histogram.size else np.zeros(kernels.BINS, np.int64)
        if self.pair.target.dtype != "F32":
            return from_bits(histogram, self.pair.target.dtype)
        sums, counts = self._sums, self._counts
        moments = Moments(
            count=int(counts[kernels.FINITE]),
            zeros=int(counts[kernels.ZEROS]),
            nan_count=int(counts[kernels.NANS]),
            inf_count=int(counts[kernels.INFINITIES]),
            mean=float(sums[kernels.MEAN]),
            m2=float(sums[kernels.M2]),
            m4=float(sums[kernels.M4]),
            squares=float(sums[kernels.SQUARES]),
            min=float(sums[kernels.MINIMUM]),
            max=float(sums[kernels.MAXIMUM]),
        )
        return from_moments(moments, histogram)

    def _pair_sums(self) -> PairSums:
        sums, counts = self._sums, self._counts
        return PairSums(
            count=self.pair.count,
            difference=float(sums[kernels.DIFFERENCE]),
            squares=float(sums[kernels.PAIR_SQUARES]),
            reference_squares=float(sums[kernels.REFERENCE_SQUARES]),
            products=float(sums[kernels.PRODUCTS]),
            largest=float(sums[kernels.LARGEST]),
            changed=int(counts[kernels.CHANGED]),
            resolution=max(_STEPS[side.dtype] for side in (self.pair.target, self.pair.reference) if side),
            sign_flips=int(counts[kernels.SIGN_FLIPS]),
            nonfinite_pairs=int(counts[kernels.NONFINITE_PAIRS]),
        )


def aligned(count: int) -> Floats:
    """Zeros that begin where a line of the cache does: the kernel adds eight at a time to them, twice as fast."""
    spare = np.zeros(count + _LINE // 8 - 1)
    first = -spare.ctypes.data % _LINE // 8
    return spare[first : first + count]


def _empty_sums() -> Floats:
    sums: Floats = np.zeros(kernels.SUMS_SIZE)
    sums[kernels.MINIMUM], sums[kernels.MAXIMUM] = np.inf, -np.inf
    return sums
