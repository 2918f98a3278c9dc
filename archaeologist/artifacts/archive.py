"""HOT → WARM: a campaign's older artifacts move, compressed, to a folder of the same shape under the WARM root.

Copied, flushed, read back and compared; then a link takes the artifact's place, and only then it is removed, under the
lock under which new ones are put in place. A death in between leaves both, and the next run goes on from there. Nothing
under the WARM root is ever overwritten or removed. ``storage`` reads what was moved.
"""

import contextlib
import errno
import fcntl
import gzip
import hashlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from archaeologist.artifacts.paths import CAMPAIGNS, CampaignFolder
from archaeologist.artifacts.storage import archived_name, archived_path, sign, unpacked
from archaeologist.artifacts.store import MAX_ARTIFACT_BYTES, unwritable, write_whole
from archaeologist.errors import ArchaeologistError, ArchiveUnavailable, SettingInvalid
from archaeologist.files import locked, opened, read_at
from archaeologist.paths import resolve_under
from archaeologist.settings import Settings
from contracts.artifacts import LeftOut
from contracts.prepared import prepare

DAY_SECONDS: Final = 86_400.0
LOCK: Final = ".archive.lock"

_LEVEL: Final = 6
"""Of gzip: 9 takes twice as long for 2 % less."""
_NAMES: Final = {
    "layer_stats": re.compile(r"ckpt-\d{6,16}\.layer_stats\.json"),
    "layer_drift": re.compile(r"drift-\d{6,16}-to-\d{6,16}\.json"),
    "superseded": re.compile(r"[A-Za-z0-9_-]{1,128}\.json"),
}
"""The files that move, by folder. Sketches and summaries stay."""
_KEY: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")


class Rule(Struct, frozen=True, kw_only=True):
    """What is archived, and where to."""

    warm_root: Path
    before: float
    """Files written earlier than this move, in seconds since 1970.

    The file's own time is when its analysis ended, and one need not open every file each day to learn it. A file that
    is copied or touched later stays longer.
    """
    allowed: Sequence[Path]
    """A campaign's folders must lie under one of these, once links are followed."""
    is_trial: bool = False
    """Nothing is changed."""


class Report(Struct, frozen=True, kw_only=True):
    """What became of one campaign."""

    campaign: str
    archived: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    """Of the compressed files; 0 in a trial."""
    left_out: tuple[LeftOut, ...] = ()
    error: str | None = None
    """Why it was not done to the end, with its code; what was archived by then is."""


class Moved(Struct, frozen=True, kw_only=True):
    """One artifact that was archived."""

    bytes_before: int
    bytes_after: int


class _Whose(Struct, frozen=True):
    hero_id: str
    campaign_id: str
    job_key: str


def warm_root(settings: Settings) -> Path:
    """The WARM root, known to be there.

    Raises:
        SettingInvalid: None is set, or it is the HOT root or lies among its campaigns.
        ArchiveUnavailable: It has no folder ``campaigns``, so that it may not be mounted.
    """
    if settings.archive.warm_root is None:
        msg = (
            "setting 'archive.warm_root' is not set, nothing is archived; name the folder that older artifacts move to"
        )
        raise SettingInvalid(msg)
    root = Path(settings.archive.warm_root).expanduser().resolve()
    hot = settings.root_path
    if root == hot or root.is_relative_to(hot / CAMPAIGNS):
        msg = f"setting 'archive.warm_root' {str(root)!r} is where artifacts lie already; name a folder on another disk"
        raise SettingInvalid(msg)
    # A mount point without its file system is an empty folder: what is put there would fill the wrong disk.
    if not os.path.isdir(root / CAMPAIGNS):  # noqa: PTH112 -- Path.is_dir raises where the disk does not answer
        remedy = "mount it, or make that folder once, where it is mounted"
        msg = f"WARM root {str(root)!r} has no folder {CAMPAIGNS!r}; {remedy}"
        raise ArchiveUnavailable(msg)
    return root


def rule_of(settings: Settings, *, after_days: float | None = None, is_trial: bool = False) -> Rule:
    """What the settings say; ``after_days`` is taken instead of theirs.

    Raises:
        SettingInvalid: As ``warm_root``.
        ArchiveUnavailable: As ``warm_root``.
    """
    days = settings.archive.after_days if after_days is None else after_days
    return Rule(
        warm_root=warm_root(settings),
        before=time.time() - days * DAY_SECONDS,
        allowed=settings.allowed_roots,
        is_trial=is_trial,
    )


def archive(folder: CampaignFolder, rule: Rule, *, is_stopped: Callable[[], bool] = lambda: False) -> Report:
    """Moves a campaign's older artifacts. Blocking.

    Args:
        folder: The campaign.
        rule: What moves, and where to.
        is_stopped: Asked before each artifact; the rest is left to the next run.
    """
    moved: list[Moved] = []
    left_out: list[LeftOut] = []
    error: str | None = None
    try:
        with contextlib.nullcontext() if rule.is_trial else _alone(folder):
            for path, status in _old(folder, rule):
                if is_stopped():
                    break
                found = _archived(path, status, folder=folder, rule=rule)
                if isinstance(found, LeftOut):
                    left_out.append(found)
                elif found is not None:
                    moved.append(found)
    except (ArchaeologistError, OSError) as problem:
        told = problem if isinstance(problem, ArchaeologistError) else unwritable(folder.analysis, problem)
        error = f"{told.code}: {told}"
    return Report(
        campaign=f"{folder.hero_id}/{folder.campaign_id}",
        archived=len(moved),
        bytes_before=sum(one.bytes_before for one in moved),
        bytes_after=sum(one.bytes_after for one in moved),
        left_out=tuple(left_out),
        error=error,
    )


def _old(folder: CampaignFolder, rule: Rule) -> Iterator[tuple[Path, os.stat_result]]:
    """The files that are due, with what they were when that was found out. Links are passed over."""
    for kind, pattern in _NAMES.items():
        place = folder.analysis / kind
        if not place.is_dir():
            continue
        resolve_under(place, rule.allowed)
        for name in sorted(filter(pattern.fullmatch, os.listdir(place))):  # noqa: PTH208 -- names are what is matched
            with contextlib.suppress(FileNotFoundError):
                status = (place / name).lstat()
                if stat.S_ISREG(status.st_mode) and status.st_mtime < rule.before:
                    yield place / name, status


def _archived(path: Path, status: os.stat_result, *, folder: CampaignFolder, rule: Rule) -> Moved | LeftOut | None:
    """One artifact moved; or why it is left out; None where it was replaced meanwhile."""
    try:
        content = _read(path)
        whose = msgspec.json.decode(content, type=_Whose)
        _check(whose, folder)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        reason = f"{error}; move it away and request the analysis again with force"
        return LeftOut(file=str(path.relative_to(folder.analysis)), code="artifact_invalid", reason=reason)
    if rule.is_trial:
        return Moved(bytes_before=len(content), bytes_after=0)
    place = _made(rule.warm_root, folder, path.parent.name)
    digest = hashlib.sha256(content).hexdigest()
    copy = place / archived_name(path.name, job_key=whose.job_key, digest=digest)
    packed_bytes = _copied(content, copy)
    if not _handed_over(path, copy, seen=status):
        return None
    return Moved(bytes_before=len(content), bytes_after=packed_bytes)


def _check(whose: _Whose, folder: CampaignFolder) -> None:
    if (whose.hero_id, whose.campaign_id) != (folder.hero_id, folder.campaign_id):
        msg = f"it is of campaign {whose.hero_id[:200]!r}/{whose.campaign_id[:200]!r}"
        raise ValueError(msg)
    if not _KEY.fullmatch(whose.job_key):
        msg = f"its job_key {whose.job_key[:200]!r} is none"
        raise ValueError(msg)


def _made(root: Path, folder: CampaignFolder, kind: str) -> Path:
    """The folder under the WARM root, made where it is missing, but never the WARM root itself.

    Raises:
        ArtifactUnwritable: The disk refuses.
        PathOutsideRoot: A link there leads elsewhere.
    """
    place = root / CAMPAIGNS
    for name in (folder.hero_id, folder.campaign_id, folder.analysis.name, kind):
        above, place = place, place / name
        try:
            place.mkdir()
            _flush(above)
        except FileExistsError:
            continue
        except OSError as error:
            raise unwritable(place, error) from error
    return resolve_under(place, [root])


def _copied(content: bytes, copy: Path) -> int:
    """The size of the compressed copy, once it lies on the disk and has been read back.

    Raises:
        ArtifactUnwritable: The disk is full or refuses, or gives back something else.
    """
    try:
        if not _holds(copy, content):
            temporary = copy.with_name(f".{copy.name}.tmp")
            write_whole(temporary, gzip.compress(content, _LEVEL, mtime=0))
            _verify(temporary, content)
            temporary.replace(copy)
        # Also where an earlier run was killed after renaming it.
        _flush(copy.parent)
        return copy.lstat().st_size
    except OSError as error:
        raise unwritable(copy, error) from error


def _verify(copy: Path, content: bytes) -> None:
    if not _holds(copy, content):
        copy.unlink()
        raise OSError(errno.EIO, "what was read back is not what was written")


def _holds(copy: Path, content: bytes) -> bool:
    try:
        return unpacked(_read(copy, is_fresh=True), MAX_ARTIFACT_BYTES) == content
    except OSError:
        return False


def _handed_over(path: Path, copy: Path, *, seen: os.stat_result) -> bool:
    """Whether the link to the copy has taken the artifact's place; False: it was replaced since and stays."""
    try:
        with locked(path.parent) as place:
            if sign(path.lstat()) != sign(seen):
                return False
            link = archived_path(path)
            half_made = link.with_name(f".{link.name}.tmp")
            half_made.unlink(missing_ok=True)
            half_made.symlink_to(copy)
            half_made.replace(link)
            os.fsync(place)
            path.unlink()
            os.fsync(place)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise unwritable(path, error) from error
    return True


def _read(file: Path, *, is_fresh: bool = False) -> bytes:
    """A whole file; fresh: from the disk rather than from memory, as far as the system lets one ask for that."""
    with opened(file.parent.resolve(strict=True) / file.name) as descriptor:
        if os.fstat(descriptor).st_size > MAX_ARTIFACT_BYTES:
            msg = f"it is larger than {MAX_ARTIFACT_BYTES} bytes"
            raise OSError(errno.EFBIG, msg)
        if is_fresh:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return read_at(descriptor, MAX_ARTIFACT_BYTES, 0)


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _alone(folder: CampaignFolder) -> Iterator[None]:
    """Nobody else archives this campaign meanwhile.

    Raises:
        ArchiveUnavailable: Somebody does.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(folder.analysis / LOCK, flags, 0o644)
    try:
        # Where the file system cannot lock, two of them write the same bytes under the same names.
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                msg = "somebody else is archiving this campaign; nothing to do"
                raise ArchiveUnavailable(msg) from error
        yield
    finally:
        os.close(descriptor)


prepare(__name__)
