"""``python -m tests.integration.deploy.scenes``: what a new process exports before something happens and after it.

A line of JSON: by scene the two texts that Prometheus would scrape. Each scene is played in a process of its own, in
which nothing happened before it.
"""

import json
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from msgspec.structs import replace

from archaeologist import metrics
from archaeologist.daemon import announcements
from contracts import subjects
from contracts.artifacts import Alert
from tests.unit.daemon.jobs import done
from tests.unit.deploy.test_monitoring import failed

LONG_AGO: Final = datetime.fromtimestamp(0, UTC)
"""Where a test's clock begins."""


def three_jobs_fail() -> None:
    """With a code that was not seen before."""
    for _ in range(3):
        metrics.note_event(failed("shard_missing"))


def two_jobs_fail() -> None:
    """That is none too many."""
    for _ in range(2):
        metrics.note_event(failed("shard_missing"))


def a_worker_is_lost() -> None:
    """A job was given up."""
    metrics.note_event(failed("worker_lost"))


def a_model_collapses() -> None:
    """A critical alert."""
    record = replace(done(), alerts=(Alert(severity="critical", family="weights", metric="nan_count"),))
    for announcement in announcements.ending(record, worker="box", now=datetime.now(UTC)):
        metrics.note_event(announcement.event)


def nobody_is_told() -> None:
    """A webhook was given up on."""
    metrics.note_telling("webhook", "given_up")


def the_bus_goes() -> None:
    """And nobody knows how long the queue is."""
    metrics.watch_bus("daemon", lambda: False)
    metrics.set_queue({})


def nothing_is_taken() -> None:
    """One job waits."""
    metrics.set_queue({("layer_stats", "low", "waiting"): 1})


def the_queue_grows() -> None:
    """While a job runs, and the daemon sweeps."""
    metrics.note_sweep(at=LONG_AGO + timedelta(hours=1), stored_bytes={})
    metrics.set_queue({("layer_stats", "low", "waiting"): 21})
    metrics.set_running("layer_stats", 1)


def pins_pile_up() -> None:
    """More than the rule allows."""
    metrics.note_sweep(at=LONG_AGO, stored_bytes={"pins": 600 * 10**9})


def nothing_happens() -> None:
    """The sweep apart, which a test's clock leaves behind."""


SCENES: Final[dict[str, Callable[[], None]]] = {
    scene.__name__: scene
    for scene in (
        three_jobs_fail,
        two_jobs_fail,
        a_worker_is_lost,
        a_model_collapses,
        nobody_is_told,
        the_bus_goes,
        nothing_is_taken,
        the_queue_grows,
        pins_pile_up,
        nothing_happens,
    )
}


def play(scene: Callable[[], None]) -> tuple[str, str]:
    """What is exported before and after it, by a daemon to which nothing came before."""
    metrics.watch_bus("daemon", lambda: True)
    metrics.set_slots(dict.fromkeys(subjects.JOB_TYPES, 1))
    metrics.set_queue({(kind, "low", "waiting"): 0 for kind in subjects.JOB_TYPES})
    metrics.note_sweep(at=LONG_AGO, stored_bytes=dict.fromkeys(metrics.KINDS, 0))
    before = metrics.exposition().decode()
    scene()
    return before, metrics.exposition().decode()


def main() -> None:
    """Forks for each scene, so that nothing of one is seen in the next."""
    for name, scene in SCENES.items():
        if os.fork() == 0:
            sys.stdout.write(json.dumps([name, *play(scene)]) + "\n")
            sys.stdout.flush()
            os._exit(0)
        os.wait()


if __name__ == "__main__":
    main()
