"""RankMe, anisotropy, variance and CKA against their formulas written out, and on planted hidden states."""

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archaeologist.statistics.representation import (
    anisotropy,
    cka_without_outliers,
    debiased_cka,
    feature_variance,
    rankme,
    similarity,
)

Floats = npt.NDArray[np.float64]
Hidden = npt.NDArray[np.float32]


def states(seed: int, positions: int, channels: int, *, mean: float = 0.0) -> Hidden:
    return np.random.default_rng(seed).normal(mean, 1, (positions, channels)).astype(np.float32)


def rotation(seed: int, channels: int) -> Floats:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((channels, channels)))[0]


def hsic_by_definition(x: Hidden, y: Hidden) -> float:
    """The U-statistic of Song et al. 2012: a mean over all quadruples of different positions."""
    k, other = (side.astype(np.float64) @ side.astype(np.float64).T for side in (x, y))
    total = [
        k[i, j] * (other[i, j] + other[q, r] - 2 * other[i, q])
        for i, j, q, r in itertools.permutations(range(len(x)), 4)
    ]
    return math.fsum(total) / len(total)


def cka_by_definition(x: Hidden, y: Hidden) -> float:
    return hsic_by_definition(x, y) / math.sqrt(hsic_by_definition(x, x) * hsic_by_definition(y, y))


def cka_of_u_centred_matrices(x: Hidden, y: Hidden) -> float:
    """Debiased CKA as the cosine of U-centred Gram matrices (Székely and Rizzo 2014), for larger n."""
    centred = []
    for side in (x.astype(np.float64), y.astype(np.float64)):
        gram, n = side @ side.T, len(side)
        np.fill_diagonal(gram, 0)
        rows = gram.sum(axis=0) / (n - 2)
        gram += gram.sum() / ((n - 1) * (n - 2)) - rows - rows[:, None]
        np.fill_diagonal(gram, 0)
        centred.append(gram / np.linalg.norm(gram))
    return float((centred[0] * centred[1]).sum())


@pytest.mark.parametrize(("positions", "channels"), [(40, 16), (16, 40), (1, 5), (5, 1), (30, 30)])
def test_rankme_is_the_exp_entropy_of_the_singular_values(positions: int, channels: int) -> None:
    hidden = states(0, positions, channels, mean=1)
    sigmas = np.linalg.svd(hidden.astype(np.float64), compute_uv=False)
    shares = (sigmas / sigmas.sum()).tolist()
    found = rankme(hidden)
    assert found == pytest.approx(math.exp(-math.fsum(share * math.log(share) for share in shares)), rel=1e-9)


@pytest.mark.parametrize("shape", [(200, 64), (64, 200)])
def test_hidden_states_on_one_line_have_a_rank_of_one(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(1)
    # Whole numbers: the products are exact, and the states on one line to the last bit.
    hidden = np.outer(generator.integers(-99, 99, shape[0]), generator.integers(-99, 99, shape[1]))
    assert rankme(hidden.astype(np.float32)) == 1


def test_orthogonal_directions_of_one_length_have_full_rank() -> None:
    assert rankme(np.eye(32, dtype=np.float32) * 7) == pytest.approx(32)
    isotropic = rankme(states(2, 64, 4096))
    assert isotropic is not None
    assert 63 < isotropic < 64


def test_a_blend_toward_one_direction_lowers_rankme_step_by_step() -> None:
    hidden, line = states(3, 128, 64), np.outer(states(4, 128, 1), states(5, 1, 64))
    ranks = [rankme(((1 - share) * hidden + share * line).astype(np.float32)) for share in np.linspace(0, 1, 11)]
    known = [rank for rank in ranks if rank is not None]
    assert len(known) == 11
    assert known == sorted(known, reverse=True)
    assert known[0] > 50
    assert known[-1] < 1.001


def test_anisotropy_is_the_mean_cosine_of_all_pairs() -> None:
    hidden = states(7, 23, 9, mean=0.3)
    cosines = [
        float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))
        for i, a in enumerate(hidden.astype(np.float64))
        for j, b in enumerate(hidden.astype(np.float64))
        if i != j
    ]
    assert anisotropy(hidden) == pytest.approx(math.fsum(cosines) / len(cosines), rel=1e-12)


def test_one_direction_has_an_anisotropy_of_one_and_opposites_of_minus_one() -> None:
    assert anisotropy(np.outer(np.arange(1, 9), [3, 4]).astype(np.float32)) == pytest.approx(1, abs=1e-14)
    assert anisotropy(np.array([[3, 4], [-6, -8]], np.float32)) == pytest.approx(-1, abs=1e-14)
    assert anisotropy(np.eye(5, dtype=np.float32)) == 0


def test_positions_of_norm_zero_have_no_direction() -> None:
    hidden = np.array([[1, 0], [0, 0], [1, 1]], np.float32)
    assert anisotropy(hidden) == pytest.approx(math.sqrt(0.5))
    assert anisotropy(hidden[:2]) is None


def test_feature_variance_is_the_channels_mean() -> None:
    hidden = np.array([[0, 1], [2, 1], [4, 1]], np.float32)
    assert feature_variance(hidden) == pytest.approx(8 / 3 / 2)
    assert feature_variance(hidden[:1]) is None


def test_slices_change_neither_anisotropy_nor_variance() -> None:
    hidden = states(8, 700, 1000, mean=20)
    wide = hidden.astype(np.float64)
    directions = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    cosines = directions @ directions.T
    assert anisotropy(hidden) == pytest.approx((cosines.sum() - np.trace(cosines)) / (700 * 699), rel=1e-12)
    assert feature_variance(hidden) == pytest.approx(wide.var(axis=0).mean(), rel=1e-12)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10_000), positions=st.integers(4, 7), mean=st.floats(-3, 3), channels=st.sampled_from([1, 3, 8])
)
def test_debiased_cka_is_the_mean_over_all_quadruples(seed: int, positions: int, mean: float, channels: int) -> None:
    x, y = states(seed, positions, channels, mean=mean), states(seed + 1, positions, 5)
    assert debiased_cka(x, y) == pytest.approx(cka_by_definition(x, y), abs=1e-7)


def test_debiased_cka_of_many_positions_is_the_cosine_of_u_centred_matrices() -> None:
    x, noise = states(9, 300, 40, mean=2), states(10, 300, 40)
    y = (x @ rotation(11, 40) + noise).astype(np.float32)
    found = debiased_cka(x, y)
    assert found == pytest.approx(cka_of_u_centred_matrices(x, y), rel=1e-9)
    assert found is not None
    assert 0.1 < found < 0.9


def test_a_rotation_a_shift_and_a_scale_keep_a_cka_of_one() -> None:
    x = states(12, 200, 24)
    y = (x @ rotation(13, 24) * 5 + 3).astype(np.float32)
    assert debiased_cka(x, y) == pytest.approx(1, abs=1e-9)
    assert debiased_cka(x, x) == 1


@pytest.mark.parametrize("positions", [64, 256])
def test_cka_of_independent_states_is_about_zero_where_the_biased_one_is_not(positions: int) -> None:
    pairs = [(states(seed, positions, 256), states(seed + 1000, positions, 256)) for seed in range(20)]
    found = [value for x, y in pairs if (value := debiased_cka(x, y)) is not None]
    assert len(found) == 20
    assert abs(np.mean(found)) < 4 * np.std(found) / math.sqrt(20) + 1e-4
    assert max(np.abs(found)) < 0.05
    x, y = (side - side.mean(axis=0) for side in pairs[0])
    biased = np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    assert biased > 0.45


def test_one_massive_channel_feigns_similarity_until_it_is_dropped() -> None:
    x, y = states(14, 200, 64), states(15, 200, 64)
    shared = states(16, 200, 1)[:, 0] * 1000
    x[:, 5], y[:, 5] = shared, shared
    whole, rest = debiased_cka(x, y), cka_without_outliers(x, y)
    assert whole == pytest.approx(1, abs=1e-3)
    assert rest is not None
    assert abs(rest) < 0.05


def test_the_largest_channels_of_either_side_are_dropped_from_both() -> None:
    x, y = states(17, 60, 12), states(18, 60, 12)
    x[3, 2], x[4, 9], y[5, 7] = -100, 90, 80
    others = [0, 1, 3, 4, 5, 6, 8, 10, 11]
    y[6, 2] = 50  # the largest but one
    assert cka_without_outliers(x, y, channels=2) == pytest.approx(debiased_cka(x[:, others], y[:, others]), rel=1e-12)


def test_sides_of_different_widths_lose_their_own_channels() -> None:
    x, y = states(19, 60, 6), states(20, 60, 9)
    x[3, 2], y[5, 7] = -100, 80
    expected = debiased_cka(np.delete(x, 2, axis=1), np.delete(y, 7, axis=1))
    assert cka_without_outliers(x, y, channels=1) == pytest.approx(expected, rel=1e-12)


def test_similarity_has_the_same_numbers_from_one_pass() -> None:
    x, noise = states(21, 90, 20, mean=4), states(22, 90, 20)
    x[:, 3] *= 300
    y = x + noise
    skills = {"BIN": np.arange(90) < 30, "SY": np.arange(90) % 2 == 0, "rare": np.arange(90) < 3}
    found = similarity(x, y, skills=skills)
    assert found.positions == 90
    assert found.cka == pytest.approx(debiased_cka(x, y), rel=1e-10)
    assert found.cka_without_outliers == pytest.approx(cka_without_outliers(x, y), rel=1e-12)
    assert found.by_skill["rare"] is None
    for skill in ("BIN", "SY"):
        assert found.by_skill[skill] == pytest.approx(debiased_cka(x[skills[skill]], y[skills[skill]]), rel=1e-9)


def test_what_does_not_vary_or_is_not_finite_has_no_similarity() -> None:
    x, constant, broken = states(23, 30, 8), np.full((30, 8), 0.1, np.float32), states(24, 30, 8)
    broken[7, 3] = np.inf
    for other in (constant, broken):
        assert debiased_cka(x, other) is None
        assert cka_without_outliers(x, other) is None
        assert similarity(x, other, skills={"BIN": np.arange(30) < 9}).by_skill == {"BIN": None}
    # Orthogonal states of one length are equally far from each other: U-centring leaves nothing of them.
    assert debiased_cka(np.eye(8, dtype=np.float32), x[:8]) is None


def test_three_positions_and_no_channels_have_no_similarity() -> None:
    x = states(25, 8, 3)
    assert debiased_cka(x[:3], x[:3]) is None
    assert cka_without_outliers(x, x, channels=3) is None
    assert debiased_cka(x[:, :0], x[:, :0]) is None
    assert similarity(x[:0], x[:0]).cka is None


def test_states_of_other_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="8 and 7 positions"):
        debiased_cka(states(26, 8, 3), states(26, 7, 3))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_leaves_nothing_defined(value: float) -> None:
    hidden = states(27, 10, 4)
    hidden[9, 1] = value
    assert rankme(hidden) is None
    assert anisotropy(hidden) is None
    assert feature_variance(hidden) is None


def test_zeros_have_no_rank_no_direction_and_no_variance() -> None:
    zeros = np.zeros((10, 4), np.float32)
    assert (rankme(zeros), anisotropy(zeros), feature_variance(zeros)) == (None, None, 0)
    assert (rankme(zeros[:0]), anisotropy(zeros[:0]), feature_variance(zeros[:0])) == (None, None, None)
