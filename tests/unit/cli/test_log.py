"""The Battle Log's lines and the moments it starts from."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from archaeologist.cli.log import concerns, line, moment
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
