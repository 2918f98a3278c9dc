"""Real trainers, each in a process of its own, announce each save once and from rank zero only."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest

from archaeologist.checkpoints.index import read_index
from contracts.messages import CheckpointSaved
from tests.fixtures.announcements import announced, evaluated, make_streams
from tests.fixtures.programs import UNMEASURED
from tests.fixtures.servers import Server

SAVED: Final = [2, 4, 6]
TRAINING_SECONDS: Final = 150.0


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with Server(tmp_path / "nats") as running:
        await make_streams(running)
        yield running


async def run(*program: str, url: str, root: Path) -> str:
    """What a training printed, once it has ended well."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *program,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={
            **os.environ,
            **UNMEASURED,
            "ARCHAEOLOGIST_NATS_URL": url,
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(root / "hf"),
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "TORCH_CPP_LOG_LEVEL": "ERROR",
        },
        cwd=root,
    )
    try:
        async with asyncio.timeout(TRAINING_SECONDS):
            said = (await process.communicate())[0].decode()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert process.returncode == 0, said[-4000:]
    return said


async def trainings(*names: str, url: str, root: Path) -> str:
    return await run("-m", "tests.fixtures.trainings", "--root", str(root), *names, url=url, root=root)


async def by_campaign(server: Server) -> dict[str, list[CheckpointSaved]]:
    found: dict[str, list[CheckpointSaved]] = {}
    for message, message_id in await announced(server):
        assert message_id == message.request_id
        found.setdefault(message.campaign_id, []).append(message)
    return found


def steps(messages: list[CheckpointSaved]) -> list[int | None]:
    return [message.checkpoint_step for message in messages]


@pytest.mark.timeout(200)
async def test_the_trainer_announces_each_save_once_whatever_it_keeps_and_trains_on_without_a_bus(
    server: Server, tmp_path: Path
) -> None:
    said = await trainings("full", "lora", "best", "resume", "down", url=server.url, root=tmp_path)
    found = await by_campaign(server)
    assert {name: steps(messages) for name, messages in found.items()} == {
        "full": SAVED,
        "lora": SAVED,
        "best": SAVED,
        "resume": SAVED,
    }
    folder = tmp_path / "campaigns" / "tiny"
    assert [path.name for path in (folder / "full" / "checkpoints").iterdir()] == ["checkpoint-6"]
    assert (folder / "lora" / "checkpoints" / "checkpoint-6" / "adapter_model.safetensors").is_file()
    for name, messages in found.items():
        for message in messages:
            assert message.checkpoint_path == str(
                folder / name / "checkpoints" / f"checkpoint-{message.checkpoint_step}"
            )
            assert {"loss", "learning_rate"} <= set(message.metrics)
    assert all("eval_loss" in message.metrics for message in found["best"])
    assert all(message.skills == {"BIN": 0.5} for message in found["full"])
    # The last run's bus is not there.
    assert "3 checkpoint(s) were not announced on the bus" in said
    assert "archaeologist request --hero tiny --campaign down --steps 2:6:1" in said
    assert "down is done" in said


@pytest.mark.timeout(200)
async def test_of_two_processes_under_ddp_only_rank_zero_announces(server: Server, tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    await run(
        *launcher, "-m", "tests.fixtures.trainings", "--root", str(tmp_path), "ddp", url=server.url, root=tmp_path
    )
    assert {name: steps(messages) for name, messages in (await by_campaign(server)).items()} == {"ddp": SAVED}


@pytest.mark.timeout(200)
async def test_other_trainers_announce_each_save_once(server: Server, tmp_path: Path) -> None:
    await trainings("sft", "lightning", "loop", "later", url=server.url, root=tmp_path)
    found = await by_campaign(server)
    assert {name: steps(messages) for name, messages in found.items()} == {
        "sft": SAVED,
        "lightning": SAVED,
        "loop": SAVED,
        "later": [None, None],
    }
    # Lightning's own files are announced by the watcher, and read.
    place = tmp_path / "campaigns" / "tiny" / "lightning" / "own"
    watching = ("-m", "archaeologist", "watch", str(place), "--pattern", "*.ckpt", "--quiet", "0", "--once")
    await run(*watching, "--root", str(tmp_path), url=server.url, root=tmp_path)
    own = (await by_campaign(server))["lightning"][len(SAVED) :]
    assert steps(own) == SAVED
    assert all(read_index(Path(message.checkpoint_path)).format == "pytorch" for message in own)
    assert all(set(message.metrics) == {"train_loss"} for message in found["lightning"])
    assert all(set(message.metrics) == {"loss"} for message in found["loop"])
    for messages in found.values():
        assert Path(messages[-1].checkpoint_path).is_dir()
    [score] = await evaluated(server)
    assert (score.skill, score.score, score.checkpoint_step, score.num_samples) == ("BIN", 0.5, 2, 64)
