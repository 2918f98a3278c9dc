"""Where a campaign's files lie: the specification's names."""

from pathlib import Path

import pytest

from archaeologist.artifacts.paths import CampaignFolder, campaign_folders
from archaeologist.errors import MessageInvalid

ROOT = Path("/data")
HOME = ROOT / "campaigns" / "dio-qwen3-0.6b" / "campaign-001"


@pytest.fixture
def folder() -> CampaignFolder:
    return CampaignFolder.of(ROOT, "dio-qwen3-0.6b", "campaign-001")


def test_the_names_are_the_specifications(folder: CampaignFolder) -> None:
    analysis = HOME / "analysis"
    assert folder.path == HOME
    assert folder.checkpoints == HOME / "checkpoints"
    assert folder.pins == HOME / ".pins"
    assert folder.layer_stats(100) == analysis / "layer_stats" / "ckpt-000100.layer_stats.json"
    assert folder.layer_drift(100, 200) == analysis / "layer_drift" / "drift-000100-to-000200.json"
    assert folder.timeline == analysis / "summaries" / "layer_drift_timeline.json"
    assert folder.stability == analysis / "summaries" / "stability_report.json"
    assert folder.sketch(100) == analysis / "sketches" / "ckpt-000100.sketch.safetensors"
    assert folder.superseded("k3y") == analysis / "superseded" / "k3y.json"


def test_a_step_of_more_than_six_digits_keeps_them_all(folder: CampaignFolder) -> None:
    assert folder.layer_stats(1234567).name == "ckpt-1234567.layer_stats.json"


@pytest.mark.parametrize(
    "name", ["", "..", "a/b", "../x", ".hidden", "-x", "a..b", "a b", "x" * 129, "a\n", "ä", "a\0"]
)
def test_ids_are_plain_names(name: str) -> None:
    for kind, ids in (("hero_id", (name, "c")), ("campaign_id", ("h", name))):
        with pytest.raises(MessageInvalid) as caught:
            CampaignFolder.of(ROOT, *ids)
        assert str(caught.value).startswith(f"{kind} {name!r} is not a plain name; use up to 128 letters")


def test_a_path_in_a_campaign_knows_its_campaign(folder: CampaignFolder) -> None:
    assert CampaignFolder.enclosing(HOME / "checkpoints" / "checkpoint-5") == folder
    assert CampaignFolder.enclosing(HOME) == folder


def test_of_nested_campaigns_the_inner_one_counts() -> None:
    found = CampaignFolder.enclosing(HOME / "campaigns" / "h" / "c" / "x")
    assert found == CampaignFolder.of(HOME, "h", "c")


@pytest.mark.parametrize(
    "path", ["/models/checkpoint-5", "/data/campaigns/hero", "/data/campaigns/.h/c/x", "/", "campaigns"]
)
def test_another_path_has_no_campaign(path: str) -> None:
    assert CampaignFolder.enclosing(Path(path)) is None


def test_every_campaign_under_the_root_is_found_in_order(tmp_path: Path) -> None:
    for name in ("b/2", "a/1", "b/1", ".hidden/1", "a/.archive"):
        (tmp_path / "campaigns" / name).mkdir(parents=True)
    (tmp_path / "campaigns" / "a" / "file").write_text("")
    assert [(found.hero_id, found.campaign_id) for found in campaign_folders(tmp_path)] == [
        ("a", "1"),
        ("b", "1"),
        ("b", "2"),
    ]


def test_a_root_without_campaigns_has_none(tmp_path: Path) -> None:
    assert list(campaign_folders(tmp_path)) == []
