"""The index of a checkpoint: which tensor lies in which bytes of which file.

Read by the daemon when a request arrives and by the child before it walks. Covers safetensors, in one file or in
shards. Nothing but headers and JSON is read, with the standard library alone. Other formats are refused with a remedy:
a pickle is never opened.
"""

import os
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from archaeologist.checkpoints.header import MAX_HEADER_BYTES, Header, StoredTensor, decode_json, read_header, shown
from archaeologist.errors import (
    CheckpointEmpty,
    CheckpointError,
    CheckpointFormatUnsupported,
    CheckpointMissing,
    ConfigInvalid,
    DtypeUnsupported,
    IndexInvalid,
    ShardMissing,
)
from archaeologist.files import opened, read_bounded
from archaeologist.paths import is_under

SINGLE: Final = "model.safetensors"
SHARDED: Final = "model.safetensors.index.json"
CONFIG: Final = "config.json"

READ_DTYPES: Final = ("F32", "F16", "BF16")
MAX_CONFIG_BYTES: Final = 4_000_000

_BUFFER_DTYPES: Final = frozenset({"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"})
_WEIGHT_NAMES: Final = (".weight", ".qweight", ".weight_packed")
"""Integers under such a name are quantised weights (bitsandbytes, GPTQ, AWQ, compressed-tensors), not buffers."""

_OTHER_FORMATS: Final = (
    ("adapter_model.*", "a PEFT adapter", "merge it into its base model (merge_and_unload) and analyse that"),
    ("model-*-of-*.safetensors", "shards without their index", f"copy {SHARDED} beside them"),
    ("pytorch_model_fsdp*", "FSDP shards", "run 'accelerate merge-weights' on the folder"),
    ("*_rank_*.pt", "ZeRO shards", "run zero_to_fp32.py with --safe_serialization"),
    ("global_step*", "a DeepSpeed folder", "run zero_to_fp32.py with --safe_serialization"),
    ("pytorch_model*.bin*", "a pickle", "save it with safe_serialization=True"),
    ("*.safetensors", f"safetensors under another name than {SINGLE}", "give the file's own path"),
    ("*.pth", "a pickle", "convert it to safetensors"),
    ("*.gguf", "GGUF", "analyse the checkpoint that it was made from"),
    ("*.h5", "TensorFlow weights", "convert them to safetensors"),
    ("*.msgpack", "Flax weights", "convert them to safetensors"),
    ("optimizer*", "an optimizer's state", "wait until the trainer has saved the model as well"),
    ("*.pt", "a pickle", "convert it to safetensors"),
    ("*.bin", "a pickle", "save it with safe_serialization=True"),
)
"""What may lie in a folder instead: pattern, what it is, what to do. The first match in this order is named."""


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


class CheckpointIndex(Struct, frozen=True, kw_only=True):
    """A checkpoint, described. ``tensors`` are in the order of their bytes, file by file."""

    path: str
    """Resolved: the folder, or the file where a single file was named."""
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
        """Bytes of all stored tensors."""
        return sum(entry.size for entry in self.tensors.values()) + self.skipped_bytes


Headers = dict[Path, tuple[Header, int]]
"""By weight file: its header and its size in bytes."""

Stored = tuple[Path, StoredTensor, str | None]
"""A tensor, its file, and the reason where it is not to be read."""


def read_index(path: Path, *, allowed: Sequence[Path] = ()) -> CheckpointIndex:
    """The index of a checkpoint's folder or of a single ``.safetensors`` file.

    With both ``model.safetensors`` and a sharded index in the folder the single file wins, as in transformers.

    Args:
        path: The folder or file.
        allowed: Folders besides the checkpoint's own into which its symbolic links may lead, a hub cache's ``blobs``
            for instance.

    Raises:
        CheckpointMissing: Nothing is there.
        CheckpointEmpty: The folder has no weights.
        CheckpointFormatUnsupported: It has weights in another format.
        IndexInvalid: The sharded index is broken, contradicts the shards or leads out of the folder.
        ShardMissing: The index names a file that is not there.
        HeaderInvalid: A weight file breaks the format.
        DtypeUnsupported: Weights have a dtype that is not read.
        ConfigInvalid: config.json is there and is not a JSON object.
        CheckpointError: The file system refuses to read it.
    """
    found = _resolve(path)
    folder = found if found.is_dir() else found.parent
    roots = (folder, *allowed)
    files, weight_map = _weight_files(found, roots)
    headers = {file: _read_weight_file(file, logical) for logical, file in files.items()}
    stored = _of_index(headers, weight_map, files) if weight_map is not None else _all_of(headers)
    tensors, skipped, skipped_bytes = _sort_out(stored)
    if not tensors:
        msg = (
            f"checkpoint {str(found)!r} holds no weights, its files list no tensor that is read; save the model into it"
        )
        raise CheckpointEmpty(msg)
    return CheckpointIndex(
        path=str(found),
        tensors=tensors,
        skipped=skipped,
        skipped_bytes=skipped_bytes,
        files={str(file): size for file, (_, size) in headers.items()},
        headers={str(file): header.digest for file, (header, _) in headers.items()},
        config=_read_config(folder, roots),
    )


def _resolve(path: Path) -> Path:
    try:
        return path.resolve(strict=True)
    except (OSError, ValueError, RuntimeError) as error:
        msg = f"checkpoint {str(path)!r} is not there ({error}); name a folder with {SINGLE} or {SHARDED}"
        raise CheckpointMissing(msg) from error


# Which files.


def _weight_files(found: Path, roots: Sequence[Path]) -> tuple[dict[str, Path], dict[str, str] | None]:
    """The weight files by the name that the folder gives them, and the sharded index's map where there is one."""
    if not found.is_dir():
        if found.suffix != ".safetensors":
            msg = f"checkpoint {str(found)!r} is a file of another kind; name a folder or a .safetensors file"
            raise CheckpointFormatUnsupported(msg)
        return {found.name: found}, None
    if os.path.lexists(found / SINGLE):
        return {SINGLE: _inside(found, SINGLE, roots)}, None
    if os.path.lexists(found / SHARDED):
        weight_map = _read_weight_map(_inside(found, SHARDED, roots))
        shards = sorted(set(weight_map.values()))
        return {shard: _inside(found, shard, roots) for shard in shards}, weight_map
    raise _no_weights(found)


def _inside(folder: Path, name: str, roots: Sequence[Path]) -> Path:
    """A file of the folder, resolved, where its links stay under the roots."""
    try:
        file = (folder / name).resolve(strict=True)
    except FileNotFoundError as error:
        msg = f"file {name!r} of checkpoint {str(folder)!r} is not there; the copy is incomplete or still being written"
        raise ShardMissing(msg) from error
    except (OSError, RuntimeError) as error:
        msg = f"file {name!r} of checkpoint {str(folder)!r} cannot be resolved: {error}; copy the checkpoint whole"
        raise CheckpointError(msg) from error
    if not is_under(file, roots):
        msg = f"file {name!r} of checkpoint {str(folder)!r} leads to {str(file)!r}, links must stay in its folder or under an allowed root; name that folder in the setting 'allowed'"
        raise IndexInvalid(msg)
    return file


def _read_weight_map(file: Path) -> dict[str, str]:
    document = _read_json(file, limit_bytes=MAX_HEADER_BYTES, error=IndexInvalid)
    weight_map = document.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        msg = f"index {str(file)!r} has weight_map {shown(weight_map)}, it needs tensor names with their shards; save again"
        raise IndexInvalid(msg)
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_plain(shard):
            msg = f"index {str(file)!r} puts {shown(name)} into {shown(shard)}, a shard is a plain .safetensors file name; save again"
            raise IndexInvalid(msg)
    return weight_map


def _is_plain(shard: str) -> bool:
    is_text = shard.isprintable() and len(shard) <= 255  # noqa: PLR2004 - the longest file name
    return is_text and shard.endswith(".safetensors") and "/" not in shard and "\\" not in shard


def _no_weights(folder: Path) -> CheckpointError:
    try:
        names = sorted(entry.name for entry in os.scandir(folder))
    except OSError as error:
        return CheckpointError(
            f"checkpoint {str(folder)!r} cannot be listed: {error}; give this user the right to read it"
        )
    for pattern, kind, remedy in _OTHER_FORMATS:
        for name in names:
            if fnmatchcase(name, pattern):
                msg = f"checkpoint {str(folder)!r} holds {shown(name)} ({kind}), only {SINGLE} and its shards are read; {remedy}"
                return CheckpointFormatUnsupported(msg)
    held = ", ".join(shown(name) for name in names[:5]) or "nothing"
    msg = f"checkpoint {str(folder)!r} holds {held} and no weights; it needs {SINGLE} or {SHARDED}: is it still being written?"
    return CheckpointEmpty(msg)


# What is in them.


def _read_weight_file(file: Path, logical: str) -> tuple[Header, int]:
    try:
        with opened(file) as descriptor:
            size = os.fstat(descriptor).st_size
            return read_header(descriptor, file=str(file.with_name(logical)), size=size), size
    except OSError as error:
        msg = f"file {str(file)!r} cannot be read: {error.strerror}; give this user the right to read it"
        raise CheckpointError(msg) from error


def _all_of(headers: Headers) -> list[Stored]:
    return [(file, tensor, None) for file, (header, _) in headers.items() for tensor in header.tensors]


def _of_index(headers: Headers, weight_map: dict[str, str], files: dict[str, Path]) -> list[Stored]:
    """Every tensor of every shard, with the reason where the index does not count it."""
    listed: list[Stored] = []
    missing = dict(weight_map)
    for file, tensor, _ in _all_of(headers):
        shard = weight_map.get(tensor.name)
        if shard is not None and files[shard] == file:
            missing.pop(tensor.name, None)
            listed.append((file, tensor, None))
        elif shard is None:
            listed.append((file, tensor, f"stored in {file.name} but not in the index"))
    if missing:
        name, shard = next(iter(missing.items()))
        msg = f"index lists {shown(name)} in {shown(shard)}, which does not hold it ({len(missing)} of {len(weight_map)} tensors are missing); save the checkpoint again"
        raise IndexInvalid(msg)
    return listed


def _sort_out(stored: Iterable[Stored]) -> tuple[dict[str, TensorEntry], dict[str, str], int]:
    """The tensors that are read, those that are not with the reason, and the latters' bytes.

    Raises:
        DtypeUnsupported: Weights would be left out, or most of the bytes.
    """
    tensors: dict[str, TensorEntry] = {}
    skipped: dict[str, str] = {}
    unread: list[StoredTensor] = []
    skipped_bytes = 0
    for file, tensor, reason in stored:
        reason = reason or _reason_to_skip(tensor)
        if reason is None:
            tensors[tensor.name] = TensorEntry(
                name=tensor.name,
                dtype=tensor.dtype,
                shape=tensor.shape,
                file=str(file),
                offset=tensor.offset,
                size=tensor.size,
            )
            continue
        skipped[tensor.name] = reason
        skipped_bytes += tensor.size
        if tensor.dtype not in READ_DTYPES:
            unread.append(tensor)
    read_bytes = sum(entry.size for entry in tensors.values())
    if unread and sum(tensor.size for tensor in unread) > read_bytes:
        raise _unsupported(max(unread, key=lambda tensor: tensor.size))
    return tensors, skipped, skipped_bytes


def _reason_to_skip(tensor: StoredTensor) -> str | None:
    if tensor.dtype in READ_DTYPES:
        return None
    is_weight = f".{tensor.name}".endswith(_WEIGHT_NAMES)
    # Small floats come with scales of their own: without these their values mean nothing.
    if is_weight or tensor.dtype.startswith(("F8", "F6", "F4")):
        raise _unsupported(tensor)
    if tensor.dtype in _BUFFER_DTYPES:
        return f"{tensor.dtype}: a buffer, not weights"
    return f"{tensor.dtype}: not one of the dtypes that are read ({', '.join(READ_DTYPES)})"


def _unsupported(tensor: StoredTensor) -> DtypeUnsupported:
    msg = f"tensor {shown(tensor.name)} has dtype {tensor.dtype}, weights of {', '.join(READ_DTYPES)} are read; save the model dequantised in one of them"
    return DtypeUnsupported(msg)


# config.json.


def _read_config(folder: Path, roots: Sequence[Path]) -> dict[str, Any] | None:
    """The few entries of config.json that are used."""
    if not os.path.lexists(folder / CONFIG):
        return None
    file = _inside(folder, CONFIG, roots)
    document = _read_json(file, limit_bytes=MAX_CONFIG_BYTES, error=ConfigInvalid)
    nested = document.get("text_config")
    text = nested if isinstance(nested, dict) else {}
    values = {
        "architectures": document.get("architectures"),
        "model_type": document.get("model_type"),
        "tie_word_embeddings": document.get("tie_word_embeddings", text.get("tie_word_embeddings")),
    }
    for name, (is_valid, rule) in _CONFIG_RULES.items():
        if values[name] is not None and not is_valid(values[name]):
            msg = f"{str(file)!r} has {name} {shown(values[name])}, it is {rule}; save the checkpoint again"
            raise ConfigInvalid(msg)
    return {name: value for name, value in values.items() if value is not None}


_CONFIG_RULES: Final = {
    "architectures": (
        lambda value: isinstance(value, list) and all(isinstance(v, str) for v in value),
        "a list of names",
    ),
    "model_type": (lambda value: isinstance(value, str), "a name"),
    "tie_word_embeddings": (lambda value: isinstance(value, bool), "true or false"),
}


# Files.


def _read_json(file: Path, *, limit_bytes: int, error: type[CheckpointError]) -> dict[str, Any]:
    """A bounded JSON object."""
    try:
        raw = read_bounded(file, limit_bytes)
    except OSError as cause:
        raise error(f"file {str(file)!r} cannot be read: {cause.strerror}; save the checkpoint again") from cause
    try:
        document = decode_json(raw)
    except ValueError as cause:
        raise error(f"file {str(file)!r}: {cause}; save the checkpoint again") from cause
    if not isinstance(document, dict):
        raise error(f"file {str(file)!r} is not a JSON object; save the checkpoint again")
    return document
