"""Which files make up a checkpoint: found by name, kept inside their folder, anything else refused with a remedy.

Covers what transformers saves and has saved: one file or shards with their index, as safetensors or by ``torch.save``.
Nothing but the index's JSON is read here.
"""

import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, Literal

from msgspec import Struct

from archaeologist.checkpoints.header import MAX_HEADER_BYTES, decode_json, shown
from archaeologist.errors import (
    CheckpointEmpty,
    CheckpointError,
    CheckpointFormatUnsupported,
    CheckpointMissing,
    IndexInvalid,
    PathOutsideRoot,
    ShardMissing,
)
from archaeologist.files import read_bounded
from archaeologist.paths import is_under

SINGLE: Final = "model.safetensors"
SHARDED: Final = "model.safetensors.index.json"
TORCH_SINGLE: Final = "pytorch_model.bin"
TORCH_SHARDED: Final = "pytorch_model.bin.index.json"

ADAPTERS: Final = ("adapter_model.safetensors", "adapter_model.bin")
DISTRIBUTED: Final = ".metadata"
DISTRIBUTED_SUFFIX: Final = ".distcp"
DISTRIBUTED_FOLDERS: Final = "pytorch_model_fsdp_*"
"""Where accelerate puts a distributed checkpoint within the Trainer's."""
SAFETENSORS: Final = ".safetensors"
TORCH_SUFFIXES: Final = (".bin", ".pt", ".pth", ".ckpt")
"""Of files that ``torch.save`` wrote."""
WEIGHT_SUFFIXES: Final = (SAFETENSORS, *TORCH_SUFFIXES)

TRAINER_FILES: Final = ("optimizer*", "scheduler*", "rng_state*", "scaler*", "training_args*")
"""A trainer's own state: large or pickled, and never opened."""

MAX_OPENED_BYTES: Final = 128_000_000
"""Of a file that is neither weights nor a trainer's; the largest known tokenizer takes 35 MB."""

_WEIGHTS: Final = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack")

_LONGEST_FILE_NAME: Final = 255

_INSTEAD: Final = (
    (("model-*-of-*.safetensors",), "shards without their index", f"copy {SHARDED} beside them"),
    (("pytorch_model-*-of-*.bin",), "shards without their index", f"copy {TORCH_SHARDED} beside them"),
    (("pytorch_model_fsdp*", f"*{DISTRIBUTED_SUFFIX}"), "FSDP shards without their .metadata", "copy it beside them"),
    (("global_step*", "*_model_states.pt"), "ZeRO shards", "join them with zero_to_fp32.py --safe_serialization"),
    (("*.safetensors",), "weights under another name", "name that file itself instead of its folder"),
    (("*.gguf",), "GGUF weights", "analyse the checkpoint that they were made from"),
    (("*.h5", "*.msgpack"), "TensorFlow or Flax weights", "convert them to safetensors"),
    (TRAINER_FILES, "a trainer's own state", "wait until the model is saved as well, or save it with save_model"),
    (("*.bin", "*.pt", "*.pth", "*.ckpt"), "weights under another name", "name that file itself instead of its folder"),
)
"""What lies in a folder instead of weights that are read: patterns, kind, remedy. The first that matches is named."""


Format = Literal["safetensors", "pytorch", "adapter", "distributed"]


class Layout(Struct, frozen=True, kw_only=True):
    """The files of a checkpoint."""

    folder: Path
    format: Format
    files: dict[str, Path]
    """Weight files: the name in the folder → the resolved path."""
    metadata: Path | None = None
    """Of a distributed checkpoint."""
    weight_map: dict[str, str] | None = None
    """With shards: tensor → the name of its shard."""


def find_layout(found: Path, roots: Sequence[Path]) -> Layout:
    """The files of a checkpoint.

    Args:
        found: The resolved folder, or a single weight file.
        roots: Where links may lead.

    Raises:
        CheckpointError: There are no such files, or they cannot be read; see ``read_index``.
        PathOutsideRoot: A link leads out of the roots.
    """
    if not found.is_dir():
        return _named(found)
    # In the order of transformers: with several, the single file wins, and safetensors before pickles.
    for single, sharded in ((SINGLE, SHARDED), (TORCH_SINGLE, TORCH_SHARDED)):
        if os.path.lexists(found / single):
            return Layout(folder=found, format=_format(single), files={single: inside(found, single, roots)})
        if os.path.lexists(found / sharded):
            weight_map = _read_weight_map(inside(found, sharded, roots), suffix=Path(single).suffix)
            files = {name: inside(found, name, roots) for name in sorted(set(weight_map.values()))}
            return Layout(folder=found, format=_format(single), files=files, weight_map=weight_map)
    for name in ADAPTERS:
        if os.path.lexists(found / name):
            return Layout(folder=found, format="adapter", files={name: inside(found, name, roots)})
    for folder in (found, *sorted(found.glob(DISTRIBUTED_FOLDERS))[:1]):
        if os.path.lexists(folder / DISTRIBUTED):
            return _distributed(found, folder, roots)
    raise _no_weights(found)


def _named(file: Path) -> Layout:
    """A single weight file that was named itself."""
    if file.suffix not in WEIGHT_SUFFIXES:
        msg = (
            f"checkpoint {str(file)!r} is a file of another kind; name a folder or a file that ends in"
            f" {', '.join(WEIGHT_SUFFIXES)}"
        )
        raise CheckpointFormatUnsupported(msg)
    if any(fnmatchcase(file.name, pattern) for pattern in TRAINER_FILES):
        msg = f"file {str(file)!r} is a trainer's own state, which is never opened; name the model's folder"
        raise CheckpointFormatUnsupported(msg)
    return Layout(folder=file.parent, format=_format(file.name), files={file.name: file})


def _distributed(found: Path, folder: Path, roots: Sequence[Path]) -> Layout:
    """Every file that the folder has, so that none that is read later leads elsewhere."""
    prefix = "" if folder == found else f"{folder.name}/"
    names = sorted(name for name in os.listdir(folder) if name.endswith(DISTRIBUTED_SUFFIX))  # noqa: PTH208
    files = {prefix + name: inside(found, prefix + name, roots) for name in names}
    return Layout(folder=found, format="distributed", files=files, metadata=inside(found, prefix + DISTRIBUTED, roots))


def _format(name: str) -> Format:
    return "safetensors" if name.endswith(SAFETENSORS) else "pytorch"


def resolved(path: Path) -> Path:
    """A checkpoint's path with every link followed.

    Raises:
        CheckpointMissing: Nothing is there.
        CheckpointError: A folder on the way may not be searched.
    """
    try:
        return path.resolve(strict=True)
    except PermissionError as error:
        msg = f"checkpoint {str(path)!r} cannot be reached: {error.strerror}; give this user the right to read it"
        raise CheckpointError(msg) from error
    except (OSError, ValueError, RuntimeError) as error:
        msg = f"checkpoint {str(path)!r} is not there ({error}); name a folder with {SINGLE} or {SHARDED}"
        raise CheckpointMissing(msg) from error


def inside(folder: Path, name: str, roots: Sequence[Path]) -> Path:
    """A file of the folder, resolved.

    Raises:
        ShardMissing: It is not there.
        PathOutsideRoot: It leads out of the roots.
        CheckpointError: Its links lead in a circle.
    """
    try:
        file = (folder / name).resolve(strict=True)
    except FileNotFoundError as error:
        msg = (
            f"file {name!r} of checkpoint {str(folder)!r} is not there; copy the checkpoint whole, or wait until it is"
        )
        raise ShardMissing(msg) from error
    except (OSError, RuntimeError) as error:
        msg = f"file {name!r} of checkpoint {str(folder)!r} cannot be resolved: {error}; copy the checkpoint whole"
        raise CheckpointError(msg) from error
    if not is_under(file, roots):
        msg = (
            f"file {name!r} of checkpoint {str(folder)!r} leads to {str(file)!r}, links stay in the folder or under an"
            " allowed root; copy the file or name its folder in the setting 'allowed'"
        )
        raise PathOutsideRoot(msg)
    return file


def check_contents(folder: Path, roots: Sequence[Path]) -> None:
    """Passes a checkpoint whose files a library may open by name: whatever is there, it reads whole, through any link.

    Args:
        folder: Resolved; a single weight file has no contents.
        roots: Besides the folder, where links may lead.

    Raises:
        PathOutsideRoot: A link leads out of them.
        CheckpointError: Something is neither file nor folder, or too large to be read whole.
    """
    names = sorted(os.listdir(folder)) if folder.is_dir() else []  # noqa: PTH208 -- names are what is looked at
    for name in names:
        if any(fnmatchcase(name, pattern) for pattern in (*TRAINER_FILES, "trainer_state.json")):
            continue
        file = inside(folder, name, (folder, *roots))
        if not (file.is_file() or file.is_dir()):
            msg = f"file {name!r} of checkpoint {str(folder)!r} is a pipe, a socket or a device; take it away"
            raise CheckpointError(msg)
        is_weights = any(fnmatchcase(name, pattern) for pattern in _WEIGHTS)
        if not is_weights and file.is_file() and (size := file.stat().st_size) > MAX_OPENED_BYTES:
            msg = (
                f"file {name!r} of checkpoint {str(folder)!r} has {size} bytes, at most {MAX_OPENED_BYTES} are read;"
                " take it away"
            )
            raise CheckpointError(msg)


def _read_weight_map(file: Path, *, suffix: str) -> dict[str, str]:
    try:
        document = decode_json(read_bounded(file, MAX_HEADER_BYTES))
    except (OSError, ValueError) as error:
        msg = f"index {str(file)!r} is not a JSON object: {error}; save the checkpoint again"
        raise IndexInvalid(msg) from error
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        msg = (
            f"index {str(file)!r} has weight_map {shown(weight_map)}, it needs tensor names with their shards;"
            " save the checkpoint again"
        )
        raise IndexInvalid(msg)
    for name, shard in weight_map.items():
        if not _is_shard_name(shard, suffix):
            msg = (
                f"index {str(file)!r} puts {shown(name)} into {shown(shard)}, a shard is a plain {suffix} file name;"
                " save the checkpoint again"
            )
            raise IndexInvalid(msg)
    return weight_map


def _is_shard_name(shard: object, suffix: str) -> bool:
    return (
        isinstance(shard, str)
        and len(shard) <= _LONGEST_FILE_NAME
        and shard.isprintable()
        and shard.endswith(suffix)
        and not {"/", "\\"} & set(shard)
    )


def _no_weights(folder: Path) -> CheckpointError:
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208
    except OSError as error:
        msg = f"checkpoint {str(folder)!r} cannot be listed: {error.strerror}; give this user the right to read it"
        return CheckpointError(msg)
    for patterns, kind, remedy in _INSTEAD:
        for name in names:
            if any(fnmatchcase(name, pattern) for pattern in patterns):
                msg = f"checkpoint {str(folder)!r} holds {kind} ({shown(name)}), {SINGLE} or shards are read; {remedy}"
                return CheckpointFormatUnsupported(msg)
    held = ", ".join(shown(name) for name in names[:5]) or "nothing"
    msg = f"checkpoint {str(folder)!r} holds {held}, it needs {SINGLE} or {SHARDED}; wait until it is saved whole"
    return CheckpointEmpty(msg)
