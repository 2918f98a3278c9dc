"""Whatever others wrote reaches the terminal as text: it moves no cursor, begins no line, forges none."""

import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from rich.console import Console, RenderableType

from archaeologist.cli import console, jobs, log, rendering, workers
from contracts.artifacts import LayerStats
from contracts.messages import CampaignId, Event, EventError, HeroId, Job, JobKey, RequestId, Side
from contracts.records import DeadLetter, JobRecord, Requeued
from tests.fixtures.artifacts import layer_drift
from tests.fixtures.histories import artifact, with_activations
from tests.fixtures.hostile import STEERING, marked
from tests.unit.cli.test_workers import entry, job

NOW = "2026-01-02T03:04:05Z"
SIDE = Side(path="/c", step=100, read_path="/c", fingerprint="f")


def stats() -> LayerStats:
    before, now = ({"model.layers.0.mlp.weight": np.full(4, float(step))} for step in (100, 200))
    found = with_activations(artifact(200, now, reference=(100, before)), std=1.0, entropy=2.0)
    return replace(found, warnings=("w",), not_computed={"spectra": "s"})


def record() -> JobRecord:
    made = Job(
        job_key=JobKey("k"),
        job_id=RequestId("r"),
        job_type="layer_stats",
        priority="normal",
        hero_id=HeroId("dio"),
        campaign_id=CampaignId("c1"),
        target=SIDE,
        reference=SIDE,
        created_at=NOW,
    )
    return JobRecord(job=made, state="failed", queued_at=NOW, error=EventError(code="c", message="m"))


def shown() -> Iterator[tuple[str, RenderableType]]:
    """What is printed of each, from strings that all steer."""
    hostile = {"mark": STEERING}
    yield "analyze", rendering.layer_stats(marked(stats(), **hostile))
    yield "drift", rendering.layer_drift(marked(layer_drift(), **hostile))
    yield "jobs list", jobs.table([marked(record(), **hostile)])
    yield "jobs cancel", console.printable(jobs.cancellation(marked(record(), **hostile)))
    letter = DeadLetter(
        sequence=1, at="at", code="c", reason="r", subject="s", owner="o", stream="S", stream_sequence=1
    )
    yield "jobs dead", jobs.letter_table([marked(letter, **hostile)])
    yield "jobs requeue", console.printable(jobs.requeueing(marked(Requeued(action="asked"), **hostile)))
    yield "workers", workers.table([marked(entry(job(100, stage="walk"), job(200)), **hostile)])
    failed = EventError(code="c", message="m")
    data: dict[str, Any] = {"hero_id": STEERING, "campaign_id": STEERING, "error": marked(failed, **hostile)}
    event = Event(type="analysis.failed", message="m", severity="error", data=data, id="E", time="")
    yield "log", log.line(marked(event, keep=("type", "data"), **hostile))


@pytest.mark.parametrize(("command", "renderable"), [*shown()], ids=lambda one: one if isinstance(one, str) else "")
def test_strings_that_steer_are_printed_as_text(command: str, renderable: RenderableType) -> None:
    screen = io.StringIO()
    out = Console(file=screen, width=5000, force_terminal=True, color_system=None, highlight=False, markup=False)
    out.print(renderable, soft_wrap=True)
    text = screen.getvalue()
    assert "[bold]" in text, command
    assert text.replace("\n", "").isprintable()


@pytest.mark.parametrize("printed", [console.print_json, console.print_line])
def test_json_is_escaped_and_means_the_same(capsys: pytest.CaptureFixture[str], printed: Any) -> None:
    printed(marked(record(), mark=STEERING))
    text = capsys.readouterr().out
    assert text.replace("\n", "").isprintable()
    assert json.loads(text)["queued_at"] == f"{NOW}{STEERING}"
