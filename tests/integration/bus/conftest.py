"""A server of its own for each test, a connection to it, and the topology on it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from archaeologist.bus.connection import Bus, connected
from archaeologist.bus.topology import ensure
from archaeologist.settings import BusSettings, JobsSettings, Settings
from tests.fixtures.servers import Server

LEASE_SECONDS = 0.6


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with Server(tmp_path / "nats") as server:
        yield server


@pytest.fixture
def settings(server: Server) -> Settings:
    """With a lease so short that a test can wait for it."""
    return Settings(bus=BusSettings(url=server.url), jobs=JobsSettings(lease_seconds=LEASE_SECONDS))


@pytest.fixture
async def bus(settings: Settings) -> AsyncIterator[Bus]:
    """With the topology in place."""
    async with connected(settings.bus, name="test") as bus:
        await ensure(bus, settings)
        yield bus
