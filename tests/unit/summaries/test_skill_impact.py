"""Which blocks move with a skill: campaigns in which that is known."""

import json
import math
from itertools import pairwise
from pathlib import Path

import jsonschema
import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.errors import ArtifactInvalid
from archaeologist.summaries.chronicle import rebuild, update
from archaeologist.summaries.sketches import drift_estimate
from archaeologist.summaries.skill_impact import standard_error
from archaeologist.summaries.skills import keep, read_history
from archaeologist.summaries.sources import is_current
from contracts.artifacts import SkillFinding, SkillHistory, SkillImpact, SkillScore
from contracts.documents import json_schema
from contracts.records import CampaignRecord, SeenCheckpoint
from tests.fixtures.histories import CAMPAIGN, HERO, Weights, folder_in, place_whole, put, put_all
from tests.unit.statistics.test_ranks import slow_p, slow_spearman

BLOCKS = ("model.layers.0", "model.layers.1", "model.layers.2", "model.layers.3")
SIZE = 50


@pytest.fixture
def folder(tmp_path: Path) -> CampaignFolder:
    """A campaign without artifacts."""
    return folder_in(tmp_path)


def campaign(sizes: list[float], *, seed: int = 1) -> dict[int, Weights]:
    """Checkpoints 100 steps apart; block 1 moves by ``sizes``, block 3 never, the others by chance."""
    generator = np.random.default_rng(seed)
    now = {f"{block}.mlp.weight": generator.standard_normal(SIZE) for block in BLOCKS}
    found: dict[int, Weights] = {100: dict(now)}
    for number, size in enumerate(sizes):
        for block, scale in zip(BLOCKS, (generator.random(), size, generator.random(), 0.0), strict=True):
            name = f"{block}.mlp.weight"
            now[name] = now[name] + 0.1 * scale * generator.standard_normal(SIZE)
        found[100 * (number + 2)] = dict(now)
    return found


def scores(values: list[float], *, samples: int | None = None) -> dict[str, tuple[SkillScore, ...]]:
    steps = range(100, 100 * len(values) + 1, 100)
    pairs = zip(steps, values, strict=True)
    return {"BIN": tuple(SkillScore(step=step, score=one, num_samples=samples) for step, one in pairs)}


def write(folder: CampaignFolder, skills: dict[str, tuple[SkillScore, ...]]) -> None:
    history = SkillHistory(hero_id=HERO, campaign_id=CAMPAIGN, skills=skills)
    place_whole(folder.skills, msgspec.json.encode(history))


def impact(folder: CampaignFolder) -> SkillImpact:
    return msgspec.json.decode(folder.skill_impact.read_bytes(), type=SkillImpact)


def found_in(folder: CampaignFolder, sizes: list[float], *, samples: int | None = None) -> SkillFinding:
    """The finding where the score rises by a hundredth of what block 1 moves."""
    put_all(folder, campaign(sizes))
    write(folder, scores([0.1, *(0.1 + 0.01 * np.cumsum(sizes)).tolist()], samples=samples))
    update(folder)
    return impact(folder).skills["BIN"]


def relative_drift(checkpoints: dict[int, Weights], block: str) -> list[float]:
    name = f"{block}.mlp.weight"
    points = [weights[name] for weights in checkpoints.values()]
    return [math.sqrt(((after - before) ** 2).sum() / (before**2).sum()) for before, after in pairwise(points)]


def test_the_block_that_moves_with_the_skill_comes_first(folder: CampaignFolder) -> None:
    sizes = [1.0, 7.0, 3.0, 9.0, 2.0, 8.0, 5.0]
    found = found_in(folder, sizes)
    assert (found.support, found.method, found.permutations) == ("exploratory", "exact", 5040)
    assert found.layers[0].layer == "model.layers.1"
    checkpoints, changes = campaign(sizes), [0.01 * size for size in sizes]
    drifts = {block: relative_drift(checkpoints, block) for block in BLOCKS[:3]}
    for layer in found.layers:
        assert layer.spearman == pytest.approx(slow_spearman(changes, drifts[layer.layer]), abs=1e-9)
        total = [sum(parts) for parts in zip(*drifts.values(), strict=True)]
        share = [part / whole for part, whole in zip(drifts[layer.layer], total, strict=True)]
        assert layer.spearman_share == pytest.approx(slow_spearman(changes, share), abs=1e-9)
    p = dict(zip(drifts, slow_p(changes, list(drifts.values())), strict=True))
    for layer in found.layers:
        assert layer.p_adjusted == pytest.approx(p[layer.layer], abs=1e-12)
    assert found.blocks_left_out == {"model.layers.3": "its drift is always the same"}
    assert "Correlation is not cause" in found.does_not_support
    assert "Exploratory" in found.supports


def test_an_interval_from_weights_that_are_all_zero_is_left_out_and_not_every_block(folder: CampaignFolder) -> None:
    sizes = [1.0, 7.0, 3.0, 9.0, 2.0, 8.0, 5.0]
    checkpoints = campaign(sizes)
    # An adapter that was saved before it was trained.
    checkpoints[100] = {name: np.zeros(SIZE) for name in checkpoints[100]}
    put_all(folder, checkpoints)
    write(folder, scores([0.1, *(0.1 + 0.01 * np.cumsum(sizes)).tolist()]))
    update(folder)
    found = impact(folder).skills["BIN"]
    assert [one.is_used for one in found.intervals] == [False, *[True] * 6]
    assert "their norm is 0" in str(found.intervals[0].reason)
    assert (found.support, found.layers[0].layer) == ("exploratory", "model.layers.1")


@pytest.mark.parametrize(
    ("count", "support", "has_p"),
    [(2, "none", False), (3, "ranking", False), (5, "ranking", False), (6, "exploratory", True), (8, "tested", True)],
)
def test_what_so_many_intervals_support(folder: CampaignFolder, count: int, support: str, *, has_p: bool) -> None:
    found = found_in(folder, [float(1 + (number * 5) % 9) for number in range(count)])
    assert (found.intervals_used, found.support) == (count, support)
    assert all((layer.p_adjusted is not None) is has_p for layer in found.layers)
    assert bool(found.layers) is (support != "none")
    assert f"{count} of {count} intervals" in found.supports


def test_from_nine_intervals_on_the_orders_are_random_and_it_says_so(folder: CampaignFolder) -> None:
    found = found_in(folder, [float(1 + (number * 5) % 11) for number in range(10)])
    assert (found.method, found.permutations) == ("monte_carlo", 9_999)
    assert "9999 random orders" in found.supports
    assert found.layers[0].p_adjusted is not None
    assert 1e-4 <= found.layers[0].p_adjusted < 0.01


def test_changes_below_two_standard_errors_are_left_out(folder: CampaignFolder) -> None:
    put_all(folder, campaign([1.0, 2.0, 3.0]))
    write(folder, scores([0.5, 0.51, 0.9, 0.1], samples=100))
    update(folder)
    found = impact(folder).skills["BIN"]
    assert [one.is_used for one in found.intervals] == [False, True, True]
    assert found.intervals[0].reason is not None
    assert "2 standard errors" in found.intervals[0].reason
    assert (found.intervals_used, found.support) == (2, "none")
    assert "not known" not in found.supports


def test_the_standard_error_is_that_of_two_smoothed_shares() -> None:
    before, after = SkillScore(step=1, score=0.5, num_samples=98), SkillScore(step=2, score=1.0, num_samples=98)
    assert standard_error(before, after) == pytest.approx(math.sqrt(0.5 * 0.5 / 100 + 0.99 * 0.01 / 100))
    assert standard_error(before, replace(after, num_samples=None)) is None
    assert standard_error(before, replace(after, score=12.0)) is None
    assert standard_error(before, replace(after, num_samples=0)) is None


def test_without_sample_sizes_nothing_is_left_out_and_it_says_so(folder: CampaignFolder) -> None:
    found = found_in(folder, [1.0, 2.0, 3.0])
    assert found.intervals_used == 3
    assert "in 3 the error of the score is not known" in found.supports


def test_a_skill_evaluated_at_some_checkpoints_takes_its_drift_from_the_sketches(folder: CampaignFolder) -> None:
    checkpoints = campaign([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    put_all(folder, checkpoints)
    kept = [score for score in scores([0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.9])["BIN"] if score.step != 300]
    write(folder, {"BIN": tuple(kept)})
    update(folder)
    found = impact(folder).skills["BIN"]
    assert [(one.base_step, one.target_step, one.drift) for one in found.intervals][:3] == [
        (100, 200, "exact"),
        (200, 400, "estimate"),
        (400, 500, "exact"),
    ]
    assert "estimated from sketches" in found.supports
    folder.sketch(400).unlink()
    update(folder)
    lost = impact(folder).skills["BIN"].intervals[1]
    assert (lost.drift, lost.is_used) == (None, False)


def test_scores_of_checkpoints_that_were_not_analysed_make_no_interval(folder: CampaignFolder) -> None:
    put_all(folder, campaign([1.0]))
    write(folder, scores([0.1, 0.2, 0.3]))
    update(folder)
    found = impact(folder).skills["BIN"]
    assert found.checkpoints == (100, 200, 300)
    assert [(one.base_step, one.target_step) for one in found.intervals] == [(100, 200)]


def test_a_score_that_always_rises_alike_ranks_nothing(folder: CampaignFolder) -> None:
    put_all(folder, campaign([1.0, 2.0, 3.0, 4.0]))
    # In binary these differences are not all the same.
    write(folder, scores([0.1, 0.2, 0.3, 0.4, 0.5]))
    update(folder)
    found = impact(folder).skills["BIN"]
    assert (found.support, found.layers) == ("none", ())
    assert "nothing can be ranked" in found.supports


def test_blocks_that_rank_alike_are_not_told_apart(folder: CampaignFolder) -> None:
    generator = np.random.default_rng(0)
    now = {f"{block}.mlp.weight": generator.standard_normal(SIZE) for block in BLOCKS}
    checkpoints: dict[int, Weights] = {100: dict(now)}
    for number, size in enumerate([1.0, 3.0, 2.0, 4.0]):
        now = {name: values * (1 + 0.01 * size) for name, values in now.items()}
        checkpoints[100 * (number + 2)] = now
    put_all(folder, checkpoints)
    write(folder, scores([0.1, 0.2, 0.5, 0.7, 1.1]))
    update(folder)
    assert "model.layers.0 and 3 more first" in impact(folder).skills["BIN"].supports


def test_a_score_that_falls_where_a_block_moves_goes_against_it(folder: CampaignFolder) -> None:
    sizes = [1.0, 7.0, 3.0, 9.0, 2.0, 8.0, 5.0]
    put_all(folder, campaign(sizes))
    write(folder, scores([1.0, *(1.0 - 0.01 * np.cumsum(sizes)).tolist()]))
    update(folder)
    assert "BIN goes most against model.layers.1 (Spearman -" in impact(folder).skills["BIN"].supports


def test_a_new_score_makes_the_summaries_old_and_updates_equal_a_rebuild(folder: CampaignFolder) -> None:
    before: tuple[int, Weights] | None = None
    for number, (step, weights) in enumerate(campaign([3.0, 1.0, 2.0, 6.0, 4.0, 5.0]).items()):
        put(folder, step, weights, reference=before)
        write(folder, scores([0.1 * (one + 1) ** 0.5 for one in range(number + 1)], samples=1000))
        assert not is_current(folder)
        update(folder)
        before = (step, weights)
    brought = folder.skill_impact.read_bytes()
    rebuild(folder)
    assert folder.skill_impact.read_bytes() == brought


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"version": 9, "hero_id": "h", "campaign_id": "c"}'])
def test_a_damaged_history_is_told_of_and_costs_only_the_skills(folder: CampaignFolder, content: bytes) -> None:
    put_all(folder, campaign([1.0]))
    folder.skills.write_bytes(content)
    update(folder)
    found = impact(folder)
    assert found.skills == {}
    assert [problem.file for problem in found.left_out] == ["skills.json"]
    assert folder.timeline.exists()
    with pytest.raises(ArtifactInvalid):
        keep(folder, record(100, {"BIN": 0.1}))
    assert folder.skills.read_bytes() == content, "left alone, for a person to repair"


def test_absurd_scores_take_no_part(folder: CampaignFolder) -> None:
    put_all(folder, campaign([1.0, 2.0]))
    write(folder, scores([0.1, 1.7e308, 0.3]))
    update(folder)
    assert impact(folder).skills["BIN"].checkpoints == (100, 300)


def test_every_file_keeps_its_schema(folder: CampaignFolder) -> None:
    found_in(folder, [1.0, 7.0, 3.0, 9.0, 2.0, 8.0, 5.0], samples=1000)
    folder.layer_stats(300).write_bytes(b"{")
    folder.sketch(800).write_bytes(b"")
    update(folder)
    names = {"layer_drift_timeline", "health_timeline", "stability_report", "skill_impact"}
    files = {**{name: folder.summaries / f"{name}.json" for name in names}, "skill_history": folder.skills}
    for name, file in files.items():
        jsonschema.validate(json.loads(file.read_bytes()), json_schema(name))
    estimate = drift_estimate(folder, 100, 700)
    jsonschema.validate(json.loads(msgspec.json.encode(estimate)), json_schema("drift_estimate"))


# The history.


def record(step: int, skills: dict[str, float], **samples: int) -> CampaignRecord:
    entry = SeenCheckpoint(step=step, path="", skills=skills, skill_samples=samples)
    return CampaignRecord(hero_id=HERO, campaign_id=CAMPAIGN, checkpoints=(entry,))


def test_scores_are_kept_once_by_skill_and_step(folder: CampaignFolder) -> None:
    assert keep(folder, record(200, {"BIN": 0.5, "SY": 0.2}, BIN=50))
    assert not keep(folder, record(200, {"BIN": 0.5, "SY": 0.2}, BIN=50)), "the same again is nothing new"
    assert keep(folder, record(100, {"BIN": 0.1}))
    assert keep(folder, record(200, {"BIN": 0.6}))
    found = read_history(folder).skills
    assert found["BIN"] == (SkillScore(step=100, score=0.1), SkillScore(step=200, score=0.6))
    assert found["SY"] == (SkillScore(step=200, score=0.2),)


def test_a_record_that_forgot_old_checkpoints_takes_none_from_the_file(folder: CampaignFolder) -> None:
    keep(folder, record(100, {"BIN": 0.1}, BIN=20))
    keep(folder, record(9000, {"BIN": 0.9}))
    assert [score.step for score in read_history(folder).skills["BIN"]] == [100, 9000]


def test_nothing_is_made_for_a_campaign_without_a_folder(tmp_path: Path) -> None:
    nowhere = CampaignFolder.of(tmp_path, HERO, CAMPAIGN)
    assert not keep(nowhere, record(100, {"BIN": 0.1}))
    assert list(tmp_path.iterdir()) == []
