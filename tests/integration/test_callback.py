"""The trainer's side against a real server: delivered, late, given up, and never in training's way."""

import asyncio
import math
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archaeologist.errors import BusUnavailable, SettingInvalid
from archaeologist.settings import BusSettings
from archaeologist.trainers import (
    CheckpointAnnouncer,
    publish_checkpoint,
    publish_checkpoint_async,
    publish_skill_async,
)
from archaeologist.trainers.announcement import announcement
from archaeologist.trainers.publisher import CheckpointPublisher
from contracts.messages import CheckpointSaved
from tests.fixtures.announcements import announced, evaluated, make_streams
from tests.fixtures.servers import Server

BLOCKED = ("structlog", "typer", "rich", "numba", "litestar", "uvicorn", "plotly", "prometheus_client")
"""What a trainer need not have."""


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with Server(tmp_path / "nats") as running:
        await make_streams(running)
        yield running


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


async def test_one_checkpoint_is_announced_by_a_function_within_a_running_loop_too(
    server: Server, tmp_path: Path
) -> None:
    request_id = publish_checkpoint(
        tmp_path / "checkpoint-5",
        hero_id="hero",
        campaign_id="one",
        step=5,
        nats_url=server.url,
        skills={"SY": 1.0},
    )
    [(message, message_id)] = await announced(server)
    assert (message_id, message.skills, message.checkpoint_step) == (request_id, {"SY": 1.0}, 5)


async def test_a_score_is_reported_with_its_sample_size(server: Server) -> None:
    await publish_skill_async(
        "BIN", np.float64(0.5), hero_id="hero", campaign_id="one", step=5, num_samples=64, nats_url=server.url
    )
    [message] = await evaluated(server)
    assert (message.skill, message.score, message.num_samples, message.checkpoint_step) == ("BIN", 0.5, 64, 5)


@pytest.mark.parametrize(
    "wrong",
    [{"score": math.nan}, {"score": "high"}, {"skill": ""}, {"num_samples": 0}, {"step": -1}, {"hero_id": "a/b"}],
)
async def test_a_score_that_intake_would_refuse_is_refused_before_it_is_sent(wrong: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"skill": "BIN", "score": 0.5, "hero_id": "hero", "campaign_id": "one", "step": 5, **wrong}
    with pytest.raises(SettingInvalid):
        await publish_skill_async(**fields)


async def test_the_functions_say_when_the_bus_did_not_confirm(server: Server, tmp_path: Path) -> None:
    await server.kill()
    common: dict[str, Any] = {"hero_id": "hero", "campaign_id": "one", "nats_url": server.url, "timeout_seconds": 0.3}
    with pytest.raises(BusUnavailable, match=r"did not confirm within 0\.3 s .* ask for each with `archaeologist"):
        await asyncio.to_thread(publish_checkpoint, tmp_path / "checkpoint-5", **common)
    with pytest.raises(BusUnavailable, match=r"did not confirm within 0\.3 s .* the score of 'BIN' at step 5 is not"):
        await publish_skill_async("BIN", 0.5, step=5, **common)


async def test_a_function_goes_on_trying_while_there_is_time(server: Server, tmp_path: Path) -> None:
    await server.kill()
    publishing = asyncio.create_task(
        publish_checkpoint_async(
            tmp_path / "checkpoint-5", hero_id="hero", campaign_id="one", nats_url=server.url, timeout_seconds=60.0
        )
    )
    done, _ = await asyncio.wait({publishing}, timeout=0.5)
    assert not done
    await server.start()
    request_id = await publishing
    assert [message_id for _, message_id in await announced(server)] == [request_id]


async def test_a_bus_that_accepts_and_says_nothing_holds_nobody_up(tmp_path: Path) -> None:
    writers: list[asyncio.StreamWriter] = []

    async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as mute:
        common: dict[str, Any] = {
            "hero_id": "hero",
            "campaign_id": "one",
            "nats_url": f"nats://127.0.0.1:{mute.sockets[0].getsockname()[1]}",
        }
        announcer = CheckpointAnnouncer(**common, flush_seconds=0.1)
        async with asyncio.timeout(10):
            announcer.announce(tmp_path / "checkpoint-5")
            await asyncio.to_thread(announcer.finish)
            with pytest.raises(BusUnavailable, match="did not confirm"):
                await publish_checkpoint_async(tmp_path / "checkpoint-5", **common, timeout_seconds=0.3)
        assert [message.checkpoint_path for message in announcer.publisher.waiting] == [str(tmp_path / "checkpoint-5")]
        announcer.publisher.cancel()
    for writer in writers:
        writer.close()
        await writer.wait_closed()


def test_what_cannot_be_announced_is_logged_and_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    announcer = CheckpointAnnouncer(hero_id="hero", campaign_id="one", nats_url="nats://127.0.0.1:1")
    announcer.announce(tmp_path, step=-1)
    assert announcer.publisher.waiting == ()
    assert "is not announced" in caplog.text


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
