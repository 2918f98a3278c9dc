"""The header of a file that ``torch.save`` wrote: which tensor lies in which of its bytes. No torch, nothing is run.

The file is a zip whose entries are stored as they are: one pickle that describes the tensors, and one entry a storage;
before torch 1.6 it was pickles one after the other with the storages behind them. The pickle is read as data
(``pickles``), and what it says is held against the sizes of the storages. Views into one storage, tied weights for
one, lie in the same bytes; a view that is not contiguous is refused, because its values do not follow each other in
the file.
"""

import hashlib
import io
import math
import os
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, Final

from msgspec import Struct

from archaeologist.checkpoints.header import (
    DTYPE_BITS,
    MAX_DIMENSIONS,
    MAX_NAME_CHARACTERS,
    MAX_SIZE,
    Header,
    StoredTensor,
    is_unicode,
    shown,
)
from archaeologist.checkpoints.pickles import (
    MAX_BYTES,
    Items,
    Make,
    PickleBrokenError,
    PickleRefusedError,
    constant,
    load,
)
from archaeologist.errors import CheckpointFormatUnsupported, HeaderInvalid, PickleRefused
from archaeologist.files import read_at

_ZIP: Final = b"PK\x03\x04"
_LOCAL_HEADER_BYTES: Final = 30
_LEGACY_MAGIC: Final = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION: Final = 1001
_COUNT_BYTES: Final = 8
MAX_DIRECTORY_BYTES: Final = 16_000_000
"""Of a zip's directory: some 200,000 storages."""

_WITHIN: Final = ("state_dict", "model_state_dict", "model", "module")
"""Under what a trainer's file holds the model's tensors, where they are not at the top."""

_STORAGES: Final = {
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "DoubleStorage": "F64",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "ComplexFloatStorage": "C64",
}
DTYPES: Final = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float64": "F64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
    "complex64": "C64",
}
"""torch's names of dtypes, and safetensors'."""


class _Kind(Struct, frozen=True):
    """A type of storage."""

    dtype: str | None
    """None: bytes, whose tensors say what they are."""


class Dtype(Struct, frozen=True):
    """A dtype that a pickle names."""

    name: str


class _Storage(Struct, frozen=True):
    key: str
    dtype: str | None
    count: int
    """Values; of an untyped one bytes."""


class _Tensor(Struct, frozen=True):
    """A tensor as the pickle describes it, nothing checked."""

    storage: Any
    offset: Any
    shape: Any
    stride: Any
    dtype: str | None


class _Extent(Struct, frozen=True):
    """Where a storage's bytes lie in the file."""

    offset: int
    size: int


class Range(Struct, frozen=True):
    """The part of a file that holds what ``torch.save`` wrote."""

    start: int
    size: int


def read_torch_header(descriptor: int, *, file: str, size: int) -> Header:
    """The header of an open file; its digest is one of the pickle's bytes and of where the storages lie.

    Args:
        descriptor: Open for reading.
        file: Its name, for messages.
        size: Its size in bytes.

    Raises:
        HeaderInvalid: It is truncated or damaged, or contradicts itself.
        PickleRefused: Its pickle names what is no tensor.
        CheckpointFormatUnsupported: It is compressed, or holds weights that are not contiguous.
    """
    return read_part(descriptor, Range(0, size), label=f"file {file!r}", tensors_of=_state_dict)


def read_single(descriptor: int, part: Range, *, label: str) -> StoredTensor:
    """The one tensor that a part of a file holds, as torch.distributed.checkpoint writes them; it has no name.

    Raises:
        CheckpointError: As ``read_torch_header``.
    """
    return read_part(descriptor, part, label=label, tensors_of=lambda found: {"": found}).tensors[0]


def read_part(
    descriptor: int, part: Range, *, label: str, tensors_of: Callable[[object], Mapping[str, object]]
) -> Header:
    """The header of a part of a file.

    Args:
        descriptor: Open for reading.
        part: Where it lies.
        label: What it is called in messages.
        tensors_of: Names the tensors in what the pickle describes.
    """
    try:
        is_zip = read_at(descriptor, len(_ZIP), part.start) == _ZIP
        read = _read_zip if is_zip else _read_legacy
        found, extents, digest = read(descriptor, part)
        tensors = [_stored(name, value, extents) for name, value in tensors_of(found).items()]
    except PickleRefusedError as refusal:
        msg = (
            f"{label}: {refusal}; nothing of it was run. Load it with torch where you trust it and save the model's"
            " state_dict as safetensors"
        )
        raise PickleRefused(msg) from refusal
    except PickleBrokenError as broken:
        msg = f"{label}: {broken}; save the checkpoint again or copy it whole"
        raise HeaderInvalid(msg) from broken
    except CheckpointFormatUnsupported as error:
        msg = f"{label}: {error}"
        raise CheckpointFormatUnsupported(msg) from error
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.size))
    return Header(tensors=tuple(tensors), digest=digest)


# The two containers.


def _read_zip(descriptor: int, part: Range) -> tuple[object, dict[str, _Extent], str]:
    window = _Window(descriptor, part, budget=MAX_DIRECTORY_BYTES)
    try:
        with zipfile.ZipFile(window) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, MemoryError, OverflowError) as error:
        msg = f"its zip directory cannot be read ({error}): it is truncated or damaged"
        raise PickleBrokenError(msg) from error
    by_name = {entry.filename: _extent(descriptor, part, entry) for entry in entries}
    root = next((name.removesuffix("data.pkl") for name in by_name if name.endswith("/data.pkl")), None)
    if root is None or root.count("/") != 1:
        msg = "a zip without a data.pkl is nothing that torch.save wrote"
        raise PickleBrokenError(msg)
    order = by_name.get(f"{root}byteorder")
    if order is not None and read_at(descriptor, min(order.size, 16), order.offset) != b"little":
        msg = "its bytes are not little-endian; save it again on a little-endian machine"
        raise CheckpointFormatUnsupported(msg)
    extent = by_name[f"{root}data.pkl"]
    if extent.size > MAX_BYTES:
        msg = f"its pickle has {extent.size} bytes, at most {MAX_BYTES} are read"
        raise PickleBrokenError(msg)
    raw = read_at(descriptor, extent.size, extent.offset)
    digest = hashlib.blake2b(raw, digest_size=16)
    prefix = f"{root}data/"
    extents = {name.removeprefix(prefix): one for name, one in by_name.items() if name.startswith(prefix)}
    for key, one in sorted(extents.items()):
        digest.update(f"{key} {one.offset - part.start} {one.size}\n".encode())
    return load(io.BytesIO(raw), NAMES, persistent=_storage), extents, digest.hexdigest()


def _extent(descriptor: int, part: Range, entry: zipfile.ZipInfo) -> _Extent:
    """Where an entry's bytes lie; the directory's lengths are held against the entry's own header and the file."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        msg = f"its entry {shown(entry.filename)} is compressed, torch.save stores; save it again with torch.save"
        raise CheckpointFormatUnsupported(msg)
    # What is written at the directory's end may lead the offset anywhere, even before the file's first byte.
    is_within = 0 <= entry.header_offset <= part.size
    local = read_at(descriptor, _LOCAL_HEADER_BYTES, part.start + entry.header_offset) if is_within else b""
    if len(local) < _LOCAL_HEADER_BYTES or local[:4] != _ZIP:
        msg = f"its entry {shown(entry.filename)} is not where the directory says"
        raise PickleBrokenError(msg)
    names = int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
    begin = entry.header_offset + _LOCAL_HEADER_BYTES + names
    if entry.file_size < 0 or begin + entry.file_size > part.size:
        msg = f"its entry {shown(entry.filename)} ends behind the file: it is truncated"
        raise PickleBrokenError(msg)
    return _Extent(part.start + begin, entry.file_size)


def _read_legacy(descriptor: int, part: Range) -> tuple[object, dict[str, _Extent], str]:
    """Files of ``torch.save`` before 1.6: four pickles, the storages' keys, each storage's count and values."""
    stream = io.BufferedReader(_Window(descriptor, part, budget=MAX_BYTES))
    storages: dict[str, _Storage] = {}

    def remembered(reference: object) -> object:
        found = _storage(reference)
        return storages.setdefault(found.key, found)

    first, version, system = (load(stream, {}) for _ in range(3))
    if first != _LEGACY_MAGIC or version != _LEGACY_VERSION:
        msg = "it begins neither as a zip nor as torch's older format: it is no file of torch.save, or truncated"
        raise PickleBrokenError(msg)
    if not (isinstance(system, Items) and system.named().get("little_endian") is True):
        msg = "its bytes are not little-endian; save it again on a little-endian machine"
        raise CheckpointFormatUnsupported(msg)
    found = load(stream, NAMES, persistent=remembered)
    keys = load(stream, {})
    if not isinstance(keys, list):
        msg = "its storages are not listed"
        raise PickleBrokenError(msg)
    position, extents = stream.tell(), {}
    digest = hashlib.blake2b(read_at(descriptor, position, part.start), digest_size=16)
    for key in keys:
        storage = storages.get(key) if isinstance(key, str) else None
        if storage is None or storage.dtype is None:
            msg = f"its storage {shown(key)} belongs to no tensor"
            raise PickleBrokenError(msg)
        count = int.from_bytes(read_at(descriptor, _COUNT_BYTES, part.start + position), "little")
        size = count * DTYPE_BITS[storage.dtype] // 8
        position += _COUNT_BYTES
        if count != storage.count or position + size > part.size:
            msg = f"its storage {shown(key)} of {storage.count} values is not there whole: it is truncated"
            raise PickleBrokenError(msg)
        extents[storage.key] = _Extent(part.start + position, size)
        position += size
    return found, extents, digest.hexdigest()


class _Window(io.RawIOBase):
    """A part of a file as a file, of which no more than a budget is ever read."""

    def __init__(self, descriptor: int, part: Range, *, budget: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._part = part
        self._position = 0
        self._budget = budget

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._part.size}[whence]
        if start + offset < 0:
            msg = f"position {start + offset} lies before the file"
            raise ValueError(msg)
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._part.size - self._position)
        wanted = left if size is None or size < 0 else min(size, left)
        self._budget -= wanted
        if self._budget < 0:
            msg = "more of it would have to be read than any list of tensors takes"
            raise PickleBrokenError(msg)
        found = read_at(self._descriptor, wanted, self._part.start + self._position)
        self._position += len(found)
        return found

    def readinto(self, buffer: Any) -> int:
        found = self.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)


# What the pickle describes.


def _storage(reference: object) -> _Storage:
    match reference:
        case ("storage", _Kind(dtype), str(key), _, int(count)) if count >= 0:
            return _Storage(key, dtype, count)
        case ("storage", _Kind(dtype), str(key), _, int(count), None) if count >= 0:
            return _Storage(key, dtype, count)
    msg = f"its pickle refers to {shown(reference)}, which is no storage"
    raise PickleBrokenError(msg)


def _rebuild(storage: object, offset: object, shape: object, stride: object, *_: object) -> _Tensor:
    return _Tensor(storage, offset, shape, stride, None)


def _rebuild_typed(
    storage: object,
    offset: object,
    shape: object,
    stride: object,
    _grad: object,
    _hooks: object,
    dtype: object,
    *_: object,
) -> _Tensor:
    if not isinstance(dtype, Dtype):
        msg = f"its pickle has a tensor of dtype {shown(dtype)}"
        raise PickleBrokenError(msg)
    return _Tensor(storage, offset, shape, stride, dtype.name)


def _first(value: object, *_: object) -> object:
    return value


NAMES: Final[dict[str, Make]] = {
    "collections.OrderedDict": lambda *_: Items(),
    "torch._utils._rebuild_tensor_v2": _rebuild,
    "torch._utils._rebuild_tensor_v3": _rebuild_typed,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch.Size": _first,
    "torch.storage.UntypedStorage": constant(_Kind(None)),
    **{f"torch.{name}": constant(_Kind(dtype)) for name, dtype in _STORAGES.items()},
    **{f"torch.{name}": constant(Dtype(dtype)) for name, dtype in DTYPES.items()},
}
"""All that a pickle of weights may name, and how each is described."""


def _state_dict(found: object) -> dict[str, object]:
    """The tensors by name: at the top, or under one of the names that trainers use."""
    if not isinstance(found, Items):
        return {}
    named = found.named()
    inner = (value for name in _WITHIN if isinstance(value := named.get(name), Items))
    candidates = (_tensors(named), *(_tensors(value.named()) for value in inner))
    return next((tensors for tensors in candidates if tensors), {})


def _tensors(named: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in named.items() if isinstance(value, _Tensor)}


def _stored(name: str, value: object, extents: Mapping[str, _Extent]) -> StoredTensor:
    """A tensor, held against its storage.

    Raises:
        PickleBrokenError: They contradict each other.
        CheckpointFormatUnsupported: It is a view whose values do not follow each other.
    """
    if len(name) > MAX_NAME_CHARACTERS or not is_unicode(name):
        msg = f"its tensor {shown(name)} has a name of {len(name)} characters, or none of Unicode text"
        raise PickleBrokenError(msg)
    match value:
        case _Tensor(_Storage(), int(offset), tuple(shape), tuple(stride)) if _is_layout(offset, shape, stride):
            return _placed(name, value, extents)
    msg = f"its tensor {shown(name)} is {shown(value)}, it needs a storage, an offset, a shape and as many strides"
    raise PickleBrokenError(msg)


def _placed(name: str, tensor: _Tensor, extents: Mapping[str, _Extent]) -> StoredTensor:
    storage, shape = tensor.storage, tensor.shape
    dtype = tensor.dtype or storage.dtype
    extent = extents.get(storage.key)
    if dtype is None or extent is None:
        msg = f"its tensor {shown(name)} has storage {shown(storage.key)}, which is not there"
        raise PickleBrokenError(msg)
    width, values = DTYPE_BITS[dtype] // 8, math.prod(shape)
    unit = 1 if storage.dtype is None else DTYPE_BITS[storage.dtype] // 8
    if storage.count * unit != extent.size:
        msg = f"its storage {shown(storage.key)} has {extent.size} bytes and {storage.count} values are told"
        raise PickleBrokenError(msg)
    if not _is_contiguous(shape, tensor.stride):
        msg = (
            f"tensor {shown(name)} of shape {shown(shape)} is a view with strides {shown(tensor.stride)}, contiguous"
            " ones are read; save it with .contiguous()"
        )
        raise CheckpointFormatUnsupported(msg)
    if (tensor.offset + values) * width > extent.size and values:
        msg = f"its tensor {shown(name)} of shape {shown(shape)} ends behind its storage of {extent.size} bytes"
        raise PickleBrokenError(msg)
    begin = extent.offset + tensor.offset * width if values else extent.offset
    return StoredTensor(name=name, dtype=dtype, shape=tuple(shape), offset=begin, size=values * width)


def _is_layout(offset: int, shape: tuple[Any, ...], stride: tuple[Any, ...]) -> bool:
    numbers = (offset, *shape, *stride)
    are_sizes = all(type(number) is int and 0 <= number <= MAX_SIZE for number in numbers)
    is_small = len(shape) == len(stride) <= MAX_DIMENSIONS
    return are_sizes and is_small and math.prod(length for length in shape if length) <= MAX_SIZE


def _is_contiguous(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether the values follow each other; the stride of a dimension of one value does not matter."""
    if 0 in shape:
        return True
    expected = 1
    for length, step in zip(reversed(shape), reversed(stride), strict=True):
        if length != 1 and step != expected:
            return False
        expected *= length
    return True
