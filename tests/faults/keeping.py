"""Whether what was learnt was kept: campaigns' records, scores, summaries, sketches, and the artifact in each place."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeVar

import msgspec

from contracts.artifacts import DriftTimeline, HealthTimeline, LayerStats, SkillHistory
from tests.faults.evidence import COMPLETED, STARTED, Finding, History, Plain, Told, by_job
from tests.faults.telling import warning

SAVED: Final = "checkpoint.saved"
EVALUATED: Final = "skill.evaluated"
HEALTH: Final = "health_timeline.json"
DRIFT: Final = "layer_drift_timeline.json"
SCORES: Final = "skills.json"
FOLDER: Final = "/layer_stats/"
STAND_IN: Final = b"sketch"
"""What the campaign's fast children write for a sketch."""

T = TypeVar("T")
Scores = dict[str, dict[int, float]]
"""By skill and step."""


def forgotten(history: History) -> Iterator[Finding]:
    """Everything that was heard or found out and is not where it must be."""
    yield from _places(history)
    yield from _sketches(history)
    announced = _announced(history)
    scores = _scores(history)
    for campaign in sorted(set(history.campaigns) | set(announced)):
        record = history.campaigns.get(campaign, {})
        yield from _record(campaign, record, announced.get(campaign, set()), history)
        yield from _heard(campaign, record, scores.get(campaign, {}), history.summaries.get(campaign, {}))
    for campaign, artifacts in _in_place(history).items():
        yield from _summaries(campaign, artifacts, history.summaries.get(campaign, {}))


# Artifacts of several jobs that want one place: it is never empty, and the last that completed has it.


def _places(history: History) -> Iterator[Finding]:
    told = by_job(history.log)
    wanted: dict[str, list[str]] = defaultdict(list)
    for key, job in history.jobs.items():
        if job["state"] == "done":
            wanted[job["artifact_path"]].append(key)
    for path, keys in wanted.items():
        if path not in history.files:
            yield Finding("lost", path, f"nothing lies here, where {len(keys)} jobs completed")
            continue
        owner = _key(history.files[path])
        completed = max((message.sequence for message in _of(told[owner], COMPLETED)), default=None)
        for key in keys:
            started = max((message.sequence for message in _of(told[key], STARTED)), default=0)
            if key != owner and completed is not None and started > completed:
                yield Finding("wrong", path, f"it is job {owner}'s, after whose end job {key} began and completed")


def _of(told: list[Told], kind: str) -> list[Told]:
    return [message for message in told if message.event["type"] == kind]


def _key(content: bytes) -> str:
    try:
        return str(msgspec.json.decode(content)["job_key"])
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
        return ""


def _sketches(history: History) -> Iterator[Finding]:
    for key, job in history.jobs.items():
        path = job.get("sketch_path")
        if job["state"] != "done" or path is None:
            continue
        if path not in history.sketches:
            yield Finding("lost", path, f"job {key} made a sketch, and none is here")
        elif not _is_whole(history.sketches[path]):
            yield Finding("torn", path, "it is no whole safetensors file")


def _is_whole(content: bytes) -> bool:
    if content == STAND_IN:
        return True
    length = int.from_bytes(content[:8], "little")
    try:
        header = msgspec.json.decode(content[8 : 8 + length])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return len(content) == 8 + length + max(ends, default=0)


# What trainers said.


def _announced(history: History) -> dict[str, set[int]]:
    found: dict[str, set[int]] = defaultdict(set)
    for sent in history.sent:
        if sent.subject == SAVED:
            found[f"{sent.asks['hero_id']}/{sent.asks['campaign_id']}"].add(sent.asks["checkpoint_step"])
    return found


def _scores(history: History) -> dict[str, Scores]:
    """What was sent, and that is one score for each skill and step."""
    found: dict[str, Scores] = defaultdict(lambda: defaultdict(dict))
    for sent in history.sent:
        asks = sent.asks
        of_campaign = found[f"{asks['hero_id']}/{asks['campaign_id']}"]
        if sent.subject == SAVED:
            for skill, score in asks.get("skills", {}).items():
                of_campaign[skill][asks["checkpoint_step"]] = score
        elif sent.subject == EVALUATED:
            of_campaign[asks["skill"]][asks["checkpoint_step"]] = asks["score"]
    return found


def _record(campaign: str, record: Plain, announced: set[int], history: History) -> Iterator[Finding]:
    entries = record.get("checkpoints", [])
    steps = [entry["step"] for entry in entries]
    if len(set(steps)) != len(steps):
        yield Finding("doubled", campaign, "a checkpoint is in its record twice")
    ordinals = {entry["step"]: entry["ordinal"] for entry in entries if entry.get("ordinal") is not None}
    for step in sorted(announced - set(ordinals)):
        yield Finding("lost", campaign, f"checkpoint {step} was announced and its record does not say so")
    if sorted(ordinals.values()) != list(range(len(announced))) or record.get("announced", 0) != len(announced):
        yield Finding(
            "wrong", campaign, f"{len(announced)} were announced; it counts {record.get('announced')}: {ordinals}"
        )
    for entry in entries:
        job = history.jobs.get(entry.get("job_key") or "")
        if job is not None and job["state"] == "done" and entry.get("state") != "analysed":
            yield Finding("lost", campaign, f"job of checkpoint {entry['step']} is done, its record: {entry['state']}")


def _heard(campaign: str, record: Plain, scores: Scores, files: Mapping[str, bytes]) -> Iterator[Finding]:
    kept: Scores = defaultdict(dict)
    for entry in record.get("checkpoints", []):
        for skill, score in entry.get("skills", {}).items():
            kept[skill][entry["step"]] = score
    if kept != scores:
        yield Finding("lost", campaign, f"its record does not have the scores that were sent: {_first(scores, kept)}")
    best = {skill: max(by_step.values()) for skill, by_step in scores.items()}
    if record.get("best_scores", {}) != best:
        yield Finding("wrong", campaign, f"its best scores are {record.get('best_scores')}, not {best}")
    history = _decoded(files.get(SCORES, b"{}"), SkillHistory) if scores else None
    if history is not None:
        pairs = [(skill, score.step, score.score) for skill, found in history.skills.items() for score in found]
        shall = sorted((skill, step, score) for skill, found in scores.items() for step, score in found.items())
        if sorted(pairs) != shall:
            yield Finding("lost", f"{campaign}/{SCORES}", f"it has {len(pairs)} scores, {len(shall)} were sent")
    elif scores:
        yield Finding("torn", f"{campaign}/{SCORES}", "it does not decode, or is not there")


def _first(shall: Scores, has: Scores) -> object:
    for skill, by_step in shall.items():
        for step, score in by_step.items():
            if not math.isclose(has.get(skill, {}).get(step, math.nan), score):
                return skill, step, score
    return "there are more"


# What the artifacts say together.


def _in_place(history: History) -> dict[str, list[LayerStats]]:
    """The ``layer_stats`` artifacts in their places, by campaign."""
    found: dict[str, list[LayerStats]] = defaultdict(list)
    for path, content in history.files.items():
        artifact = _decoded(content, LayerStats) if FOLDER in path else None
        if artifact is not None:
            found[f"{artifact.hero_id}/{artifact.campaign_id}"].append(artifact)
    return found


def _summaries(campaign: str, artifacts: list[LayerStats], files: Mapping[str, bytes]) -> Iterator[Finding]:
    artifacts = sorted(artifacts, key=lambda artifact: artifact.checkpoint_step)
    health, drift = _decoded(files.get(HEALTH), HealthTimeline), _decoded(files.get(DRIFT), DriftTimeline)
    for name, timeline in ((HEALTH, health), (DRIFT, drift)):
        if timeline is None:
            yield Finding("torn", f"{campaign}/{name}", "it does not decode, or is not there")
        elif timeline.left_out:
            yield Finding("lost", f"{campaign}/{name}", f"it leaves out {timeline.left_out[0]}")
    if health is not None:
        has = list(zip(health.checkpoints, health.created_at, strict=False))
        shall = [(artifact.checkpoint_step, artifact.created_at) for artifact in artifacts]
        yield from _differing(f"{campaign}/{HEALTH}", "checkpoints", has, shall)
        alerts = [f"{alert.checkpoint_step} {warning(msgspec.to_builtins(alert))}" for alert in health.alerts]
        of_all = [f"{a.checkpoint_step} {warning(msgspec.to_builtins(alert))}" for a in artifacts for alert in a.alerts]
        yield from _differing(f"{campaign}/{HEALTH}", "alerts", sorted(alerts), sorted(of_all))
    if drift is not None:
        compared = [artifact.checkpoint_step for artifact in artifacts if artifact.drift_stats]
        yield from _differing(f"{campaign}/{DRIFT}", "checkpoints", list(drift.checkpoints), compared)


def _differing(name: str, what: str, has: list[Any], shall: list[Any]) -> Iterator[Finding]:
    missing, more = [one for one in shall if one not in has], [one for one in has if one not in shall]
    if missing:
        yield Finding("lost", name, f"it lacks {len(missing)} {what}, {missing[0]} for one")
    if more or (not missing and has != shall):
        yield Finding("wrong", name, f"its {what} are more than the artifacts': {more[:1] or has}")


def _decoded(content: bytes | None, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(content or b"", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
