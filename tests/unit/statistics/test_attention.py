"""Attention's entropy and first-token mass, by hand and against a slow loop."""

import math

import numpy as np
import pytest

from archaeologist.statistics.attention import looks, summary
from contracts.artifacts import AttentionStats

HIDDEN = -math.inf


def test_by_hand() -> None:
    # Weights 1/4 and 3/4 of two seen keys, and one of a single key.
    found = looks(np.array([[[0.0, math.log(3), HIDDEN], [5.0, HIDDEN, HIDDEN]]]))
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert found.entropy[0].tolist() == pytest.approx([entropy, 0.0])
    assert found.first[0].tolist() == pytest.approx([0.25, 1.0])
    assert found.normalized[0, 0] == pytest.approx(entropy / math.log(2))
    assert math.isnan(found.normalized[0, 1])


def test_any_scores_against_a_slow_loop() -> None:
    scores = np.random.default_rng(0).standard_normal((5, 3, 20)) * 30
    scores[2, :, 11:] = HIDDEN
    found = looks(scores)
    for query in range(5):
        for head in range(3):
            seen = [score for score in scores[query, head].tolist() if score > HIDDEN]
            total = math.fsum(math.exp(score - max(seen)) for score in seen)
            shares = [math.exp(score - max(seen)) / total for score in seen]
            entropy = -math.fsum(share * math.log(share) for share in shares if share)
            assert found.entropy[query, head] == pytest.approx(entropy, rel=1e-9, abs=1e-12)
            assert found.first[query, head] == pytest.approx(shares[0], rel=1e-9)
            assert found.normalized[query, head] == pytest.approx(entropy / math.log(len(seen)), rel=1e-9, abs=1e-12)


def test_equal_scores_have_the_whole_entropy_and_a_shift_changes_nothing() -> None:
    even = looks(np.full((1, 1, 8), 1e4))
    assert even.entropy[0, 0] == pytest.approx(math.log(8), rel=1e-12)
    assert even.normalized[0, 0] == pytest.approx(1.0, rel=1e-12)
    assert even.first[0, 0] == pytest.approx(1 / 8, rel=1e-12)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_broken_score_leaves_its_query_and_head_out_and_is_counted(broken: float) -> None:
    scores = np.zeros((2, 2, 4))
    scores[1, 0, 2] = broken
    stats = summary([looks(scores)])
    assert stats.entropy == pytest.approx(math.log(4), rel=1e-12)
    assert (stats.queries, stats.heads, stats.undefined) == (2, 2, 1)
    assert summary([looks(np.full((1, 1, 3), HIDDEN))]).entropy is None


def test_means_are_over_queries_and_heads_of_all_parts() -> None:
    parts = [looks(np.zeros((1, 2, 2))), looks(np.zeros((3, 2, 4)))]
    stats = summary(parts)
    assert stats.entropy == pytest.approx((math.log(2) + 3 * math.log(4)) / 4)
    assert stats.first_token_mass == pytest.approx((0.5 + 3 * 0.25) / 4)
    assert summary([]) == AttentionStats()
