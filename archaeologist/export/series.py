"""The campaign's timelines as series by tag, for tools that draw a number over steps. Pure.

Tags are ``{group}/{name}``: ``drift/kl`` for the whole model, ``drift_relative_l2/model.layers.0`` for a block,
``skill/BIN`` for a score.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from archaeologist.moments import read_moment
from contracts.artifacts import DriftTimeline, HealthTimeline, SkillHistory

WHOLE_DRIFT: Final = ("relative_l2", "l2", "one_minus_cosine", "changed_fraction", "kl", "js", "top1_agreement")
BLOCK_DRIFT: Final = ("relative_l2", "l2", "changed_fraction", "cka")
WHOLE_HEALTH: Final = ("loss", "entropy", "weight_l2", "weight_nonfinite")
BLOCK_HEALTH: Final = ("weight_l2", "activation_std", "rankme", "anisotropy")

Scalars = dict[str, float]


def by_step(drift: DriftTimeline, health: HealthTimeline, skills: SkillHistory) -> dict[int, Scalars]:
    """Every number that there is, by step ascending and tag; what is missing has no entry."""
    found: dict[int, Scalars] = {}
    for tag, steps, values in _series(drift, health, skills):
        for step, value in zip(steps, values, strict=False):
            if value is not None:
                found.setdefault(step, {})[tag] = float(value)
    return dict(sorted(found.items()))


def times(health: HealthTimeline, steps: Sequence[int]) -> Mapping[int, float]:
    """Unix time of each step: of its analysis; of a step that was only scored, of the one before, else the first."""
    known = {
        step: at.timestamp()
        for step, created in zip(health.checkpoints, health.created_at, strict=False)
        if (at := read_moment(created))
    }
    analysed = sorted(known)
    if not analysed:
        return dict.fromkeys(steps, 0.0)
    return {step: known[analysed[max(0, bisect_right(analysed, step) - 1)]] for step in steps}


def _series(
    drift: DriftTimeline, health: HealthTimeline, skills: SkillHistory
) -> Iterator[tuple[str, Sequence[int], Sequence[float | None]]]:
    for name in WHOLE_DRIFT:
        yield f"drift/{name}", drift.checkpoints, getattr(drift, name)
    for block, moved in drift.layers.items():
        for name in BLOCK_DRIFT:
            yield f"drift_{name}/{block}", drift.checkpoints, getattr(moved, name)
    for name in WHOLE_HEALTH:
        yield f"health/{name}", health.checkpoints, getattr(health, name)
    for block, state in health.layers.items():
        for name in BLOCK_HEALTH:
            yield f"health_{name}/{block}", health.checkpoints, getattr(state, name)
    for skill, scores in skills.skills.items():
        yield f"skill/{skill}", [score.step for score in scores], [score.score for score in scores]
