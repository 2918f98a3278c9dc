"""The checker finds what is wrong in doctored histories, each by its kind, and nothing in a clean one."""

import asyncio
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from archaeologist.daemon import announcements
from archaeologist.daemon.child import child_environment
from archaeologist.settings import Settings
from contracts.artifacts import DriftTimeline, HealthAlert, HealthTimeline, LayerStats, SkillHistory, SkillScore
from contracts.messages import EventError, Job, JobKey, RequestId, Side, encode
from contracts.records import JobRecord, JobState
from tests.faults.checker import check
from tests.faults.evidence import History, Letter, Sent, Told
from tests.faults.history import processes_of, read_files
from tests.fixtures.child import alerts, artifact
from tests.fixtures.jobs import layer_stats_job
from tests.fixtures.waiting import until

NOW = datetime(2026, 11, 23, tzinfo=UTC)
FINE = frozenset({"completed", "worker_lost"})
CAMPAIGN = "dio/c1"
ANALYSIS = "/r/campaigns/dio/c1/analysis"
STATS = f"{ANALYSIS}/layer_stats"
SKETCH = f"{ANALYSIS}/sketches/1.safetensors"
PIN = "2-f2"


def job(key: str, step: int) -> Job:
    """A ``layer_stats`` job of a request that asked for it."""
    side = Side(path=f"/c/{step}", step=step, read_path=f"/c/.pins/{step}-f{step}", fingerprint=f"f{step}")
    made = layer_stats_job(side, job_key=JobKey(key), job_id=RequestId(f"r-{key}"))
    asked = {"request_id": made.job_id, "hero_id": "dio", "campaign_id": "c1", "checkpoint_step": step}
    return replace(made, request=asked, created_at=f"2026-11-23T00:00:0{step}Z")


def record_of(made: Job, state: JobState, **more: Any) -> JobRecord:
    """A finished record, without what says that it was announced."""
    changes = {"request_ids": (made.job_id,), "claim": 1, "owner": "box:1", "attempt": 1, **more}
    return JobRecord(job=made, state=state, queued_at="2026-11-23T00:00:00Z", **changes)


def ask(history: History, fields: dict[str, Any], endings: frozenset[str], *, subject: str, **record: Any) -> None:
    """A request that was sent, and its record."""
    data = json.dumps(fields).encode()
    digest = hashlib.sha256(subject.encode() + b"\0" + data).hexdigest()
    history.sent.append(Sent(fields["request_id"], endings, subject, data))
    history.requests[fields["request_id"]] = {"digest": digest, **record}


def tell(history: History, event: Any, message_id: str) -> int:
    """Puts an event into the log; its sequence."""
    history.log.append(Told(len(history.log) + 1, message_id, msgspec.to_builtins(event)))
    return len(history.log)


def live(history: History, record: JobRecord, endings: frozenset[str], *, subject: str = "analysis.requested") -> None:
    """The whole life of a job as a run leaves it, its artifact apart."""
    made = record.job
    fields = made.request
    if subject == "checkpoint.saved":
        fields = {**fields, "skills": {"BIN": made.target.step / 10}}
        record = replace(record, job=replace(made, request=fields))
    if record.state != "cancelled":
        tell(history, announcements.started(record, worker="box", device="cpu", now=NOW), f"{made.job_key}:1:started")
    ends = [tell(history, *announced) for announced in announcements.ending(record, worker="box", now=NOW)]
    history.jobs[made.job_key] = msgspec.to_builtins(replace(record, event_sequence=ends[0]))
    ask(history, fields, endings, subject=subject, state="accepted", job_key=made.job_key)
    if record.error is not None:
        queued = f"archaeologist.jobs.layer_stats.normal.{made.job_key}"
        history.letters.append(Letter(record.error.code, queued, "ARCHAEOLOGIST_JOBS", 1, encode(record.job)))


def finish(history: History, made: Job, *, path: str, lies: str | None = None, **more: Any) -> LayerStats:
    """A job that is done, and its artifact at ``lies`` or ``path``."""
    is_announced = made.job_key in {"a", "b"}
    done = replace(artifact(made), alerts=alerts(2 if made.job_key == "a" else 0))
    assert isinstance(done, LayerStats)
    content = encode(done)
    history.files[lies or path] = content
    record = record_of(
        made,
        "done",
        artifact_path=path,
        artifact_sha256=hashlib.sha256(content).hexdigest(),
        alerts=done.alerts,
        **more,
    )
    live(history, record, FINE, subject="checkpoint.saved" if is_announced else "analysis.requested")
    return done


@pytest.fixture
def clean() -> History:
    """Four completed jobs, one of them superseded by another, a failed, a cancelled and a refused request."""
    history = History()
    one = finish(history, job("a", 1), path=f"{STATS}/1.json", sketch_path=SKETCH)
    two = finish(history, job("b", 2), path=f"{STATS}/2.json")
    finish(history, job("old", 3), path=f"{STATS}/3.json", lies=f"{ANALYSIS}/superseded/old.json")
    three = finish(history, replace(job("new", 3), created_at="later"), path=f"{STATS}/3.json")
    crash = EventError(code="job_crashed", message="m")
    live(history, record_of(job("f", 4), "failed", error=crash), frozenset({"job_crashed"}))
    live(history, record_of(job("c", 5), "cancelled", cancelled_by="me"), frozenset({"cancelled"}))
    refuse(history)
    history.sketches[SKETCH] = b"sketch"
    history.campaigns[CAMPAIGN] = {
        "announced": 2,
        "best_scores": {"BIN": 0.2},
        "checkpoints": [
            {"step": 1, "ordinal": 0, "skills": {"BIN": 0.1}, "state": "analysed", "job_key": "a"},
            {"step": 2, "ordinal": 1, "skills": {"BIN": 0.2}, "state": "analysed", "job_key": "b"},
        ],
    }
    history.pins[CAMPAIGN] = [PIN]
    history.summaries[CAMPAIGN] = summaries([one, two, three])
    return history


def refuse(history: History) -> None:
    """A request for a checkpoint elsewhere."""
    fields = {"request_id": "bad", "hero_id": "dio", "campaign_id": "c1", "checkpoint_path": "/etc"}
    error = EventError(code="path_outside_root", message="m")
    data = json.dumps(fields).encode()
    event = announcements.refused(error, request_id=RequestId("bad"), body=data, now=NOW)
    tell(history, event, "bad:refused")
    history.letters.append(Letter(error.code, "analysis.requested", "REQUESTS", 7, data))
    ask(
        history,
        fields,
        frozenset({error.code}),
        subject="analysis.requested",
        state="refused",
        error=msgspec.to_builtins(error),
    )


def summaries(artifacts: list[LayerStats]) -> dict[str, bytes]:
    """What they say together, and the scores."""
    told = [
        HealthAlert(checkpoint_step=one.checkpoint_step, **msgspec.structs.asdict(alert))
        for one in artifacts
        for alert in one.alerts
    ]
    names: dict[str, Any] = {"hero_id": "dio", "campaign_id": "c1"}
    health = HealthTimeline(
        **names,
        checkpoints=tuple(one.checkpoint_step for one in artifacts),
        created_at=tuple(one.created_at for one in artifacts),
        alerts=tuple(told),
    )
    scores = (SkillScore(step=1, score=0.1), SkillScore(step=2, score=0.2))
    return {
        "health_timeline.json": encode(health),
        "layer_drift_timeline.json": encode(DriftTimeline(**names)),
        "skills.json": encode(SkillHistory(**names, skills={"BIN": scores})),
    }


def place_of(history: History, message_id: str) -> int:
    """Where a message lies in the log."""
    return next(place for place, told in enumerate(history.log) if told.message_id == message_id)


def change(history: History, message_id: str, **data: Any) -> None:
    """Has an event say something else."""
    place = place_of(history, message_id)
    told = history.log[place]
    history.log[place] = told._replace(event={**told.event, "data": {**told.event["data"], **data}})


def found(history: History) -> set[tuple[str, str]]:
    return {(finding.kind, finding.what) for finding in check(history)}


def test_a_clean_history_has_no_finding(clean: History) -> None:
    assert check(clean) == []


# Each doctoring does one thing that must not be.


def a_lost_event(history: History) -> None:
    del history.log[place_of(history, "a:completed")]


def a_doubled_event(history: History) -> None:
    history.log.append(history.log[place_of(history, "a:completed")])


def a_completed_job_that_failed_too(history: History) -> None:
    told = history.log[place_of(history, "f:failed")]
    data = {**told.event["data"], "job_key": "a", "job_id": "r-a", "checkpoint_step": 1}
    history.log.append(Told(99, "a:failed", {**told.event, "id": "other", "data": data}))


def a_refusal_that_nobody_was_told(history: History) -> None:
    del history.log[place_of(history, "bad:refused")]


def a_request_that_was_refused_and_accepted(history: History) -> None:
    change(history, "bad:refused", job_id="r-a")


def a_request_that_became_two_jobs(history: History) -> None:
    change(history, "c:cancelled", job_id="r-a")


def a_request_without_a_record(history: History) -> None:
    del history.requests["r-a"]


def a_request_that_was_decided_and_not_carried_out(history: History) -> None:
    history.requests["r-a"]["state"] = "received"


def a_job_without_a_record(history: History) -> None:
    del history.jobs["a"]


def a_job_that_still_runs(history: History) -> None:
    history.jobs["a"]["state"] = "running"


def a_run_that_never_ended(history: History) -> None:
    history.jobs["a"]["job"]["run"] = 2


def an_event_whose_sequence_is_not_recorded(history: History) -> None:
    history.jobs["a"]["event_sequence"] = None


def an_event_that_says_something_else(history: History) -> None:
    place = place_of(history, "a:completed")
    told = history.log[place]
    history.log[place] = told._replace(event={**told.event, "type": "analysis.cancelled"})


# What is said.


def an_event_that_is_none(history: History) -> None:
    change(history, "f:failed", worker=7)


def an_event_told_under_two_ids(history: History) -> None:
    place = place_of(history, "a:1:started")
    told = history.log[place]
    told = history.log[place] = told._replace(event={**told.event, "id": "same"})
    history.log.append(told._replace(sequence=99, message_id="a:2:started"))


def an_id_that_stands_for_two_events(history: History) -> None:
    place = place_of(history, "b:1:started")
    history.log[place] = history.log[place]._replace(message_id="a:1:started")


def an_event_of_another_checkpoint(history: History) -> None:
    change(history, "a:completed", checkpoint_step=2)


def an_event_that_names_another_artifact(history: History) -> None:
    change(history, "a:completed", artifact_path=f"{STATS}/2.json")


def a_failure_told_with_another_reason(history: History) -> None:
    change(history, "f:failed", error={"code": "job_crashed", "message": "other"})


def a_sequence_of_another_event(history: History) -> None:
    history.jobs["a"]["event_sequence"] += 1


def a_run_that_nobody_forced(history: History) -> None:
    told = history.log[place_of(history, "a:completed")]
    again = {**told.event, "id": "other", "data": {**told.event["data"], "job_id": "r-b"}}
    history.log.insert(place_of(history, "a:completed"), Told(99, "a:2:completed", again))
    history.jobs["a"]["job"]["run"] = 2


def a_run_that_never_began(history: History) -> None:
    del history.log[place_of(history, "a:1:started")]


def a_lost_alert(history: History) -> None:
    del history.log[place_of(history, "a:alert:2")]


def a_doubled_alert(history: History) -> None:
    told = history.log[place_of(history, "a:alert:2")]
    history.log.append(Told(99, "a:alert:3", {**told.event, "id": "other"}))


def an_alert_of_a_job_that_failed(history: History) -> None:
    change(history, "a:alert:2", job_key="f", job_id="r-f", checkpoint_step=4)


def a_lost_letter(history: History) -> None:
    history.letters = [letter for letter in history.letters if letter.code != "job_crashed"]


def a_doubled_letter(history: History) -> None:
    history.letters.append(history.letters[-1])


def a_letter_with_another_message(history: History) -> None:
    history.letters[-1] = history.letters[-1]._replace(data=b"{}")


def a_letter_of_a_job_that_completed(history: History) -> None:
    letter = history.letters[0]
    body = json.dumps({"job_key": "a", "job_id": "r-a"}).encode()
    history.letters.append(letter._replace(subject=f"{letter.subject[:-1]}a", data=body))


def a_record_of_a_request_that_nobody_sent(history: History) -> None:
    history.requests["other"] = {"state": "skipped"}


def a_record_of_another_message(history: History) -> None:
    history.requests["r-a"]["digest"] = "0"


def a_job_that_was_not_asked_for(history: History) -> None:
    history.sent[0] = Sent("r-a", FINE, "checkpoint.saved", history.sent[0].data.replace(b'step": 1', b'step": 7'))


def a_job_that_forgot_who_asked(history: History) -> None:
    history.jobs["a"]["request_ids"] = []


# What is kept.


def a_place_that_lies_empty(history: History) -> None:
    history.files[f"{ANALYSIS}/superseded/new.json"] = history.files.pop(f"{STATS}/3.json")


def a_place_that_an_earlier_job_took_back(history: History) -> None:
    files = history.files
    files[f"{ANALYSIS}/superseded/new.json"] = files.pop(f"{STATS}/3.json")
    files[f"{STATS}/3.json"] = files.pop(f"{ANALYSIS}/superseded/old.json")


def a_lost_sketch(history: History) -> None:
    history.sketches.clear()


def half_a_sketch(history: History) -> None:
    history.sketches[SKETCH] = len(header := b'{"a":{"data_offsets":[0,8]}}').to_bytes(8, "little") + header + b"1234"


def a_forgotten_announcement(history: History) -> None:
    del history.campaigns[CAMPAIGN]["checkpoints"][0]


def an_announcement_counted_twice(history: History) -> None:
    history.campaigns[CAMPAIGN]["announced"] = 3


def a_checkpoint_in_a_record_twice(history: History) -> None:
    history.campaigns[CAMPAIGN]["checkpoints"].append({"step": 2, "ordinal": None, "skills": {"BIN": 0.2}})


def a_checkpoint_that_was_not_marked(history: History) -> None:
    history.campaigns[CAMPAIGN]["checkpoints"][0]["state"] = "admitted"


def a_score_that_was_forgotten(history: History) -> None:
    history.campaigns[CAMPAIGN]["checkpoints"][0]["skills"] = {}


def a_best_score_that_is_none(history: History) -> None:
    history.campaigns[CAMPAIGN]["best_scores"] = {"BIN": 0.1}


def a_score_that_was_not_written(history: History) -> None:
    files = history.summaries[CAMPAIGN]
    files["skills.json"] = files["skills.json"].replace(b"0.2", b"0.3")


def a_summary_that_misses_an_artifact(history: History) -> None:
    history.files[f"{STATS}/6.json"] = history.files[f"{STATS}/2.json"].replace(b'step":2', b'step":6')


def a_summary_of_an_artifact_before(history: History) -> None:
    path = f"{STATS}/2.json"
    history.files[path] = history.files[path].replace(b"00:00:02Z", b"00:00:03Z")


def a_summary_that_misses_an_alert(history: History) -> None:
    files = history.summaries[CAMPAIGN]
    files["health_timeline.json"] = files["health_timeline.json"].replace(b'"critical"', b'"warning"')


def half_a_summary(history: History) -> None:
    files = history.summaries[CAMPAIGN]
    files["layer_drift_timeline.json"] = files["layer_drift_timeline.json"][:20]


def a_pin_that_is_gone(history: History) -> None:
    history.pins[CAMPAIGN] = []


def an_artifact_cut_in_half(history: History) -> None:
    path = f"{ANALYSIS}/layer_stats/1.json"
    history.files[path] = history.files[path][: len(history.files[path]) // 2]


def an_artifact_with_one_byte_changed(history: History) -> None:
    path = f"{ANALYSIS}/layer_stats/1.json"
    history.files[path] = history.files[path].replace(b'"python":"3"', b'"python":"4"')


def an_artifact_of_another_type(history: History) -> None:
    history.jobs["a"]["job"]["job_type"] = "layer_drift"


def an_artifact_of_other_bytes(history: History) -> None:
    history.jobs["a"]["job"]["target"]["fingerprint"] = "other"


def a_lost_artifact(history: History) -> None:
    del history.files[f"{ANALYSIS}/layer_stats/1.json"]


def a_doubled_artifact(history: History) -> None:
    history.files[f"{ANALYSIS}/superseded/a.json"] = history.files[f"{ANALYSIS}/layer_stats/1.json"]


def an_artifact_in_the_wrong_place(history: History) -> None:
    history.files[f"{ANALYSIS}/layer_stats/9.json"] = history.files.pop(f"{ANALYSIS}/layer_stats/1.json")


def an_artifact_of_a_failed_job(history: History) -> None:
    history.files[f"{ANALYSIS}/layer_stats/4.json"] = b'{"job_key": "f"}'


def an_artifact_of_nobody(history: History) -> None:
    history.files[f"{ANALYSIS}/layer_stats/9.json"] = b'{"job_key": "nobody"}'


def an_unexplained_failure(history: History) -> None:
    history.jobs["f"]["error"]["code"] = "checkpoint_missing"


def a_defect_that_was_told_as_a_failure(history: History) -> None:
    history.jobs["f"]["error"]["code"] = "internal_error"
    place = next(place for place, sent in enumerate(history.sent) if sent.request_id == "r-f")
    history.sent[place] = dataclasses.replace(history.sent[place], endings=frozenset({"internal_error"}))


def an_error_that_no_daemon_expects(history: History) -> None:
    history.defects.append("a delivery failed: KeyError: 'f'")


def a_temporary_file(history: History) -> None:
    history.strays.append("/r/.a.1.tmp")


def a_pin_too_many(history: History) -> None:
    history.pins[CAMPAIGN].append("1-f1")


def a_message_on_the_queue(history: History) -> None:
    history.queue.append("archaeologist.jobs.layer_stats.low.a")


def a_message_that_nobody_heard(history: History) -> None:
    history.unheard["archaeologist-intake-requests"] = 1


def a_process(history: History) -> None:
    history.processes[4711] = "python -m archaeologist.job"


def memory_of_a_gpu(history: History) -> None:
    history.gpu_processes.append(4711)


@pytest.mark.parametrize(
    ("doctor", "kind", "what"),
    [
        (a_lost_event, "lost", "request r-a"),
        (a_doubled_event, "doubled", "job a"),
        (a_completed_job_that_failed_too, "doubled", "job a"),
        (a_refusal_that_nobody_was_told, "lost", "request bad"),
        (a_request_that_was_refused_and_accepted, "doubled", "request r-a"),
        (a_request_that_became_two_jobs, "doubled", "request r-a"),
        (a_request_without_a_record, "lost", "request r-a"),
        (a_request_that_was_decided_and_not_carried_out, "lost", "request r-a"),
        (a_job_without_a_record, "lost", "request r-a"),
        (a_job_that_still_runs, "lost", "job a"),
        (a_run_that_never_ended, "lost", "job a"),
        (an_event_whose_sequence_is_not_recorded, "lost", "job a"),
        (an_event_that_says_something_else, "wrong", "job a"),
        (an_artifact_cut_in_half, "torn", f"{ANALYSIS}/layer_stats/1.json"),
        (an_artifact_with_one_byte_changed, "torn", f"{ANALYSIS}/layer_stats/1.json"),
        (an_artifact_of_another_type, "torn", f"{ANALYSIS}/layer_stats/1.json"),
        (an_artifact_of_other_bytes, "wrong", f"{ANALYSIS}/layer_stats/1.json"),
        (a_lost_artifact, "lost", "job a"),
        (a_doubled_artifact, "doubled", "job a"),
        (an_artifact_in_the_wrong_place, "wrong", f"{ANALYSIS}/layer_stats/9.json"),
        (an_artifact_of_a_failed_job, "wrong", f"{ANALYSIS}/layer_stats/4.json"),
        (an_artifact_of_nobody, "wrong", f"{ANALYSIS}/layer_stats/9.json"),
        (an_unexplained_failure, "wrong", "request r-f"),
        (a_defect_that_was_told_as_a_failure, "wrong", "request r-f"),
        (an_error_that_no_daemon_expects, "wrong", "a daemon's log"),
        (a_temporary_file, "left_over", "/r/.a.1.tmp"),
        (a_pin_too_many, "left_over", f"{CAMPAIGN}/.pins/1-f1"),
        (a_message_on_the_queue, "left_over", "archaeologist.jobs.layer_stats.low.a"),
        (a_message_that_nobody_heard, "left_over", "archaeologist-intake-requests"),
        (a_process, "left_over", "process 4711"),
        (memory_of_a_gpu, "left_over", "process 4711"),
        (an_event_that_is_none, "torn", "event f:failed"),
        (an_event_told_under_two_ids, "doubled", "event same"),
        (an_id_that_stands_for_two_events, "doubled", "event a:1:started"),
        (an_event_of_another_checkpoint, "wrong", "job a"),
        (an_event_that_names_another_artifact, "wrong", "job a"),
        (a_failure_told_with_another_reason, "wrong", "job f"),
        (a_sequence_of_another_event, "wrong", "job a"),
        (a_run_that_nobody_forced, "doubled", "job a"),
        (a_run_that_never_began, "lost", "job a"),
        (a_lost_alert, "lost", "job a"),
        (a_doubled_alert, "doubled", "job a"),
        (an_alert_of_a_job_that_failed, "wrong", "job f"),
        (a_lost_letter, "lost", "letter of run f r-f job_crashed"),
        (a_doubled_letter, "doubled", "letter of refusal analysis.requested bad path_outside_root"),
        (a_letter_with_another_message, "lost", "letter of refusal analysis.requested bad path_outside_root"),
        (a_letter_of_a_job_that_completed, "doubled", "letter of run a r-a job_crashed"),
        (a_record_of_a_request_that_nobody_sent, "wrong", "request other"),
        (a_record_of_another_message, "wrong", "request r-a"),
        (a_job_that_was_not_asked_for, "wrong", "request r-a"),
        (a_job_that_forgot_who_asked, "lost", "request r-a"),
        (a_place_that_lies_empty, "lost", f"{STATS}/3.json"),
        (a_place_that_an_earlier_job_took_back, "wrong", f"{STATS}/3.json"),
        (a_lost_sketch, "lost", SKETCH),
        (half_a_sketch, "torn", SKETCH),
        (a_forgotten_announcement, "lost", CAMPAIGN),
        (an_announcement_counted_twice, "wrong", CAMPAIGN),
        (a_checkpoint_in_a_record_twice, "doubled", CAMPAIGN),
        (a_checkpoint_that_was_not_marked, "lost", CAMPAIGN),
        (a_score_that_was_forgotten, "lost", CAMPAIGN),
        (a_best_score_that_is_none, "wrong", CAMPAIGN),
        (a_score_that_was_not_written, "lost", f"{CAMPAIGN}/skills.json"),
        (a_summary_that_misses_an_artifact, "lost", f"{CAMPAIGN}/health_timeline.json"),
        (a_summary_of_an_artifact_before, "lost", f"{CAMPAIGN}/health_timeline.json"),
        (a_summary_that_misses_an_alert, "lost", f"{CAMPAIGN}/health_timeline.json"),
        (half_a_summary, "torn", f"{CAMPAIGN}/layer_drift_timeline.json"),
        (a_pin_that_is_gone, "lost", f"{CAMPAIGN}/.pins/{PIN}"),
    ],
)
def test_a_doctored_history_is_seen_through(
    clean: History, doctor: Callable[[History], None], kind: str, what: str
) -> None:
    doctor(clean)
    assert (kind, what) in found(clean)


# What is read from the machine.


def test_files_are_found_where_they_lie(tmp_path: Path) -> None:
    campaign = tmp_path / "campaigns" / "dio" / "c1"
    for name in (".pins/1-f", ".pins/.2-f.12ab.tmp"):
        (campaign / name).mkdir(parents=True)
    for name in ("layer_stats/1.json", "layer_stats/.a.1.tmp", "sketches/.a.1.tmp", "superseded/.a.json.tmp"):
        (campaign / "analysis" / name).parent.mkdir(parents=True, exist_ok=True)
        (campaign / "analysis" / name).write_bytes(b"{}")
    history = History()
    read_files(history, tmp_path)
    analysis = campaign / "analysis"
    assert history.files == {str(analysis / "layer_stats" / "1.json"): b"{}"}
    assert sorted(Path(stray).name for stray in history.strays) == [
        ".2-f.12ab.tmp",
        ".a.1.tmp",
        ".a.1.tmp",
        ".a.json.tmp",
    ]
    assert history.pins == {CAMPAIGN: ["1-f"]}


def of_a_daemon(root: Path) -> dict[str, str]:
    """What a campaign's daemon has in its environment."""
    return {**os.environ, "ARCHAEOLOGIST_ROOT": str(root)}


def of_a_job(root: Path) -> dict[str, str]:
    """What a daemon gives to a job's process."""
    return child_environment(of_a_daemon(root), cache=Settings(root=str(root)).state_path / "cache" / "numba")


@pytest.mark.parametrize("environment", [of_a_daemon, of_a_job])
async def test_a_process_of_the_run_is_found_by_what_it_inherited(
    tmp_path: Path, environment: Callable[[Path], dict[str, str]]
) -> None:
    root = tmp_path / "root"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "input()", env=environment(root), stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    await until(lambda: process.pid in processes_of(root))
    assert processes_of(tmp_path / "roo") == {}
    await process.communicate(b"\n")
    assert processes_of(root) == {}
