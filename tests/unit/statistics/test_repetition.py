"""Repeats in texts, by hand and as properties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archaeologist.statistics.repetition import distinct, repeated, summary
from contracts.artifacts import GenerationStats


def test_by_hand() -> None:
    texts = [[1, 2, 1, 2, 1], [1, 2, 3]]
    assert distinct(texts, 1) == 3 / 8
    assert distinct(texts, 2) == 3 / 6  # 12 21 12 21 | 12 23
    assert distinct(texts, 3) == 3 / 4  # 121 212 121 | 123
    assert repeated([[1, 2, 1, 2, 1, 2], [1, 2, 3]], 2) == pytest.approx((3 / 5 + 0) / 2)


def test_a_loop_repeats_nearly_all_and_texts_of_one_kind_are_not_distinct() -> None:
    loop = [[7] * 32] * 8
    stats = summary(loop, ended=0)
    assert (stats.texts, stats.tokens) == (8, 256)
    assert (stats.distinct_1, stats.distinct_2) == (1 / 256, 1 / 248)
    assert stats.repeated_4 == 28 / 29


def test_texts_too_short_for_a_run_have_no_number() -> None:
    assert summary([], ended=0) == GenerationStats()
    assert summary([[], [5]], ended=1) == GenerationStats(texts=2, tokens=1, ended=1, distinct_1=1.0)


@given(st.lists(st.lists(st.integers(0, 3), max_size=12), max_size=5), st.integers(1, 4))
def test_shares_are_of_all_runs_and_no_run_crosses_from_one_text_into_the_next(texts: list[list[int]], n: int) -> None:
    runs = [",".join(map(str, text[at : at + n])) for text in texts for at in range(len(text)) if at + n <= len(text)]
    assert distinct(texts, n) == (len(set(runs)) / len(runs) if runs else None)
    assert distinct(texts[::-1], n) == distinct(texts, n)
