"""What a run must have left, proved from what it did leave: nothing lost, nothing doubled, nothing torn, nothing over.

Takes a ``History`` of plain data and gives ``Finding``s. It shares no code with the daemon but the types of the
artifacts and events, which are the published contract: it reads keys of JSON and bytes of files and knows how they must
agree. Here are the endings of requests and jobs, the artifacts, and what must be gone; ``telling`` has what was said,
``keeping`` what was kept.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from contracts.artifacts import LayerDrift, LayerStats
from tests.faults.evidence import CANCELLED, COMPLETED, FAILED, Finding, History, Plain, Sent
from tests.faults.keeping import forgotten
from tests.faults.telling import untrue

EVENT_OF: Final = {"done": COMPLETED, "failed": FAILED, "cancelled": CANCELLED}
NEVER: Final = "internal_error"
"""A failure with this code is a defect, whatever was done to the daemon."""


def check(history: History) -> list[Finding]:
    """Everything that must not be; empty when the run proves what it was to prove."""
    events = _by_job(history.events)
    found = [
        *_requests(history, events),
        *_endings(history, events),
        *_artifacts(history, events),
        *(Finding("wrong", "a daemon's log", defect) for defect in history.defects),
        *_left_over(history),
        *_pins(history),
        *untrue(history),
        *forgotten(history),
    ]
    return sorted(set(found))


# Requests: each has a record, and through it exactly one ending.


def _requests(history: History, events: Mapping[str, list[Plain]]) -> Iterator[Finding]:
    refusals = Counter(event["data"]["job_id"] for event in history.events if event["data"].get("job_key") is None)
    jobs_of = _jobs_by_request(history.events)
    for sent in history.sent:
        name = f"request {sent.request_id}"
        record = history.requests.get(sent.request_id)
        if record is None or record["state"] == "received":
            yield Finding("lost", name, "it has no record that says what became of it")
            continue
        if len(jobs_of[sent.request_id]) > 1:
            yield Finding("doubled", name, f"it ended as {len(jobs_of[sent.request_id])} jobs")
        refused = refusals[sent.request_id]
        if record["state"] == "refused":
            yield from _exactly_one(refused, name, "analysis.failed that refuses it")
            yield from _permitted(sent, name, record["error"]["code"])
        elif refused:
            yield Finding("doubled", name, "it was refused and accepted")
        if record["state"] == "accepted":
            yield from _accepted(sent, name, record, history, events)
        elif record["state"] == "skipped" and "skipped" not in sent.endings:
            yield Finding("lost", name, f"it was skipped: {record.get('reason')}")


def _accepted(
    sent: Sent, name: str, record: Plain, history: History, events: Mapping[str, list[Plain]]
) -> Iterator[Finding]:
    key = record["job_key"]
    job = history.jobs.get(key)
    if job is None:
        yield Finding("lost", name, f"its job {key} has no record")
    elif not events[key]:
        yield Finding("lost", name, f"its job {key} ({job['state']}) has no terminal event")
    else:
        yield from _permitted(sent, name, _ending(job))


def _permitted(sent: Sent, name: str, ending: str) -> Iterator[Finding]:
    if ending == NEVER or ending not in sent.endings:
        yield Finding("wrong", name, f"it ended as {ending}, which nothing that was done to it explains")


def _ending(job: Plain) -> str:
    if job["state"] == "failed":
        return str(job["error"]["code"])
    return {"done": "completed"}.get(job["state"], str(job["state"]))


def _exactly_one(count: int, name: str, what: str) -> Iterator[Finding]:
    if count != 1:
        yield Finding("doubled" if count else "lost", name, f"it has {count} {what}")


# Jobs: each run has exactly one terminal event, the last one as the record says.


def _endings(history: History, events: Mapping[str, list[Plain]]) -> Iterator[Finding]:
    for key, job in history.jobs.items():
        name = f"job {key}"
        if job["state"] not in EVENT_OF:
            yield Finding("lost", name, f"it is still {job['state']}")
            continue
        runs = Counter(event["data"]["job_id"] for event in events[key])
        for asker, count in runs.items():
            if count > 1:
                kinds = [event["type"] for event in events[key] if event["data"]["job_id"] == asker]
                yield Finding("doubled", name, f"its run for {asker} ended {count} times: {', '.join(kinds)}")
        run = job["job"].get("run", 1)
        if len(runs) < run:
            yield Finding("lost", name, f"it ran {run} times and ended {len(runs)} times")
        elif len(runs) > run:
            yield Finding("doubled", name, f"it ran {run} times and ended {len(runs)} times")
        if events[key] and events[key][-1]["type"] != EVENT_OF[job["state"]]:
            yield Finding("wrong", name, f"it is {job['state']} and its last event is {events[key][-1]['type']}")
        if job.get("event_sequence") is None:
            yield Finding("lost", name, f"it is {job['state']}, and the event's sequence is not recorded")
    for key in sorted(set(events) - set(history.jobs)):
        yield Finding("wrong", f"job {key}", "it has an event and no record")


# Artifacts: each completed job has exactly one, whole, and its own.


def _artifacts(history: History, events: Mapping[str, list[Plain]]) -> Iterator[Finding]:
    places: dict[str, list[str]] = defaultdict(list)
    for path, content in history.files.items():
        if path.endswith(".json"):
            key = _key_in(content)
            if key is None:
                yield Finding("torn", path, "it is no JSON object with a job_key")
            else:
                places[key].append(path)
    for key, job in history.jobs.items():
        yield from _artifact_of(key, job, places[key], history, events)
    for key in sorted(set(places) - set(history.jobs)):
        yield Finding("wrong", places[key][0], f"it is the artifact of job {key}, which has no record")


def _artifact_of(
    key: str, job: Plain, paths: list[str], history: History, events: Mapping[str, list[Plain]]
) -> Iterator[Finding]:
    name = f"job {key}"
    if not any(event["type"] == COMPLETED for event in events[key]):
        if paths:
            yield Finding("wrong", paths[0], f"it is the artifact of {name}, which never completed")
        return
    if len(paths) != 1:
        yield Finding("doubled" if paths else "lost", name, f"it completed and has {len(paths)} artifacts: {paths}")
        return
    if job["state"] == "done":
        yield from _agreement(key, job, paths[0], history.files[paths[0]])


def _agreement(key: str, job: Plain, path: str, content: bytes) -> Iterator[Finding]:
    is_drift = job["job"]["job_type"] == "layer_drift"
    kind: type[LayerDrift | LayerStats] = LayerDrift if is_drift else LayerStats
    try:
        artifact = msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        yield Finding("torn", path, f"it does not decode: {error}")
        return
    if path != job["artifact_path"] and not path.endswith(f"/superseded/{key}.json"):
        yield Finding("wrong", path, f"it lies neither at {job['artifact_path']} nor among the superseded")
    digest = hashlib.sha256(content).hexdigest()
    if digest != job["artifact_sha256"]:
        yield Finding("torn", path, f"its SHA-256 is {digest}, its record says {job['artifact_sha256']}")
    for what, has, shall in _identity(artifact, job["job"]):
        if has != shall:
            yield Finding("wrong", path, f"its {what} is {has!r}, its record says {shall!r}")


def _identity(artifact: LayerDrift | LayerStats, job: Plain) -> Iterator[tuple[str, object, object]]:
    yield "hero", artifact.hero_id, job["hero_id"]
    yield "campaign", artifact.campaign_id, job["campaign_id"]
    if isinstance(artifact, LayerDrift):
        yield "step", artifact.target_checkpoint_step, job["target"]["step"]
        yield "fingerprint", artifact.target_fingerprint, job["target"]["fingerprint"]
        yield "base's fingerprint", artifact.base_fingerprint, job["reference"]["fingerprint"]
    else:
        yield "step", artifact.checkpoint_step, job["target"]["step"]
        yield "fingerprint", artifact.fingerprint, job["target"]["fingerprint"]
        if artifact.reference_fingerprint is not None:
            yield "reference's fingerprint", artifact.reference_fingerprint, job["reference"]["fingerprint"]


def _key_in(content: bytes) -> str | None:
    try:
        body = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    key = body.get("job_key") if isinstance(body, dict) else None
    return key if isinstance(key, str) else None


# What must be gone.


def _left_over(history: History) -> Iterator[Finding]:
    for path in history.strays:
        yield Finding("left_over", path, "a temporary file")
    for subject in history.queue:
        yield Finding("left_over", subject, "a message on the queue")
    for consumer, count in history.unheard.items():
        if count:
            yield Finding("left_over", consumer, f"{count} messages that nobody acknowledged")
    for number, command in history.processes.items():
        yield Finding("left_over", f"process {number}", command)
    for number in history.gpu_processes:
        yield Finding("left_over", f"process {number}", "it holds memory of the GPU")


def _pins(history: History) -> Iterator[Finding]:
    """With nothing waiting, a campaign needs one pin: of the checkpoint that the next one is compared with."""
    for campaign, record in history.campaigns.items():
        latest = _latest(record)
        job = history.jobs.get(latest["job_key"], {}).get("job") if latest else None
        folder, _, name = job["target"]["read_path"].rpartition("/") if job else ("", "", "")
        if folder.endswith("/.pins") and name not in history.pins.get(campaign, []):
            yield Finding("lost", f"{campaign}/.pins/{name}", "the next checkpoint is compared with what it held")
    for campaign, names in history.pins.items():
        latest = _latest(history.campaigns.get(campaign, {}))
        job = history.jobs.get(latest["job_key"], {}).get("job") if latest else None
        needed = {job["target"]["read_path"].rpartition("/")[2]} if job else set()
        for name in sorted(set(names) - needed):
            yield Finding("left_over", f"{campaign}/.pins/{name}", "a pin that no job and no reference needs")


def _latest(campaign: Plain) -> Plain | None:
    analysed = [
        entry
        for entry in campaign.get("checkpoints", [])
        if entry.get("state") in {"admitted", "analysed"} and entry.get("job_key")
    ]
    return max(analysed, key=lambda entry: int(entry["step"]), default=None)


def _by_job(events: list[Plain]) -> dict[str, list[Plain]]:
    found: dict[str, list[Plain]] = defaultdict(list)
    for event in events:
        if (key := event["data"].get("job_key")) is not None:
            found[key].append(event)
    return found


def _jobs_by_request(events: list[Plain]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for event in events:
        if (key := event["data"].get("job_key")) is not None:
            found[event["data"]["job_id"]].add(key)
    return found
