"""What the skill impact supports, in one sentence: never more than its number of intervals does."""

import math
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from archaeologist.findings.wording import counted, finite, labels, number
from contracts.artifacts import BlockImpact, SkillFinding, SkillImpact
from contracts.findings import Evidence, Finding

LEAST: Final = {"tested": 8, "exploratory": 6, "ranking": 3, "none": 0}
"""Intervals that each kind of support needs, as in summaries.skill_impact; the strongest first."""
CHANCE: Final = 0.05
"""An adjusted p from here on is nothing beyond chance."""
SAME: Final = 1e-9
"""Two rank correlations that differ by less differ by rounding."""
EITHER: Final = "along with or against"


class _Leaders(Struct, frozen=True, kw_only=True):
    """The blocks with the largest rank correlation, in words."""

    names: str
    is_one: bool
    direction: str
    rho: str

    @property
    def verb(self) -> str:
        """Whether they go along with a score or against it."""
        return f"{'goes' if self.is_one else 'go'} {self.direction}"


def findings(impact: SkillImpact | None) -> list[Finding]:
    """The finding of the skill with the most support, of several the one least like chance; none without skills."""
    if impact is None or not impact.skills:
        return []
    kinds = list(LEAST)
    best = min(
        impact.skills.values(),
        key=lambda skill: (kinds.index(support(skill)), _smallest_p(skill), -skill.intervals_used, skill.skill),
    )
    return [_finding(best, others=len(impact.skills) - 1)]


def leading(values: Sequence[float | None], *, first: int = 0) -> list[int]:
    """The places of the rank correlations that are as large as one of them, whatever their sign; that one first."""
    largest = abs(finite(values[first]) or 0.0)
    alike = [place for place, value in enumerate(values) if abs(abs(finite(value) or 0.0) - largest) < SAME]
    return sorted(alike, key=lambda place: place != first)


def direction(values: Sequence[float | None]) -> str:
    """Whether blocks with these rank correlations go ``along with`` a score or ``against`` it."""
    signs = {(finite(value) or 0.0) >= 0 for value in values}
    return EITHER if len(signs) > 1 else "along with" if signs == {True} else "against"


def support(skill: SkillFinding) -> str:
    """What its intervals support: as it says itself, and never more than their number allows."""
    first = skill.layers[0] if skill.layers else None
    kinds = list(LEAST)
    for kind in kinds[kinds.index(skill.support) :]:
        needs_p = kind in {"tested", "exploratory"}
        is_known = first is not None and finite(first.spearman) is not None
        has_p = first is not None and finite(first.p_adjusted) is not None
        if skill.intervals_used >= LEAST[kind] and (kind == "none" or (is_known and (has_p or not needs_p))):
            return kind
    return "none"


def _smallest_p(skill: SkillFinding) -> float:
    """Over all blocks, of their drift and of their share of it; infinite where no p is known."""
    found = (finite(p) for one in skill.layers for p in (one.p_adjusted, one.p_adjusted_share))
    return min((p for p in found if p is not None), default=math.inf)


def _finding(skill: SkillFinding, *, others: int) -> Finding:
    kind = support(skill)
    count = counted(skill.intervals_used, "interval")
    more = f"; {counted(others, 'more skill')}" if others else ""
    if kind == "none":
        text, block = f"Not known yet: which blocks move with {skill.skill}. {count} {_verb(skill)} nothing.", None
        is_few = skill.intervals_used < LEAST["ranking"]
        basis = f"{'3 are needed for a ranking, 8 for a test' if is_few else 'nothing in them can be ranked'}{more}"
    else:
        text, first, by_share = _told(skill, kind=kind)
        block, basis = first.layer, f"{count}{by_share}; correlation is not cause{more}"
    return Finding(
        topic="skill",
        severity="info",
        text=text,
        basis=basis,
        confidence="normal" if kind == "tested" else "low",
        evidence=Evidence(block=block, metric="skill"),
    )


def _verb(skill: SkillFinding) -> str:
    return "supports" if skill.intervals_used == 1 else "support"


def _told(skill: SkillFinding, *, kind: str) -> tuple[str, BlockImpact, str]:
    """The sentence, the block that it is about, and what the shares of the drift say beside it."""
    first = skill.layers[0]
    p = finite(first.p_adjusted)
    leaders = _leaders(skill, [one.spearman for one in skill.layers], first=0)
    if kind == "ranking" or p is None:
        few = counted(skill.intervals_used, "interval")
        ranks = "ranks" if leaders.is_one else "rank"
        chance = f"which {few} cannot tell from chance"
        return f"{leaders.names} {ranks} first beside {skill.skill} ({leaders.rho}), {chance}.", first, ""
    note = f" (exploratory: {skill.intervals_used} intervals)" if kind == "exploratory" else ""
    share = _least_by_share(skill)
    p_share = None if share is None else finite(skill.layers[share].p_adjusted_share)
    if p < CHANCE:
        text = f"{leaders.names} {leaders.verb} {skill.skill} most ({leaders.rho}, p {number(p)}){note}."
        return text, first, _beside(skill, share)
    smallest = min(found for one in skill.layers if (found := finite(one.p_adjusted)) is not None)
    if share is not None and p_share is not None and p_share < CHANCE:
        by_share = _leaders(skill, [one.spearman_share for one in skill.layers], first=share)
        text = (
            f"By share of the drift {by_share.names} {by_share.verb} {skill.skill} ({by_share.rho}, p"
            f" {number(p_share)}){note}; by drift no block does more than chance would (smallest p {number(smallest)})."
        )
        return text, skill.layers[share], ""
    beyond = f"No block goes along with {skill.skill} more than chance would{note}"
    ps = f"the smallest p is {number(smallest)}" + (
        "" if p_share is None else f", by share of the drift {number(p_share)}"
    )
    return f"{beyond}; {ps}.", first, ""


def _least_by_share(skill: SkillFinding) -> int | None:
    """The place of the block whose share of the drift is least like chance.

    Shares add up to 1, so that where one block's grows others' shrink: of equal ones, the one that goes along.
    """
    known = [
        (p, rho <= 0, -abs(rho), place)
        for place, one in enumerate(skill.layers)
        if (p := finite(one.p_adjusted_share)) is not None and (rho := finite(one.spearman_share)) is not None
    ]
    return min(known)[-1] if known else None


def _beside(skill: SkillFinding, share: int | None) -> str:
    """What the shares of the drift say where the drift says something itself."""
    if share is None:
        return ""
    p = finite(skill.layers[share].p_adjusted_share) or 0.0
    leaders = _leaders(skill, [one.spearman_share for one in skill.layers], first=share)
    if p >= CHANCE:
        return f"; by share of the drift no block does (smallest p {number(p)})"
    return (
        f"; by share of the drift {leaders.names} {'does' if leaders.is_one else 'do'} ({leaders.rho}, p {number(p)})"
    )


def _leaders(skill: SkillFinding, values: Sequence[float | None], *, first: int) -> _Leaders:
    """The blocks whose rank correlation is as large as that of one of them."""
    places = leading(values, first=first)
    name = labels({one.layer: one.layer_type for one in skill.layers})[skill.layers[first].layer]
    way = direction([values[place] for place in places])
    rho = round(finite(values[first]) or 0.0, 2) + 0.0
    return _Leaders(
        names=name if len(places) == 1 else f"{name} and {len(places) - 1} more",
        is_one=len(places) == 1,
        direction=way,
        rho=f"Spearman ±{abs(rho):.2f}" if way == EITHER else f"Spearman {rho:.2f}",
    )
