"""Movers, layer detail, skills, health, themes: what is drawn, and that names are text."""

import itertools
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from archaeologist.figures.grid import METRICS
from archaeologist.figures.health import series, timelines
from archaeologist.figures.labels import plain, short
from archaeologist.figures.layer import Parts, detail, parts_of
from archaeologist.figures.movers import movers, ranking
from archaeologist.figures.skills import impact, scores
from archaeologist.figures.strata import strata
from archaeologist.figures.themes import DARK, LIGHT, THEMES, contrast, themed
from contracts.artifacts import BlockImpact, HealthAlert, SkillFinding
from tests.fixtures.summaries import BLOCKS, STEPS, Submodules, drift_timeline, health_timeline, stability_report

if TYPE_CHECKING:
    import plotly.graph_objects as go

HOSTILE = ("model.<img src=x onerror=alert(1)>", "model.<b>bold</b>", "model.a&amp;b<br>c", "model.%{x}\x1b[31m\n$x$")


def test_movers_rank_by_relative_drift_and_tell_the_other() -> None:
    report = stability_report()
    assert [total.layer for total, _ in ranking(report)] == list(reversed(BLOCKS))
    figure = movers(report)
    assert list(figure.data[0].customdata) == [7.0, 8.0, 9.0, 10.0]


def test_movers_leave_out_the_middle_and_say_so() -> None:
    figure = movers(stability_report(tuple(f"model.layers.{row}" for row in range(9))), most=2)
    assert [list(trace.y) for trace in figure.data] == [["layers.8", "layers.7"], ["layers.1", "layers.0"]]
    assert "5 blocks between not shown" in figure.layout.title.text


def test_a_block_has_drift_by_part_norm_and_the_band_of_its_activations() -> None:
    parts = Parts(steps=STEPS[1:], values={"mlp.up_proj.weight": (0.1, 0.2), "mlp.down_proj.weight": (0.3, None)})
    figure = detail("model.layers.0", drift_timeline(), health_timeline(), parts)
    names = [trace.name for trace in figure.data if trace.name]
    assert names == ["whole block", "mlp.down_proj", "mlp.up_proj", "weight norm", "mean activation"]
    assert [trace.fill for trace in figure.data].count("tonexty") == 1
    assert figure.layout.yaxis.type == "log"
    assert len({trace.line.dash for trace in figure.data[:3]}) == 3


def test_the_parts_of_a_block_are_those_of_its_submodules() -> None:
    parts = parts_of("model.layers.1", Submodules(), "l2")
    assert parts.steps == STEPS[1:]
    assert parts.metric == "l2"
    assert parts.values == {
        "mlp.up.weight": pytest.approx((3e-4, 3e-3)),
        "mlp.down.weight": pytest.approx((3e-3, 3e-2)),
    }
    assert not parts_of("unknown", Submodules()).values


def test_a_block_s_drift_is_drawn_by_the_parts_metric() -> None:
    figure = detail(
        "lm_head", drift_timeline(), health_timeline(), parts_of("lm_head", Submodules(), "changed_fraction")
    )
    assert list(figure.data[0].y) == [0.9, 0.9]
    assert figure.layout.yaxis.title.text == "Changed fraction"
    assert figure.layout.yaxis.type != "log", "a share is not"
    assert [trace.name for trace in figure.data[1:3]] == ["mlp.down", "mlp.up"], "the one that moved farthest first"


def test_points_below_the_resolution_are_hollow_and_explained() -> None:
    timeline = drift_timeline()
    layer = replace(timeline.layers["lm_head"], below_resolution=(True, False))
    timeline = replace(timeline, layers={"lm_head": layer})
    parts = Parts(
        steps=STEPS[1:],
        values={"a.weight": (0.1, 0.2), "b.weight": (0.3, 0.4)},
        below={"a.weight": (False, True), "b.weight": (False, False)},
    )
    whole, b, a, explained = detail("lm_head", timeline, health_timeline(), parts).data[:4]
    assert list(whole.marker.symbol) == ["circle-open", "circle"]
    assert [bool(said) for said in whole.customdata] == [True, False]
    assert list(a.marker.symbol) == ["circle", "circle-open"]
    assert b.marker.symbol is None
    assert explained.name == "below the resolution: rounding"
    shares = detail("lm_head", timeline, health_timeline(), Parts(metric="changed_fraction")).data
    assert "below the resolution: rounding" not in [trace.name for trace in shares], "a share is exact"


def test_a_long_line_has_no_marks() -> None:
    steps = tuple(range(1000))
    figure = detail("lm_head", drift_timeline(steps=steps), health_timeline(steps=steps))
    assert {trace.mode for trace in figure.data if trace.name} == {"lines"}


def test_what_was_not_measured_has_no_panel() -> None:
    health = health_timeline()
    bare = replace(
        health, layers={name: replace(layer, activation_percentile_99=()) for name, layer in health.layers.items()}
    )
    figure = detail("model.layers.0", drift_timeline(), bare)
    assert [trace.name for trace in figure.data] == ["whole block", "weight norm"]
    assert not detail("unknown", drift_timeline(), bare).data


def test_a_block_of_one_tensor_has_one_line() -> None:
    parts = Parts(steps=STEPS[1:], values={"weight": (0.1, 0.2)})
    assert [trace.name for trace in detail("lm_head", drift_timeline(), health_timeline(), parts).data][:2] == [
        "whole block",
        "weight norm",
    ]


def test_a_block_that_stood_still_has_a_linear_axis() -> None:
    timeline = drift_timeline()
    still = replace(timeline.layers["lm_head"], relative_l2=(0.0, 0.0))
    figure = detail("lm_head", replace(timeline, layers={"lm_head": still}), health_timeline())
    assert figure.layout.yaxis.type != "log"


def skill(**fields: Any) -> SkillFinding:
    layers = tuple(BlockImpact(layer=name, spearman=0.5, p_adjusted=None) for name in BLOCKS)
    values = {"checkpoints": STEPS, "scores": (0.1, 0.5, 0.9), "num_samples": (100, None, 100)}
    return SkillFinding(
        skill="BIN<b>", **{**values, "layers": layers, "intervals_used": 4, "support": "ranking", **fields}
    )


def test_scores_that_are_all_nothing_do_not_go_below_it() -> None:
    assert scores(skill(scores=(0.0, 0.0, 0.0))).layout.yaxis.rangemode == "nonnegative"
    assert scores(skill(scores=(-1.0, 0.0, 2.0))).layout.yaxis.rangemode == "normal"


def test_a_skill_s_sample_size_stands_in_the_title() -> None:
    assert impact(skill()).layout.title.text == "BIN&lt;b&gt;: 4 intervals, a ranking only"
    assert list(impact(skill()).data[0].x) == [0.5] * 4


def test_scores_have_two_standard_errors_where_the_sample_is_known() -> None:
    assert scores(skill()).data[0].error_y.array == pytest.approx((2 * 0.03, 0, 2 * 0.03))
    assert scores(skill(num_samples=(None, None, None))).data[0].error_y.array is None
    assert scores(skill(scores=(1.0, 50.0, 90.0))).data[0].error_y.array is None


def test_health_has_a_panel_a_measured_metric_and_the_median_rank() -> None:
    assert set(series(health_timeline())) == {"loss", "entropy", "rankme", "weight_l2"}
    assert series(health_timeline())["rankme"] == (11.5,) * 3
    bare = replace(health_timeline(), entropy=(None,) * 3, loss=(None,) * 3, layers={})
    assert set(series(bare)) == {"weight_l2"}


def test_alerts_have_a_panel_of_their_own() -> None:
    alerts = (HealthAlert(severity="critical", family="weights", metric="l2", block="<i>x", checkpoint_step=200),)
    figure = timelines(health_timeline(alerts=alerts))
    mark = figure.data[-1]
    assert (list(mark.x), list(mark.y), mark.text) == ([200], ["critical"], ("l2 of &lt;i&gt;x, normal confidence",))
    assert len(timelines(health_timeline()).data) == len(figure.data) - 1


def strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return list(itertools.chain.from_iterable(strings(one) for key, one in value.items() if key != "meta"))
    if isinstance(value, list | tuple):
        return list(itertools.chain.from_iterable(map(strings, value)))
    return []


def test_markup_in_a_block_s_name_is_text_in_every_figure() -> None:
    timeline, health = drift_timeline(HOSTILE), health_timeline(HOSTILE)
    alert = HealthAlert(severity="warning", family="x", metric="<b>", block=HOSTILE[0], checkpoint_step=200)
    health = replace(health, alerts=(alert,))
    layers = tuple(BlockImpact(layer=name, spearman=0.1) for name in HOSTILE)
    parts = Parts(steps=STEPS[1:], values={HOSTILE[1]: (0.1, 0.2)})
    figures: list[go.Figure] = [
        *(strata(metric, timeline, health) for metric in METRICS),
        movers(stability_report(HOSTILE)),
        *(detail(name, timeline, health, parts) for name in HOSTILE),
        impact(skill(layers=layers)),
        scores(skill()),
        timelines(health),
    ]
    for figure in figures:
        said = strings(figure.to_plotly_json())
        assert not [text for text in said if any(tag in text for tag in ("<img", "<b>bold", "<br>c", "\x1b", "b<br>"))]


def test_plain_text_survives_as_it_is() -> None:
    assert plain("model.layers.0") == "model.layers.0"
    assert plain("a<b>&\n") == "a&lt;b&gt;&amp; "


def test_short_names_lose_what_all_have_in_common_and_stay_different() -> None:
    assert short(["model.layers.0", "model.embed_tokens", "lm_head"]) == {
        "model.layers.0": "layers.0",
        "model.embed_tokens": "embed_tokens",
        "lm_head": "lm_head",
    }
    assert list(short(["model.layers.0", "model.layers.1"]).values()) == ["layers.0", "layers.1"]
    assert list(short(["model.x", "x"]).values()) == ["model.x", "x"]
    assert short([]) == {}


@pytest.mark.parametrize("theme", THEMES.values(), ids=THEMES)
def test_every_text_has_a_contrast_of_4_5(theme: Any) -> None:
    for ground in (theme.ground, theme.raised):
        for color in (theme.text, theme.muted, theme.interaction, theme.warning, theme.critical):
            assert contrast(color, ground) >= 4.5
    for color in theme.lines:
        assert contrast(color, theme.ground) >= 3


def test_contrast_is_that_of_wcag() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.478, abs=1e-3)


def test_a_theme_colours_a_figure_without_touching_it() -> None:
    figure = movers(stability_report())
    assert themed(figure, DARK).layout.template.layout.font.color == DARK.text
    assert themed(figure, LIGHT).layout.template.layout.font.color == LIGHT.text
    assert figure.layout.template.layout.font.color not in {DARK.text, LIGHT.text}


def test_long_names_keep_their_beginning_and_their_end() -> None:
    names = [f"model.vision_tower.encoder.a_very_long_name_of_a_list.{number}.attention" for number in (1, 2)]
    found = short([*names, "model.x"])
    assert [len(label) for label in found.values()] == [28, 28, 1]
    assert found[names[0]].endswith("1.attention")
    alike = [f"model.{'a' * 40}{middle}{'b' * 40}" for middle in "xy"]
    assert list(short(alike).values()) == [name.removeprefix("model.") for name in alike]
