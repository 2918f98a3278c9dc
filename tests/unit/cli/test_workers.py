"""How workers look on a terminal."""

import pytest

from archaeologist.cli import workers
from contracts.http import WorkerEntry
from contracts.messages import JobKey, RequestId
from contracts.records import WorkerGpu, WorkerJob, WorkerSlots


def entry(*jobs: WorkerJob) -> WorkerEntry:
    return WorkerEntry(
        name="box",
        incarnation="X",
        host="hall\x1b[2J",
        pid=1,
        root="/r",
        version="1.0",
        state="busy",
        roles=("analytics", "eval_worker"),
        since="2026-01-02T03:04:05Z",
        heartbeat_at="2026-01-02T03:04:05Z",
        heartbeat_seconds=15.0,
        slots={"layer_stats": WorkerSlots(running=1, free=0), "layer_drift": WorkerSlots(running=0, free=2)},
        jobs=jobs,
        gpus=(WorkerGpu(name="NVIDIA GeForce RTX 3090", memory_bytes=24 << 30, free_bytes=6 << 30),),
        condition="busy",
        age_sec=3.4,
    )


def job(step: int, *, stage: str | None = None) -> WorkerJob:
    return WorkerJob(
        job_key=JobKey("k"),
        job_id=RequestId("r"),
        job_type="layer_stats",
        priority="low",
        hero_id="dio",
        campaign_id="c1",
        checkpoint_step=step,
        stage=stage,
        bytes_read=1,
        bytes_total=4,
    )


def test_a_worker_is_a_row_and_each_further_job_one_more() -> None:
    rows = workers.table([entry(job(100, stage="walk"), job(200))])
    cells = [list(column.cells) for column in rows.columns]
    assert rows.row_count == 2
    assert [str(column[0]) for column in cells] == [
        "box",
        "busy",
        "hall [2J",
        "analytics, eval_worker",
        "1 layer_stats",
        "2 layer_drift",
        "dio/c1 step 100 layer_stats (walk, 25%)",
        "NVIDIA GeForce RTX 3090, 6.0 of 24.0 GiB free",
        "1.0",
        "3 s ago",
    ]
    assert cells[6][1] == "dio/c1 step 200 layer_stats"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "0 s ago"), (119, "119 s ago"), (300, "5 min ago"), (86_400, "24 h ago")]
)
def test_an_age_is_in_the_unit_that_says_enough(seconds: float, words: str) -> None:
    assert workers.age(seconds) == words
