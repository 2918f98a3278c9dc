"""A server that runs on exactly ``deploy/nats-server.conf``, and each role's way to it."""

import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from archaeologist.bus.connection import connected
from archaeologist.bus.keys import SERVER_FILE, ensure_keys, inbox_prefix
from archaeologist.bus.topology import ensure
from archaeologist.settings import BusSettings, Settings
from tests.fixtures.servers import Server

DEPLOY: Final = Path(__file__).parents[3] / "deploy"


@dataclass(frozen=True)
class Guarded:
    """The server and the keys to it."""

    server: Server
    keys: Path

    def bus(self, role: str) -> BusSettings:
        """How a role reaches it."""
        seed = str(self.keys / f"{role}.nk")
        return BusSettings(url=self.server.url, nkey_seed=seed, inbox_prefix=inbox_prefix(role))

    def environment(self, role: str) -> dict[str, str]:
        """The same as variables."""
        ours = self.bus(role)
        return {
            "ARCHAEOLOGIST_NATS_URL": ours.url,
            "ARCHAEOLOGIST_BUS__NKEY_SEED": str(ours.nkey_seed),
            "ARCHAEOLOGIST_BUS__INBOX_PREFIX": ours.inbox_prefix,
        }

    def violations(self) -> list[str]:
        """What somebody tried that is not allowed, by the server's log."""
        return [line for line in self.server.log().splitlines() if "Violation" in line]


def systemd_analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs it. Without it the test is skipped; in CI, which installs it, it fails."""
    program = shutil.which("systemd-analyze")
    if program is None:
        reason = "systemd-analyze is not here: apt-get install systemd"
        assert not os.environ.get("CI"), reason
        pytest.skip(reason)
    return subprocess.run([program, *map(str, arguments)], capture_output=True, check=False, text=True, timeout=60)


def read_environment(path: Path) -> dict[str, str]:
    """The variables of an environment file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def server_variables(keys: Path, store: Path) -> dict[str, str]:
    """The environment of the server, as its unit has it."""
    return {**read_environment(keys / SERVER_FILE), "NATS_STORE": str(store)}


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Guarded]:
    """With the streams that admin has made."""
    keys = tmp_path / "keys"
    ensure_keys(keys)
    environment = server_variables(keys, tmp_path / "store")
    async with Server(tmp_path / "nats", file=DEPLOY / "nats-server.conf", environment=environment) as server:
        found = Guarded(server, keys)
        async with connected(found.bus("admin"), name="admin") as bus:
            await ensure(bus, Settings())
        yield found
