import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from archaeologist.errors import SettingInvalid
from archaeologist.trainers.announcement import announcement, finite, known_step, plain_name
from contracts.messages import CheckpointSaved, encode


def test_an_announcement_decodes_as_checkpoint_saved() -> None:
    message = announcement(
        Path("/runs/a/checkpoint-7"),
        hero_id="qwen3-0.6b",
        campaign_id="run_1",
        step=7,
        model_ref="Qwen/Qwen3-0.6B",
        metrics={"eval_loss": 1.9},
        skills={"BIN": 0.71},
    )
    assert msgspec.json.decode(encode(message), type=CheckpointSaved) == message
    assert message.request_id is not None
    assert len(message.request_id) == 26
    assert message.saved_at is not None
    assert message.saved_at.endswith("Z")


def test_two_announcements_have_two_ids() -> None:
    first, second = (
        announcement(Path("/c"), hero_id="h", campaign_id="c", step=1, model_ref=None, metrics={}, skills={})
        for _ in range(2)
    )
    assert first.request_id != second.request_id


def test_only_finite_numbers_are_metrics() -> None:
    values = {
        "loss": 1.5,
        "whole": 2,
        "numpy": np.float32(0.25),
        "tensor": torch.tensor(0.5, dtype=torch.bfloat16),
        "one": np.array([4]),
        "several": torch.tensor([1.0, 2.0]),
        "nan": math.nan,
        "infinite": -math.inf,
        "flag": True,
        "text": "1.5",
        "nothing": None,
        "": 1.0,
        "x" * 129: 1.0,
    }
    assert finite(values) == {
        "loss": 1.5,
        "whole": 2.0,
        "numpy": 0.25,
        "tensor": 0.5,
        "one": 4.0,
    }
    assert {type(value) for value in finite(values).values()} == {float}


def test_no_more_metrics_than_a_message_may_have() -> None:
    assert len(finite({f"metric_{number}": 1.0 for number in range(1000)})) == 256


@pytest.mark.parametrize("value", ["", "a/b", "../up", "a..b", "-x", "a b", "a\n", "ä", "x" * 129, None, 7])
def test_an_id_that_is_no_plain_name_is_refused_with_the_rule(value: object) -> None:
    with pytest.raises(SettingInvalid, match=r"hero_id .* is not a plain name: .*; choose one like"):
        plain_name("hero_id", value)


@pytest.mark.parametrize("step", [-1, 1.0, True, "7"])
def test_a_step_that_is_none_is_refused_with_the_rule(step: object) -> None:
    with pytest.raises(SettingInvalid, match=r"step .* is no step; give the number of optimizer steps"):
        known_step(step)
