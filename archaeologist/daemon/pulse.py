"""How the daemon is right now, for whoever asks from outside: a service manager, a balancer, Prometheus."""

import asyncio
from typing import TYPE_CHECKING, Final

from archaeologist import metrics
from archaeologist.bus.connection import Bus
from archaeologist.daemon.books import Books
from archaeologist.errors import TemporaryError
from archaeologist.watchdog import STALE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

MEASURE_SECONDS: Final = 3.0
"""Prometheus itself gives up after ten seconds."""
FRESH_SECONDS: Final = 1.0
"""However often it is asked, the bus is asked once a second."""


class Pulse:
    """What the daemon shows of itself; it sets the fields, others read."""

    def __init__(self) -> None:
        self.bus: Bus | None = None
        """None: not connected yet."""
        self.ticked_at: Callable[[], float] | None = None
        """When the executor's loop last came round; None: it has not begun."""
        metrics.watch_bus("daemon", lambda: self.bus is not None and self.bus.is_connected)

    def begin(self, bus: Bus) -> None:
        """There is a connection."""
        self.bus = bus

    def trouble(self, *, now: float) -> str | None:
        """Why no job is taken now; None: jobs are taken."""
        if self.bus is None or not self.bus.is_connected:
            where = f" at {self.bus.shown}" if self.bus else ""
            return f"no connection to the bus{where}"
        if self.ticked_at is None:
            return "connected, but streams and buckets are not there yet"
        if (age := now - self.ticked_at()) > STALE_SECONDS:
            return f"the loop has not come round for {age:.0f} s"
        return None


class QueueGauge:
    """Keeps the measure of the queue current for whoever scrapes."""

    def __init__(self) -> None:
        self._measured_at = float("-inf")
        self._lock = asyncio.Lock()

    async def refresh(self, bus: Bus | None) -> None:
        """Asks the bus how long the queue is; where it does not say, the measure is absent."""
        async with self._lock:
            now = asyncio.get_running_loop().time()
            if now - self._measured_at >= FRESH_SECONDS:
                metrics.set_queue(await _queue(bus))
                self._measured_at = now


async def _queue(bus: Bus | None) -> dict[tuple[str, str, str], int]:
    if bus is None or not bus.is_connected:
        return {}
    try:
        async with asyncio.timeout(MEASURE_SECONDS):
            backlog = await Books.on(bus).queue.backlog()
    except (TemporaryError, TimeoutError):
        return {}
    found: dict[tuple[str, str, str], int] = {}
    for (job_type, priority), lying in backlog.items():
        found[job_type, priority, "waiting"] = lying.waiting
        found[job_type, priority, "in_flight"] = lying.in_flight
    return found
