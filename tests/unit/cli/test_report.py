"""``archaeologist report``."""

from pathlib import Path

import numpy as np
import pytest

from archaeologist.artifacts.archive import archive, rule_of
from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.cli import app
from archaeologist.report import browser
from archaeologist.settings import ArchiveSettings, Settings
from tests.fixtures.histories import CAMPAIGN, HERO, folder_in, put_all


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with one small campaign."""
    weights = {step: {"model.layers.0.mlp.weight": np.full(4, float(step))} for step in (100, 200)}
    put_all(folder_in(tmp_path), weights)
    return tmp_path


def report(root: Path, *arguments: str) -> int:
    return app.run(["report", f"{HERO}/{CAMPAIGN}", "--root", str(root), *arguments])


def test_a_report_is_one_file(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = root / "sub" / "r.html"
    assert report(root, "--output", str(path)) == 0
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert [one.name for one in path.parent.iterdir()] == ["r.html"]
    assert "Not measured" in capsys.readouterr().out


def test_the_default_name_is_the_campaign_s(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    assert report(root) == 0
    assert (root / f"report-{HERO}-{CAMPAIGN}.html").exists()


def test_a_campaign_of_which_nothing_can_be_read_is_refused_with_the_fault_s_code(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # On a WARM disk that is not mounted.
    folder, warm = CampaignFolder.of(root, HERO, CAMPAIGN), tmp_path / "warm"
    (warm / "campaigns").mkdir(parents=True)
    settings = Settings(root=str(root), archive=ArchiveSettings(warm_root=str(warm), after_days=0.0))
    assert archive(folder, rule_of(settings)).archived == 2
    warm.rename(tmp_path / "away")
    path = tmp_path / "r.html"
    assert report(root, "--output", str(path)) == app.FAILED
    assert "error: archive_unavailable: no artifact of hero/campaign can be read, first" in capsys.readouterr().err
    assert not path.exists()
    assert app.run(["export", f"{HERO}/{CAMPAIGN}", "--root", str(root), "--format", "tensorboard"]) == app.FAILED


def test_a_folder_is_no_file(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(root, "--output", str(root)) == app.USAGE
    assert "is a folder; name a file" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "file").write_text("no folder")
    path = root / "file" / "r.html"
    assert report(root, "--output", str(path)) == app.FAILED
    assert f"artifact_unwritable: artifact {str(path)!r} cannot be written" in capsys.readouterr().err


def test_an_unknown_campaign_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["report", "nobody/nothing", "--root", str(root)]) == app.FAILED
    assert "campaign_missing" in capsys.readouterr().err


def test_without_a_browser_there_is_no_image_and_no_half_report(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(browser, "NAMES", ("no-such-browser",))
    path = root / "r.html"
    assert report(root, "--output", str(path), "--png") == app.FAILED
    assert "browser_missing" in capsys.readouterr().err
    assert not path.exists()
