"""Where a finding's numbers are shown: the same sections in the report and on the page. Pure."""

from collections.abc import Container
from typing import Final, Literal

from contracts.findings import Finding

Section = Literal["skills", "provenance", "health", "movers", "layers", "strata", "checkpoints"]

HEALTH: Final = frozenset(
    {"loss", "entropy", "anisotropy", "feature_variance", "weight_nonfinite", "alerts", "nonfinite"}
)
"""Metrics whose evidence is in the section on health."""


def section(found: Finding, *, blocks: Container[str], metrics: Container[str]) -> Section:
    """The section that shows a finding's numbers.

    Args:
        found: The finding.
        blocks: Those that have a detail.
        metrics: Those that the strata show.
    """
    evidence = found.evidence
    if found.topic == "skill":
        return "skills"
    if found.topic == "left_out":
        return "provenance"
    if found.topic in {"alert", "collapse"} or evidence.metric in HEALTH:
        return "health"
    if evidence.metric == "stability":
        return "movers"
    if evidence.block in blocks:
        return "layers"
    return "strata" if evidence.metric in metrics else "checkpoints"
