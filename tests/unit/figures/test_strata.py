"""The strata: which value stands where, what is rounding, what is missing."""

import math
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from archaeologist.figures.grid import METRICS, MOST_COLUMNS, MOST_ROWS, grid, measured
from archaeologist.figures.strata import DETAILED_UP_TO, HATCHED_UP_TO, strata
from contracts.artifacts import DriftTimeline, HealthAlert, HealthTimeline, LayerTimeline
from tests.fixtures.summaries import BLOCKS, STEPS, WHOSE, Submodules, drift_timeline, health_timeline


def trace(figure: Any, kind: str, place: int = 0) -> Any:
    return [one for one in figure.data if one.type == kind][place]


def test_rows_run_from_embedding_to_head_and_columns_by_step() -> None:
    found = grid("relative_l2", drift_timeline(), health_timeline())
    assert found.rows == BLOCKS
    assert [column.first for column in found.columns] == list(STEPS)
    assert np.isnan(found.values[:, 0]).all()
    assert found.values[2, 2] == pytest.approx(3e-3)
    assert found.references == (None, 100, 200)


def test_each_metric_is_drawn_from_its_own_field() -> None:
    timeline, health = drift_timeline(), health_timeline()
    expected = {"cka": 0.99, "activation_std": 1.5, "rankme": 11.0, "changed_fraction": 0.9, "one_minus_cosine": 0.001}
    for name, value in expected.items():
        assert grid(name, timeline, health).values[1, 2] == pytest.approx(value)
    assert grid("kl", timeline, health).values[0].tolist()[1:] == [0.1, 0.2]
    assert set(measured(timeline, health)) == set(METRICS)


def test_a_metric_that_nobody_measured_is_not_offered() -> None:
    timeline = replace(drift_timeline(), kl=(None, None))
    bare = HealthTimeline(**WHOSE, checkpoints=STEPS)
    assert set(measured(timeline, bare)) == {"relative_l2", "l2", "one_minus_cosine", "changed_fraction", "cka"}


def test_colours_are_of_the_logarithm_and_the_hover_of_the_value() -> None:
    heat = trace(strata("relative_l2", drift_timeline(), health_timeline()), "heatmap")
    assert heat.z[2][2] == pytest.approx(math.log10(3e-3))
    assert heat.customdata[2][2] == pytest.approx(3e-3)
    assert np.isnan(heat.z[0][0])


def test_depth_runs_upwards() -> None:
    figure = strata("relative_l2", drift_timeline(), health_timeline())
    assert figure.layout.yaxis.categoryarray[0].endswith("embed_tokens")
    assert figure.layout.yaxis.autorange != "reversed"
    assert list(figure.layout.meta["blocks"]) == list(BLOCKS)


def test_cells_below_the_resolution_are_greyed_and_hatched() -> None:
    figure = strata("relative_l2", drift_timeline(), health_timeline())
    grey = trace(figure, "heatmap", 1)
    assert np.nansum(grey.z) == 2
    assert len(trace(figure, "scatter").x) == 2
    assert "below the resolution: rounding" in trace(figure, "heatmap").text[0][1]
    assert "against step 100" in trace(figure, "heatmap").text[1][1]


def test_what_did_not_change_is_exact_and_not_greyed() -> None:
    timeline = drift_timeline()
    still = replace(timeline.layers[BLOCKS[0]], relative_l2=(0.0, 0.0))
    timeline = replace(timeline, layers={**timeline.layers, BLOCKS[0]: still})
    assert not grid("relative_l2", timeline, health_timeline()).below.any()
    assert trace(strata("relative_l2", timeline, health_timeline()), "heatmap").z[0][1] == pytest.approx(
        math.log10(2e-4)
    )


def test_a_row_a_submodule_has_its_numbers_at_its_steps() -> None:
    found = grid("relative_l2", drift_timeline(), health_timeline(), submodules=Submodules())
    assert found.rows == tuple(f"{block}.mlp.{name}.weight" for block in BLOCKS for name in ("up", "down"))
    assert found.blocks == tuple(block for block in BLOCKS for _ in range(2))
    assert np.isnan(found.values[:, 0]).all()
    assert found.values[:, 2].tolist() == pytest.approx([1e-3, 1e-2, 2e-3, 2e-2, 3e-3, 3e-2, 4e-3, 4e-2])
    assert found.below[:, 1].tolist() == [True, False] * 4


def test_submodules_stand_where_their_block_does_whatever_order_they_come_in() -> None:
    mixed = Submodules(owners=(BLOCKS[3], BLOCKS[0], "gone", BLOCKS[2], BLOCKS[1]))
    found = grid("l2", drift_timeline(), health_timeline(), submodules=mixed)
    assert list(dict.fromkeys(found.blocks)) == [*BLOCKS, "gone"]
    assert found.values[6, 1] == pytest.approx(1e-4), "the head's, which came first"


def test_steps_that_the_summaries_do_not_know_are_left_out() -> None:
    late = Submodules(steps=(200, 300, 400))
    found = grid("l2", drift_timeline(), health_timeline(), submodules=late)
    assert [column.first for column in found.columns] == list(STEPS)
    assert np.isfinite(found.values[:, 1:]).all()


def test_a_metric_of_blocks_keeps_its_rows() -> None:
    assert grid("cka", drift_timeline(), health_timeline(), submodules=Submodules()).rows == BLOCKS
    assert {name for name, metric in METRICS.items() if metric.has_submodules} == {
        "relative_l2",
        "l2",
        "one_minus_cosine",
        "changed_fraction",
    }


def test_rows_a_submodule_are_named_and_know_their_block() -> None:
    figure = strata("relative_l2", drift_timeline(), health_timeline(), submodules=Submodules())
    assert list(figure.layout.yaxis.categoryarray)[:2] == [
        "model.embed_tokens.mlp.up",
        "model.embed_tokens.mlp.down",
    ]
    assert list(figure.layout.meta["blocks"])[:3] == [BLOCKS[0], BLOCKS[0], BLOCKS[1]]
    assert figure.layout.meta["rows"][0] == f"{BLOCKS[0]}.mlp.up.weight"


def test_more_submodules_than_rows_share_them_and_the_largest_is_shown() -> None:
    owners = tuple(f"model.layers.{row}" for row in range(MOST_ROWS))
    found = Submodules(owners=owners)
    timeline = drift_timeline(owners)
    merged = grid("l2", timeline, health_timeline(owners), submodules=found)
    assert (len(merged.rows), merged.rows_each) == (MOST_ROWS, 2)
    np.testing.assert_allclose(merged.values[:, 1:], found.column("l2")[1::2])
    title = strata("l2", timeline, health_timeline(owners), submodules=found).layout.title.text
    assert title.endswith("; 2 submodules a row, the largest value shown")


def test_a_large_figure_is_rounded_to_what_is_seen() -> None:
    chance = np.random.default_rng(3)
    steps = tuple(range(1000))
    numbers = {name: 10.0 ** chance.uniform(-6, 0, len(steps)) for name in BLOCKS * 6}
    layers = {
        f"{name}{place}": LayerTimeline(name=name, relative_l2=tuple(numbers[name].tolist()))
        for place, name in enumerate(BLOCKS * 6)
    }
    timeline = DriftTimeline(**WHOSE, checkpoints=steps, layers=layers)
    heat = trace(strata("relative_l2", timeline, HealthTimeline(**WHOSE)), "heatmap")
    assert np.size(heat.z) > DETAILED_UP_TO
    values = np.array([numbers[name] for name in BLOCKS * 6])
    assert [f"{value:.4g}" for value in np.ravel(heat.customdata)] == [f"{value:.4g}" for value in values.ravel()]
    assert np.abs(heat.z - np.log10(values)).max() <= 6 / 512
    assert np.unique(heat.z).size >= 256


def test_activations_are_not_rounded_with_the_weights() -> None:
    assert not grid("activation_std", drift_timeline(), health_timeline()).below.any()


def wide(columns: int, rows: int) -> DriftTimeline:
    values = np.random.default_rng(3).random((rows, columns))
    values[1, 2] = 9.0
    steps = tuple(range(1, columns + 1))
    layers = {
        f"model.layers.{row}": LayerTimeline(
            name=f"model.layers.{row}",
            relative_l2=tuple(values[row].tolist()),
            cka=tuple((-values[row]).tolist()),
            below_resolution=(row == 1,) * columns,
        )
        for row in range(rows)
    }
    return DriftTimeline(**WHOSE, checkpoints=steps, layers=layers, reference_steps=(0,) * columns)


def test_too_many_columns_are_joined_with_the_largest_value_kept() -> None:
    timeline = wide(2 * MOST_COLUMNS + 1, 2)
    found = grid("relative_l2", timeline, HealthTimeline(**WHOSE))
    assert found.values.shape == (2, 667)
    assert found.columns_each == 3
    assert found.values[1, 0] == 9.0
    assert found.below[1].all()
    assert found.columns[0].label == "1–3"  # noqa: RUF001 -- a range
    raw = np.array(timeline.layers["model.layers.0"].relative_l2)
    assert found.values[0].tolist() == [raw[place : place + 3].max() for place in range(0, len(raw), 3)]
    title = strata("relative_l2", timeline, HealthTimeline(**WHOSE)).layout.title.text
    assert "3 checkpoints a column, the largest value shown" in title


def test_of_a_similarity_the_smallest_value_is_kept() -> None:
    assert grid("cka", wide(2 * MOST_COLUMNS, 2), HealthTimeline(**WHOSE)).values[1, 1] == -9.0


def test_too_many_rows_are_joined_too() -> None:
    found = grid("relative_l2", wide(3, 2 * MOST_ROWS), HealthTimeline(**WHOSE))
    assert found.values.shape == (MOST_ROWS, 3)
    assert found.rows[1] == "model.layers.2"


def test_many_hatched_cells_are_only_greyed() -> None:
    timeline = wide(HATCHED_UP_TO + 1, 2)
    timeline = replace(timeline, layers=dict.fromkeys(timeline.layers, timeline.layers["model.layers.1"]))
    figure = strata("relative_l2", wide(500, 2), HealthTimeline(**WHOSE))
    assert len([one for one in figure.data if one.type == "scatter"]) == 1
    figure = strata("relative_l2", replace(timeline, checkpoints=timeline.checkpoints), HealthTimeline(**WHOSE))
    assert len(trace(figure, "scatter").x) <= HATCHED_UP_TO


def test_the_predictions_have_a_row_of_their_own() -> None:
    figure = strata("relative_l2", drift_timeline(), health_timeline())
    row = [one for one in figure.data if one.yaxis == "y2"]
    assert [list(one.y) for one in row] == [["KL"]]
    assert not any(one.yaxis == "y2" for one in strata("kl", drift_timeline(), health_timeline()).data)


def test_alerts_stand_on_the_time_axis_with_a_shape_each() -> None:
    alerts = tuple(
        HealthAlert(severity=severity, family="entropy", metric="entropy", block="<b>x</b>", checkpoint_step=200)
        for severity in ("warning", "critical")
    )
    figure = strata("relative_l2", drift_timeline(), health_timeline(alerts=alerts))
    marks = [one for one in figure.data if one.yaxis == "y3"]
    assert [list(one.x) for one in marks] == [["200"], ["200"]]
    assert len({one.marker.symbol for one in marks}) == 2
    assert "&lt;b&gt;x&lt;/b&gt;" in marks[0].text[0]


def test_nothing_measured_gives_an_empty_figure() -> None:
    figure = strata("relative_l2", DriftTimeline(**WHOSE), HealthTimeline(**WHOSE))
    assert not figure.layout.meta["blocks"]


@pytest.mark.parametrize("values", [(0.0, 0.0), (1e-300, 1e300), (5.0, 5.0), (None, None), (math.inf, math.nan)])
@pytest.mark.parametrize("metric", list(METRICS))
def test_every_metric_survives_any_number(metric: str, values: tuple[float | None, ...]) -> None:
    timeline = drift_timeline()
    fields = ("relative_l2", "l2", "one_minus_cosine", "changed_fraction", "cka")
    odd = {name: replace(layer, **dict.fromkeys(fields, values)) for name, layer in timeline.layers.items()}
    figure = strata(metric, replace(timeline, layers=odd, kl=values), health_timeline())
    axis = figure.layout.coloraxis
    assert math.isfinite(axis.cmin)
    assert axis.cmin < axis.cmax
    figure.to_json()
