"""Checkpoints of torch.distributed.checkpoint: metadata, and files in which each rank saved its parts of tensors.

``.metadata`` says which part of which tensor lies in which bytes of which file; there each part is what ``torch.save``
wrote. Both are read as data (``pickles``). The parts of a tensor must be the cells of a grid that covers it, as FSDP,
tensor parallelism and both together make them. The optimizer's state in the same files is left alone.
"""

import hashlib
import io
import math
from collections.abc import Iterable, Mapping
from itertools import pairwise, product
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from archaeologist.checkpoints.header import MAX_DIMENSIONS, MAX_SIZE, shown
from archaeologist.checkpoints.layout import DISTRIBUTED_SUFFIX as SUFFIX
from archaeologist.checkpoints.pickles import (
    MAX_BYTES,
    Items,
    Made,
    Make,
    PickleBrokenError,
    PickleRefusedError,
    class_named,
    constant,
    load,
    member_of,
)
from archaeologist.checkpoints.torch_file import DTYPES
from archaeologist.errors import IndexInvalid, PickleRefused
from archaeologist.files import read_bounded

_MODULE: Final = "torch.distributed.checkpoint"
_MEMORY_FORMATS: Final = (
    f"{_MODULE}.metadata._MEM_FORMAT_ENCODING",
    "torch.distributed._shard.sharded_tensor.metadata.MEM_FORMAT_ENCODING",
)
_NAMES: Final[dict[str, Make]] = {
    **{
        f"{_MODULE}.metadata.{name}": class_named(name)
        for name in (
            "Metadata",
            "TensorStorageMetadata",
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "TensorProperties",
            "MetadataIndex",
            "StorageMeta",
        )
    },
    f"{_MODULE}.filesystem._StorageInfo": class_named("_StorageInfo"),
    # Before torch 2.3 these were another package's.
    "torch.distributed._shard.sharded_tensor.metadata.TensorProperties": class_named("TensorProperties"),
    **dict.fromkeys(_MEMORY_FORMATS, class_named("MEM_FORMAT_ENCODING")),
    "builtins.getattr": member_of(*_MEMORY_FORMATS),
    "collections.OrderedDict": lambda *_: Items(),
    "torch.Size": lambda sizes=(), *_: sizes,
    "pathlib.Path": class_named("Path"),
    "pathlib.PosixPath": class_named("Path"),
    "pathlib._local.PosixPath": class_named("Path"),
    "torch.serialization._get_layout": class_named("layout"),
    **{f"torch.{name}": constant(name) for name in (*DTYPES, "strided", "contiguous_format", "preserve_format")},
}
_OTHERS: Final = frozenset({"optim", "optimizer", "optimizers", "lr_scheduler", "scheduler", "dataloader"})
"""What stands beside the model in a trainer's state."""


class Part(Struct, frozen=True):
    """A part of a tensor as the metadata tells it."""

    file: str
    """Its name in the folder."""
    offset: int
    length: int
    begin: tuple[int, ...]
    """Where it begins in the tensor, by dimension."""


class Distributed(Struct, frozen=True):
    """What the metadata lists."""

    shapes: dict[str, tuple[int, ...]]
    """Of the model's tensors, by name."""
    parts: dict[str, tuple[Part, ...]]
    """Of the same."""
    left_out: dict[str, str]
    """Other entries, each with the reason."""
    digest: str

    def by_file(self) -> dict[str, list[tuple[str, Part]]]:
        """The parts with their tensors' names, by the files that hold them, in the order of their bytes.

        Raises:
            IndexInvalid: Two share bytes: many parts of one place would be read again and again.
        """
        found: dict[str, list[tuple[str, Part]]] = {}
        for name, parts in self.parts.items():
            for part in parts:
                found.setdefault(part.file, []).append((name, part))
        for file, held in found.items():
            held.sort(key=lambda one: one[1].offset)
            for (name, part), (other, behind) in pairwise(held):
                if part.offset + part.length > behind.offset:
                    msg = (
                        f"parts of tensors {shown(name)} and {shown(other)} share bytes of {shown(file)}, each part has"
                        " its own; save the checkpoint again"
                    )
                    raise IndexInvalid(msg)
        return found


def read_metadata(file: Path) -> Distributed:
    """What a checkpoint's ``.metadata`` lists.

    Args:
        file: Resolved.

    Raises:
        IndexInvalid: It is damaged or contradicts itself.
        PickleRefused: It names what no metadata does.
    """
    try:
        raw = read_bounded(file, MAX_BYTES)
        found = load(io.BytesIO(raw), _NAMES)
        return _listed(found, digest=hashlib.blake2b(raw, digest_size=16).hexdigest())
    except PickleRefusedError as refusal:
        msg = f"file {str(file)!r}: {refusal}; nothing of it was run. Save it with torch.distributed.checkpoint"
        raise PickleRefused(msg) from refusal
    except (OSError, PickleBrokenError) as error:
        msg = f"file {str(file)!r} is not the metadata of a distributed checkpoint: {error}; save it again"
        raise IndexInvalid(msg) from error


def _listed(found: object, *, digest: str) -> Distributed:
    fields = _fields(found, "Metadata")
    listed, stored, paths = (fields.get(name) for name in ("state_dict_metadata", "storage_data", "planner_data"))
    if not isinstance(listed, Items) or not isinstance(stored, Items):
        msg = "it lists no tensors and where they are stored"
        raise PickleBrokenError(msg)
    names = _model_names(listed, paths if isinstance(paths, Items) else Items())
    shapes, left_out = {}, {}
    for key, value in listed.named().items():
        if not isinstance(value, Made) or value.name != "TensorStorageMetadata":
            left_out[key] = "no tensor"
        elif key not in names:
            left_out[key] = "not the model's"
        else:
            shapes[key] = _shape(key, value.fields().get("size"))
    parts: dict[str, list[Part]] = {key: [] for key in shapes}
    for index, place in stored:
        where = _fields(index, "MetadataIndex")
        name = where.get("fqn")
        if isinstance(name, str) and name in parts:
            parts[name].append(_part(name, where, _fields(place, "_StorageInfo"), shapes[name]))
    return Distributed(
        shapes={names[key]: shape for key, shape in shapes.items()},
        parts={names[key]: tuple(sorted(found, key=lambda part: part.begin)) for key, found in parts.items()},
        left_out=left_out,
        digest=digest,
    )


def _model_names(listed: Items, paths: Items) -> dict[str, str]:
    """Key → the tensor's name in the model, of those that are the model's.

    A trainer's state is nested, ``{"model": {…}, "optim": {…}}``, and its keys are joined by dots; the paths tell what
    was joined.
    """
    told = paths.named()
    whole = {key: _path(key, told.get(key)) for key in listed.named()}
    has_model = any(path[0] == "model" and len(path) > 1 for path in whole.values())
    if has_model:
        return {key: ".".join(path[1:]) for key, path in whole.items() if path[0] == "model" and len(path) > 1}
    return {key: ".".join(path) for key, path in whole.items() if path[0] not in _OTHERS}


def _path(key: str, told: object) -> tuple[str, ...]:
    if isinstance(told, tuple) and told and all(isinstance(part, (str, int)) for part in told):
        return tuple(str(part) for part in told)
    return (key,)


def _shape(key: str, size: object) -> tuple[int, ...]:
    if not _are_sizes(size):
        msg = f"its tensor {shown(key)} has size {shown(size)}"
        raise PickleBrokenError(msg)
    return size  # type: ignore[return-value]  # as just checked


def _part(key: str, index: Mapping[str, object], place: Mapping[str, object], shape: tuple[int, ...]) -> Part:
    begin = index.get("offset")
    begin = tuple(0 for _ in shape) if begin is None else begin
    match place.get("relative_path"), place.get("offset"), place.get("length"), place.get("transform_descriptors"):
        case str(file), int(offset), int(length), None | [] if _are_sizes(begin) and len(begin) == len(shape):  # type: ignore[arg-type]
            if offset >= 0 and length > 0 and _is_name(file):
                return Part(file, offset, length, begin)  # type: ignore[arg-type]  # as just checked
    msg = f"its tensor {shown(key)} is stored at {shown(dict(place))}, a part is a range of bytes of a {SUFFIX} file"
    raise PickleBrokenError(msg)


def _is_name(file: str) -> bool:
    return file.endswith(SUFFIX) and file.isprintable() and not {"/", "\\"} & set(file) and len(file) < 256  # noqa: PLR2004


def _are_sizes(value: object) -> bool:
    if not isinstance(value, tuple) or len(value) > MAX_DIMENSIONS:
        return False
    return all(type(item) is int and 0 <= item <= MAX_SIZE for item in value)


def _fields(value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, Made) or value.name != name:
        msg = f"it has {shown(value)} where a {name} belongs"
        raise PickleBrokenError(msg)
    return value.fields()


def check_grid(name: str, shape: tuple[int, ...], boxes: Iterable[tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
    """Nothing, where the boxes are the cells of a grid that covers the tensor.

    Args:
        name: The tensor's, for the message.
        shape: The tensor's.
        boxes: Begin and shape of each.

    Raises:
        IndexInvalid: They leave a hole, overlap, or lie otherwise.
    """
    found = dict(boxes)
    cuts = [sorted({begin[axis] for begin in found} | {0}) for axis in range(len(shape))]
    ends = [dict(pairwise([*axis, length])) for axis, length in zip(cuts, shape, strict=True)]
    cells = {
        begin: tuple(ends[axis][at] - at for axis, at in enumerate(begin))
        for begin in (product(*cuts) if math.prod(map(len, cuts)) == len(found) else ())
    }
    if cells != found:
        msg = (
            f"the parts of tensor {shown(name)} of shape {shape} do not cover it as a grid, each value once; copy every"
            f" {SUFFIX} file, or save the checkpoint again"
        )
        raise IndexInvalid(msg)
