"""The checker finds what is wrong in doctored histories, each by its kind, and nothing in a clean one."""

import asyncio
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from contracts.messages import Job, Side, encode
from tests.faults.checker import COMPLETED, History, Sent, check
from tests.faults.history import processes_of, read_files
from tests.fixtures.child import artifact
from tests.fixtures.jobs import layer_stats_job
from tests.fixtures.waiting import until

FINE = frozenset({"completed", "worker_lost"})
CAMPAIGN = "dio/c1"
ANALYSIS = "/r/campaigns/dio/c1/analysis"


def job(key: str, step: int) -> dict[str, Any]:
    """A ``layer_stats`` job as its record has it."""
    side = {"path": f"/c/{step}", "step": step, "read_path": f"/c/.pins/{step}-f{step}", "fingerprint": f"f{step}"}
    made = msgspec.to_builtins(layer_stats_job(msgspec.convert(side, type=Side)))
    return {**made, "job_key": key, "job_id": f"r-{key}"}


def event(kind: str, made: dict[str, Any]) -> dict[str, Any]:
    return {"type": kind, "data": {"job_key": made["job_key"], "job_id": made["job_id"]}}


@pytest.fixture
def clean() -> History:
    """Three completed jobs, one of them superseded, a failed, a cancelled and a refused request."""
    history = History()
    ends = {"a": "done", "b": "done", "old": "done", "f": "failed", "c": "cancelled"}
    for step, (key, state) in enumerate(ends.items(), start=1):
        made = job(key, step)
        record = {"job": made, "state": state, "event_sequence": step}
        kind = {"done": COMPLETED}.get(state, f"analysis.{state}")
        if state == "done":
            content = encode(artifact(msgspec.convert(made, type=Job)))
            path = f"{ANALYSIS}/layer_stats/{step}.json"
            history.files[f"{ANALYSIS}/superseded/old.json" if key == "old" else path] = content
            record |= {"artifact_path": path, "artifact_sha256": hashlib.sha256(content).hexdigest()}
        if state == "failed":
            record |= {"error": {"code": "job_crashed", "message": "m"}}
        history.jobs[key] = record
        history.events.append(event(kind, made))
        history.requests[f"r-{key}"] = {"state": "accepted", "job_key": key}
        endings = {"done": FINE, "failed": frozenset({"job_crashed"})}.get(state, frozenset({state}))
        history.sent.append(Sent(request_id=f"r-{key}", endings=endings))
    history.requests["bad"] = {"state": "refused", "error": {"code": "path_outside_root"}}
    history.events.append({"type": "analysis.failed", "data": {"job_key": None, "job_id": "bad"}})
    history.sent.append(Sent(request_id="bad", endings=frozenset({"path_outside_root"})))
    history.campaigns[CAMPAIGN] = {"checkpoints": [{"step": 2, "state": "analysed", "job_key": "b"}]}
    history.pins[CAMPAIGN] = ["2-f2"]
    return history


def found(history: History) -> set[tuple[str, str]]:
    return {(finding.kind, finding.what) for finding in check(history)}


def test_a_clean_history_has_no_finding(clean: History) -> None:
    assert check(clean) == []


# Each doctoring does one thing that must not be.


def a_lost_event(history: History) -> None:
    history.events = [event for event in history.events if event["data"]["job_key"] != "a"]


def a_doubled_event(history: History) -> None:
    history.events.append(history.events[0])


def a_completed_job_that_failed_too(history: History) -> None:
    history.events.append(event("analysis.failed", history.jobs["a"]["job"]))


def a_refusal_that_nobody_was_told(history: History) -> None:
    history.events.pop()


def a_request_that_was_refused_and_accepted(history: History) -> None:
    history.events.append({"type": "analysis.failed", "data": {"job_key": None, "job_id": "r-a"}})


def a_request_that_became_two_jobs(history: History) -> None:
    other = {**job("a2", 1), "job_id": "r-a"}
    history.jobs["a2"] = {"job": other, "state": "cancelled", "event_sequence": 9}
    history.events.append(event("analysis.cancelled", other))


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
    history.events[0]["type"] = "analysis.cancelled"


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
    history.sent[3] = Sent(request_id="r-f", endings=frozenset({"internal_error"}))


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
        (a_temporary_file, "left_over", "/r/.a.1.tmp"),
        (a_pin_too_many, "left_over", f"{CAMPAIGN}/.pins/1-f1"),
        (a_message_on_the_queue, "left_over", "archaeologist.jobs.layer_stats.low.a"),
        (a_message_that_nobody_heard, "left_over", "archaeologist-intake-requests"),
        (a_process, "left_over", "process 4711"),
        (memory_of_a_gpu, "left_over", "process 4711"),
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


async def test_a_process_of_the_run_is_found_by_what_it_inherited(tmp_path: Path) -> None:
    environment = {**os.environ, "ARCHAEOLOGIST_ROOT": str(tmp_path)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "input()", env=environment, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    await until(lambda: process.pid in processes_of(tmp_path))
    assert processes_of(tmp_path.parent) == {}
    await process.communicate(b"\n")
    assert processes_of(tmp_path) == {}
