import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.artifacts.store import write_whole
from archaeologist.demo.findings import Finding, gather, impact_table, impact_words, shortcomings
from archaeologist.demo.orchestration import Plan, check_installation
from archaeologist.demo.processes import DemoFailed, tail
from archaeologist.errors import UsageError
from contracts.artifacts import (
    BlockImpact,
    Coverage,
    GlobalDriftStats,
    GlobalWeightStats,
    LayerDriftStats,
    LayerStats,
    SkillFinding,
    SkillImpact,
    SkillInterval,
    Versions,
)
from contracts.messages import encode
from contracts.records import CampaignRecord, SeenCheckpoint

STEPS = (10, 20, 30, 40, 50, 60)


def artifact(step: int, *, has_drift: bool) -> LayerStats:
    drift: dict[str, Any] = {
        "drift_stats": {"model.norm": LayerDriftStats(name="model.norm")},
        "global_drift_stats": GlobalDriftStats(blocks=1),
    }
    return LayerStats(
        campaign_id="one",
        hero_id="hero",
        checkpoint_path=f"/c/checkpoint-{step}",
        checkpoint_step=step,
        created_at="2026-01-01T00:00:00Z",
        global_weight_stats=GlobalWeightStats(),
        job_key="k",
        job_id="r",
        fingerprint="f",
        coverage=Coverage(tensors_listed=1, tensors_read=1, bytes_listed=1, bytes_read=1),
        versions=Versions(archaeologist="0", python="3"),
        **(drift if has_drift else {}),
    )


def seen(step: int, *, skills: dict[str, float] | None = None) -> SeenCheckpoint:
    scores = {"BIN": 0.5, "SY": 0.0} if skills is None else skills
    return SeenCheckpoint(step=step, path=f"/c/checkpoint-{step}", skills=scores, state="analysed")


def found(steps: tuple[int, ...] = STEPS, *, skills: dict[str, float] | None = None) -> list[Finding]:
    return [
        Finding(seen(step, skills=skills), artifact(step, has_drift=step != steps[0]), Path(f"{step}.json"))
        for step in steps
    ]


def test_six_checkpoints_five_with_drift_and_scores_are_enough() -> None:
    assert shortcomings(found(), expected_steps=STEPS) == []


def test_each_thing_that_is_missing_is_named() -> None:
    missing = shortcomings(found(STEPS[:5]), expected_steps=STEPS)
    assert missing == [
        "no analysis of checkpoint 60",
        "5 checkpoints analysed, at least 6 are expected",
        "4 of them with drift, at least 5 are expected",
    ]


def test_a_checkpoint_without_a_skills_score_is_missing_something() -> None:
    assert shortcomings(found(skills={"BIN": 0.5}), expected_steps=STEPS) == [
        "no skill scores for checkpoint 10, 20, 30, 40, 50, 60"
    ]


def test_scores_that_are_all_zero_mean_that_nothing_was_learned() -> None:
    [missing] = shortcomings(found(skills={"BIN": 0.0, "SY": 0.0}), expected_steps=STEPS)
    assert "nothing was learned" in missing


def test_nothing_found_is_missing_everything() -> None:
    assert len(shortcomings([], expected_steps=STEPS)) == 4


def test_findings_are_the_analysed_checkpoints_with_their_artifacts_by_step(tmp_path: Path) -> None:
    folder = CampaignFolder.of(tmp_path, "hero", "one")
    for step in (10, 20):
        write_whole(folder.layer_stats(step), encode(artifact(step, has_drift=step == 20)))
    unfinished = SeenCheckpoint(step=30, path="/c/checkpoint-30", state="admitted")
    record = CampaignRecord(hero_id="hero", campaign_id="one", checkpoints=(unfinished, seen(20), seen(10)))
    findings = gather(record, folder)
    assert [(finding.artifact.checkpoint_step, finding.has_drift) for finding in findings] == [(10, False), (20, True)]


@pytest.mark.parametrize("content", [None, b"{}", b"not JSON"])
def test_an_artifact_that_is_missing_or_broken_fails_the_demo(tmp_path: Path, content: bytes | None) -> None:
    folder = CampaignFolder.of(tmp_path, "hero", "one")
    if content is not None:
        write_whole(folder.layer_stats(10), content)
    record = CampaignRecord(hero_id="hero", campaign_id="one", checkpoints=(seen(10),))
    with pytest.raises(DemoFailed, match="the artifact of checkpoint 10 is not as it must be"):
        gather(record, folder)


def test_the_last_step_is_saved_too() -> None:
    plan = Plan(root=Path("/r"), campaign_id="one", steps=25, save_every=10)
    assert plan.expected_steps == (10, 20, 25)


def test_a_missing_library_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "accelerate", None)
    with pytest.raises(UsageError, match=r"needs accelerate; run `pip install 'model-archaeologist\[demo\]'`"):
        check_installation()


def test_the_tail_of_a_log_is_its_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("\n".join(f"line {number}" for number in range(5000)))
    lines = tail(log).splitlines()
    assert (lines[0].strip(), lines[-1].strip()) == ("line 4985", "line 4999")


def test_the_tail_of_no_log_says_so(tmp_path: Path) -> None:
    assert "No such file" in tail(tmp_path / "log")


def finding(skill: str, *, used: int, kind: str, p: float | None) -> SkillFinding:
    interval = SkillInterval(base_step=1, target_step=2, score_change=0.1, is_used=True)
    return SkillFinding(
        skill=skill,
        num_samples=(32, None, 64),
        intervals=(interval,) * 7,
        intervals_used=used,
        support=kind,  # type: ignore[arg-type]  # one of the known words
        layers=(BlockImpact(layer="model.layers.1", spearman=-0.75, p_adjusted=p),),
        supports=f"{used} intervals.",
        does_not_support="Cause.",
    )


def printed(impact: SkillImpact) -> list[str]:
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(impact_table(impact))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_the_skill_impact_is_shown_as_far_as_its_sample_supports_it() -> None:
    skills = {
        "BIN": finding("BIN", used=2, kind="none", p=None),
        "SY": finding("SY", used=6, kind="exploratory", p=0.04),
    }
    impact = SkillImpact(campaign_id="one", hero_id="hero", skills=skills)
    [little] = [line for line in printed(impact) if "BIN" in line]
    assert "32 to 64" in little
    assert "2 of 7" in little
    assert "nothing yet" in little
    assert "model.layers.1" not in little
    [more] = [line for line in printed(impact) if "SY" in line]
    assert all(part in more for part in ("exploratory", "model.layers.1", "-0.75", "0.040"))
    assert impact_words(impact) == ["BIN: 2 intervals.", "SY: 6 intervals.", "Cause."]
