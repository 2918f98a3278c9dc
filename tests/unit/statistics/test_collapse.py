"""The rule for signs of collapse on synthetic campaigns: planted collapses are found, healthy ones are left alone."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from archaeologist.statistics.collapse import FEWEST, Broken, Reading, judge, robust_z
from contracts.artifacts import Alert

SEEDS = range(20)
STEADY = {"rankme": 120.0, "anisotropy": 0.3, "feature_variance": 1.0, "entropy": 2.2, "loss": 2.3, "kl": 0.3}


def reading(step: int, *, norms: dict[str, float | None] | None = None, **values: float | None) -> Reading:
    """A checkpoint as healthy as the others, but for the values named."""
    reference_loss = values.pop("reference_loss", 2.3)
    return Reading(
        step=step,
        fingerprint=f"f{step}",
        probes=("qwen3", "probes", "tokenizer", "512"),
        model=("qwen3", "1000"),
        values={**STEADY, **values},
        norms=norms or {},
        reference="base",
        reference_step=0,
        reference_values={"entropy": 2.2, "loss": reference_loss},
    )


def campaign(seed: int, shape: Callable[[float], dict[str, float]], *, noise: float, count: int = 12) -> list[Reading]:
    """``count`` checkpoints: what ``shape`` gives for the time from 0 to 1, with noise that multiplies every value."""
    random = np.random.default_rng(seed)
    readings = []
    for number in range(count):
        exact = {**STEADY, **shape(number / (count - 1))}
        factors = dict(zip(exact, np.exp(noise * random.standard_normal(len(exact))).tolist(), strict=True))
        noisy = {name: value * factors[name] for name, value in exact.items()}
        # Over the same probes the loss is steadier than anything else.
        noisy["loss"] = exact["loss"] * factors["loss"] ** 0.25
        # The noise of an anisotropy is in what it lacks to 1, or it would exceed 1.
        noisy["anisotropy"] = 1 - (1 - exact["anisotropy"]) * factors["anisotropy"]
        norms: dict[str, float | None] = {
            f"layers.{block}": 10 * (1 + 0.002 * float(random.standard_normal())) for block in range(8)
        }
        readings.append(reading(number + 1, norms=norms, **noisy))
    return readings


def told(readings: Sequence[Reading]) -> list[tuple[int, Alert]]:
    """Every alert of a campaign, each checkpoint judged as it was saved."""
    return [(found.step, alert) for number, found in enumerate(readings) for alert in judge(found, readings[:number])]


def quiet(count: int = 8) -> list[Reading]:
    """A history that wobbles by one percent."""
    return [
        reading(step, **{name: value * (1 + 0.01 * (-1) ** step) for name, value in STEADY.items()})
        for step in range(1, count + 1)
    ]


def steady(_: float) -> dict[str, float]:
    return {}


def rising(time: float) -> dict[str, float]:
    return {"rankme": 120 * (1 + 0.6 * time), "feature_variance": 1 + time, "kl": 0.02 + 0.5 * time}


def falling(time: float) -> dict[str, float]:
    """Healthy reinforcement learning: entropy and RankMe fall slowly, and the divergence from the base grows."""
    return {
        "rankme": 120 * (1 - 0.4 * time),
        "anisotropy": 0.3 + 0.3 * time,
        "entropy": 2.2 * (1 - 0.6 * time),
        "kl": 0.01 + 0.8 * time,
    }


def from_scratch(time: float) -> dict[str, float]:
    """Pre-training: entropy and loss fall fast and then slowly, RankMe falls, rises and falls again."""
    learned = math.exp(-6 * time)
    return {
        "rankme": 60 + 40 * math.sin(4 * time),
        "entropy": 2 + 8 * learned,
        "loss": 2 + 8 * learned,
        "kl": 4 * time,
        "reference_loss": 10.0,
    }


def warming_up(time: float) -> dict[str, float]:
    """The divergence grows by a factor from checkpoint to checkpoint, from almost nothing."""
    return {"kl": 0.5 * min(1.0, 10 ** (4 * time - 3))}


HEALTHY = (steady, rising, falling, from_scratch, warming_up)


def abrupt(time: float) -> dict[str, float]:
    """Healthy for two thirds; then the hidden states lose their directions and the predictions go wrong."""
    ill = max(0.0, time - 2 / 3) * 3
    return {
        "rankme": 120 * (1 - 0.9 * ill),
        "anisotropy": 0.3 + 0.6 * ill,
        "feature_variance": 1 - 0.9 * ill,
        "kl": 0.3 + 3 * ill,
        "loss": 2.3 + 4 * ill,
    }


def creeping(time: float) -> dict[str, float]:
    """From the first checkpoint on, a little more with each."""
    return {
        "rankme": 120 * (1 - 0.8 * time),
        "feature_variance": math.exp(-4 * time),
        "kl": 0.05 + 1.5 * time**2,
        "loss": 2.3 * (1 + 1.2 * time**2),
    }


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", HEALTHY, ids=lambda shape: shape.__name__)
def test_healthy_training_raises_no_critical_alert(shape: Callable[[float], dict[str, float]], seed: int) -> None:
    alerts = told(campaign(seed, shape, noise=0.06, count=24))
    assert [alert.message for _, alert in alerts if alert.severity == "critical"] == []


def test_healthy_training_is_rarely_warned_of() -> None:
    warned = [bool(told(campaign(seed, shape, noise=0.06))) for shape in HEALTHY for seed in SEEDS]
    assert sum(warned) <= 0.05 * len(warned)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_abrupt_collapse_is_critical_before_the_loss_doubles(seed: int) -> None:
    readings = campaign(seed, abrupt, noise=0.04)
    doubled = next(found.step for found in readings if (found.values["loss"] or 0) > 2 * STEADY["loss"])
    first = next(step for step, alert in told(readings) if alert.severity == "critical")
    assert 8 < first < doubled


@pytest.mark.parametrize("seed", SEEDS)
def test_a_collapse_that_creeps_from_the_first_checkpoint_on_is_warned_of_before_the_loss_doubles(seed: int) -> None:
    readings = campaign(seed, creeping, noise=0.02)
    doubled = next(found.step for found in readings if (found.values["loss"] or 0) > 2 * STEADY["loss"])
    first, alert = told(readings)[0]
    assert first < doubled
    assert (alert.severity, alert.confidence) == ("warning", "low")
    assert "where the loss was lowest of" in alert.message


def test_two_families_beyond_their_history_are_critical_and_name_each_other() -> None:
    representation, entropy = judge(reading(9, rankme=30.0, entropy=0.5), quiet())
    assert (representation.severity, representation.family, representation.metric) == (
        "critical",
        "representation",
        "rankme",
    )
    assert (entropy.severity, entropy.family, entropy.confidence) == ("critical", "entropy", "normal")
    assert (representation.value, representation.checkpoints) == (30.0, 8)
    assert representation.baseline == pytest.approx(120.0)
    for words in ("RankMe", "30,", "75 % below 120", "8 earlier checkpoints", "entropy changed so too", "not a proof"):
        assert words in representation.message


def test_a_slow_slide_needs_a_worse_loss_and_a_second_family_or_a_loss_that_is_far_worse() -> None:
    def slid(loss: float, kl: float = 0.3) -> list[str]:
        history = [reading(step, rankme=120.0 - 10 * step) for step in range(8)]
        return [alert.metric for alert in judge(reading(8, rankme=40.0, loss=loss, kl=kl), history)]

    assert slid(2.3 * 1.05, kl=0.5) == []
    assert slid(2.3 * 1.15) == []
    assert slid(2.3 * 1.15, kl=0.45) == ["rankme", "kl"]
    assert slid(2.3 * 1.3) == ["rankme"]


def test_a_slide_is_measured_from_the_best_checkpoint_and_not_from_the_first() -> None:
    learned = [
        reading(step, loss=loss, rankme=rankme, entropy=loss)
        for step, (loss, rankme) in enumerate([(9.0, 20.0), (5.0, 50.0), (2.0, 100.0), (2.1, 90.0), (2.1, 80.0)])
    ]
    (alert,) = judge(reading(5, loss=2.6, rankme=70.0, entropy=2.6), learned)
    assert (alert.metric, alert.baseline, alert.confidence) == ("rankme", 100.0, "low")
    assert "30 % below 100, the value at step 2, where the loss was lowest of 5 earlier checkpoints" in alert.message
    assert judge(reading(5, loss=2.4, rankme=70.0, entropy=2.6), learned) == ()


def test_a_warning_that_stays_is_told_once_and_again_when_it_goes_on_by_a_quarter() -> None:
    def told_at_four(**values: Any) -> list[str]:
        ill = reading(3, entropy=0.5, loss=4.0)
        assert [alert.family for alert in judge(ill, quiet(2))] == ["entropy"]
        return [alert.family for alert in judge(reading(4, loss=4.0, **values), [*quiet(2), ill])]

    assert told_at_four(entropy=0.5) == []
    assert told_at_four(entropy=0.38) == []
    assert told_at_four(entropy=0.37) == ["entropy"]
    assert told_at_four(entropy=0.5, kl=2.0) == ["divergence"], "another family is news"


def test_a_warning_that_went_away_is_told_again() -> None:
    history = [*quiet(2), reading(3, entropy=0.5, loss=4.0), reading(4)]
    assert [alert.family for alert in judge(reading(5, entropy=0.5, loss=4.0), history)] == ["entropy"]


def test_a_warning_is_told_again_when_it_is_surer_and_a_critical_alert_each_time() -> None:
    first, second = reading(9, rankme=70.0, loss=3.0), reading(10, rankme=70.0, loss=3.0)
    assert [alert.confidence for alert in judge(first, quiet())] == ["low"]
    assert [alert.confidence for alert in judge(second, [*quiet(), first])] == ["normal"]
    assert judge(replace(second, step=11), [*quiet(), first, second]) == ()
    ill = reading(9, rankme=30.0, entropy=0.5)
    again = judge(replace(ill, step=10), [*quiet(), ill])
    assert [alert.severity for alert in again] == ["critical", "critical"]


def test_one_family_is_nothing_at_first_and_a_warning_the_second_time() -> None:
    history = quiet()
    first, second = reading(9, rankme=30.0, anisotropy=0.9, feature_variance=0.1), reading(10, rankme=40.0)
    assert judge(first, history) == ()
    (alert,) = judge(second, [*history, first])
    assert (alert.severity, alert.family, alert.metric) == ("warning", "representation", "rankme")
    assert "one checkpoint before" in alert.message
    assert judge(reading(10), [*history, first]) == ()


def test_two_families_in_turn_are_not_one_family_twice() -> None:
    history = quiet()
    assert judge(reading(10, entropy=0.5), [*history, reading(9, rankme=30.0)]) == ()


def test_three_metrics_of_one_family_are_no_second_opinion() -> None:
    ill = reading(9, rankme=5.0, anisotropy=0.99, feature_variance=0.01)
    assert judge(ill, quiet()) == ()
    (alert,) = judge(replace(ill, step=10), [*quiet(), ill])
    assert alert.severity == "warning"
    assert alert.metric == "feature_variance", "the one that went farthest"


@pytest.mark.parametrize(
    "values",
    [{"rankme": 400.0, "entropy": 9.0}, {"anisotropy": -0.2, "kl": 0.0}, {"feature_variance": 50.0, "kl": 0.01}],
)
def test_the_healthy_direction_raises_nothing(values: dict[str, Any]) -> None:
    assert judge(reading(9, **values), quiet()) == ()


def test_far_beyond_a_very_quiet_history_but_less_than_a_quarter_off_raises_nothing() -> None:
    history = [reading(step) for step in range(1, 9)]
    assert judge(reading(9, rankme=91.0, entropy=1.7), history) == ()
    assert len(judge(reading(9, rankme=89.0, entropy=1.6), history)) == 2, "a history without any spread still judges"


def test_an_anisotropy_counts_by_what_it_lacks_to_one() -> None:
    history = [reading(step, anisotropy=0.9) for step in range(1, 9)]
    assert judge(reading(9, anisotropy=0.92, kl=2.0), history) == ()
    anisotropy, _ = judge(reading(9, anisotropy=0.95, kl=2.0), history)
    assert "50 % of the way from 0.9 to 1" in anisotropy.message


def test_a_divergence_that_multiplies_but_stays_tiny_raises_nothing() -> None:
    history = [reading(step, kl=0.002) for step in range(1, 9)]
    assert judge(reading(9, kl=0.04, entropy=0.5), history) == ()
    assert len(judge(reading(9, kl=0.4, entropy=0.5), history)) == 2


def test_divergences_compare_with_those_from_the_same_reference_or_over_as_many_steps() -> None:
    def chained(step: int, *, interval: int, kl: float, entropy: float = 2.2) -> Reading:
        found = reading(step, kl=kl, entropy=entropy)
        return replace(found, reference=f"f{step - interval}", reference_step=step - interval)

    history = [chained(step, interval=10, kl=0.05) for step in range(10, 90, 10)]
    families = [alert.family for alert in judge(chained(90, interval=10, kl=0.5, entropy=0.5), history)]
    assert families == ["entropy", "divergence"]
    assert judge(chained(90, interval=50, kl=0.5, entropy=0.5), history) == (), "five times as many steps"


def test_below_five_checkpoints_only_the_reference_judges_with_low_confidence() -> None:
    for count in range(FEWEST):
        ill = reading(9, entropy=0.5, kl=1.0, loss=4.0)
        entropy, divergence = judge(ill, quiet(count))
        assert {entropy.severity, divergence.severity} == {"warning"}
        assert {entropy.confidence, divergence.confidence} == {"low"}
        assert (entropy.baseline, entropy.checkpoints) == (2.2, count)
        assert "the reference's value" in entropy.message
    assert {alert.severity for alert in judge(reading(9, entropy=0.5, kl=1.0, loss=4.0), quiet(FEWEST))} == {"critical"}


def test_below_five_checkpoints_a_model_that_predicts_better_than_its_reference_learns() -> None:
    assert judge(reading(9, entropy=0.5, kl=1.0, loss=2.0), quiet(2)) == ()


def test_below_five_checkpoints_hidden_states_compare_with_the_references_own_artifact() -> None:
    base = replace(reading(1), fingerprint="base")
    representation, _ = judge(reading(2, rankme=30.0, kl=1.0, loss=4.0), [base])
    assert (representation.metric, representation.baseline, representation.confidence) == ("rankme", 120.0, "low")


def test_a_checkpoint_without_history_and_reference_raises_nothing() -> None:
    assert judge(replace(reading(1, rankme=1.0, entropy=0.0), reference=None, reference_values={}), []) == ()


@pytest.mark.parametrize("family", ["weights", "representation", "entropy"])
def test_nan_and_infinity_are_critical_without_any_history(family: str) -> None:
    ill = replace(reading(1), broken=(Broken(family=family, part="weights", count=7, block="layers.3", blocks=2),))
    (alert,) = judge(ill, [])
    assert (alert.severity, alert.family, alert.block, alert.value) == ("critical", family, "layers.3", 7.0)
    assert "7 NaN or infinite weights, first in layers.3 (2 blocks have some)" in alert.message


def test_critical_alerts_come_first() -> None:
    broken = replace(
        reading(9, norms={"a": 20.0}), broken=(Broken(family="representation", part="activations", count=1),)
    )
    history = [reading(step, norms={"a": 10.0}) for step in range(1, 9)]
    assert [alert.severity for alert in judge(broken, history)] == ["critical", "warning"]


@pytest.mark.parametrize("place", range(4))
def test_readings_of_other_probes_tokenizers_token_counts_or_models_take_no_part(place: int) -> None:
    other = [
        replace(found, probes=tuple("other" if number == place else part for number, part in enumerate(found.probes)))
        for found in quiet()
    ]
    ill = reading(9, rankme=30.0, entropy=0.5)
    assert len(judge(ill, quiet())) == 2
    assert judge(replace(ill, reference=None, reference_values={}), other) == ()
    assert len(judge(ill, [*other, *quiet()])) == 2


def test_later_checkpoints_and_the_order_of_the_history_do_not_matter() -> None:
    ill = reading(5, rankme=30.0, entropy=0.5, loss=2.0)
    assert judge(ill, quiet(20)) == judge(ill, quiet(4))
    ill = reading(30, rankme=30.0, entropy=0.5)
    assert judge(ill, quiet(20)[::-1]) == judge(ill, quiet(20))


def test_a_missing_value_takes_no_part() -> None:
    history = [*quiet(), reading(9, rankme=None, entropy=None, loss=None)]
    assert judge(reading(10, rankme=None, entropy=math.nan, kl=math.inf), history) == ()


def test_a_blocks_norm_that_leaves_its_history_is_a_warning() -> None:
    history = [reading(step, norms={"a": 10.0 + 0.01 * step, "b": 3.0}) for step in range(1, 7)]
    (alert,) = judge(reading(7, norms={"a": 13.0, "b": 3.2}), history)
    assert (alert.severity, alert.family, alert.block, alert.value) == ("warning", "weights", "a", 13.0)
    assert (alert.checkpoints, alert.confidence) == (6, "normal")
    assert "1 more of 2 blocks" in alert.message
    assert judge(reading(7, norms={"a": 13.0}), history[:4]) == (), "four checkpoints are too few"
    assert judge(reading(7, norms={"a": 10.1, "b": 3.05}), history) == (), "less than bfloat16 resolves five times"


def test_a_norm_that_stays_where_it_jumped_is_told_once_and_another_block_anew() -> None:
    history = [reading(step, norms={"a": 10.0, "b": 3.0}) for step in range(1, 7)]
    jumped = reading(7, norms={"a": 13.0, "b": 3.0})
    assert [alert.block for alert in judge(jumped, history)] == ["a"]
    assert judge(reading(8, norms={"a": 13.5, "b": 3.0}), [*history, jumped]) == ()
    assert [alert.block for alert in judge(reading(8, norms={"a": 13.5, "b": 4.0}), [*history, jumped])] == ["b"]
    assert [alert.block for alert in judge(reading(8, norms={"a": 17.0, "b": 3.0}), [*history, jumped])] == ["a"]


def test_norms_of_another_model_are_not_compared() -> None:
    history = [replace(reading(step, norms={"a": 10.0}), model=("gpt2", "1000")) for step in range(1, 9)]
    assert judge(reading(9, norms={"a": 20.0}), history) == ()


def test_the_robust_z_of_hand_computed_histories() -> None:
    # Median 3, absolute deviations 2 1 0 1 2: their median is 1.
    assert robust_z(10.0, [1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(7 / 1.4826)
    assert robust_z(0.0, [1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(-3 / 1.4826)
    assert robust_z(257.0, [256.0] * 5) == pytest.approx(1.0), "the least spread is a 256th of the median"
    assert robust_z(0.0, [0.0] * 5) == 0.0
    assert robust_z(-1.0, [0.0] * 5) == -math.inf
