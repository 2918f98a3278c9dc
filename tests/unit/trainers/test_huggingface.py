import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from archaeologist.errors import SettingInvalid
from archaeologist.trainers.announcement import last_metrics
from archaeologist.trainers.huggingface import ArchaeologistCallback
from contracts.messages import CheckpointSaved


def callback(**more: Any) -> ArchaeologistCallback:
    return ArchaeologistCallback(**{"hero_id": "hero", "campaign_id": "one", "nats_url": "nats://127.0.0.1:1", **more})


def waiting_after_save(
    callback: ArchaeologistCallback, folder: Path, *, step: int = 3, **state: Any
) -> tuple[CheckpointSaved, ...]:
    """What waits for a bus that is not there, once a save was reported."""
    (folder / f"checkpoint-{step}").mkdir(exist_ok=True)
    callback.on_save(
        TrainingArguments(output_dir=str(folder), report_to=[]),
        TrainerState(global_step=step, **state),
        TrainerControl(),
    )
    waiting = callback._announcer.publisher.waiting
    callback._announcer.publisher.cancel()
    return waiting


def test_the_newest_value_of_each_metric_of_training_and_evaluation_counts() -> None:
    history: list[dict[str, Any]] = [
        {"loss": 3.0, "learning_rate": 0.1, "step": 1},
        {"eval_loss": 2.5, "step": 1},
        {"loss": 2.0, "grad_norm": math.nan, "step": 2},
    ]
    assert last_metrics(history) == {"loss": 2.0, "learning_rate": 0.1, "eval_loss": 2.5}


def test_no_log_yet_means_no_metrics() -> None:
    assert last_metrics([]) == {}


def test_a_save_is_announced_with_path_step_metrics_and_scores(tmp_path: Path) -> None:
    [message] = waiting_after_save(
        callback(skills={"BIN": 0.71, "SY": math.nan}, skill_samples={"BIN": 32, "SY": 64}, model_ref="tiny"),
        tmp_path,
        log_history=[{"loss": 1.5}],
    )
    assert message.checkpoint_path == str(tmp_path / "checkpoint-3")
    assert (message.hero_id, message.campaign_id, message.checkpoint_step) == ("hero", "one", 3)
    assert (message.metrics, message.skills, message.model_ref) == ({"loss": 1.5}, {"BIN": 0.71}, "tiny")
    assert message.skill_samples == {"BIN": 32}


def test_skills_are_read_at_each_save(tmp_path: Path) -> None:
    scores: dict[str, float] = {}
    saving = callback(skills=lambda: scores)
    scores["BIN"] = 0.5
    [message] = waiting_after_save(saving, tmp_path)
    assert message.skills == {"BIN": 0.5}


def test_skills_that_fail_do_not_stop_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def failing() -> Mapping[str, float]:
        raise ZeroDivisionError

    [message] = waiting_after_save(callback(skills=failing), tmp_path)
    assert message.skills == {}
    assert "announced without scores" in caplog.text


def test_only_rank_zero_announces(tmp_path: Path) -> None:
    assert waiting_after_save(callback(), tmp_path, is_world_process_zero=False) == ()


def test_a_checkpoint_that_is_not_there_is_not_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saving = callback()
    saving.on_save(
        TrainingArguments(output_dir=str(tmp_path), report_to=[]), TrainerState(global_step=9), TrainerControl()
    )
    assert saving._announcer.publisher.waiting == ()
    assert "checkpoint-9: not announced" in caplog.text


def test_a_state_that_makes_no_sense_does_not_stop_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert waiting_after_save(callback(), tmp_path, log_history=[None]) == ()
    assert "step 3 is not announced" in caplog.text


@pytest.mark.parametrize(
    "wrong", [{"hero_id": "a/b"}, {"campaign_id": ""}, {"unknown": 1}, {"model_ref": "x" * 257}, {"flush_seconds": -1}]
)
def test_wrong_arguments_are_told_before_training(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingInvalid):
        callback(**wrong)


def test_a_copy_by_pickle_has_the_settings_and_nothing_that_waits(tmp_path: Path) -> None:
    original = callback(skills={"BIN": 0.5})
    [message] = waiting_after_save(original, tmp_path)
    copy: ArchaeologistCallback = pickle.loads(pickle.dumps(original))  # noqa: S301 -- our own bytes
    assert copy._announcer.publisher.waiting == ()
    [again] = waiting_after_save(copy, tmp_path)
    assert (again.hero_id, again.skills) == (message.hero_id, message.skills)
