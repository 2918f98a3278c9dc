"""The connection to the bus while the API serves. Reading files needs none, so a bus that is down is waited for."""

import asyncio
from datetime import UTC, datetime
from typing import Final

from archaeologist import metrics, tasks
from archaeologist.bus.connection import Bus, connect, shown_address
from archaeologist.errors import BusUnavailable
from archaeologist.settings import BusSettings
from contracts.http import BusStatus

LOOK_SECONDS: Final = 0.5
"""How soon a connection that is lost or there again is noticed."""


class Link:
    """The bus, as far as it is there.

    Args:
        settings: How to reach it.
    """

    def __init__(self, settings: BusSettings) -> None:
        self._settings = settings
        self._shown = shown_address(settings.url)
        self._bus: Bus | None = None
        self._was_connected = False
        self._since = datetime.now(UTC)
        metrics.watch_bus("web", lambda: self.is_connected)

    @property
    def is_connected(self) -> bool:
        """Whether the bus is there right now."""
        return self._bus is not None and self._bus.is_connected

    @property
    def status(self) -> BusStatus:
        """The connection, for people."""
        self._look()
        error = None if self.is_connected or self._bus is None else self._bus.last_error
        return BusStatus(
            connected=self.is_connected, url=self._shown, since=self._since.isoformat(timespec="seconds"), error=error
        )

    def bus(self) -> Bus:
        """The connection.

        Raises:
            BusUnavailable: There is none now.
        """
        if self._bus is None or not self._bus.is_connected:
            msg = f"there is no connection to the bus at {self._shown}; nothing was sent, is the server up?"
            raise BusUnavailable(msg)
        return self._bus

    async def keep(self, stop: asyncio.Event) -> None:
        """Connects, again after each loss, until ``stop``.

        Raises:
            SettingInvalid: The address or a file of credentials is wrong.
        """
        while not stop.is_set():
            connecting = asyncio.ensure_future(connect(self._settings, name="archaeologist web", wait=True))
            stopping = asyncio.ensure_future(stop.wait())
            try:
                await asyncio.wait({connecting, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if connecting.done():
                    await self._hold(connecting.result(), stop)
            finally:
                await tasks.end(connecting, stopping)

    async def _hold(self, bus: Bus, stop: asyncio.Event) -> None:
        self._bus = bus
        try:
            while not (stop.is_set() or bus.closed.is_set()):
                self._look()
                await tasks.pause(LOOK_SECONDS, until=stop)
        finally:
            self._bus = None
            self._look()
            await bus.close()

    def _look(self) -> None:
        """Notes since when the bus is there, or away."""
        if self.is_connected is not self._was_connected:
            self._was_connected = self.is_connected
            self._since = datetime.now(UTC)
