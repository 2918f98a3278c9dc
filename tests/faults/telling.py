"""Whether what was said is what happened: the Battle Log and the dead letters against the records and the requests."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Final

import msgspec

from contracts.messages import EVENT_DATA, Event
from tests.faults.evidence import (
    ALERT,
    COMPLETED,
    FAILED,
    STARTED,
    TERMINAL,
    Finding,
    History,
    Plain,
    Sent,
    Told,
    by_job,
)

QUEUED: Final = "archaeologist.jobs."
"""With this the subjects of jobs begin."""
MOST_REQUEST_IDS: Final = 100
"""A job's record keeps no more."""


def untrue(history: History) -> Iterator[Finding]:
    """Everything that was said wrongly, twice or not at all, beyond how many endings there are."""
    told = by_job(history.log)
    yield from _messages(history.log)
    for key, job in history.jobs.items():
        yield from _job(key, job, told[key], history)
    yield from _letters(history)
    sent = {each.request_id: each for each in history.sent}
    for request_id, record in history.requests.items():
        yield from _request(request_id, record, sent.get(request_id), history)


# The log: each message is an event as the contract has it, and none is there twice.


def _messages(log: list[Told]) -> Iterator[Finding]:
    for _, message_id, event in log:
        try:
            kind = msgspec.convert(event, Event).type
            msgspec.convert(event["data"], EVENT_DATA[kind])
        except (msgspec.ValidationError, KeyError) as error:
            yield Finding("torn", f"event {message_id}", f"it is not as the contract has it: {error!r}")
    for what, counts in (
        ("Nats-Msg-Id", Counter(told.message_id for told in log)),
        ("id", Counter(str(told.event["id"]) for told in log)),
    ):
        for name, count in counts.items():
            if count > 1:
                yield Finding("doubled", f"event {name}", f"{count} messages of the log have this {what}")


# Jobs: what their events say is what their records say.


def _job(key: str, job: Plain, told: list[Told], history: History) -> Iterator[Finding]:
    name = f"job {key}"
    for message in told:
        for what, says, shall in _identity(message.event["data"], job["job"]):
            if says != shall:
                yield Finding("wrong", name, f"its {message.event['type']} says {what} {says!r}, not {shall!r}")
    ends = [message for message in told if message.event["type"] in TERMINAL]
    yield from _runs(name, ends, history)
    yield from _starts(name, told, ends)
    if not ends:
        return
    last = ends[-1]
    if job.get("event_sequence") not in {None, last.sequence}:
        yield Finding("wrong", name, f"its event is {last.sequence}, its record says {job['event_sequence']}")
    if last.event["data"]["job_id"] == job["job"]["job_id"]:
        for what, says, shall in _outcome(last.event, job):
            if says != shall:
                yield Finding("wrong", name, f"its {last.event['type']} says {what} {says!r}, its record {shall!r}")
    yield from _alerts(name, job, told, ends)


def _identity(data: Plain, job: Plain) -> Iterator[tuple[str, object, object]]:
    for what in ("hero_id", "campaign_id", "job_type"):
        yield what, data.get(what), job[what]
    yield "checkpoint_step", data.get("checkpoint_step"), job["target"]["step"]


def _outcome(event: Plain, job: Plain) -> Iterator[tuple[str, object, object]]:
    data = event["data"]
    yield "attempt", data["attempt"], job.get("attempt", 0)
    if event["type"] == COMPLETED and job["state"] == "done":
        for what in ("artifact_path", "has_drift", "has_activations", "most_changed_layer"):
            yield what, data.get(what), job.get(what, False if what.startswith("has_") else None)
    elif event["type"] == FAILED and job["state"] == "failed":
        yield "error", data["error"], job["error"]
        yield "request", data["request"], job["job"].get("request", {})
    elif job["state"] == "cancelled":
        yield "by", data["by"], job["cancelled_by"]


def _runs(name: str, ends: list[Told], history: History) -> Iterator[Finding]:
    """A job that ended runs again only where somebody forced it."""
    forced = {sent.request_id: bool(sent.asks.get("force")) for sent in history.sent}
    runs = dict.fromkeys(message.event["data"]["job_id"] for message in ends)
    unforced = [run for run in runs if not forced.get(run)]
    if len(unforced) > 1:
        yield Finding("doubled", name, f"it ran for {', '.join(unforced)}, none of which forced it")


def _starts(name: str, told: list[Told], ends: list[Told]) -> Iterator[Finding]:
    first: dict[str, int] = {}
    for message in told:
        if message.event["type"] == STARTED:
            first.setdefault(message.event["data"]["job_id"], message.sequence)
    for end in ends:
        run = end.event["data"]["job_id"]
        if end.event["type"] == COMPLETED and first.get(run, end.sequence) >= end.sequence:
            yield Finding("lost", name, f"its run for {run} completed and was never said to have started")


def _alerts(name: str, job: Plain, told: list[Told], ends: list[Told]) -> Iterator[Finding]:
    """Each alert of a run is told once, after the run's completed event; those of the last one are the record's."""
    completed = {end.event["data"]["job_id"]: end.sequence for end in ends if end.event["type"] == COMPLETED}
    alerts = [message for message in told if message.event["type"] == ALERT]
    for alert in alerts:
        run = alert.event["data"]["job_id"]
        if completed.get(run, alert.sequence) >= alert.sequence:
            yield Finding("wrong", name, f"an alert of its run for {run} came before the run completed, or alone")
    of_run = [message.event["data"] for message in alerts if message.event["data"]["job_id"] == job["job"]["job_id"]]
    shall = Counter(map(warning, job.get("alerts", ()))) if job["state"] == "done" else Counter()
    says = Counter(map(warning, of_run))
    for one in sorted(shall | says):
        if says[one] != shall[one]:
            kind = "lost" if says[one] < shall[one] else "doubled"
            yield Finding(kind, name, f"its alert {one} was told {says[one]} times, its record has {shall[one]}")


def warning(alert: Plain) -> str:
    """What makes an alert this one."""
    return " ".join(str(alert.get(part)) for part in ("severity", "family", "metric", "block", "value"))


# Dead letters: one for each refused request and for each run that failed, with the message as it was.


def _letters(history: History) -> Iterator[Finding]:
    runs, refused = Counter[tuple[str, str, str]](), Counter[tuple[str, str, str]]()
    for letter in history.letters:
        body = _object(letter.data)
        if letter.subject.startswith(QUEUED):
            runs[letter.subject.rpartition(".")[2], str(body.get("job_id")), letter.code] += 1
            if body.get("job_key") != letter.subject.rpartition(".")[2]:
                yield Finding("torn", f"letter of {letter.subject}", "it does not hold that job")
        else:
            refused[letter.subject, str(body.get("request_id")), letter.code] += 1
    failed = Counter(
        (str(event["data"]["job_key"]), str(event["data"]["job_id"]), str(event["data"]["error"]["code"]))
        for event in history.events
        if event["type"] == FAILED and event["data"].get("job_key")
    )
    yield from _compared("run", runs, failed)
    subject_of = {sent.request_id: sent.subject for sent in history.sent}
    refusals = Counter(
        (subject_of.get(request_id, ""), request_id, str(record["error"]["code"]))
        for request_id, record in history.requests.items()
        if record["state"] == "refused"
    )
    yield from _compared("refusal", refused, refusals)


def _compared(
    what: str, letters: Counter[tuple[str, str, str]], shall: Counter[tuple[str, str, str]]
) -> Iterator[Finding]:
    for one in sorted(letters | shall):
        if letters[one] != min(1, shall[one]):
            kind = "lost" if not letters[one] else "doubled"
            yield Finding(kind, f"letter of {what} {' '.join(one)}", f"there are {letters[one]}")


def _object(data: bytes) -> Plain:
    try:
        body = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return body if isinstance(body, dict) else {}


# Requests: the record is of what was sent, and the job is what it asked for.


def _request(request_id: str, record: Plain, sent: Sent | None, history: History) -> Iterator[Finding]:
    name = f"request {request_id}"
    if sent is None:
        yield Finding("wrong", name, "it has a record, and nobody sent it")
        return
    digest = hashlib.sha256(sent.subject.encode() + b"\0" + sent.data).hexdigest()
    if record.get("digest") != digest:
        yield Finding("wrong", name, f"its record is of another message: {record.get('digest')}, not {digest}")
    if record["state"] == "refused":
        yield from _refusal(name, record, sent, history)
    job = history.jobs.get(record.get("job_key") or "")
    if record["state"] == "accepted" and job is not None:
        for what, has, shall in _asked(sent, job["job"]):
            if has != shall:
                yield Finding("wrong", name, f"its job's {what} is {has!r}, it asked for {shall!r}")
        askers = job.get("request_ids", ())
        if request_id not in askers and len(askers) < MOST_REQUEST_IDS:
            yield Finding("lost", name, f"job {record['job_key']} does not know that it asked")


def _refusal(name: str, record: Plain, sent: Sent, history: History) -> Iterator[Finding]:
    for event in history.events:
        data = event["data"]
        if data.get("job_key") is None and data["job_id"] == sent.request_id:
            if data["error"] != record["error"]:
                yield Finding("wrong", name, f"its analysis.failed says {data['error']}, its record {record['error']}")
            if data["request"] != sent.asks:
                yield Finding("wrong", name, f"its analysis.failed shows another request: {data['request']}")


def _asked(sent: Sent, job: Plain) -> Iterator[tuple[str, object, object]]:
    asks = sent.asks
    for what in ("hero_id", "campaign_id"):
        yield what, job[what], asks[what]
    yield "job_type", job["job_type"], asks.get("job_type", "layer_stats")
    for step in ("checkpoint_step", "target_checkpoint_step"):
        if step in asks:
            yield step, job["target"]["step"], asks[step]
    reference = job.get("reference") or {}
    for step in ("base_checkpoint_step", "reference_checkpoint_step"):
        if step in asks:
            yield step, reference.get("step"), asks[step]
    if asks.get("reference") == "none":
        yield "reference", job.get("reference"), None
    if "model_ref" in asks:
        yield "model_ref", job["options"].get("model_ref"), asks["model_ref"]
    if job["job_id"] == sent.request_id:
        yield "request", job.get("request"), asks
