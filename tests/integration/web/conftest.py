"""A server, a campaign and the API on them."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.fixtures.waiting import until_asked
from tests.fixtures.web import served
from tests.integration.daemon.house import House, opened


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with opened(tmp_path) as house:
        yield house


@pytest.fixture
async def api(house: House) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a real server that has found the bus."""
    async with served(house.settings) as client:
        await until_ready(client)
        yield client


async def until_ready(client: httpx.AsyncClient, *, status: int = 200) -> None:
    async def is_so() -> bool:
        return (await client.get("/ready")).status_code == status

    await until_asked(is_so)
