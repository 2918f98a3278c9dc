"""The index of a checkpoint: which tensor lies in which bytes of which file.

Read by the daemon when a request arrives and by the child before it walks. Covers safetensors and what ``torch.save``
wrote, in one file or in shards; only headers and JSON are read, with the standard library alone. Values are
``reader``'s business.
"""

import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from archaeologist.checkpoints import adapter as adapters
from archaeologist.checkpoints.distributed import Part, check_grid, read_metadata
from archaeologist.checkpoints.header import DTYPE_BITS, Header, StoredTensor, read_header, shown
from archaeologist.checkpoints.layout import SAFETENSORS, Format, Layout, find_layout, inside, resolved
from archaeologist.checkpoints.packing import Packing, find_packing
from archaeologist.checkpoints.pieces import Piece
from archaeologist.checkpoints.torch_file import Range, read_single, read_torch_header
from archaeologist.errors import (
    CheckpointEmpty,
    CheckpointError,
    ConfigInvalid,
    DtypeUnsupported,
    IndexInvalid,
    ShardMissing,
)
from archaeologist.files import opened, read_bounded

CONFIG: Final = "config.json"
MAX_CONFIG_BYTES: Final = 4_000_000

READ_DTYPES: Final = ("F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")

_BUFFER_DTYPES: Final = frozenset({"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"})

_CONVERSIONS: Final = {
    "F64": "save a copy in float32: model.to(torch.float32)",
    "C64": "save real and imaginary parts as tensors of their own",
}
"""What to do about weights that are not read and not quantised either."""

_SCALED_BITS: Final = 8
_SCALE: Final = "scale"
"""In the name of what multiplies a tensor beside it: ``weight_scale_inv``, ``weight_scale``, ``scale_weight``."""

# Integers under such a name are packed weights: bitsandbytes, GPTQ, AWQ, compressed-tensors.
_WEIGHT_NAMES: Final = frozenset({"weight", "qweight", "weight_packed"})


class TensorEntry(Struct, frozen=True, kw_only=True):
    """Where one tensor's values are."""

    name: str
    """As stored."""
    dtype: str
    """One of ``READ_DTYPES``."""
    shape: tuple[int, ...]
    file: str
    """Resolved path."""
    offset: int
    """First byte in the file."""
    size: int
    """Bytes."""
    pieces: tuple[Piece, ...] = ()
    """Of one that lies in several; ``file`` and ``offset`` are the first one's."""


class CheckpointIndex(Struct, frozen=True, kw_only=True):
    """A checkpoint, described. ``tensors`` are in the order of their bytes, file by file."""

    path: str
    """Resolved: the folder, or the file where a single file was named."""
    format: Format = "safetensors"
    adapter: adapters.Adapter | None = None
    """What the factors among the tensors mean, in an adapter's checkpoint."""
    tensors: dict[str, TensorEntry]
    skipped: dict[str, str] = {}
    """Tensors that are stored but not read, each with the reason."""
    skipped_bytes: int = 0
    files: dict[str, int]
    """Weight files by resolved path: size in bytes."""
    headers: dict[str, str]
    """Hash of each file's header."""
    config: dict[str, Any] | None = None
    """``architectures``, ``model_type`` and ``tie_word_embeddings`` of config.json, as far as they are there."""

    @property
    def tensors_listed(self) -> int:
        """Tensors stored, read or not."""
        return len(self.tensors) + len(self.skipped)

    @property
    def bytes_listed(self) -> int:
        """Bytes of all stored tensors, read or not."""
        return sum(entry.size for entry in self.tensors.values()) + self.skipped_bytes


def read_index(path: Path, *, allowed: Sequence[Path] = ()) -> CheckpointIndex:
    """The index of a checkpoint's folder or of a single weight file.

    With both ``model.safetensors`` and a sharded index in the folder the single file wins, as in transformers.
    Integer and boolean buffers (``position_ids``) and buffers in other dtypes are listed as skipped. Weights in a
    dtype that is not read refuse the whole checkpoint: its statistics would be of something else. So do 8-bit floats
    that have scales beside them.

    Args:
        path: The folder or file.
        allowed: Folders besides the checkpoint's own into which its symbolic links may lead, a hub cache's ``blobs``
            for instance.

    Raises:
        CheckpointMissing: Nothing is there.
        CheckpointEmpty: The folder has no weights.
        CheckpointFormatUnsupported: It has weights in another format.
        IndexInvalid: The sharded index is broken or contradicts the shards.
        ShardMissing: The index names a file that is not there.
        HeaderInvalid: A weight file breaks the format.
        PickleRefused: A weight file's pickle names what is no tensor.
        DtypeUnsupported: Weights have a dtype that is not read.
        ConfigInvalid: config.json or adapter_config.json is not what it must be.
        PathOutsideRoot: A link leads out of the folder and of what is allowed.
        CheckpointError: The file system refuses to read it.
    """
    found = resolved(path)
    folder = found if found.is_dir() else found.parent
    roots = (folder, *allowed)
    layout = find_layout(found, roots)
    if layout.metadata is not None:
        weights, everything = _read_distributed(layout, layout.metadata)
    else:
        weights = {name: _read_weight_file(layout, name) for name in layout.files}
        everything = _stored(layout, weights)
    sorted_out = _sort_out(everything)
    if not sorted_out.tensors:
        msg = (
            f"checkpoint {str(found)!r} holds no weights, its files list no tensor that is read; save the model into it"
        )
        raise CheckpointEmpty(msg)
    return CheckpointIndex(
        path=str(found),
        format=layout.format,
        adapter=_adapter(layout, sorted_out, roots) if layout.format == "adapter" else None,
        tensors=sorted_out.tensors,
        skipped=sorted_out.skipped,
        skipped_bytes=sorted_out.skipped_bytes,
        files={str(layout.files[name]): weight.size for name, weight in weights.items()},
        headers={str(layout.files[name]): weight.header.digest for name, weight in weights.items()},
        config=_read_config(folder, roots),
    )


# Tensors.


def _adapter(layout: Layout, found: "_SortedOut", roots: Sequence[Path]) -> adapters.Adapter:
    config = inside(layout.folder, adapters.CONFIG, roots)
    return adapters.read_adapter(config, {name: entry.shape for name, entry in found.tensors.items()})


class _WeightFile(NamedTuple):
    header: Header
    size: int


class _Stored(NamedTuple):
    """A tensor as a file holds it."""

    tensor: StoredTensor
    file: Path
    reason: str | None = None
    """Why it is not to be read, if the layout says so already."""
    pieces: tuple[Piece, ...] = ()
    """Where it lies in several."""


class _SortedOut(NamedTuple):
    tensors: dict[str, TensorEntry]
    skipped: dict[str, str]
    skipped_bytes: int


def _read_weight_file(layout: Layout, name: str) -> _WeightFile:
    label = str(layout.folder / name)
    try:
        with opened(layout.files[name]) as descriptor:
            size = os.fstat(descriptor).st_size
            read = read_header if name.endswith(SAFETENSORS) else read_torch_header
            return _WeightFile(read(descriptor, file=label, size=size), size)
    except OSError as error:
        msg = f"file {label!r} cannot be read: {error.strerror}; give this user the right to read it, or copy it again"
        raise CheckpointError(msg) from error


def _read_distributed(layout: Layout, metadata: Path) -> "tuple[dict[str, _WeightFile], list[_Stored]]":
    """The files of a distributed checkpoint, and its tensors.

    Raises:
        IndexInvalid: The metadata contradicts itself or the files.
        ShardMissing: A file that it names is not there.
    """
    listed = read_metadata(metadata)
    by_name = {Path(name).name: name for name in layout.files}
    by_file = listed.by_file()
    if absent := sorted(by_file.keys() - by_name.keys()):
        msg = f"checkpoint {str(layout.folder)!r} lacks {shown(absent[0])}, which its metadata names; copy it whole"
        raise ShardMissing(msg)
    weights = {}
    pieces: dict[str, list[tuple[Piece, StoredTensor]]] = {name: [] for name in listed.shapes}
    for file, parts in sorted(by_file.items()):
        path = layout.files[by_name[file]]
        label = str(layout.folder / by_name[file])
        try:
            with opened(path) as descriptor:
                size = os.fstat(descriptor).st_size
                for name, part in parts:
                    found = _read_part(descriptor, part, size=size, label=f"tensor {shown(name)} in {label!r}")
                    place = Piece(file=str(path), offset=found.offset, begin=part.begin, shape=found.shape)
                    pieces[name].append((place, found))
        except OSError as error:
            msg = f"file {label!r} cannot be read: {error.strerror}; give this user the right to read it"
            raise CheckpointError(msg) from error
        weights[by_name[file]] = _WeightFile(Header(tensors=(), digest=listed.digest), size)
    stored = [_joined(name, listed.shapes[name], found) for name, found in pieces.items()]
    return weights, stored


def _read_part(descriptor: int, part: Part, *, size: int, label: str) -> StoredTensor:
    if part.offset + part.length > size:
        msg = f"{label} ends at byte {part.offset + part.length} of {size}: the file is truncated; copy it whole"
        raise IndexInvalid(msg)
    return read_single(descriptor, Range(part.offset, part.length), label=label)


def _joined(name: str, shape: tuple[int, ...], found: list[tuple[Piece, StoredTensor]]) -> _Stored:
    """A tensor of its parts."""
    check_grid(name, shape, ((piece.begin, piece.shape) for piece, _ in found))
    dtypes = {tensor.dtype for _, tensor in found}
    if len(dtypes) != 1:
        msg = f"the parts of tensor {shown(name)} have dtypes {sorted(dtypes)}, they have one; save it again"
        raise IndexInvalid(msg)
    first = min(found, key=lambda one: one[0].begin)
    size = sum(tensor.size for _, tensor in found)
    tensor = replace(first[1], name=name, shape=shape, size=size)
    pieces = tuple(sorted((piece for piece, _ in found), key=lambda piece: piece.begin))
    return _Stored(tensor, Path(first[0].file), pieces=pieces if len(pieces) > 1 else ())


def _stored(layout: Layout, weights: dict[str, _WeightFile]) -> list[_Stored]:
    """Every tensor, file by file; of one that lies in several shards, the one that the index means.

    Raises:
        IndexInvalid: The index lists a tensor that its shard does not hold.
    """
    everything = [
        (name, _Stored(tensor, layout.files[name]))
        for name, weight in weights.items()
        for tensor in weight.header.tensors
    ]
    if layout.weight_map is None:
        return [stored for _, stored in everything]
    held = {(stored.tensor.name, name) for name, stored in everything}
    for tensor, shard in layout.weight_map.items():
        if (tensor, shard) not in held:
            msg = (
                f"index of checkpoint {str(layout.folder)!r} lists tensor {shown(tensor)} in {shard!r}, which does not"
                " hold it; save the checkpoint again"
            )
            raise IndexInvalid(msg)
    return [
        stored._replace(reason=None if stored.tensor.name in layout.weight_map else "not in the sharded index")
        for name, stored in everything
        if layout.weight_map.get(stored.tensor.name, name) == name
    ]


def _sort_out(everything: Iterable[_Stored]) -> _SortedOut:
    """The tensors that are read, and those that are not.

    Raises:
        DtypeUnsupported: Weights would be left out, or most of the bytes, or are scaled by what lies beside them.
    """
    everything = list(everything)
    packing = find_packing(stored.tensor.name for stored in everything)
    tensors: dict[str, TensorEntry] = {}
    skipped: dict[str, str] = {}
    unread: list[StoredTensor] = []
    skipped_bytes = 0
    for stored in everything:
        tensor = stored.tensor
        if reason := stored.reason or _reason_to_skip(tensor, packing):
            skipped[tensor.name] = reason
            skipped_bytes += tensor.size
            if tensor.dtype not in READ_DTYPES:
                unread.append(tensor)
        else:
            tensors[tensor.name] = _entry(stored)
    if sum(tensor.size for tensor in unread) > sum(entry.size for entry in tensors.values()):
        raise _unsupported(max(unread, key=lambda tensor: tensor.size), packing)
    _check_unscaled(tensors, {*tensors, *skipped})
    return _SortedOut(tensors, skipped, skipped_bytes)


def _entry(stored: _Stored) -> TensorEntry:
    tensor = stored.tensor
    return TensorEntry(
        name=tensor.name,
        dtype=tensor.dtype,
        shape=tensor.shape,
        file=str(stored.file),
        offset=tensor.offset,
        size=tensor.size,
        pieces=stored.pieces,
    )


def _check_unscaled(tensors: dict[str, TensorEntry], names: Collection[str]) -> None:
    """The values of 8-bit floats are weights only where nothing multiplies them."""
    scales: dict[str, str] = {}
    for name in names:
        module, _, last = name.rpartition(".")
        if _SCALE in last:
            scales.setdefault(module, name)
    for entry in tensors.values():
        scale = scales.get(entry.name.rpartition(".")[0])
        if entry.dtype.startswith("F8_") and scale is not None:
            msg = (
                f"tensor {shown(entry.name)} is {entry.dtype} and multiplied by {shown(scale)}, 8-bit floats are read"
                " without scales; save the model dequantised"
            )
            raise DtypeUnsupported(msg)


def _reason_to_skip(tensor: StoredTensor, packing: Packing | None) -> str | None:
    if tensor.dtype in READ_DTYPES:
        return None
    is_buffer = tensor.dtype in _BUFFER_DTYPES
    # Floats of fewer bits come with scales, and are the scales: without these their values mean nothing.
    is_scaled = not is_buffer and DTYPE_BITS[tensor.dtype] <= _SCALED_BITS
    if is_scaled or tensor.name.rpartition(".")[2] in _WEIGHT_NAMES:
        raise _unsupported(tensor, packing)
    if is_buffer:
        return f"{tensor.dtype}: a buffer, not weights"
    return f"{tensor.dtype}: {', '.join(READ_DTYPES)} are read"


def _unsupported(tensor: StoredTensor, packing: Packing | None) -> DtypeUnsupported:
    if packing is not None:
        msg = (
            f"tensor {shown(tensor.name)} has dtype {tensor.dtype}: weights packed by {packing.by}, whose values are"
            f" not read; {packing.remedy}"
        )
        return DtypeUnsupported(msg)
    remedy = _CONVERSIONS.get(tensor.dtype, "save the model dequantised in one of them")
    msg = (
        f"tensor {shown(tensor.name)} has dtype {tensor.dtype}, weights of {', '.join(READ_DTYPES)} are read; {remedy}"
    )
    return DtypeUnsupported(msg)


# config.json.


class _TextConfig(Struct, frozen=True):
    tie_word_embeddings: bool | None = None


class _Config(Struct, frozen=True):
    """The little of a config.json that is used; the rest is never turned into objects."""

    architectures: list[str] | None = None
    model_type: str | None = None
    tie_word_embeddings: bool | None = None
    text_config: _TextConfig | None = None
    """Of a model of text and images: where its language model says whether it is tied."""


_config: Final = msgspec.json.Decoder(_Config)
"""Built while this is imported, as ``contracts.prepared`` says."""


def _read_config(folder: Path, roots: Sequence[Path]) -> dict[str, Any] | None:
    if not os.path.lexists(folder / CONFIG):
        return None
    file = inside(folder, CONFIG, roots)
    try:
        config = _config.decode(read_bounded(file, MAX_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        msg = f"file {str(file)!r} is not a model's configuration: {error}; save the checkpoint again"
        raise ConfigInvalid(msg) from error
    is_tied = config.tie_word_embeddings
    if is_tied is None and config.text_config is not None:
        is_tied = config.text_config.tie_word_embeddings
    values = {"architectures": config.architectures, "model_type": config.model_type, "tie_word_embeddings": is_tied}
    return {name: value for name, value in values.items() if value is not None}
