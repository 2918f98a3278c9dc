"""Training and evaluation as processes beside the daemon: what is selected, and that nothing of it is lost."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.artifacts.store import read_layer_stats
from archaeologist.bus.connection import connected
from archaeologist.bus.log import events
from archaeologist.checkpoints.names import place
from archaeologist.settings import BusSettings
from archaeologist.trainers import publish_checkpoint_async
from contracts import subjects
from contracts.artifacts import SkillHistory, SkillImpact
from contracts.messages import Event
from tests.fixtures.announcements import make_streams
from tests.fixtures.checkpoints import write_checkpoint
from tests.fixtures.kernels import share_kernels
from tests.fixtures.programs import UNMEASURED, Daemon
from tests.fixtures.servers import Server

SECONDS: Final = 150.0
ENDINGS: Final = (subjects.ANALYSIS_COMPLETED, subjects.ANALYSIS_FAILED)

EVALUATION: Final = """
import json, sys
from archaeologist.trainers import publish_skill

for skill, step, score, samples in json.loads(sys.argv[1]):
    publish_skill(skill, score, hero_id="hero", campaign_id="one", step=step, num_samples=samples)
"""


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with Server(tmp_path / "nats") as running:
        await make_streams(running)
        yield running


def daemon(server: Server, root: Path, **settings: str) -> Daemon:
    """A daemon that leaves activations out."""
    share_kernels(root)
    named = {f"ARCHAEOLOGIST_{name}": value for name, value in settings.items()}
    without = {"ARCHAEOLOGIST_POLICY__COMPUTE_ACTIVATIONS": "false"}
    return Daemon(root=root, url=server.url, environment={**UNMEASURED, **without, **named})


async def run(server: Server, *program: str) -> None:
    """A Python program beside the daemon, to its end."""
    environment = {**os.environ, **UNMEASURED, "ARCHAEOLOGIST_NATS_URL": server.url, "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    process = await asyncio.create_subprocess_exec(sys.executable, *program, env=environment)
    try:
        async with asyncio.timeout(SECONDS):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def endings(server: Server, count: int) -> list[Event]:
    """The first events that end an analysis."""
    found: list[Event] = []
    async with connected(BusSettings(url=server.url), name="test") as bus, asyncio.timeout(SECONDS):
        async for logged in events(bus, follow=True, subjects=ENDINGS):
            found.append(logged.event)
            if len(found) == count:
                break
    return found


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """What is compared, in float64: a model's weights, or the change s·B·A that an adapter makes of each."""
    if (file := checkpoint / "model.safetensors").exists():
        return {name: tensor.double() for name, tensor in load_file(file).items()}
    config = json.loads((checkpoint / "adapter_config.json").read_text())
    factors = load_file(checkpoint / "adapter_model.safetensors")
    return {
        name.replace("lora_A.weight", "lora_change"): config["lora_alpha"]
        / config["r"]
        * (factors[name.replace("lora_A", "lora_B")].double() @ first.double())
        for name, first in factors.items()
        if "lora_A" in name
    }


def drifts(checkpoint: Path, before: Path) -> dict[tuple[str, str], float]:
    """Relative L2 of each tensor, computed directly."""
    theirs = weights(before)
    found = {}
    for name, tensor in weights(checkpoint).items():
        where, reference = place(name), theirs[name]
        found[where.block, where.within] = float((tensor - reference).norm() / reference.norm())
    return found


@pytest.mark.timeout(400)
async def test_each_checkpoint_is_compared_with_its_predecessor_although_the_trainer_deleted_both(
    server: Server, tmp_path: Path, kernels: Path
) -> None:
    root = tmp_path / "root"
    folders = {name: CampaignFolder.of(root, "tiny", name) for name in ("slow", "slow_lora")}
    # Slow: at this pace an analysis takes longer than the whole training after its first save.
    async with daemon(server, root, POLICY__EVERY="1", WORKER__READ_MB_PER_SECOND="0.1"):
        await run(server, "-m", "tests.fixtures.trainings", "--root", str(root), *folders)
        for folder in folders.values():
            assert [path.name for path in folder.checkpoints.iterdir()] == ["checkpoint-6"]
        ended = await endings(server, 6)
    assert [(event.type, event.data["campaign_id"], event.data["checkpoint_step"]) for event in ended] == [
        ("analysis.completed", name, step) for name in folders for step in (2, 4, 6)
    ]
    for folder, step in ((folder, step) for folder in folders.values() for step in (4, 6)):
        artifact = read_layer_stats(folder.layer_stats(step))
        assert artifact.reference_checkpoint_step == step - 2
        kept = folder.path / "kept"
        expected = drifts(kept / f"checkpoint-{step}", kept / f"checkpoint-{step - 2}")
        found = {
            (block, tensor): drift.relative_l2
            for block, stats in artifact.drift_stats.items()
            for tensor, drift in stats.tensors.items()
        }
        assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.timeout(300)
async def test_scores_of_an_evaluation_level_up_and_make_a_history_whenever_they_come(
    server: Server, tmp_path: Path, kernels: Path
) -> None:
    root = tmp_path / "root"
    folder = CampaignFolder.of(root, "hero", "one")

    async def save(*steps: int) -> None:
        for step in steps:
            path = write_checkpoint(folder.checkpoints / f"checkpoint-{step}", seed=step, dtype=torch.float32)
            await publish_checkpoint_async(path, hero_id="hero", campaign_id="one", nats_url=server.url)

    async def evaluate(*scores: tuple[str, int, float, int | None]) -> None:
        await run(server, "-c", EVALUATION, json.dumps(scores))

    async with daemon(server, root, POLICY__EVERY="1000"):
        await save(100, 200, 300, 400)
        await evaluate(
            *(("BIN", 100, 0.12, 200), ("SY", 100, 0.50, 50), ("BIN", 200, 0.15, 200)),
            *(("BIN", 300, 0.34, 200), ("BIN", 300, 0.34, 200), ("SY", 300, 0.52, 50)),
            # The score comes before its checkpoint does.
            ("BIN", 500, 0.55, 200),
        )
        await save(500, 600)
        await evaluate(
            # Late, and below the best by now; measured again; without a size.
            *(("BIN", 400, 0.41, 200), ("SY", 300, 0.58, 80), ("EN", 300, 0.9, None)),
            ("SY", 600, 0.61, 50),
        )
        ended = await endings(server, 4)
    # The first, and each that was a level-up: BIN reached 0.3 and 0.5, SY 0.6.
    assert [(event.type, event.data["checkpoint_step"], event.data["reference_step"]) for event in ended] == [
        ("analysis.completed", step, reference) for step, reference in ((100, None), (300, 100), (500, 300), (600, 500))
    ]
    assert sorted(path.name for path in folder.layer_stats(0).parent.glob("*.json")) == [
        folder.layer_stats(step).name for step in (100, 300, 500, 600)
    ]
    history = msgspec.json.decode(folder.skills.read_bytes(), type=SkillHistory)
    heard: dict[str, Any] = {
        skill: [(score.step, score.score, score.num_samples) for score in scores]
        for skill, scores in history.skills.items()
    }
    assert heard == {
        "BIN": [(100, 0.12, 200), (200, 0.15, 200), (300, 0.34, 200), (400, 0.41, 200), (500, 0.55, 200)],
        "EN": [(300, 0.9, None)],
        "SY": [(100, 0.50, 50), (300, 0.58, 80), (600, 0.61, 50)],
    }
    impact = msgspec.json.decode(folder.skill_impact.read_bytes(), type=SkillImpact)
    intervals = {
        skill: [(one.base_step, one.target_step, one.is_used) for one in found.intervals]
        for skill, found in impact.skills.items()
    }
    assert intervals == {
        "BIN": [(100, 300, True), (300, 500, True)],
        "EN": [],
        # Of so few samples such a change may be chance.
        "SY": [(100, 300, False), (300, 600, False)],
    }
    assert {found.support for found in impact.skills.values()} == {"none"}
    assert "Fewer than 3 support nothing" in impact.skills["BIN"].supports
