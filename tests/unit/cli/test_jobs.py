"""The list of jobs and what a cancellation comes to."""

import pytest
from msgspec.structs import replace
from rich.console import Console

from archaeologist.cli.jobs import cancellation, letter_table, newest, requeueing, table
from contracts.messages import EventError, RequestId
from contracts.records import DeadLetter, JobRecord, Requeued
from tests.unit.daemon.jobs import done, job, queued, running


def at(step: int, when: str) -> JobRecord:
    return replace(queued(), job=job(step=step), queued_at=when)


def test_the_newest_jobs_are_listed_in_the_order_of_their_queueing() -> None:
    records = [at(3, "2026-01-03"), at(1, "2026-01-01"), at(2, "2026-01-02")]
    chosen = newest(records, state=None, campaign=None, limit=2)
    assert [record.job.target.step for record in chosen] == [2, 3]


def test_jobs_are_chosen_by_state_and_by_campaign_with_or_without_hero() -> None:
    records = [queued(), done()]
    assert newest(records, state="done", campaign=None, limit=9) == [done()]
    assert newest(records, state=None, campaign="dio/c1", limit=9) == newest(
        records, state=None, campaign="c1", limit=9
    )
    assert newest(records, state=None, campaign="other", limit=9) == []


def test_a_row_shows_the_whole_key_and_a_failures_code() -> None:
    failed = replace(done(), state="failed", error=EventError(code="worker_lost", message="m"))
    console = Console(width=200, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as capture:
        console.print(table([failed]))
    assert "key100" in capture.get()
    assert "worker_lost" in capture.get()


def test_a_cancellation_says_what_it_came_to() -> None:
    assert cancellation(replace(queued(), state="cancelled")).endswith("is cancelled")
    assert "told to stop" in cancellation(running()[0])
    assert "done already" in cancellation(done())


@pytest.mark.parametrize(
    ("done", "words"),
    [
        (
            Requeued(sequence=7, code="shard_missing", action="asked", request_id=RequestId("R")),
            "letter 7 (shard_missing): asked for again as request R",
        ),
        (
            Requeued(sequence=None, code=None, action="asked_before", request_id=RequestId("R")),
            "job: asked for again before as request R",
        ),
        (
            Requeued(sequence=7, code="x", action="left_out", reason="job k is done by now"),
            "letter 7 (x): left out, job k is done by now",
        ),
    ],
)
def test_what_was_asked_for_again_is_one_line(done: Requeued, words: str) -> None:
    assert requeueing(done) == words


def test_a_dead_letter_is_a_row() -> None:
    letter = DeadLetter(
        sequence=7,
        at="2026-01-02T03:04:05.000Z",
        code="shard_missing",
        reason="gone\x1b[2J",
        subject="analysis.requested",
        owner="R",
        stream="REQUESTS",
        stream_sequence=3,
    )
    rows = letter_table([letter])
    assert [str(next(iter(column.cells))) for column in rows.columns] == [
        "7",
        "2026-01-02 03:04:05",
        "shard_missing",
        "analysis.requested",
        "R",
        "gone [2J",
    ]
