"""The daemon as a process of its own: small, patient, and gone when told."""

import asyncio
import json
import signal
from pathlib import Path

import pytest

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.artifacts.store import read_layer_stats
from archaeologist.bus.connection import Bus, connected
from archaeologist.bus.log import events
from archaeologist.bus.publisher import publish
from archaeologist.settings import BusSettings, Settings
from contracts.messages import Event
from tests.fixtures.checkpoints import write_checkpoint
from tests.fixtures.kernels import share_kernels
from tests.fixtures.programs import UNMEASURED, Daemon
from tests.fixtures.servers import Server
from tests.fixtures.waiting import until

MAX_RESIDENT_BYTES = 120_000_000


async def until_ready(daemon: Daemon) -> None:
    await until(lambda: '"ready"' in daemon.log(), seconds=30)


async def until_event(bus: Bus, kind: str) -> Event:
    async with asyncio.timeout(90):
        async for logged in events(bus, follow=True):
            if logged.event.type == kind:
                return logged.event
    raise AssertionError


def resident_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def mapped_files(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")


async def test_a_daemon_at_rest_holds_less_than_120_megabytes_and_no_compiled_library(tmp_path: Path) -> None:
    async with (
        Server(tmp_path / "nats") as server,
        Daemon(root=tmp_path / "root", url=server.url, environment=UNMEASURED) as daemon,
    ):
        await until_ready(daemon)
        resident = resident_bytes(daemon.pid)
        mapped = mapped_files(daemon.pid)
    assert resident < MAX_RESIDENT_BYTES
    for library in ("libtorch", "llvmlite", "numpy", "safetensors"):
        assert library not in mapped


async def test_a_daemon_waits_for_a_bus_that_is_down_and_ends_on_sigterm(tmp_path: Path) -> None:
    server = Server(tmp_path / "nats")
    async with Daemon(root=tmp_path / "root", url=server.url) as daemon:
        await until(lambda: "waiting for the bus" in daemon.log(), seconds=30)
        await server.start()
        await until_ready(daemon)
        assert await daemon.stop() == 0
    await server.kill()


@pytest.mark.timeout(240)
async def test_a_daemon_killed_in_the_middle_of_a_job_leaves_it_to_its_successor(tmp_path: Path, kernels: Path) -> None:
    share_kernels(tmp_path / "root")
    folder = CampaignFolder.of(tmp_path / "root", "dio", "c1")
    write_checkpoint(folder.checkpoints / "checkpoint-100", seed=1)
    fast = {"ARCHAEOLOGIST_JOBS__LEASE_SECONDS": "3", "ARCHAEOLOGIST_JOBS__HEARTBEAT_SECONDS": "1"}
    async with Server(tmp_path / "nats") as server:
        settings = Settings(root=str(folder.root), bus=BusSettings(url=server.url))
        async with (
            Daemon(root=folder.root, url=server.url, environment=fast) as daemon,
            connected(settings.bus, name="test") as bus,
        ):
            await until_ready(daemon)
            body = {"hero_id": "dio", "campaign_id": "c1", "checkpoint_step": 100}
            await publish(bus, "analysis.requested", json.dumps(body).encode(), message_id="r")
            await until_event(bus, "analysis.started")
            await daemon.signal(signal.SIGSTOP)
            await daemon.kill()
            await daemon.start()
            completed = await until_event(bus, "analysis.completed")
            found = [logged.event.type async for logged in events(bus, follow=False)]
            assert await daemon.stop() == 0
    assert found.count("analysis.completed") == 1
    assert read_layer_stats(folder.layer_stats(100)).job_key == completed.data["job_key"]
    assert [path.name for path in folder.path.rglob("*.tmp")] == []
