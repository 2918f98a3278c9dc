"""Which checkpoints are analysed and against what: pure decisions on a campaign's record.

Intake calls these inside a compare-and-set on the record. They are idempotent: a message that comes twice finds its
checkpoint already seen and gets the decision it got the first time.
"""

import math
from collections.abc import Callable, Mapping
from typing import Final, Literal, NamedTuple

import msgspec
from msgspec.structs import replace

from archaeologist.settings import BestReference, PolicySettings
from contracts.messages import JobKey, Side, SkillEvaluated
from contracts.records import CampaignRecord, SeenCheckpoint

MAX_CHECKPOINTS: Final = 1000
"""Checkpoints kept in a campaign's record, about 300 bytes each."""
MAX_BYTES: Final = 700_000
"""Of their entries; with many metrics fewer are kept: a record must stay below the bus's 1 MiB."""

_ROUNDING: Final = 1e-9
"""A score of 0.3 counts as having reached 0.3 although 0.3 / 0.1 is 2.9999999999999996."""


Mark = Literal["admitted", "analysed", "failed"]
"""What became of a checkpoint's job."""


class Observation(NamedTuple):
    """A checkpoint as a trainer announced it, its path and step resolved."""

    step: int
    path: str
    metrics: Mapping[str, float | None]
    skills: Mapping[str, float]
    level: int | None
    model_ref: str | None
    skill_samples: Mapping[str, int] = {}


class Decision(NamedTuple):
    """Whether a checkpoint is analysed, and why or why not."""

    is_wanted: bool
    reason: str


def observe(record: CampaignRecord, seen: Observation, *, policy: PolicySettings) -> CampaignRecord:
    """The record with an announced checkpoint in it, its ordinal given and a level-up noted."""
    known = find(record, seen.step)
    before = known if known is not None and known.path == seen.path else SeenCheckpoint(step=seen.step, path=seen.path)
    is_new = known is None or known.ordinal is None or known.path != seen.path
    level_up = level_up_reason(record, seen.skills, level=seen.level, step_size=policy.level_up_step)
    entry = SeenCheckpoint(
        step=seen.step,
        path=seen.path,
        ordinal=record.announced if known is None or is_new else known.ordinal,
        # Announced again by whoever knows less of it: a watcher sends no metrics.
        metrics={**before.metrics, **seen.metrics},
        skills={**(known.skills if known else {}), **seen.skills},
        skill_samples=_samples(known, seen.skills, samples=_of_scores(seen)),
        level=before.level if seen.level is None else seen.level,
        level_up=(known.level_up if known else None) or level_up,
        model_ref=seen.model_ref or before.model_ref,
        job_key=before.job_key,
        fingerprint=before.fingerprint,
        state=before.state,
    )
    record = _with_scores(_with(record, entry), seen.skills, level=seen.level)
    return replace(record, announced=record.announced + is_new)


def observe_skill(record: CampaignRecord, evaluated: SkillEvaluated, *, policy: PolicySettings) -> CampaignRecord:
    """The record with a skill's score in it, and its level-up noted at the checkpoint that was evaluated."""
    scores = {evaluated.skill: evaluated.score}
    level_up = level_up_reason(record, scores, level=evaluated.level, step_size=policy.level_up_step)
    known = find(record, evaluated.checkpoint_step) or SeenCheckpoint(step=evaluated.checkpoint_step, path="")
    heard = {evaluated.skill: evaluated.num_samples} if evaluated.num_samples is not None else {}
    entry = replace(
        known,
        skills={**known.skills, **scores},
        skill_samples=_samples(known, scores, samples=heard),
        level_up=known.level_up or level_up,
    )
    return _with_scores(_with(record, entry), scores, level=evaluated.level)


def level_up_reason(
    record: CampaignRecord, skills: Mapping[str, float], *, level: int | None, step_size: float
) -> str | None:
    """Why these scores are a level-up: the level rises, or a best score crosses the next multiple of ``step_size``.

    A skill's first score is where it starts, not a level-up.
    """
    if level is not None and record.level is not None and level > record.level:
        return f"level {record.level} → {level}"
    for skill, score in skills.items():
        best = record.best_scores.get(skill)
        if best is not None and _steps_in(score, step_size) > _steps_in(best, step_size):
            return f"{skill} {best:.2f} → {score:.2f}"
    return None


def decide(entry: SeenCheckpoint, policy: PolicySettings) -> Decision:
    """Whether an announced checkpoint is analysed: every Nth, the first always, and each level-up."""
    if not policy.automatic:
        return Decision(is_wanted=False, reason="automatic analyses are off (policy.automatic = false)")
    if entry.ordinal is not None and entry.ordinal % policy.every == 0:
        return Decision(is_wanted=True, reason=f"checkpoint {entry.ordinal + 1} of the campaign, every {policy.every}")
    if policy.on_level_up and entry.level_up:
        return Decision(is_wanted=True, reason=f"level-up: {entry.level_up}")
    return Decision(is_wanted=False, reason=f"not every {policy.every}th checkpoint and no level-up")


def previous(record: CampaignRecord, step: int) -> SeenCheckpoint | None:
    """The nearest lower checkpoint that is analysed or about to be."""
    lower = [entry for entry in _candidates(record) if entry.step < step]
    return max(lower, key=lambda entry: entry.step, default=None)


def awaited(record: CampaignRecord, step: int, *, rules: PolicySettings) -> SeenCheckpoint | None:
    """The wanted checkpoint, announced and yet to be admitted, that ``previous`` will give once it is."""
    admitted = previous(record, step)
    nearer = [
        entry
        for entry in record.checkpoints
        if entry.state == "seen"
        and entry.path
        and (admitted.step if admitted else -1) < entry.step < step
        and decide(entry, rules).is_wanted
    ]
    return max(nearer, key=lambda entry: entry.step, default=None)


def best(record: CampaignRecord, step: int, *, rule: BestReference) -> SeenCheckpoint | None:
    """The analysed checkpoint with the best value of a metric, other than ``step`` itself; the later of equals."""
    sign = 1 if rule.mode == "max" else -1
    scored = [
        (sign * value, entry.step, entry)
        for entry in _candidates(record)
        if entry.step != step and (value := entry.metrics.get(rule.metric)) is not None and math.isfinite(value)
    ]
    return max(scored, key=lambda item: item[:2])[2] if scored else None


def find(record: CampaignRecord, step: int) -> SeenCheckpoint | None:
    """The record's entry of a step."""
    return next((entry for entry in record.checkpoints if entry.step == step), None)


def mark(record: CampaignRecord, target: Side, *, job_key: JobKey, state: Mark) -> CampaignRecord:
    """The record with what became of a checkpoint's ``layer_stats`` job.

    The end of a job never overwrites another one's mark, and what was analysed stays so while its bytes are the same,
    whatever becomes of further jobs of it.
    """
    known = find(record, target.step)
    was_analysed = is_analysed(record, target) or (
        known is not None and (known.job_key, known.state) == (job_key, "analysed")
    )
    if was_analysed and state != "analysed":
        return record
    if known is not None and known.job_key not in {None, job_key} and state != "admitted" and not was_analysed:
        return record
    entry = replace(
        known or SeenCheckpoint(step=target.step, path=target.path),
        job_key=job_key,
        fingerprint=target.fingerprint,
        state=state,
    )
    # A new job has pinned it anew.
    unpinned = None if state == "admitted" else entry.unpinned
    return _with(record, replace(entry, path=entry.path or target.path, unpinned=unpinned))


def is_analysed(record: CampaignRecord, target: Side) -> bool:
    """Whether these bytes of a checkpoint were analysed."""
    known = find(record, target.step)
    return known is not None and known.state == "analysed" and known.fingerprint == target.fingerprint


def unpinned(record: CampaignRecord, step: int, *, reason: str) -> CampaignRecord:
    """The record with why a checkpoint's pin was given up, for whoever misses it as a reference."""
    known = find(record, step)
    return record if known is None else _with(record, replace(known, unpinned=reason))


def _candidates(record: CampaignRecord) -> list[SeenCheckpoint]:
    return [entry for entry in record.checkpoints if entry.state in {"admitted", "analysed"} and entry.job_key]


def _of_scores(seen: Observation) -> dict[str, int]:
    return {skill: size for skill, size in seen.skill_samples.items() if skill in seen.skills}


def _samples(
    known: SeenCheckpoint | None, scores: Mapping[str, float], *, samples: Mapping[str, int]
) -> dict[str, int]:
    """The sample sizes of a checkpoint's scores; another score makes an earlier size void, the same one does not."""
    if known is None:
        return dict(samples)
    kept = {
        skill: size
        for skill, size in known.skill_samples.items()
        if skill not in scores or scores[skill] == known.skills.get(skill)
    }
    return {**kept, **samples}


def _steps_in(score: float, step_size: float) -> float:
    # A score near the largest number overflows when it is divided.
    steps = score / step_size + _ROUNDING
    return math.floor(steps) if math.isfinite(steps) else -math.inf


def _with(record: CampaignRecord, entry: SeenCheckpoint) -> CampaignRecord:
    others = [other for other in record.checkpoints if other.step != entry.step]
    ordered = sorted([*others, entry], key=lambda other: other.step)
    return replace(record, checkpoints=tuple(_thinned(ordered, keep=entry)))


def _thinned(entries: list[SeenCheckpoint], *, keep: SeenCheckpoint) -> list[SeenCheckpoint]:
    """As many as a record may hold: the oldest that were never analysed go first, then the oldest."""
    if len(entries) <= MAX_CHECKPOINTS and len(msgspec.json.encode(entries)) <= MAX_BYTES:
        return entries
    order: Callable[[SeenCheckpoint], tuple[bool, int]] = lambda entry: (entry.job_key is not None, entry.step)  # noqa: E731 -- a sort key
    # The last to go first, so that they are taken while there is room.
    ranked = sorted((entry for entry in entries if entry is not keep), key=order, reverse=True)
    kept, held = {keep.step}, len(msgspec.json.encode(keep))
    for entry in ranked[: MAX_CHECKPOINTS - 1]:
        held += len(msgspec.json.encode(entry)) + 1
        if held > MAX_BYTES:
            break
        kept.add(entry.step)
    return [entry for entry in entries if entry.step in kept]


def _with_scores(record: CampaignRecord, skills: Mapping[str, float], *, level: int | None) -> CampaignRecord:
    scores = dict(record.best_scores)
    for skill, score in skills.items():
        if math.isfinite(score):
            scores[skill] = max(score, scores.get(skill, score))
    levels = [value for value in (record.level, level) if value is not None]
    return replace(record, best_scores=scores, level=max(levels, default=None))
