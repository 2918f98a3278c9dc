"""A checkpoint with some blocks put back to another checkpoint's values, for evaluating again.

A block that moves with a skill need not carry it. Putting it back and evaluating again is what supports that it does.
The weight files are copied with their headers as they are, and the blocks' bytes written over at their places: so
memory stays constant, and everything else is the same to the bit. Called by ``restore-block``; runs no model.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from archaeologist.artifacts.output import whole_folder
from archaeologist.artifacts.store import unwritable
from archaeologist.checkpoints.fingerprint import fingerprint
from archaeologist.checkpoints.index import CheckpointIndex, TensorEntry, read_index
from archaeologist.checkpoints.layout import SHARDED, SINGLE, TORCH_SHARDED, TRAINER_FILES, WEIGHT_SUFFIXES
from archaeologist.checkpoints.names import Block, group
from archaeologist.checkpoints.reader import Reader
from archaeologist.checkpoints.steps import TRAINER_STATE, is_numbered
from archaeologist.errors import (
    BlockMismatch,
    BlockUnknown,
    CheckpointError,
    CheckpointFormatUnsupported,
    CheckpointMissing,
    UsageError,
)

CHUNK_BYTES: Final = 8 * 1024 * 1024
MOST_NAMED: Final = 12
PROVENANCE: Final = "restored_blocks.json"

_NOT_COPIED: Final = (
    *TRAINER_FILES,
    TRAINER_STATE,
    TORCH_SHARDED,
    *(f"*{suffix}" for suffix in (*WEIGHT_SUFFIXES, ".pth", ".gguf")),
    PROVENANCE,
)


class Restored(Struct, frozen=True, kw_only=True):
    """What was done; also the content of ``restored_blocks.json`` beside the weights."""

    checkpoint: str
    checkpoint_fingerprint: str
    reference: str
    reference_fingerprint: str
    blocks: tuple[str, ...]
    """Those asked for, and the one that is tied to one of them."""
    tensors: tuple[str, ...]
    """As the checkpoint names them."""
    bytes: int


class _Replacement(Struct, frozen=True):
    """A tensor of the checkpoint and the one that takes its place."""

    block: str
    target: TensorEntry
    source: TensorEntry


def restore_blocks(checkpoint: Path, reference: Path, *, blocks: Sequence[str], output: Path) -> Restored:
    """Writes the checkpoint with these blocks taken from the reference, whole or not at all.

    Args:
        checkpoint: Safetensors, in one file or in shards.
        reference: Any form that is read, with the same blocks in the same dtypes and shapes.
        blocks: Names as artifacts have them: ``model.layers.15``.
        output: A folder that is not there yet.

    Raises:
        BlockUnknown: The checkpoint has no such block.
        BlockMismatch: The reference has not the same tensors in it, in the same dtypes and shapes.
        CheckpointError: One of the two cannot be read, or changed meanwhile.
        UsageError: The output is there already, or lies within a checkpoint.
        ArtifactUnwritable: The file system refuses.
    """
    _check_output(output)
    target, source = _index(checkpoint), read_index(reference)
    if target.format != "safetensors":
        remedy = "merge it into its base (merge_and_unload)" if target.format == "adapter" else "save it as safetensors"
        msg = f"checkpoint {target.path!r} is read as {target.format}, only safetensors are rewritten; {remedy} first"
        raise CheckpointFormatUnsupported(msg)
    with Reader(target) as ours, Reader(source) as theirs, whole_folder(output) as folder:
        replacements = _replacements(target, source, blocks=blocks, reader=ours)
        done = Restored(
            checkpoint=target.path,
            checkpoint_fingerprint=fingerprint(target),
            reference=source.path,
            reference_fingerprint=fingerprint(source),
            blocks=tuple(dict.fromkeys(one.block for one in replacements)),
            tensors=tuple(one.target.name for one in replacements),
            bytes=sum(one.target.size for one in replacements),
        )
        try:
            _write(target, replacements, reader=theirs, folder=folder)
            _copy_others(Path(target.path), folder, is_sharded=all(Path(file).name != SINGLE for file in target.files))
            (folder / PROVENANCE).write_bytes(msgspec.json.format(msgspec.json.encode(done), indent=2) + b"\n")
        except FileNotFoundError as error:
            msg = f"checkpoint {target.path!r} went away while it was copied; copy it elsewhere first"
            raise CheckpointMissing(msg) from error
        except OSError as error:
            raise unwritable(output, error) from error
        for reader in (ours, theirs):
            reader.check_unwritten()
    return done


def _index(checkpoint: Path) -> CheckpointIndex:
    index = read_index(checkpoint)
    names = [Path(file).name for file in index.files]
    if len(set(names)) < len(names):
        msg = f"checkpoint {index.path!r} has weight files of the same name in several places; copy it into one folder"
        raise CheckpointError(msg)
    return index


def _check_output(output: Path) -> None:
    """Raises where writing there would be writing into somebody's checkpoint."""
    for folder in Path(os.path.realpath(output)).parents:
        held = next((name for name in (SINGLE, SHARDED, TRAINER_STATE) if os.path.lexists(folder / name)), None)
        if held or is_numbered(folder.name):
            why = f"it holds {held}" if held else "of its name"
            msg = f"--output {str(output)!r} lies in a checkpoint's folder, {str(folder)!r} ({why}); name one outside"
            raise UsageError(msg)


# Which tensors.


def _replacements(
    target: CheckpointIndex, source: CheckpointIndex, *, blocks: Sequence[str], reader: Reader
) -> list[_Replacement]:
    ours, theirs = group(target.tensors), group(source.tensors)
    found: dict[str, _Replacement] = {}
    for name in blocks:
        if name not in ours:
            raise _unknown(name, target, ours)
        for within, stored in ours[name].tensors.items():
            other = _counterpart(name, within, target=target.tensors[stored], source=source, theirs=theirs)
            found[stored] = _Replacement(name, target.tensors[stored], other)
        if more := [within for within in theirs[name].tensors if within not in ours[name].tensors]:
            msg = (
                f"block {name!r} of the reference {source.path!r} has {_listed(more)} as well, {target.path!r} has not;"
                " name a reference of the same architecture"
            )
            raise BlockMismatch(msg)
    for twin in _tied(target, list(found.values()), ours, reader):
        found.setdefault(twin.target.name, twin)
    return list(found.values())


def _counterpart(
    name: str, within: str, *, target: TensorEntry, source: CheckpointIndex, theirs: dict[str, Block]
) -> TensorEntry:
    stored = theirs[name].tensors.get(within) if name in theirs else None
    if stored is None:
        msg = (
            f"the reference {source.path!r} has no tensor {within!r} in a block {name!r}; name a reference of the same"
            " architecture"
        )
        raise BlockMismatch(msg)
    other = source.tensors[stored]
    if (other.dtype, other.shape) != (target.dtype, target.shape):
        msg = (
            f"tensor {target.name!r} is {target.dtype} {list(target.shape)} in the checkpoint and {other.dtype}"
            f" {list(other.shape)} in the reference, both must be the same; save the reference in {target.dtype}"
        )
        raise BlockMismatch(msg)
    return other


def _unknown(name: str, target: CheckpointIndex, ours: dict[str, Block]) -> BlockUnknown:
    tied = target.config and target.config.get("tie_word_embeddings")
    kinds = [block.name for block in ours.values() if block.layer_type == "embedding"]
    hint = f"; its head is tied to {_listed(kinds)}" if tied and kinds else ""
    return BlockUnknown(
        f"checkpoint {target.path!r} has no block {name[:200]!r}{hint}; there are {_listed(list(ours))}"
    )


def _listed(names: Sequence[str]) -> str:
    if len(names) <= MOST_NAMED:
        return ", ".join(names)
    return f"{', '.join(names[: MOST_NAMED - 2])}, … {names[-1]} ({len(names)})"


def _tied(
    target: CheckpointIndex, chosen: list[_Replacement], ours: dict[str, Block], reader: Reader
) -> Iterator[_Replacement]:
    """Where embedding and head are tied and both are stored: the other of the two, which must stay the same."""
    if not (target.config and target.config.get("tie_word_embeddings")):
        return
    ends = [block for block in ours.values() if block.layer_type in {"embedding", "output"}]
    for one in chosen:
        if one.block not in {block.name for block in ends}:
            continue
        for block in ends:
            for stored in block.tensors.values():
                entry = target.tensors[stored]
                if block.name != one.block and _is_equal(reader, entry, one.target):
                    yield _Replacement(block.name, entry, one.source)


def _is_equal(reader: Reader, one: TensorEntry, other: TensorEntry) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    pairs = zip(_chunks(reader, one), _chunks(reader, other), strict=True)
    # Of bytes, because two views are compared element by element.
    return all(bytes(first) == bytes(second) for (_, first), (_, second) in pairs)


# Bytes.


def _write(target: CheckpointIndex, replacements: Sequence[_Replacement], *, reader: Reader, folder: Path) -> None:
    is_file = not Path(target.path).is_dir()
    for file in target.files:
        copy = folder / (SINGLE if is_file else Path(file).name)
        shutil.copyfile(file, copy)
        with copy.open("r+b") as written:
            for one in replacements:
                if one.target.file == file:
                    for start, part in _chunks(reader, one.source):
                        written.seek(one.target.offset + start)
                        written.write(part)
            written.flush()
            os.fsync(written.fileno())


def _chunks(reader: Reader, entry: TensorEntry) -> Iterator[tuple[int, memoryview]]:
    """A tensor's bytes, from the first on; each part is gone with the next."""
    buffer = bytearray(min(CHUNK_BYTES, entry.size))
    for start in range(0, entry.size, CHUNK_BYTES):
        part = memoryview(buffer)[: min(CHUNK_BYTES, entry.size - start)]
        reader.read(entry, start, part)
        yield start, part


def _copy_others(source: Path, folder: Path, *, is_sharded: bool) -> None:
    """What lies beside the weights and is the model's: configuration, tokenizer, the shards' index."""
    left_out = _NOT_COPIED if is_sharded else (*_NOT_COPIED, SHARDED)
    for entry in sorted((source if source.is_dir() else source.parent).iterdir()):
        if entry.is_file() and not any(fnmatchcase(entry.name, pattern) for pattern in left_out):
            shutil.copyfile(entry, folder / entry.name)
