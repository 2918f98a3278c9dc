"""``archive`` on campaigns on the disk, in this process."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.artifacts.storage import archived_path
from archaeologist.artifacts.store import read_layer_stats
from archaeologist.cli.app import run
from tests.fixtures.histories import CAMPAIGN, HERO, folder_in, put_all

NAME = f"{HERO}/{CAMPAIGN}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CampaignFolder:
    """A campaign of three checkpoints that are 30, 20 and 0 days old, and both roots as the command finds them."""
    monkeypatch.setenv("ARCHAEOLOGIST_ROOT", str(tmp_path / "hot"))
    monkeypatch.setenv("ARCHAEOLOGIST_ARCHIVE__WARM_ROOT", str(tmp_path / "warm"))
    (tmp_path / "warm" / "campaigns").mkdir(parents=True)
    folder = folder_in(tmp_path / "hot")
    put_all(folder, {step: {"lm_head.weight": np.full(4, float(step))} for step in (100, 200, 300)})
    for step, days in ((100, 30), (200, 20)):
        moment = time.time() - days * 86_400
        os.utime(folder.layer_stats(step), (moment, moment))
    return folder


def archived(folder: CampaignFolder) -> list[int]:
    return [step for step in (100, 200, 300) if archived_path(folder.layer_stats(step)).is_symlink()]


def test_a_campaign_is_archived_and_told_of(folder: CampaignFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["archive", NAME, "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("hero/campaign: 2 artifacts would move (0.0 MB)")
    assert archived(folder) == []
    assert run(["archive", NAME, "--older-than", "25"]) == 0
    assert capsys.readouterr().out.startswith("hero/campaign: 1 artifact moved (0.0 MB, now 0.0 MB)")
    assert archived(folder) == [100]
    assert run(["archive", NAME]) == 0
    assert archived(folder) == [100, 200]
    assert read_layer_stats(folder.layer_stats(100)).checkpoint_step == 100
    # Its summaries are made from where it is now.
    assert run(["summarize", NAME]) == 0
    assert "3 checkpoints" in capsys.readouterr().out


def test_all_campaigns_as_json(folder: CampaignFolder, capsys: pytest.CaptureFixture[str]) -> None:
    other = CampaignFolder.of(folder.root, HERO, "other")
    other.layer_stats(0).parent.mkdir(parents=True)
    (other.analysis / ".archive.lock").mkdir()
    assert run(["archive", "--all", "--json", "--older-than", "0"]) == 1
    captured = capsys.readouterr()
    first, second = json.loads(captured.out)
    assert (first["campaign"], first["archived"], first["error"], first["dry_run"]) == (NAME, 3, None, False)
    assert first["bytes_before"] > first["bytes_after"] > 0
    assert second["error"].startswith("artifact_unwritable: ")
    assert "1 of 2 campaigns not archived to the end" in captured.err


@pytest.mark.parametrize(
    ("arguments", "warm_root", "code", "says"),
    [
        ([], "warm", 2, "name one campaign"),
        (["hero/nobody"], "warm", 1, "campaign_missing: campaign 'hero/nobody' has no artifacts"),
        ([NAME, "--older-than", "-1"], "warm", 2, "--older-than"),
        ([NAME], "nowhere", 1, "archive_unavailable: WARM root"),
        ([NAME], "hot", 2, "setting_invalid: setting 'archive.warm_root'"),
        ([NAME], None, 2, "setting_invalid: setting 'archive.warm_root' is not set"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_an_exit_code(
    folder: CampaignFolder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    warm_root: str | None,
    code: int,
    says: str,
) -> None:
    if warm_root is None:
        monkeypatch.delenv("ARCHAEOLOGIST_ARCHIVE__WARM_ROOT")
    else:
        monkeypatch.setenv("ARCHAEOLOGIST_ARCHIVE__WARM_ROOT", str(folder.root.with_name(warm_root)))
    assert run(["archive", *arguments]) == code
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
    assert archived(folder) == []
