"""Times that others wrote."""

from datetime import UTC, datetime

import pytest

from archaeologist.moments import EPOCH, moment_or_epoch, read_moment


@pytest.mark.parametrize("text", ["2026-01-02T03:04:05Z", "2026-01-02T03:04:05.000+00:00", "2026-01-02T05:04:05+02:00"])
def test_a_time_in_rfc_3339_is_a_moment(text: str) -> None:
    assert read_moment(text) == moment_or_epoch(text) == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "2026-13-01T00:00:00Z",
        "1900-01-01T00:00:00Z",
        "0001-01-01T00:00:00+14:00",
        "\ud800",
        "x" * 9999,
    ],
)
def test_what_is_none_is_long_ago(text: str) -> None:
    assert read_moment(text) is None
    assert moment_or_epoch(text) == EPOCH


def test_a_time_without_a_zone_can_be_compared() -> None:
    assert moment_or_epoch("2026-01-02T03:04:05") > EPOCH
