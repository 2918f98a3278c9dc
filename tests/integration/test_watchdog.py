"""What the service manager hears, on a real socket."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from archaeologist import watchdog


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listening


def test_ready_is_told(manager: socket.socket) -> None:
    watchdog.notify("READY=1")
    assert manager.recv(100) == b"READY=1"


def test_nobody_is_told_where_nobody_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    watchdog.notify("READY=1")


def test_a_manager_that_went_away_does_not_end_the_daemon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    watchdog.notify("READY=1")


async def test_a_loop_that_comes_round_pings_and_one_that_hangs_does_not(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    watching = asyncio.create_task(watchdog.watch(loop.time, done))
    assert await asyncio.to_thread(manager.recv, 100) == b"WATCHDOG=1"
    assert await asyncio.to_thread(manager.recv, 100) == b"WATCHDOG=1"
    done.set()
    await watching
    stale = loop.time() - watchdog.STALE_SECONDS - 1
    hung = asyncio.Event()
    watching = asyncio.create_task(watchdog.watch(lambda: stale, hung))
    loop.call_later(0.3, hung.set)
    await watching
    manager.settimeout(0)
    heard = []
    while True:
        try:
            heard.append(manager.recv(100))
        except BlockingIOError:
            break
    assert heard.count(b"STOPPING=1") == 2
    assert b"WATCHDOG=1" not in heard[heard.index(b"STOPPING=1") :]
