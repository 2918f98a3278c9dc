"""The findings over a whole campaign, from its summaries and its newest artifact. Page, report and terminal call it.

Never more than the sample supports: what was not measured is called that, and each sentence says what it rests on.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from archaeologist.findings import health as of_health
from archaeologist.findings import skills as of_skills
from archaeologist.findings.function import function
from archaeologist.findings.movement import FEWEST, Comparison, Move, compared, leader, movement, resolution
from archaeologist.findings.wording import at, counted, known_step, labels, listed
from contracts.artifacts import (
    DriftTimeline,
    HealthTimeline,
    LayerStability,
    LayerStats,
    LeftOut,
    OutputDrift,
    SkillImpact,
    StabilityReport,
)
from contracts.findings import Evidence, Finding, FindingSeverity

MOST: Final = 6
FEWEST_COMPARISONS: Final = 4
"""For a sentence about which block leads."""
NEWEST: Final = 50
"""Comparisons that such a sentence looks at: what led long ago leads nothing now."""
FEWEST_INTERVALS: Final = 4
"""Without them no block is said to be thrashing, whatever a report says."""

SEVERITIES: Final[dict[FindingSeverity, int]] = {"critical": 0, "warning": 1, "success": 2, "info": 2}
TOPICS: Final = (
    "alert",
    "coverage",
    "movement",
    "resolution",
    "collapse",
    "function",
    "thrashing",
    "skill",
    "leader",
    "frozen",
    "left_out",
)
"""Among findings of one severity, the first comes first."""


def findings(
    timeline: DriftTimeline,
    health: HealthTimeline,
    *,
    stability: StabilityReport | None = None,
    skills: SkillImpact | None = None,
    newest: LayerStats | None = None,
) -> tuple[Finding, ...]:
    """At most six findings, the most important first.

    Args:
        timeline: Of the campaign; so are the others.
        health: Covers checkpoints without drift too.
        stability: None: nothing is said of how blocks move over time.
        skills: None: nothing is said of skills.
        newest: The newest checkpoint's artifact, which names dtypes and the parts of blocks.
    """
    left_out = {
        one.file: one for summary in (timeline, health, stability, skills) if summary for one in summary.left_out
    }
    if not health.checkpoints and not timeline.checkpoints:
        return ranked([_nothing(bool(left_out)), *_left_out(left_out.values())])
    reason = newest.not_computed.get("activations") if newest else None
    found = [
        *of_health.findings(health, reason=reason),
        *_drift(timeline, health, newest),
        *(_stability(stability) if stability else []),
        *of_skills.findings(skills),
        *_left_out(left_out.values()),
    ]
    return ranked(found)


def ranked(found: Iterable[Finding]) -> tuple[Finding, ...]:
    """The six most important, in order."""
    ordered = sorted(found, key=lambda one: (SEVERITIES[one.severity], TOPICS.index(one.topic)))
    return tuple(ordered[:MOST])


def _nothing(has_unreadable: bool) -> Finding:  # noqa: FBT001 -- one caller
    text = "No checkpoint could be read." if has_unreadable else "No checkpoint has been analysed yet."
    return Finding(topic="coverage", severity="info", text=text, confidence="low")


# Drift.


def _drift(timeline: DriftTimeline, health: HealthTimeline, newest: LayerStats | None) -> list[Finding]:
    if not timeline.checkpoints:
        text = "Not measured: drift. No checkpoint was compared with a reference."
        basis = f"{counted(len(health.checkpoints), 'checkpoint')} analysed"
        return [Finding(topic="coverage", severity="info", text=text, basis=basis, confidence="low")]
    place = len(timeline.checkpoints) - 1
    step = timeline.checkpoints[place]
    is_there = newest is not None and newest.checkpoint_step == step and bool(newest.drift_stats)
    found = _from_artifact(newest) if newest is not None and is_there else comparison(timeline, place)
    functional = _function(timeline, newest if is_there else None, reference=found.reference_step)
    told = [movement(found), resolution(found), functional, _leader(timeline)]
    return [one for one in told if one is not None]


def comparison(timeline: DriftTimeline, place: int) -> Comparison:
    """What the timeline says of one of its checkpoints."""
    return Comparison(
        moves=tuple(
            Move(
                name=name,
                kind=layer.layer_type,
                relative=at(layer.relative_l2, place),
                changed=at(layer.changed_fraction, place),
                is_below_resolution=at(layer.below_resolution, place),
            )
            for name, layer in timeline.layers.items()
            if at(layer.changed_fraction, place) is not None
        ),
        step=at(timeline.checkpoints, place),
        reference_step=known_step(at(timeline.reference_steps, place)),
    )


def _from_artifact(artifact: LayerStats) -> Comparison:
    return compared(
        artifact.drift_stats,
        artifact.weight_stats,
        step=artifact.checkpoint_step,
        reference_step=known_step(artifact.reference_checkpoint_step, artifact.reference_checkpoint_path),
    )


def _function(timeline: DriftTimeline, artifact: LayerStats | None, *, reference: int | None) -> Finding | None:
    place = len(timeline.checkpoints) - 1
    step = timeline.checkpoints[place]
    if artifact is not None:
        output = artifact.functional_drift.output if artifact.functional_drift else None
        return function(output, step=step, reference_step=reference, probes=artifact.probe_info)
    output = OutputDrift(kl=at(timeline.kl, place), top1_agreement=at(timeline.top1_agreement, place))
    return function(output, step=step, reference_step=reference)


def _leader(timeline: DriftTimeline) -> Finding | None:
    """The block that moved most in at least half of the newest comparisons."""
    places = range(len(timeline.checkpoints))[-NEWEST:]
    firsts = [first for place in places if (first := leader(comparison(timeline, place).moves))]
    alone = Counter(first.move.name for first in firsts if not first.ties)
    if len(firsts) < FEWEST_COMPARISONS or not alone:
        return None
    name, count = alone.most_common(1)[0]
    if 2 * count < len(firsts):
        return None
    label = labels({name: layer.layer_type for name, layer in timeline.layers.items()})[name]
    newest = "the newest " if len(places) < len(timeline.checkpoints) else ""
    return Finding(
        topic="leader",
        severity="info",
        text=f"{label} moved most in {count} of {newest}{len(firsts)} comparisons.",
        basis=f"those with at least {FEWEST} blocks above the resolution, of {len(places)}; by relative L2",
        evidence=Evidence(block=name, metric="relative_l2"),
    )


# Over time.


def _stability(report: StabilityReport) -> list[Finding]:
    span = f"the last {counted(len(report.checkpoints), 'checkpoint')}"
    thrashing = _supported(report, report.thrashing, FEWEST_INTERVALS)
    frozen = _supported(report, report.frozen, 1)
    names = labels({name: layer.layer_type for name, layer in report.layers.items()})
    found = []
    if thrashing:
        said = listed([names.get(layer.name, layer.name) for layer in thrashing])
        verb = "goes" if len(thrashing) == 1 else "go"
        found.append(
            Finding(
                topic="thrashing",
                severity="warning",
                text=f"{said} {verb} back and forth (thrashing) over {span}.",
                basis=f"at least {_fewest(thrashing)} intervals; directions estimated from sketches",
                evidence=_evidence(thrashing),
            )
        )
    if frozen:
        said = listed([names.get(layer.name, layer.name) for layer in frozen])
        share = f"{len(frozen)} of {counted(len(report.layers), 'block')}"
        found.append(
            Finding(
                topic="frozen",
                severity="info",
                text=f"{share} did not change by a bit over {span}: {said}.",
                basis=f"at least {counted(_fewest(frozen), 'interval')} compared",
                evidence=_evidence(frozen),
            )
        )
    return found


def _supported(report: StabilityReport, names: Sequence[str], fewest: int) -> list[LayerStability]:
    return [report.layers[name] for name in names if name in report.layers and report.layers[name].intervals >= fewest]


def _fewest(layers: Sequence[LayerStability]) -> int:
    return min(layer.intervals for layer in layers)


def _evidence(layers: Sequence[LayerStability]) -> Evidence:
    return Evidence(block=layers[0].name, metric="stability")


# What takes no part.


def _left_out(problems: Iterable[LeftOut]) -> list[Finding]:
    found = sorted(problems, key=lambda one: one.file)
    if not found:
        return []
    verb = "was" if len(found) == 1 else "were"
    files = listed([one.file for one in found])
    return [
        Finding(
            topic="left_out",
            severity="warning",
            text=f"{counted(len(found), 'file')} cannot be used and {verb} left out: {files}.",
            basis=listed(sorted({one.code for one in found})),
            evidence=Evidence(metric="left_out"),
        )
    ]
