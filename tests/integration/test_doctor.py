"""Doctor finds each mistake from its real cause, and says what to do."""

import asyncio
import contextlib
import dataclasses
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.bus.connection import connected
from archaeologist.bus.topology import ensure
from archaeologist.cli import doctor
from archaeologist.cli.doctor import Check
from archaeologist.settings import BusSettings, NotifySettings, Settings
from tests.fixtures.checkpoints import write_checkpoint
from tests.fixtures.servers import Server, free_port

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 -- the file system itself is what is wanted


async def looked(part: Callable[[Settings], Iterator[Check]], settings: Settings) -> list[Check]:
    """What a part finds; it has an event loop of its own."""
    return await asyncio.to_thread(lambda: list(doctor._carefully(part, settings)))


async def bus_checks(url: str) -> list[Check]:
    """What is found of a bus."""
    return await looked(doctor._check_bus, Settings(bus=BusSettings(url=url, connect_timeout_seconds=2.0)))


def troubles(checks: list[Check]) -> list[tuple[str, str]]:
    """Name and status of whatever is not all right."""
    return [(check.name, check.status) for check in checks if check.status != "ok"]


@dataclasses.dataclass
class Relay:
    """Stands between a client and a real server, and changes what the server says."""

    target: int
    change: Callable[[bytes], bytes]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        there, back = await asyncio.open_connection("127.0.0.1", self.target)

        async def pump(
            source: asyncio.StreamReader, sink: asyncio.StreamWriter, change: Callable[[bytes], bytes]
        ) -> None:
            with contextlib.suppress(ConnectionError):
                while content := await source.read(1 << 20):
                    sink.write(change(content))
                    await sink.drain()
            sink.close()

        await asyncio.gather(pump(reader, back, bytes), pump(there, writer, self.change))


@contextlib.asynccontextmanager
async def relayed(server: Server, change: Callable[[bytes], bytes]) -> AsyncIterator[str]:
    """The address of a server behind a relay."""
    port = free_port()
    async with await asyncio.start_server(Relay(server.port, change).serve, "127.0.0.1", port):
        yield f"nats://127.0.0.1:{port}"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with Server(tmp_path / "nats") as server:
        yield server


@pytest.fixture
async def ready(server: Server) -> Server:
    """With everything that is declared."""
    async with connected(BusSettings(url=server.url), name="test") as bus:
        await ensure(bus, Settings())
    return server


# The bus.


async def test_a_bus_as_it_shall_be_is_all_right(ready: Server) -> None:
    checks = await bus_checks(ready.url)
    assert troubles(checks) == []
    assert {check.name for check in checks} == {"bus", "clock", "streams"}


async def test_nobody_at_the_address_is_an_error_with_the_way_to_start_one() -> None:
    [check] = await bus_checks(f"nats://127.0.0.1:{free_port()}")
    assert (check.name, check.status) == ("bus", "error")
    assert "`archaeologist up`" in check.message


async def test_streams_that_are_missing_or_different_are_named_with_the_command_that_makes_them(server: Server) -> None:
    missing = [check for check in await bus_checks(server.url) if check.name == "streams"]
    assert any("stream CHECKPOINTS is missing" in check.message for check in missing)
    assert {check.remedy for check in missing} == {"run `archaeologist bus ensure`"}
    async with connected(BusSettings(url=server.url), name="test") as bus:
        await ensure(bus, Settings())
        config = (await bus.jetstream.stream_info("BATTLE_LOG")).config
        await bus.jetstream.update_stream(config.evolve(max_age=172_800.0))
        await bus.jetstream.delete_consumer("ARCHAEOLOGIST_JOBS", "archaeologist-layer_stats-high")
    wrong = [check.message for check in await bus_checks(server.url) if check.status != "ok"]
    assert wrong == [
        "stream BATTLE_LOG: max_age is 172800.0, it must be 2592000.0",
        "consumer archaeologist-layer_stats-high is missing",
    ]


async def test_a_server_without_jetstream_is_an_error(tmp_path: Path) -> None:
    config = tmp_path / "bare.conf"
    config.write_text("")
    async with Server(tmp_path / "nats", file=config) as server:
        checks = await bus_checks(server.url)
    assert troubles(checks) == [("jetstream", "error")]
    assert any("start it with -js" in (check.remedy or "") for check in checks)


async def test_an_old_server_is_an_error(ready: Server) -> None:
    def older(content: bytes) -> bytes:
        return re.sub(rb'"version":"[\d.]+"', b'"version":"2.10.26"', content)

    async with relayed(ready, older) as url:
        checks = await bus_checks(url)
    assert troubles(checks) == [("bus", "error")]
    assert "nats-server 2.10.26 is too old" in checks[0].message
    assert "2.11.0" in (checks[0].remedy or "")


async def test_a_server_whose_clock_is_a_year_off_is_a_warning(ready: Server) -> None:
    def a_year_later(content: bytes) -> bytes:  # of the same length, as the protocol counts
        return re.sub(rb'"ts":"(\d{4})', lambda found: b'"ts":"%04d' % (int(found[1]) + 1), content)

    async with relayed(ready, a_year_later) as url:
        checks = await bus_checks(url)
    assert troubles(checks) == [("clock", "warning")]
    assert any("chrony" in (check.remedy or "") for check in checks)


async def test_a_store_that_is_nearly_full_is_a_warning(tmp_path: Path) -> None:
    config = tmp_path / "small.conf"
    limits = "accounts { A { jetstream { max_file: 20000 }, users: [ { user: a, password: a } ] } }"
    config.write_text(f'jetstream {{ store_dir: "{tmp_path / "store"}" }}\nno_auth_user: a\n{limits}\n')
    async with Server(tmp_path / "nats", file=config) as server:
        async with connected(BusSettings(url=server.url), name="test") as bus:
            await bus.jetstream.add_stream(name="FULL", subjects=["full"])
            await bus.jetstream.publish("full", b"x" * 19_000)
        checks = await bus_checks(server.url)
    assert ("jetstream", "warning") in troubles(checks)


# The machine.


@pytest.mark.parametrize("root", ["/nowhere/at/all", "/proc"])
async def test_a_root_that_is_not_there_or_not_writable_is_an_error(root: str) -> None:
    checks = await looked(doctor._check_root, Settings(root=root))
    assert troubles(checks) == [("root", "error")]
    assert checks[0].remedy


async def test_a_folder_that_is_allowed_and_not_there_is_a_warning(tmp_path: Path) -> None:
    checks = await looked(doctor._check_root, Settings(root=str(tmp_path), allowed=(str(tmp_path / "unmounted"),)))
    assert ("root", "warning") in troubles(checks)


async def test_checkpoints_on_another_file_system_cannot_be_pinned(tmp_path: Path) -> None:
    if not SHARED_MEMORY.is_dir() or SHARED_MEMORY.stat().st_dev == tmp_path.stat().st_dev:
        assert not os.environ.get("CI"), "CI has a file system of its own there"
        pytest.skip(f"{SHARED_MEMORY} is no file system of its own here")
    folder = CampaignFolder.of(tmp_path, "dio", "c1")
    folder.path.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as elsewhere:
        write_checkpoint(Path(elsewhere) / "checkpoint-100", seed=1)
        folder.checkpoints.symlink_to(elsewhere)
        [check] = await looked(doctor._check_pins, Settings(root=str(tmp_path)))
    assert (check.name, check.status) == ("pins", "warning")
    assert "one file system" in (check.remedy or "")


async def test_a_gpu_beside_a_torch_without_cuda_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch  # noqa: PLC0415 - most tests do without it

    if torch.version.cuda is not None:
        pytest.skip("torch has CUDA here")
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho NVIDIA GeForce RTX 3090\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    checks = await looked(doctor._check_libraries, Settings())
    assert troubles(checks) == [("gpu", "warning")]
    [check] = [check for check in checks if check.name == "gpu"]
    assert "NVIDIA GeForce RTX 3090, but torch has no CUDA" in check.message
    assert "CUDA build of torch" in (check.remedy or "")


async def test_a_command_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    [check] = await looked(doctor._check_notify, Settings(notify=NotifySettings(command=("/no/such/program",))))
    assert (check.status, "notify.command" in (check.remedy or "")) == ("error", True)
    [check] = await looked(doctor._check_notify, Settings(notify=NotifySettings(command=(str(shutil.which("sh")),))))
    assert check.status == "ok"


@pytest.mark.parametrize(
    ("version", "status"), [("v2.10.26", "warning"), ("v2.9.3", "warning"), ("v2.11.0", "ok"), ("v2.15.1-RC.1", "ok")]
)
def test_an_old_server_beside_the_interpreter_is_a_warning(version: str, status: str) -> None:
    assert doctor.own_server(version, "/bin/nats-server").status == status
