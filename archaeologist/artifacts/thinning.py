"""Sketches within a disk budget: the oldest go, and a notice in their folder says which, so that no summary is silent.

Each campaign keeps its first sketch and its newest ones for as long as that is enough: the first is where every
displacement begins, and the stability report is about the newest. If it is not enough, these go too, the oldest first,
all but each campaign's newest. Who needs a number that came from a sketch finds it missing with the reason
(``summaries.sketches``); to have one again, analyse its checkpoint with force while it is there.
"""

import contextlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from msgspec import Struct

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.artifacts.store import unwritable, write_whole
from archaeologist.files import locked, read_bounded
from contracts.prepared import prepare

NOTICE: Final = ".thinned.json"
MAX_NOTICE_BYTES: Final = 16 * 1024 * 1024
KEPT: Final = 32
"""Newest sketches of a campaign that go last: more than the window of the stability report."""

_NAME: Final = re.compile(r"ckpt-(\d{6,16})\.sketch\.safetensors")


class Thinned(Struct, frozen=True, kw_only=True):
    """The notice: the steps whose sketch was given up."""

    version: int = 1
    steps: tuple[int, ...] = ()
    at: str = ""
    """Of the last time."""
    budget_bytes: int = 0
    """In force then."""


class Found(NamedTuple):
    """A sketch's file."""

    folder: CampaignFolder
    step: int
    size_bytes: int
    written_at: float


def sketches(folders: Iterable[CampaignFolder]) -> list[Found]:
    """Every sketch of these campaigns."""
    found = []
    for folder in folders:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(_place(folder)) as entries:
            for entry in entries:
                match = _NAME.fullmatch(entry.name)
                if match and entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    found.append(Found(folder, int(match[1]), status.st_size, status.st_mtime))
    return found


def choose(found: Sequence[Found], *, budget_bytes: int) -> list[Found]:
    """The sketches to give up, so that the others fit. Pure."""
    surplus = sum(one.size_bytes for one in found) - budget_bytes
    chosen: list[Found] = []
    for one in _in_order(found):
        if surplus <= 0:
            break
        chosen.append(one)
        surplus -= one.size_bytes
    return chosen


def thin(folders: Iterable[CampaignFolder], *, budget_bytes: int, now: datetime) -> dict[CampaignFolder, list[int]]:
    """Gives up sketches beyond the budget; the steps of each campaign that lost some. Blocking.

    Raises:
        ArtifactUnwritable: A notice cannot be written, and nothing of its campaign was removed; or a sketch cannot be.
    """
    given_up: dict[CampaignFolder, list[int]] = defaultdict(list)
    for one in choose(sketches(folders), budget_bytes=budget_bytes):
        given_up[one.folder].append(one.step)
    for folder, steps in given_up.items():
        _give_up(folder, steps, budget_bytes=budget_bytes, now=now)
    return dict(given_up)


def _give_up(folder: CampaignFolder, steps: Iterable[int], *, budget_bytes: int, now: datetime) -> None:
    """Says which sketches go, then removes them.

    Every daemon sweeps: under the lock none writes over another's notice, nor misses what it says.
    """
    place = _place(folder)
    try:
        with locked(place):
            notice = Thinned(
                steps=tuple(sorted({*thinned(folder).steps, *steps})),
                at=now.isoformat(timespec="seconds").replace("+00:00", "Z"),
                budget_bytes=budget_bytes,
            )
            # Said before it is done: a notice of a sketch that is still there misleads nobody.
            temporary = place / f"{NOTICE}.tmp"
            write_whole(temporary, msgspec.json.encode(notice))
            temporary.replace(place / NOTICE)
            for step in steps:
                folder.sketch(step).unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(place, error) from error


def thinned(folder: CampaignFolder) -> Thinned:
    """The campaign's notice; an empty one where there is none or it cannot be read."""
    try:
        return msgspec.json.decode(read_bounded(_place(folder) / NOTICE, MAX_NOTICE_BYTES), type=Thinned)
    except (OSError, RuntimeError, msgspec.DecodeError):
        return Thinned()


def _in_order(found: Sequence[Found]) -> list[Found]:
    """What may go, the first to go first."""
    first: dict[CampaignFolder, int] = {}
    newest: dict[CampaignFolder, list[int]] = defaultdict(list)
    for one in sorted(found, key=lambda one: one.step):
        first.setdefault(one.folder, one.step)
        newest[one.folder].append(one.step)
    needed = {(folder, step) for folder, steps in newest.items() for step in (first[folder], *steps[-KEPT:])}
    last = {(folder, steps[-1]) for folder, steps in newest.items()}
    may_go = [one for one in found if (one.folder, one.step) not in last]
    return sorted(may_go, key=lambda one: ((one.folder, one.step) in needed, one.written_at, one.step))


def _place(folder: CampaignFolder) -> Path:
    return folder.sketch(0).parent


prepare(__name__)
