"""Which priority is served next: the better one first, and none waits for ever. Pure."""

from collections.abc import Mapping

from contracts import subjects
from contracts.messages import Priority


def choose(waiting: Mapping[Priority, int], passed: Mapping[Priority, int], *, low_after: float) -> Priority | None:
    """The priority to serve: one that was passed over ``low_after`` times, the longest first; else the best.

    Args:
        waiting: Jobs by priority.
        passed: From ``after``.
        low_after: How many jobs of better priorities may go before one of a lower.
    """
    present: list[Priority] = [priority for priority in subjects.PRIORITIES if waiting.get(priority)]
    due = [priority for priority in present if passed.get(priority, 0) >= low_after]
    if due:
        return max(due, key=lambda priority: passed[priority])
    return present[0] if present else None


def after(served: Priority, waiting: Mapping[Priority, int], passed: Mapping[Priority, int]) -> dict[Priority, int]:
    """How often each priority was passed over, once a job of ``served`` was taken."""
    lower = subjects.PRIORITIES[subjects.PRIORITIES.index(served) + 1 :]
    return {
        priority: 0 if priority == served or not count else passed.get(priority, 0) + (priority in lower)
        for priority, count in waiting.items()
    }
