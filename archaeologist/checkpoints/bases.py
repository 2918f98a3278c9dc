"""Finds the base model of an adapter on this machine. A name on a hub is none: nothing is fetched."""

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from msgspec import Struct

from archaeologist.checkpoints.fingerprint import fingerprint
from archaeologist.checkpoints.index import CheckpointIndex, read_index
from archaeologist.errors import AdapterBaseUnfit, CheckpointError, PathOutsideRoot


class FoundBase(Struct, frozen=True):
    """Where a base lies, and what it holds."""

    path: str
    fingerprint: str


def find_base(index: CheckpointIndex, candidates: Iterable[Path], *, allowed: Sequence[Path] = ()) -> FoundBase | None:
    """The first of the candidates that is a model; None for a checkpoint that is no adapter, or where none is.

    Args:
        index: The checkpoint's.
        candidates: What the settings and adapter_config.json name; they may be missing.
        allowed: As for ``read_index``.
    """
    for candidate in candidates if index.adapter else ():
        with contextlib.suppress(CheckpointError, PathOutsideRoot):
            return examine_base(candidate, allowed=allowed)
    return None


def examine_base(path: Path, *, allowed: Sequence[Path] = ()) -> FoundBase:
    """A model that adapters change.

    Raises:
        CheckpointError: It cannot be read.
        AdapterBaseUnfit: It is an adapter itself.
    """
    found = read_index(path, allowed=allowed)
    if found.adapter is not None:
        msg = f"base {found.path!r} is an adapter too, a base is a model; name that"
        raise AdapterBaseUnfit(msg)
    return FoundBase(found.path, fingerprint(found))
