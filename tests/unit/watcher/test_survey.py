"""What a look over a folder finds, and what it says of it."""

import json
import os
import shutil
from pathlib import Path

import msgspec
import pytest
import structlog

from archaeologist.watcher import survey as module
from archaeologist.watcher.ledger import MAX_KNOWN, Ledger
from archaeologist.watcher.survey import Found, Rules, Survey, step_in
from contracts.messages import CheckpointSaved, encode
from tests.fixtures.checkpoints import write_checkpoint


def ledger(folder: Path) -> Ledger:
    return Ledger(folder=str(folder), hero_id="hero", campaign_id="one")


def survey(folder: Path, **rules: object) -> Survey:
    return Survey(msgspec.convert({"folder": folder, **rules}, Rules, dec_hook=lambda _, value: value), {})


def found(survey: Survey, folder: Path) -> list[Found]:
    return list(survey.look(ledger(folder)))


def names(survey: Survey, folder: Path) -> list[str]:
    return [one.name for one in found(survey, folder)]


def test_what_is_whole_is_found_once_the_lowest_step_first(tmp_path: Path) -> None:
    for step in (100, 20, 3):
        write_checkpoint(tmp_path / f"checkpoint-{step}", step=step, seed=step)
    looking = survey(tmp_path)
    assert names(looking, tmp_path) == ["checkpoint-3", "checkpoint-20", "checkpoint-100"]
    assert names(looking, tmp_path) == []


def test_a_message_decodes_and_says_what_the_trainer_logged(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint-5", step=5)
    [one] = found(survey(tmp_path), tmp_path)
    assert msgspec.json.decode(encode(one.message), type=CheckpointSaved) == one.message
    assert (one.message.checkpoint_step, one.message.metrics) == (5, {"loss": 1.5})
    assert one.message.checkpoint_path == str(tmp_path / "checkpoint-5")


def test_the_same_checkpoint_gives_the_same_message_whoever_finds_it(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint-5", step=5)
    [one], [other] = (found(survey(tmp_path), tmp_path) for _ in range(2))
    assert encode(one.message) == encode(other.message)


def test_other_bytes_under_a_known_name_are_a_new_checkpoint_and_the_same_bytes_are_not(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint-5", step=5, seed=1)
    looking = survey(tmp_path)
    [first] = found(looking, tmp_path)
    shutil.rmtree(folder)
    assert names(looking, tmp_path) == []
    write_checkpoint(folder, step=5, seed=1)
    assert names(looking, tmp_path) == []
    shutil.rmtree(folder)
    write_checkpoint(folder, step=5, seed=2)
    [second] = found(looking, tmp_path)
    assert first.message.request_id != second.message.request_id


def test_a_checkpoint_rewritten_in_place_is_a_new_one(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint-5", step=5, seed=1)
    looking = survey(tmp_path)
    found(looking, tmp_path)
    write_checkpoint(tmp_path / "checkpoint-5", step=5, seed=2)
    assert names(looking, tmp_path) == ["checkpoint-5"]


def test_what_is_not_whole_is_not_found_and_said_to_be_unsettled(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint-5", step=5)
    (folder / "trainer_state.json").unlink()
    looking = survey(tmp_path, quiet_seconds=0)
    assert names(looking, tmp_path) == []
    assert list(looking.unsettled) == ["checkpoint-5"]
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 5}))
    assert names(looking, tmp_path) == ["checkpoint-5"]


def test_what_stays_broken_is_told_once_and_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMPLAIN_AFTER_SECONDS", 0.0)
    (write_checkpoint(tmp_path / "checkpoint-5", step=5) / "model.safetensors").write_bytes(b"broken")
    looking = survey(tmp_path)
    with structlog.testing.capture_logs() as logs:
        assert names(looking, tmp_path) == []
        assert names(looking, tmp_path) == []
    assert [(entry["event"], entry["code"]) for entry in logs] == [("not announced: not whole", "header_invalid")]


def test_what_does_not_match_is_none_of_ours(tmp_path: Path) -> None:
    for name in ("checkpoint-5", "tmp-checkpoint-6", "runs"):
        write_checkpoint(tmp_path / name, step=5)
    (tmp_path / "checkpoint-7").write_text("a file")
    assert names(survey(tmp_path), tmp_path) == ["checkpoint-5"]
    assert names(survey(tmp_path / "missing"), tmp_path) == []


def test_single_files_are_checkpoints_where_the_pattern_says_so(tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path / "saved") / "model.safetensors"
    (tmp_path / "step_300.safetensors").write_bytes(weights.read_bytes())
    [one] = found(survey(tmp_path, pattern="step_*.safetensors", quiet_seconds=0), tmp_path)
    assert (one.message.checkpoint_step, one.message.checkpoint_path) == (300, str(tmp_path / "step_300.safetensors"))


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("checkpoint-5", 5),
        ("epoch=2-step=140-v1.ckpt", 140),
        ("global_step70", 70),
        ("iter_0001000", 1000),
        ("final", None),
    ],
)
def test_a_step_is_what_a_name_calls_so_or_its_last_number(tmp_path: Path, name: str, step: int | None) -> None:
    assert step_in(tmp_path / name) == step


def test_a_checkpoint_without_any_step_is_left_alone(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "final")
    assert names(survey(tmp_path, pattern="*", quiet_seconds=0), tmp_path) == []


def test_a_ledger_forgets_the_oldest_of_what_is_gone_and_nothing_that_is_there(tmp_path: Path) -> None:
    full = ledger(tmp_path)
    known = {f"checkpoint-{number}": "x" for number in range(MAX_KNOWN + 2)}
    thinned = msgspec.structs.replace(full, known=known).thinned({"checkpoint-0": ()})
    assert "checkpoint-0" in thinned.known
    assert "checkpoint-1" not in thinned.known
    assert len(thinned.known) == MAX_KNOWN + 1


def test_a_name_that_is_no_text_is_passed_over_and_said_once(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint-5", step=5)
    write_checkpoint(tmp_path / os.fsdecode(b"checkpoint-6\xff"), step=6)
    looking = survey(tmp_path)
    with structlog.testing.capture_logs() as log:
        assert names(looking, tmp_path) == ["checkpoint-5"]
        assert names(looking, tmp_path) == []
    assert [entry["event"] for entry in log] == ["not announced: its name is no Unicode text, which a message is"]
