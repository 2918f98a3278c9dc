"""The stability report of campaigns whose weights are known, against plain arithmetic on these weights."""

import itertools
import math
import os
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from msgspec.structs import replace

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.artifacts.thinning import thin
from archaeologist.errors import ArtifactInvalid, ArtifactMissing
from archaeologist.statistics.sketch import WIDTH
from archaeologist.statistics.trajectory import WINDOW
from archaeologist.summaries.chronicle import rebuild, update
from archaeologist.summaries.sketches import drift_estimate, estimated
from contracts.artifacts import Comparison, LayerWeightStats, StabilityReport, TensorWeights
from tests.fixtures.histories import Weights, artifact, folder_in, place_whole, put, put_all, sketch

SIZE = 1000
NAMES = {
    "frozen": "model.embed_tokens.weight",
    "below_resolution": "model.layers.0.mlp.weight",
    "settled": "model.layers.1.mlp.weight",
    "directed": "model.layers.2.mlp.weight",
    "diffusive": "model.layers.3.mlp.weight",
    "thrashing": "model.layers.4.mlp.weight",
}


@pytest.fixture
def folder(tmp_path: Path) -> CampaignFolder:
    """A campaign without artifacts."""
    return folder_in(tmp_path)


def campaign(count: int) -> dict[int, Weights]:
    """So many checkpoints, 100 steps apart, with one block of each class."""
    generator = np.random.default_rng(7)
    now = {name: generator.standard_normal(SIZE) for name in NAMES.values()}
    direction = generator.standard_normal(SIZE)
    found: dict[int, Weights] = {}
    for number in range(count):
        found[100 * (number + 1)] = dict(now)
        noise = generator.standard_normal(SIZE)
        few = np.where(np.arange(SIZE) < 300, noise, 0.0)
        now["model.layers.0.mlp.weight"] = now["model.layers.0.mlp.weight"] + 0.01 * few
        now["model.layers.1.mlp.weight"] = now["model.layers.1.mlp.weight"] + 0.1 * 0.3**number * noise
        now["model.layers.2.mlp.weight"] = now["model.layers.2.mlp.weight"] + 0.1 * direction
        now["model.layers.3.mlp.weight"] = now["model.layers.3.mlp.weight"] + 0.1 * noise
        now["model.layers.4.mlp.weight"] = now["model.layers.4.mlp.weight"] + 0.1 * (-1) ** number * direction
    return found


def report(folder: CampaignFolder) -> StabilityReport:
    return msgspec.json.decode(folder.stability.read_bytes(), type=StabilityReport)


def scaled_by_hand(points: list[npt.NDArray[np.float64]]) -> float:
    squares = [float(((after - before) ** 2).sum()) for before, after in itertools.pairwise(points)]
    return math.sqrt(float(((points[-1] - points[0]) ** 2).sum()) / sum(squares))


def test_every_class_is_told_by_its_weights(folder: CampaignFolder) -> None:
    checkpoints = campaign(8)
    put_all(folder, checkpoints)
    update(folder)
    found = report(folder)
    assert found.frozen == ("model.embed_tokens",)
    assert found.below_resolution == ("model.layers.0",)
    assert found.settled == ("model.layers.1",)
    assert found.directed == ("model.layers.2",)
    assert found.diffusive == ("model.layers.3",)
    assert found.thrashing == ("model.layers.4",)
    assert found.checkpoints == tuple(checkpoints)
    for name in ("model.layers.2", "model.layers.3", "model.layers.4"):
        points = [weights[f"{name}.mlp.weight"] for weights in checkpoints.values()]
        assert found.layers[name].scaled_straightness == pytest.approx(scaled_by_hand(points), rel=1e-9)


def test_a_block_whose_shape_changed_has_no_drift_and_no_direction(folder: CampaignFolder) -> None:
    found, name = campaign(8), NAMES["directed"]
    put_all(folder, found)
    block = "model.layers.2"
    tensor = TensorWeights(dtype="F32", shape=(SIZE,))
    whole = LayerWeightStats(name=block, layer_type="transformer_block", tensors={"mlp.weight": tensor})
    first = artifact(500, found[500], reference=(400, found[400]))
    put(
        folder,
        500,
        found[500],
        reference=(400, found[400]),
        weight_stats={**first.weight_stats, block: whole},
        comparison=Comparison(compared=5, shape_differs={name: "1000 against 500"}),
    )
    update(folder)
    layer = report(folder).layers[block]
    assert (layer.stability, layer.reason) == ("undetermined", "its drift is missing in 1 of 7 intervals")


def test_lag1_cosine_and_totals_equal_plain_arithmetic(folder: CampaignFolder) -> None:
    checkpoints = campaign(6)
    put_all(folder, checkpoints)
    update(folder)
    points = [weights["model.layers.3.mlp.weight"] for weights in checkpoints.values()]
    changes = [after - before for before, after in itertools.pairwise(points)]
    cosines = [
        float((one * other).sum() / math.sqrt((one**2).sum() * (other**2).sum()))
        for one, other in itertools.pairwise(changes)
    ]
    layer = report(folder).layers["model.layers.3"]
    assert layer.lag1_cosine == pytest.approx(sum(cosines) / len(cosines), rel=1e-9)
    total = sum(math.sqrt((change**2).sum()) for change in changes)
    assert layer.path_length == pytest.approx(total, rel=1e-12)
    totals = {one.layer: one.total_drift for one in report(folder).top_movers}
    assert totals["model.layers.3"] == pytest.approx(total, rel=1e-12)
    assert list(totals.values()) == sorted(totals.values(), reverse=True)
    assert list(totals)[-1] == "model.embed_tokens"


def test_only_the_newest_intervals_count(folder: CampaignFolder) -> None:
    put_all(folder, campaign(WINDOW + 5))
    update(folder)
    assert len(report(folder).checkpoints) == WINDOW + 1
    assert report(folder).checkpoints[-1] == 100 * (WINDOW + 5)


def test_updates_one_by_one_equal_a_rebuild(folder: CampaignFolder) -> None:
    before: tuple[int, Weights] | None = None
    for step, weights in campaign(8).items():
        put(folder, step, weights, reference=before)
        update(folder)
        before = (step, weights)
    brought = folder.stability.read_bytes()
    rebuild(folder)
    assert folder.stability.read_bytes() == brought


def test_drift_against_another_reference_is_replaced_by_the_sketches(folder: CampaignFolder) -> None:
    checkpoints = campaign(8)
    first = checkpoints[100]
    for step, weights in checkpoints.items():
        put(folder, step, weights, reference=(100, first) if step > 100 else None)
    update(folder)
    found = report(folder)
    assert found.directed == ("model.layers.2",)
    assert found.thrashing == ("model.layers.4",)
    # One interval alone was measured: 100 to 200. So only that one's changed fraction is known.
    assert found.layers["model.layers.2"].intervals_measured == 1


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (b"sketch", "cannot be read"),
        (sketch("other bytes", 800, {"a": np.zeros(3)}), "other bytes"),
        (sketch("x", 800, {"a": np.zeros(30)})[:-100], "is not float64 within the file"),
        (sketch("x", 800, {"a": np.zeros(30)}).replace(b"F64", b"F32"), "is not float64 within the file"),
        (b"\xff" * 16, "cannot be read"),
    ],
)
def test_a_damaged_sketch_is_told_of_and_costs_only_the_direction(
    folder: CampaignFolder, damage: bytes, says: str
) -> None:
    put_all(folder, campaign(8))
    place_whole(folder.sketch(800), damage)
    update(folder)
    found = report(folder)
    assert says in found.left_out[0].reason
    assert found.left_out[0].file == "sketches/ckpt-000800.sketch.safetensors"
    assert found.frozen == ("model.embed_tokens",)
    assert found.settled == ("model.layers.1",)
    assert set(found.undetermined) == {"model.layers.2", "model.layers.3", "model.layers.4"}


def test_a_missing_first_sketch_moves_the_window_s_beginning(folder: CampaignFolder) -> None:
    put_all(folder, campaign(8))
    folder.sketch(100).unlink()
    update(folder)
    assert report(folder).checkpoints[0] == 200
    assert report(folder).directed == ("model.layers.2",)


def test_a_block_that_is_missing_in_an_interval_has_no_class(folder: CampaignFolder) -> None:
    checkpoints = campaign(8)
    put_all(folder, checkpoints)
    without = {name: values for name, values in checkpoints[800].items() if "layers.2" not in name}
    put(folder, 800, without, reference=(700, checkpoints[700]))
    update(folder)
    found = report(folder).layers["model.layers.2"]
    assert (found.stability, found.reason) == ("undetermined", "its drift is missing in 1 of 7 intervals")


def test_one_checkpoint_is_no_interval(folder: CampaignFolder) -> None:
    put_all(folder, campaign(1))
    update(folder)
    found = report(folder)
    assert len(found.undetermined) == len(NAMES)
    assert found.top_movers == ()


def test_absurd_numbers_are_missing_ones(folder: CampaignFolder) -> None:
    checkpoints = campaign(6)
    put_all(folder, checkpoints)
    found = put(folder, 600, checkpoints[600], reference=(500, checkpoints[500]))
    block = replace(found.drift_stats["model.layers.2"], l2=1e308, relative_l2=1e308)
    odd = replace(found, drift_stats={**found.drift_stats, "model.layers.2": block})
    place_whole(folder.layer_stats(600), msgspec.json.encode(odd))
    update(folder)
    assert report(folder).layers["model.layers.2"].stability == "undetermined"


# The drift between any two.


def test_the_distance_of_any_two_checkpoints_comes_from_their_sketches(folder: CampaignFolder) -> None:
    checkpoints = campaign(5)
    put_all(folder, checkpoints)
    found = drift_estimate(folder, 100, 500)
    assert found.is_estimate
    for name, block in NAMES.items():
        change = checkpoints[500][block] - checkpoints[100][block]
        layer = found.layers[block.removesuffix(".weight").removesuffix(".mlp")]
        assert layer.l2 == pytest.approx(math.sqrt((change**2).sum()), rel=1e-9), name
        assert layer.relative_l2 == pytest.approx(
            math.sqrt((change**2).sum() / (checkpoints[100][block] ** 2).sum()), rel=1e-9
        )
        assert layer.spread == 0.0, "kept whole, so exact"
    assert found.whole.tensors == len(NAMES)


def test_the_spread_of_an_estimate_is_that_of_its_tensors() -> None:
    one = estimated([(4.0, False)], norm=4.0)
    assert (one.l2, one.relative_l2) == (2.0, 0.5)
    assert one.spread == pytest.approx(math.sqrt(2 / WIDTH) / 2)
    four = estimated([(4.0, False)] * 4, norm=None)
    assert four.spread == pytest.approx(one.spread / 2)
    assert estimated([(4.0, False), (4.0, True)], norm=None).spread == pytest.approx(one.spread / 2)
    assert estimated([(0.0, False)], norm=0.0).spread == 0.0
    assert estimated([(0.0, False)], norm=0.0).relative_l2 is None


def test_tensors_on_one_side_only_are_named(folder: CampaignFolder) -> None:
    put(folder, 100, {"a.weight": np.ones(4), "b.weight": np.ones(4)})
    put(folder, 200, {"a.weight": np.ones(4), "c.weight": np.ones(4)})
    assert drift_estimate(folder, 100, 200).not_compared == ("b.weight", "c.weight")


def test_an_estimate_needs_both_sketches(folder: CampaignFolder) -> None:
    put_all(folder, campaign(2))
    with pytest.raises(ArtifactMissing, match="request the analysis"):
        drift_estimate(folder, 100, 300)
    folder.sketch(200).unlink()
    with pytest.raises(ArtifactMissing, match="analyse its checkpoint again"):
        drift_estimate(folder, 100, 200)
    place_whole(folder.sketch(200), b"no sketch")
    with pytest.raises(ArtifactInvalid):
        drift_estimate(folder, 100, 200)


def test_sketches_that_were_given_up_are_told_of_once_and_the_newest_still_count(folder: CampaignFolder) -> None:
    checkpoints = campaign(8)
    first = checkpoints[100]
    for step, weights in checkpoints.items():
        put(folder, step, weights, reference=(100, first) if step > 100 else None)
    sizes = {step: folder.sketch(step).stat().st_size for step in checkpoints}
    for step in checkpoints:
        os.utime(folder.sketch(step), (step, step))
    thin([folder], budget_bytes=sum(sizes.values()) - sizes[100] - sizes[200] - sizes[300], now=datetime.now(UTC))
    update(folder)
    found = report(folder)
    assert [(one.file, one.code) for one in found.left_out] == [("sketches", "sketch_thinned")]
    assert "of 2 steps from 200 to 300" in found.left_out[0].reason
    assert "sketches.max_gb" in found.left_out[0].reason
    assert found.checkpoints == (400, 500, 600, 700, 800)
    brought = folder.stability.read_bytes()
    rebuild(folder)
    assert folder.stability.read_bytes() == brought
