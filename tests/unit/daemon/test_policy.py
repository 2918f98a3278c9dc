"""Which checkpoints are analysed, and against what."""

import msgspec
import pytest

from archaeologist.daemon import policy
from archaeologist.daemon.policy import Observation
from archaeologist.settings import BestReference, PolicySettings
from contracts.messages import CampaignId, HeroId, JobKey, Side, SkillEvaluated
from contracts.records import CampaignRecord

EMPTY = CampaignRecord(hero_id="dio", campaign_id="c1")
RULES = PolicySettings(every=5)


def seen(
    step: int,
    *,
    path: str | None = None,
    skills: dict[str, float] | None = None,
    level: int | None = None,
    metrics: dict[str, float | None] | None = None,
) -> Observation:
    return Observation(
        step=step,
        path=path or f"/x/checkpoint-{step}",
        metrics=metrics or {},
        skills=skills or {},
        level=level,
        model_ref=None,
    )


def is_wanted(record: CampaignRecord, step: int, rules: PolicySettings = RULES) -> bool:
    entry = policy.find(record, step)
    assert entry is not None
    return policy.decide(entry, rules).is_wanted


def side(step: int, *, content: str = "one") -> Side:
    return Side(path=f"/x/{step}", step=step, read_path=f"/x/{step}", fingerprint=content)


def analysed(record: CampaignRecord, *steps: int) -> CampaignRecord:
    for step in steps:
        record = policy.mark(record, side(step), job_key=JobKey(f"k{step}"), state="admitted")
        record = policy.mark(record, side(step), job_key=JobKey(f"k{step}"), state="analysed")
    return record


def score(step: int, value: float, *, level: int | None = None) -> SkillEvaluated:
    return SkillEvaluated(
        hero_id=HeroId("dio"),
        campaign_id=CampaignId("c1"),
        checkpoint_step=step,
        skill="BIN",
        score=value,
        level=level,
    )


def test_the_first_checkpoint_and_every_fifth_after_it_are_analysed() -> None:
    record = EMPTY
    for step in range(100, 1300, 100):
        record = policy.observe(record, seen(step), policy=RULES)
    assert [step for step in range(100, 1300, 100) if is_wanted(record, step)] == [100, 600, 1100]


def test_a_repeated_message_counts_once_and_gets_the_same_decision() -> None:
    record = policy.observe(EMPTY, seen(100), policy=RULES)
    again = policy.observe(record, seen(100), policy=RULES)
    assert again == record
    assert again.announced == 1


def test_a_step_saved_again_elsewhere_is_another_checkpoint() -> None:
    record = policy.observe(EMPTY, seen(100), policy=RULES)
    record = policy.observe(record, seen(100, path="/y/checkpoint-100"), policy=RULES)
    assert record.announced == 2


def test_automatic_off_analyses_nothing_by_itself() -> None:
    record = policy.observe(EMPTY, seen(100), policy=RULES)
    assert not is_wanted(record, 100, PolicySettings(automatic=False))


def test_a_first_score_is_a_start_and_crossing_the_next_tenth_a_level_up() -> None:
    record = policy.observe(EMPTY, seen(100, skills={"BIN": 0.31}), policy=RULES)
    record = policy.observe(record, seen(200, skills={"BIN": 0.39}), policy=RULES)
    record = policy.observe(record, seen(300, skills={"BIN": 0.40}), policy=RULES)
    assert not is_wanted(record, 200)
    assert is_wanted(record, 300)


@pytest.mark.parametrize(("before", "after", "is_level_up"), [(0.29, 0.3, True), (0.3, 0.39, False), (0.6, 0.7, True)])
def test_tenths_are_counted_without_float_noise(before: float, after: float, is_level_up: bool) -> None:  # noqa: FBT001 -- a parameter of a table
    record = policy.observe(EMPTY, seen(100, skills={"BIN": before}), policy=RULES)
    assert bool(policy.level_up_reason(record, {"BIN": after}, level=None, step_size=0.1)) is is_level_up


def test_a_score_that_falls_and_recovers_is_no_second_level_up() -> None:
    record = policy.observe(EMPTY, seen(100, skills={"BIN": 0.55}), policy=RULES)
    record = policy.observe(record, seen(200, skills={"BIN": 0.2}), policy=RULES)
    record = policy.observe(record, seen(300, skills={"BIN": 0.52}), policy=RULES)
    assert not is_wanted(record, 300)


def test_an_explicit_level_that_rises_is_a_level_up() -> None:
    record = policy.observe(EMPTY, seen(100, level=3), policy=RULES)
    record = policy.observe(record, seen(200, level=3), policy=RULES)
    record = policy.observe(record, seen(300, level=4), policy=RULES)
    assert [is_wanted(record, step) for step in (200, 300)] == [False, True]
    assert not is_wanted(record, 300, PolicySettings(on_level_up=False))


def test_a_level_up_survives_the_messages_repetition() -> None:
    record = policy.observe_skill(policy.observe(EMPTY, seen(100), policy=RULES), score(100, 0.1), policy=RULES)
    record = policy.observe(record, seen(200), policy=RULES)
    record = policy.observe_skill(record, score(200, 0.35), policy=RULES)
    assert policy.observe_skill(record, score(200, 0.35), policy=RULES) == record
    assert is_wanted(record, 200)


def test_a_score_that_comes_before_its_checkpoint_is_found_when_that_arrives() -> None:
    record = policy.observe_skill(policy.observe(EMPTY, seen(100), policy=RULES), score(100, 0.1), policy=RULES)
    record = policy.observe_skill(record, score(200, 0.35), policy=RULES)
    entry = policy.find(record, 200)
    assert entry is not None
    assert (entry.path, entry.ordinal) == ("", None)
    record = policy.observe(record, seen(200), policy=RULES)
    entry = policy.find(record, 200)
    assert entry is not None
    assert (entry.ordinal, entry.skills) == (1, {"BIN": 0.35})
    assert is_wanted(record, 200)


def test_a_sample_size_stays_with_the_score_that_it_was_heard_with() -> None:
    heard = msgspec.structs.replace(score(100, 0.5), num_samples=40)
    record = policy.observe_skill(EMPTY, heard, policy=RULES)
    assert policy.observe_skill(record, heard, policy=RULES) == record
    same = policy.observe(record, seen(100, skills={heard.skill: 0.5}), policy=RULES)
    assert same.checkpoints[0].skill_samples == {heard.skill: 40}
    other = policy.observe(record, seen(100, skills={heard.skill: 0.6}), policy=RULES)
    assert other.checkpoints[0].skill_samples == {}


def test_a_checkpoint_brings_the_sample_sizes_of_its_own_scores_only() -> None:
    brought = seen(100, skills={"BIN": 0.5})._replace(skill_samples={"BIN": 32, "SY": 64})
    record = policy.observe(EMPTY, brought, policy=RULES)
    assert record.checkpoints[0].skill_samples == {"BIN": 32}
    assert policy.observe(record, brought, policy=RULES) == record


def test_previous_is_the_nearest_lower_checkpoint_analysed_or_admitted() -> None:
    record = analysed(policy.observe(EMPTY, seen(50), policy=RULES), 100, 300)
    record = policy.mark(record, side(200), job_key=JobKey("k200"), state="admitted")
    nearest = {step: entry.step for step in (100, 150, 250, 999) if (entry := policy.previous(record, step))}
    assert nearest == {150: 100, 250: 200, 999: 300}


def test_a_wanted_checkpoint_that_is_not_admitted_yet_is_awaited_as_the_reference() -> None:
    record = EMPTY
    for step in (100, 200, 300):
        record = policy.observe(record, seen(step), policy=RULES)

    def awaited(record: CampaignRecord) -> int | None:
        entry = policy.awaited(record, 300, rules=RULES)
        return entry.step if entry else None

    assert awaited(record) == 100  # 200 is not wanted
    assert awaited(analysed(record, 50)) == 100
    assert awaited(analysed(record, 200)) is None
    assert awaited(policy.mark(record, side(100), job_key=JobKey("k"), state="admitted")) is None
    assert policy.awaited(record, 100, rules=RULES) is None
    automatic_off = PolicySettings(every=5, automatic=False)
    assert policy.awaited(record, 300, rules=automatic_off) is None


def test_a_failed_checkpoint_is_no_reference() -> None:
    record = policy.mark(analysed(EMPTY, 100), side(200), job_key=JobKey("k"), state="admitted")
    record = policy.mark(record, side(200), job_key=JobKey("k"), state="failed")
    found = policy.previous(record, 300)
    assert found is not None
    assert found.step == 100


def test_an_older_jobs_end_does_not_overwrite_a_newer_jobs_mark() -> None:
    record = policy.mark(EMPTY, side(100), job_key=JobKey("old"), state="admitted")
    record = policy.mark(record, side(100), job_key=JobKey("new"), state="admitted")
    assert policy.mark(record, side(100), job_key=JobKey("old"), state="failed") == record


@pytest.mark.parametrize("again", ["k200", "with other options"])
def test_what_was_analysed_stays_so_whatever_becomes_of_another_job_of_the_same_bytes(again: str) -> None:
    record = policy.mark(analysed(EMPTY, 100, 200), side(200), job_key=JobKey(again), state="admitted")
    record = policy.mark(record, side(200), job_key=JobKey(again), state="failed")
    assert record == analysed(EMPTY, 100, 200)


def test_a_checkpoint_that_was_saved_anew_is_analysed_only_once_its_new_bytes_are() -> None:
    anew = side(200, content="two")
    record = policy.mark(analysed(EMPTY, 100, 200), anew, job_key=JobKey("new"), state="admitted")
    assert [(entry.job_key, entry.state) for entry in record.checkpoints][-1] == ("new", "admitted")
    record = policy.mark(record, anew, job_key=JobKey("new"), state="failed")
    found = policy.previous(record, 300)
    assert found is not None
    assert found.step == 100


def test_an_announcement_that_says_less_takes_nothing_away() -> None:
    first = seen(100, metrics={"eval_loss": 1.0})._replace(level=3, model_ref="m")
    record = policy.observe(EMPTY, first, policy=RULES)
    again = policy.observe(record, seen(100), policy=RULES)
    assert again == record
    elsewhere = seen(100)._replace(path="/y/100")
    assert policy.observe(record, elsewhere, policy=RULES).checkpoints[0].metrics == {}


def test_with_many_metrics_a_record_keeps_fewer_checkpoints_and_stays_below_a_messages_size() -> None:
    record = EMPTY
    metrics: dict[str, float | None] = {f"a/metric/with/a/long/name/{number}": 1 / 3 for number in range(250)}
    for step in range(100, 20_100, 100):
        record = policy.observe(record, seen(step, metrics=metrics), policy=RULES)
        record = analysed(record, step) if step in {100, 200} else record
    assert len(msgspec.json.encode(record)) < 1_000_000
    steps = [entry.step for entry in record.checkpoints]
    assert steps[:2] == [100, 200]  # what was never analysed goes first
    assert steps[-1] == 20_000
    assert 20 < len(steps) < 200


@pytest.mark.parametrize(("mode", "expected"), [("min", 200), ("max", 100)])
def test_best_follows_the_metric_and_never_is_the_target_itself(mode: str, expected: int) -> None:
    record = EMPTY
    for step, loss in {100: 3.0, 200: 1.0, 300: 0.5, 400: float("nan")}.items():
        record = policy.observe(record, seen(step, metrics={"eval_loss": loss}), policy=RULES)
    record = analysed(record, 100, 200, 300, 400)
    found = policy.best(record, 300, rule=BestReference(mode="min" if mode == "min" else "max"))
    assert found is not None
    assert found.step == expected
    assert policy.best(record, 300, rule=BestReference(metric="other")) is None


def test_a_campaigns_record_stays_within_the_bus_message_limit() -> None:
    record = EMPTY
    for step in range(policy.MAX_CHECKPOINTS + 50):
        long_path = f"/a/rather/long/path/of/a/campaign/checkpoints/checkpoint-{step}"
        record = policy.observe(record, seen(step, path=long_path, skills={"BIN": 0.1, "SY": 0.2}), policy=RULES)
        if step % 100 == 0:
            record = analysed(record, step)
    assert len(record.checkpoints) == policy.MAX_CHECKPOINTS
    assert policy.find(record, 0) is not None, "what was analysed stays longest"
    assert len(msgspec.json.encode(record)) < 700_000


def test_the_record_keeps_announcing_in_order_of_arrival_not_of_steps() -> None:
    record = policy.observe(EMPTY, seen(500), policy=RULES)
    record = policy.observe(record, seen(100), policy=RULES)
    ordinals = {entry.step: entry.ordinal for entry in record.checkpoints}
    assert ordinals == {100: 1, 500: 0}
