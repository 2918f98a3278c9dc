"""Predictions and functional drift against sums in Python's floats, and on planted logits."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from archaeologist.excavation.forward import divergence
from archaeologist.excavation.forward.divergence import PredictionResult, Predictions
from archaeologist.excavation.forward.lanes import Lanes
from contracts.artifacts import OutputDrift, OutputStats

INF = math.inf


def logits(seed: int, positions: int, vocabulary: int, *, scale: float = 3.0) -> torch.Tensor:
    return torch.randn((positions, vocabulary), generator=torch.Generator().manual_seed(seed)) * scale


def ids(seed: int, positions: int, vocabulary: int) -> torch.Tensor:
    return torch.randint(vocabulary, (positions,), generator=torch.Generator().manual_seed(seed))


def predictions(
    target: torch.Tensor,
    reference: torch.Tensor | None = None,
    *,
    next_ids: torch.Tensor | None = None,
    skills: Sequence[str | None] | None = None,
    threads: int = 2,
) -> PredictionResult:
    with Lanes(threads) as lanes:
        found = Predictions(has_reference=reference is not None, lanes=lanes)
        follows = torch.zeros(len(target), dtype=torch.int64) if next_ids is None else next_ids
        found.add(target, reference, follows, skills or [None] * len(target))
        return found.result()


def drift(target: torch.Tensor, reference: torch.Tensor, *, threads: int = 2) -> OutputDrift:
    found = predictions(target, reference, threads=threads).drift
    assert found is not None
    return found


def softmax(row: Sequence[float]) -> list[float]:
    weights = [math.exp(value - max(row)) for value in row]
    return [weight / math.fsum(weights) for weight in weights]


def entropy(shares: Sequence[float]) -> float:
    return -math.fsum(share * math.log(share) for share in shares if share > 0)


def kl(shares: Sequence[float], others: Sequence[float]) -> float:
    pairs = [(p, q) for p, q in zip(shares, others, strict=True) if p > 0]
    return INF if any(q == 0 for _, q in pairs) else math.fsum(p * math.log(p / q) for p, q in pairs)


def js(shares: Sequence[float], others: Sequence[float]) -> float:
    middle = [(p + q) / 2 for p, q in zip(shares, others, strict=True)]
    return (kl(shares, middle) + kl(others, middle)) / 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_number_is_that_of_its_definition(dtype: torch.dtype) -> None:
    target, reference = logits(0, 9, 50).to(dtype), logits(1, 9, 50).to(dtype)
    next_ids = ids(2, 9, 50)
    found = predictions(target, reference, next_ids=next_ids)
    mine, theirs = ([softmax(row) for row in side.double().tolist()] for side in (target, reference))
    pairs = list(zip(mine, theirs, strict=True))

    def mean(values: Sequence[float]) -> object:
        return pytest.approx(math.fsum(values) / len(values), rel=1e-11)

    follows = next_ids.tolist()
    assert found.output == OutputStats(
        positions=9,
        entropy=mean([entropy(shares) for shares in mine]),  # type: ignore[arg-type]
        loss=mean([-math.log(shares[token]) for shares, token in zip(mine, follows, strict=True)]),  # type: ignore[arg-type]
    )
    assert found.reference_output is not None
    assert found.reference_output.entropy == mean([entropy(shares) for shares in theirs])
    assert found.reference_output.loss == mean([-math.log(s[token]) for s, token in zip(theirs, follows, strict=True)])
    assert found.drift is not None
    assert found.drift.kl == mean([kl(r, p) for p, r in pairs])
    assert found.drift.js == mean([js(r, p) for p, r in pairs])
    tops = [(row.index(max(row)), other.index(max(other))) for row, other in pairs]
    assert found.drift.top1_agreement == sum(top == other for top, other in tops) / 9


def test_two_tokens_by_hand() -> None:
    # Target 3:1, reference 1:1.
    found = predictions(torch.tensor([[math.log(3), 0.0]]), torch.zeros((1, 2)), next_ids=torch.tensor([1]))
    assert found.output.loss == pytest.approx(math.log(4))
    assert found.output.entropy == pytest.approx(math.log(4) - 0.75 * math.log(3))
    assert found.reference_output == OutputStats(positions=1, entropy=math.log(2), loss=math.log(2))
    assert found.drift is not None
    # KL(reference ‖ target), not the other way round, which is 0.75·ln 3 - ln 2 = 0.131.
    assert found.drift.kl == pytest.approx(math.log(4) - math.log(2) - 0.5 * math.log(3))
    assert found.drift.top1_agreement == 1


def test_equal_logits_have_no_drift() -> None:
    same = logits(3, 20, 1000).to(torch.bfloat16)
    found = drift(same, same.clone())
    assert (found.kl, found.top1_agreement) == (0, 1)
    assert found.js == pytest.approx(0, abs=1e-14)


def test_a_shift_of_all_logits_is_no_drift() -> None:
    same = logits(4, 5, 100).double()
    assert drift(same + 7.5, same).kl == pytest.approx(0, abs=1e-14)


def test_a_tiny_drift_keeps_its_digits() -> None:
    reference = logits(5, 4, 2000, scale=2).double()
    change = logits(6, 4, 2000, scale=1e-5).double()
    shares = torch.softmax(reference, dim=1)
    # For small changes KL is half the variance of the change under the reference.
    mean = (shares * change).sum(dim=1, keepdim=True)
    expected = float(((shares * (change - mean) ** 2).sum(dim=1) / 2).mean())
    assert expected < 1e-10
    found = drift(reference + change, reference)
    assert found.kl == pytest.approx(expected, rel=1e-3)
    assert found.js == pytest.approx(expected / 4, rel=1e-2)


def test_certain_and_different_predictions_are_as_far_apart_as_can_be() -> None:
    found = predictions(torch.tensor([[2000.0, 0.0]]), torch.tensor([[0.0, 2000.0]]))
    assert found.output.entropy == 0
    assert found.drift == OutputDrift(positions=1, kl=2000.0, js=math.log(2), top1_agreement=0)


@settings(deadline=None)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([0.0, 1e-3, 1.0, 30.0]), vocabulary=st.integers(1, 40))
def test_divergences_stay_within_their_bounds(seed: int, scale: float, vocabulary: int) -> None:
    target = logits(seed, 3, vocabulary)
    found = predictions(target + logits(seed + 1, 3, vocabulary, scale=scale), target)
    assert found.drift is not None
    assert found.drift.kl is not None
    assert found.drift.js is not None
    assert 0 <= found.drift.js <= math.log(2)
    assert found.drift.js <= found.drift.kl / 2 + 1e-14
    assert found.output.entropy is not None
    assert 0 <= found.output.entropy <= math.log(vocabulary) + 1e-14


def test_slices_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    target, reference, next_ids = logits(7, 23, 60), logits(8, 23, 60), ids(9, 23, 60)
    skills = [("BIN", None, "SY")[number % 3] for number in range(23)]
    whole = predictions(target, reference, next_ids=next_ids, skills=skills)
    monkeypatch.setattr(divergence, "_PIECE_VALUES", 60 * 4)
    with Lanes(2) as lanes:
        found = Predictions(has_reference=True, lanes=lanes)
        for piece in (slice(13, 23), slice(6), slice(6, 6), slice(6, 13)):
            found.add(target[piece], reference[piece], next_ids[piece], skills[piece])
    sliced = found.result()
    assert sliced.output.positions == whole.output.positions == 23
    pairs: list[tuple[OutputStats | OutputDrift | None, OutputStats | OutputDrift | None]] = [
        (sliced.output, whole.output),
        (sliced.reference_output, whole.reference_output),
        (sliced.drift, whole.drift),
        *((sliced.drift_by_skill[skill], whole.drift_by_skill[skill]) for skill in ("BIN", "SY")),
        *((sliced.output_by_skill[skill], whole.output_by_skill[skill]) for skill in ("BIN", "SY")),
    ]
    for mine, theirs in pairs:
        assert mine is not None
        for field in mine.__struct_fields__:
            assert getattr(mine, field) == pytest.approx(getattr(theirs, field), rel=1e-13)


def test_threads_change_nothing_and_torch_keeps_its_number() -> None:
    target, reference = logits(25, 11, 60), logits(26, 11, 60)
    before = torch.get_num_threads()
    alone = drift(target, reference, threads=1)
    for count in (2, 3, 20):
        shared = drift(target, reference, threads=count)
        assert (shared.positions, shared.top1_agreement) == (11, alone.top1_agreement)
        assert shared.kl == pytest.approx(alone.kl, rel=1e-13)
        assert shared.js == pytest.approx(alone.js, rel=1e-13)
        with ThreadPoolExecutor(1) as pool:
            later = pool.submit(torch.get_num_threads).result()
        assert torch.get_num_threads() == later == before


def test_a_skill_has_the_numbers_of_its_positions_alone() -> None:
    target, reference, next_ids = logits(10, 8, 30), logits(11, 8, 30), ids(12, 8, 30)
    skills = ["BIN", None, "SY", "BIN", None, "SY", "SY", "BIN"]
    found = predictions(target, reference, next_ids=next_ids, skills=skills)
    assert list(found.output_by_skill) == list(found.drift_by_skill) == ["BIN", "SY"]
    only = torch.tensor([0, 3, 7])
    alone = predictions(target[only], reference[only], next_ids=next_ids[only])
    assert found.output_by_skill["BIN"] == alone.output
    assert found.drift_by_skill["BIN"] == alone.drift
    assert found.output.positions == 8


def test_without_a_reference_there_is_no_drift() -> None:
    found = predictions(logits(13, 4, 10), skills=["BIN"] * 4)
    assert (found.reference_output, found.drift, found.drift_by_skill) == (None, None, {})
    assert found.output_by_skill["BIN"] == found.output


@pytest.mark.parametrize("value", [math.nan, INF])
def test_positions_without_predictions_are_left_out_and_counted(value: float) -> None:
    target, reference, next_ids = logits(14, 6, 20), logits(15, 6, 20), ids(16, 6, 20)
    target[1, 3] = value
    reference[4, 5] = value
    found = predictions(target, reference, next_ids=next_ids)
    both = torch.tensor([0, 2, 3, 5])
    assert found.drift == drift(target[both], reference[both])
    mine = torch.tensor([0, 2, 3, 4, 5])
    assert found.output.loss == predictions(target[mine], next_ids=next_ids[mine]).output.loss
    assert (found.output.positions, found.output.nonfinite_positions) == (5, 1)
    assert found.reference_output is not None
    assert (found.reference_output.positions, found.reference_output.nonfinite_positions) == (5, 1)


def test_a_token_of_minus_infinity_has_a_probability_of_zero() -> None:
    target, reference = logits(17, 3, 8), logits(18, 3, 8)
    target[:, 6:] = -INF
    reference[:, 6:] = -INF
    found, without = predictions(target, reference), predictions(target[:, :6], reference[:, :6])
    assert found.output.entropy == pytest.approx(without.output.entropy)
    assert found.drift is not None
    assert without.drift is not None
    assert found.drift.kl == pytest.approx(without.drift.kl)
    assert found.drift.js == pytest.approx(without.drift.js)


def test_what_the_target_calls_impossible_has_an_infinite_divergence_which_is_null() -> None:
    target = logits(19, 3, 8)
    target[1, 2] = -INF
    found = predictions(target, logits(20, 3, 8), next_ids=torch.tensor([0, 2, 0]))
    assert found.drift is not None
    assert (found.drift.positions, found.drift.kl, found.output.loss) == (3, None, None)
    assert found.drift.js is not None
    assert found.output.entropy is not None
    nothing = torch.full((1, 8), -INF)
    assert predictions(nothing).output == OutputStats(nonfinite_positions=1)


def test_of_several_largest_logits_the_first_counts_on_both_sides() -> None:
    target = torch.tensor([[1.0, 2, 2, 0], [2, 0, 0, 2]])
    reference = torch.tensor([[0.0, 5, 1, 5], [0, 0, 0, 1]])
    assert drift(target, reference).top1_agreement == 0.5


def test_no_positions_have_no_predictions() -> None:
    assert Predictions(has_reference=False, lanes=Lanes(1)).result().output == OutputStats()
    found = predictions(torch.zeros((0, 5)), torch.zeros((0, 5)))
    assert (found.output, found.drift) == (OutputStats(), OutputDrift())


def test_the_logits_given_are_left_as_they_were() -> None:
    target, reference = logits(21, 4, 9).double(), logits(22, 4, 9).double()
    before = target.numpy().copy(), reference.numpy().copy()
    predictions(target.requires_grad_(), reference)
    np.testing.assert_array_equal(target.detach().numpy(), before[0])
    np.testing.assert_array_equal(reference.numpy(), before[1])


def test_what_cannot_be_compared_is_refused() -> None:
    one, follows = logits(23, 2, 9), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="9 and 8 tokens"):
        predictions(one, logits(24, 2, 8))
    with pytest.raises(ValueError, match="of a reference: False, expected: True"):
        Predictions(has_reference=True, lanes=Lanes(1)).add(one, None, follows, [None, None])
    with pytest.raises(ValueError, match="of a reference: True, expected: False"):
        Predictions(has_reference=False, lanes=Lanes(1)).add(one, one, follows, [None, None])
    with pytest.raises(ValueError, match=r"\[1, 2\] positions"):
        Predictions(has_reference=False, lanes=Lanes(1)).add(one, None, follows, [None])
