"""The life of a job, step by step."""

from datetime import datetime

import pytest
from msgspec.structs import replace

from archaeologist.daemon import lifecycle
from archaeologist.daemon.lifecycle import Claim, Standing
from archaeologist.settings import JobsSettings
from contracts.messages import EventError, RequestId
from tests.unit.daemon.jobs import NOW, OTHER, OWNER, REQUEST, done, job, later, queued, running, succeeded

LIMITS = JobsSettings(lease_seconds=10, max_lost_workers=3)
ERROR = EventError(code="shard_missing", message="gone")


def test_a_queued_job_is_free_for_any_worker() -> None:
    assert lifecycle.standing(queued(), owner=OWNER, token=1, now=NOW, limits=LIMITS) is Standing.FREE


def test_a_redelivered_message_of_another_workers_job_means_that_the_worker_is_gone() -> None:
    record, _ = running(token=7)
    assert lifecycle.standing(record, owner=OTHER, token=7, now=NOW, limits=LIMITS) is Standing.ABANDONED


def test_a_second_message_of_a_job_whose_owner_is_alive_waits() -> None:
    record, _ = running(token=7)
    assert lifecycle.standing(record, owner=OTHER, token=8, now=later(19), limits=LIMITS) is Standing.BUSY


def test_a_second_message_of_a_job_whose_owner_fell_silent_takes_it_over() -> None:
    record, _ = running(token=7)
    assert lifecycle.standing(record, owner=OTHER, token=8, now=later(21), limits=LIMITS) is Standing.ABANDONED


def test_a_message_repeated_to_the_worker_that_runs_its_job_is_recognised() -> None:
    record, _ = running()
    assert lifecycle.standing(record, owner=OWNER, token=7, now=NOW, limits=LIMITS) is Standing.OURS


def test_the_third_lost_worker_ends_the_job() -> None:
    record, _ = running()
    for owner in ("box:B", "box:C"):
        assert lifecycle.standing(record, owner=owner, token=7, now=NOW, limits=LIMITS) is Standing.ABANDONED
        record = lifecycle.claimed(record, owner=owner, token=7, now=NOW)
    assert record.lost_workers == 2
    assert lifecycle.standing(record, owner="box:D", token=7, now=NOW, limits=LIMITS) is Standing.LOST_TOO_OFTEN
    failed = lifecycle.failed(record, ERROR, now=NOW)
    assert failed is not None
    assert (failed.lost_workers, failed.attempt) == (3, 0)


def test_a_worker_that_lost_its_claim_can_end_nothing() -> None:
    record, stale = running()
    taken = lifecycle.claimed(record, owner=OTHER, token=7, now=NOW)
    assert lifecycle.done(taken, stale, succeeded(), artifact_path="/a", sketch_path=None, now=NOW) is None
    assert lifecycle.failed(taken, ERROR, claim=stale, now=NOW) is None
    assert lifecycle.alive(taken, stale, now=NOW) is None
    assert lifecycle.handed_back(taken, stale, now=NOW) is None
    assert lifecycle.stopped(taken, stale, now=NOW) is None


def test_the_same_worker_claiming_again_makes_its_first_claim_stale() -> None:
    record, first = running()
    again = lifecycle.claimed(record, owner=OWNER, token=7, now=NOW)
    assert not lifecycle.holds(again, first)
    assert lifecycle.holds(again, Claim(owner=OWNER, number=2))


def test_an_attempt_is_a_run_that_ended_by_the_jobs_own_doing() -> None:
    record, claim = running()
    assert done().attempt == 1
    failed = lifecycle.failed(record, ERROR, claim=claim, now=NOW)
    assert failed is not None
    assert (failed.attempt, failed.lost_workers, failed.error) == (1, 0, ERROR)
    back = lifecycle.handed_back(record, claim, now=NOW)
    assert back is not None
    assert (back.attempt, back.lost_workers, back.state) == (0, 0, "queued")


def test_an_artifact_that_cannot_be_put_in_place_turns_done_into_failed_before_anybody_heard() -> None:
    record = done()
    claim = Claim(owner=OWNER, number=record.claim)
    failed = lifecycle.failed(record, ERROR, claim=claim, now=NOW)
    assert failed is not None
    assert (failed.state, failed.attempt, failed.artifact_path) == ("failed", 1, None)
    told = lifecycle.announced(record, 5, run=1)
    assert told is not None
    assert lifecycle.failed(told, ERROR, claim=claim, now=NOW) is None


def test_cancelling_ends_a_queued_job_marks_a_running_one_and_leaves_a_finished_one() -> None:
    ended = lifecycle.cancelled(queued(), by="ann", now=NOW)
    assert ended is not None
    assert (ended.state, ended.cancelled_by) == ("cancelled", "ann")
    record, claim = running()
    marked = lifecycle.cancelled(record, by="ann", now=NOW)
    assert marked is not None
    assert (marked.state, marked.cancelled_by) == ("running", "ann")
    stopped = lifecycle.stopped(marked, claim, now=NOW)
    assert stopped is not None
    assert stopped.state == "cancelled"
    assert lifecycle.cancelled(done(), by="ann", now=NOW) is None


def test_a_stop_without_a_cancellation_cancels_nothing() -> None:
    record, claim = running()
    assert lifecycle.stopped(record, claim, now=NOW) is None


def test_a_forced_run_waits_for_the_event_of_the_run_before() -> None:
    finished = done()
    assert lifecycle.rerun(finished, job(), request_id=RequestId("R2"), now=NOW) is None
    told = lifecycle.announced(finished, 5, run=1)
    assert told is not None
    again = lifecycle.rerun(told, job(), request_id=RequestId("R2"), now=NOW)
    assert again is not None
    assert (again.state, again.job.run, again.event_sequence, again.error) == ("queued", 2, None, None)
    assert again.request_ids == (REQUEST, "R2")


def test_an_event_is_noted_once_and_only_for_its_own_run() -> None:
    finished = done()
    assert lifecycle.announced(finished, 5, run=2) is None
    told = lifecycle.announced(finished, 5, run=1)
    assert told is not None
    assert told.event_sequence == 5
    assert lifecycle.announced(told, 6, run=1) is None


def test_a_request_joins_once_and_only_the_newest_hundred_are_listed() -> None:
    record = queued()
    assert lifecycle.joined(record, REQUEST) is record
    for number in range(200):
        record = lifecycle.joined(record, RequestId(f"Q{number}"))
    assert len(record.request_ids) == lifecycle.MAX_REQUEST_IDS
    assert record.request_ids[-1] == "Q199"
    again = lifecycle.rerun(
        replace(record, state="done", event_sequence=7), job(), request_id=RequestId("forced"), now=NOW
    )
    assert again is not None
    assert again.request_ids[-1] == "forced"


def test_a_job_that_was_cancelled_is_not_handed_back() -> None:
    record, claim = running()
    asked = lifecycle.cancelled(record, by="me", now=NOW)
    assert asked is not None
    back = lifecycle.handed_back(asked, claim, now=NOW)
    assert back is not None
    assert (back.state, back.finished_at) == ("cancelled", lifecycle.stamp(NOW))


def test_the_notes_of_intake_come_before_the_childs_warnings_each_once() -> None:
    record, claim = running()
    record = replace(record, job=replace(record.job, notes=("note", "both")))
    outcome = replace(succeeded(), warnings=("both", "warning"))
    finished = lifecycle.done(record, claim, outcome, artifact_path="/a", sketch_path=None, now=NOW)
    assert finished is not None
    assert finished.warnings == ("note", "both", "warning")


@pytest.mark.parametrize("seconds", [0, 0.001, 59.9999])
def test_times_are_rfc_3339_in_utc_and_read_back(seconds: float) -> None:
    text = lifecycle.stamp(later(seconds))
    assert text.endswith("Z")
    assert abs((datetime.fromisoformat(text) - later(seconds)).total_seconds()) < 0.001


def test_a_run_is_new_until_a_worker_claims_it_and_again_when_it_is_forced() -> None:
    record, claim = running()
    assert lifecycle.is_new(queued())
    assert not lifecycle.is_new(record)
    back = lifecycle.handed_back(record, claim, now=NOW)
    assert back is not None
    assert back.state == "queued"
    assert not lifecycle.is_new(back)
    ended = replace(record, state="done", event_sequence=7)
    again = lifecycle.rerun(ended, job(), request_id=RequestId("R2"), now=NOW)
    assert again is not None
    assert lifecycle.is_new(again)
