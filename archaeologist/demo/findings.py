"""What the demo found: gathered from the bus and the artifacts on the disk, checked, and shown as a table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from rich.table import Table

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.artifacts.store import read_layer_stats
from archaeologist.demo.processes import DemoFailed
from archaeologist.demo.skills import SKILLS
from archaeologist.errors import ArchiveUnavailable, ArtifactInvalid, ArtifactMissing
from archaeologist.findings.skills import support
from contracts.artifacts import LayerStats, SkillImpact
from contracts.records import CampaignRecord, SeenCheckpoint

LEAST_ANALYSED: Final = 6
LEAST_WITH_DRIFT: Final = 5
SUPPORTED: Final = {
    "none": "nothing yet",
    "ranking": "a ranking",
    "exploratory": "exploratory",
    "tested": "a test",
}


class Finding(NamedTuple):
    """One analysed checkpoint: what its trainer said of it and what its artifact says."""

    announced: SeenCheckpoint
    artifact: LayerStats
    path: Path

    @property
    def has_drift(self) -> bool:
        """Whether it was compared with an earlier checkpoint, block by block."""
        return self.artifact.global_drift_stats is not None and bool(self.artifact.drift_stats)


def gather(record: CampaignRecord, folder: CampaignFolder) -> list[Finding]:
    """The campaign's analysed checkpoints by step.

    Raises:
        DemoFailed: An artifact that the record speaks of is missing or does not decode.
    """
    findings = []
    for announced in sorted(record.checkpoints, key=lambda checkpoint: checkpoint.step):
        if announced.state != "analysed":
            continue
        path = folder.layer_stats(announced.step)
        try:
            findings.append(Finding(announced, read_layer_stats(path), path))
        except (ArchiveUnavailable, ArtifactInvalid, ArtifactMissing) as error:
            msg = f"the artifact of checkpoint {announced.step} is not as it must be: {error}"
            raise DemoFailed(msg) from error
    return findings


def shortcomings(findings: Sequence[Finding], *, expected_steps: Sequence[int]) -> list[str]:
    """What is missing for the demo to have shown what it must; empty when all is there."""
    steps = [finding.announced.step for finding in findings]
    lacking = [str(step) for step in expected_steps if step not in steps]
    with_drift = sum(finding.has_drift for finding in findings)
    unscored = [str(finding.announced.step) for finding in findings if not _is_scored(finding.announced)]
    missing = []
    if lacking:
        missing.append(f"no analysis of checkpoint {', '.join(lacking)}")
    if len(findings) < LEAST_ANALYSED:
        missing.append(f"{len(findings)} checkpoints analysed, at least {LEAST_ANALYSED} are expected")
    if with_drift < LEAST_WITH_DRIFT:
        missing.append(f"{with_drift} of them with drift, at least {LEAST_WITH_DRIFT} are expected")
    if unscored:
        missing.append(f"no skill scores for checkpoint {', '.join(unscored)}")
    if not any(score > 0 for finding in findings for score in finding.announced.skills.values()):
        missing.append("no skill score is above 0: nothing was learned")
    return missing


def table(findings: Sequence[Finding]) -> Table:
    """A row a checkpoint: what it can do, and what changed since the one before."""
    shown = Table(title="Scores, and what changed since the checkpoint before", title_justify="left")
    for heading in ("step", *SKILLS, "eval loss"):
        shown.add_column(heading, justify="right")
    shown.add_column("most changed block", no_wrap=True)
    for heading in ("its rel. L2", "rel. L2", "changed"):
        shown.add_column(heading, justify="right")
    shown.caption, shown.caption_justify = "rel. L2: norm of the change over the norm of the earlier weights", "left"
    for finding in findings:
        shown.add_row(*_row(finding))
    return shown


def impact_table(impact: SkillImpact) -> Table:
    """A row a skill: which block moves with it, and what so few checkpoints and samples support."""
    shown = Table(title="Skill impact: which block moves when a score does", title_justify="left")
    shown.add_column("skill")
    for heading in ("samples", "used"):
        shown.add_column(heading, justify="right")
    shown.add_column("supports")
    shown.add_column("first block", no_wrap=True)
    for heading in ("ρ", "p"):
        shown.add_column(heading, justify="right")
    shown.caption, shown.caption_justify = (
        "used: intervals whose change of score is more than chance; ρ: Spearman",
        "left",
    )
    for skill in impact.skills.values():
        kind = support(skill)
        first = skill.layers[0] if skill.layers and kind != "none" else None
        shown.add_row(
            skill.skill,
            _samples(skill.num_samples),
            f"{skill.intervals_used} of {len(skill.intervals)}",
            SUPPORTED[kind],
            first.layer if first else "",
            _number(first.spearman if first else None, "{:.2f}"),
            _number(first.p_adjusted if first else None, "{:.3f}"),
        )
    return shown


def impact_words(impact: SkillImpact) -> list[str]:
    """What each skill's intervals support, and what nothing here supports."""
    sentences = [f"{skill.skill}: {skill.supports}" for skill in impact.skills.values()]
    return [*sentences, *dict.fromkeys(skill.does_not_support for skill in impact.skills.values())]


def _samples(sizes: Sequence[int | None]) -> str:
    known = sorted({size for size in sizes if size is not None})
    return f"{known[0]} to {known[-1]}" if len(known) > 1 else _number(known[0] if known else None, "{:d}")


def _row(finding: Finding) -> list[str]:
    announced, drift = finding.announced, finding.artifact.global_drift_stats
    scores = [_number(announced.skills.get(skill), "{:.2f}") for skill in SKILLS]
    start = [str(announced.step), *scores, _number(announced.metrics.get("eval_loss"), "{:.3f}")]
    if drift is None:
        return [*start, "(the first)", "", "", ""]
    block = drift.most_changed_layer_relative
    of_block = finding.artifact.drift_stats[block].relative_l2 if block in finding.artifact.drift_stats else None
    return [
        *start,
        block or "",
        _number(of_block, "{:.3f}"),
        _number(drift.relative_l2, "{:.3f}"),
        _number(drift.changed_fraction, "{:.1%}"),
    ]


def _is_scored(announced: SeenCheckpoint) -> bool:
    return all(skill in announced.skills for skill in SKILLS)


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)  # noqa: RUF001 -- a dash stands for no number
