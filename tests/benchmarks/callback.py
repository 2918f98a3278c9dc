"""What the callback costs the training thread: a step, and a save. Run: python -m tests.benchmarks.callback.

A step is every event that the Trainer fires in one (begin, optimizer, end, log). A save puts a message in the queue;
the bus is a real server, then none at all. Prints microseconds.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from transformers import TrainerControl, TrainerState, TrainingArguments

from archaeologist.bus.connection import connected
from archaeologist.bus.server import EmbeddedServer
from archaeologist.bus.topology import ensure
from archaeologist.settings import BusSettings, Settings
from archaeologist.trainers.huggingface import ArchaeologistCallback

STEPS: Final = 20_000
SAVES: Final = 90
"""Fewer than may wait, so that no warning is part of the time."""
LOGGED: Final = 5_000
"""Entries in the log history: a long run's."""
STEP_EVENTS: Final = ("on_step_begin", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end", "on_log")
MICROSECONDS: Final = 1e6


def main() -> None:
    """Measures and prints."""
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_measure(Path(folder)))


async def _measure(folder: Path) -> None:
    server = await EmbeddedServer.start(folder / "nats")
    try:
        settings = BusSettings(url=server.url)
        async with connected(settings, name="benchmark") as bus:
            await ensure(bus, Settings(bus=settings))
        await asyncio.to_thread(_report, folder, server.url, "bus up")
    finally:
        await server.stop()
    await asyncio.to_thread(_report, folder, server.url, "bus down")


def _report(folder: Path, url: str, title: str) -> None:
    callback = ArchaeologistCallback(
        hero_id="hero", campaign_id="one", nats_url=url, skills={"BIN": 0.5}, flush_seconds=0.0
    )
    arguments = TrainingArguments(output_dir=str(folder), report_to=[])
    history = [{"loss": 1.0 / step, "learning_rate": 1e-3, "grad_norm": 1.0, "step": step} for step in range(1, LOGGED)]
    state = TrainerState(global_step=1, log_history=history)
    control = TrainerControl()
    (folder / "checkpoint-1").mkdir(exist_ok=True)

    def step() -> None:
        for event in STEP_EVENTS:
            getattr(callback, event)(arguments, state, control, logs={})

    def save() -> None:
        callback.on_save(arguments, state, control)

    saves = _times(save, SAVES)
    # Steps are measured while the thread delivers, or tries to: that is when it could be in the way.
    steps = _times(step, STEPS)
    callback._announcer.publisher.cancel()
    _print(f"{title}: a step", steps)
    _print(f"{title}: a save", saves)


def _times(call: Callable[[], None], count: int) -> list[float]:
    times = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * MICROSECONDS)
    return times


def _print(title: str, times: list[float]) -> None:
    ordered = sorted(times)
    worst = ordered[int(len(ordered) * 0.99)]
    sys.stdout.write(f"{title:<18} median {statistics.median(times):9.1f} µs   99 % below {worst:9.1f} µs\n")


if __name__ == "__main__":
    main()
