"""Which priority is served next."""

import pytest

from archaeologist.daemon.executor import choose
from contracts.messages import Priority


@pytest.mark.parametrize(
    ("waiting", "streak", "chosen"),
    [
        ({}, 0, None),
        ({"high": 0, "normal": 0, "low": 0}, 0, None),
        ({"high": 1, "normal": 1, "low": 1}, 0, "high"),
        ({"high": 1, "normal": 1, "low": 1}, 3, "high"),
        ({"high": 1, "normal": 1, "low": 1}, 4, "normal"),
        ({"high": 1, "normal": 0, "low": 1}, 4, "low"),
        ({"high": 1}, 9, "high"),
        ({"low": 1}, 9, "low"),
    ],
)
def test_the_best_priority_goes_first_and_a_lower_one_after_four(
    waiting: dict[Priority, int], streak: int, chosen: Priority | None
) -> None:
    assert choose(waiting, streak=streak, low_after=4) == chosen
