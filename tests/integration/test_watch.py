"""``archaeologist watch`` as a process of its own: killed, restarted, without a bus, and never twice."""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from archaeologist.bus.publisher import publish
from archaeologist.settings import BusSettings
from archaeologist.watcher import service
from archaeologist.watcher.ledger import Ledger, LedgerFile
from archaeologist.watcher.survey import Rules
from tests.fixtures.announcements import announced, make_streams
from tests.fixtures.checkpoints import write_checkpoint
from tests.fixtures.programs import UNMEASURED
from tests.fixtures.servers import Server
from tests.fixtures.waiting import until, until_asked


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with Server(tmp_path / "nats") as running:
        await make_streams(running)
        yield running


class Watcher:
    """A watcher of one folder, and what it logged."""

    def __init__(self, server: Server, root: Path) -> None:
        self.folder = root / "campaigns" / "hero" / "one" / "checkpoints"
        self._root = root
        self._environment = {**os.environ, **UNMEASURED, "ARCHAEOLOGIST_NATS_URL": server.url}
        self.log_path = root / "watch.log"

    @property
    def ledger(self) -> str:
        """What it has written down."""
        return "".join(path.read_text() for path in self._root.glob(".archaeologist/watch/*.json"))

    async def start(self, *options: str) -> asyncio.subprocess.Process:
        """Starts one; it ends with the test."""
        self._root.mkdir(exist_ok=True)
        with self.log_path.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *(
                    sys.executable,
                    "-m",
                    "archaeologist",
                    "watch",
                    str(self.folder),
                    "--root",
                    str(self._root),
                    *options,
                ),
                env=self._environment,
                stdout=log,
                stderr=log,
            )

    @contextlib.asynccontextmanager
    async def running(self, *options: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """One for the length of a block."""
        process = await self.start(*options)
        try:
            yield process
        except BaseException:
            sys.stderr.write(self.log_path.read_text()[-4000:])
            raise
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def save(self, step: int, *, seed: int | None = None) -> Path:
        """A checkpoint as a Hugging Face Trainer leaves it."""
        return write_checkpoint(self.folder / f"checkpoint-{step}", seed=step if seed is None else seed, step=step)


async def steps(server: Server) -> list[int | None]:
    return [message.checkpoint_step for message, _ in await announced(server)]


async def until_announced(server: Server, *expected: int) -> None:
    async def is_so() -> bool:
        return await steps(server) == list(expected)

    try:
        await until_asked(is_so, seconds=30)
    except TimeoutError:
        assert await steps(server) == list(expected)


async def test_each_checkpoint_is_announced_once_whatever_dies_and_is_away_meanwhile(
    server: Server, tmp_path: Path
) -> None:
    watcher = Watcher(server, tmp_path / "root")
    async with watcher.running():
        await until(lambda: "is not there yet" in watcher.log_path.read_text(), seconds=30)
        watcher.save(2)
        await until_announced(server, 2)
        await server.kill()
        watcher.save(4)
        await until(lambda: "checkpoint-4" in watcher.ledger, seconds=30)
        # Killed with a message on its way, and no bus.
    watcher.save(6)
    async with watcher.running() as process:
        await until(lambda: "checkpoint-6" in watcher.ledger, seconds=30)
        await server.start()
        await until_announced(server, 2, 4, 6)
        # The same bytes again are nothing new, others are.
        shutil.rmtree(watcher.folder / "checkpoint-2")
        watcher.save(2)
        shutil.rmtree(watcher.folder / "checkpoint-4")
        watcher.save(4, seed=99)
        await until_announced(server, 2, 4, 6, 4)
        watcher.save(8)
        await until_announced(server, 2, 4, 6, 4, 8)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(15):
            assert await process.wait() == 0
    found = await announced(server)
    assert len({message_id for _, message_id in found}) == 5
    assert [message.metrics for message, _ in found] == [{"loss": 1.5}] * 5


async def test_a_checkpoint_in_the_middle_of_being_written_is_not_announced(server: Server, tmp_path: Path) -> None:
    watcher = Watcher(server, tmp_path / "root")
    whole = write_checkpoint(tmp_path / "whole" / "checkpoint-2", step=2)
    growing = watcher.folder / "checkpoint-2"
    growing.mkdir(parents=True)
    content = (whole / "model.safetensors").read_bytes()
    async with watcher.running("--quiet", "0.2"):
        (growing / "model.safetensors").write_bytes(content[: len(content) // 2])
        watcher.save(4)
        await until_announced(server, 4)
        (growing / "model.safetensors").write_bytes(content)
        (growing / "optimizer.pt").write_bytes(b"half")
        watcher.save(6)
        await until_announced(server, 4, 6)
        shutil.copy(whole / "trainer_state.json", growing)
        await until_announced(server, 4, 6, 2)


async def test_by_polling_and_by_one_look_the_same_is_found(server: Server, tmp_path: Path) -> None:
    watcher = Watcher(server, tmp_path / "root")
    watcher.save(2)
    async with watcher.running("--once") as process:
        assert await process.wait() == 0
    async with watcher.running("--poll", "0.1"):
        watcher.save(4)
        await until_announced(server, 2, 4)
        async with watcher.running() as second:
            assert await second.wait() == 1
        assert "watcher_running" in watcher.log_path.read_text()
    async with watcher.running("--once") as process:
        assert await process.wait() == 0
    assert await steps(server) == [2, 4]
    assert watcher.log_path.read_text().endswith("0 announced\n")


async def test_one_look_without_a_bus_fails_and_the_next_goes_on_with_it(server: Server, tmp_path: Path) -> None:
    watcher = Watcher(server, tmp_path / "root")
    watcher.save(2)
    await server.kill()
    async with watcher.running("--once") as process:
        await until(lambda: "trying again" in watcher.log_path.read_text(), seconds=30)
        process.send_signal(signal.SIGKILL)
    await server.start()
    async with watcher.running("--once") as process:
        assert await process.wait() == 0
    assert await steps(server) == [2]


async def test_only_new_ones_where_that_is_asked(server: Server, tmp_path: Path) -> None:
    watcher = Watcher(server, tmp_path / "root")
    watcher.save(2)
    write_checkpoint(watcher.folder / "checkpoint-3")  # whole as well, though no trainer's last file says so
    async with watcher.running("--only-new", "--quiet", "0.1"):
        await until(lambda: "watching" in watcher.log_path.read_text(), seconds=30)
        watcher.save(4)
        await until_announced(server, 4)
        write_checkpoint(watcher.folder / "checkpoint-5", seed=5)
        await until_announced(server, 4, 5)


async def test_one_look_waits_while_the_bus_confirms_one_after_another_and_writes_many_down_at_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []

    async def publish_slowly(*arguments: Any, **options: Any) -> None:
        await asyncio.sleep(0.5)
        await publish(*arguments, **options)

    class Counted(LedgerFile):
        def write(self, ledger: Ledger) -> None:
            written.append(len(ledger.pending))
            super().write(ledger)

    monkeypatch.setattr(service, "ONCE_SECONDS", 2.0)
    monkeypatch.setattr(service, "publish", publish_slowly)
    for step in range(1, 7):
        write_checkpoint(tmp_path / f"checkpoint-{step}", seed=step, step=step)
    empty = Ledger(folder=str(tmp_path), hero_id="hero", campaign_id="one")
    watch = service.Watch(rules=Rules(folder=tmp_path))
    bus = BusSettings(url=server.url)
    once = await service.run_once(watch, Counted(tmp_path / "state", empty), empty, bus=bus)
    assert once == (6, 0)
    assert await steps(server) == [1, 2, 3, 4, 5, 6]
    assert written == [0, 6, 0]


async def test_one_look_names_what_is_not_whole_and_a_folder_that_is_not_there(server: Server, tmp_path: Path) -> None:
    watcher = Watcher(server, tmp_path / "root")
    async with watcher.running("--once") as process:
        assert await process.wait() == 2
    said = watcher.log_path.read_text()
    assert f"folder '{watcher.folder}' is not there" in said
    watcher.save(2)
    weights = watcher.save(4) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    async with watcher.running("--once", "--quiet", "0.1") as process:
        assert await process.wait() == 0
    said = watcher.log_path.read_text()
    [told] = [line for line in said.splitlines() if "not announced: not whole" in line]
    assert "checkpoint-4" in told
    assert "header_invalid" in told
    assert said.endswith("1 announced, 1 not whole\n")
