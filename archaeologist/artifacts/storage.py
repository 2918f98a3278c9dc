"""Where an artifact's bytes are: HOT, as the JSON file itself, or WARM, compressed behind a link in that file's place.

An archived artifact leaves ``{its name}.gz`` in its folder, a link to a file under the WARM root. So no reader needs to
know where that is, a listing needs only the campaign's folder, and where both names are there, the plain one counts.
The same compressed file copied back in the link's place is read as well. What moves them is ``archive``.
"""

import errno
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from archaeologist.errors import ArchiveUnavailable
from archaeologist.files import read_bounded
from archaeologist.paths import resolve_under

SUFFIX: Final = ".gz"

_GZIP: Final = 16 + zlib.MAX_WBITS
_ARCHIVED_NAME: Final = re.compile(r".*\.([A-Za-z0-9_-]{1,128})\.[0-9a-f]{16}\.json\.gz")


def archived_path(path: Path) -> Path:
    """What stands for an artifact once it is archived."""
    return path.with_name(path.name + SUFFIX)


def archived_name(name: str, *, job_key: str, digest: str) -> str:
    """The name under the WARM root: other bytes have another one, so nothing there is ever overwritten."""
    return f"{name.removesuffix('.json')}.{job_key}.{digest[:16]}.json{SUFFIX}"


def archived_owner(path: Path) -> str | None:
    """The job of an artifact that is archived, by what its link leads to: the WARM root need not be there."""
    try:
        found = _ARCHIVED_NAME.fullmatch(Path(os.readlink(archived_path(path))).name)  # noqa: PTH115 -- may hold anything
    except OSError:
        return None
    return found[1] if found else None


def standing(path: Path) -> Path:
    """The file that stands for an artifact: itself, or what is in its place once it is archived."""
    archived = archived_path(path)
    return archived if not os.path.lexists(path) and os.path.lexists(archived) else path


def is_stored(path: Path) -> bool:
    """Whether an artifact is there, HOT or WARM, reachable or not."""
    return path.exists() or os.path.lexists(archived_path(path))


def stored(folder: Path) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    """The plain name of each file in a folder of artifacts, once, and the entry that stands for it; hidden ones not.

    Raises:
        OSError: The folder cannot be listed, but for one that is not there: that is an empty one.
    """
    try:
        with os.scandir(folder) as found:
            entries = {entry.name: entry for entry in found if not entry.name.startswith(".")}
    except (FileNotFoundError, NotADirectoryError):
        return
    for name, entry in entries.items():
        plain = name.removesuffix(SUFFIX)
        if plain == name or plain not in entries:
            yield plain, entry


def signature(path: Path) -> str | None:
    """Changes whenever an artifact is replaced or archived; None where there is none. Needs no WARM root."""
    for file, is_archived in ((path, False), (archived_path(path), True)):
        try:
            return sign(file.stat(follow_symlinks=not is_archived))
        except OSError:
            continue
    return None


def sign(status: os.stat_result) -> str:
    """The signature of a file."""
    return f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"


def read_stored(path: Path, limit_bytes: int, *, allowed: Sequence[Path] | None = None) -> bytes:
    """All of an artifact's file as it was written, from wherever it is.

    Args:
        path: Its plain name.
        limit_bytes: Of the file, and of what it unpacks to.
        allowed: Folders that it must lie in, once every link is followed; None: any.

    Raises:
        PathOutsideRoot: It lies elsewhere.
        FileNotFoundError: There is none.
        ArchiveUnavailable: It is archived, and the WARM root cannot be reached.
        OSError: It cannot be read, is too large or damaged.
        RuntimeError: A loop of links.
    """
    # Once more at the end: a new one may have taken the archived one's place in between.
    for file in (path, archived_path(path), path):
        try:
            if file == path:
                return read_bounded(_followed(path, allowed), limit_bytes)
            return unpacked(_read_archived(file, limit_bytes, allowed), limit_bytes)
        except FileNotFoundError:
            continue
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def unpacked(packed: bytes, limit_bytes: int) -> bytes:
    """What one gzip member holds; its checksum and length are compared.

    Raises:
        OSError: It is damaged or cut off, something follows it, or it holds more than the limit.
    """
    unpacker = zlib.decompressobj(_GZIP)
    try:
        content = unpacker.decompress(packed, limit_bytes + 1)
    except zlib.error as error:
        raise OSError(errno.EBADMSG, f"the compressed file is damaged: {error}") from error
    if len(content) > limit_bytes:
        raise OSError(errno.EFBIG, f"it unpacks to more than the {limit_bytes} bytes that are read")
    if not unpacker.eof or unpacker.unused_data:
        raise OSError(errno.EBADMSG, "the compressed file is cut off, or something follows it")
    return content


def _followed(path: Path, allowed: Sequence[Path] | None) -> Path:
    """Where a file is, every link followed. What is opened is this and no other: ``files`` follows none."""
    resolved = path.resolve(strict=True)
    return resolved if allowed is None else resolve_under(resolved, allowed)


def _read_archived(link: Path, limit_bytes: int, allowed: Sequence[Path] | None) -> bytes:
    os.lstat(link)
    try:
        return read_bounded(_followed(link, allowed), limit_bytes)
    except (OSError, RuntimeError) as error:
        if getattr(error, "errno", None) in {errno.EINVAL, errno.EFBIG}:
            raise
        if not os.path.lexists(link):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(link)) from error
        msg = f"archived artifact {str(link)!r} leads to what cannot be reached ({error}); mount the WARM root again"
        raise ArchiveUnavailable(msg) from error
