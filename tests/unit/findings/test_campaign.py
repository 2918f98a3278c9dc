"""Findings over a campaign: what each sample supports, and what it does not."""

import math
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from archaeologist.findings.campaign import MOST, findings
from contracts.artifacts import (
    BlockImpact,
    DriftTimeline,
    FunctionalDrift,
    HealthAlert,
    HealthTimeline,
    LayerDriftStats,
    LayerHealthTimeline,
    LayerStability,
    LayerStats,
    LayerTimeline,
    LayerWeightStats,
    LeftOut,
    OutputDrift,
    ProbeInfo,
    SkillFinding,
    SkillImpact,
    StabilityReport,
    TensorDrift,
    TensorWeights,
)
from contracts.findings import Finding
from tests.fixtures.artifacts import layer_stats

WHOSE: dict[str, Any] = {"hero_id": "dio", "campaign_id": "c1"}
NAMES = tuple(f"model.layers.{number}" for number in range(4))


def layer(name: str, *relative: float | None, below: bool = False, changed: float = 0.9) -> LayerTimeline:
    count = len(relative)
    return LayerTimeline(
        name=name,
        layer_type="transformer_block",
        relative_l2=relative,
        changed_fraction=(changed,) * count,
        below_resolution=(below,) * count,
    )


def drift(*layers: LayerTimeline, steps: tuple[int, ...] = (200,), **fields: Any) -> DriftTimeline:
    references = tuple(step - 100 for step in steps)
    named = {one.name: one for one in layers}
    return DriftTimeline(**WHOSE, checkpoints=steps, reference_steps=references, layers=named, **fields)


def health(count: int, *, measured: int | None = None, **fields: Any) -> HealthTimeline:
    known = count if measured is None else measured
    values = {
        "probes": tuple("p" if place < known else None for place in range(count)),
        "entropy": tuple(2.0 if place < known else None for place in range(count)),
        "weight_nonfinite": (0,) * count,
        "checkpoints": tuple(100 * (place + 1) for place in range(count)),
    }
    return HealthTimeline(**WHOSE, **(values | fields))


def texts(found: tuple[Finding, ...]) -> str:
    return " ".join(one.text for one in found)


def one(found: tuple[Finding, ...], topic: str) -> Finding:
    (match,) = [finding for finding in found if finding.topic == topic]
    return match


def test_a_block_s_movement_is_told_in_medians_since_the_reference() -> None:
    moved = (0.01, 0.01, 0.01, 0.042)
    found = findings(drift(*(layer(name, value) for name, value in zip(NAMES, moved, strict=True))), health(2))
    said = one(found, "movement")
    assert said.text == "Block 3 moved 4.2 times the median since step 100."
    assert said.evidence.block == "model.layers.3"
    assert (said.evidence.metric, said.evidence.step) == ("relative_l2", 200)
    assert "median 0.01 of 4 blocks" in said.basis


def test_a_base_without_a_step_is_called_the_reference() -> None:
    found = findings(drift(*(layer(name, 0.01) for name in NAMES), steps=(100,)), health(1))
    assert one(found, "movement").text.startswith("No block stands out since its reference")


def test_the_leading_part_is_named_where_the_artifact_tells_it() -> None:
    tensors = {
        "self_attn.o_proj.weight": TensorDrift(relative_l2=0.09, below_resolution=False),
        "self_attn.q_proj.weight": TensorDrift(relative_l2=0.03, below_resolution=False),
        "mlp.up_proj.weight": TensorDrift(relative_l2=0.5, below_resolution=True),
    }
    blocks = {
        name: LayerDriftStats(name=name, relative_l2=value, changed_fraction=0.9, below_resolution=False)
        for name, value in zip(NAMES, (0.01, 0.01, 0.01, 0.042), strict=True)
    }
    blocks[NAMES[3]] = replace(blocks[NAMES[3]], tensors=tensors)
    newest = replace(
        layer_stats("k", step=200),
        drift_stats=blocks,
        weight_stats={name: LayerWeightStats(name=name, layer_type="transformer_block") for name in NAMES},
        reference_checkpoint_step=100,
    )
    found = findings(drift(*(layer(name, 0.5) for name in NAMES)), health(2), newest=newest)
    assert one(found, "movement").text == "Block 3 moved 4.2 times the median since step 100; o_proj leads."


def test_blocks_that_moved_alike_give_none_that_stands_out() -> None:
    found = findings(drift(*(layer(name, 0.01) for name in NAMES)), health(2))
    assert one(found, "movement").text.startswith("No block stands out since step 100")


@pytest.mark.parametrize(
    ("moved", "said"),
    [
        (
            (0.1, 0.1, 0.1, 0.1),
            "No block stands out since step 100: Block 0 and 3 more moved most, 1.00 times the median.",
        ),
        ((0.3, 0.3, 0.1, 0.1, 0.1), "Block 0 and 1 more moved 3.0 times the median since step 100."),
        ((0.1, 0.1, 0.149), "No block stands out since step 100: Block 2 moved most, 1.49 times the median."),
        ((0.1, 0.1, 0.1496), "No block stands out since step 100: Block 2 moved most, 1.49 times the median."),
        ((0.1, 0.1, 0.151), "Block 2 moved 1.5 times the median since step 100."),
    ],
)
def test_ties_are_told_and_what_does_not_stand_out_does_not_read_so(moved: tuple[float, ...], said: str) -> None:
    layers = (layer(f"model.layers.{number}", value) for number, value in enumerate(moved))
    assert one(findings(drift(*layers), health(2)), "movement").text == said


def test_of_blocks_that_always_tie_none_leads() -> None:
    steps = (200, 300, 400, 500)
    moved = [layer(name, *(0.05,) * 4) for name in NAMES]
    assert all(found.topic != "leader" for found in findings(drift(*moved, steps=steps), health(5)))


def test_drift_below_the_resolution_is_rounding_and_moves_no_block() -> None:
    found = findings(drift(*(layer(name, 0.01, below=True, changed=0.2) for name in NAMES)), health(2))
    assert one(found, "resolution").text == (
        "4 of 4 blocks are below the resolution of the stored precision: drift there is rounding."
    )
    assert one(found, "resolution").severity == "warning"
    assert "moved" not in texts(found)


def test_the_stored_precision_is_named_where_the_artifact_tells_it() -> None:
    blocks = {"a": LayerDriftStats(name="a", relative_l2=0.1, changed_fraction=0.2, below_resolution=True)}
    stored = {"w": TensorWeights(dtype="BF16", shape=(2,))}
    weights = {"a": LayerWeightStats(name="a", layer_type="other", tensors=stored)}
    newest = replace(layer_stats("k", step=200), drift_stats=blocks, weight_stats=weights)
    found = findings(drift(layer("a", 0.1, below=True)), health(2), newest=newest)
    assert "below the resolution of bfloat16" in one(found, "resolution").text


def test_frozen_blocks_are_exact_and_not_below_the_resolution() -> None:
    found = findings(drift(*(layer(name, 0.0, below=True, changed=0.0) for name in NAMES)), health(2))
    assert one(found, "movement").text == "No value changed since step 100."
    assert all(finding.topic != "resolution" for finding in found)


def test_two_blocks_have_no_median_to_stand_out_from() -> None:
    found = findings(drift(layer(NAMES[0], 0.01), layer(NAMES[1], 0.9)), health(2))
    assert "median" not in texts(found)


def test_a_block_that_leads_again_and_again_is_named() -> None:
    steps = (200, 300, 400, 500)
    moved = [layer(name, *(0.01,) * 4) for name in NAMES[:3]]
    found = findings(drift(*moved, layer(NAMES[3], 0.05, 0.05, 0.001, 0.05), steps=steps), health(5))
    assert one(found, "leader").text == "Block 3 moved most in 3 of 4 comparisons."


def test_a_long_campaign_s_leader_is_that_of_its_newest_comparisons() -> None:
    count = 60
    steps = tuple(range(200, 200 + 100 * count, 100))
    moved = [layer(name, *(0.01,) * count) for name in NAMES[1:3]]
    early = layer(NAMES[0], *(0.5,) * 20, *(0.001,) * 40)
    late = layer(NAMES[3], *(0.001,) * 20, *(0.5,) * 40)
    found = findings(drift(early, *moved, late, steps=steps), health(2))
    assert one(found, "leader").text == "Block 3 moved most in 40 of the newest 50 comparisons."


def test_no_sign_of_collapse_says_on_how_many_checkpoints() -> None:
    found = one(findings(drift(), health(12)), "collapse")
    assert (found.text, found.severity, found.confidence) == (
        "No sign of collapse on 12 checkpoints.",
        "success",
        "normal",
    )


def test_a_young_campaign_has_low_confidence() -> None:
    found = one(findings(drift(), health(5)), "collapse")
    assert found.text == "No sign of collapse on 5 checkpoints."
    assert (found.severity, found.confidence) == ("info", "low")
    assert found.basis.startswith("5 comparable checkpoints: low confidence")


def test_one_checkpoint_is_compared_with_nothing() -> None:
    assert "Not known yet" in one(findings(drift(), health(1)), "collapse").text


def test_what_was_not_measured_is_never_called_healthy() -> None:
    found = findings(drift(), health(8, measured=0))
    assert one(found, "collapse").text == "Not measured: whether the model collapses. No checkpoint was run on probes."
    assert "No sign" not in texts(found)


def test_checkpoints_without_activations_do_not_count() -> None:
    found = one(findings(drift(), health(12, measured=8)), "collapse")
    assert found.text == (
        "No sign of collapse on the 8 of 12 checkpoints measured; the newest, step 1200, was not measured."
    )
    assert found.severity == "info"


def test_other_probes_are_another_history() -> None:
    probes = ("a",) * 6 + ("b",) * 3
    found = one(findings(drift(), health(9, probes=probes)), "collapse")
    assert found.confidence == "low"
    assert found.basis.startswith("3 comparable")


def alert(step: int, **fields: Any) -> HealthAlert:
    values: dict[str, Any] = {
        "severity": "warning",
        "family": "entropy",
        "metric": "entropy",
        "value": 0.2,
        "baseline": 2.0,
    }
    return HealthAlert(checkpoint_step=step, **(values | {"checkpoints": 6} | fields))


def test_an_alert_comes_first_and_silences_the_all_clear() -> None:
    found = findings(drift(), health(8, alerts=(alert(800, severity="critical"),)))
    assert found[0].severity == "critical"
    assert found[0].text == "Entropy of the next token (nats) at step 800 is 0.2, compared with 2: a sign of collapse."
    assert found[0].basis == "judged against 6 earlier checkpoints"
    assert "No sign" not in texts(found)


def test_an_old_critical_alert_says_that_the_newest_checkpoint_has_none() -> None:
    found = findings(drift(), health(8, alerts=(alert(300, severity="critical", confidence="low"),)))
    assert found[0].text.endswith("; step 800 raised no critical one.")
    assert found[0].basis.endswith("low confidence")


def test_a_warning_that_is_not_repeated_is_not_over() -> None:
    found = findings(drift(), health(8, alerts=(alert(300),)))
    assert found[0].text.endswith("a sign of collapse.")
    assert found[0].basis == "judged against 6 earlier checkpoints; told once while it stays"


def test_an_old_alert_is_not_over_where_the_newest_was_not_measured() -> None:
    found = findings(drift(), health(8, measured=7, alerts=(alert(300),)))
    assert found[0].text.endswith("; step 800 was not measured.")


def test_alerts_of_one_metric_are_one_finding() -> None:
    found = findings(drift(), health(8, alerts=(alert(700, severity="critical"), alert(800), alert(300))))
    assert [(one.severity, one.text) for one in found if one.topic == "alert"] == [
        (
            "critical",
            (
                "Entropy of the next token (nats) at step 700 is 0.2, compared with 2: a sign of collapse;"
                " step 800 raised no critical one; warnings at 1 later checkpoint; alerts at 1 earlier checkpoint too."
            ),
        )
    ]


def test_a_critical_alert_is_told_with_its_own_value_step_and_confidence() -> None:
    told = (
        alert(300, severity="critical", value=0.1),
        alert(200, value=1.5),
        alert(800, value=1.0, confidence="low"),
    )
    said = one(findings(drift(), health(8, alerts=told)), "alert")
    assert said.text.startswith("Entropy of the next token (nats) at step 300 is 0.1, ")
    assert (said.severity, said.confidence, said.evidence.step) == ("critical", "normal", 300)
    assert said.basis == "judged against 6 earlier checkpoints"


def test_a_checkpoint_that_was_run_otherwise_is_no_all_clear() -> None:
    found = findings(drift(), health(8, probes=("a",) * 7 + ("b",), alerts=(alert(300, severity="critical"),)))
    assert found[0].text.endswith("; step 800 was run otherwise and is not compared with it.")


def test_that_one_metric_s_critical_alert_is_gone_does_not_hide_another_s() -> None:
    told = (alert(300, severity="critical"), alert(800, severity="critical", family="representation", metric="rankme"))
    found = findings(drift(), health(8, alerts=told))
    assert found[1].text.endswith("; step 800 raised no critical one of this metric.")


@pytest.mark.parametrize("has_alert", [True, False])
def test_no_sign_of_collapse_is_no_success_beside_something_critical(has_alert: bool) -> None:  # noqa: FBT001
    broken = alert(1200, severity="critical", family="weights", metric="nonfinite", value=3.0)
    fields = {"alerts": (broken,)} if has_alert else {"weight_nonfinite": (0,) * 11 + (3,)}
    found = one(findings(drift(), health(12, **fields)), "collapse")
    assert (found.text, found.severity) == ("No sign of collapse on 12 checkpoints.", "info")


def test_many_alerts_are_counted() -> None:
    told = tuple(alert(100 * number, metric=f"m{number}", family="x") for number in range(1, 7))
    assert "4 more alerts at steps 100 to 400." in texts(findings(drift(), health(8, alerts=told)))


def test_a_weight_norm_s_alert_is_no_sign_of_collapse() -> None:
    found = findings(drift(), health(8, alerts=(alert(800, family="weights", metric="l2", block="x"),)))
    assert "Weight norm of x at step 800 is 0.2, compared with 2." in texts(found)
    assert "No sign of collapse on 8 checkpoints." in texts(found)


def test_broken_weights_are_told_without_an_alert() -> None:
    broken = LayerHealthTimeline(name="a", weight_nonfinite=(0, 3))
    found = findings(drift(), health(2, weight_nonfinite=(0, 3), layers={"a": broken}))
    assert found[0].text == "3 weights at step 200 are NaN or infinite, first in a."
    assert found[0].severity == "critical"


def test_broken_weights_are_told_once() -> None:
    told = alert(200, severity="critical", family="weights", metric="nonfinite", block="a", value=3.0)
    found = findings(drift(), health(2, weight_nonfinite=(0, 3), alerts=(told,)))
    assert [finding.text for finding in found if finding.topic == "alert"] == [
        "3 NaN or infinite weights, first in a at step 200."
    ]


def stability(**fields: Any) -> StabilityReport:
    layers = {
        name: LayerStability(
            name=name, stability="undetermined", reason="", intervals=5, layer_type="transformer_block"
        )
        for name in NAMES
    }
    return StabilityReport(**WHOSE, checkpoints=(1, 2, 3, 4, 5, 6), layers=layers, **fields)


def test_thrashing_and_frozen_blocks_are_named() -> None:
    found = findings(drift(), health(6), stability=stability(thrashing=NAMES[:1], frozen=NAMES[1:3]))
    assert one(found, "thrashing").text == "Block 0 goes back and forth (thrashing) over the last 6 checkpoints."
    assert one(found, "frozen").text == (
        "2 of 4 blocks did not change by a bit over the last 6 checkpoints: Block 1, Block 2."
    )


def test_a_report_that_names_blocks_it_does_not_know_supports_nothing() -> None:
    found = findings(drift(), health(6), stability=stability(thrashing=("unknown",)))
    assert all(finding.topic != "thrashing" for finding in found)


def skill(used: int, kind: Any, *, p: float | None = 0.01) -> SkillImpact:
    layers = (BlockImpact(layer=NAMES[2], layer_type="transformer_block", spearman=0.9, p_adjusted=p),)
    told = SkillFinding(skill="BIN", intervals_used=used, support=kind, layers=layers)
    return SkillImpact(**WHOSE, skills={"BIN": told})


@pytest.mark.parametrize(
    ("used", "kind", "p", "said"),
    [
        (9, "tested", 0.01, "Block 2 goes along with BIN most (Spearman 0.90, p 0.01)."),
        (9, "tested", 0.3, "No block goes along with BIN more than chance would; the smallest p is 0.3."),
        (
            6,
            "exploratory",
            0.01,
            "Block 2 goes along with BIN most (Spearman 0.90, p 0.01) (exploratory: 6 intervals).",
        ),
        (
            4,
            "ranking",
            None,
            "Block 2 ranks first beside BIN (Spearman 0.90), which 4 intervals cannot tell from chance.",
        ),
        (2, "none", None, "Not known yet: which blocks move with BIN. 2 intervals support nothing."),
        (1, "tested", 0.01, "Not known yet: which blocks move with BIN. 1 interval supports nothing."),
        (
            9,
            "tested",
            None,
            "Block 2 ranks first beside BIN (Spearman 0.90), which 9 intervals cannot tell from chance.",
        ),
    ],
)
def test_a_skill_s_finding_says_no_more_than_its_intervals(used: int, kind: str, p: float | None, said: str) -> None:
    found = one(findings(drift(), health(6), skills=skill(used, kind, p=p)), "skill")
    assert found.text == said
    assert (found.confidence == "normal") == (kind == "tested" and p is not None and used >= 8)


def impacts(**skills: tuple[tuple[float | None, ...], ...]) -> SkillImpact:
    """Skills of 11 intervals: of each block rho and p, and of its share of the drift rho and p."""
    told = {
        name: SkillFinding(
            skill=name,
            intervals_used=11,
            support="tested",
            layers=tuple(
                BlockImpact(
                    layer=block,
                    layer_type="transformer_block",
                    spearman=of[0],
                    p_adjusted=of[1],
                    spearman_share=of[2],
                    p_adjusted_share=of[3],
                )
                for block, of in zip(NAMES, blocks, strict=False)
            ),
        )
        for name, blocks in skills.items()
    }
    return SkillImpact(**WHOSE, skills=told)


@pytest.mark.parametrize(
    ("blocks", "said", "beside"),
    [
        (
            ((1.0, 1e-4, None, None),) * 4,
            "Block 0 and 3 more go along with BIN most (Spearman 1.00, p 0.0001).",
            "",
        ),
        (
            ((-1.0, 1e-4, 0.1, 0.66), (-0.9, 0.01, 0.05, 0.9)),
            "Block 0 goes against BIN most (Spearman -1.00, p 0.0001).",
            "; by share of the drift no block does (smallest p 0.66)",
        ),
        (
            ((-0.9, 1e-3, -0.2, 0.3), (0.9, 1e-3, 0.8, 0.02)),
            "Block 0 and 1 more go along with or against BIN most (Spearman ±0.90, p 0.001).",
            "; by share of the drift Block 1 does (Spearman 0.80, p 0.02)",
        ),
        (
            ((0.25, 0.598, -0.97, 1e-4), (-0.22, 0.676, 0.96, 1e-4), (-0.18, 0.76, -0.9, 1e-3)),
            (
                "By share of the drift Block 1 goes along with BIN (Spearman 0.96, p 0.0001);"
                " by drift no block does more than chance would (smallest p 0.598)."
            ),
            "",
        ),
        (
            ((0.25, 0.598, -0.3, 0.4), (-0.22, 0.676, 0.2, 0.7)),
            "No block goes along with BIN more than chance would; the smallest p is 0.598, by share of the drift 0.4.",
            "",
        ),
    ],
)
def test_ties_directions_and_shares_of_the_drift_are_told(
    blocks: tuple[tuple[float | None, ...], ...], said: str, beside: str
) -> None:
    found = one(findings(drift(), health(6), skills=impacts(BIN=blocks)), "skill")
    assert found.text == said
    assert found.basis == f"11 intervals{beside}; correlation is not cause"


def test_blocks_that_rank_alike_all_rank_first() -> None:
    layers = tuple(BlockImpact(layer=name, layer_type="transformer_block", spearman=1.0) for name in NAMES)
    told = SkillFinding(skill="BIN", intervals_used=3, support="ranking", layers=layers)
    found = one(findings(drift(), health(6), skills=SkillImpact(**WHOSE, skills={"BIN": told})), "skill")
    assert found.text == (
        "Block 0 and 3 more rank first beside BIN (Spearman 1.00), which 3 intervals cannot tell from chance."
    )


def test_enough_intervals_of_which_nothing_can_be_ranked_are_not_called_too_few() -> None:
    told = SkillFinding(skill="BIN", intervals_used=9, support="none")
    found = one(findings(drift(), health(6), skills=SkillImpact(**WHOSE, skills={"BIN": told})), "skill")
    assert found.basis == "nothing in them can be ranked"


def test_of_skills_with_the_same_support_the_one_least_like_chance_is_told() -> None:
    skills = impacts(arith=((0.4, 0.3, 0.1, 0.9),), zcode=((1.0, 1e-4, 0.2, 0.8),))
    found = one(findings(drift(), health(6), skills=skills), "skill")
    assert found.text.startswith("Block 0 goes along with zcode most")
    assert found.basis.endswith("1 more skill")


def test_the_predictions_divergence_is_told_where_measured() -> None:
    found = findings(drift(kl=(0.0123,), top1_agreement=(0.99996,)), health(2))
    assert one(found, "function").text == (
        "The predictions are 0.0123 nats (KL) from step 100's; the first choice is the same at over 99.9% of positions."
    )
    output = FunctionalDrift(output=OutputDrift(positions=1024, kl=0.5))
    probes = ProbeInfo(dataset_id="BIN", num_sequences=1, total_tokens=8, source_file="x")
    blocks = {"a": LayerDriftStats(name="a")}
    newest = replace(layer_stats("k", step=200), functional_drift=output, probe_info=probes, drift_stats=blocks)
    found = findings(drift(kl=(0.5,)), health(2), newest=newest)
    assert one(found, "function").basis == "1,024 positions of the probes BIN"


def test_files_left_out_are_named_once() -> None:
    left_out = (LeftOut(file="layer_stats/a.json", code="artifact_invalid", reason="broken"),)
    found = findings(drift(left_out=left_out), health(2, left_out=left_out))
    assert one(found, "left_out").text == "1 file cannot be used and was left out: layer_stats/a.json."


def test_an_empty_campaign_has_one_finding() -> None:
    (found,) = findings(drift(steps=()), health(0))
    assert found.text == "No checkpoint has been analysed yet."


def test_a_campaign_without_references_says_that_drift_was_not_measured() -> None:
    assert "Not measured: drift." in texts(findings(drift(steps=()), health(3)))


# Whatever the artifacts hold.

NUMBERS = st.none() | st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([0.0, 1e-320, 0.01, 1e308])
COUNTS = st.none() | st.integers(min_value=0, max_value=2**53)
FLAGS = st.none() | st.booleans()
STEPS = st.lists(st.integers(0, 10**9), max_size=5, unique=True).map(lambda found: tuple(sorted(found)))
BLOCKS = st.sampled_from([*NAMES, "model.embed_tokens", "<b>x</b>", ""])
KINDS = st.sampled_from(["transformer_block", "embedding", "other"])


def array(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(values, max_size=5).map(tuple)


def structs(kind: type[Any], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(kind, **fields)


TIMELINES = structs(
    DriftTimeline,
    hero_id=st.just("h"),
    campaign_id=st.just("c"),
    checkpoints=STEPS,
    reference_steps=array(COUNTS),
    kl=array(NUMBERS),
    top1_agreement=array(NUMBERS),
    layers=st.dictionaries(
        BLOCKS,
        structs(
            LayerTimeline,
            name=BLOCKS,
            layer_type=KINDS,
            relative_l2=array(NUMBERS),
            changed_fraction=array(NUMBERS),
            below_resolution=array(FLAGS),
        ),
        max_size=4,
    ),
)
ALERTS = structs(
    HealthAlert,
    checkpoint_step=st.integers(0, 10**9),
    severity=st.sampled_from(["warning", "critical"]),
    family=st.sampled_from(["entropy", "weights", "representation", "other"]),
    metric=st.sampled_from(["entropy", "nonfinite", "l2", "x"]),
    block=st.none() | BLOCKS,
    value=NUMBERS,
    baseline=NUMBERS,
    checkpoints=st.integers(0, 9),
)
HEALTH = structs(
    HealthTimeline,
    hero_id=st.just("h"),
    campaign_id=st.just("c"),
    checkpoints=STEPS,
    probes=array(st.none() | st.sampled_from(["a", "b"])),
    entropy=array(NUMBERS),
    weight_nonfinite=array(COUNTS),
    alerts=array(ALERTS),
    layers=st.dictionaries(
        BLOCKS,
        structs(
            LayerHealthTimeline, name=BLOCKS, layer_type=KINDS, rankme=array(NUMBERS), weight_nonfinite=array(COUNTS)
        ),
        max_size=3,
    ),
)
STABILITY = structs(
    StabilityReport,
    hero_id=st.just("h"),
    campaign_id=st.just("c"),
    thrashing=array(BLOCKS),
    frozen=array(BLOCKS),
    layers=st.dictionaries(
        BLOCKS,
        structs(
            LayerStability, name=BLOCKS, stability=st.just("directed"), reason=st.just(""), intervals=st.integers(0, 9)
        ),
        max_size=3,
    ),
)
IMPACTS = structs(
    SkillImpact,
    hero_id=st.just("h"),
    campaign_id=st.just("c"),
    skills=st.dictionaries(
        st.sampled_from(["BIN", "SY"]),
        structs(
            SkillFinding,
            skill=st.just("BIN"),
            intervals_used=st.integers(0, 12),
            support=st.sampled_from(["none", "ranking", "exploratory", "tested"]),
            layers=array(
                structs(
                    BlockImpact,
                    layer=BLOCKS,
                    spearman=NUMBERS,
                    p_adjusted=NUMBERS,
                    spearman_share=NUMBERS,
                    p_adjusted_share=NUMBERS,
                )
            ),
        ),
        max_size=2,
    ),
)
DRIFTS = structs(
    LayerDriftStats,
    name=BLOCKS,
    relative_l2=NUMBERS,
    changed_fraction=NUMBERS,
    below_resolution=FLAGS,
    tensors=st.dictionaries(BLOCKS, structs(TensorDrift, relative_l2=NUMBERS, below_resolution=FLAGS), max_size=3),
)


@st.composite
def artifacts(draw: st.DrawFn) -> LayerStats | None:
    if draw(st.booleans()):
        return None
    output = draw(st.none() | structs(OutputDrift, kl=NUMBERS, top1_agreement=NUMBERS))
    return replace(
        layer_stats("k", step=draw(st.integers(0, 10**9))),
        drift_stats=draw(st.dictionaries(BLOCKS, DRIFTS, max_size=4)),
        functional_drift=FunctionalDrift(output=output),
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    timeline=TIMELINES,
    health_timeline=HEALTH,
    report=st.none() | STABILITY,
    impact=st.none() | IMPACTS,
    newest=artifacts(),
    is_aligned=st.booleans(),
)
def test_nothing_that_decodes_makes_findings_fail_or_say_what_is_not_supported(
    timeline: DriftTimeline,
    health_timeline: HealthTimeline,
    report: StabilityReport | None,
    impact: SkillImpact | None,
    newest: LayerStats | None,
    is_aligned: bool,  # noqa: FBT001 -- hypothesis draws it
) -> None:
    if newest is not None and is_aligned and timeline.checkpoints:
        newest = replace(newest, checkpoint_step=timeline.checkpoints[-1])
    found = findings(timeline, health_timeline, stability=report, skills=impact, newest=newest)
    assert 1 <= len(found) <= MOST
    said = texts(found)
    for nonsense in ("nan", "inf ", "None", "-0 ", "healthy"):
        assert nonsense not in said.replace("NaN or infinite", "")
    if "No sign of collapse" in said:
        assert any(entropy is not None and math.isfinite(entropy) for entropy in health_timeline.entropy) or any(
            value is not None and math.isfinite(value)
            for one_layer in health_timeline.layers.values()
            for value in one_layer.rankme
        )
    if "times the median" in said:
        assert timeline.checkpoints
    assert msgspec.json.decode(msgspec.json.encode(found), type=tuple[Finding, ...]) == found
