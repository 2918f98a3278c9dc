"""Times that others wrote, in records and artifacts: read without trusting that they are any. Pure."""

from datetime import UTC, datetime
from typing import Final

EPOCH: Final = datetime.fromtimestamp(0, UTC)
"""Long ago: for who asks how old something is whose time cannot be read."""


def read_moment(text: str) -> datetime | None:
    """The moment that a time in RFC 3339 names, in UTC; None where it names none, or one before 1970."""
    try:
        found = datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return found if found >= EPOCH else None


def moment_or_epoch(text: str) -> datetime:
    """The same, long ago where there is none."""
    return read_moment(text) or EPOCH
