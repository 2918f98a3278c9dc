"""Everything that a report shows, read from a campaign's folder."""

from pathlib import Path
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.artifacts.store import read_layer_stats
from archaeologist.errors import ArtifactInvalid, ArtifactMissing, ArtifactUnwritable, SummariesLate, class_of
from archaeologist.figures.layer import Parts, parts_of
from archaeologist.figures.movers import ranking
from archaeologist.files import read_bounded
from archaeologist.findings.campaign import findings
from archaeologist.summaries.chronicle import update
from archaeologist.summaries.submodules import read_submodules
from contracts.artifacts import (
    ARTIFACT_VERSION,
    DriftTimeline,
    HealthTimeline,
    LayerStats,
    SkillImpact,
    StabilityReport,
)
from contracts.findings import Finding

MOST_BLOCKS: Final = 4
"""With a layer detail."""
MAX_SUMMARY_BYTES: Final = 1_000_000_000

Summary = TypeVar("Summary", DriftTimeline, HealthTimeline, StabilityReport, SkillImpact)


class Campaign(Struct, frozen=True, kw_only=True):
    """A campaign as its report shows it."""

    hero_id: str
    campaign_id: str
    timeline: DriftTimeline
    health: HealthTimeline
    stability: StabilityReport
    skills: SkillImpact
    newest: LayerStats | None = None
    """Artifact of the newest checkpoint that can be read."""
    findings: tuple[Finding, ...] = ()
    parts: dict[str, Parts] = {}
    """Of the blocks with a detail, in order."""
    notes: tuple[str, ...] = ()
    """What the reader must know about the report itself."""


def read_campaign(folder: CampaignFolder) -> Campaign:
    """The campaign, its summaries brought up to date first where that is possible.

    Raises:
        ArtifactInvalid: A summary does not decode.
        ArtifactMissing: There is none, and none can be written.
    """
    notes = _update(folder)
    timeline = _summary(folder.timeline, DriftTimeline)
    health = _summary(folder.health, HealthTimeline)
    stability = _summary(folder.stability, StabilityReport)
    skills = _summary(folder.skill_impact, SkillImpact)
    newest = artifacts(folder, health.checkpoints[-1:])
    compared = artifacts(folder, timeline.checkpoints[-1:])
    found = findings(timeline, health, stability=stability, skills=skills, newest=last(compared) or last(newest))
    parts, not_told = _parts(folder, _detailed(found, stability))
    return Campaign(
        hero_id=folder.hero_id,
        campaign_id=folder.campaign_id,
        timeline=timeline,
        health=health,
        stability=stability,
        skills=skills,
        newest=last(newest) or last(compared),
        findings=found,
        parts=parts,
        notes=tuple(dict.fromkeys((*notes, *not_told))),
    )


def check_readable(found: Campaign) -> None:
    """Passes a campaign of which something is known, or in which nothing was analysed yet.

    Raises:
        ArchaeologistError: Of all its artifacts none can be read; with the code of the first one's fault.
    """
    left_out = found.health.left_out
    if found.health.checkpoints or found.timeline.checkpoints or not left_out:
        return
    first = left_out[0]
    msg = f"no artifact of {found.hero_id}/{found.campaign_id} can be read, first {first.file}: {first.reason}"
    raise class_of(first.code)(msg)


def _update(folder: CampaignFolder) -> tuple[str, ...]:
    try:
        update(folder)
    except (ArtifactUnwritable, SummariesLate) as error:
        return (f"The summaries could not be brought up to date ({error.code}); they may lack the newest checkpoints.",)
    return ()


def _parts(folder: CampaignFolder, blocks: list[str]) -> tuple[dict[str, Parts], tuple[str, ...]]:
    """The drift of the blocks' submodules, and what the reader must know about it."""
    try:
        submodules = read_submodules(folder)
    except (ArtifactUnwritable, SummariesLate) as error:
        told = f"What was read of the blocks' parts is lost, and could not be read again ({error.code})."
        return {block: Parts() for block in blocks}, (told,)
    return {block: parts_of(block, submodules) for block in blocks}, ()


def _summary(path: Path, kind: type[Summary]) -> Summary:
    try:
        found = msgspec.json.decode(read_bounded(path.resolve(strict=True), MAX_SUMMARY_BYTES), type=kind)
    except FileNotFoundError as error:
        msg = f"summary {str(path)!r} is not there; make its folder writable and run archaeologist summarize"
        raise ArtifactMissing(msg) from error
    except (OSError, ValueError, RecursionError, RuntimeError) as error:
        msg = f"summary {str(path)!r} cannot be read: {error}; run archaeologist summarize"
        raise ArtifactInvalid(msg) from error
    if found.version > ARTIFACT_VERSION:
        known = f"up to {ARTIFACT_VERSION} is read; upgrade archaeologist"
        msg = f"summary {str(path)!r} has version {found.version}, {known}"
        raise ArtifactInvalid(msg)
    return found


def artifacts(folder: CampaignFolder, steps: tuple[int, ...]) -> list[LayerStats]:
    """Those that can be read, ascending; the summaries name the others."""
    found = []
    for step in steps:
        try:
            found.append(read_layer_stats(folder.layer_stats(step)))
        except (ArtifactInvalid, ArtifactMissing):
            continue
    return found


def last(found: list[LayerStats]) -> LayerStats | None:
    """The newest of them."""
    return found[-1] if found else None


def _detailed(found: tuple[Finding, ...], stability: StabilityReport) -> list[str]:
    """The blocks that findings speak of, then those that moved farthest."""
    named = [block for one in found if (block := one.evidence.block) is not None and block in stability.layers]
    ranked = [total.layer for total, _ in ranking(stability)]
    return list(dict.fromkeys([*named, *ranked]))[:MOST_BLOCKS]
