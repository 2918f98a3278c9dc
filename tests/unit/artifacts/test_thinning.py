"""Sketches within a disk budget: what goes first, what stays, and that it is said."""

import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from archaeologist.artifacts import thinning
from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.artifacts.thinning import KEPT, Found, choose, sketches, thin, thinned
from archaeologist.errors import ArtifactUnwritable

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SIZE = 10


@pytest.fixture
def folder(tmp_path: Path) -> CampaignFolder:
    return CampaignFolder.of(tmp_path, "dio", "c1")


def found(folder: CampaignFolder, written_at: Mapping[int, float]) -> list[Found]:
    return [Found(folder, step, SIZE, moment) for step, moment in written_at.items()]


def write(folder: CampaignFolder, *steps: int) -> None:
    for step in steps:
        path = folder.sketch(step)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * SIZE)


def steps(folder: CampaignFolder) -> list[int]:
    return sorted(one.step for one in sketches([folder]))


def test_the_oldest_go_first_but_not_a_campaigns_first_and_newest(folder: CampaignFolder) -> None:
    every = {step: float(step) for step in range(1, KEPT + 6)}
    chosen = choose(found(folder, every), budget_bytes=SIZE * (len(every) - 3))
    assert [one.step for one in chosen] == [2, 3, 4]


def test_what_was_written_first_is_the_oldest_whatever_its_step(folder: CampaignFolder) -> None:
    every = {step: 1000.0 - step for step in range(1, KEPT + 6)}
    chosen = choose(found(folder, every), budget_bytes=SIZE * (len(every) - 2))
    assert [one.step for one in chosen] == [5, 4]


def test_a_budget_that_is_smaller_still_takes_all_but_each_campaigns_newest(folder: CampaignFolder) -> None:
    other = CampaignFolder.of(folder.root, "dio", "c2")
    every = [*found(folder, {1: 1.0, 2: 2.0, 3: 3.0}), *found(other, {1: 0.5, 9: 0.6})]
    chosen = choose(every, budget_bytes=0)
    assert [(one.folder.campaign_id, one.step) for one in chosen] == [("c2", 1), ("c1", 1), ("c1", 2)]
    assert choose(every, budget_bytes=5 * SIZE) == []


def test_what_is_given_up_is_named_in_a_notice_that_grows(folder: CampaignFolder) -> None:
    write(folder, 1, 2, 3)
    assert thin([folder], budget_bytes=2 * SIZE, now=NOW) == {folder: [1]}
    assert steps(folder) == [2, 3]
    assert thin([folder], budget_bytes=2 * SIZE, now=NOW) == {}
    thin([folder], budget_bytes=SIZE, now=NOW)
    notice = thinned(folder)
    assert (notice.steps, notice.at, notice.budget_bytes) == ((1, 2), "2026-01-02T03:04:05Z", SIZE)


def test_other_files_and_links_are_left_alone(folder: CampaignFolder) -> None:
    write(folder, 1, 2)
    place = folder.sketch(1).parent
    (place / "notes.txt").write_bytes(b"x" * 1000)
    (place / "ckpt-000003.sketch.safetensors").symlink_to(place / "ckpt-000001.sketch.safetensors")
    thin([folder], budget_bytes=0, now=NOW)
    assert steps(folder) == [2]
    assert (place / "notes.txt").exists()
    assert (place / "ckpt-000003.sketch.safetensors").is_symlink()


def test_nothing_is_removed_that_cannot_be_said(folder: CampaignFolder) -> None:
    write(folder, 1, 2)
    (folder.sketch(1).parent / f"{thinning.NOTICE}.tmp").mkdir()
    with pytest.raises(ArtifactUnwritable):
        thin([folder], budget_bytes=0, now=NOW)
    assert steps(folder) == [1, 2]


def test_daemons_that_sweep_at_once_say_all_that_they_gave_up(folder: CampaignFolder) -> None:
    write(folder, *range(1, 200))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(4, mp_context=context) as pool:
        sweeps = [pool.submit(thin, [folder], budget_bytes=SIZE * left, now=NOW) for left in range(190, 1, -1)]
        for sweep in sweeps:
            sweep.result()
    assert set(thinned(folder).steps) == set(range(1, 200)) - set(steps(folder))
    assert [path.name for path in folder.sketch(1).parent.glob("*.tmp")] == []


def test_a_notice_that_cannot_take_its_place_is_said_with_a_code(folder: CampaignFolder) -> None:
    write(folder, 1, 2)
    place = folder.sketch(1).parent
    (place / thinning.NOTICE).mkdir()
    with pytest.raises(ArtifactUnwritable):
        thin([folder], budget_bytes=0, now=NOW)
    assert steps(folder) == [1, 2]


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff"])
def test_a_damaged_notice_is_an_empty_one(folder: CampaignFolder, content: bytes) -> None:
    write(folder, 1)
    (folder.sketch(1).parent / thinning.NOTICE).write_bytes(content)
    assert thinned(folder).steps == ()
    assert thinned(CampaignFolder.of(folder.root, "dio", "none")).steps == ()
