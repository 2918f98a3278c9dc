"""Which training step a checkpoint belongs to, from what lies on disk."""

import os
import re
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from archaeologist.checkpoints.layout import WEIGHT_SUFFIXES
from archaeologist.files import read_bounded

TRAINER_STATE: Final = "trainer_state.json"
MAX_TRAINER_STATE_BYTES: Final = 64_000_000
"""Its log grows with the run; only one number of it is decoded."""

_NAME: Final = re.compile(r"checkpoint-([0-9]{1,15})")


class _TrainerState(Struct, frozen=True):
    global_step: Annotated[int, Meta(ge=0, le=10**15)]


_state: Final = msgspec.json.Decoder(_TrainerState)
"""Built while this is imported, as ``contracts.prepared`` says."""


def is_numbered(name: str) -> bool:
    """Whether a folder's name is that of a trainer's checkpoint, ``checkpoint-{step}``."""
    return _NAME.fullmatch(name) is not None


def step_in_name(path: Path) -> int | None:
    """The step in the folder's name ``checkpoint-{step}``; None where it has none. The path need not be there."""
    match = _NAME.fullmatch(_folder_of(path).name)
    return int(match[1]) if match else None


def step_of(path: Path) -> int | None:
    """The step: the folder's name ``checkpoint-{step}``, else ``global_step`` of trainer_state.json, else None.

    Args:
        path: The checkpoint's folder, or a weight file in it.
    """
    named = step_in_name(path)
    if named is not None:
        return named
    try:
        state = read_bounded(_folder_of(path) / TRAINER_STATE, MAX_TRAINER_STATE_BYTES)
        return _state.decode(state).global_step
    except (OSError, ValueError, RecursionError):
        # Not there, not readable, not a trainer's: the caller asks for the step to be named.
        return None


def _folder_of(path: Path) -> Path:
    is_file = path.suffix in WEIGHT_SUFFIXES and not os.path.isdir(path)  # noqa: PTH112 -- Path.is_dir may raise
    return path.parent if is_file else path
