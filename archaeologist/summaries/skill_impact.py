"""Which blocks move when a skill's score does: Δscore against drift, interval by interval. Pure.

Differences are compared and not levels, because two series that both grow with training correlate whatever they are.
The rank correlation and its test are in statistics.ranks. What a few intervals cannot support is said in words.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, Literal, NamedTuple

import msgspec
import numpy as np

from archaeologist.findings.skills import direction, leading
from archaeologist.statistics import ranks
from archaeologist.statistics.ranks import Floats
from archaeologist.summaries.intervals import LARGEST, Distances, Intervals, Pair, intervals
from archaeologist.summaries.table import Table
from contracts.artifacts import BlockImpact, LeftOut, SkillFinding, SkillHistory, SkillImpact, SkillInterval, SkillScore

RANKING_FROM: Final = 3
"""Of two intervals every rank correlation is 1 or -1."""
EXPLORATORY_FROM: Final = 6
"""The smallest two-sided p of n intervals is 2/n!; below 6 no p is small enough to mean anything."""
TESTED_FROM: Final = 8
NOISE: Final = 2.0
"""Standard errors that a change of score must reach, where they are known."""

DECIMALS: Final = 12
"""Of a change of score; beyond is rounding."""

JUDGEMENTS: Final = {
    "ranking_from_intervals": float(RANKING_FROM),
    "exploratory_from_intervals": float(EXPLORATORY_FROM),
    "tested_from_intervals": float(TESTED_FROM),
    "least_change_in_standard_errors": NOISE,
}

Support = Literal["none", "ranking", "exploratory", "tested"]

NOT_CAUSE: Final = (
    "Correlation is not cause: a block may move with a skill because both follow the learning rate or the data. Only"
    " putting the block back to the reference and evaluating again supports that it carries the skill."
)


def pairs(table: Table, history: SkillHistory) -> list[Pair]:
    """Every interval of every skill: consecutive checkpoints that are both evaluated and analysed."""
    analysed = set(table.steps)
    found = [pair for scores in history.skills.values() for pair in _pairs(scores, analysed)]
    return sorted(set(found))


def skill_impact(
    table: Table, history: SkillHistory, *, distances: Distances, left_out: Sequence[LeftOut] = ()
) -> SkillImpact:
    """What can be said of each skill.

    Args:
        table: Of the whole campaign.
        history: Of the same campaign.
        distances: Of the ``pairs`` that no artifact compares.
        left_out: Files that could not be read.
    """
    skills = {
        skill: finding(skill, scores, table=table, distances=distances)
        for skill, scores in sorted(history.skills.items())
    }
    return SkillImpact(
        campaign_id=history.campaign_id,
        hero_id=history.hero_id,
        skills=skills,
        judgements=dict(JUDGEMENTS),
        left_out=tuple(left_out),
    )


def finding(skill: str, scores: Sequence[SkillScore], *, table: Table, distances: Distances) -> SkillFinding:
    """What can be said of one skill; arguments as for ``skill_impact``."""
    scores = [score for score in scores if abs(score.score) < LARGEST]
    covered = _pairs(scores, set(table.steps))
    moved = intervals(table, covered, distances)
    of = {score.step: score for score in scores}
    is_known = [bool(np.isfinite(blocks).any()) for blocks in moved.relative.T]
    told = [
        _interval(of[base], of[target], moved.origins[number], is_relative_known=is_known[number])
        for number, (base, target) in enumerate(covered)
    ]
    used = [one.is_used for one in told]
    changes = np.array([one.score_change for one in told], np.float64)[used]
    blocks = _blocks(moved, used, table.blocks)
    support = _support(int(sum(used)), changes, blocks)
    result = _correlated(changes, blocks, support=support)
    return SkillFinding(
        skill=skill,
        checkpoints=tuple(score.step for score in scores),
        scores=tuple(score.score for score in scores),
        num_samples=tuple(score.num_samples for score in scores),
        intervals=tuple(told),
        intervals_used=int(sum(used)),
        support=support,
        method=result.method,
        permutations=result.permutations,
        layers=tuple(msgspec.structs.replace(one, layer_type=table.kinds[one.layer]) for one in result.layers),
        blocks_left_out=blocks.left_out,
        supports=_supports(skill, told, support=support, blocks=blocks, result=result),
        does_not_support=NOT_CAUSE,
    )


# The intervals.


def standard_error(before: SkillScore, after: SkillScore) -> float | None:
    """Standard error of the difference of two shares; None where a sample size is missing or a score is no share.

    The evaluations may have used the same items. Without the single answers their covariance is not known; leaving it
    out can only make the error larger where it is positive (arXiv 2411.00640). One success and one failure are added
    to each sample, so that a share of 0 or 1 is not held for certain (Agresti and Caffo 2000).
    """
    variance = 0.0
    for score in (before, after):
        if score.num_samples is None or score.num_samples < 1 or not 0 <= score.score <= 1:
            return None
        size = score.num_samples + 2
        share = (score.score * score.num_samples + 1) / size
        variance += share * (1 - share) / size
    return math.sqrt(variance)


def _pairs(scores: Sequence[SkillScore], analysed: set[int]) -> list[Pair]:
    return list(pairwise(sorted(score.step for score in scores if score.step in analysed)))


def _interval(
    before: SkillScore, after: SkillScore, drift: Literal["exact", "estimate"] | None, *, is_relative_known: bool
) -> SkillInterval:
    # 0.3 - 0.2 and 0.2 - 0.1 are one change, and not two ranks.
    change, error = round(after.score - before.score, DECIMALS), standard_error(before, after)
    reason = None
    if drift is None:
        reason = "no artifact compares the two checkpoints, and one has no usable sketch"
    elif not is_relative_known:
        # An adapter that was saved before it was trained changes nothing: its norm is 0.
        reason = "no block's relative drift is known: at the earlier checkpoint their norm is 0, or not finite"
    elif error is not None and abs(change) < NOISE * error:
        reason = f"the change is below {NOISE:g} standard errors ({NOISE * error:.3g}): it may be chance"
    return SkillInterval(
        base_step=before.step,
        target_step=after.step,
        score_change=change,
        standard_error=error,
        drift=drift,
        is_used=reason is None,
        reason=reason,
    )


class _Blocks(NamedTuple):
    """The blocks that take part."""

    names: tuple[str, ...]
    drift: Floats
    """Relative L2, blocks by intervals."""
    share: Floats
    """Of the sum over all blocks in the interval."""
    left_out: dict[str, str]


def _blocks(moved: Intervals, used: list[bool], names: Sequence[str]) -> _Blocks:
    drift = moved.relative[:, used]
    missing = np.array([not np.isfinite(row).all() for row in drift], np.bool_)
    still = np.array([len(set(row.tolist())) == 1 for row in drift], np.bool_) & ~missing
    left_out = {
        name: "its relative drift is not known in every interval" if missing[row] else "its drift is always the same"
        for row, name in enumerate(names)
        if missing[row] or still[row]
    }
    total = np.nansum(drift, axis=0)
    share = np.divide(drift, total, out=np.zeros_like(drift), where=total > 0)
    kept = ~(missing | still)
    return _Blocks(tuple(name for name in names if name not in left_out), drift[kept], share[kept], left_out)


# The correlation.


class _Result(NamedTuple):
    """What was found."""

    layers: tuple[BlockImpact, ...] = ()
    method: Literal["exact", "monte_carlo"] | None = None
    permutations: int = 0


def _support(count: int, changes: Floats, blocks: _Blocks) -> Support:
    if count < RANKING_FROM or not blocks.names or np.ptp(changes) == 0:
        return "none"
    if count < EXPLORATORY_FROM:
        return "ranking"
    return "exploratory" if count < TESTED_FROM else "tested"


def _correlated(changes: Floats, blocks: _Blocks, *, support: Support) -> _Result:
    """The blocks by |ρ|, with p where the number of intervals allows one."""
    if support == "none":
        return _Result()
    families = (blocks.drift, blocks.share)
    tested = ranks.permuted(changes, families) if support != "ranking" else None
    found = tested.spearman if tested else tuple(ranks.spearman(changes, family) for family in families)
    p = tested.p_adjusted if tested else tuple(np.full(len(blocks.names), np.nan) for _ in families)
    layers = [
        BlockImpact(
            layer=name,
            spearman=_known(found[0][row]),
            p_adjusted=_known(p[0][row]),
            spearman_share=_known(found[1][row]),
            p_adjusted_share=_known(p[1][row]),
        )
        for row, name in enumerate(blocks.names)
    ]
    ordered = tuple(sorted(layers, key=lambda one: (-round(abs(one.spearman or 0.0), 9), one.layer)))
    return _Result(ordered, tested.method if tested else None, tested.orders if tested else 0)


def _known(value: np.float64) -> float | None:
    return float(value) if np.isfinite(value) else None


# In words.


def _supports(skill: str, told: Sequence[SkillInterval], *, support: Support, blocks: _Blocks, result: _Result) -> str:
    used = [one for one in told if one.is_used]
    base = f"{len(used)} of {len(told)} intervals between evaluated and analysed checkpoints are used"
    unknown = sum(one.standard_error is None for one in used)
    if unknown:
        base += f"; in {unknown} the error of the score is not known, so changes that are chance may be among them"
    if any(one.drift == "estimate" for one in used):
        base += "; some drift is estimated from sketches"
    if support == "none":
        if len(used) >= RANKING_FROM and not blocks.names:
            why = "; ".join(dict.fromkeys(blocks.left_out.values()))
            return f"{base}. No block can be ranked: {why}."
        if len(used) >= RANKING_FROM:
            return f"{base}. The score changes by the same each time: nothing can be ranked."
        return f"{base}. Fewer than {RANKING_FROM} support nothing: no block can be told from another."
    first, leaders, goes = result.layers[0], _leaders(result), _goes(result)
    if support == "ranking":
        return (
            f"{base}. They support a ranking only, {leaders} first (Spearman {first.spearman:.2f}): with fewer than"
            f" {EXPLORATORY_FROM} intervals chance gives any order often enough."
        )
    how = "all orders" if result.method == "exact" else f"{result.permutations} random orders"
    test = (
        f"{skill} {goes} {leaders} (Spearman {first.spearman:.2f}, p {first.p_adjusted:.2g}, adjusted"
        f" for {len(result.layers)} blocks, {how} of the changes). p assumes that under chance any order of the changes"
        " is as likely as any other, which a score that levels off while the learning rate falls is not; the blocks'"
        " shares of the drift depend on that less."
    )
    if support == "exploratory":
        return f"{base}. Exploratory, because {TESTED_FROM} are needed for a test to rely on: {test}"
    return f"{base}. {test}"


def _leaders(result: _Result) -> str:
    """The block with the largest rank correlation, and how many others have the same."""
    more = len(_tied(result)) - 1
    return f"{result.layers[0].layer} and {more} more" if more else result.layers[0].layer


def _goes(result: _Result) -> str:
    way = direction(_tied(result))
    return "goes along most with" if way == "along with" else f"goes most {way}"


def _tied(result: _Result) -> list[float | None]:
    found = [one.spearman for one in result.layers]
    return [found[place] for place in leading(found)]
