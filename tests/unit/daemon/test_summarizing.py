"""The daemon's part in the summaries: nothing that goes wrong there reaches a job."""

from pathlib import Path

import numpy as np
import pytest

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.daemon.summarizing import bring_up_to_date, keep_scores
from archaeologist.summaries import chronicle
from archaeologist.summaries.sources import is_current
from contracts.records import CampaignRecord, SeenCheckpoint
from tests.fixtures.histories import CAMPAIGN, HERO, folder_in, put_all

RECORD = CampaignRecord(
    hero_id=HERO, campaign_id=CAMPAIGN, checkpoints=(SeenCheckpoint(step=100, path="", skills={"BIN": 0.5}),)
)


@pytest.fixture
def folder(tmp_path: Path) -> CampaignFolder:
    """A campaign of two checkpoints without summaries."""
    folder = folder_in(tmp_path)
    put_all(folder, {step: {"lm_head.weight": np.full(4, float(step))} for step in (100, 200)})
    return folder


async def test_scores_of_the_record_are_kept_and_the_summaries_made(folder: CampaignFolder) -> None:
    await bring_up_to_date(folder, RECORD)
    assert folder.skills.exists()
    assert is_current(folder)


async def test_what_takes_too_long_is_put_off_and_made_up_for(folder: CampaignFolder) -> None:
    await bring_up_to_date(folder, None, seconds=-1)
    assert not is_current(folder)
    await bring_up_to_date(folder, None)
    assert is_current(folder)


async def test_a_defect_is_logged_and_raised_to_nobody(folder: CampaignFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(chronicle, "update", fails)
    await bring_up_to_date(folder, RECORD)
    assert not is_current(folder)
    assert folder.skills.exists()


async def test_a_damaged_history_stops_neither_messages_nor_summaries(folder: CampaignFolder) -> None:
    folder.skills.write_bytes(b"{")
    await keep_scores(folder, RECORD)
    await bring_up_to_date(folder, RECORD)
    assert folder.skills.read_bytes() == b"{"
    assert is_current(folder)


async def test_a_campaign_that_was_never_analysed_gets_no_summaries(tmp_path: Path) -> None:
    nowhere = CampaignFolder.of(tmp_path, HERO, CAMPAIGN)
    await bring_up_to_date(nowhere, RECORD)
    assert list(tmp_path.iterdir()) == []
