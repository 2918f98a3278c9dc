"""Sketches: 32 KB a tensor from which the distance of any two checkpoints is estimated, long after they are gone.

A sketch is linear, so the sketch of a difference is the difference of sketches. A tensor of at most ``WIDTH`` values
is kept whole. A larger one is cut into blocks of ``WIDTH`` consecutive values; block b is multiplied by signs (one a
position, the same for every tensor, and one a block), rotated by an offset of its own, and added up:

    s[(i + r_b) mod WIDTH] += t_b · u_i · x[b · WIDTH + i]

u, t and r come from splitmix64 of the seed, the tensor's name and the block's number, so nothing but s is stored. E‖s‖²
= ‖x‖², and the relative standard deviation of ‖s‖² is about √(2 / WIDTH) = 2.2 % a tensor (Charikar, Chen and
Farach-Colton 2002, with a rotation in place of the hash). Values that are not finite count as 0.

The excavation computes sketches with the compiled kernel and writes them; the summaries read and compare them with
what is here. Two sketches compare only when version, seed and width are equal.
"""

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from archaeologist.errors import ArtifactInvalid

VERSION: Final = 1
SEED: Final = 20251128
WIDTH: Final = 4096
"""Values in a sketch, and in the blocks that are added up."""

Floats = npt.NDArray[np.float64]

MAX_HEADER_BYTES: Final = 32_000_000
_NO_SKETCH: Final = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError, struct.error)
"""What comes of taking something else for a sketch; OverflowError: of an infinite number for a place."""
_LENGTH: Final = struct.Struct("<Q")
_GOLDEN: Final = 0x9E3779B97F4A7C15


class SketchHeader(Struct, frozen=True, kw_only=True):
    """What a sketch is of and how it was made; the file's metadata, as decimal text."""

    version: int = VERSION
    seed: int = SEED
    width: int = WIDTH
    fingerprint: str
    """Of the checkpoint's content."""
    step: int


class Sketch(Struct, frozen=True, kw_only=True):
    """The sketch of a checkpoint: one vector of float64 a tensor, by the tensor's canonical name."""

    header: SketchHeader
    tensors: dict[str, Floats]


# Making: the definition that the compiled kernel follows.


def splitmix64(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A well-mixed 64-bit hash of each value (Steele, Lea and Flood 2014, the output function of SplittableRandom)."""
    mixed = values + np.uint64(_GOLDEN)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def position_signs(seed: int = SEED) -> npt.NDArray[np.float32]:
    """u: a sign for each position of a block, +1 or -1, shape (WIDTH,)."""
    hashes = splitmix64(np.arange(WIDTH, dtype=np.uint64) ^ splitmix64(np.array([seed], dtype=np.uint64)))
    return np.where(hashes >> np.uint64(63), np.float32(-1), np.float32(1)).astype(np.float32)


def tensor_key(name: str, seed: int = SEED) -> int:
    """What a tensor's rotations and block signs are drawn from: a 64-bit hash of the seed and the canonical name."""
    digest = hashlib.blake2b(name.encode(), digest_size=8, key=_LENGTH.pack(seed), person=b"sketch 1").digest()
    return int.from_bytes(digest, "little")


def size_of(count: int) -> int:
    """Values in the sketch of a tensor of ``count`` values."""
    return min(count, WIDTH)


# Comparing.


def distances(a: Sketch, b: Sketch) -> dict[str, float]:
    """‖a - b‖ of every tensor that both hold: an estimate, exact for tensors of at most ``WIDTH`` values.

    Raises:
        ArtifactInvalid: The sketches were not made alike.
    """
    return {name: float(np.linalg.norm(difference)) for name, difference in differences(a, b).items()}


def distance(a: Sketch, b: Sketch) -> float:
    """‖a - b‖ over all tensors together, an estimate.

    Raises:
        ArtifactInvalid: The sketches were not made alike.
    """
    return math.hypot(*distances(a, b).values())


def direction_cosine(earlier: dict[str, Floats], later: dict[str, Floats]) -> float | None:
    """Cosine of two differences over the tensors of both, an estimate; None where one of them is zero.

    Args:
        earlier: From ``differences``, the change over one interval.
        later: The change over another.
    """
    common = earlier.keys() & later.keys()
    dot = math.fsum(float(earlier[name] @ later[name]) for name in common)
    norms = math.hypot(*(float(np.linalg.norm(earlier[name])) for name in common)) * math.hypot(
        *(float(np.linalg.norm(later[name])) for name in common)
    )
    return max(-1.0, min(1.0, dot / norms)) if norms > 0 else None


def differences(a: Sketch, b: Sketch) -> dict[str, Floats]:
    """The sketch of a - b, by tensor; tensors on one side only, or whole on one side only, are left out.

    Rows that were appended to a matrix count as a change from 0.

    Raises:
        ArtifactInvalid: The sketches were not made alike.
    """
    for name in ("version", "seed", "width"):
        ours, theirs = getattr(a.header, name), getattr(b.header, name)
        if ours != theirs:
            msg = f"sketches have {name} {ours} and {theirs}, only equal ones compare; analyse both checkpoints again"
            raise ArtifactInvalid(msg)
    return {
        name: values - b.tensors[name]
        for name, values in a.tensors.items()
        if name in b.tensors and b.tensors[name].shape == values.shape
    }


# The file: safetensors, written and read by hand so that neither side needs more than NumPy, nor all of it in memory.


def encode_header(header: SketchHeader, sizes: Iterable[tuple[str, int]]) -> bytes:
    """The first bytes of the sketch's file; the tensors' float64 follow in the given order.

    Args:
        header: Becomes the metadata.
        sizes: Canonical name and number of sketch values of each tensor.
    """
    document: dict[str, Any] = {"__metadata__": {name: str(getattr(header, name)) for name in header.__struct_fields__}}
    end = 0
    for name, size in sizes:
        start, end = end, end + size * 8
        document[name] = {"dtype": "F64", "shape": [size], "data_offsets": [start, end]}
    content = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    return _LENGTH.pack(len(content)) + content


def decode_sketch(content: bytes) -> Sketch:
    """The sketch that a file's bytes are.

    Raises:
        ArtifactInvalid: They are no sketch.
    """
    try:
        header, document, start = _decode_start(content)
        return Sketch(header=header, tensors=dict(_tensors(document, content[start:])))
    except _NO_SKETCH as error:
        raise _unreadable(len(content), error) from error


def start_bytes(content: bytes) -> int:
    """How many bytes of a file ``decode_header`` needs, from the first 8 of them.

    Raises:
        ArtifactInvalid: They are no sketch's.
    """
    try:
        return _start(content)
    except (ValueError, struct.error) as error:
        raise _unreadable(len(content), error) from error


def decode_header(content: bytes, *, file_bytes: int) -> SketchHeader:
    """The header of a sketch, from the start of its file.

    Args:
        content: As much as ``start_bytes`` says.
        file_bytes: Size of the whole file: one that lacks a tensor is no sketch.

    Raises:
        ArtifactInvalid: It is no sketch, or not a whole one.
    """
    try:
        header, document, start = _decode_start(content)
        for _ in _entries(document, payload_bytes=file_bytes - start):
            pass
    except _NO_SKETCH as error:
        raise _unreadable(file_bytes, error) from error
    return header


def _start(content: bytes) -> int:
    (length,) = _LENGTH.unpack_from(content)
    if length > MAX_HEADER_BYTES:
        msg = f"its header claims {length} bytes"
        raise ValueError(msg)
    return _LENGTH.size + int(length)


def _decode_start(content: bytes) -> tuple[SketchHeader, dict[str, Any], int]:
    """The header, the tensors' entries, and where the tensors begin."""
    start = _start(content)
    document = json.loads(content[_LENGTH.size : start])
    metadata = document.pop("__metadata__")
    header = SketchHeader(
        version=int(metadata["version"]),
        seed=int(metadata["seed"]),
        width=int(metadata["width"]),
        fingerprint=str(metadata["fingerprint"]),
        step=int(metadata["step"]),
    )
    return header, document, start


def _unreadable(size: int, error: Exception) -> ArtifactInvalid:
    msg = f"a sketch of {size} bytes cannot be read: {error}; analyse its checkpoint again"
    return ArtifactInvalid(msg)


def _tensors(document: dict[str, Any], payload: bytes) -> Iterator[tuple[str, Floats]]:
    for name, start, end in _entries(document, payload_bytes=len(payload)):
        yield name, np.frombuffer(payload, dtype="<f8", count=(end - start) // 8, offset=start)


def _entries(document: dict[str, Any], *, payload_bytes: int) -> Iterator[tuple[str, int, int]]:
    """Each tensor's name, and where its values begin and end."""
    for name, entry in document.items():
        start, end = (int(offset) for offset in entry["data_offsets"])
        if entry["dtype"] != "F64" or not 0 <= start <= end <= payload_bytes:
            msg = f"tensor {name!r} is not float64 within the file"
            raise ValueError(msg)
        yield name, start, end
