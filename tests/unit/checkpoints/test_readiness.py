"""Checkpoints caught at every moment of being written, by the writers' own order."""

import os
import shutil
from pathlib import Path

import pytest

from archaeologist.checkpoints.readiness import Look, Stillness, is_ready, look
from archaeologist.errors import CheckpointMissing
from tests.fixtures.checkpoints import write_checkpoint

QUIET = 5.0


def is_ready_at_once(found: Look) -> bool:
    return is_ready(found, still_seconds=0.0, quiet_seconds=QUIET)


def is_ready_when_quiet(found: Look) -> bool:
    return is_ready(found, still_seconds=QUIET, quiet_seconds=QUIET)


def code(found: Look) -> str | None:
    return found.lacking.code if found.lacking else None


def test_a_trainers_checkpoint_is_ready_at_once_with_its_last_file_and_never_before(tmp_path: Path) -> None:
    whole = write_checkpoint(tmp_path / "whole" / "checkpoint-5", shards=2, step=5)
    order = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "training_args.bin",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
    ]
    assert sorted(order) == sorted(path.name for path in whole.iterdir())
    growing = tmp_path / "growing" / "checkpoint-5"
    growing.mkdir(parents=True)
    for name in order:
        found = look(growing)
        assert not is_ready_at_once(found)
        # Between the weights' last file and the trainer's first nothing but quiet tells that more is to come.
        assert is_ready_when_quiet(found) == (name in {"tokenizer.json", "training_args.bin"})
        content = (whole / name).read_bytes()
        (growing / name).write_bytes(content[: len(content) // 2])
        assert not is_ready_at_once(look(growing)) or name == "trainer_state.json"
        (growing / name).write_bytes(content)
    assert is_ready_at_once(look(growing))


def test_a_checkpoint_without_a_trainers_files_is_ready_when_it_has_been_quiet(tmp_path: Path) -> None:
    found = look(write_checkpoint(tmp_path / "saved"))
    assert (is_ready_at_once(found), is_ready_when_quiet(found)) == (False, True)


def test_a_single_file_is_ready_when_it_has_been_quiet(tmp_path: Path) -> None:
    file = write_checkpoint(tmp_path / "saved") / "model.safetensors"
    found = look(file)
    assert (is_ready_at_once(found), is_ready_when_quiet(found)) == (False, True)
    assert [mark.name for mark in found.marks] == ["model.safetensors"]


def test_weights_shorter_than_their_header_says_are_not_ready_however_quiet(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "saved")
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 1)
    found = look(folder)
    assert not is_ready_when_quiet(found)
    assert code(found) == "header_invalid"


def test_shards_without_one_of_them_are_not_ready(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint-5", shards=2, step=5)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert code(look(folder)) == "shard_missing"


def test_an_empty_folder_is_not_ready(tmp_path: Path) -> None:
    assert code(look(tmp_path)) == "checkpoint_empty"


def test_the_state_of_an_earlier_run_does_not_seal_weights_that_are_newer(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint-5", step=5)
    assert look(folder).is_sealed
    state = (folder / "trainer_state.json").stat()
    os.utime(folder / "model.safetensors", ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert not look(folder).is_sealed


def test_a_model_saved_by_itself_needs_no_trainers_state(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "final")
    (folder / "training_args.bin").write_bytes(b"x")
    assert is_ready_when_quiet(look(folder))
    shutil.move(folder, tmp_path / "checkpoint-5")
    assert not is_ready_when_quiet(look(tmp_path / "checkpoint-5"))


def test_looking_leaves_the_folders_time_alone(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint-5", step=5)
    before = folder.stat().st_mtime_ns
    look(folder)
    assert folder.stat().st_mtime_ns == before


def test_a_checkpoint_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMissing):
        look(tmp_path / "checkpoint-5")


def test_stillness_counts_from_the_last_change(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "saved")
    still = Stillness()
    assert still.seconds(look(folder).marks, now=10.0) == 0.0
    assert still.seconds(look(folder).marks, now=13.0) == 3.0
    (folder / "more").write_bytes(b"x")
    assert still.seconds(look(folder).marks, now=14.0) == 0.0
    assert still.seconds(look(folder).marks, now=15.0) == 1.0
