"""Adapters as checkpoints that can be walked: their changes, or the model that they make of their base.

Such a tensor lies in no file. Its values are made where they are asked for, some rows of s·B·A at a time in float64,
so that neither a change nor an adapted weight is ever whole in memory. ``changes`` has a tensor for each change, in
float32; ``merged`` has the base's tensors, those that are changed in float32 for the statistics (bfloat16 would round
the change away) or in the base's own dtype for the forward pass.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from archaeologist.checkpoints.adapter import Adapter, LowRank
from archaeologist.checkpoints.index import CheckpointIndex, TensorEntry
from archaeologist.checkpoints.names import canonical
from archaeologist.checkpoints.reader import Reader
from archaeologist.errors import AdapterBaseUnfit
from archaeologist.excavation.matrices import decoded
from archaeologist.excavation.tally import WIDTHS
from archaeologist.statistics.low_rank import Factors

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

_FLOATS: Final = ("F32", "F16", "BF16")
_KEPT_FACTORS: Final = 16
"""Of changes that threads are at; a block has about seven."""


class Stored(Struct, frozen=True):
    """A tensor that lies in a file."""

    entry: TensorEntry
    reader: Reader


class Made(Struct, frozen=True):
    """A tensor whose values are made: a change, on top of a weight where there is one."""

    change: LowRank
    dtype: str
    weight: Stored | None = None


class Base(Struct, frozen=True):
    """The model that an adapter changes, open."""

    index: CheckpointIndex
    reader: Reader


class Adapted(Struct, frozen=True):
    """An index of tensors of which some are made, and what reads them."""

    index: CheckpointIndex
    reader: "AdaptedReader"


class AdaptedReader(Reader):
    """Reads what lies in the adapter's and the base's files, and makes the rest. Their own readers hold the files."""

    def __init__(self, index: CheckpointIndex, adapter: Reader, parts: Mapping[str, Stored | Made]) -> None:
        """Reads nothing yet.

        Args:
            index: The adapter's own.
            adapter: Its open files.
            parts: Where each tensor comes from, by name.
        """
        super().__init__(index)
        self._adapter = adapter
        self._stored = index.tensors
        self._parts = parts
        self._factors: OrderedDict[str, Factors] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, entry: TensorEntry, start_byte: int, into: memoryview) -> None:
        """As a reader of files; thread-safe."""
        part = self._parts[entry.name]
        if isinstance(part, Stored):
            part.reader.read(part.entry, start_byte, into)
            return
        width, view = WIDTHS[part.dtype], into.cast("B")
        first, last = start_byte // width, -(-(start_byte + len(view)) // width)
        values = _encoded(self._values(part, first, last), part.dtype)
        skipped = start_byte - first * width
        view[:] = values.view(np.uint8).data[skipped : skipped + len(view)]

    def ask_ahead(self, entry: TensorEntry, start_byte: int, size: int) -> None:
        """As a reader of files, of what is stored as it is."""
        part = self._parts[entry.name]
        if isinstance(part, Stored):
            part.reader.ask_ahead(part.entry, start_byte, size)

    def factors(self, change: LowRank) -> Factors:
        """Both factors of a change, as float64, the scaling in the left one."""
        with self._lock:
            found = self._factors.get(change.name)
        if found is None:
            a, b = (self._matrix(name) for name in (change.a, change.b))
            left, right = (a.T, b.T) if change.is_transposed else (b, a)
            found = Factors(left * change.scaling, np.ascontiguousarray(right))
            with self._lock:
                self._factors[change.name] = found
                while len(self._factors) > _KEPT_FACTORS:
                    self._factors.popitem(last=False)
        return found

    def factors_of(self, name: str) -> Factors | None:
        """The factors of a tensor that is a change; None for one that is stored or a weight."""
        part = self._parts[name]
        return self.factors(part.change) if isinstance(part, Made) and part.weight is None else None

    def _values(self, part: Made, first: int, last: int) -> Floats:
        """Values ``first`` to ``last`` of a tensor in the order of its rows."""
        columns = part.change.shape[1]
        top, bottom = first // columns, -(-last // columns)
        made = self.factors(part.change).rows(top, bottom).ravel()[first - top * columns : last - top * columns]
        if part.weight is None:
            return made
        entry, width = part.weight.entry, WIDTHS[part.weight.entry.dtype]
        stored = np.empty((last - first) * width, np.uint8)
        part.weight.reader.read(entry, first * width, stored.data)
        return made + decoded(stored.reshape(1, -1, width), entry.dtype).ravel()

    def _matrix(self, name: str) -> Floats:
        entry = self._stored[name]
        stored = np.empty(entry.size, np.uint8)
        self._adapter.read(entry, 0, stored.data)
        return decoded(stored.reshape(*entry.shape, WIDTHS[entry.dtype]), entry.dtype)


def changes(index: CheckpointIndex, reader: Reader) -> Adapted:
    """An adapter as what it changes: s·B·A of each adapted weight, and the tensors that it holds whole.

    Args:
        index: An adapter's.
        reader: Its open files.
    """
    adapter = _adapter_of(index)
    parts: dict[str, Stored | Made] = {
        name: Stored(entry, reader)
        for name, entry in index.tensors.items()
        if name not in adapter.factors and name not in adapter.left_out
    }
    parts |= {change.name: Made(change, "F32") for change in adapter.changes}
    return _adapted(index, reader, parts, skipped=adapter.left_out)


def merged(index: CheckpointIndex, reader: Reader, base: Base, *, dtype: str | None = None) -> Adapted:
    """The model that an adapter makes of its base.

    Args:
        index: An adapter's.
        reader: Its open files.
        base: What it adapts.
        dtype: Of the adapted weights; None: as the base stores them.

    Raises:
        AdapterBaseUnfit: The base lacks a weight that the adapter changes, or has it in another shape.
    """
    adapter = _adapter_of(index)
    names = {canonical(name): name for name in base.index.tensors}
    parts: dict[str, Stored | Made] = {name: Stored(entry, base.reader) for name, entry in base.index.tensors.items()}
    for name, entry in index.tensors.items():
        if name not in adapter.factors and name not in adapter.left_out:
            parts[names.get(canonical(name), name)] = Stored(entry, reader)
    for change in adapter.changes:
        stored = names.get(change.weight)
        weight = parts.get(stored) if stored else None
        if stored is None or not isinstance(weight, Stored):
            raise _unfit(index, base.index, f"has no {change.weight!r}")
        own = weight.entry.dtype if weight.entry.dtype in _FLOATS else "F32"
        parts[stored] = Made(_as_stored(change, weight.entry, index, base.index), dtype or own, weight)
    found = replace(index, config=base.index.config, adapter=None)
    return _adapted(found, reader, parts, skipped=base.index.skipped, factors_of=index)


def _adapter_of(index: CheckpointIndex) -> Adapter:
    if index.adapter is None:
        msg = f"{index.path!r} holds no adapter"
        raise ValueError(msg)
    return index.adapter


def _as_stored(change: LowRank, entry: TensorEntry, index: CheckpointIndex, base: CheckpointIndex) -> LowRank:
    """The change in the shape of the weight: one flag of a configuration stands for layers of both kinds."""
    if entry.shape == change.shape:
        return change
    if entry.shape == change.shape[::-1]:
        return replace(change, shape=change.shape[::-1], is_transposed=not change.is_transposed)
    raise _unfit(index, base, f"has {entry.name!r} of shape {entry.shape} where the change's is {change.shape}")


def _unfit(index: CheckpointIndex, base: CheckpointIndex, what: str) -> AdapterBaseUnfit:
    msg = f"base {base.path!r} {what}, it is not the model that adapter {index.path!r} was trained on; name that one"
    return AdapterBaseUnfit(msg)


def _adapted(
    index: CheckpointIndex,
    reader: Reader,
    parts: Mapping[str, Stored | Made],
    *,
    skipped: Mapping[str, str],
    factors_of: CheckpointIndex | None = None,
) -> Adapted:
    entries = {name: _entry(name, part) for name, part in parts.items()}
    found = replace(index, tensors=entries, skipped=dict(skipped), skipped_bytes=0)
    return Adapted(found, AdaptedReader(factors_of or index, reader, parts))


def _entry(name: str, part: Stored | Made) -> TensorEntry:
    if isinstance(part, Stored):
        return replace(part.entry, name=name)
    shape = part.change.shape
    size = shape[0] * shape[1] * WIDTHS[part.dtype]
    return TensorEntry(name=name, dtype=part.dtype, shape=shape, file="", offset=0, size=size)


def _encoded(values: Floats, dtype: str) -> npt.NDArray[np.uint16] | npt.NDArray[np.float16] | npt.NDArray[np.float32]:
    """Values rounded to the nearest that the dtype has, ties to even."""
    if dtype == "F16":
        return values.astype(np.float16)
    narrow = values.astype(np.float32)
    if dtype == "F32":
        return narrow
    bits = narrow.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    # A NaN whose payload is all ones would be rounded into infinity or zero.
    return np.where(np.isnan(narrow), np.uint32(0x7FC0), rounded).astype(np.uint16)
