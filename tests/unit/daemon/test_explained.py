"""What a failure says of a checkpoint that could not be kept."""

import pytest

from archaeologist.daemon.run import explained
from contracts.messages import EventError

GONE = EventError(code="checkpoint_missing", message="checkpoint '/x' is not there")


def test_a_checkpoint_that_is_gone_is_explained_by_what_was_noted_when_its_job_was_made() -> None:
    told = explained(GONE, ("it is not pinned: pins hold 9.0 of 8.0 GB", "the queue is long"))
    assert told.code == GONE.code
    assert told.message == (
        "checkpoint '/x' is not there (when the job was made: it is not pinned: pins hold 9.0 of 8.0 GB; the queue is"
        " long)"
    )


@pytest.mark.parametrize(
    ("error", "notes"), [(GONE, ()), (EventError(code="shard_missing", message="m"), ("the queue is long",))]
)
def test_any_other_failure_stays_as_it_is(error: EventError, notes: tuple[str, ...]) -> None:
    assert explained(error, notes) is error
