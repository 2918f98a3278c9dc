"""The drift of submodules over time: what the artifacts say, whatever became of what was kept of them."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.artifacts.store import read_layer_stats
from archaeologist.errors import SummariesLate
from archaeologist.summaries import store
from archaeologist.summaries.chronicle import rebuild, update
from archaeologist.summaries.submodules import Submodules, read_submodules
from tests.fixtures.histories import folder_in, place_whole, put, put_all

STEPS = (100, 200, 300, 400)


def weights(step: int, parts: tuple[str, ...] = ("up", "down")) -> dict[str, Any]:
    generator = np.random.default_rng(step)
    return {f"model.layers.{block}.mlp.{part}": generator.standard_normal(8) for block in range(2) for part in parts}


@pytest.fixture
def folder(tmp_path: Path) -> CampaignFolder:
    """A campaign of four checkpoints with its summaries; the last has a tensor more and one less."""
    found = folder_in(tmp_path)
    put_all(found, {step: weights(step) for step in STEPS[:3]})
    update(found)
    put(found, 400, weights(400, ("down", "gate")), reference=(300, weights(300, ("down", "gate"))))
    update(found)
    return found


def as_artifacts_have_it(folder: CampaignFolder, column: str) -> dict[tuple[str, int], Any]:
    found = {}
    for step in STEPS[1:]:
        for block, drift in read_layer_stats(folder.layer_stats(step)).drift_stats.items():
            for name, tensor in drift.tensors.items():
                found[f"{block}.{name}", step] = getattr(tensor, column)
    return found


def as_read(submodules: Submodules, column: str) -> dict[tuple[str, int], Any]:
    values = submodules.column(column)
    return {
        (name, step): values[row, at]
        for row, name in enumerate(submodules.blocks)
        for at, step in enumerate(submodules.steps)
        if not np.isnan(values[row, at])
    }


@pytest.mark.parametrize("column", ["l2", "relative_l2", "changed_fraction", "one_minus_cosine", "below_resolution"])
def test_every_number_is_the_artifact_s_and_what_is_missing_is_nan(folder: CampaignFolder, column: str) -> None:
    found = read_submodules(folder)
    assert found.steps == STEPS[1:]
    assert found.references == STEPS[:3]
    assert as_read(found, column) == as_artifacts_have_it(folder, column)
    assert found.blocks == {
        f"model.layers.{block}.mlp.{part}": f"model.layers.{block}"
        for part, block in [("down", 0), ("gate", 0), ("down", 1), ("gate", 1), ("up", 0), ("up", 1)]
    }, "the newest checkpoint's first"


def test_brought_up_to_date_or_built_anew_they_are_the_same(folder: CampaignFolder) -> None:
    brought = read_submodules(folder)
    rebuild(folder)
    anew = read_submodules(folder)
    assert list(anew.blocks) == list(brought.blocks)
    np.testing.assert_array_equal(anew.column("l2"), brought.column("l2"))


@pytest.mark.parametrize("damage", ["store gone", "numbers gone", "numbers changed"])
def test_what_was_lost_is_read_again(folder: CampaignFolder, damage: str) -> None:
    (numbers,) = folder.summaries.glob(f"{store.SUBMODULES}*")
    if damage == "store gone":
        (folder.summaries / store.NAME).unlink()
    elif damage == "numbers gone":
        numbers.unlink()
    else:
        numbers.write_bytes(b"x" * numbers.stat().st_size)
    assert as_read(read_submodules(folder), "l2") == as_artifacts_have_it(folder, "l2")


def test_who_has_no_time_to_read_it_again_says_so(folder: CampaignFolder) -> None:
    (folder.summaries / store.NAME).unlink()
    with pytest.raises(SummariesLate):
        read_submodules(folder, until=time.monotonic() - 1)


def test_a_campaign_without_a_comparison_has_none(tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    put_all(folder, {100: weights(100)})
    place_whole(folder.layer_stats(200), b"{")
    found = read_submodules(folder)
    assert (found.steps, dict(found.blocks)) == ((), {})
    assert found.column("l2").shape == (0, 0)
