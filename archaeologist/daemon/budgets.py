"""How much disk pins and sketches may hold, and whether pins hold it all. Blocking."""

import shutil
import time
from typing import Final

from archaeologist.artifacts.paths import campaign_folders
from archaeologist.checkpoints import pins
from archaeologist.settings import Settings

GIGABYTE: Final = 1_000_000_000
SHARE_OF_DISK: Final = 10
"""Pins may hold one part in so many of their file system, where the settings name no size."""
MEASURED_SECONDS: Final = 30.0
"""Between two measurements at admission: of thousands of pins one takes a tenth of a second."""


def pins_budget_bytes(settings: Settings) -> int:
    """What pins may hold of checkpoints that are gone."""
    if settings.pins.max_gb is not None:
        return int(settings.pins.max_gb * GIGABYTE)
    root = settings.root_path
    there = next(path for path in (root, *root.parents) if path.exists())
    return shutil.disk_usage(there).total // SHARE_OF_DISK


def sketches_budget_bytes(settings: Settings) -> int:
    """What the sketches of all campaigns may hold."""
    return int(settings.sketches.max_gb * GIGABYTE)


def overdrawn(held_bytes: int, budget_bytes: int) -> str:
    """How much pins hold of how much, in words."""
    return f"pins hold {held_bytes / GIGABYTE:.1f} of {budget_bytes / GIGABYTE:.1f} GB (pins.max_gb)"


class PinBudget:
    """Whether there is room for another pin, measured now and then.

    What is counted are files that nothing but pins has any more. A new pin adds nothing until the trainer deletes its
    checkpoint, so pins can pass the budget by what the trainer keeps (``save_total_limit``), and not further.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._measured_at: float | None = None
        self._reason: str | None = None

    def reason_for_none(self) -> str | None:
        """Why nothing more is pinned; None while there is room."""
        now = time.monotonic()
        if self._measured_at is None or now - self._measured_at > MEASURED_SECONDS:
            self._measured_at = now
            budget = pins_budget_bytes(self._settings)
            held = pins.held_bytes(folder.pins for folder in campaign_folders(self._settings.root_path))
            self._reason = overdrawn(held, budget) if held > budget else None
        return self._reason
