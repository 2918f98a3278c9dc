"""Which priority is served next."""

from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archaeologist.daemon.turns import after, choose
from contracts.messages import Priority

ALL: dict[Priority, int] = {"high": 99, "normal": 99, "low": 99}


def served(waiting: Mapping[Priority, int], *, rounds: int, low_after: float = 4) -> str:
    """The first letters of what is served while all of it stays waiting."""
    passed: Mapping[Priority, int] = {}
    letters = ""
    for _ in range(rounds):
        chosen = choose(waiting, passed, low_after=low_after)
        assert chosen is not None
        passed = after(chosen, waiting, passed)
        letters += chosen[0]
    return letters


@pytest.mark.parametrize(
    ("waiting", "expected"),
    [
        (ALL, "hhhhnlhhhhnl"),
        ({"high": 9, "low": 9}, "hhhhlhhhhlhh"),
        ({"normal": 9, "low": 9}, "nnnnlnnnnlnn"),
        ({"low": 9}, "llllllllllll"),
        ({"high": 9, "normal": 0, "low": 0}, "hhhhhhhhhhhh"),
    ],
)
def test_the_best_priority_goes_first_and_each_lower_one_after_four(
    waiting: dict[Priority, int], expected: str
) -> None:
    assert served(waiting, rounds=12) == expected


@pytest.mark.parametrize("waiting", [{}, {"high": 0, "normal": 0, "low": 0}])
def test_nothing_waits_and_nothing_is_served(waiting: dict[Priority, int]) -> None:
    assert choose(waiting, {"low": 9}, low_after=4) is None


@given(low_after=st.integers(1, 8), waiting=st.dictionaries(st.sampled_from(list(ALL)), st.just(9), min_size=1))
def test_no_priority_starves_and_a_better_one_is_served_at_least_as_often(
    low_after: int, waiting: dict[Priority, int]
) -> None:
    letters = served(waiting, rounds=60, low_after=low_after)
    counts = Counter(letters)
    shares = [counts[priority[0]] for priority in ALL if priority in waiting]
    assert shares == sorted(shares, reverse=True)
    for priority in waiting:
        assert priority[0] * 1 in letters[: 2 * (low_after + 2)]


def test_what_came_and_went_has_no_claim_on_a_turn() -> None:
    assert after("high", {"high": 1, "normal": 0, "low": 2}, {"normal": 3, "low": 3}) == {
        "high": 0,
        "normal": 0,
        "low": 4,
    }
