"""Pins: hard links that outlive the checkpoint and never touch its folder."""

import os
import shutil
import time
from pathlib import Path

import pytest

from archaeologist.checkpoints import pins
from archaeologist.checkpoints.fingerprint import fingerprint
from archaeologist.checkpoints.index import read_index
from archaeologist.checkpoints.pins import pin, pin_name
from archaeologist.errors import CheckpointMissing, PinImpossible
from archaeologist.files import entries
from tests.fixtures.checkpoints import write_checkpoint

OLD = (0, 0)
"""Access and change time of 1970."""


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def saved(tmp_path: Path, *, step: int = 100, shards: int = 1) -> tuple[Path, str]:
    folder = write_checkpoint(tmp_path / f"checkpoint-{step}", seed=step, shards=shards, step=step)
    return folder, pin_name(step, fingerprint(read_index(folder)))


def folder_state(folder: Path) -> tuple[int, int, list[str]]:
    status = folder.stat()
    return status.st_mtime_ns, status.st_ctime_ns, sorted(file.name for file in folder.iterdir())


@pytest.mark.parametrize("shards", [1, 3])
def test_a_pinned_checkpoints_bytes_outlive_the_source(tmp_path: Path, shards: int) -> None:
    source, name = saved(tmp_path, shards=shards)
    before = {file: content for file, content in contents(source).items() if file not in TRAINERS}
    was = fingerprint(read_index(source))
    held = pin(source, tmp_path / ".pins", name)
    shutil.rmtree(source)
    assert held == tmp_path / ".pins" / name
    assert contents(held) == before
    assert fingerprint(read_index(held)) == was


TRAINERS = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"}


def test_pinning_leaves_the_checkpoints_folder_as_it_was(tmp_path: Path) -> None:
    source, name = saved(tmp_path)
    os.utime(source, OLD)
    before = folder_state(source)
    pin(source, tmp_path / ".pins", name)
    pins.unpin(tmp_path / ".pins", name)
    assert folder_state(source) == before


def test_pinning_twice_gives_the_same_folder_and_makes_it_young_again(tmp_path: Path) -> None:
    source, name = saved(tmp_path)
    held = pin(source, tmp_path / ".pins", name)
    os.utime(held, OLD)
    inode = held.stat().st_ino
    assert pin(source, tmp_path / ".pins", name) == held
    assert held.stat().st_ino == inode
    assert pins.release(tmp_path / ".pins", keep=(), older_than_seconds=60) == ()


def test_a_pin_costs_no_disk_until_the_source_is_gone(tmp_path: Path) -> None:
    source, name = saved(tmp_path)
    held = pin(source, tmp_path / ".pins", name)
    assert pins.held_bytes([tmp_path / ".pins"]) == 0
    shutil.rmtree(source)
    assert pins.held_bytes([tmp_path / ".pins"]) == sum(file.stat().st_size for file in held.iterdir())


def test_a_single_weight_file_is_pinned_without_its_neighbours(tmp_path: Path) -> None:
    source, _ = saved(tmp_path)
    shutil.copy(source / "model.safetensors", source / "other.safetensors")
    held = pin(source / "other.safetensors", tmp_path / ".pins", "1-a")
    assert sorted(contents(held)) == ["config.json", "model.safetensors", "tokenizer.json", "trainer_state.json"]
    assert (held / "model.safetensors").samefile(source / "other.safetensors")
    assert fingerprint(read_index(held)) == fingerprint(read_index(source / "other.safetensors"))


def test_folders_in_the_checkpoint_are_left_out(tmp_path: Path) -> None:
    source, name = saved(tmp_path)
    (source / "global_step100").mkdir()
    assert "global_step100" not in contents(pin(source, tmp_path / ".pins", name))


# Links in the checkpoint.


def test_a_link_to_an_allowed_folder_is_pinned_as_the_bytes_it_leads_to(tmp_path: Path) -> None:
    blobs = write_checkpoint(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.safetensors").symlink_to("../blobs/model.safetensors")
    held = pin(tmp_path / "snapshot", tmp_path / ".pins", "1-a", allowed=[tmp_path])
    shutil.rmtree(blobs)
    assert not (held / "model.safetensors").is_symlink()
    assert read_index(held).tensors_listed == 24


def test_weights_behind_a_link_out_of_the_folder_are_not_pinned(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.safetensors").symlink_to("../blobs/model.safetensors")
    with pytest.raises(PinImpossible, match=r"'model\.safetensors' is a link out of the folder"):
        pin(tmp_path / "snapshot", tmp_path / ".pins", "1-a")
    assert list((tmp_path / ".pins").iterdir()) == []


def test_another_link_out_of_the_folder_is_left_out(tmp_path: Path) -> None:
    source, name = saved(tmp_path)
    (tmp_path / "secret").write_text("secret")
    (source / "notes.txt").symlink_to("../secret")
    assert "notes.txt" not in contents(pin(source, tmp_path / ".pins", name))


# What is refused.


def test_another_file_system_is_refused_with_the_reason(tmp_path: Path) -> None:
    source, name = saved(tmp_path)
    shared_memory = Path("/dev/shm")  # noqa: S108 - another file system than the temporary folder, on most machines
    if not shared_memory.is_dir() or shared_memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system here")
    elsewhere = shared_memory / f"pins-{os.getpid()}"
    try:
        with pytest.raises(PinImpossible) as caught:
            pin(source, elsewhere, name)
        assert list(elsewhere.iterdir()) == []
    finally:
        shutil.rmtree(elsewhere, ignore_errors=True)
    message = str(caught.value)
    assert caught.value.code == "pin_impossible"
    assert "(Invalid cross-device link): checkpoints and pins must lie on one file system under one mount" in message
    assert message.endswith("or set pins.enabled = false")


def test_a_folder_of_pins_that_is_a_file_is_refused(tmp_path: Path) -> None:
    source, name = saved(tmp_path)
    (tmp_path / ".pins").write_text("")
    with pytest.raises(PinImpossible, match="cannot be pinned"):
        pin(source, tmp_path / ".pins", name)


def test_a_checkpoint_that_is_gone_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMissing, match="raise save_total_limit"):
        pin(tmp_path / "checkpoint-1", tmp_path / ".pins", "1-a")
    assert pins.listed(tmp_path / ".pins") == ()


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a" * 129, "x.tmp"])
def test_a_pins_name_is_plain(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is not one that pin_name gives"):
        pin(tmp_path, tmp_path / ".pins", name)
    with pytest.raises(ValueError, match="is not one that pin_name gives"):
        pins.unpin(tmp_path / ".pins", name)


def test_a_pin_is_named_by_step_and_content() -> None:
    assert pin_name(183000, "0123456789abcdef0123456789abcdef") == "183000-0123456789ab"


# Release.


def test_released_are_old_pins_that_are_not_kept(tmp_path: Path) -> None:
    folder = tmp_path / ".pins"
    names = [saved(tmp_path, step=step)[1] for step in (1, 2, 3)]
    for step, name in enumerate(names, start=1):
        held = pin(tmp_path / f"checkpoint-{step}", folder, name)
        if step != 3:
            os.utime(held, OLD)
    assert pins.listed(folder) == tuple(names)
    assert pins.release(folder, keep={names[0]}, older_than_seconds=60) == (names[1],)
    assert pins.listed(folder) == (names[0], names[2])


def test_half_made_pins_go_when_they_are_old_and_are_not_named(tmp_path: Path) -> None:
    folder = tmp_path / ".pins"
    for name in (".1-a.0f0f.tmp", ".2-b.0f0f.tmp"):
        (folder / name).mkdir(parents=True)
        (folder / name / "model.safetensors").write_bytes(b"x")
    os.utime(folder / ".1-a.0f0f.tmp", OLD)
    assert pins.listed(folder) == ()
    assert pins.release(folder, keep=(), older_than_seconds=60) == ()
    assert [entry.name for entry in folder.iterdir()] == [".2-b.0f0f.tmp"]


def test_a_pin_is_not_young_because_its_checkpoint_is(tmp_path: Path) -> None:
    source, name = saved(tmp_path)
    os.utime(pin(source, tmp_path / ".pins", name), OLD)
    assert pins.release(tmp_path / ".pins", keep=(), older_than_seconds=60) == (name,)
    assert read_index(source).tensors_listed == 24


def test_without_any_pins_there_is_nothing_to_do(tmp_path: Path) -> None:
    assert pins.listed(tmp_path / ".pins") == ()
    assert pins.release(tmp_path / ".pins", keep=(), older_than_seconds=0) == ()
    assert pins.held_bytes([tmp_path / ".pins"]) == 0
    pins.unpin(tmp_path / ".pins", "1-a")
    assert not (tmp_path / ".pins").exists()


def test_unpinning_what_is_not_pinned_is_fine(tmp_path: Path) -> None:
    source, name = saved(tmp_path)
    pin(source, tmp_path / ".pins", name)
    pins.unpin(tmp_path / ".pins", "9-z")
    pins.unpin(tmp_path / ".pins", name)
    pins.unpin(tmp_path / ".pins", name)
    assert pins.listed(tmp_path / ".pins") == ()


# Within a disk budget.


def aged(pinned: Path, age_seconds: float) -> Path:
    made_at = time.time() - age_seconds
    os.utime(pinned, (made_at, made_at))
    return pinned


def orphaned(tmp_path: Path, step: int, *, campaign: str = "c", age_seconds: float = 1000.0) -> Path:
    """A pin whose checkpoint its trainer has deleted."""
    source, name = saved(tmp_path / f"{campaign}-saved", step=step)
    pinned = aged(pin(source, tmp_path / campaign / ".pins", name), age_seconds)
    shutil.rmtree(source)
    return pinned


def size_of(pinned: Path) -> int:
    return sum(file.stat().st_size for file in pinned.iterdir())


def test_bytes_that_several_pins_share_are_counted_once_and_those_of_a_living_checkpoint_never(tmp_path: Path) -> None:
    source, name = saved(tmp_path)
    folders = [tmp_path / campaign / ".pins" for campaign in ("a", "b")]
    held = [pin(source, folder, name) for folder in folders]
    assert pins.held_bytes(folders) == 0
    shutil.rmtree(source)
    assert pins.held_bytes(folders) == size_of(held[0])
    assert pins.held_bytes(folders[:1]) == 0, "the other campaign's pin has them as well"


def test_a_pin_that_another_process_removes_while_it_is_counted_is_left_out_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stays, goes = orphaned(tmp_path, 1), orphaned(tmp_path, 2)
    size = size_of(stays)

    def listed(folder: os.DirEntry[str]) -> list[os.DirEntry[str]]:
        found = entries(folder)
        if folder.name == goes.name:
            Path(found[-1]).unlink()
        return found

    monkeypatch.setattr("archaeologist.checkpoints.pins.entries", listed)
    ledger = pins.Ledger([stays.parent])
    assert [holding.name for holding in ledger.holdings] == [stays.name]
    assert ledger.held_bytes == size


def test_the_oldest_pins_go_until_the_rest_is_within_the_budget(tmp_path: Path) -> None:
    held = {
        step: orphaned(tmp_path, step, campaign=campaign, age_seconds=age)
        for step, campaign, age in ((1, "a", 3000), (2, "b", 5000), (3, "a", 4000), (4, "b", 2000))
    }
    sizes = {step: size_of(pinned) for step, pinned in held.items()}
    folders = [tmp_path / campaign / ".pins" for campaign in ("a", "b")]
    given_up, left = pins.thin(folders, keep={}, budget_bytes=sizes[1] + sizes[4], older_than_seconds=60)
    assert [int(holding.name.partition("-")[0]) for holding in given_up] == [2, 3]
    assert left == sizes[1] + sizes[4] == pins.held_bytes(folders)
    assert pins.thin(folders, keep={}, budget_bytes=left, older_than_seconds=60) == ((), left)


def test_neither_a_needed_pin_nor_a_young_one_nor_one_of_a_living_checkpoint_goes(tmp_path: Path) -> None:
    needed = orphaned(tmp_path, 1, age_seconds=9000)
    young = orphaned(tmp_path, 2, age_seconds=10)
    source, name = saved(tmp_path, step=3)
    living = aged(pin(source, tmp_path / "c" / ".pins", name), 8000)
    free = orphaned(tmp_path, 4, age_seconds=7000)
    folder = tmp_path / "c" / ".pins"
    keep = {folder: {needed.name}}
    given_up, left = pins.thin([folder], keep=keep, budget_bytes=0, older_than_seconds=60)
    assert [holding.name for holding in given_up] == [free.name]
    assert left == size_of(needed) + size_of(young)
    assert all(pinned.is_dir() for pinned in (needed, young, living))


def test_both_pins_of_shared_bytes_go_where_one_alone_frees_nothing(tmp_path: Path) -> None:
    source, name = saved(tmp_path)
    folders = [tmp_path / campaign / ".pins" for campaign in ("a", "b")]
    for folder in folders:
        aged(pin(source, folder, name), 1000)
    shutil.rmtree(source)
    given_up, left = pins.thin(folders, keep={}, budget_bytes=0, older_than_seconds=60)
    assert (len(given_up), left) == (2, 0)


def test_a_pin_that_is_asked_for_again_is_young_and_one_that_is_not_there_is_not(tmp_path: Path) -> None:
    held = orphaned(tmp_path, 1)
    assert pins.renew(held.parent, held.name)
    assert pins.thin([held.parent], keep={}, budget_bytes=0, older_than_seconds=60)[0] == ()
    assert not pins.renew(held.parent, "9-z")
    assert not pins.renew(tmp_path / "nowhere", "9-z")
