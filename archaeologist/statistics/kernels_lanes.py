"""The innermost loop of the kernel, in LLVM's own vectors: eight values at a time, each to a lane of its own.

Written out because no compiler finds it: while the vector units multiply and add, the rest of the processor counts bit
patterns, which takes as long and uses none of them, so that both cost the time of one. And the order of additions is
then part of the program instead of the compiler's choice: value i of a run goes to lane i mod 8, on every processor.
Products of float32 values are exact in float64, so it makes no difference whether a processor fuses them with the sum;
the square of a difference is not, and is not fused.

Called by ``kernels`` alone.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple, cast

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES: Final = 8

# Rows of ``sums``, float64 (SUMS, LANES).
SQUARES, DIFFERENCE, REFERENCE_SQUARES, PRODUCTS, LARGEST, SUMS = range(6)
# Rows of ``changes``, int32 (CHANGES, LANES).
CHANGED, SIGN_FLIPS, CHANGES = range(3)

_I8, _I16, _I32, _I64, _F64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.DoubleType()
_BYTES: Final = ir.VectorType(_I8, LANES)
_SHORTS: Final = ir.VectorType(_I16, LANES)
_INTS: Final = ir.VectorType(_I32, LANES)
_LONGS: Final = ir.VectorType(_I64, LANES)
_FLOATS: Final = ir.VectorType(ir.FloatType(), LANES)
_DOUBLES: Final = ir.VectorType(_F64, LANES)
_MAGNITUDE: Final = (1 << 63) - 1
_BINS: Final = 65_536


class _Form(NamedTuple):
    """How the values come."""

    counted_bytes: int
    """Of a value in its file; 0: patterns are not counted."""
    is_bfloat16: bool = False
    """On both sides, and taken straight from the files' bytes: ``x`` and ``y`` are not looked at."""


def _splat(kind: ir.VectorType, value: int) -> ir.Constant:
    return ir.Constant(kind, [value] * LANES)


class _Loop:
    """Generates the loop's body; one method for what is done with eight values."""

    def __init__(self, builder: ir.IRBuilder, data: dict[str, ir.Value]) -> None:
        """Args: builder: Where the code goes. data: Pointers and numbers by the names of ``run``'s parameters."""
        self._builder, self._data = builder, data
        self._sums = [self._kept(row, "sums", _DOUBLES) for row in range(SUMS)]
        self._changes = [self._kept(row, "changes", _INTS) for row in range(CHANGES)]

    def _kept(self, row: int, name: str, kind: ir.VectorType) -> ir.Value:
        """A register that begins as a row of an array."""
        register: ir.Value = cgutils.alloca_once(self._builder, kind)  # type: ignore[no-untyped-call]
        self._builder.store(self._load(name, ir.Constant(_I64, row * LANES), kind), register)
        return register

    def finish(self) -> None:
        """Puts the registers back into their arrays."""
        for name, registers in (("sums", self._sums), ("changes", self._changes)):
            for row, register in enumerate(registers):
                self._store(name, ir.Constant(_I64, row * LANES), self._builder.load(register))

    def add(self, index: ir.Value, form: "_Form", *, has_reference: bool) -> None:
        """Everything about the eight values from ``index`` on."""
        mine = self._bits("x", index, form)
        x = self._widened(mine)
        squares = self._builder.fmul(x, x, flags=("contract",))
        self._accumulate(SQUARES, squares)
        self._add_into("columns", index, squares)
        self._add_into("sketch", index, self._signed(self._widened(self._bits("s", index, form)), index))
        if has_reference:
            self._compare(mine, self._bits("y", index, form))
        self._count(index, form.counted_bytes)

    def _bits(self, name: str, index: ir.Value, form: "_Form") -> ir.Value:
        """Eight values as the bits of float32."""
        if not form.is_bfloat16:
            return self._load(name, index, _INTS)
        builder = self._builder
        where = builder.gep(self._data[f"raw_{name}"], [builder.mul(index, ir.Constant(_I64, 2))])
        short = builder.load(builder.bitcast(where, _SHORTS.as_pointer()), align=1)
        return builder.shl(builder.zext(short, _INTS), _splat(_INTS, 16))

    def _widened(self, bits: ir.Value) -> ir.Value:
        return self._builder.fpext(self._builder.bitcast(bits, _FLOATS), _DOUBLES)

    def _signed(self, x: ir.Value, index: ir.Value) -> ir.Value:
        """The values with the sketch's signs."""
        builder = self._builder
        flip = builder.insert_element(ir.Constant(_LONGS, ir.Undefined), self._data["flip"], ir.Constant(_I32, 0))
        flips = builder.shuffle_vector(flip, flip, _splat(_INTS, 0))
        signs = builder.xor(builder.sext(self._load("signs", index, _BYTES, align=1), _LONGS), flips)
        signs = builder.and_(signs, _splat(_LONGS, 1 << 63))
        return builder.bitcast(builder.xor(builder.bitcast(x, _LONGS), signs), _DOUBLES)

    def _compare(self, mine: ir.Value, theirs: ir.Value) -> None:
        builder = self._builder
        x, y = self._widened(mine), self._widened(theirs)
        apart = builder.fsub(x, y)
        self._accumulate(DIFFERENCE, builder.fmul(apart, apart))
        self._accumulate(REFERENCE_SQUARES, builder.fmul(y, y, flags=("contract",)))
        self._accumulate(PRODUCTS, builder.fmul(x, y, flags=("contract",)))
        bits = builder.and_(builder.bitcast(apart, _LONGS), _splat(_LONGS, _MAGNITUDE))
        distance, largest = builder.bitcast(bits, _DOUBLES), builder.load(self._sums[LARGEST])
        is_larger = builder.fcmp_ordered(">", distance, largest)
        builder.store(builder.select(is_larger, distance, largest), self._sums[LARGEST])
        nothing = _splat(_INTS, 0)
        self._tally(CHANGED, builder.icmp_unsigned("!=", mine, theirs))
        is_opposite = builder.icmp_signed("<", builder.xor(mine, theirs), nothing)
        one = _splat(_INTS, 1)
        # Without the sign: 0 and -0 have none.
        is_mine, is_theirs = (builder.icmp_unsigned("!=", builder.shl(bits, one), nothing) for bits in (mine, theirs))
        self._tally(SIGN_FLIPS, builder.and_(is_opposite, builder.and_(is_mine, is_theirs)))

    def _count(self, index: ir.Value, value_bytes: int) -> None:
        """The patterns of eight values, straight from their bytes; 0: nothing is counted."""
        builder = self._builder
        if value_bytes == 0:
            return
        offset = builder.mul(index, ir.Constant(_I64, value_bytes))
        for number in range(value_bytes):
            where = builder.gep(self._data["raw_x"], [builder.add(offset, ir.Constant(_I64, 8 * number))])
            word = builder.load(builder.bitcast(where, _I64.as_pointer()), align=1)
            for place, shift, mask in _patterns(value_bytes):
                pattern = builder.and_(builder.lshr(word, ir.Constant(_I64, shift)), ir.Constant(_I64, mask))
                bin_ = builder.gep(self._data["histogram"], [builder.add(pattern, ir.Constant(_I64, place))])
                builder.store(builder.add(builder.load(bin_), ir.Constant(_I32, 1)), bin_)

    def _accumulate(self, row: int, values: ir.Value) -> None:
        register = self._sums[row]
        self._builder.store(self._builder.fadd(self._builder.load(register), values, flags=("contract",)), register)

    def _tally(self, row: int, which: ir.Value) -> None:
        register = self._changes[row]
        self._builder.store(self._builder.add(self._builder.load(register), self._builder.zext(which, _INTS)), register)

    def _add_into(self, name: str, index: ir.Value, values: ir.Value) -> None:
        before = self._load(name, index, _DOUBLES)
        self._store(name, index, self._builder.fadd(before, values, flags=("contract",)))

    def _load(self, name: str, index: ir.Value, kind: ir.VectorType, *, align: int = 4) -> ir.Value:
        where = self._builder.gep(self._data[name], [index])
        return self._builder.load(self._builder.bitcast(where, kind.as_pointer()), align=align)

    def _store(self, name: str, index: ir.Value, values: ir.Value) -> None:
        where = self._builder.gep(self._data[name], [index])
        self._builder.store(values, self._builder.bitcast(where, values.type.as_pointer()), align=4)


def _patterns(value_bytes: int) -> list[tuple[int, int, int]]:
    """Of a word of eight bytes: each value's first bin, and by what it is shifted and masked.

    Equal neighbours go to different tables, where there is room: they would wait for each other's store.
    """
    if value_bytes == 1:
        return [(256 * lane, 8 * lane, 0xFF) for lane in range(8)]
    if value_bytes == 2:  # noqa: PLR2004 - bytes
        return [(_BINS * (lane % 2), 16 * lane, 0xFFFF) for lane in range(4)]
    return [(0, 16, 0xFFFF), (_BINS, 48, 0xFFFF)]


_ARRAYS: Final = {
    "x": "first",
    "y": "first",
    "s": "source",
    "raw_x": "first",
    "raw_y": "first",
    "raw_s": "source",
    "signs": "source",
    "columns": "column",
    "sketch": "place",
    "sums": None,
    "changes": None,
    "histogram": None,
}
"""The loop's arrays, and what says where in them it begins: as many values from their start."""


def _made(form: _Form, *, has_reference: bool) -> Callable[..., None]:
    """The loop for one form of values."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        given = dict(zip((*_ARRAYS, "flip", "first", "source", "column", "place", "count"), arguments, strict=True))
        data = dict(given)
        for (name, start), kind in zip(_ARRAYS.items(), signature.args, strict=False):
            pointer = context.make_array(kind)(context, builder, given[name]).data
            if start is not None:
                size = ir.Constant(_I64, form.counted_bytes if name.startswith("raw") else 1)
                pointer = builder.gep(pointer, [builder.mul(given[start], size)])
            data[name] = pointer
        loop = _Loop(builder, data)
        steps = builder.udiv(data["count"], ir.Constant(_I64, LANES))
        with cgutils.for_range(builder, steps, intp=_I64) as step:
            index = builder.mul(step.index, ir.Constant(_I64, LANES))
            loop.add(index, form, has_reference=has_reference)
        loop.finish()
        return context.get_dummy_value()

    @intrinsic
    def run(
        context,
        x,
        y,
        s,
        raw_x,
        raw_y,
        raw_s,
        signs,
        columns,
        sketch,
        sums,
        changes,
        histogram,
        flip,
        first,
        source,
        column,
        place,
        count,
    ):
        arrays = (x, y, s, raw_x, raw_y, raw_s, signs, columns, sketch, sums, changes, histogram)
        return types.void(*arrays, types.uint64, *(types.int64,) * 5), generate

    made: Callable[..., None] = run
    return made


# Adds what ``count`` values contribute, a multiple of ``LANES``.
#
# x, y: bits of float32, of the target and of the reference; s: those that go to the sketch, which are others of the
#   target's, so that the sketch is written where a line of the cache begins. raw_x, raw_y, raw_s: the same as stored,
#   uint8.
# signs, flip: int8 and uint64, 0 or -1: whether a value's sign, and all of them, turn before they go to the sketch.
# columns, sketch: float64; squares and signed values are added to them, value by value.
# sums, changes: as named above. histogram: uint32 (2, 65536).
# first, source, column, place: where in them it begins (``_ARRAYS``).
alone_1, alone_2, alone_4 = (_made(_Form(size), has_reference=False) for size in (1, 2, 4))
pair_1, pair_2, pair_4 = (_made(_Form(size), has_reference=True) for size in (1, 2, 4))
pair_uncounted = _made(_Form(0), has_reference=True)
alone_bfloat16, pair_bfloat16 = (_made(_Form(2, is_bfloat16=True), has_reference=is_pair) for is_pair in (False, True))


def _value_of() -> Callable[[Any], Any]:
    def generate(_context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> ir.Value:
        return builder.fpext(builder.bitcast(arguments[0], ir.FloatType()), _F64)

    @intrinsic
    def read(context, bits):
        return types.float64(types.uint32), generate

    return cast("Callable[[Any], Any]", read)


value_of = _value_of()
"""The float64 of a float32's bits."""
