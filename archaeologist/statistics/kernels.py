"""The compiled kernel: everything that is summed over the values of a tensor and its reference, in one pass.

``dig`` is called by the excavation's threads without the GIL and adds to arrays that the caller owns. It works in
pieces of ``PIECE`` values that stay in the first-level cache: looked at and summed, 16-bit floats and ``F8_E4M3`` as
they are stored, others, and pairs of two dtypes, decoded to float32, which is exact. Products and sums are float64. A
piece is summed in runs that end where a matrix row does; within a run value i is added to lane i mod 8
(``kernels_lanes``), then the lanes are added up in order; runs and pieces are added in order. A piece with a NaN or an
infinity takes a slower way in which these are counted and replaced by 0, so the sums cover finite values and the fast
way needs no masks. A piece whose bytes are the reference's costs a comparison instead of a drift.

numba compiles at the first call and keeps the code in ``NUMBA_CACHE_DIR``. Nobody but the excavation imports this
module: the daemon must not carry a compiler.
"""

from typing import Final

import numpy as np
from numba import njit

from archaeologist.statistics import float8, kernels_counts
from archaeologist.statistics import kernels_lanes as lanes
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

_SIGNS: Final = np.where(np.stack([position_signs(), -position_signs()]) < 0, 0x8000, 0).astype(np.uint16)
"""The sign bit of each position in a block of the sketch, as it is and turned."""
UNCOUNTED, DIRECT_BF16, DIRECT_F16, DIRECT_E4M3 = 0, 16, 17, 18
"""Forms of values beside their width in bytes: as it is, but not counted; of one dtype on both sides, not decoded."""
_SHORT_VALUES: Final = np.stack([float8.values(dtype) for dtype in float8.FORMATS]).view(np.uint32)
_MAGNITUDE: Final = np.uint32(0x7FFFFFFF)
_INFINITE: Final = np.uint32(lanes.INFINITE_F32)
_E4M3: Final = FLOAT8["F8_E4M3"]
_AT_ONCE_1: Final = lanes.compared_at_once(1)
_AT_ONCE_2: Final = lanes.compared_at_once(2)
_AT_ONCE_4: Final = lanes.compared_at_once(4)


@njit(nogil=True, cache=True)
def dig(target, reference, window, sums, counts, histogram, rows, columns, sketch):
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
    spare, added, found = np.zeros(PIECE), np.zeros((lanes.SUMS, lanes.LANES)), np.zeros(lanes.FOUND, np.int64)
    is_direct = kind in (BF16, F16, _E4M3) and other in (kind, ABSENT)
    for first in range(0, count, PIECE):
        size = min(PIECE, count - first)
        mine, raw, start = x[:size], target[first * width : (first + size) * width], window[START] + first
        theirs, raw_y = y[:0], reference[:0]
        if other != ABSENT:
            theirs, raw_y = y[:size], reference[first * other_width : (first + size) * other_width]
        if is_direct:
            _compare_stored(kind, raw, raw if other == ABSENT else raw_y, found)
            is_frozen = kind == other and found[lanes.CHANGED] == 0
        else:
            is_frozen = kind == other and _is_equal(raw, raw_y)
        if is_direct and found[lanes.NONFINITE] == 0:
            form = _direct_form(kind)
            has_drift = other != ABSENT and not is_frozen
        else:
            form = width
            _decode(raw, kind, mine)
            has_holes = _has_nonfinite(mine)
            if kind == F32:
                _add_moments(mine, z, sums, counts, has_holes)
            has_drift = other != ABSENT and (has_holes or not is_frozen)
            if has_drift:
                _decode(raw_y, other, theirs)
                if kind != other:
                    _make_comparable(mine)
                    _make_comparable(theirs)
                _compare_decoded(mine, theirs, found)
                if found[lanes.NONFINITE]:
                    _compare_with_holes(mine, theirs, z[:size], spare, sums, counts, added, found, histogram)
                    has_drift, is_frozen = False, False
            if has_holes:
                _fill_holes(mine)
        square = _add_piece(
            form, size, has_drift, x, y, raw, raw_y, start, window, rows, columns, spare, added, histogram
        )
        if window[SKETCHED] != NO_SKETCH:
            _add_to_sketch(form, size, x, raw, start, window, sketch)
        sums[SQUARES] += square
        if has_drift:
            _add_pairs(square, sums, counts, added, found)
        elif is_frozen:
            # Every sum over pairs is Σx².
            sums[PAIR_SQUARES] += square
            sums[REFERENCE_SQUARES] += square
            sums[PRODUCTS] += square


def load() -> None:
    """Takes the compiled code from the cache, or compiles it, which takes seconds; without this the first calls do."""
    sums, counts = np.zeros(SUMS_SIZE), np.zeros(COUNTS_SIZE, np.int64)
    histogram = np.zeros((SUB_HISTOGRAMS, BINS), np.uint32)
    nothing, none = np.zeros(0, np.uint8), np.zeros(0)
    dig(nothing, nothing, np.zeros(WINDOW_SIZE, np.int64), sums, counts, histogram, none, none, none)
    take_counts(histogram, np.zeros(BINS, np.int64))
    merge_moments(1, sums, 1, 0.0, 0.0, 0.0, 0.0)
    kernels_counts.load()


# Bits.


@njit(nogil=True, cache=True)
def _width(kind):
    """Bytes of a value."""
    if kind >= SHORTEST:
        return 1
    return 4 if kind == F32 else 2


@njit(nogil=True, cache=True)
def _direct_form(kind):
    if kind == BF16:
        return DIRECT_BF16
    return DIRECT_F16 if kind == F16 else DIRECT_E4M3


@njit(nogil=True, cache=True)
def _decode(piece, kind, out):
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
def _has_nonfinite(x):
    largest = np.int32(0)
    for i in range(x.size):
        largest = max(largest, np.int32(x[i] & _MAGNITUDE))
    return largest >= np.int32(_INFINITE)


@njit(nogil=True, cache=True)
def _make_comparable(x):
    """One pattern for both zeros and one for all NaN, so that values of two dtypes differ when their bits do."""
    for i in range(x.size):
        magnitude = x[i] & _MAGNITUDE
        if magnitude == 0:
            x[i] = 0
        elif magnitude > _INFINITE:
            x[i] = np.uint32(0x7FC00000)


@njit(nogil=True, cache=True)
def _fill_holes(x):
    for i in range(x.size):
        if x[i] & _MAGNITUDE >= _INFINITE:
            x[i] = 0


@njit(nogil=True, cache=True)
def take_counts(histogram, total):
    """Adds the sub-histograms to ``total``, int64 (BINS,), and empties them."""
    for i in range(total.size):
        for sub in range(SUB_HISTOGRAMS):
            total[i] += np.int64(histogram[sub, i])
            histogram[sub, i] = 0


# Sums.


@njit(nogil=True, cache=True)
def _add_piece(form, size, has_drift, x, y, raw, raw_y, start, window, rows, columns, spare, added, histogram):
    """A piece's Σx², once its part of rows, columns and histogram is added; its drift is left in the lanes."""
    length, first_row = window[COLUMNS], window[FIRST_ROW]
    added[:] = 0.0
    done, total = 0, 0.0
    while done < size:
        stop, row, column = size, 0, 0
        if length:
            row, column = divmod(start + done, length)
            stop = min(size, done + length - column)
        added[lanes.SQUARES] = 0.0
        _add_run(
            form,
            has_drift,
            x,
            y,
            raw,
            raw_y,
            columns if length else spare,
            added,
            histogram,
            done,
            column if length else done,
            stop - done,
        )
        square = _folded(added[lanes.SQUARES])
        total += square
        if length:
            rows[row - first_row] += square
        done = stop
    return total


@njit(nogil=True, cache=True, inline="always")
def _add_run(form, has_drift, x, y, raw, raw_y, columns, added, histogram, first, column, count):
    """As ``kernels_lanes`` has it; what is left over of eight goes to the first lanes."""
    full = count // lanes.LANES * lanes.LANES
    if has_drift:
        if form == DIRECT_BF16:
            lanes.pair_bfloat16(x, y, raw, raw_y, columns, added, histogram, first, column, full)
        elif form == DIRECT_F16:
            lanes.pair_float16(x, y, raw, raw_y, columns, added, histogram, first, column, full)
        elif form == DIRECT_E4M3:
            lanes.pair_e4m3(x, y, raw, raw_y, columns, added, histogram, first, column, full)
        elif form == 1:
            lanes.pair_1(x, y, raw, raw_y, columns, added, histogram, first, column, full)
        elif form == 2:  # noqa: PLR2004 - bytes
            lanes.pair_2(x, y, raw, raw_y, columns, added, histogram, first, column, full)
        elif form == UNCOUNTED:
            lanes.pair_uncounted(x, y, raw, raw_y, columns, added, histogram, first, column, full)
        else:
            lanes.pair_4(x, y, raw, raw_y, columns, added, histogram, first, column, full)
    elif form == DIRECT_BF16:
        lanes.alone_bfloat16(x, y, raw, raw_y, columns, added, histogram, first, column, full)
    elif form == DIRECT_F16:
        lanes.alone_float16(x, y, raw, raw_y, columns, added, histogram, first, column, full)
    elif form == DIRECT_E4M3:
        lanes.alone_e4m3(x, y, raw, raw_y, columns, added, histogram, first, column, full)
    elif form == 1:
        lanes.alone_1(x, y, raw, raw_y, columns, added, histogram, first, column, full)
    elif form == 2:  # noqa: PLR2004 - bytes
        lanes.alone_2(x, y, raw, raw_y, columns, added, histogram, first, column, full)
    else:
        lanes.alone_4(x, y, raw, raw_y, columns, added, histogram, first, column, full)
    for i in range(full, count):
        lane = i - full
        a = _value_at(form, x, raw, first + i)
        added[lanes.SQUARES, lane] += a * a
        columns[column + i] += a * a
        if form != UNCOUNTED:
            histogram[0, _pattern(raw, first + i, _form_width(form))] += np.uint32(1)
        if has_drift:
            b = _value_at(form, y, raw_y, first + i)
            d = a - b
            added[lanes.DIFFERENCE, lane] += d * d
            added[lanes.REFERENCE_SQUARES, lane] += b * b
            added[lanes.PRODUCTS, lane] += a * b
            added[lanes.LARGEST, lane] = max(added[lanes.LARGEST, lane], d * d)


@njit(nogil=True, cache=True)
def _add_to_sketch(form, size, x, raw, start, window, sketch):
    """Adds a piece, which is a block of the sketch, or less at a tensor's end."""
    if window[SKETCHED] == WHOLE:
        for i in range(size):
            sketch[start + i] = _value_at(form, x, raw, i)
        return
    turn, offset = _drawn(np.uint64(window[KEY]) + np.uint64(start // PIECE))
    signs = _SIGNS[turn]
    if size < PIECE:
        _add_singly(form, x, raw, signs, sketch, offset, 0, size)
        return
    # Eight at a time where a line of the sketch begins; in the line in which the rotation comes round, one by one.
    seam = offset // lanes.LANES * lanes.LANES
    after = -(-offset // lanes.LANES) * lanes.LANES
    if form == DIRECT_BF16:
        lanes.project_bfloat16(x, raw, signs, sketch, PIECE - offset, 0, seam)
        lanes.project_bfloat16(x, raw, signs, sketch, after - offset, after, PIECE - after)
    elif form == DIRECT_F16:
        lanes.project_float16(x, raw, signs, sketch, PIECE - offset, 0, seam)
        lanes.project_float16(x, raw, signs, sketch, after - offset, after, PIECE - after)
    elif form == DIRECT_E4M3:
        lanes.project_e4m3(x, raw, signs, sketch, PIECE - offset, 0, seam)
        lanes.project_e4m3(x, raw, signs, sketch, after - offset, after, PIECE - after)
    else:
        lanes.project_decoded(x, raw, signs, sketch, PIECE - offset, 0, seam)
        lanes.project_decoded(x, raw, signs, sketch, after - offset, after, PIECE - after)
    _add_singly(form, x, raw, signs, sketch, offset, 0, after - offset)
    _add_singly(form, x, raw, signs, sketch, offset, PIECE - (offset - seam), PIECE)


@njit(nogil=True, cache=True)
def _add_singly(form, x, raw, signs, sketch, offset, first, stop):
    for i in range(first, stop):
        value = _value_at(form, x, raw, i)
        sketch[(i + offset) % PIECE] += -value if signs[i] else value


@njit(nogil=True, cache=True)
def _value_at(form, decoded, raw, i):
    """One value as float64; of float16 as stored a finite one."""
    if form < DIRECT_BF16:
        return lanes.value_of(decoded[i])
    if form == DIRECT_E4M3:
        return lanes.value_of(_SHORT_VALUES[_E4M3 - SHORTEST][raw[i]])
    short = _pattern(raw, i, 2)
    if form == DIRECT_BF16:
        return lanes.value_of(np.uint32(short << 16))
    # Exponent and fraction moved into place are the value over 2^112, subnormals included.
    magnitude = lanes.value_of(np.uint32((short & 0x7FFF) << 13)) * 2.0**112
    return -magnitude if short & 0x8000 else magnitude


@njit(nogil=True, cache=True)
def _form_width(form):
    """Bytes of a value as stored."""
    if form < DIRECT_BF16:
        return form
    return 1 if form == DIRECT_E4M3 else 2


@njit(nogil=True, cache=True)
def _pattern(raw, i, width):
    """The upper 16 bits of a stored value, or all 8; values are stored little end first."""
    if width == 1:
        return np.int64(raw[i])
    return np.int64(raw[i * width + width - 2]) | np.int64(raw[i * width + width - 1]) << 8


@njit(nogil=True, cache=True)
def _drawn(counter):
    """Whether a block's signs turn, 0 or 1, and its rotation in the sketch."""
    mixed = counter + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return np.int64(mixed >> np.uint64(63)), np.int64(mixed & np.uint64(PIECE - 1))


@njit(nogil=True, cache=True)
def _folded(row):
    total = 0.0
    for lane in range(row.size):
        total += row[lane]
    return total


# Drift.


@njit(nogil=True, cache=True)
def _is_equal(mine, theirs):
    """Whether the bytes are; where they are not, mostly seen in the first few."""
    full = mine.size // 8 * 8
    ours, others = mine[:full].view(np.uint64), theirs[:full].view(np.uint64)
    different = np.uint64(0)
    for i in range(min(8, ours.size)):
        different |= ours[i] ^ others[i]
    if different:
        return False
    for i in range(ours.size):
        different |= ours[i] ^ others[i]
    for i in range(full, mine.size):
        different |= np.uint64(mine[i] ^ theirs[i])
    return different == np.uint64(0)


@njit(nogil=True, cache=True)
def _compare_stored(kind, raw, raw_y, found):
    """What the bits of values say that are not decoded."""
    found[:] = 0
    if kind == BF16:
        full = raw.size // 2 // _AT_ONCE_2 * _AT_ONCE_2
        lanes.compare_bfloat16(raw, raw_y, found, full)
        _compare_rest(raw, raw_y, full, 2, lanes.INFINITE_BF16, found)
    elif kind == F16:
        full = raw.size // 2 // _AT_ONCE_2 * _AT_ONCE_2
        lanes.compare_float16(raw, raw_y, found, full)
        _compare_rest(raw, raw_y, full, 2, lanes.INFINITE_F16, found)
    else:
        full = raw.size // _AT_ONCE_1 * _AT_ONCE_1
        lanes.compare_e4m3(raw, raw_y, found, full)
        _compare_rest(raw, raw_y, full, 1, lanes.NAN_E4M3, found)


@njit(nogil=True, cache=True)
def _compare_rest(raw, raw_y, first, width, infinite, found):
    magnitude = (1 << 8 * width - 1) - 1
    for i in range(first, raw.size // width):
        _compare_one(_pattern(raw, i, width), _pattern(raw_y, i, width), magnitude, infinite, found)


@njit(nogil=True, cache=True)
def _compare_decoded(x, y, found):
    """The same of float32's bits."""
    full = x.size // _AT_ONCE_4 * _AT_ONCE_4
    found[:] = 0
    lanes.compare_float32(x, y, found, full)
    for i in range(full, x.size):
        _compare_one(np.int64(x[i]), np.int64(y[i]), np.int64(_MAGNITUDE), np.int64(_INFINITE), found)


@njit(nogil=True, cache=True)
def _compare_one(mine, theirs, magnitude, infinite, found):
    size, other_size = mine & magnitude, theirs & magnitude
    found[lanes.CHANGED] += mine != theirs
    found[lanes.SIGN_FLIPS] += (mine ^ theirs) > magnitude and size != 0 and other_size != 0
    found[lanes.NONFINITE] += size >= infinite or other_size >= infinite


@njit(nogil=True, cache=True)
def _add_pairs(square, sums, counts, added, found):
    """Adds a piece's drift from its lanes. ``square`` is Σx² of the pairs."""
    sums[PAIR_SQUARES] += square
    sums[DIFFERENCE] += _folded(added[lanes.DIFFERENCE])
    sums[REFERENCE_SQUARES] += _folded(added[lanes.REFERENCE_SQUARES])
    sums[PRODUCTS] += _folded(added[lanes.PRODUCTS])
    # The root of a square is exact here: float64 has room for the square of any difference of float32.
    sums[LARGEST] = max(sums[LARGEST], np.sqrt(added[lanes.LARGEST].max()))
    counts[CHANGED] += found[lanes.CHANGED]
    counts[SIGN_FLIPS] += found[lanes.SIGN_FLIPS]


@njit(nogil=True, cache=True)
def _compare_with_holes(x, y, pairs, spare, sums, counts, added, found, histogram):
    """Adds the drift of a piece in which a value is not finite; ``x`` is left as it is, ``y`` not."""
    changed = 0
    for i in range(x.size):
        changed += x[i] != y[i]
        pairs[i] = x[i]
        if (x[i] & _MAGNITUDE >= _INFINITE) | (y[i] & _MAGNITUDE >= _INFINITE):
            pairs[i] = y[i] = 0
            counts[NONFINITE_PAIRS] += 1
    added[:] = 0.0
    nothing = np.empty(0, np.uint8)
    _add_run(
        UNCOUNTED,
        True,  # noqa: FBT003 - numba knows no keywords here
        pairs,
        y,
        nothing,
        nothing,
        spare,
        added,
        histogram,
        0,
        0,
        x.size,
    )
    _compare_decoded(pairs, y, found)
    found[lanes.CHANGED] = changed
    _add_pairs(_folded(added[lanes.SQUARES]), sums, counts, added, found)


# Moments of float32.


@njit(nogil=True, cache=True)
def _add_moments(x, spare, sums, counts, has_holes):
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
    mean, m2, m3, m4 = _central(bits)
    before = counts[FINITE]
    counts[FINITE] += size
    merge_moments(before, sums, size, mean, m2, m3, m4)


@njit(nogil=True, cache=True)
def merge_moments(before, sums, size, mean, m2, m3, m4):
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
def _keep_finite(x, out, counts):
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
def _extremes(bits):
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


@njit(nogil=True, cache=True)
def _central(bits):
    """Mean and Σ(x-mean)ᵏ for k = 2, 3, 4: two passes over values that lie in the first-level cache."""
    full = bits.size // lanes.MOMENT_LANES * lanes.MOMENT_LANES
    totals, powers = np.zeros(lanes.MOMENT_LANES), np.zeros((3, lanes.MOMENT_LANES))
    lanes.add_totals(bits, totals, full)
    for i in range(full, bits.size):
        totals[i - full] += lanes.value_of(bits[i])
    mean = _folded(totals) / bits.size
    lanes.add_powers(bits, mean, powers, full)
    for i in range(full, bits.size):
        d = lanes.value_of(bits[i]) - mean
        square = d * d
        powers[0, i - full] += square
        powers[1, i - full] += square * d
        powers[2, i - full] += square * square
    return mean, _folded(powers[0]), _folded(powers[1]), _folded(powers[2])
