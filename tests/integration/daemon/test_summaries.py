"""What a job's end and a skill's score leave in a campaign's summaries."""

from pathlib import Path

import msgspec
import pytest

from archaeologist.daemon.completion import Completion
from archaeologist.daemon.reconciliation import Reconciliation
from archaeologist.summaries.sources import is_current
from contracts.artifacts import HealthTimeline, SkillHistory, SkillImpact, SkillScore
from tests.integration.daemon.house import House, of, opened, with_quick_children


def covered(house: House) -> tuple[int, ...]:
    """Steps in the health timeline."""
    return msgspec.json.decode(house.folder.health.read_bytes(), type=HealthTimeline).checkpoints


async def test_summaries_and_scores_are_there_before_the_completed_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch)
    async with opened(tmp_path) as house, house.daemon():
        house.save(100)
        await house.say("skill.evaluated", checkpoint_step=100, skill="BIN", score=0.5, num_samples=40, request_id="s")
        await house.until_ended("s")
        await house.request("r", checkpoint_step=100)
        await house.until_event(of("r", "completed"))
        assert covered(house) == (100,)
        history = msgspec.json.decode(house.folder.skills.read_bytes(), type=SkillHistory)
        assert history.skills == {"BIN": (SkillScore(step=100, score=0.5, num_samples=40),)}
        impact = msgspec.json.decode(house.folder.skill_impact.read_bytes(), type=SkillImpact)
        assert impact.skills["BIN"].scores == (0.5,)


async def test_summaries_that_cannot_be_written_fail_no_job_and_are_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch)
    async with opened(tmp_path) as house:
        house.folder.analysis.mkdir(parents=True)
        house.folder.summaries.write_bytes(b"in the way")
        async with house.daemon():
            house.save(100)
            await house.request("r", checkpoint_step=100)
            await house.until_event(of("r", "completed"))
        assert not is_current(house.folder)
        house.folder.summaries.unlink()
        completion = Completion(house.bus, house.books, house.settings)
        await Reconciliation(house.books, completion, house.settings).sweep()
        assert covered(house) == (100,)
        assert is_current(house.folder)


async def test_a_score_that_comes_after_the_analysis_is_in_the_summaries_after_the_next_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch)
    async with opened(tmp_path) as house:
        async with house.daemon():
            house.save(100)
            path = str(house.folder.checkpoints / "checkpoint-100")
            await house.say("checkpoint.saved", checkpoint_path=path, skills={"SY": 0.25}, request_id="a")
            await house.until_ended("a")
            await house.say("skill.evaluated", checkpoint_step=100, skill="SY", score=0.5, request_id="b")
            await house.until_ended("b")
        completion = Completion(house.bus, house.books, house.settings)
        await Reconciliation(house.books, completion, house.settings).sweep()
        impact = msgspec.json.decode(house.folder.skill_impact.read_bytes(), type=SkillImpact)
        assert impact.skills["SY"].scores == (0.5,)
