"""What the skill impact supports, in one sentence: never more than its number of intervals does."""

from typing import Final

from archaeologist.findings.wording import counted, finite, labels, number
from contracts.artifacts import BlockImpact, SkillFinding, SkillImpact
from contracts.findings import Evidence, Finding

LEAST: Final = {"tested": 8, "exploratory": 6, "ranking": 3, "none": 0}
"""Intervals that each kind of support needs, as in summaries.skill_impact; the strongest first."""
CHANCE: Final = 0.05
"""An adjusted p from here on is nothing beyond chance."""


def findings(impact: SkillImpact | None) -> list[Finding]:
    """The finding of the skill with the most support; none without skills."""
    if impact is None or not impact.skills:
        return []
    kinds = list(LEAST)
    best = min(impact.skills.values(), key=lambda skill: (kinds.index(support(skill)), -skill.intervals_used))
    return [_finding(best, others=len(impact.skills) - 1)]


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


def _finding(skill: SkillFinding, *, others: int) -> Finding:
    kind = support(skill)
    count = counted(skill.intervals_used, "interval")
    if kind == "none":
        text, block = f"Not known yet: which blocks move with {skill.skill}. {count} {_verb(skill)} nothing.", None
    else:
        first = skill.layers[0]
        label = labels({one.layer: one.layer_type for one in skill.layers})[first.layer]
        text, block = _sentence(skill, first, label=label, kind=kind), first.layer
    more = f"; {counted(others, 'more skill')}" if others else ""
    return Finding(
        topic="skill",
        severity="info",
        text=text,
        basis=f"{count}; correlation is not cause{more}"
        if block
        else f"3 are needed for a ranking, 8 for a test{more}",
        confidence="normal" if kind == "tested" else "low",
        evidence=Evidence(block=block, metric="skill"),
    )


def _verb(skill: SkillFinding) -> str:
    return "supports" if skill.intervals_used == 1 else "support"


def _sentence(skill: SkillFinding, first: BlockImpact, *, label: str, kind: str) -> str:
    rho, p = finite(first.spearman) or 0.0, finite(first.p_adjusted)
    if kind == "ranking" or p is None:
        few = counted(skill.intervals_used, "interval")
        return f"{label} ranks first beside {skill.skill} (Spearman {rho:.2f}), which {few} cannot tell from chance."
    note = f" (exploratory: {skill.intervals_used} intervals)" if kind == "exploratory" else ""
    if p >= CHANCE:
        smallest = min(finite(one.p_adjusted) or p for one in skill.layers if one.p_adjusted is not None)
        beyond = f"No block goes along with {skill.skill} more than chance would{note}"
        return f"{beyond}; the smallest p is {number(smallest)}."
    return f"{label} goes along with {skill.skill} most (Spearman {rho:.2f}, p {number(p)}){note}."
