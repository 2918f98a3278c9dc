"""The innermost loops of the kernel, in LLVM's own vectors.

Written out because no compiler finds them: while the vector units multiply and add, the rest of the processor counts
bit patterns, which takes as long and uses none of them, so that both cost little more than one. And the order of
additions is then part of the program instead of the compiler's choice: value i of a run goes to lane i mod 8, on every
processor. Products of float32 values are exact in float64, so it makes no difference whether a processor fuses them
with the sum; the square of a difference is not, and is not fused.

What needs no float64 is done on the bits, of 16-bit floats and ``F8_E4M3`` as stored: whether they are finite, which of
them changed or changed their sign, 32 or 64 at a time (``compare_…``); and the signs that values get in the sketch
(``project_…``).

Called by ``kernels`` alone.
"""

import contextlib
import itertools
import platform
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple, cast

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

LANES: Final = 8
MOMENT_LANES: Final = 32
"""Of central sums, which would else wait for the addition before."""

# Rows of ``sums``, float64 (SUMS, LANES).
SQUARES, DIFFERENCE, REFERENCE_SQUARES, PRODUCTS, LARGEST, SUMS = range(6)
# Entries of ``found``, int64.
CHANGED, SIGN_FLIPS, NONFINITE, FOUND = range(4)
"""Numbers of values, except ``NONFINITE``: 0 if every value on both sides is finite."""

_I8, _I16, _I32, _I64, _F64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.DoubleType()
_BYTES: Final = ir.VectorType(_I8, LANES)
_SHORTS: Final = ir.VectorType(_I16, LANES)
_INTS: Final = ir.VectorType(_I32, LANES)
_HALVES: Final = ir.VectorType(ir.HalfType(), LANES)
_FLOATS: Final = ir.VectorType(ir.FloatType(), LANES)
_DOUBLES: Final = ir.VectorType(_F64, LANES)
INFINITE_BF16, INFINITE_F16, INFINITE_F32 = 0x7F80, 0x7C00, 0x7F800000
"""The bits of infinity; larger ones without their sign are NaN."""
NAN_E4M3 = 0x7F
"""The bits of NaN without its sign; it has no infinity."""
_COMPARED_BYTES: Final = 64
_BINS: Final = 65_536


class _Form(NamedTuple):
    """How the values come."""

    counted_bytes: int
    """Of a value in its file; 0: patterns are not counted."""
    stored: str | None = None
    """``BF16``, ``F16`` or ``F8_E4M3`` on both sides, taken from the files' bytes, not from ``x`` and ``y``."""


_HAS_FLOAT16: Final = config.CPU_NAME is None and (  # type: ignore[attr-defined]
    platform.machine() == "aarch64" or get_host_cpu_features().get("f16c", False)
)
"""Whether the processor widens float16 itself, as far as is known: numba may be told to compile for another one."""


def compared_at_once(value_bytes: int) -> int:
    """Values that ``compare_…`` takes at a time: its ``count`` is a multiple of this."""
    return _COMPARED_BYTES // value_bytes


class _Code:
    """Where a loop's code goes, and its parameters by name: pointers to the first of the values, and numbers."""

    def __init__(self, builder: ir.IRBuilder, data: dict[str, ir.Value]) -> None:
        self.builder, self.data = builder, data

    def register(self, kind: ir.Type, start: ir.Value) -> ir.Value:
        """A variable of the loop."""
        register: ir.Value = cgutils.alloca_once(self.builder, kind)  # type: ignore[no-untyped-call]
        self.builder.store(start, register)
        return register

    def load(self, name: str, index: ir.Value, kind: ir.Type, *, align: int = 4) -> ir.Value:
        """A vector from an array's value ``index`` on; arrays of bytes are indexed by byte."""
        where = self.builder.gep(self.data[name], [index])
        return self.builder.load(self.builder.bitcast(where, kind.as_pointer()), align=align)

    def store(self, name: str, index: ir.Value, values: ir.Value) -> None:
        """Puts a vector there."""
        where = self.builder.gep(self.data[name], [index])
        self.builder.store(values, self.builder.bitcast(where, values.type.as_pointer()), align=4)

    def add_into(self, name: str, index: ir.Value, values: ir.Value) -> None:
        """Adds a vector to what is there."""
        before = self.load(name, index, _DOUBLES)
        self.store(name, index, self.builder.fadd(before, values, flags=("contract",)))

    def values(self, side: str, index: ir.Value, form: _Form, *, signs: ir.Value | None = None) -> ir.Value:
        """Eight values of ``x`` or ``y`` as float64, exact; with ``signs``, 16 bits each, the top one turns theirs."""
        builder = self.builder
        if form.stored is None:
            bits = self.load(side, index, _INTS)
            return self._widened(builder.xor(bits, self._lifted(signs)) if signs else bits)
        place = builder.mul(index, ir.Constant(_I64, form.counted_bytes))
        if form.stored == "F8_E4M3":
            # Sign, exponent and fraction moved into their places in a float16 are the value over 2^8.
            eights = self.load(f"raw_{side}", place, _BYTES, align=1)
            shorts = builder.shl(builder.sext(eights, _SHORTS), _splat(_SHORTS, 7))
            shorts = builder.and_(shorts, _splat(_SHORTS, 0xBF80))
        else:
            shorts = self.load(f"raw_{side}", place, _SHORTS, align=1)
        shorts = builder.xor(shorts, signs) if signs else shorts
        if form.stored == "BF16":
            return self._widened(self._lifted(shorts))
        values = self._widened_halves(shorts)
        return values if form.stored == "F16" else builder.fmul(values, ir.Constant(_DOUBLES, [256.0] * LANES))

    def _widened_halves(self, shorts: ir.Value) -> ir.Value:
        """Of finite float16."""
        builder = self.builder
        if _HAS_FLOAT16:
            return builder.fpext(builder.bitcast(shorts, _HALVES), _DOUBLES)
        # LLVM would call a function that is not there. Exponent and fraction moved into their places in a float32 are
        # the value over 2^112, subnormals included.
        bits = builder.shl(builder.sext(shorts, _INTS), _splat(_INTS, 13))
        values = self._widened(builder.and_(bits, _splat(_INTS, 0x8FFFE000)))
        return builder.fmul(values, ir.Constant(_DOUBLES, [2.0**112] * LANES))

    def _widened(self, bits: ir.Value) -> ir.Value:
        return self.builder.fpext(self.builder.bitcast(bits, _FLOATS), _DOUBLES)

    def _lifted(self, shorts: ir.Value) -> ir.Value:
        """Eight times 16 bits as the upper half of 32: bfloat16 as float32."""
        return self.builder.shl(self.builder.zext(shorts, _INTS), _splat(_INTS, 16))

    def advance(self, name: str, count: ir.Value) -> None:
        """The array begins so many entries later."""
        self.data[name] = self.builder.gep(self.data[name], [count])


class _Summing:
    """Everything that is summed over eight values in float64, and the counts of their patterns."""

    def __init__(self, code: _Code) -> None:
        self._code = code
        self._sums = [
            code.register(_DOUBLES, code.load("sums", ir.Constant(_I64, row * LANES), _DOUBLES)) for row in range(SUMS)
        ]

    def step(self, index: ir.Value, form: _Form, *, has_reference: bool) -> None:
        """Adds the eight values from ``index`` on."""
        code = self._code
        x = code.values("x", index, form)
        squares = code.builder.fmul(x, x, flags=("contract",))
        self._accumulate(SQUARES, squares)
        code.add_into("columns", index, squares)
        if has_reference:
            self._compare(x, code.values("y", index, form))
        self._count(index, form.counted_bytes)

    def finish(self) -> None:
        """Puts the sums back into their array."""
        for row, register in enumerate(self._sums):
            self._code.store("sums", ir.Constant(_I64, row * LANES), self._code.builder.load(register))

    def _compare(self, x: ir.Value, y: ir.Value) -> None:
        builder = self._code.builder
        apart = builder.fsub(x, y)
        square = builder.fmul(apart, apart)
        self._accumulate(DIFFERENCE, square)
        self._accumulate(REFERENCE_SQUARES, builder.fmul(y, y, flags=("contract",)))
        self._accumulate(PRODUCTS, builder.fmul(x, y, flags=("contract",)))
        largest = builder.load(self._sums[LARGEST])
        is_larger = builder.fcmp_ordered(">", square, largest)
        builder.store(builder.select(is_larger, square, largest), self._sums[LARGEST])

    def _count(self, index: ir.Value, value_bytes: int) -> None:
        """The patterns of eight values, straight from their bytes, a word at a time; 0: nothing is counted."""
        code, builder = self._code, self._code.builder
        for number in range(value_bytes):
            place = builder.add(builder.mul(index, ir.Constant(_I64, value_bytes)), ir.Constant(_I64, 8 * number))
            word = code.load("raw_x", place, _I64, align=1)
            for table, shift, mask in _patterns(value_bytes):
                pattern = builder.and_(builder.lshr(word, ir.Constant(_I64, shift)), ir.Constant(_I64, mask))
                bin_ = builder.gep(code.data["histogram"], [builder.add(pattern, ir.Constant(_I64, table))])
                builder.store(builder.add(builder.load(bin_), ir.Constant(_I32, 1)), bin_)

    def _accumulate(self, row: int, values: ir.Value) -> None:
        builder, register = self._code.builder, self._sums[row]
        builder.store(builder.fadd(builder.load(register), values, flags=("contract",)), register)


class _Comparing:
    """What the bits of two sides say, a register's width at a time."""

    def __init__(self, code: _Code, *, infinite: int, value_bytes: int) -> None:
        self._code, self._value_bytes = code, value_bytes
        kind = ir.IntType(8 * value_bytes)
        self._kind = ir.VectorType(kind, compared_at_once(value_bytes))
        self._magnitude = _splat(self._kind, (1 << kind.width - 1) - 1)
        self._infinite = _splat(self._kind, infinite)
        self._top = code.register(self._kind, _splat(self._kind, 0))
        self._counts = [code.register(_I64, ir.Constant(_I64, 0)) for _ in (CHANGED, SIGN_FLIPS)]

    def step(self, index: ir.Value) -> None:
        """Looks at the values from ``index`` on."""
        builder = self._code.builder
        place = builder.mul(index, ir.Constant(_I64, self._value_bytes))
        mine, theirs = (self._code.load(name, place, self._kind, align=1) for name in ("x", "y"))
        nothing = _splat(self._kind, 0)
        is_flipped = builder.icmp_signed("<", builder.xor(mine, theirs), nothing)
        for values in (mine, theirs):
            # Without the sign: 0 and -0 have none.
            size, top = builder.and_(values, self._magnitude), builder.load(self._top)
            is_flipped = builder.and_(is_flipped, builder.icmp_unsigned("!=", size, nothing))
            builder.store(builder.select(builder.icmp_unsigned(">", size, top), size, top), self._top)
        self._count(CHANGED, builder.icmp_unsigned("!=", mine, theirs))
        self._count(SIGN_FLIPS, is_flipped)

    def finish(self) -> None:
        """Adds what was found to its array."""
        builder = self._code.builder
        is_nonfinite = builder.icmp_unsigned(">=", builder.load(self._top), self._infinite)
        found = [*map(builder.load, self._counts), self._number(is_nonfinite)]
        for entry, number in zip((CHANGED, SIGN_FLIPS, NONFINITE), found, strict=True):
            place = ir.Constant(_I64, entry)
            self._code.store("found", place, builder.add(self._code.load("found", place, _I64), number))

    def _count(self, entry: int, which: ir.Value) -> None:
        builder, register = self._code.builder, self._counts[entry]
        builder.store(builder.add(builder.load(register), self._number(which)), register)

    def _number(self, which: ir.Value) -> ir.Value:
        """How many lanes are set."""
        builder = self._code.builder
        return builder.zext(builder.ctpop(builder.bitcast(which, ir.IntType(self._kind.count))), _I64)


def _splat(kind: ir.VectorType, value: int) -> ir.Constant:
    return ir.Constant(kind, [value] * kind.count)


def _patterns(value_bytes: int) -> list[tuple[int, int, int]]:
    """Of a word of eight bytes: each value's first bin, and by what it is shifted and masked.

    Equal neighbours go to different tables, where there is room: they would wait for each other's store.
    """
    if value_bytes == 1:
        return [(256 * lane, 8 * lane, 0xFF) for lane in range(8)]
    if value_bytes == 2:  # noqa: PLR2004 - bytes
        return [(_BINS * (lane % 2), 16 * lane, 0xFFFF) for lane in range(4)]
    return [(0, 16, 0xFFFF), (_BINS, 48, 0xFFFF)]


def _looped(builder: ir.IRBuilder, count: ir.Value, at_once: int, step: Callable[[ir.Value], None]) -> None:
    """Calls ``step`` for every so many values."""
    with cgutils.for_range(builder, builder.udiv(count, ir.Constant(_I64, at_once)), intp=_I64) as loop:
        step(builder.mul(loop.index, ir.Constant(_I64, at_once)))


def _code(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Sequence[ir.Value], names: str) -> _Code:
    """The parameters by their names; of an array the pointer to its data."""
    data = {}
    for name, kind, given in zip(names.split(), signature.args, arguments, strict=True):
        is_array = isinstance(kind, types.Array)
        data[name] = context.make_array(kind)(context, builder, given).data if is_array else given
    return _Code(builder, data)


def _summing(form: _Form, *, has_reference: bool) -> Callable[..., None]:
    names = "x y raw_x raw_y columns sums histogram first column count"

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        code = _code(context, builder, signature, arguments, names)
        for name in ("x", "y", "columns"):
            code.advance(name, code.data["column" if name == "columns" else "first"])
        for name in ("raw_x", "raw_y"):
            code.advance(name, builder.mul(code.data["first"], ir.Constant(_I64, form.counted_bytes)))
        loop = _Summing(code)
        _looped(builder, code.data["count"], LANES, lambda index: loop.step(index, form, has_reference=has_reference))
        loop.finish()
        return context.get_dummy_value()

    @intrinsic
    def run(context, x, y, raw_x, raw_y, columns, sums, histogram, first, column, count):
        return types.void(x, y, raw_x, raw_y, columns, sums, histogram, *(types.int64,) * 3), generate

    return cast("Callable[..., None]", run)


def _comparing(*, infinite: int, value_bytes: int) -> Callable[..., None]:
    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        code = _code(context, builder, signature, arguments, "x y found count")
        for name in ("x", "y"):
            code.data[name] = builder.bitcast(code.data[name], _I8.as_pointer())
        loop = _Comparing(code, infinite=infinite, value_bytes=value_bytes)
        _looped(builder, code.data["count"], compared_at_once(value_bytes), loop.step)
        loop.finish()
        return context.get_dummy_value()

    @intrinsic
    def run(context, x, y, found, count):
        return types.void(x, y, found, types.int64), generate

    return cast("Callable[..., None]", run)


def _projecting(form: _Form) -> Callable[..., None]:
    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        code = _code(context, builder, signature, arguments, "x raw_x signs sketch source place count")
        code.advance("x", code.data["source"])
        code.advance("raw_x", builder.mul(code.data["source"], ir.Constant(_I64, form.counted_bytes)))
        code.advance("signs", code.data["source"])
        code.advance("sketch", code.data["place"])

        def step(index: ir.Value) -> None:
            signs = code.load("signs", index, _SHORTS, align=2)
            code.add_into("sketch", index, code.values("x", index, form, signs=signs))

        _looped(builder, code.data["count"], LANES, step)
        return context.get_dummy_value()

    @intrinsic
    def run(context, x, raw_x, signs, sketch, source, place, count):
        return types.void(x, raw_x, signs, sketch, *(types.int64,) * 3), generate

    return cast("Callable[..., None]", run)


def _totalling() -> Callable[..., None]:
    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        code = _code(context, builder, signature, arguments, "x totals count")
        with _moment_registers(code, "totals", rows=1) as (registers,):

            def step(index: ir.Value) -> None:
                for number, register in enumerate(registers):
                    x = code.values("x", builder.add(index, ir.Constant(_I64, number * LANES)), _DECODED)
                    builder.store(builder.fadd(builder.load(register), x), register)

            _looped(builder, code.data["count"], MOMENT_LANES, step)
        return context.get_dummy_value()

    @intrinsic
    def run(context, x, totals, count):
        return types.void(x, totals, types.int64), generate

    return cast("Callable[..., None]", run)


def _centring() -> Callable[..., None]:
    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        code = _code(context, builder, signature, arguments, "x mean powers count")
        first = builder.insert_element(ir.Constant(_DOUBLES, ir.Undefined), code.data["mean"], ir.Constant(_I32, 0))
        mean = builder.shuffle_vector(first, first, _splat(_INTS, 0))
        with _moment_registers(code, "powers", rows=3) as rows:

            def step(index: ir.Value) -> None:
                for number, registers in enumerate(zip(*rows, strict=True)):
                    x = code.values("x", builder.add(index, ir.Constant(_I64, number * LANES)), _DECODED)
                    apart = builder.fsub(x, mean)
                    square = builder.fmul(apart, apart)
                    powers = (square, builder.fmul(square, apart), builder.fmul(square, square))
                    for register, power in zip(registers, powers, strict=True):
                        builder.store(builder.fadd(builder.load(register), power), register)

            _looped(builder, code.data["count"], MOMENT_LANES, step)
        return context.get_dummy_value()

    @intrinsic
    def run(context, x, mean, powers, count):
        return types.void(x, types.float64, powers, types.int64), generate

    return cast("Callable[..., None]", run)


@contextlib.contextmanager
def _moment_registers(code: _Code, name: str, *, rows: int) -> Iterator[list[list[ir.Value]]]:
    """Each row of an array of ``MOMENT_LANES`` in registers, which are put back at the end."""
    places = [
        [ir.Constant(_I64, row * MOMENT_LANES + first) for first in range(0, MOMENT_LANES, LANES)]
        for row in range(rows)
    ]
    registers = [[code.register(_DOUBLES, code.load(name, place, _DOUBLES)) for place in row] for row in places]
    yield registers
    for place, register in zip(itertools.chain(*places), itertools.chain(*registers), strict=True):
        code.store(name, place, code.builder.load(register))


_DECODED: Final = _Form(0)
_BFLOAT16, _FLOAT16, _E4M3 = _Form(2, "BF16"), _Form(2, "F16"), _Form(1, "F8_E4M3")

# Add what ``count`` values contribute, a multiple of ``LANES``.
#
# x, y: bits of float32, of the target and of the reference. raw_x, raw_y: the same as stored, uint8.
# columns: float64; squares are added to them, value by value. sums: as named above; ``LARGEST`` is a square.
# histogram: uint32 (2, 65536).
# first, column: where in the values and in ``columns`` it begins.
alone_1, alone_2, alone_4 = (_summing(_Form(size), has_reference=False) for size in (1, 2, 4))
pair_1, pair_2, pair_4 = (_summing(_Form(size), has_reference=True) for size in (1, 2, 4))
pair_uncounted = _summing(_DECODED, has_reference=True)
alone_bfloat16, pair_bfloat16 = (_summing(_BFLOAT16, has_reference=is_pair) for is_pair in (False, True))
alone_float16, pair_float16 = (_summing(_FLOAT16, has_reference=is_pair) for is_pair in (False, True))
alone_e4m3, pair_e4m3 = (_summing(_E4M3, has_reference=is_pair) for is_pair in (False, True))

# Add to ``found``, int64 (FOUND,), what the first ``count`` values of two sides say, a multiple of
# ``compared_at_once``; ``F8_E4M3`` and 16-bit floats as stored, or bits of float32.
compare_bfloat16, compare_float16 = (
    _comparing(infinite=infinite, value_bytes=2) for infinite in (INFINITE_BF16, INFINITE_F16)
)
compare_float32 = _comparing(infinite=INFINITE_F32, value_bytes=4)
compare_e4m3 = _comparing(infinite=NAN_E4M3, value_bytes=1)

# Add ``count`` values from ``source`` on to ``sketch`` from ``place`` on, a multiple of ``LANES``.
#
# x, raw_x: as above. signs: uint16; the top bit says whether the value's sign turns.
project_decoded, project_bfloat16, project_float16, project_e4m3 = map(
    _projecting, (_DECODED, _BFLOAT16, _FLOAT16, _E4M3)
)

# Add the first ``count`` values of ``x``, bits of float32, to ``totals``, float64 (MOMENT_LANES,); or the second, third
# and fourth power of what they are apart from ``mean`` to ``powers``, float64 (3, MOMENT_LANES). A multiple of that.
add_totals, add_powers = _totalling(), _centring()


def _value_of() -> Callable[[Any], Any]:
    def generate(_context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> ir.Value:
        return builder.fpext(builder.bitcast(arguments[0], ir.FloatType()), _F64)

    @intrinsic
    def read(context, bits):
        return types.float64(types.uint32), generate

    return cast("Callable[[Any], Any]", read)


value_of = _value_of()
"""The float64 of a float32's bits."""
