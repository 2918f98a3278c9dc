"""What is kept between updates: as it was put there, or not at all."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.summaries import ledger, store
from archaeologist.summaries.chronicle import update
from archaeologist.summaries.ledger import Damaged, Ledger, Sheet
from tests.fixtures.histories import folder_in, put, put_all

STEPS = (100, 200, 300, 400)


def weights(step: int) -> dict[str, Any]:
    generator = np.random.default_rng(step)
    return {f"model.layers.0.{name}.weight": generator.standard_normal(8) for name in ("up", "down")}


@pytest.fixture
def folder(tmp_path: Path) -> CampaignFolder:
    """A campaign of four checkpoints with its summaries."""
    found = folder_in(tmp_path)
    put_all(found, {step: weights(step) for step in STEPS})
    update(found)
    return found


def sheet(number: float, names: bytes = b'[["row","label"]]') -> Sheet:
    return Sheet(names=names, values=np.array([number], "<f8").tobytes())


def file_of(folder: CampaignFolder, prefix: str) -> Path:
    (found,) = folder.summaries.glob(f"{prefix}*")
    return found


def test_what_was_appended_is_read_from_its_place(tmp_path: Path) -> None:
    known, places = Ledger(), []
    for number in range(4):
        known, added = ledger.append(tmp_path, known, [sheet(number), sheet(-number, b"[]")], prefix=".x-")
        places += added
    assert ledger.read(tmp_path, known, places[::-1])[::-1] == [
        each for number in range(4) for each in (sheet(number), sheet(-number, b"[]"))
    ]
    assert len(known.names) == 2
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_writer_who_died_left_behind_the_end_is_overwritten(tmp_path: Path) -> None:
    known, first = ledger.append(tmp_path, Ledger(), [sheet(1)], prefix=".x-")
    (tmp_path / known.file).write_bytes((tmp_path / known.file).read_bytes() + b"half a sheet")
    known, second = ledger.append(tmp_path, known, [sheet(2)], prefix=".x-")
    assert ledger.read(tmp_path, known, [*first, *second]) == [sheet(1), sheet(2)]


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_damaged_numbers_are_an_error_and_never_other_numbers(tmp_path: Path, damage: str) -> None:
    known, places = ledger.append(tmp_path, Ledger(), [sheet(1), sheet(2)], prefix=".x-")
    file = tmp_path / known.file
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(b"x" * file.stat().st_size if damage == "changed" else file.read_bytes()[:-1])
    with pytest.raises(Damaged, match=r"not those|cannot be read"):
        ledger.read(tmp_path, known, places)


@pytest.mark.parametrize("prefix", [store.BLOCKS, store.SUBMODULES])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_ledger_that_is_not_whole_costs_a_rebuild_and_nothing_else(
    folder: CampaignFolder, prefix: str, damage: str
) -> None:
    before, file = folder.timeline.read_bytes(), file_of(folder, prefix)
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1])
    assert store.load(folder.summaries) == store.Store()
    assert update(folder).read == len(STEPS)
    assert folder.timeline.read_bytes() == before
    assert file_of(folder, prefix) != file, "a new file, and the old one is removed"


def test_the_store_gives_back_what_was_saved(folder: CampaignFolder) -> None:
    found = store.load(folder.summaries)
    assert [entry.extract.step for entry in found.entries.values() if entry.extract] == list(STEPS)
    store.save(folder.summaries, found)
    assert store.load(folder.summaries) == found


def test_numbers_of_replaced_artifacts_do_not_fill_the_disk(
    folder: CampaignFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "SLACK_BYTES", 0)
    sizes = []
    for number in range(10):
        put(folder, 300, weights(number), reference=(200, weights(200)))
        update(folder)
        sizes.append(file_of(folder, store.SUBMODULES).stat().st_size)
    assert max(sizes) <= 3 * min(sizes)
    kept = store.load(folder.summaries)
    assert [sheet.names for sheet in store.submodules(folder.summaries, kept).values()]
    assert update(folder).read == 0


def test_damage_that_shows_when_the_numbers_move_costs_a_rebuild(
    folder: CampaignFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = file_of(folder, store.SUBMODULES)
    file.write_bytes(b"x" * file.stat().st_size)
    monkeypatch.setattr(ledger, "SLACK_BYTES", -(10**9))
    put(folder, 500, weights(500), reference=(400, weights(400)))
    update(folder)
    assert update(folder).read == len(STEPS) + 1
    kept = store.load(folder.summaries)
    assert len(store.submodules(folder.summaries, kept)) == len(STEPS)


def test_who_reads_while_the_numbers_move_gets_them(folder: CampaignFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    found = store.load(folder.summaries)
    read, calls = ledger.read, []

    def moved(*arguments: Any) -> list[Sheet]:
        calls.append(arguments)
        if len(calls) == 1:
            monkeypatch.setattr(ledger, "SLACK_BYTES", -(10**9))
            monkeypatch.setattr(ledger, "read", read)
            store.save(folder.summaries, found)
            monkeypatch.setattr(ledger, "read", moved)
        return read(*arguments)

    monkeypatch.setattr(ledger, "read", moved)
    again = store.load(folder.summaries)
    assert again.entries.keys() == found.entries.keys()
    assert again.blocks.file != found.blocks.file


def test_a_store_without_an_artifact_has_no_ledger(tmp_path: Path) -> None:
    store.save(tmp_path, store.Store())
    assert [path.name for path in tmp_path.iterdir()] == [store.NAME]
    assert store.load(tmp_path) == store.Store()
