"""The trainer's side against a real server: delivered, late, given up, and never in training's way."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from archaeologist.bus.connection import connected
from archaeologist.bus.topology import ensure
from archaeologist.errors import BusUnavailable
from archaeologist.settings import BusSettings, Settings
from archaeologist.trainers.announcement import announcement
from archaeologist.trainers.publisher import CheckpointPublisher, publish_checkpoint
from contracts import subjects
from contracts.messages import CheckpointSaved
from tests.fixtures.servers import Server

BLOCKED = ("structlog", "typer", "rich", "numba", "litestar", "uvicorn", "plotly", "prometheus_client")
"""What a trainer need not have."""


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with Server(tmp_path / "nats") as running:
        await make_streams(running)
        yield running


async def make_streams(server: Server) -> None:
    bus_settings = BusSettings(url=server.url)
    async with connected(bus_settings, name="test") as bus:
        await ensure(bus, Settings(bus=bus_settings))


async def announced(server: Server) -> list[tuple[CheckpointSaved, str]]:
    """What lies in the stream: each message and its Nats-Msg-Id."""
    async with connected(BusSettings(url=server.url), name="test") as bus:
        state = (await bus.jetstream.stream_info(subjects.CHECKPOINTS)).state
        found = []
        for sequence in range(state.first_seq, state.last_seq + 1) if state.messages else ():
            raw = await bus.jetstream.get_msg(subjects.CHECKPOINTS, sequence)
            message = msgspec.json.decode(raw.data or b"", type=CheckpointSaved)
            found.append((message, (raw.headers or {})[subjects.MESSAGE_ID]))
        return found


def saved(step: int) -> CheckpointSaved:
    return announcement(
        Path(f"/runs/checkpoint-{step}"),
        hero_id="hero",
        campaign_id="one",
        step=step,
        model_ref=None,
        metrics={"loss": 1.5},
        skills={"BIN": 0.5},
    )


async def flushed(publisher: CheckpointPublisher, seconds: float = 20.0) -> tuple[CheckpointSaved, ...]:
    return await asyncio.to_thread(publisher.flush, seconds)


async def test_each_announcement_lies_in_the_stream_once_and_in_order(server: Server) -> None:
    publisher = CheckpointPublisher(BusSettings(url=server.url))
    messages = [saved(step) for step in (1, 2, 3)]
    for message in messages:
        publisher.put(message)
    assert await flushed(publisher) == ()
    assert await announced(server) == [(message, message.request_id) for message in messages]


async def test_a_publisher_that_was_idle_delivers_again(server: Server) -> None:
    publisher = CheckpointPublisher(BusSettings(url=server.url))
    for step in (1, 2):
        publisher.put(saved(step))
        assert await flushed(publisher) == ()
    assert [message.checkpoint_step for message, _ in await announced(server)] == [1, 2]


async def test_a_bus_that_is_down_costs_one_warning_and_gets_the_message_later(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    await server.kill()
    publisher = CheckpointPublisher(BusSettings(url=server.url, connect_timeout_seconds=0.2))
    message = saved(1)
    publisher.put(message)
    assert await flushed(publisher, 2.0) == (message,)
    await server.start()
    assert await flushed(publisher) == ()
    assert await announced(server) == [(message, message.request_id)]
    warnings = [record for record in caplog.records if "not announced yet" in record.message]
    assert len(warnings) == 1


async def test_a_server_without_our_streams_gets_the_message_once_they_are_made(tmp_path: Path) -> None:
    async with Server(tmp_path / "nats") as server:
        publisher = CheckpointPublisher(BusSettings(url=server.url))
        message = saved(1)
        publisher.put(message)
        assert await flushed(publisher, 0.5) == (message,)
        await make_streams(server)
        assert await flushed(publisher) == ()
        assert await announced(server) == [(message, message.request_id)]


async def test_beyond_its_capacity_the_oldest_announcement_is_dropped_with_a_warning(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    await server.kill()
    publisher = CheckpointPublisher(BusSettings(url=server.url, connect_timeout_seconds=0.2), capacity=2)
    for step in (1, 2, 3):
        publisher.put(saved(step))
    assert [message.checkpoint_step for message in publisher.waiting] == [2, 3]
    assert "dropped the oldest: step 1; ask for" in caplog.text
    await server.start()
    assert await flushed(publisher) == ()
    assert [message.checkpoint_step for message, _ in await announced(server)] == [2, 3]


async def test_the_end_of_training_names_what_was_not_delivered_and_does_not_wait_for_ever(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    await server.kill()
    publisher = CheckpointPublisher(BusSettings(url=server.url, connect_timeout_seconds=0.2))
    publisher.put(saved(1))
    publisher.put(saved(2))
    async with asyncio.timeout(10):
        await asyncio.to_thread(publisher.finish, 0.5)
    assert "2 checkpoint(s) were not announced" in caplog.text
    assert "archaeologist request --hero hero --campaign one" in caplog.text
    publisher.cancel()


async def test_one_checkpoint_is_announced_by_a_function(server: Server, tmp_path: Path) -> None:
    request_id = await asyncio.to_thread(
        publish_checkpoint,
        tmp_path / "checkpoint-5",
        hero_id="hero",
        campaign_id="one",
        step=5,
        nats_url=server.url,
        skills={"SY": 1.0},
    )
    [(message, message_id)] = await announced(server)
    assert (message_id, message.skills, message.checkpoint_step) == (request_id, {"SY": 1.0}, 5)


async def test_the_function_says_when_the_bus_did_not_confirm(server: Server, tmp_path: Path) -> None:
    await server.kill()
    with pytest.raises(BusUnavailable, match=r"did not confirm within 0\.3 s"):
        await asyncio.to_thread(
            publish_checkpoint,
            tmp_path / "checkpoint-5",
            hero_id="hero",
            campaign_id="one",
            nats_url=server.url,
            timeout_seconds=0.3,
            connect_timeout_seconds=0.2,
        )


def python(code: str, *, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HUB_OFFLINE": "1", **(environment or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_the_callback_is_imported_without_what_only_the_daemon_needs() -> None:
    code = f"""
import sys
for name in {BLOCKED!r}:
    sys.modules[name] = None  # importing it now fails
from archaeologist.trainers.huggingface import ArchaeologistCallback
ArchaeologistCallback(hero_id="hero", campaign_id="one")
ours = sorted(name for name in sys.modules if name.startswith("archaeologist."))
assert not [name for name in ours if name.split(".")[1] in ("daemon", "cli", "excavation", "job")], ours
"""
    python(code)


def test_the_publisher_is_imported_without_torch_and_transformers() -> None:
    code = """
import sys
import archaeologist.trainers.publisher
heavy = {"torch", "transformers", "numpy", "safetensors", "numba", "structlog"} & set(sys.modules)
assert not heavy, heavy
"""
    python(code)


async def test_a_forked_process_delivers_its_own_and_not_its_parents(server: Server) -> None:
    await server.kill()
    code = """
import os, pathlib, sys
from archaeologist.settings import BusSettings
from archaeologist.trainers.announcement import announcement
from archaeologist.trainers.publisher import CheckpointPublisher

def saved(step):
    return announcement(pathlib.Path(f"/c/{step}"), hero_id="h", campaign_id="c", step=step, model_ref=None,
                        metrics={}, skills={})

publisher = CheckpointPublisher(BusSettings(url=os.environ["URL"], connect_timeout_seconds=0.2))
publisher.put(saved(1))
child = os.fork()
if child == 0:
    assert publisher.flush(0.1) == ()
    publisher.put(saved(2))
    assert [message.checkpoint_step for message in publisher.waiting] == [2]
    publisher.cancel()
    os._exit(0)
_, status = os.waitpid(child, 0)
assert [message.checkpoint_step for message in publisher.waiting] == [1]
publisher.cancel()
sys.exit(os.waitstatus_to_exitcode(status))
"""
    await asyncio.to_thread(python, code, environment={"URL": server.url, "PYTHONWARNINGS": "ignore"})


async def test_a_program_that_ends_without_the_end_of_training_still_says_what_is_left(server: Server) -> None:
    await server.kill()
    code = """
import os, pathlib
from archaeologist.settings import BusSettings
from archaeologist.trainers import publisher as module
from archaeologist.trainers.announcement import announcement

module.ATTEMPT_SECONDS = 0.3
publisher = module.CheckpointPublisher(BusSettings(url=os.environ["URL"], connect_timeout_seconds=0.2))
publisher.put(announcement(pathlib.Path("/c/checkpoint-1"), hero_id="h", campaign_id="c", step=1, model_ref=None,
                           metrics={}, skills={}))
"""
    said = await asyncio.to_thread(python, code, environment={"URL": server.url})
    assert "1 checkpoint(s) were not announced" in said


@pytest.mark.timeout(180)
async def test_a_real_training_run_announces_each_save_with_its_scores(server: Server, tmp_path: Path) -> None:
    arguments = ["--hero", "hero", "--campaign", "one", "--nats-url", server.url, "--steps", "4", "--save-every", "2"]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "archaeologist.demo.training", "--output", str(tmp_path / "out"), *arguments),
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert await process.wait() == 0
    messages = [message for message, _ in await announced(server)]
    assert [message.checkpoint_step for message in messages] == [2, 4]
    assert [message.checkpoint_path for message in messages] == [
        str(tmp_path / "out" / f"checkpoint-{step}") for step in (2, 4)
    ]
    for message in messages:
        assert set(message.skills) == {"BIN", "SY"}
        assert {"loss", "eval_loss"} <= set(message.metrics)
