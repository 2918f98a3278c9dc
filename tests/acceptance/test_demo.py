"""``archaeologist demo`` as a person runs it, with fewer steps; and what it says when something goes wrong."""

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from archaeologist.artifacts.store import read_layer_stats
from tests.fixtures.kernels import share_kernels
from tests.fixtures.servers import free_port

SHORT = ("--steps", "360", "--save-every", "60")
"""Six checkpoints of a model that has begun to learn."""


class Demo:
    """A running demo and what it has printed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.output = ""

    async def until(self, pattern: str, *, timeout_seconds: float = 120.0) -> re.Match[str]:
        """Reads on until a line matches."""
        assert self.process.stdout is not None
        async with asyncio.timeout(timeout_seconds):
            async for line in self.process.stdout:
                self.output += line.decode()
                if match := re.search(pattern, line.decode()):
                    return match
        pytest.fail(f"the demo ended without a line like {pattern!r}:\n{self.output}")

    async def end(self, *, timeout_seconds: float = 300.0) -> int:
        """Reads to the end; the exit code."""
        assert self.process.stdout is not None
        async with asyncio.timeout(timeout_seconds):
            self.output += (await self.process.stdout.read()).decode()
            return await self.process.wait()


@contextlib.asynccontextmanager
async def demo(root: Path, *arguments: str) -> AsyncIterator[Demo]:
    # A port of its own: two demos that start at once would both find the usual one free.
    store = root / ".archaeologist" / "nats"
    store.mkdir(parents=True)
    (store / "port").write_text(str(free_port()))
    share_kernels(root)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "archaeologist", "demo", "--root", str(root), *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        yield Demo(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def is_served(url: str) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    except OSError:
        return False
    writer.close()
    return True


@pytest.mark.timeout(600)
async def test_the_demo_trains_analyses_and_shows_what_changed(tmp_path: Path, kernels: Path) -> None:
    async with demo(tmp_path, *SHORT) as running:
        started = await running.until(r"server at (\S+), daemon \(pid (\d+)\)")
        code = await running.end(timeout_seconds=500)
    assert code == 0, running.output
    for step in range(60, 361, 60):
        assert re.search(rf"completed +Analysis complete for checkpoint {step}\b", running.output)
        assert re.search(rf"│ +{step} │ +[01]\.\d\d │ +[01]\.\d\d │ +\d+\.\d{{3}} │", running.output), running.output
    # Thirty-two and sixty-four questions at six checkpoints: what they support is said, and no more.
    for skill, samples in (("BIN", 32), ("SY", 64)):
        assert re.search(rf"│ {skill} +│ +{samples} │ \d of 5 │ (nothing yet|a ranking) +│", running.output)
        assert re.search(rf"^{skill}: \d of 5 intervals between evaluated", running.output, re.MULTILINE)
    assert "Correlation is not cause" in running.output
    artifacts = [read_layer_stats(path) for path in sorted(tmp_path.rglob("*.layer_stats.json"))]
    assert [artifact.checkpoint_step for artifact in artifacts] == [60, 120, 180, 240, 300, 360]
    assert [bool(artifact.drift_stats) for artifact in artifacts] == [False, *[True] * 5]
    assert [artifact.reference_checkpoint_step for artifact in artifacts] == [None, 60, 120, 180, 240, 300]
    assert not is_alive(int(started[2]))
    assert not await is_served(started[1])


@pytest.mark.timeout(240)
async def test_ctrl_c_stops_all_that_was_started(tmp_path: Path, kernels: Path) -> None:
    async with demo(tmp_path, *SHORT) as running:
        started = await running.until(r"server at (\S+), daemon \(pid (\d+)\)")
        await running.until(r"trainer +saved step 60")
        running.process.send_signal(signal.SIGINT)
        code = await running.end(timeout_seconds=60)
    assert code == 130, running.output
    assert not is_alive(int(started[2]))
    assert not await is_served(started[1])


@pytest.mark.timeout(240)
async def test_a_daemon_that_dies_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    async with demo(tmp_path, *SHORT) as running:
        started = await running.until(r"server at (\S+), daemon \(pid (\d+)\)")
        os.kill(int(started[2]), signal.SIGKILL)
        code = await running.end(timeout_seconds=60)
    assert code == 1, running.output
    assert "error: demo_failed: the daemon ended by itself (exit code -9); its log" in running.output
    assert not await is_served(started[1])


@pytest.mark.timeout(240)
async def test_too_few_checkpoints_are_told_and_fail_the_demo(tmp_path: Path, kernels: Path) -> None:
    async with demo(tmp_path, "--steps", "6", "--save-every", "3") as running:
        code = await running.end()
    assert code == 1, running.output
    assert "2 checkpoints analysed, at least 6 are expected" in running.output
    assert "1 of them with drift, at least 5 are expected" in running.output
