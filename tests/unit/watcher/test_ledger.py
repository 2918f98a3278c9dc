"""The file of what a watcher announced: where it lies, whatever the folder is called."""

from pathlib import Path

import pytest

from archaeologist.errors import ArtifactInvalid
from archaeologist.watcher.ledger import Ledger, LedgerFile
from tests.fixtures.hostile import MARKUP, STEERING

FOLDERS = ("/runs/a", "/runs/../../etc", "/runs/a\nhero", f"/runs/{STEERING}", f"/runs/{MARKUP}", "/" + "x" * 4000, "")


def ledger(folder: str, *, hero: str = "hero", campaign: str = "one") -> Ledger:
    return Ledger(folder=folder, hero_id=hero, campaign_id=campaign)


@pytest.mark.parametrize("folder", FOLDERS)
def test_its_name_is_plain_and_in_its_place(tmp_path: Path, folder: str) -> None:
    path = LedgerFile(tmp_path, ledger(folder)).path
    assert path.parent == tmp_path / "watch"
    assert path.name.removesuffix(".json").isalnum()
    assert path.resolve() == path.absolute()


def test_each_folder_and_campaign_has_its_own(tmp_path: Path) -> None:
    ledgers = [*map(ledger, FOLDERS), ledger("/runs/a", hero="one"), ledger("/runs/a", campaign="hero")]
    assert len({LedgerFile(tmp_path, one).path for one in ledgers}) == len(ledgers)


@pytest.mark.parametrize("folder", FOLDERS)
def test_it_is_read_as_it_was_written(tmp_path: Path, folder: str) -> None:
    file = LedgerFile(tmp_path, ledger(folder))
    assert file.read() is None
    written = ledger(folder).with_known(f"checkpoint-1{STEERING}", "mark", message=None)
    with file.held():
        file.write(written)
    assert file.read() == written
    assert sorted(one.suffix for one in file.path.parent.iterdir()) == [".json", ".lock"]


def test_a_damaged_one_is_not_taken_for_none(tmp_path: Path) -> None:
    file = LedgerFile(tmp_path, ledger("/runs/a"))
    with file.held():
        file.write(ledger("/runs/a"))
    for content in (b"", b"{}", b"[]", b"\xff", b'{"folder": 1}', b"[" * 100_000):
        file.path.write_bytes(content)
        with pytest.raises(ArtifactInvalid, match="announce what is there anew"):
            file.read()
