"""Waits for checkpoints that are still being written, without holding anything up.

A message whose checkpoint is not whole is handed back to the bus and comes again a moment later; others go on
meanwhile. How long it has waited is told by the message's own time, so a restart of the daemon neither forgets nor
prolongs it. Waiting ends when the checkpoint is whole, when nothing of it has changed for a while, or when its time is
over; what is wrong then, admission says with its own code.
"""

import time
from collections import OrderedDict
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from archaeologist.checkpoints.readiness import Look, Stillness, is_ready, look
from archaeologist.errors import CheckpointMissing, CheckpointNotReady, CheckpointUnfinished
from archaeologist.settings import Settings

_REMEMBERED: Final = 1000
_LONGEST_PAUSE_SECONDS: Final = 10.0
_PAUSE_SHARE: Final = 0.1
"""Of the time that was waited: who has waited long can wait a little longer."""


class Waiting:
    """The checkpoints that messages wait for."""

    def __init__(self, settings: Settings) -> None:
        """Waits for nothing yet."""
        self._settings = settings
        self._stillness: OrderedDict[Path, Stillness] = OrderedDict()

    def check(self, path: Path, *, since: datetime, is_announced: bool) -> None:
        """Nothing, where the checkpoint may be examined now: it is whole, or no longer waited for. Blocking.

        Args:
            path: Resolved.
            since: When the message reached the bus.
            is_announced: By a trainer, whose files another machine may see a little later. What a person asks for is
                there or not.

        Raises:
            CheckpointNotReady: Not yet; the message is to come again.
            CheckpointUnfinished: Its time is over and it is still being written.
            CheckpointMissing: It is not there.
        """
        rules = self._settings.readiness
        waited = (datetime.now(UTC) - since).total_seconds()
        try:
            found = look(path, allowed=self._settings.allowed_roots)
        except CheckpointMissing as error:
            if is_announced and waited < rules.idle_seconds:
                raise CheckpointNotReady(str(error)) from error
            raise
        still = self._still_seconds(path, found, waited=waited)
        if is_ready(found, still_seconds=still, quiet_seconds=rules.quiet_seconds):
            self._stillness.pop(path, None)
            return
        if waited < rules.wait_seconds and still < rules.idle_seconds:
            lacks = str(found.lacking) if found.lacking else f"checkpoint {str(path)!r} changed {still:.1f} s ago"
            raise CheckpointNotReady(lacks)
        self._stillness.pop(path, None)
        if found.lacking is None:
            msg = (
                f"checkpoint {str(path)!r} is still being written {waited:.0f} s after its message, it is waited for"
                f" {rules.wait_seconds:g} s; announce it when it is whole, or raise readiness.wait_seconds"
            )
            raise CheckpointUnfinished(msg)

    def expects(self, path: Path, *, since: datetime) -> bool:
        """Whether a checkpoint that another message waits for may yet be admitted. Blocking.

        Args:
            path: Resolved.
            since: When the message that asks reached the bus.
        """
        rules = self._settings.readiness
        waited = (datetime.now(UTC) - since).total_seconds()
        try:
            found = look(path, allowed=self._settings.allowed_roots)
        except CheckpointMissing:
            return False
        # Once it is whole, its own message still has to come again.
        patience = rules.idle_seconds if found.lacking else rules.quiet_seconds + _LONGEST_PAUSE_SECONDS
        return waited < rules.wait_seconds and self._still_seconds(path, found, waited=waited) < patience

    def pause_seconds(self, since: datetime) -> float:
        """When a message that waits is to come again."""
        waited = (datetime.now(UTC) - since).total_seconds()
        return max(self._settings.readiness.poll_seconds, min(waited * _PAUSE_SHARE, _LONGEST_PAUSE_SECONDS))

    def _still_seconds(self, path: Path, found: Look, *, waited: float) -> float:
        """Since when nothing of it has changed: as seen here, or longer, as its files' times say."""
        stillness = self._stillness.setdefault(path, Stillness())
        while len(self._stillness) > _REMEMBERED:
            self._stillness.popitem(last=False)
        seen = stillness.seconds(found.marks, now=time.monotonic())
        if not found.marks:
            return max(seen, waited)  # an empty folder says nothing about its age
        # A file that is copied with its original's times is old as soon as it is whole, and the next may be on its way.
        changed_ns = found.touched_ns if found.lacking else max(mark.modified_ns for mark in found.marks)
        # A clock of another machine may be ahead: then only what was seen counts.
        return max(seen, time.time() - changed_ns / 1e9)
