"""Paths that are known to run straight, at random or to and fro, against hand-computed and simulated ones."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from msgspec.structs import replace

from archaeologist.statistics.drift import RESOLUTION_GATE
from archaeologist.statistics.trajectory import FEWEST, WINDOW, Path, course, effective_intervals, straightness

Floats = npt.NDArray[np.float64]


def path_of(points: Floats, **fields: Any) -> Path:
    """The path through points, one a row, by plain arithmetic."""
    changes = [points[number + 1] - points[number] for number in range(len(points) - 1)]
    lengths = [math.sqrt(sum(value * value for value in change)) for change in changes]
    cosines = [
        float(sum(one * other for one, other in zip(changes[number], changes[number + 1], strict=True)))
        / (lengths[number] * lengths[number + 1])
        for number in range(len(changes) - 1)
        if lengths[number] and lengths[number + 1]
    ]
    displacement = math.sqrt(sum(value * value for value in points[-1] - points[0]))
    measured = {"changed": [1.0] * len(lengths), "rates": lengths, **fields}
    below = [None if share is None else share < RESOLUTION_GATE for share in measured["changed"]]
    measured.setdefault("below_resolution", below)
    return Path(lengths=lengths, displacement=displacement, cosines=cosines, **measured)


def walked(changes: Floats) -> Floats:
    return np.concatenate([np.zeros((1, changes.shape[1])), np.cumsum(changes, axis=0)])


def random_changes(count: int, *, seed: int = 0, dimensions: int = 2000) -> Floats:
    return np.random.default_rng(seed).standard_normal((count, dimensions))


def test_effective_intervals_are_the_number_of_equal_ones_and_fewer_of_unequal_ones() -> None:
    assert effective_intervals([2.0, 2.0, 2.0]) == pytest.approx(3.0)
    assert effective_intervals([3.0, 1.0]) == pytest.approx(16 / 10)
    assert effective_intervals([5.0, 0.0]) == pytest.approx(1.0)
    assert effective_intervals([0.0]) is None
    assert effective_intervals([]) is None


def test_straightness_of_a_right_angle() -> None:
    assert straightness(5.0, [3.0, 4.0]) == pytest.approx(5 / 7)
    assert straightness(None, [3.0]) is None
    assert straightness(0.0, [0.0]) is None


def test_a_straight_path_is_directed() -> None:
    found = course(path_of(walked(np.ones((6, 3)))))
    assert found.kind == "directed"
    assert found.straightness == pytest.approx(1.0)
    assert found.scaled_straightness == pytest.approx(math.sqrt(6))
    assert found.lag1_cosine == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(10))
def test_a_random_walk_is_diffusive_also_while_its_steps_shrink(seed: int) -> None:
    changes = random_changes(15, seed=seed)
    shrinking = changes * (0.7 ** np.arange(15))[:, None]
    for walk in (changes, shrinking):
        found = course(path_of(walked(walk), rates=[1.0] * 15))
        assert found.kind == "diffusive"
        assert found.scaled_straightness == pytest.approx(1.0, abs=0.1)
    plain = straightness(*_ends(walked(shrinking)))
    assert plain is not None
    assert plain * math.sqrt(15) > 1.6, "with the plain number it would be called directed"


def _ends(points: Floats) -> tuple[float, list[float]]:
    path = path_of(points)
    assert path.displacement is not None
    return path.displacement, list(path.lengths)


def test_going_to_and_fro_is_thrashing() -> None:
    changes = np.ones((6, 4)) * np.array([1, -1, 1, -1, 1, -1])[:, None] + 0.1 * random_changes(6, dimensions=4)
    found = course(path_of(walked(changes)))
    assert found.kind == "thrashing"
    assert found.lag1_cosine is not None
    assert found.lag1_cosine < -0.9


def test_a_great_circle_is_none_of_these() -> None:
    angles = np.linspace(0, 2 * math.pi, 13)
    found = course(path_of(np.stack([np.cos(angles), np.sin(angles)], axis=1)))
    assert found.kind == "undetermined"
    assert "comes back" in found.reason


def test_three_intervals_tell_no_direction() -> None:
    assert course(path_of(walked(np.ones((FEWEST - 1, 3))))).kind == "undetermined"
    assert course(path_of(walked(np.ones((FEWEST, 3))))).kind == "directed"


def test_nothing_that_moves_is_bit_frozen_and_one_changed_bit_is_not() -> None:
    still = walked(np.zeros((2, 3)))
    assert course(path_of(still, changed=[0.0, 0.0])).kind == "bit_frozen"
    assert course(path_of(still, changed=[None, None])).kind == "bit_frozen"
    # -0 for 0 is another bit and no distance.
    assert course(path_of(still, changed=[0.0, 1e-9])).kind == "below_resolution"


def test_rounding_comes_before_direction() -> None:
    straight = walked(np.ones((6, 3)))
    assert course(path_of(straight, changed=[0.4, 0.4, 0.4, 0.9, 0.9, 0.9])).kind == "below_resolution"
    assert course(path_of(straight, changed=[0.4, 0.4, 0.9, 0.9, 0.9, 0.9])).kind == "directed"
    assert course(path_of(straight, changed=[None, None, None, None, None, 0.4])).kind == "below_resolution"
    assert course(path_of(straight, changed=[None] * 6)).kind == "directed"


def test_few_values_that_moved_farther_than_rounding_have_a_direction() -> None:
    straight = walked(np.ones((6, 3)))
    assert course(path_of(straight, changed=[0.1] * 6, below_resolution=[False] * 6)).kind == "directed"


def test_intervals_in_which_nothing_changed_are_no_rounding() -> None:
    unfrozen = walked(np.concatenate([np.zeros((3, 3)), np.ones((6, 3))]))
    assert course(path_of(unfrozen, changed=[0.0] * 3 + [1.0] * 6)).kind == "directed"
    assert course(path_of(unfrozen, changed=[0.0] * 3 + [0.2] * 3 + [1.0] * 3)).kind == "below_resolution"


def test_only_turning_round_needs_neighbouring_changes() -> None:
    straight = path_of(walked(np.ones((6, 3))))
    assert course(replace(straight, cosines=())).kind == "directed"
    back = replace(straight, cosines=(), displacement=0.1)
    assert course(back).kind == "undetermined"
    assert "whether by turning round is not known" in course(back).reason
    assert course(replace(back, cosines=(-0.9,))).kind == "thrashing"


def test_settled_is_a_tenth_of_its_own_peak_three_times_running() -> None:
    points = walked(np.ones((6, 3)))
    assert course(path_of(points, rates=[1.0, 0.5, 0.2, 0.09, 0.09, 0.09])).kind == "settled"
    assert course(path_of(points, rates=[1.0, 0.5, 0.2, 0.09, 0.11, 0.09])).kind == "directed"
    assert course(path_of(points, rates=[0.09, 0.09, 0.09])).kind == "directed"


def test_without_a_sketch_there_is_no_direction() -> None:
    path = path_of(walked(np.ones((6, 3))))
    lost = replace(path, displacement=None, cosines=())
    assert course(lost).kind == "undetermined"
    assert "no sketch" in course(lost).reason
    assert course(Path()).kind == "undetermined"


def test_the_window_is_longer_than_the_fewest_intervals() -> None:
    assert WINDOW > FEWEST
