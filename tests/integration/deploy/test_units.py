"""The systemd units: what systemd itself says of them, and that our programs keep what they promise."""

import asyncio
import contextlib
import os
import shlex
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from archaeologist.bus.keys import inbox_prefix
from archaeologist.cli.app import app
from archaeologist.settings import Settings, load
from archaeologist.watchdog import STALE_SECONDS
from tests.fixtures.servers import Server
from tests.fixtures.waiting import until
from tests.integration.deploy.conftest import DEPLOY, read_environment, systemd_analyze

UNITS: Final = sorted((DEPLOY / "systemd").glob("*.service"))
OURS: Final = [unit for unit in UNITS if "nats" not in unit.name]
EXPOSURE: Final = 20
"""Tenths; systemd calls up to 2.0 OK, and 9.6 is a service without any of these lines."""


def lines(unit: Path) -> list[tuple[str, str]]:
    """Every setting of a unit's [Service] section, in order."""
    found, section = [], ""
    for line in unit.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.append((name, value))
    return found


def value(unit: Path, name: str) -> str:
    """The last value of a setting."""
    return dict(lines(unit))[name]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_finds_nothing_wrong_with_a_unit(unit: Path, tmp_path: Path) -> None:
    # A program that is there stands for the installed one.
    copy = tmp_path / unit.name
    text = unit.read_text(encoding="utf-8")
    copy.write_text(text.replace(value(unit, "ExecStart").split()[0], "/bin/sh"), encoding="utf-8")
    done = systemd_analyze("verify", "--man=no", copy)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_exposes_little(unit: Path) -> None:
    done = systemd_analyze("security", "--offline=true", f"--threshold={EXPOSURE}", unit)
    assert done.returncode == 0, done.stdout.splitlines()[-1:]


def test_the_threshold_can_be_missed(tmp_path: Path) -> None:
    bare = tmp_path / "bare.service"
    bare.write_text("[Service]\nExecStart=/bin/sh\n")
    assert systemd_analyze("security", "--offline=true", f"--threshold={EXPOSURE}", bare).returncode != 0


@pytest.mark.parametrize("unit", OURS, ids=lambda unit: unit.stem)
def test_a_unit_starts_a_command_of_ours_with_settings_that_are_known(unit: Path) -> None:
    program, command = shlex.split(value(unit, "ExecStart"))
    assert Path(program).name == "archaeologist"
    assert command in {known.name or getattr(known.callback, "__name__", "") for known in app.registered_commands}
    variables = read_environment(DEPLOY / Path(value(unit, "EnvironmentFile")).name)
    settings = load(config=DEPLOY / "archaeologist.toml", environ=variables)
    role = {"daemon": "worker", "web": "web"}[command]
    assert settings.bus.nkey_seed == f"/etc/archaeologist/keys/{role}.nk"
    assert settings.bus.inbox_prefix == inbox_prefix(role)


def test_the_daemon_has_time_to_end_and_is_not_taken_for_dead_before_it_stops_pinging() -> None:
    daemon = DEPLOY / "systemd" / "archaeologist-daemon.service"
    jobs = Settings().jobs
    assert float(value(daemon, "TimeoutStopSec")) > jobs.grace_seconds + jobs.kill_after_seconds
    assert float(value(daemon, "WatchdogSec")) >= 2 * STALE_SECONDS
    assert (value(daemon, "KillMode"), value(daemon, "OOMPolicy")) == ("mixed", "continue")


def test_what_a_trainer_shares_in_memory_outlives_our_services() -> None:
    # With --user it is the same user's, and systemd would remove it when a service ends.
    assert [dict(lines(unit)).get("RemoveIPC", "no") for unit in OURS] == ["no", "no"]


# What the programs tell the manager.


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(60)
        yield listening


def environment(tmp_path: Path, url: str, **more: str) -> dict[str, str]:
    """What systemd sets, and where everything is."""
    return {
        **os.environ,
        "ARCHAEOLOGIST_ROOT": str(tmp_path),
        "ARCHAEOLOGIST_NATS_URL": url,
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
        "WATCHDOG_USEC": "200000",
        **more,
    }


@pytest.mark.parametrize("command", ["daemon", "web"])
async def test_a_service_says_that_it_is_ready_alive_and_stopping_and_a_frozen_one_says_nothing(
    command: str, manager: socket.socket, tmp_path: Path
) -> None:
    async with Server(tmp_path / "nats") as server:
        variables = environment(tmp_path, server.url, ARCHAEOLOGIST_WEB__PORT="0")
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "archaeologist", command, env=variables)
        try:
            heard = [await asyncio.to_thread(manager.recv, 100) for _ in range(4)]
            assert set(heard) == {b"READY=1", b"WATCHDOG=1"}
            process.send_signal(signal.SIGSTOP)
            await until(lambda: _is_stopped(process.pid))
            _empty(manager)
            manager.settimeout(1.0)
            with pytest.raises(TimeoutError):
                await asyncio.to_thread(manager.recv, 100)
            process.send_signal(signal.SIGCONT)
            process.terminate()
            manager.settimeout(30)
            while await asyncio.to_thread(manager.recv, 100) != b"STOPPING=1":
                pass
            assert await asyncio.wait_for(process.wait(), timeout=30) == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "T"


def _empty(manager: socket.socket) -> None:
    manager.settimeout(0)
    with contextlib.suppress(BlockingIOError):
        while True:
            manager.recv(100)
