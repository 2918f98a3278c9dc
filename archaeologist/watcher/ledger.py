"""What a watcher has announced and what is on its way, on the disk, so that a restart neither forgets nor repeats.

A checkpoint enters as pending before its message is sent and stays known after; a message is sent again under its own
id for as long as it is pending. One watcher at a time holds a ledger.
"""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from archaeologist.artifacts.store import put_in_place, write_whole
from archaeologist.errors import ArtifactInvalid, ArtifactUnwritable, WatcherRunning
from archaeologist.files import read_bounded
from contracts.messages import CheckpointSaved, RequestId
from contracts.prepared import prepare

MAX_KNOWN: Final = 10_000
"""Of checkpoints that are gone, the oldest are forgotten beyond this."""
MAX_BYTES: Final = 64_000_000


class Ledger(Struct, frozen=True, kw_only=True):
    """One watched folder as one campaign."""

    version: int = 1
    folder: str
    hero_id: str
    campaign_id: str
    known: dict[str, str] = {}
    """Fingerprint of each checkpoint that was announced, or passed over, by name; the newest last."""
    pending: tuple[CheckpointSaved, ...] = ()
    """Not confirmed by the bus, the oldest first."""

    def with_known(self, name: str, fingerprint: str, *, message: CheckpointSaved | None) -> "Ledger":
        """One checkpoint more, with its message where it is to be announced."""
        known = {**{key: value for key, value in self.known.items() if key != name}, name: fingerprint}
        return replace(self, known=known, pending=self.pending if message is None else (*self.pending, message))

    def without_pending(self, confirmed: Container[RequestId | None]) -> "Ledger":
        """Without these messages on their way."""
        return replace(self, pending=tuple(one for one in self.pending if one.request_id not in confirmed))

    def thinned(self, present: Mapping[str, object]) -> "Ledger":
        """The ledger without the oldest of what is gone, where that is too much."""
        gone = [name for name in self.known if name not in present]
        surplus = set(gone[: max(0, len(gone) - MAX_KNOWN)])
        if not surplus:
            return self
        return replace(self, known={name: value for name, value in self.known.items() if name not in surplus})


class LedgerFile:
    """Where a ledger lies: ``{root}/.archaeologist/watch/{digest}.json``.

    Args:
        state: The folder of our own state.
        empty: The ledger of a folder that was never watched.
    """

    def __init__(self, state: Path, empty: Ledger) -> None:
        self._empty = empty
        source = f"{empty.folder}\n{empty.hero_id}\n{empty.campaign_id}"
        self.path = state / "watch" / f"{hashlib.sha256(source.encode()).hexdigest()[:20]}.json"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Holds the ledger for the length of a block.

        Raises:
            WatcherRunning: Another process holds it.
            ArtifactUnwritable: Its folder cannot be written to.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            msg = f"state {str(self.path)!r} cannot be written: {error.strerror}; name another folder with --root"
            raise ArtifactUnwritable(msg) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                msg = f"folder {self._empty.folder!r} is watched by another process already; stop that one first"
                raise WatcherRunning(msg) from error
            except OSError:
                pass  # a file system that cannot lock
            yield
        finally:
            os.close(descriptor)

    def read(self) -> Ledger | None:
        """The ledger; None where the folder was never watched.

        Raises:
            ArtifactInvalid: The file is not what it must be: going on without it would announce everything again.
        """
        try:
            return msgspec.json.decode(read_bounded(self.path.resolve(), MAX_BYTES), type=Ledger)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            msg = f"state {str(self.path)!r} cannot be read: {error}; move it away to announce what is there anew"
            raise ArtifactInvalid(msg) from error

    def write(self, ledger: Ledger) -> None:
        """Writes the ledger, whole or not at all.

        Raises:
            ArtifactUnwritable: The disk is full or read-only.
        """
        temporary = self.path.with_suffix(".tmp")
        write_whole(temporary, msgspec.json.encode(ledger))
        put_in_place(temporary, self.path, superseded_folder=None)


prepare(__name__)
