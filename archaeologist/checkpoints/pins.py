"""Pins: hard links that keep a checkpoint's bytes after its trainer has rotated it away.

A pin is a folder ``.pins/{step}-{fingerprint[:12]}`` of the campaign that reads like the checkpoint itself. It costs no
disk until the trainer deletes the original, and leaves the original's folder untouched, whose time decides what the
trainer rotates. A file that is overwritten in place changes under the pin as well: the fingerprint tells.
The daemon pins at admission and releases in its sweep. Which pins are needed is not decided here.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, NamedTuple

from archaeologist.checkpoints.adapter import CONFIG as ADAPTER_CONFIG
from archaeologist.checkpoints.header import shown
from archaeologist.checkpoints.index import CONFIG
from archaeologist.checkpoints.layout import (
    DISTRIBUTED,
    DISTRIBUTED_FOLDERS,
    DISTRIBUTED_SUFFIX,
    SAFETENSORS,
    SHARDED,
    SINGLE,
    TORCH_SHARDED,
    TORCH_SINGLE,
    TRAINER_FILES,
    WEIGHT_SUFFIXES,
)
from archaeologist.errors import CheckpointMissing, PinImpossible
from archaeologist.files import entries, folder_of, locked
from archaeologist.paths import is_under

_WEIGHTS: Final = (SHARDED, TORCH_SHARDED, *(f"*{suffix}" for suffix in WEIGHT_SUFFIXES), "*.gguf")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_HALF_MADE: Final = ".tmp"

Inode = tuple[int, int]
"""Device and number: one file, whatever its names."""

_REMEDIES: Final = {
    errno.EXDEV: "checkpoints and pins must lie on one file system under one mount",
    errno.EPERM: "the kernel refuses links to other users' files (fs.protected_hardlinks): run as the trainer's user",
    errno.EACCES: "this user must be allowed to write to the campaign's folder",
    errno.EROFS: "the campaign's folder must be writable",
}


def pin_name(step: int, fingerprint: str) -> str:
    """The name of a checkpoint's pin: the same content of the same step has the same one."""
    return f"{step}-{fingerprint[:12]}"


def pin(source: Path, pins: Path, name: str, *, allowed: Sequence[Path] = ()) -> Path:
    """The pin's folder, made if it is not there; pinning twice gives the same one and makes it young again.

    Args:
        source: A checkpoint's folder, or a single weight file, which the pin names ``model.safetensors`` or
            ``pytorch_model.bin``.
        pins: The campaign's folder of pins, made if it is not there.
        name: From ``pin_name``.
        allowed: Folders besides the checkpoint's own into which its links may lead, as for ``read_index``.

    Raises:
        PinImpossible: The file system refuses; the reason is in the message.
        CheckpointMissing: The checkpoint went away meanwhile.
    """
    _check_name(name)
    target = pins / name
    try:
        pins.mkdir(parents=True, exist_ok=True)
        with locked(pins) as descriptor:
            if target.is_dir():
                os.utime(target)
                return target
            half_made = pins / f".{name}.{secrets.token_hex(4)}{_HALF_MADE}"
            half_made.mkdir()
            try:
                _link_all(source, half_made, allowed)
                half_made.rename(target)
            except BaseException:
                shutil.rmtree(half_made, ignore_errors=True)
                raise
            os.fsync(descriptor)
    except FileNotFoundError as error:
        msg = f"checkpoint {str(source)!r} went away while it was pinned; raise save_total_limit"
        raise CheckpointMissing(msg) from error
    except OSError as error:
        raise _impossible(source, pins, error) from error
    return target


def unpin(pins: Path, name: str) -> None:
    """Removes a pin; nothing where there is none."""
    _check_name(name)
    with contextlib.suppress(FileNotFoundError), locked(pins):
        _remove(pins / name)


def release(pins: Path, *, keep: Collection[str], older_than_seconds: float) -> tuple[str, ...]:
    """The names of the pins that were removed: those not to be kept, and half-made ones.

    Args:
        pins: The campaign's folder of pins; it may be missing.
        keep: Names that stay.
        older_than_seconds: A younger pin stays as well: its job's record may be on its way.
    """
    released = []
    with contextlib.suppress(FileNotFoundError), locked(pins):
        for entry in _folders(pins):
            age_seconds = time.time() - entry.stat(follow_symlinks=False).st_mtime
            if entry.name in keep or age_seconds < older_than_seconds:
                continue
            _remove(pins / entry.name)
            if not entry.name.endswith(_HALF_MADE):
                released.append(entry.name)
    return tuple(released)


def listed(pins: Path) -> tuple[str, ...]:
    """The names of all pins."""
    with contextlib.suppress(FileNotFoundError):
        return tuple(entry.name for entry in _folders(pins) if not entry.name.endswith(_HALF_MADE))
    return ()


def renew(pins: Path, name: str) -> bool:
    """Makes a pin young again, so that no sweep takes it from whoever is about to need it; False: there is none."""
    with contextlib.suppress(FileNotFoundError), locked(pins):
        os.utime(pins / name)
        return True
    return False


class Holding(NamedTuple):
    """A pin among others."""

    pins: Path
    name: str
    made_at: float
    """When it was made or last asked for."""
    inodes: tuple[Inode, ...]
    """Of its files; one with two names there stands twice."""


class Ledger:
    """What pins hold of checkpoints that are gone, each file counted once however many pins hold it.

    A file that has another name besides its pins, the trainer's own for one, is not theirs: releasing them would free
    nothing.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self.holdings: list[Holding] = []
        self._links: Counter[Inode] = Counter()
        self._released: Counter[Inode] = Counter()
        self._files: dict[Inode, os.stat_result] = {}
        for pins in folders:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                for entry in _folders(pins):
                    self._add(pins, entry)
        self.held_bytes = sum(self._files[inode].st_size for inode in self._files if self._is_orphan(inode))
        """The disk that releasing every pin would free."""

    def holds_something(self, holding: Holding) -> bool:
        """Whether releasing it frees anything, at least together with others."""
        return any(self._is_orphan(inode) for inode in holding.inodes)

    def release(self, holding: Holding) -> None:
        """Takes a pin out of the account."""
        for inode in holding.inodes:
            was_held = self._is_orphan(inode)
            self._links[inode] -= 1
            self._released[inode] += 1
            if was_held and not self._links[inode]:
                self.held_bytes -= self._files[inode].st_size

    def _add(self, pins: Path, entry: os.DirEntry[str]) -> None:
        with contextlib.suppress(FileNotFoundError):
            made_at = entry.stat(follow_symlinks=False).st_mtime
            # Counted once all of it was seen: a pin that another process removes meanwhile is left out whole.
            files = [file.stat(follow_symlinks=False) for file in entries(entry)]
            inodes = tuple((file.st_dev, file.st_ino) for file in files)
            self._links.update(inodes)
            self._files.update(zip(inodes, files, strict=True))
            self.holdings.append(Holding(pins, entry.name, made_at, inodes))

    def _is_orphan(self, inode: Inode) -> bool:
        """Whether nothing but pins, some of them released by now, has the file."""
        return self._files[inode].st_nlink == self._links[inode] + self._released[inode] and self._links[inode] > 0


def held_bytes(folders: Iterable[Path]) -> int:
    """The disk that releasing every pin in these folders would free: files of which only pins are left."""
    return Ledger(folders).held_bytes


def thin(
    folders: Iterable[Path], *, keep: Mapping[Path, Collection[str]], budget_bytes: int, older_than_seconds: float
) -> tuple[tuple[Holding, ...], int]:
    """The pins that were given up, the oldest first, until what pins hold is within the budget; what they hold then.

    Args:
        folders: Every campaign's folder of pins.
        keep: Names by folder that stay, over the budget or not.
        budget_bytes: Of ``Ledger.held_bytes``.
        older_than_seconds: A younger pin stays as well, as for ``release``.
    """
    ledger = Ledger(folders)
    given_up = []
    for holding in sorted(ledger.holdings, key=lambda holding: holding.made_at):
        if ledger.held_bytes <= budget_bytes:
            break
        if holding.name in keep.get(holding.pins, ()) or not ledger.holds_something(holding):
            continue
        with contextlib.suppress(FileNotFoundError), locked(holding.pins):
            folder = holding.pins / holding.name
            if time.time() - folder.stat().st_mtime >= older_than_seconds:
                _remove(folder)
                ledger.release(holding)
                given_up.append(holding)
    return tuple(given_up), ledger.held_bytes


def _link_all(source: Path, folder: Path, allowed: Sequence[Path]) -> None:
    for file, name in _files(source):
        original = file.resolve(strict=True)
        if not original.is_file():
            continue
        if not is_under(original, (source if source.is_dir() else source.parent, *allowed)):
            if not _is_needed(name):
                continue
            msg = (
                f"checkpoint {str(source)!r} cannot be pinned: {shown(name)} is a link out of the folder to"
                f" {str(original)!r}; name that one's folder in the setting 'allowed', or set pins.enabled = false"
            )
            raise PinImpossible(msg)
        # Resolved, so that the bytes are linked and not a link that dangles when they are gone.
        with folder_of(original) as place:
            os.link(original.name, folder / name, src_dir_fd=place, follow_symlinks=False)
        if not stat.S_ISREG((folder / name).lstat().st_mode):
            raise OSError(errno.ELOOP, "a link was put in a file's place meanwhile", str(original))


def _files(source: Path) -> Iterator[tuple[Path, str]]:
    """What belongs to a checkpoint, with the name that it gets in the pin."""
    folder: Path = source
    left_out: tuple[str, ...] = TRAINER_FILES
    if not source.is_dir():
        # The other weights beside a single file belong to other checkpoints.
        folder, left_out = source.parent, (*TRAINER_FILES, *_WEIGHTS)
        yield source, SINGLE if source.suffix == SAFETENSORS else TORCH_SINGLE
    for entry in entries(folder):
        if entry.is_dir() and fnmatchcase(entry.name, DISTRIBUTED_FOLDERS):
            # Flat in the pin: a distributed checkpoint is one wherever it lies.
            yield from ((Path(file.path), file.name) for file in entries(entry) if file.is_file())
        is_left_out = any(fnmatchcase(entry.name, pattern) for pattern in left_out)
        if not is_left_out and (entry.is_file() or entry.is_symlink()):
            yield folder / entry.name, entry.name


def _is_needed(name: str) -> bool:
    return name in {CONFIG, ADAPTER_CONFIG, SHARDED, TORCH_SHARDED, DISTRIBUTED} or name.endswith(
        (*WEIGHT_SUFFIXES, DISTRIBUTED_SUFFIX)
    )


def _folders(pins: Path) -> list[os.DirEntry[str]]:
    return [entry for entry in entries(pins) if entry.is_dir(follow_symlinks=False)]


def _remove(folder: Path) -> None:
    """Renamed first: a pin is whole or not there, whenever this process dies."""
    if not folder.name.endswith(_HALF_MADE):
        doomed = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}{_HALF_MADE}")
        folder.rename(doomed)
        folder = doomed
    shutil.rmtree(folder, ignore_errors=True)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or name.endswith(_HALF_MADE):
        msg = f"pin name {name!r} is not one that pin_name gives"
        raise ValueError(msg)


def _impossible(source: Path, pins: Path, error: OSError) -> PinImpossible:
    remedy = _REMEDIES.get(error.errno or 0, "see 'archaeologist doctor'")
    reason = error.strerror or str(error)
    msg = (
        f"checkpoint {str(source)!r} cannot be pinned in {str(pins)!r} ({reason}): {remedy},"
        " or set pins.enabled = false"
    )
    return PinImpossible(msg)
