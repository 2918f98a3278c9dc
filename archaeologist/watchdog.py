"""systemd's notifications: ready, and a sign of life while a service's loop comes round.

Nothing happens where no service manager asked for it (``NOTIFY_SOCKET``, ``WATCHDOG_USEC``; sd_notify(3)).
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from typing import Final

STALE_SECONDS: Final = 30.0
"""A loop that has not come round for this long gives no sign of life."""


def notify(state: str) -> None:
    """Tells the service manager a state, ``READY=1`` for instance."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(state.encode(), address)


async def watch(ticked_at: Callable[[], float], done: asyncio.Event) -> None:
    """Pings the watchdog at half its interval while ``ticked_at`` is recent, until ``done``."""
    interval = int(os.environ.get("WATCHDOG_USEC", "0")) / 2e6
    while not done.is_set():
        if interval and asyncio.get_running_loop().time() - ticked_at() < STALE_SECONDS:
            notify("WATCHDOG=1")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(done.wait(), timeout=interval or None)
    notify("STOPPING=1")
