"""From what a request says to a checkpoint on this machine: path mapping, steps, allowed roots, content.

Blocking file work without the bus; admission calls it in a thread.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from msgspec.structs import replace

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.checkpoints.bases import find_base
from archaeologist.checkpoints.fingerprint import fingerprint
from archaeologist.checkpoints.index import CheckpointIndex, read_index
from archaeologist.checkpoints.pins import pin, pin_name, renew
from archaeologist.checkpoints.steps import step_in_name, step_of
from archaeologist.errors import CheckpointMissing, PathOutsideRoot, PinImpossible, StepUnknown
from archaeologist.paths import resolve_under
from archaeologist.settings import PathMapping, Settings
from contracts.messages import Side


class Located(NamedTuple):
    """A checkpoint found, and what could not be done for it."""

    side: Side
    notes: tuple[str, ...] = ()


def resolve(settings: Settings, folder: CampaignFolder, *, path: str | None, step: int | None) -> tuple[Path, int]:
    """The resolved folder and the step of a checkpoint given by path, by step, or both; it need not be there.

    Raises:
        PathOutsideRoot: It lies under no allowed root.
        StepUnknown: Neither message, name nor trainer_state.json gives the step.
    """
    written = Path(mapped(path, settings.paths)) if path is not None else Path(f"checkpoint-{step}")
    found = resolve_under(_candidate(folder, written), settings.allowed_roots)
    known = step if step is not None else step_of(found)
    if known is None and not _is_there(found):
        msg = f"checkpoint {str(found)!r} is not there; it must be there when the message arrives"
        raise CheckpointMissing(msg)
    if known is None:
        msg = (
            f"step of {str(found)!r} is unknown: no checkpoint_step in the message, no number in the folder's name, no"
            " global_step in trainer_state.json; send checkpoint_step"
        )
        raise StepUnknown(msg)
    return found, known


def contradiction(path: str | None, step: int | None) -> str | None:
    """What to say where a step was sent with a path whose folder's name has another: the step that was sent counts."""
    named = step_in_name(Path(path)) if path is not None and step is not None else None
    if named in {None, step}:
        return None
    return f"analysed as step {step}, as it was sent, although the folder's name says {named}: {path}"


def output_place(settings: Settings, path: str) -> Path:
    """Where a request's ``output_path`` leads, which is relative to the root.

    Raises:
        PathOutsideRoot: Out of the allowed roots.
    """
    return resolve_under(Path(mapped(path, settings.paths)), settings.allowed_roots)


def mapped(path: str, mappings: tuple[PathMapping, ...]) -> str:
    """The path on this machine: the longest matching prefix of ``[[paths]]`` rewritten, by whole components."""
    pure = PurePosixPath(path)
    matching = [mapping for mapping in mappings if pure.is_relative_to(mapping.source)]
    if not matching:
        return path
    mapping = max(matching, key=lambda item: len(PurePosixPath(item.source).parts))
    if PurePosixPath(mapping.to).is_relative_to(mapping.source) and pure.is_relative_to(mapping.to):
        # It was rewritten already: paths are looked at by intake, admission and the worker.
        return path
    return str(PurePosixPath(mapping.to) / pure.relative_to(mapping.source))


def examine(
    path: Path, step: int, *, settings: Settings, recorded: Path | None = None, base: str | None = None
) -> Side:
    """A checkpoint's side of a job: index read, content fingerprinted.

    Args:
        path: Where the bytes are read.
        step: Its step.
        settings: For the allowed roots of symbolic links inside the folder.
        recorded: Its path as the artifact names it; ``path`` by default.
        base: Where the settings say that an adapter's base lies; else where its own configuration says, if allowed.

    Raises:
        CheckpointError: It cannot be read, with the code that says why.
    """
    index = read_index(path, allowed=settings.allowed_roots)
    found = find_base(index, _bases(index, base, settings), allowed=settings.allowed_roots)
    return Side(
        path=str(recorded or path),
        step=step,
        read_path=str(path),
        fingerprint=fingerprint(index),
        base_path=found.path if found else None,
        base_fingerprint=found.fingerprint if found else None,
    )


def _bases(index: CheckpointIndex, named: str | None, settings: Settings) -> Iterator[Path]:
    """Where an adapter's base may lie: where the operator says, and under an allowed root where the adapter says."""
    if named is not None:
        yield Path(named).expanduser()
    told = index.adapter.base if index.adapter else None
    if told is not None and Path(mapped(told, settings.paths)).is_absolute():
        with contextlib.suppress(PathOutsideRoot):
            yield resolve_under(Path(mapped(told, settings.paths)), settings.allowed_roots)


def here(side: Side, settings: Settings) -> Side:
    """A side that another machine located, with its bytes where this one has them."""
    return replace(side, read_path=mapped(side.read_path, settings.paths))


def base(written: str, *, settings: Settings) -> Side:
    """The base checkpoint of the settings: the operator named it, so it may lie anywhere; its step is 0 by default.

    Raises:
        CheckpointError: It cannot be read.
        OSError: It is not there.
    """
    found = Path(written).expanduser().resolve(strict=True)
    return examine(found, step_of(found) or 0, settings=settings)


def pinned(side: Side, folder: CampaignFolder, *, settings: Settings, reason: str | None = None) -> Located:
    """The side with its bytes held by hard links, or read in place with a note where that is impossible.

    Args:
        side: A checkpoint.
        folder: The campaign that pins it.
        settings: For roots and what to do where pinning is impossible.
        reason: Why no new pin is made, where none is; one that is there serves all the same.

    Raises:
        PinImpossible: Where the settings say that such a checkpoint is refused.
    """
    source = Path(side.read_path)
    if not settings.pins.enabled or source.is_relative_to(folder.pins):
        return Located(side)
    try:
        name = pin_name(side.step, side.fingerprint)
        if reason is not None:
            held = _pin_there(side, folder, name, reason=reason)
        else:
            held = pin(source, folder.pins, name, allowed=settings.allowed_roots)
    except PinImpossible as error:
        if settings.pins.when_impossible == "refuse":
            raise
        return Located(side, (str(error),))
    return Located(replace(side, read_path=str(held)))


def _pin_there(side: Side, folder: CampaignFolder, name: str, *, reason: str) -> Path:
    """The checkpoint's pin, if it has one already.

    Raises:
        PinImpossible: It has none, and for a reason none is made.
    """
    if renew(folder.pins, name):
        return folder.pins / name
    msg = f"checkpoint {side.path!r} is not pinned: {reason}; raise that, or keep the checkpoint until it is analysed"
    raise PinImpossible(msg)


def _candidate(folder: CampaignFolder, written: Path) -> Path:
    """Absolute as it is; relative to the campaign's checkpoints, else to the campaign, else to the root."""
    if written.is_absolute():
        return written
    bases = (folder.checkpoints, folder.path, folder.root)
    return next((base / written for base in bases if _is_there(base / written)), folder.checkpoints / written)


def _is_there(path: Path) -> bool:
    # Path.exists raises where a name is too long or a folder may not be searched.
    return os.path.exists(path)  # noqa: PTH110
