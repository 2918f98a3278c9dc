"""The Battle Log's lines and the moments it starts from."""

import io
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from archaeologist.cli.console import progress_bars
from archaeologist.cli.log import concerns, line, moment, move
from archaeologist.errors import UsageError
from contracts.messages import Event, Severity

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def event(*, data: Any = None, message: str = "m", severity: Severity = "info", kind: str = "started") -> Event:
    return Event(
        type=f"analysis.{kind}", message=message, severity=severity, data=data, id="E", time="2026-01-02T03:04:05Z"
    )


@pytest.mark.parametrize(
    ("text", "before"),
    [
        ("30s", timedelta(seconds=30)),
        ("90m", timedelta(minutes=90)),
        ("2h", timedelta(hours=2)),
        ("7d", timedelta(days=7)),
        ("1w", timedelta(weeks=1)),
    ],
)
def test_a_duration_counts_back_from_now(text: str, before: timedelta) -> None:
    assert moment(text, now=NOW) == NOW - before


def test_a_time_with_a_zone_is_that_time() -> None:
    assert moment("2026-01-02T05:04:05+02:00", now=NOW) == NOW
    assert moment("2026-01-02T03:04:05Z", now=NOW) == NOW


@pytest.mark.parametrize("text", ["", "yesterday", "5", "-5m", "999999999w", "2026-13-01"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--since"):
        moment(text, now=NOW)


@pytest.mark.parametrize(("campaign", "is_shown"), [(None, True), ("c1", True), ("dio/c1", True), ("c2", False)])
def test_a_campaign_is_named_with_or_without_its_hero(campaign: str | None, *, is_shown: bool) -> None:
    assert concerns(event(data={"hero_id": "dio", "campaign_id": "c1"}), campaign) is is_shown


def test_an_event_whose_data_is_no_object_belongs_to_no_campaign() -> None:
    assert not concerns(event(data=[1]), "c1")
    assert concerns(event(data=[1]), None)


def test_a_line_has_the_severity_as_a_word_and_a_failures_code() -> None:
    failed = event(
        data={"hero_id": "dio", "campaign_id": "c1", "error": {"code": "shard_missing", "message": "x"}},
        message="Analysis failed",
        severity="error",
        kind="failed",
    )
    assert line(failed).plain.endswith("  error    dio/c1  shard_missing: Analysis failed")


def test_a_line_does_not_steer_the_terminal() -> None:
    shown = line(event(data={}, message="a\x1b[31mb\nc\r\x07[red]d")).plain
    assert shown.endswith("a [31mb c  [red]d")
    assert shown.isprintable()


def running(step: int, *, done: int | None = None, kind: str = "progress") -> Event:
    progress = {"stage": "walk", "block": 1, "blocks": 4, "bytes_read": done, "bytes_total": 100}
    whose = {"hero_id": "dio", "campaign_id": "c1", "checkpoint_step": step, "job_key": f"key{step}"}
    rest = {"job_id": "J", "job_type": "layer_stats", "attempt": 1, "worker": "box"}
    return event(data={**whose, **rest, **(progress if done is not None else {})}, kind=kind)


def test_each_running_job_has_a_bar_until_it_ends() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, color_system=None)
    with progress_bars(console) as bars:
        assert bars.titles == []
        move(bars, running(100, kind="started"))
        move(bars, running(200, done=25))  # whose start was not heard
        move(bars, running(100, done=50))
        assert bars.titles == ["dio/c1 step 100: walk 1/4", "dio/c1 step 200: walk 1/4"]
        console.print("a line")
        move(bars, running(100, kind="completed"))
        move(bars, running(200, kind="failed"))
        move(bars, running(300, kind="cancelled"))
        assert bars.titles == []
    assert "a line" in screen.getvalue()


def test_progress_of_another_shape_has_no_bar() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with progress_bars(console) as bars:
        move(bars, event(data={"job_key": "key", "stage": 1}, kind="progress"))
        move(bars, event(data=[1], kind="progress"))
        assert bars.titles == []


def test_without_a_terminal_there_is_no_bar() -> None:
    screen = io.StringIO()
    with progress_bars(Console(file=screen)) as bars:
        move(bars, running(100, kind="started"))
        move(bars, running(100, done=50))
        assert bars.titles == []
    assert screen.getvalue() == ""
