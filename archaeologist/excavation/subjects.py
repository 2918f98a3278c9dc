"""What of a checkpoint is analysed: the model that it holds, the change that an adapter makes, or the model with it.

An adapter alone, or beside another one, is its change: s·B·A of each weight, against the other's. Beside a whole model
it is the model that it makes of its base. What it is run as is always that model. Opens the files and says what was
chosen.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from archaeologist.checkpoints.fingerprint import fingerprint
from archaeologist.checkpoints.index import CheckpointIndex, read_index
from archaeologist.checkpoints.reader import Pace, Reader
from archaeologist.errors import (
    AdapterBaseUnfit,
    CheckpointChanged,
    CheckpointError,
    ModelUnsupported,
    PathOutsideRoot,
)
from archaeologist.excavation.adapted import Adapted, AdaptedReader, Base, changes, merged
from archaeologist.excavation.plan import Ties, find_ties
from archaeologist.excavation.walk import BlockResult, ReferenceUnreadableError
from archaeologist.paths import is_under
from archaeologist.statistics import low_rank
from contracts.artifacts import AdapterChange, AdapterInfo
from contracts.messages import Excavation, Side

What = Literal["model", "adapter_change", "adapted_model"]


class Opened(Struct, frozen=True, kw_only=True):
    """A checkpoint, open for reading and known to be the one that the job means."""

    side: Side
    index: CheckpointIndex
    reader: Reader
    base: Base | None = None
    """Of an adapter, where it was found."""

    def check_unwritten(self) -> None:
        """Nothing: numbers of two states of a checkpoint, mixed, are no analysis of either.

        Raises:
            CheckpointChanged: Its files, or its base's, were written to since they were opened.
        """
        self.reader.check_unwritten()
        if self.base is not None:
            self.base.reader.check_unwritten()

    @property
    def folder(self) -> Path:
        """Where it is read."""
        return Path(self.side.read_path)


class _Where(Struct, frozen=True):
    path: str
    read_path: str
    fingerprint: str


class Subject(Struct, frozen=True, kw_only=True):
    """What of a checkpoint is walked over."""

    what: What
    index: CheckpointIndex
    reader: Reader
    ties: Ties


class Subjects(Struct, frozen=True, kw_only=True):
    """Both sides of a walk, and how they are compared in a sentence where that is not plain."""

    target: Subject
    reference: Subject | None = None
    compared_as: str = ""


def open_side(side: Side, files: contextlib.ExitStack, excavation: Excavation, pace: Pace | None) -> Opened:
    """A checkpoint's files, and its base's.

    Raises:
        CheckpointError: They cannot be read.
        CheckpointChanged: They are not the ones that the job was made for.
    """
    opened = _open(_Where(side.path, side.read_path, side.fingerprint), files, excavation, pace)
    base = None
    if opened.index.adapter and side.base_path and side.base_fingerprint:
        base = _open(_Where(side.base_path, side.base_path, side.base_fingerprint), files, excavation, pace)
    return Opened(side=side, index=opened.index, reader=opened.reader, base=base)


def roots(excavation: Excavation) -> tuple[Path, ...]:
    """Where checkpoints, and links in them, may lead."""
    return tuple(map(Path, excavation.allowed))


def open_reference(side: Side, files: contextlib.ExitStack, excavation: Excavation, pace: Pace | None) -> Opened:
    """The same of a reference.

    Raises:
        ReferenceUnreadableError: It cannot be read, or is another one.
    """
    try:
        return open_side(side, files, excavation, pace)
    except CheckpointError as error:
        raise ReferenceUnreadableError from error


def _open(where: _Where, files: contextlib.ExitStack, excavation: Excavation, pace: Pace | None) -> Base:
    # Looked at anew: since the job was made, somebody may have put a link in a file's or the folder's place.
    index = read_index(Path(where.read_path), allowed=roots(excavation))
    if index.path != where.read_path and not is_under(Path(index.path), roots(excavation)):
        msg = f"checkpoint {where.path!r} leads to {index.path!r} now, outside the allowed roots; request it again"
        raise PathOutsideRoot(msg)
    # Opened first: whatever is written from now on is noticed, at the end at the latest.
    reader = files.enter_context(Reader(index, drop_page_cache=excavation.drop_page_cache, pace=pace))
    if (found := fingerprint(index, reader)) != where.fingerprint:
        changed = f"has fingerprint {found} and had {where.fingerprint} when the job was made"
        msg = f"checkpoint {where.path!r} {changed}; a checkpoint must not change: request it again"
        raise CheckpointChanged(msg)
    return Base(index, reader)


def choose(target: Opened, reference: Opened | None) -> Subjects:
    """What is walked over.

    Raises:
        AdapterBaseUnfit: The target is an adapter of another model than the reference.
        ReferenceUnreadableError: The reference is an adapter whose base is needed and was not found, or is another.
    """
    is_mixed = reference is not None and (target.index.adapter is None) != (reference.index.adapter is None)
    if reference is None or not is_mixed:
        return Subjects(
            target=_alone(target),
            reference=_alone(reference) if reference else None,
            compared_as=_of_changes(target, reference) if reference else "",
        )
    if target.index.adapter is not None:
        base = target.base or Base(reference.index, reference.reader)
        made = merged(target.index, target.reader, base, dtype="F32")
        which = "its base" if target.base else "the reference, which is taken for its base"
        said = f"the target is an adapter: {which} with s·B·A added, against the reference's weights"
        return Subjects(target=_subject("adapted_model", made), reference=_alone(reference), compared_as=said)
    try:
        theirs = merged(reference.index, reference.reader, _base_of(reference), dtype="F32")
    except CheckpointError as error:
        raise ReferenceUnreadableError from error
    return Subjects(
        target=_alone(target),
        reference=_subject("adapted_model", theirs),
        compared_as="the reference is an adapter: the target's weights against its base with s·B·A added",
    )


def runnable(opened: Opened) -> Opened:
    """The checkpoint as a model that can be run, with its folder in ``side``: an adapter as its base with the change.

    Raises:
        AdapterBaseUnfit: The base was not found, or is another.
        ModelUnsupported: One weight file was named, so that neither configuration nor tokenizer was.
    """
    adapter = opened.index.adapter
    if adapter is None:
        _check_folder(opened.folder)
        return opened
    base = _base_of(opened)
    _check_folder(Path(base.index.path))
    if adapter.starts_from is not None:
        msg = (
            f"adapter {opened.index.path!r} began as {adapter.starts_from}, which took its start out of the base's"
            " weights, so that the base alone is not its base; merge it into a model and analyse that"
        )
        raise AdapterBaseUnfit(msg)
    made = merged(opened.index, opened.reader, base)
    return replace(opened, index=made.index, reader=made.reader, side=replace(opened.side, read_path=base.index.path))


def exact(blocks: Iterator[BlockResult], subjects: Subjects) -> Iterator[BlockResult]:
    """The walk's blocks, the norms of two adapters' changes from their factors instead of from rounded values."""
    ours, theirs = subjects.target.reader, subjects.reference.reader if subjects.reference else None
    if not isinstance(ours, AdaptedReader) or not isinstance(theirs, AdaptedReader):
        yield from blocks
        return
    for block in blocks:
        tensors = tuple(
            replace(result, drift=low_rank.exact(result.drift, mine, other))
            if result.drift is not None
            and (mine := ours.factors_of(result.pair.target.name))
            and result.pair.reference is not None
            and (other := theirs.factors_of(result.pair.reference.name))
            else result
            for result in block.tensors
        )
        yield replace(block, tensors=tensors)


def described(opened: Opened, subject: Subject) -> AdapterInfo | None:
    """What the artifact says about an adapter; None for a model."""
    adapter = opened.index.adapter
    if adapter is None or not isinstance(subject.reader, AdaptedReader):
        return None
    reader = subject.reader
    return AdapterInfo(
        base_named=adapter.base,
        base_path=opened.side.base_path,
        base_fingerprint=opened.side.base_fingerprint,
        starts_from=adapter.starts_from,
        changes={
            change.weight: AdapterChange(
                rank=change.rank,
                scaling=change.scaling,
                l2=low_rank.norm(reader.factors(change)),
            )
            for change in adapter.changes
        },
    )


def _alone(opened: Opened) -> Subject:
    if opened.index.adapter is None:
        ties = find_ties(opened.index, opened.reader)
        return Subject(what="model", index=opened.index, reader=opened.reader, ties=ties)
    return _subject("adapter_change", changes(opened.index, opened.reader))


def _subject(what: What, made: Adapted) -> Subject:
    return Subject(what=what, index=made.index, reader=made.reader, ties=find_ties(made.index, made.reader))


def _check_folder(path: Path) -> None:
    if path.is_file():
        msg = (
            f"{str(path)!r} is one file, of which only weights and drift are read; name the folder that has it with"
            " config.json and tokenizer, to run the model"
        )
        raise ModelUnsupported(msg)


def _base_of(opened: Opened) -> Base:
    if opened.base is None:
        named = opened.index.adapter.base if opened.index.adapter else None
        msg = (
            f"adapter {opened.index.path!r} is needed as a model, and its base ({named!r} in adapter_config.json) was"
            " not found; name its folder (--base, --adapted, policy.base)"
        )
        raise AdapterBaseUnfit(msg)
    return opened.base


def _of_changes(target: Opened, reference: Opened) -> str:
    if target.index.adapter is None:
        return ""
    said = "both are adapters: the change s·B·A of each weight against the other's"
    prints = {one.side.base_fingerprint for one in (target, reference)} - {None}
    return f"{said}; their bases differ" if len(prints) > 1 else said
