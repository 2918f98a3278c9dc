"""How much pins and sketches may hold, and when it is measured again."""

import shutil
from pathlib import Path

import pytest

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.checkpoints.fingerprint import fingerprint
from archaeologist.checkpoints.index import read_index
from archaeologist.checkpoints.pins import pin, pin_name
from archaeologist.daemon import budgets
from archaeologist.settings import PinSettings, Settings, SketchSettings
from tests.fixtures.checkpoints import write_checkpoint


def test_a_budget_is_what_the_settings_say_and_for_pins_else_a_tenth_of_the_disk(tmp_path: Path) -> None:
    settings = Settings(root=str(tmp_path), pins=PinSettings(max_gb=1.5), sketches=SketchSettings(max_gb=0.25))
    assert budgets.pins_budget_bytes(settings) == 1_500_000_000
    assert budgets.sketches_budget_bytes(settings) == 250_000_000
    tenth = shutil.disk_usage(tmp_path).total // 10
    assert budgets.pins_budget_bytes(Settings(root=str(tmp_path))) == tenth
    assert budgets.pins_budget_bytes(Settings(root=str(tmp_path / "not" / "there"))) == tenth


def test_no_room_is_told_with_the_numbers_and_looked_at_again_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = CampaignFolder.of(tmp_path, "dio", "c1")
    source = write_checkpoint(folder.checkpoints / "checkpoint-1")
    pin(source, folder.pins, pin_name(1, fingerprint(read_index(source))))
    budget = budgets.PinBudget(Settings(root=str(tmp_path), pins=PinSettings(max_gb=0)))
    assert budget.reason_for_none() is None, "the trainer still has it"
    shutil.rmtree(source)
    assert budget.reason_for_none() is None, "measured just now"
    monkeypatch.setattr(budgets, "MEASURED_SECONDS", -1.0)
    assert budget.reason_for_none() == "pins hold 0.0 of 0.0 GB (pins.max_gb)"
