"""Two trained campaigns of each kind, healthy and with a planted collapse, analysed as they are saved.

The long campaign of forty and its record are in ``tests/campaigns``; these are two of its seeds through the same code.
"""

from collections.abc import Iterator

import pytest
import torch

from tests.campaigns.collapse import COLLAPSE, Record, recorded
from tests.fixtures.campaigns import Pair, Plan, pair

pytestmark = pytest.mark.timeout(300)  # the first test trains for all: 20 s of processor time

SEEDS = (8, 4)
"""One collapses after six healthy saves, the other after three: against a history, and with almost none."""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Pair]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    plans = [Plan(seed=seed) for seed in SEEDS]
    yield {plan.seed: pair(plan, tmp_path_factory.mktemp(f"seed{plan.seed}"), is_cut=True) for plan in plans}
    torch.set_num_threads(threads)


@pytest.fixture(params=SEEDS)
def found(pairs: dict[int, Pair], request: pytest.FixtureRequest) -> Record:
    return recorded(Plan(seed=request.param), pairs[request.param])


def test_a_planted_collapse_is_announced_before_the_loss_doubles(found: Record) -> None:
    assert found.doubled is not None
    assert found.verdict == "before"
    assert all(told.save >= found.first_ill for told in found.ill), "and nothing before it"


def test_a_collapse_after_six_healthy_saves_is_critical_before_the_loss_doubles(pairs: dict[int, Pair]) -> None:
    found = recorded(Plan(seed=8), pairs[8])
    first = found.first(severity="critical")
    assert first is not None
    assert found.doubled is not None
    assert first < found.doubled


def test_healthy_training_raises_no_critical_alert_and_no_sign_of_collapse(found: Record) -> None:
    assert [told for told in found.healthy if told.severity == "critical" or told.family in COLLAPSE] == []


def test_every_save_was_analysed_with_activations_and_the_one_before_as_reference(pairs: dict[int, Pair]) -> None:
    for artifact in (artifact for found in pairs.values() for side in found for artifact in side):
        assert artifact.output_stats is not None
        is_first = artifact.functional_drift is None
        assert artifact.not_computed == {}
        assert is_first == (artifact.reference_checkpoint_step is None)
