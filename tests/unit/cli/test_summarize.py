"""``summarize`` on campaigns on the disk, in this process."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.artifacts.thinning import thin
from archaeologist.cli.app import run
from tests.fixtures.histories import CAMPAIGN, HERO, folder_in, place_whole, put, put_all


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CampaignFolder:
    """A campaign of three checkpoints, in the root that the command finds by itself."""
    monkeypatch.setenv("ARCHAEOLOGIST_ROOT", str(tmp_path))
    folder = folder_in(tmp_path)
    generator = np.random.default_rng(0)
    put_all(folder, {step: {"lm_head.weight": generator.standard_normal(4)} for step in (100, 200, 300)})
    return folder


def test_a_campaign_is_summarized_and_told_of(folder: CampaignFolder, capsys: pytest.CaptureFixture[str]) -> None:
    place_whole(folder.layer_stats(200), b"{")
    assert run(["summarize", f"{HERO}/{CAMPAIGN}"]) == 1
    out, err = capsys.readouterr()
    assert "error: artifact_invalid: 1 file left out, first layer_stats/ckpt-000200.layer_stats.json of hero/" in err
    assert out.startswith("hero/campaign: 2 checkpoints in ")
    assert "left out: layer_stats/ckpt-000200.layer_stats.json" in out
    assert {path.name for path in folder.summaries.glob("*.json")} == {
        "layer_drift_timeline.json",
        "health_timeline.json",
        "stability_report.json",
        "skill_impact.json",
    }


def test_a_sketch_that_the_budget_took_is_no_fault(folder: CampaignFolder, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(1)
    checkpoints = {step: {"lm_head.weight": generator.standard_normal(4)} for step in range(100, 900, 100)}
    for step, weights in checkpoints.items():
        # Each against the first, so that what lies between two is estimated from sketches.
        put(folder, step, weights, reference=(100, checkpoints[100]) if step > 100 else None)
        os.utime(folder.sketch(step), (step, step))
    budget = sum(folder.sketch(step).stat().st_size for step in range(400, 900, 100))
    thin([folder], budget_bytes=budget, now=datetime.now(UTC))
    assert run(["summarize", f"{HERO}/{CAMPAIGN}"]) == 0
    assert "left out: sketches" in capsys.readouterr().out


def test_all_campaigns_as_json(folder: CampaignFolder, capsys: pytest.CaptureFixture[str]) -> None:
    other = CampaignFolder.of(folder.root, HERO, "other")
    other.layer_stats(0).parent.mkdir(parents=True)
    other.summaries.write_bytes(b"in the way")
    CampaignFolder.of(folder.root, HERO, "never-analysed").checkpoints.mkdir(parents=True)
    assert run(["summarize", "--all", "--json"]) == 1
    captured = capsys.readouterr()
    first, second = json.loads(captured.out)
    assert (first["campaign"], first["checkpoints"], first["error"]) == ("hero/campaign", 3, None)
    assert second["error"].startswith("artifact_unwritable: ")
    assert captured.err.count("\n") == 1
    assert "error: artifact_unwritable: 1 of 2 campaigns not summarized, first hero/other: summaries in" in captured.err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "name one campaign"),
        (["hero/campaign", "--all"], 2, "name one campaign"),
        (["hero"], 2, "write HERO/CAMPAIGN"),
        (["../etc/x"], 2, "is not a plain name"),
        (["hero/nobody"], 1, "campaign_missing: campaign 'hero/nobody' has no artifacts"),
        (["--all", "--root", "/nowhere"], 1, "campaign_missing: no campaign under"),
    ],
)
def test_wrong_campaigns_are_one_line_and_an_exit_code(
    folder: CampaignFolder, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, says: str
) -> None:
    assert run(["summarize", *arguments]) == code
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
