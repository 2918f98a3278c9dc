"""How a worker describes itself, and what others make of it."""

from datetime import UTC, datetime, timedelta

import pytest

from archaeologist.daemon import gpus, workers
from archaeologist.daemon.lifecycle import stamp
from archaeologist.settings import JobsSettings, LayerDriftSettings, Settings, WorkerSettings
from contracts.messages import JobType
from contracts.records import WorkerGpu, WorkerRecord, WorkerState

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def settings(*roles: str, drift: tuple[str, ...] = ("analytics",)) -> Settings:
    jobs = JobsSettings(layer_drift=LayerDriftSettings(allowed_roles=drift))
    return Settings(worker=WorkerSettings(name="box", roles=roles), jobs=jobs)


@pytest.mark.parametrize(
    ("roles", "served"),
    [
        (("analytics",), ("layer_stats", "layer_drift")),
        (("eval_worker", "analytics"), ("layer_stats", "layer_drift")),
        (("eval_worker",), ()),
        (("cpu",), ("layer_drift",)),
        ((), ()),
    ],
)
def test_a_worker_serves_the_types_that_one_of_its_roles_allows(
    roles: tuple[str, ...], served: tuple[JobType, ...]
) -> None:
    assert workers.served_types(settings(*roles, drift=("analytics", "cpu"))) == served


def test_a_worker_that_serves_nothing_says_which_roles_it_has_and_which_are_wanted() -> None:
    reason = workers.reason_for_none(settings("eval_worker", drift=("analytics", "cpu")))
    assert reason is not None
    assert "eval_worker" in reason
    assert "analytics, cpu" in reason
    assert "none" in str(workers.reason_for_none(settings()))
    assert workers.reason_for_none(settings("cpu", drift=("cpu",))) is None


def test_free_slots_are_what_is_not_running_and_none_for_other_roles_or_at_the_end() -> None:
    busy: list[JobType] = ["layer_drift"]
    now = workers.slots(settings("cpu", drift=("cpu",)), busy, is_draining=False)
    assert (now["layer_drift"].running, now["layer_drift"].free) == (1, 1)
    assert (now["layer_stats"].running, now["layer_stats"].free) == (0, 0)
    ending = workers.slots(settings("analytics"), busy, is_draining=True)
    assert [slot.free for slot in ending.values()] == [0, 0]


@pytest.mark.parametrize(
    ("state", "age_seconds", "expected"),
    [("idle", 0, "idle"), ("busy", 29, "busy"), ("draining", 29, "draining"), ("busy", 31, "silent")],
)
def test_three_heartbeats_without_a_word_are_silence(state: WorkerState, age_seconds: float, expected: str) -> None:
    record = WorkerRecord(
        name="box",
        incarnation="X",
        host="h",
        pid=1,
        root="/r",
        version="0",
        state=state,
        roles=(),
        since=stamp(NOW),
        heartbeat_at=stamp(NOW - timedelta(seconds=age_seconds)),
        heartbeat_seconds=10.0,
    )
    assert workers.condition(record, now=NOW) == expected
    assert workers.age_seconds(record, now=NOW) == age_seconds


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ()),
        ("NVIDIA GeForce RTX 3090, 24576, 20480\n", (("NVIDIA GeForce RTX 3090", 24576 << 20, 20480 << 20),)),
        ("A, B, 10, 5\nGB10, [N/A], [N/A]\n", (("A, B", 10 << 20, 5 << 20), ("GB10", None, None))),
        ("No devices were found\n", ()),
    ],
)
def test_the_driver_s_answer_is_read_line_by_line(
    text: str, found: tuple[tuple[str, int | None, int | None], ...]
) -> None:
    expected = tuple(WorkerGpu(name=name, memory_bytes=total, free_bytes=free) for name, total, free in found)
    assert gpus.parse(text) == expected
