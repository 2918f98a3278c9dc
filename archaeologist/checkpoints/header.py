"""The header of a safetensors file, held against the format's rules with the standard library alone.

A header is hostile until proven otherwise: its length, its JSON, each tensor and the way the tensors fill the file
are checked before anything uses them. The rules are the format's own (github.com/huggingface/safetensors): eight bytes
of length, JSON, then the tensors' bytes without a gap or an overlap to the end of the file. This module reads headers
only; which files a checkpoint has is ``index``'s business.
"""

import hashlib
import json
import math
import reprlib
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final, NoReturn

from msgspec import Struct

from archaeologist.errors import DtypeUnsupported, HeaderInvalid
from archaeologist.files import read_at

MAX_HEADER_BYTES: Final = 32_000_000
"""A third of the format's own limit, and enough for 200,000 tensors in one file. Text takes up to seven times as much
while it is parsed."""
MAX_VALUES: Final = 2_000_000
"""Of JSON values in a header. Parsed they take up to 270 MB; the largest models known need half of them."""
MAX_NAME_CHARACTERS: Final = 1024
MAX_DIMENSIONS: Final = 64
MAX_SIZE: Final = 2**63 - 1

LENGTH_BYTES: Final = 8

_SHORT: Final = reprlib.Repr()
_SHORT.maxstring = 120

DTYPE_BITS: Final = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "C64": 64,
    "U64": 64,
    "I64": 64,
    "F64": 64,
}
"""Every dtype of the format and the bits of one value."""


class StoredTensor(Struct, frozen=True, kw_only=True):
    """One tensor as its file's header describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    """First byte in the file."""
    size: int
    """Bytes."""


class Header(Struct, frozen=True, kw_only=True):
    """A file's header, proven consistent with the file's size."""

    tensors: tuple[StoredTensor, ...]
    """In the order of their bytes."""
    digest: str
    """Hash of the header's bytes."""


class _Broken(Exception):
    """What is wrong, without the file's name."""


def read_header(descriptor: int, *, file: str, size: int) -> Header:
    """The header of an open file.

    Args:
        descriptor: Open for reading.
        file: Its name, for messages.
        size: Its size in bytes.

    Raises:
        HeaderInvalid: It is truncated, too large, not JSON, or contradicts the format's rules or the file's size.
        DtypeUnsupported: A dtype that the format does not have.
    """
    try:
        raw = _read_bytes(descriptor, size)
        tensors = parse(raw, data_bytes=size - LENGTH_BYTES - len(raw))
    except _Broken as broken:
        msg = f"safetensors file {file!r}: {broken}; save the checkpoint again or copy it whole"
        raise HeaderInvalid(msg) from broken
    except DtypeUnsupported as error:
        msg = f"safetensors file {file!r}: {error}"
        raise DtypeUnsupported(msg) from error
    return Header(tensors=tensors, digest=hashlib.blake2b(raw, digest_size=16).hexdigest())


def parse(raw: bytes, *, data_bytes: int) -> tuple[StoredTensor, ...]:
    """The tensors that a header's JSON describes, in the order of their bytes; offsets are within the file.

    Args:
        raw: The JSON.
        data_bytes: What follows it in the file.
    """
    try:
        members = decode_json(raw)
    except ValueError as error:
        msg = f"its header is not JSON as the format has it: {error}"
        raise _Broken(msg) from error
    if not isinstance(members, dict):
        msg = f"its header is {shown(members)}, not a JSON object"
        raise _Broken(msg)
    _check_metadata(members.pop("__metadata__", {}))
    start = LENGTH_BYTES + len(raw)
    tensors = [_tensor(name, value, start=start) for name, value in members.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.size))
    _check_cover(tensors, start=start, data_bytes=data_bytes)
    return tuple(tensors)


def shown(value: object) -> str:
    """A value from a file for a message: quoted, without control characters, short whatever it holds."""
    return _SHORT.repr(value)


def _read_bytes(descriptor: int, size: int) -> bytes:
    if size < LENGTH_BYTES:
        msg = f"{size} bytes, a file begins with {LENGTH_BYTES} bytes of header length: it is truncated"
        raise _Broken(msg)
    length = int.from_bytes(read_at(descriptor, LENGTH_BYTES, 0), "little")
    if length > MAX_HEADER_BYTES:
        msg = f"header of {length} bytes, at most {MAX_HEADER_BYTES} are read: it is damaged or not safetensors"
        raise _Broken(msg)
    if LENGTH_BYTES + length > size:
        msg = f"header of {length} bytes in a file of {size} bytes: it is truncated"
        raise _Broken(msg)
    raw = read_at(descriptor, length, LENGTH_BYTES)
    if len(raw) != length:
        msg = f"header of {length} bytes ends after {len(raw)}: the file was cut while it was read"
        raise _Broken(msg)
    return raw


def decode_json(raw: bytes) -> object:
    """JSON in which no name stands twice. Memory is bounded before it is spent: a value needs a comma or a bracket.

    Raises:
        ValueError: It is something else, or has too many values.
    """
    values = sum(raw.count(mark) for mark in (b",", b"[", b"{"))
    if values > MAX_VALUES:
        msg = f"{values} JSON values, at most {MAX_VALUES} are read"
        raise ValueError(msg)
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_members, parse_constant=_refuse_constant)
    except RecursionError as error:
        msg = "nested too deeply"
        raise ValueError(msg) from error


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        msg = f"name {shown(twice)} is there twice, it stands once"
        raise ValueError(msg)
    return members


def _refuse_constant(name: str) -> NoReturn:
    msg = f"{name} is no JSON value"
    raise ValueError(msg)


def _tensor(name: str, value: object, *, start: int) -> StoredTensor:
    _check_name(name)
    if not isinstance(value, dict) or not value.keys() >= {"dtype", "shape", "data_offsets"}:
        msg = f"tensor {shown(name)} is {shown(value)}, it needs dtype, shape and data_offsets"
        raise _Broken(msg)
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        msg = f"tensor {shown(name)} has dtype {shown(dtype)}; the format's are {', '.join(DTYPE_BITS)}"
        raise DtypeUnsupported(msg)
    if not _is_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        msg = f"tensor {shown(name)} has shape {shown(shape)}, a shape is up to {MAX_DIMENSIONS} integers from 0"
        raise _Broken(msg)
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:  # noqa: PLR2004 - begin and end
        msg = f"tensor {shown(name)} has data_offsets {shown(offsets)}, they are a begin and an end not before it"
        raise _Broken(msg)
    begin, end = offsets
    _check_size(name, dtype, shape, end - begin)
    return StoredTensor(name=name, dtype=dtype, shape=tuple(shape), offset=start + begin, size=end - begin)


def _check_size(name: str, dtype: str, shape: list[int], size: int) -> None:
    # Of the dimensions that are not 0 too: [0, 2**62, 2**62] holds nothing and overflows whoever multiplies.
    if math.prod(length for length in shape if length) > MAX_SIZE:
        msg = f"tensor {shown(name)} has shape {shown(shape)}, a shape has up to {MAX_SIZE} values"
        raise _Broken(msg)
    values, bits = math.prod(shape), DTYPE_BITS[dtype]
    if size * 8 != values * bits:
        msg = f"tensor {shown(name)} has {size} bytes, its shape {shown(shape)} has {values} values of {bits} bits each"
        raise _Broken(msg)


def _check_name(name: str) -> None:
    if len(name) > MAX_NAME_CHARACTERS:
        msg = f"tensor {shown(name)} has a name of {len(name)} characters, at most {MAX_NAME_CHARACTERS} are read"
        raise _Broken(msg)
    if not is_unicode(name):
        msg = f"tensor {shown(name)} has half a surrogate pair in its name, a name is Unicode text"
        raise _Broken(msg)


def _check_metadata(metadata: object) -> None:
    is_text = isinstance(metadata, dict) and all(
        isinstance(text, str) and is_unicode(text) for item in metadata.items() for text in item
    )
    if not is_text:
        msg = f"__metadata__ is {shown(metadata)}, it maps names to texts"
        raise _Broken(msg)


def is_unicode(text: str) -> bool:
    """False for half a surrogate pair, which JSON can escape and nothing can encode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_sizes(value: object) -> bool:
    # bool is an int in Python, true is none in JSON.
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= MAX_SIZE for item in value)


def _check_cover(tensors: Iterable[StoredTensor], *, start: int, data_bytes: int) -> None:
    """The tensors follow each other without gap or overlap, from the header's end to the file's."""
    expected = start
    for tensor in tensors:
        if tensor.offset != expected:
            fault = "overlaps the one before" if tensor.offset < expected else "leaves a hole before it"
            msg = (
                f"tensor {shown(tensor.name)} begins at byte {tensor.offset - start} of the data and {fault},"
                f" it must begin at {expected - start}"
            )
            raise _Broken(msg)
        expected += tensor.size
    if expected != start + data_bytes:
        msg = f"tensors of {expected - start} bytes with {data_bytes} bytes of data, they must be equal"
        fault = ": it is truncated" if expected > start + data_bytes else ""
        raise _Broken(msg + fault)
