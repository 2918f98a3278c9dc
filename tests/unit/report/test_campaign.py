"""What a report reads from a campaign's folder."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.errors import ArtifactInvalid, ArtifactUnwritable
from archaeologist.report import campaign as module
from archaeologist.report.campaign import MOST_BLOCKS, read_campaign
from contracts.artifacts import LayerDriftStats, LayerStats, TensorDrift
from tests.fixtures.histories import Weights, folder_in, put, put_all


@pytest.fixture
def folder(tmp_path: Path) -> CampaignFolder:
    """Six checkpoints of four blocks."""
    found = folder_in(tmp_path)
    generator = np.random.default_rng(5)
    checkpoints: dict[int, Weights] = {
        100 * step: {f"model.layers.{block}.mlp.weight": generator.standard_normal(8) for block in range(6)}
        for step in range(1, 7)
    }
    put_all(found, checkpoints)
    return found


def test_the_summaries_are_brought_up_to_date_first(folder: CampaignFolder) -> None:
    found = read_campaign(folder)
    assert found.health.checkpoints == (100, 200, 300, 400, 500, 600)
    assert found.newest is not None
    assert found.newest.checkpoint_step == 600
    assert found.findings
    assert len(found.parts) == MOST_BLOCKS
    assert found.notes == ()


def test_parts_of_blocks_come_from_the_artifacts(folder: CampaignFolder) -> None:
    path = folder.layer_stats(600)
    artifact = msgspec.json.decode(path.read_bytes(), type=LayerStats)
    before = read_campaign(folder)
    name = next(iter(before.parts))
    tensors = {"mlp.weight": TensorDrift(relative_l2=0.5)}
    drift = {**artifact.drift_stats, name: LayerDriftStats(name=name, relative_l2=9.0, tensors=tensors)}
    path.write_bytes(msgspec.json.encode(replace(artifact, drift_stats=drift)))
    parts = read_campaign(folder).parts[name]
    assert parts.steps == (200, 300, 400, 500, 600)
    assert parts.values.keys() == {"mlp.weight"}
    assert parts.values["mlp.weight"][:4] == before.parts[name].values["mlp.weight"][:4]
    assert parts.values["mlp.weight"][4] == 0.5


def test_a_corrupt_artifact_is_left_out_and_told(folder: CampaignFolder) -> None:
    folder.layer_stats(600).write_bytes(b"{")
    found = read_campaign(folder)
    assert found.newest is not None
    assert found.newest.checkpoint_step == 500
    assert any(one.topic == "left_out" for one in found.findings)


def test_summaries_that_cannot_be_written_are_read_as_they_are(
    folder: CampaignFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_campaign(folder)
    put(folder, 700, {"model.layers.0.mlp.weight": np.ones(8)})

    def refused(_: CampaignFolder) -> None:
        msg = "read-only"
        raise ArtifactUnwritable(msg)

    monkeypatch.setattr(module, "update", refused)
    found = read_campaign(folder)
    assert found.health.checkpoints[-1] == 600
    assert "artifact_unwritable" in found.notes[0]


def test_parts_that_were_lost_and_cannot_be_read_again_are_told(
    folder: CampaignFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_campaign(folder)

    def refused(_: CampaignFolder) -> None:
        msg = "read-only"
        raise ArtifactUnwritable(msg)

    monkeypatch.setattr(module, "read_submodules", refused)
    found = read_campaign(folder)
    assert all(not parts.values for parts in found.parts.values())
    assert "artifact_unwritable" in found.notes[0]


def test_a_damaged_summary_names_the_remedy(folder: CampaignFolder) -> None:
    read_campaign(folder)
    folder.stability.write_bytes(b"[]")
    with pytest.raises(ArtifactInvalid, match="archaeologist summarize"):
        read_campaign(folder)
