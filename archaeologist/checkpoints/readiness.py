"""Whether a checkpoint is written whole, from what lies on the disk; nothing is ever written into its folder.

Trainers write in place, and nothing says "done" but the order in which they write. The Hugging Face Trainer's last file
is ``trainer_state.json``: with it there, not older than the weights, and the weights as their headers say, a
checkpoint is whole at once. Any other is whole when its weights are as their headers say and nothing of it has changed
for a while. A folder that is not whole says why, as the error that reading it would give.

Looked at by whoever must not be early: the watcher before it announces, the daemon before it analyses. Waiting is
theirs.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from archaeologist.checkpoints.index import read_index
from archaeologist.checkpoints.layout import resolved
from archaeologist.checkpoints.steps import TRAINER_STATE, is_numbered
from archaeologist.errors import CheckpointEmpty, CheckpointError, CheckpointMissing, PathOutsideRoot

MAX_FILES: Final = 10_000
"""Of a checkpoint's folder that are looked at."""

_TRAINER_MARKS: Final = ("optimizer*", "scheduler*", "rng_state*", "scaler*")
"""What the Trainer writes between the weights and its state."""
_SAVED_WITH: Final = "training_args*"
"""Also beside a model that ``save_model`` wrote, which has no ``trainer_state.json``."""


class Mark(NamedTuple):
    """What changes when a file is written to."""

    name: str
    size: int
    modified_ns: int
    inode: int


class Look(NamedTuple):
    """A checkpoint as one look found it."""

    marks: tuple[Mark, ...]
    """Of every file, by name; equal marks: nothing was written in between."""
    lacking: CheckpointError | PathOutsideRoot | None
    """Why it is not whole yet, or cannot be read at all."""
    is_sealed: bool
    """Its trainer's last file is there."""
    touched_ns: int
    """When a file of it was last written or put in its place, also where it was given the times of an original."""


class Stillness:
    """Since when a checkpoint has not changed."""

    def __init__(self) -> None:
        self._marks: tuple[Mark, ...] | None = None
        self._since = 0.0

    def seconds(self, marks: tuple[Mark, ...], *, now: float) -> float:
        """How long these have been the marks; 0 where they are new."""
        if marks != self._marks:
            self._marks, self._since = marks, now
        return now - self._since


def is_ready(found: Look, *, still_seconds: float, quiet_seconds: float) -> bool:
    """Whether a checkpoint may be read.

    Args:
        found: The newest look.
        still_seconds: How long nothing of it has changed.
        quiet_seconds: How long that must be where no trainer's last file says more.
    """
    return found.lacking is None and (found.is_sealed or still_seconds >= quiet_seconds)


def look(path: Path, *, allowed: Sequence[Path] = ()) -> Look:
    """A checkpoint as it is now: a folder, or a single weight file. Blocking; reads headers only.

    Args:
        path: It may be in the middle of being written.
        allowed: As for ``read_index``.

    Raises:
        CheckpointMissing: It is not there (any more).
    """
    found = resolved(path)
    files = list(_statuses(found))
    marks = _marks(files)
    lacking = _lacking(found, marks, allowed)
    if lacking is not None and not found.exists():
        msg = f"checkpoint {str(path)!r} went away while it was looked at; raise save_total_limit"
        raise CheckpointMissing(msg) from lacking
    # Marks taken before the headers were read: what is written meanwhile shows in the next look.
    touched_ns = max((max(status.st_mtime_ns, status.st_ctime_ns) for _, status in files), default=0)
    return Look(marks, lacking, is_sealed=_is_sealed(marks), touched_ns=touched_ns)


def marks_of(found: Path) -> tuple[Mark, ...]:
    """The marks of a checkpoint's files, without reading any; none where it is not there."""
    return _marks(_statuses(found))


def _marks(files: Iterable[tuple[str, os.stat_result]]) -> tuple[Mark, ...]:
    return tuple(sorted(Mark(name, found.st_size, found.st_mtime_ns, found.st_ino) for name, found in files))


def _statuses(found: Path) -> Iterator[tuple[str, os.stat_result]]:
    files = _files(found) if found.is_dir() else iter([(found.name, found)])
    for name, file in islice(files, MAX_FILES):
        # One that is gone, or a link that leads nowhere, is left out: reading the index says which.
        with contextlib.suppress(OSError):
            yield name, file.stat()


def _lacking(found: Path, marks: Sequence[Mark], allowed: Sequence[Path]) -> CheckpointError | PathOutsideRoot | None:
    try:
        read_index(found, allowed=allowed)
    except (CheckpointError, PathOutsideRoot) as error:
        return error
    if _is_trainers(found.name, marks) and not any(mark.name == TRAINER_STATE for mark in marks):
        return CheckpointEmpty(
            f"checkpoint {str(found)!r} has no {TRAINER_STATE}, which its trainer writes last; wait until it is whole"
        )
    return None


def _is_trainers(folder: str, marks: Sequence[Mark]) -> bool:
    """Whether the folder is one that the Trainer finishes with its state."""
    if any(fnmatchcase(mark.name, pattern) for mark in marks for pattern in _TRAINER_MARKS):
        return True
    return is_numbered(folder) and any(fnmatchcase(mark.name, _SAVED_WITH) for mark in marks)


def _is_sealed(marks: Sequence[Mark]) -> bool:
    """Whether the trainer's last file is there and newer than the weights: what an earlier run left has an old one."""
    state = next((mark for mark in marks if mark.name == TRAINER_STATE), None)
    weights = [mark.modified_ns for mark in marks if mark.name.endswith((".safetensors", ".bin", ".distcp"))]
    return state is not None and state.size > 0 and all(modified <= state.modified_ns for modified in weights)


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            file = Path(place, name)
            yield str(file.relative_to(folder)), file
