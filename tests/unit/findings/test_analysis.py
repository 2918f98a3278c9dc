"""Findings of one analysis: the completed event's sentences."""

import pytest
from msgspec.structs import replace

from archaeologist.findings.analysis import of_artifact
from contracts.artifacts import (
    Alert,
    FunctionalDrift,
    GlobalDriftStats,
    GlobalWeightStats,
    LayerDriftStats,
    LayerStats,
    LayerWeightStats,
    OutputDrift,
)
from tests.fixtures.artifacts import layer_stats


def artifact(*relative: float | None, below: bool = False, changed: float = 0.9) -> LayerStats:
    names = [f"model.layers.{number}" for number in range(len(relative))]
    blocks = {
        name: LayerDriftStats(name=name, relative_l2=value, changed_fraction=changed, below_resolution=below)
        for name, value in zip(names, relative, strict=True)
    }
    return replace(
        layer_stats("k", step=200),
        weight_stats={name: LayerWeightStats(name=name, layer_type="transformer_block") for name in names},
        global_weight_stats=GlobalWeightStats(l2=12.5, param_count=1200),
        drift_stats=blocks,
        global_drift_stats=GlobalDriftStats(most_changed_layer_relative=names[-1]) if names else None,
        reference_checkpoint_step=100,
    )


def texts(found: LayerStats) -> list[str]:
    return [one.text for one in of_artifact(found)]


def test_without_a_reference_only_the_size_is_told() -> None:
    assert texts(artifact()) == ["1,200 parameters in 0 blocks, L2 norm 12.5."]


def test_what_moved_and_how_far_the_predictions_are_is_told() -> None:
    output = FunctionalDrift(output=OutputDrift(positions=10, kl=0.25, top1_agreement=0.5))
    found = texts(replace(artifact(0.1, 0.1, 0.3), functional_drift=output))
    assert found[1:] == [
        "Block 2 moved 3.0 times the median since step 100.",
        "The predictions are 0.25 nats (KL) from step 100's; the first choice is the same at 50.0% of positions.",
    ]


@pytest.mark.parametrize(
    ("path", "since"),
    [
        ("/models/qwen3-base", "since its reference"),
        ("/models/qwen3-base/model.safetensors", "since its reference"),
        ("/run/checkpoint-0", "since step 0"),
        ("/run/checkpoint-000000/model.safetensors", "since step 0"),
    ],
)
def test_a_reference_whose_step_nobody_knows_is_called_the_reference(path: str, since: str) -> None:
    output = FunctionalDrift(output=OutputDrift(kl=0.25))
    found = replace(
        artifact(0.1, 0.1, 0.3),
        reference_checkpoint_step=0,
        reference_checkpoint_path=path,
        functional_drift=output,
    )
    moved, predictions = texts(found)[1:]
    assert moved.endswith(f" {since}.")
    assert f"from {'step 0' if since == 'since step 0' else 'the reference'}'s" in predictions


def test_two_blocks_are_ranked_without_a_median() -> None:
    assert texts(artifact(0.1, 0.3))[1:] == ["model.layers.1 moved most (relative L2 0.3)."]


def test_two_blocks_that_moved_as_far_are_both_counted() -> None:
    assert texts(artifact(0.3, 0.3))[1:] == ["model.layers.1 and 1 more moved most (relative L2 0.3)."]


def test_a_small_share_that_changed_is_not_none() -> None:
    found = of_artifact(artifact(0.1, 0.3, changed=1e-6))
    assert found[1].basis == "2 blocks compared, less than 0.1% of its values"


def test_rounding_moves_nothing() -> None:
    assert texts(artifact(0.1, 0.3, below=True, changed=0.2))[1:] == [
        "2 of 2 blocks are below the resolution of the stored precision: drift there is rounding."
    ]


def test_alerts_come_first() -> None:
    alerts = (Alert(severity="critical", family="entropy", metric="entropy"),)
    assert texts(replace(artifact(0.1), alerts=alerts))[0] == "1 alert, critical: entropy."
