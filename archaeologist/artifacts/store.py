"""Artifacts written whole or not at all, put in place once, and read with their types checked.

The child writes a temporary file beside the final one and flushes it to the disk; the daemon, once the job's record
says done, puts it in place. Every step can be repeated after a crash and ends in the same state. What an artifact
says is not looked at, but for whose it is.
"""

import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from archaeologist.artifacts.storage import archived_owner, archived_path, is_stored, read_stored
from archaeologist.errors import ArchiveUnavailable, ArtifactInvalid, ArtifactMissing, ArtifactUnwritable
from archaeologist.files import locked, made
from contracts.artifacts import ARTIFACT_VERSION, Artifact, LayerDrift, LayerStats
from contracts.prepared import prepare

MAX_ARTIFACT_BYTES: Final = 256_000_000

_KEY: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
_TEMPORARY: Final = re.compile(rf"\.(?P<key>{_KEY.pattern})\.(?P<claim>\d+)\.tmp")
_LINKS_IMPOSSIBLE: Final = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS})

ArtifactType = TypeVar("ArtifactType", LayerStats, LayerDrift)


class Temporary(NamedTuple):
    """A file that a claim on a job wrote and nobody has put in place."""

    path: Path
    job_key: str
    claim: int


class _Peek(Struct, frozen=True):
    """The little of an artifact that says what it is."""

    version: int
    job_key: str
    checkpoint_path: str | None = None
    base_checkpoint: str | None = None


# Writing.


def temporary_path(final: Path, job_key: str, claim: int) -> Path:
    """Where a claim on a job writes before its file is put in place: beside the final one, hidden."""
    return final.with_name(f".{job_key}.{claim}.tmp")


def temporaries(folder: Path) -> Iterator[Temporary]:
    """The temporary files of every claim on every job."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for name in sorted(os.listdir(folder)):  # noqa: PTH208
            if match := _TEMPORARY.fullmatch(name):
                yield Temporary(folder / name, match["key"], int(match["claim"]))


def remove_temporaries(folder: Path, job_key: str, *, up_to_claim: int) -> None:
    """Removes a job's temporary files but for those of later claims, whose owners may be at work."""
    for file in temporaries(folder):
        if file.job_key == job_key and file.claim <= up_to_claim:
            file.path.unlink(missing_ok=True)


def remove_quietly(temporary: Path) -> None:
    """Removes a file that may be there; what went wrong before is told, not that this went wrong too."""
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)


def has_content(path: Path, digest: str | None) -> bool:
    """Whether an artifact is stored under a path, with this SHA-256; any content where none is given."""
    if not is_stored(path) or digest is None:
        return is_stored(path)
    try:
        return hashlib.sha256(read_stored(path, MAX_ARTIFACT_BYTES)).hexdigest() == digest
    except (OSError, RuntimeError):
        return False


def write_whole(path: Path, content: bytes) -> str:
    """The SHA-256 of the content, in hexadecimal, once it lies on the disk under ``path``; the folder is made.

    Args:
        path: A temporary file: a reader may see it half written.
        content: All of it.

    Raises:
        ArtifactUnwritable: The disk is full or read-only, or the folder forbidden; nothing is left behind.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_flushed(path, content)
    except OSError as error:
        remove_quietly(path)
        raise unwritable(path, error) from error
    return hashlib.sha256(content).hexdigest()


def put_in_place(temporary: Path, final: Path, *, superseded_folder: Path | None) -> None:
    """Gives a finished temporary file its final name. At every moment a reader finds the old artifact or the new one.

    An artifact of another job that lies there is kept as ``{its job_key}.json`` in the superseded folder first. A
    repeat after a crash finds what is left to do: nothing, where the temporary file is gone and the final one there.

    Args:
        temporary: Written by ``write_whole``.
        final: Its name from now on.
        superseded_folder: ``analysis/superseded`` of the campaign; None for a file that simply replaces, a sketch.

    Raises:
        ArtifactUnwritable: The file system refuses, or a file that is no artifact lies there.
        ArtifactMissing: Neither file is there.
    """
    try:
        with locked(final.parent) as folder:
            if temporary.exists():
                if superseded_folder is not None:
                    _keep_aside(temporary, final, superseded_folder)
                temporary.replace(final)
            elif not is_stored(final):
                msg = f"neither {str(temporary)!r} nor {str(final)!r} is there; request the analysis again with force"
                raise ArtifactMissing(msg)
            os.fsync(folder)
            if final.exists():
                # Of the artifact that was replaced, kept aside by now; or of this one, whose archiving died half-way.
                archived_path(final).unlink(missing_ok=True)
            if superseded_folder is not None and (owner := _owner(final)):
                # It owns its path again: an earlier run's copy would be a second one under the same key. Under the
                # lock still, or the copy may be the only one: another job took the path meanwhile and set it aside.
                copy = superseded_folder / f"{owner}.json"
                copy.unlink(missing_ok=True)
                archived_path(copy).unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(final, error) from error


def _keep_aside(temporary: Path, final: Path, superseded_folder: Path) -> None:
    """Keeps what another job left at the final path; the path itself stays as it is."""
    file = final if os.path.lexists(final) else archived_path(final)
    if not os.path.lexists(file):
        return
    owner = _owner(final) if file == final else archived_owner(final) or _owner(final)
    if owner is not None and owner == _owner(temporary):
        return
    if owner is None and not final.is_relative_to(superseded_folder.parent):
        msg = f"file {str(final)!r} is no artifact, only artifacts are replaced; name another output_path"
        raise ArtifactUnwritable(msg)
    superseded_folder.mkdir(parents=True, exist_ok=True)
    with locked(superseded_folder) as folder:
        if file != final:
            # The link itself, whether or not the WARM root is there.
            aside = superseded_folder / f"{owner or f'unreadable-{file.lstat().st_ino}'}.json"
            _copy(file, archived_path(aside))
        else:
            name = owner or f"unreadable-{_digest(final)}"
            _copy(final.resolve(), superseded_folder / f"{name}.json")
        os.fsync(folder)


def _copy(file: Path, to: Path) -> None:
    """A second name for the bytes where links are possible, else a copy; ``to`` is whole or not there."""
    half_made = to.with_name(f".{to.name}.tmp")
    # Whoever died here before left it.
    half_made.unlink(missing_ok=True)
    try:
        os.link(file, half_made, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _LINKS_IMPOSSIBLE:
            raise
        _write_flushed(half_made, file.read_bytes())
    half_made.replace(to)
    # Where ``to`` was a link to the same bytes already, renaming does nothing and leaves the other name (POSIX).
    half_made.unlink(missing_ok=True)


def _write_flushed(path: Path, content: bytes) -> None:
    with made(path) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _owner(path: Path) -> str | None:
    """The job whose artifact a file is; None where it is none."""
    try:
        key = msgspec.json.decode(read_stored(path, MAX_ARTIFACT_BYTES), type=_Peek).job_key
    except (OSError, ValueError, RecursionError, RuntimeError, ArchiveUnavailable):
        return None
    return key if _KEY.fullmatch(key) else None


def unwritable(path: Path, error: OSError) -> ArtifactUnwritable:
    """The system's refusal to write a file, with its remedy."""
    remedies = {
        errno.ENOSPC: "free space on its disk",
        errno.EDQUOT: "raise the user's quota",
        errno.EROFS: "mount its file system writable",
        errno.EACCES: "give this user the right to write there",
        errno.EPERM: "give this user the right to write there",
    }
    remedy = remedies.get(error.errno or 0, "check its folder and its disk")
    return ArtifactUnwritable(f"artifact {str(path)!r} cannot be written: {error.strerror or error}; {remedy}")


# Reading.


def read_layer_stats(path: Path) -> LayerStats:
    """The ``layer_stats`` artifact in a file.

    Raises:
        ArtifactMissing: No file is there.
        ArtifactInvalid: It is not such an artifact, or of a later version.
        ArchiveUnavailable: It is archived, and the WARM root cannot be reached.
    """
    return _decode(path, _read(path), LayerStats)


def read_layer_drift(path: Path) -> LayerDrift:
    """The ``layer_drift`` artifact in a file.

    Raises:
        ArtifactMissing: No file is there.
        ArtifactInvalid: It is not such an artifact, or of a later version.
        ArchiveUnavailable: It is archived, and the WARM root cannot be reached.
    """
    return _decode(path, _read(path), LayerDrift)


def read_checked(path: Path, kind: type[ArtifactType], *, allowed: Sequence[Path]) -> bytes:
    """The bytes of an artifact's file as they lie there, once they have been found to be one.

    Args:
        path: Its plain name.
        kind: What it must be.
        allowed: Folders that it must lie in, once every link is followed.

    Raises:
        PathOutsideRoot: It lies elsewhere.
        ArtifactMissing: No file is there.
        ArtifactInvalid: It is not such an artifact, or of a later version.
        ArchiveUnavailable: It is archived, and the WARM root cannot be reached.
    """
    raw = _read(path, allowed=allowed)
    _decode(path, raw, kind)
    return raw


def read_artifact(path: Path) -> Artifact:
    """The artifact in a file, of whichever type.

    Raises:
        ArtifactMissing: No file is there.
        ArtifactInvalid: It is not an artifact, or of a later version.
        ArchiveUnavailable: It is archived, and the WARM root cannot be reached.
    """
    raw = _read(path)
    peek = _peek(path, raw)
    if peek.base_checkpoint is not None:
        return _decode(path, raw, LayerDrift)
    return _decode(path, raw, LayerStats)


def _read(path: Path, *, allowed: Sequence[Path] | None = None) -> bytes:
    try:
        return read_stored(path, MAX_ARTIFACT_BYTES, allowed=allowed)
    except FileNotFoundError as error:
        msg = f"artifact {str(path)!r} is not there; request the analysis"
        raise ArtifactMissing(msg) from error
    except (OSError, RuntimeError) as error:
        msg = f"artifact {str(path)!r} cannot be read: {error}; check the file, or move it away and analyse again"
        raise ArtifactInvalid(msg) from error


def _peek(path: Path, raw: bytes) -> _Peek:
    try:
        peek = msgspec.json.decode(raw, type=_Peek)
    except (ValueError, RecursionError) as error:
        raise _invalid(path, error) from error
    if peek.version > ARTIFACT_VERSION:
        msg = (
            f"artifact {str(path)!r} has version {peek.version}, versions up to {ARTIFACT_VERSION} are read;"
            " upgrade archaeologist"
        )
        raise ArtifactInvalid(msg)
    return peek


def _decode(path: Path, raw: bytes, kind: type[ArtifactType]) -> ArtifactType:
    _peek(path, raw)
    try:
        return msgspec.json.decode(raw, type=kind)
    except (ValueError, RecursionError) as error:
        raise _invalid(path, error) from error


def _invalid(path: Path, error: Exception) -> ArtifactInvalid:
    msg = f"artifact {str(path)!r} is not one: {error}; move it away and request the analysis again with force"
    return ArtifactInvalid(msg)


prepare(__name__)
