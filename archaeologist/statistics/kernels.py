"""The compiled kernel: everything that is summed over the values of a tensor and its reference, in one pass.

``dig`` is called by the excavation's threads without the GIL and adds to arrays that the caller owns. It works in
pieces of ``PIECE`` values that stay in the first-level cache: decoded to float32 (exact for all dtypes), looked at,
summed. Products and sums are float64. Within a piece the compiler orders the additions (lanes of a vector
register); pieces are added in order. A piece with a NaN or an infinity takes a slower way in which these are counted
and replaced by 0, so the sums cover finite values and the fast way needs no masks.

numba compiles at the first call and keeps the code in ``NUMBA_CACHE_DIR``. Nobody but the excavation imports this
module: the daemon must not carry a compiler.
"""

from typing import Final

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from archaeologist.statistics import float8
from archaeologist.statistics.sketch import WIDTH, position_signs

PIECE: Final = WIDTH
"""Values summed at a time, and a block of the sketch."""

BF16: Final = 0
F16: Final = 1
F32: Final = 2
SHORTEST: Final = 3
"""The first of the 8-bit floats' kinds."""
FLOAT8: Final = {dtype: SHORTEST + number for number, dtype in enumerate(float8.FORMATS)}
ABSENT: Final = -1
"""The reference's kind where there is none."""

# Entries of ``window``: what the bytes are.
KIND, REFERENCE_KIND, START, COLUMNS, FIRST_ROW, KEY, SKETCHED, WINDOW_SIZE = range(8)
"""Dtypes of both sides; first value's position in the tensor; row length of a matrix (0: no row and column sums);
the matrix row that ``rows[0]`` stands for; the sketch's key; whether a sketch is wanted (``NO_SKETCH`` …)."""

NO_SKETCH, PROJECTED, WHOLE = range(3)
"""Values of ``window[SKETCHED]``."""

# Entries of ``sums``.
(
    SQUARES,
    DIFFERENCE,
    PAIR_SQUARES,
    REFERENCE_SQUARES,
    PRODUCTS,
    LARGEST,
    MEAN,
    M2,
    M3,
    M4,
    MINIMUM,
    MAXIMUM,
    SUMS_SIZE,
) = range(13)
"""Σx² over finite x; over pairs of finite values Σ(x-y)², Σx², Σy², Σxy and the largest |x-y|; for float32 the
mean and the central sums Σ(x-mean)ᵏ over finite x, and the extremes."""

# Entries of ``counts``.
FINITE, ZEROS, NANS, INFINITIES, CHANGED, SIGN_FLIPS, NONFINITE_PAIRS, COUNTS_SIZE = range(8)
"""The first four for float32 only: elsewhere the histogram has them."""

SUB_HISTOGRAMS: Final = 2
BINS: Final = 65_536

_SIGNS: Final = position_signs()
_SHORT_VALUES: Final = np.stack([float8.values(dtype) for dtype in float8.FORMATS]).view(np.uint32)
_BYTE: Final = np.uint64(0xFF)
_MAGNITUDE: Final = np.uint32(0x7FFFFFFF)
_INFINITE: Final = np.uint32(0x7F800000)
_LOW: Final = np.uint64(0xFFFF)
_SIXTEEN: Final = np.uint64(16)

# Additions may be reordered and fused, so that they fill vector registers; NaN, infinity and order of operands keep
# their meaning.
_REORDERED: Final = {"reassoc", "contract", "nsz"}


@intrinsic
def _bits(context, value):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, ARG001 - numba's form
    """The bits of a float64 as int64: integers have a maximum that vectorises, floats with their NaN have not."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, ARG001
        return builder.bitcast(arguments[0], ir.IntType(64))

    return types.int64(types.float64), generate


@njit(nogil=True, cache=True)
def dig(target, reference, window, sums, counts, histogram, rows, columns, sketch):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201, PLR0913, PLR0917 - numba unpacks tuples slowly at each call
    """Adds what consecutive values of a tensor, and of its reference, contribute to its sums.

    Calls for one set of arrays must come in the order of the values. Every call but a segment's last must bring a
    multiple of ``PIECE`` values, and ``window[START]`` must be one: then cutting a segment into other calls gives the
    same bits.

    Args:
        target: The values' bytes, uint8, aligned to 4.
        reference: The same number of values of the reference, in its dtype; empty where there is none.
        window: What the bytes are: int64, entries ``KIND`` … ``SKETCHED``.
        sums: float64, entries ``SQUARES`` … ``MAXIMUM``; ``MINIMUM`` starts as inf, ``MAXIMUM`` as
            -inf, the others as 0.
        counts: int64, entries ``FINITE`` … ``NONFINITE_PAIRS``.
        histogram: uint32 (SUB_HISTOGRAMS, BINS), counts of the upper 16 bits of each value; their sum over the
            first axis is the result. Of 8-bit floats any bin of the same remainder by 256 counts the pattern.
        rows: float64, Σx² by matrix row from ``window[FIRST_ROW]`` on; empty where ``window[COLUMNS]`` is 0.
        columns: float64, Σx² by matrix column; likewise.
        sketch: float64, as in ``statistics.sketch``.
    """
    kind, other = window[KIND], window[REFERENCE_KIND]
    width, other_width = _width(kind), _width(other)
    count = target.size // width
    x, y, z = np.empty(PIECE, np.uint32), np.empty(PIECE, np.uint32), np.empty(PIECE, np.uint32)
    for first in range(0, count, PIECE):
        size = min(PIECE, count - first)
        piece = target[first * width : (first + size) * width]
        _decode(piece, kind, x[:size])
        _count_bits(piece, kind, histogram)
        has_holes = _has_nonfinite(x[:size])
        if kind == F32:
            _add_moments(x[:size], z, sums, counts, has_holes)
        start = window[START] + first
        square = 0.0
        if not has_holes:
            square = _add_weights(x[:size].view(np.float32), start, window, sums, rows, columns, sketch)
        if other != ABSENT:
            theirs = reference[first * other_width : (first + size) * other_width]
            _decode(theirs, other, y[:size])
            if kind != other:
                _make_comparable(x[:size])
                _make_comparable(y[:size])
            _compare(x[:size], y[:size], z[:size], has_holes, square, sums, counts)
        if has_holes:
            _fill_holes(x[:size])
            _add_weights(x[:size].view(np.float32), start, window, sums, rows, columns, sketch)


def load() -> None:
    """Takes the compiled code from the cache, or compiles it, which takes seconds; without this the first calls do."""
    sums, counts = np.zeros(SUMS_SIZE), np.zeros(COUNTS_SIZE, np.int64)
    histogram = np.zeros((SUB_HISTOGRAMS, BINS), np.uint32)
    nothing, none = np.zeros(0, np.uint8), np.zeros(0)
    dig(nothing, nothing, np.zeros(WINDOW_SIZE, np.int64), sums, counts, histogram, none, none, none)
    take_counts(histogram, np.zeros(BINS, np.int64))
    merge_moments(1, sums, 1, 0.0, 0.0, 0.0, 0.0)


# Bits.


@njit(nogil=True, cache=True)
def _width(kind):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Bytes of a value."""
    if kind >= SHORTEST:
        return 1
    return 4 if kind == F32 else 2


@njit(nogil=True, cache=True)
def _decode(piece, kind, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """The values as the bits of float32."""
    if kind == BF16:
        short = piece.view(np.uint16)
        for i in range(out.size):
            out[i] = np.uint32(short[i]) << np.uint32(16)
    elif kind == F16:
        short = piece.view(np.uint16)
        scaled = out.view(np.float32)
        for i in range(out.size):
            # Exponent and fraction moved into place are the value over 2^112, subnormals included.
            out[i] = (np.uint32(short[i]) & np.uint32(0x7FFF)) << np.uint32(13)
            scaled[i] *= np.float32(2.0**112)
        for i in range(out.size):
            magnitude = np.uint32(short[i]) & np.uint32(0x7FFF)
            if magnitude >= np.uint32(0x7C00):
                out[i] = _INFINITE | ((magnitude & np.uint32(0x3FF)) << np.uint32(13))
            out[i] |= (np.uint32(short[i]) & np.uint32(0x8000)) << np.uint32(16)
    elif kind >= SHORTEST:
        table = _SHORT_VALUES[kind - SHORTEST]
        for i in range(out.size):
            out[i] = table[piece[i]]
    else:
        long = piece.view(np.uint32)
        for i in range(out.size):
            out[i] = long[i]


@njit(nogil=True, cache=True)
def _count_bits(piece, kind, histogram):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Counts the upper 16 bits of each value. Two tables: equal neighbours would wait for each other's store."""
    one = np.uint32(1)
    if kind == F32:
        for word in piece.view(np.uint32):
            histogram[0, word >> np.uint32(16)] += one
        return
    full = piece.size // 8 * 8
    if kind >= SHORTEST:
        # A table for each byte of a word, one after the other: 256 bins are hit again at once.
        for word in piece[:full].view(np.uint64):
            for lane in range(8):
                pattern = (word >> np.uint64(8 * lane)) & _BYTE
                histogram[0, np.uint64(256 * lane) + pattern] += one
        for pattern in piece[full:]:
            histogram[0, pattern] += one
        return
    for word in piece[:full].view(np.uint64):
        histogram[0, word & _LOW] += one
        histogram[1, (word >> _SIXTEEN) & _LOW] += one
        histogram[0, (word >> np.uint64(32)) & _LOW] += one
        histogram[1, word >> np.uint64(48)] += one
    for short in piece[full:].view(np.uint16):
        histogram[0, short] += one


@njit(nogil=True, cache=True)
def _has_nonfinite(x):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    largest = np.int32(0)
    for i in range(x.size):
        largest = max(largest, np.int32(x[i] & _MAGNITUDE))
    return largest >= np.int32(_INFINITE)


@njit(nogil=True, cache=True)
def _make_comparable(x):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """One pattern for both zeros and one for all NaN, so that values of two dtypes differ when their bits do."""
    for i in range(x.size):
        magnitude = x[i] & _MAGNITUDE
        if magnitude == 0:
            x[i] = 0
        elif magnitude > _INFINITE:
            x[i] = np.uint32(0x7FC00000)


@njit(nogil=True, cache=True)
def _fill_holes(x):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for i in range(x.size):
        if x[i] & _MAGNITUDE >= _INFINITE:
            x[i] = 0


@njit(nogil=True, cache=True)
def take_counts(histogram, total):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Adds the sub-histograms to ``total``, int64 (BINS,), and empties them."""
    for i in range(total.size):
        for sub in range(SUB_HISTOGRAMS):
            total[i] += np.int64(histogram[sub, i])
            histogram[sub, i] = 0


# Drift.


@njit(nogil=True, cache=True)
def _compare(x, y, spare, has_holes, mine, sums, counts):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - as for dig
    """Adds a piece's drift. ``mine`` is Σx² where ``x`` has no holes; ``x`` is left as it is, ``y`` not."""
    changed, flipped = _differences(x, y)
    if changed == 0 and not has_holes:
        # A frozen piece: every sum over pairs is Σx².
        sums[PAIR_SQUARES] += mine
        sums[REFERENCE_SQUARES] += mine
        sums[PRODUCTS] += mine
        return
    difference, theirs, products, largest = _pair_sums(x.view(np.float32), y.view(np.float32))
    # A sum over float32 squares overflows no float64: where it is not finite, a value is not.
    if has_holes or not np.isfinite(theirs):
        for i in range(x.size):
            spare[i] = x[i]
            if (x[i] & _MAGNITUDE >= _INFINITE) | (y[i] & _MAGNITUDE >= _INFINITE):
                spare[i] = y[i] = 0
                counts[NONFINITE_PAIRS] += 1
        pairs = spare[: x.size]
        _, flipped = _differences(pairs, y)
        difference, theirs, products, largest = _pair_sums(pairs.view(np.float32), y.view(np.float32))
        mine = _squares(pairs.view(np.float32))
    counts[CHANGED] += changed
    counts[SIGN_FLIPS] += flipped
    sums[DIFFERENCE] += difference
    sums[PAIR_SQUARES] += mine
    sums[REFERENCE_SQUARES] += theirs
    sums[PRODUCTS] += products
    sums[LARGEST] = max(sums[LARGEST], largest)


@njit(nogil=True, cache=True)
def _differences(x, y):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """How many values differ in their bits, and how many went from one strict sign to the other."""
    changed, flipped = np.int32(0), np.int32(0)
    for i in range(x.size):
        # numba widens to 64 bits what is not narrowed at every step, and then half as many fit a register.
        a, b = np.int32(x[i]), np.int32(y[i])
        is_opposite = np.int32(a ^ b) < 0
        is_strict = (np.int32(a & 0x7FFFFFFF) != 0) & (np.int32(b & 0x7FFFFFFF) != 0)
        changed = np.int32(changed + np.int32(a != b))
        flipped = np.int32(flipped + np.int32(is_opposite & is_strict))
    return changed, flipped


@njit(nogil=True, cache=True, fastmath=_REORDERED)
def _pair_sums(x, y):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Σ(x-y)², Σy², Σxy, max|x-y| of finite values. The last through its bits, which order like the value."""
    difference, theirs, products, largest = 0.0, 0.0, 0.0, np.int64(0)
    for i in range(x.size):
        a, b = np.float64(x[i]), np.float64(y[i])
        d = a - b
        difference += d * d
        theirs += b * b
        products += a * b
        largest = max(largest, _bits(abs(d)))  # type: ignore[call-arg]
    return difference, theirs, products, np.array([largest]).view(np.float64)[0]


# Weights.


@njit(nogil=True, cache=True, fastmath=_REORDERED)
def _squares(values):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    total = 0.0
    for i in range(values.size):
        total += np.float64(values[i]) * np.float64(values[i])
    return total


@njit(nogil=True, cache=True, fastmath=_REORDERED)
def _squares_into(values, columns):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    total = 0.0
    for i in range(values.size):
        square = np.float64(values[i]) * np.float64(values[i])
        total += square
        columns[i] += square
    return total


@njit(nogil=True, cache=True)
def _add_weights(values, start, window, sums, rows, columns, sketch):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """A piece's Σx², once it and the piece's part of the sketch are added."""
    is_matrix = window[COLUMNS] > 0
    square = _add_matrix(values, start, window, rows, columns) if is_matrix else _squares(values)
    sums[SQUARES] += square
    if window[SKETCHED] == WHOLE:
        for i in range(values.size):
            sketch[start + i] = values[i]
    elif window[SKETCHED] == PROJECTED:
        _project(values, np.uint64(window[KEY]) + np.uint64(start // PIECE), sketch)
    return square


@njit(nogil=True, cache=True)
def _add_matrix(values, start, window, rows, columns):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - as for dig
    """A piece's Σx², once it is added to the rows and columns that the piece touches."""
    length = window[COLUMNS]
    done, total = 0, 0.0
    while done < values.size:
        row, column = divmod(start + done, length)
        run = min(values.size - done, length - column)
        square = _squares_into(values[done : done + run], columns[column : column + run])
        rows[row - window[FIRST_ROW]] += square
        total += square
        done += run
    return total


@njit(nogil=True, cache=True)
def _project(values, counter, sketch):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Adds a block to the sketch: signed, rotated; in two runs, so that both vectorise."""
    mixed = counter + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    sign = np.float32(-1.0) if mixed >> np.uint64(63) else np.float32(1.0)
    offset = np.int64(mixed & np.uint64(PIECE - 1))
    before = min(values.size, PIECE - offset)
    _add_signed(values[:before], _SIGNS[:before], sign, sketch[offset : offset + before])
    _add_signed(values[before:], _SIGNS[before : values.size], sign, sketch[: values.size - before])


@njit(nogil=True, cache=True)
def _add_signed(values, signs, sign, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for i in range(values.size):
        out[i] += np.float64(values[i] * signs[i] * sign)


# Moments of float32.


@njit(nogil=True, cache=True)
def _add_moments(x, spare, sums, counts, has_holes):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Adds a piece's moments to the segment's (Pébay 2008, the update for two sets), its extremes and counts."""
    bits = x
    if has_holes:
        bits = spare[: _keep_finite(x, spare, counts)]
    size = bits.size
    if size == 0:
        return
    lowest, highest, zeros = _extremes(bits)
    sums[MINIMUM] = min(sums[MINIMUM], lowest)
    sums[MAXIMUM] = max(sums[MAXIMUM], highest)
    counts[ZEROS] += zeros
    mean, m2, m3, m4 = _central(bits.view(np.float32))
    before = counts[FINITE]
    counts[FINITE] += size
    merge_moments(before, sums, size, mean, m2, m3, m4)


@njit(nogil=True, cache=True)
def merge_moments(before, sums, size, mean, m2, m3, m4):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201 - as for dig
    """Merges the mean and central sums of ``size`` values into those of ``before`` values in ``sums``."""
    na, nb = np.float64(before), np.float64(size)
    n = na + nb
    delta = mean - sums[MEAN]
    share = delta / n
    sums[M4] += (
        m4
        + delta * share * share * share * na * nb * (na * na - na * nb + nb * nb)
        + 6.0 * share * share * (na * na * m2 + nb * nb * sums[M2])
        + 4.0 * share * (na * m3 - nb * sums[M3])
    )
    sums[M3] += m3 + delta * share * share * na * nb * (na - nb) + 3.0 * share * (na * m2 - nb * sums[M2])
    sums[M2] += m2 + delta * share * na * nb
    sums[MEAN] += share * nb


@njit(nogil=True, cache=True)
def _keep_finite(x, out, counts):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """How many values are finite; they are copied to the front of ``out``, the others counted."""
    kept = 0
    for i in range(x.size):
        magnitude = x[i] & _MAGNITUDE
        if magnitude < _INFINITE:
            out[kept] = x[i]
            kept += 1
        elif magnitude == _INFINITE:
            counts[INFINITIES] += 1
        else:
            counts[NANS] += 1
    return kept


@njit(nogil=True, cache=True)
def _extremes(bits):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Least and greatest value and the number of zeros. Floats order like their bits once negatives are mirrored."""
    low, high, zeros = np.int32(0x7FFFFFFF), np.int32(-0x80000000), np.int32(0)
    for i in range(bits.size):
        signed = np.int32(bits[i])
        order = signed ^ ((signed >> np.int32(31)) & np.int32(0x7FFFFFFF))
        low = min(low, order)
        high = max(high, order)
        zeros += np.int32((bits[i] & _MAGNITUDE) == 0)
    ends = np.array([low, high], np.int32)
    for i in range(2):
        ends[i] ^= (ends[i] >> np.int32(31)) & np.int32(0x7FFFFFFF)
    values = ends.view(np.float32)
    return np.float64(values[0]), np.float64(values[1]), zeros


@njit(nogil=True, cache=True, fastmath=_REORDERED)
def _central(values):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Mean and Σ(x-mean)ᵏ for k = 2, 3, 4: two passes over values that lie in the first-level cache."""
    total = 0.0
    for i in range(values.size):
        total += np.float64(values[i])
    mean = total / values.size
    m2, m3, m4 = 0.0, 0.0, 0.0
    for i in range(values.size):
        d = np.float64(values[i]) - mean
        square = d * d
        m2 += square
        m3 += square * d
        m4 += square * square
    return mean, m2, m3, m4
