"""The campaigns' summaries as the API reads them: current, checked, decoded once.

The daemon brings summaries up to date after each job. Where it did not (artifacts copied here, a daemon that is down),
the first request that sees the folder changed does it, for a short time; what is not finished then goes on with the
next request. A request never reads artifacts that an update has seen before. Blocking; safe for threads.
"""

import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from msgspec import Struct

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.errors import ArtifactInvalid, ArtifactUnwritable, SummariesLate
from archaeologist.files import read_bounded
from archaeologist.settings import Settings
from archaeologist.summaries.sources import is_current, signature
from archaeologist.web import listings
from archaeologist.web.documents import Shelf
from contracts.artifacts import ARTIFACT_VERSION, DriftTimeline, HealthTimeline, SkillImpact, StabilityReport
from contracts.http import StatsList
from contracts.prepared import prepare

if TYPE_CHECKING:
    from archaeologist.summaries.submodules import Submodules

PATIENCE_SECONDS: Final = 2.0
"""What a request may spend on bringing summaries up to date."""
REBUILD_SECONDS: Final = 30.0
MAX_SUMMARY_BYTES: Final = 1_000_000_000
DECODED: Final = 4
"""Decoded summaries kept; that of 2,000 checkpoints takes tens of megabytes."""

Summary = TypeVar("Summary", DriftTimeline, HealthTimeline, StabilityReport, SkillImpact)

Stamp = tuple[object, ...]


class _Version(Struct, frozen=True):
    """What every summary begins with."""

    version: int


class Library:
    """What the API reads.

    Args:
        settings: For root, allowed roots and the size of the cache.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.shelf = Shelf(settings.web.max_cache_bytes)
        self._current: dict[Path, Stamp] = {}
        self._updating: dict[Path, threading.Lock] = {}
        self._decoded: OrderedDict[tuple[object, ...], Any] = OrderedDict()
        self._submodules: tuple[tuple[object, ...], Submodules] | None = None
        """Those that were asked for last, and of what."""
        self._lock = threading.Lock()

    def bring_up_to_date(self, folder: CampaignFolder) -> bool:
        """Whether the summaries cover everything that lies in the campaign's folder, after what could be done for it.

        Raises:
            SummariesLate: They do not, and there are no older ones.
            ArtifactUnwritable: The same, and none can be written.
        """
        stamp = _stamp(folder)
        if self._current.get(folder.path) == stamp:
            return True
        try:
            self._update(folder)
        except (SummariesLate, ArtifactUnwritable):
            if not all(path.exists() for path in _written(folder)):
                raise
            return False
        self._current[folder.path] = stamp
        return True

    def read(self, folder: CampaignFolder, path: Path, kind: type[Summary]) -> Summary:
        """A summary, decoded; one that is damaged is built anew first.

        Raises:
            ArtifactInvalid: It is of a later version.
            SummariesLate: It is damaged, and building it anew takes too long.
            ArtifactUnwritable: It is damaged, and cannot be written.
        """
        key = (str(path), signature(path))
        with self._lock:
            if key in self._decoded:
                self._decoded.move_to_end(key)
                found: Summary = self._decoded[key]
                return found
        try:
            found = _decode(path, kind)
        except (OSError, ValueError, RecursionError):
            _rebuild(folder)
            found = _decode(path, kind)
        with self._lock:
            self._decoded[key] = found
            while len(self._decoded) > DECODED:
                self._decoded.popitem(last=False)
        return found

    def stats(self, folder: CampaignFolder, *, limit: int, offset: int) -> StatsList:
        """A page of the analysed checkpoints.

        Raises:
            SummariesLate: What was known of them is lost, and reading them again takes too long.
            ArtifactUnwritable: The same, and it cannot be kept.
        """
        found = listings.stats(folder, limit=limit, offset=offset)
        if not (found.count or found.left_out) and listings.steps(folder):
            # The store is not flushed to the disk, as the summaries are: a power failure may have taken it alone.
            _brought_up_to_date(folder)
            found = listings.stats(folder, limit=limit, offset=offset)
        return found

    def submodules(self, folder: CampaignFolder) -> "Submodules":
        """The drift of every submodule of a campaign.

        Raises:
            SummariesLate: What was read of it is lost, and reading it again takes too long.
            ArtifactUnwritable: The same, and it cannot be kept.
            ArtifactInvalid: The disk damages it.
        """
        from archaeologist.summaries.submodules import read_submodules  # noqa: PLC0415 -- NumPy

        key = (str(folder.path), signature(listings.stats_source(folder)))
        if self._submodules is None or self._submodules[0] != key:
            found = read_submodules(folder, until=time.monotonic() + PATIENCE_SECONDS)
            self._submodules = (key, found)
            return found
        return self._submodules[1]

    def _update(self, folder: CampaignFolder) -> None:
        with self._lock:
            updating = self._updating.setdefault(folder.path, threading.Lock())
        if not updating.acquire(timeout=PATIENCE_SECONDS):
            msg = "the campaign's summaries are being brought up to date; ask again in a few seconds"
            raise SummariesLate(msg)
        try:
            if not is_current(folder):
                _brought_up_to_date(folder)
        finally:
            updating.release()


def _written(folder: CampaignFolder) -> tuple[Path, ...]:
    return (folder.timeline, folder.health, folder.stability, folder.skill_impact)


def _stamp(folder: CampaignFolder) -> Stamp:
    """Changes when a file is put into the folders that summaries are made from, or one of the summaries goes."""
    sources = (folder.layer_stats(0).parent, folder.sketch(0).parent, folder.skills)
    return (*map(signature, sources), *(path.exists() for path in _written(folder)))


def _brought_up_to_date(folder: CampaignFolder) -> None:
    # NumPy, which a server that has only current summaries to show does without.
    from archaeologist.summaries.chronicle import update  # noqa: PLC0415

    update(folder, until=time.monotonic() + PATIENCE_SECONDS)


def _rebuild(folder: CampaignFolder) -> None:
    from archaeologist.summaries.chronicle import rebuild  # noqa: PLC0415 -- as above

    rebuild(folder, until=time.monotonic() + REBUILD_SECONDS)


def _decode(path: Path, kind: type[Summary]) -> Summary:
    raw = read_bounded(path.resolve(strict=True), MAX_SUMMARY_BYTES)
    version = msgspec.json.decode(raw, type=_Version).version
    if version > ARTIFACT_VERSION:
        msg = (
            f"summary {str(path)!r} has version {version}, versions up to {ARTIFACT_VERSION} are read; upgrade"
            " archaeologist, or run `archaeologist summarize`"
        )
        raise ArtifactInvalid(msg)
    return msgspec.json.decode(raw, type=kind)


prepare(__name__)
