"""The step of a checkpoint."""

from pathlib import Path

import pytest

from archaeologist.checkpoints.steps import step_in_name, step_of


@pytest.mark.parametrize(("name", "step"), [("checkpoint-0", 0), ("checkpoint-183000", 183000), ("checkpoint-007", 7)])
def test_the_folders_name_says_it(tmp_path: Path, name: str, step: int) -> None:
    assert step_of(tmp_path / name) == step
    assert step_of(tmp_path / name / "model.safetensors") == step


def test_the_name_goes_before_the_trainers_state(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-5"
    folder.mkdir()
    (folder / "trainer_state.json").write_text('{"global_step": 7}')
    assert step_of(folder) == 5


def test_a_name_says_a_step_wherever_the_path_leads() -> None:
    assert step_in_name(Path("/elsewhere/checkpoint-300/model.safetensors")) == 300
    assert step_in_name(Path("/elsewhere/best")) is None


def test_the_trainers_state_says_it_where_the_name_does_not(tmp_path: Path) -> None:
    (tmp_path / "trainer_state.json").write_text('{"log_history": [{"loss": 1.0}], "global_step": 7}')
    assert step_of(tmp_path) == 7


@pytest.mark.parametrize(
    "name",
    [
        "checkpoint",
        "checkpoint-",
        "checkpoint-1e3",
        "checkpoint-x",
        "my-checkpoint-5",
        "checkpoint-5-best",
        "checkpoint--5",
        "checkpoint-٣",
        "checkpoint-" + "9" * 16,
    ],
)
def test_another_name_says_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    assert step_of(tmp_path / name) is None


@pytest.mark.parametrize(
    "state",
    [
        b"",
        b"{}",
        b"[]",
        b'{"global_step": -1}',
        b'{"global_step": "7"}',
        b'{"global_step": 1.5}',
        b"\xff",
        b'{"global_step": true}',
        b'{"global_step": 1e30}',
        b"[" * 100000,
    ],
)
def test_a_state_that_is_none_says_nothing(tmp_path: Path, state: bytes) -> None:
    (tmp_path / "trainer_state.json").write_bytes(state)
    assert step_of(tmp_path) is None


def test_a_folder_that_is_not_there_says_nothing(tmp_path: Path) -> None:
    assert step_of(tmp_path / "run") is None
