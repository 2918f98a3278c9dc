"""Attention that is looked at on the way, against the eager model's own weights."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, PreTrainedModel, modeling_utils
from transformers.modeling_utils import AttentionInterface

from archaeologist.checkpoints.index import read_index
from archaeologist.checkpoints.reader import Reader
from archaeologist.excavation.forward import attention
from archaeologist.excavation.forward.activations import ActivationStatistics
from archaeologist.excavation.forward.attention import QUERIES, Attention, sampled
from archaeologist.excavation.forward.lanes import Lanes
from archaeologist.excavation.forward.model import skeleton
from archaeologist.excavation.forward.streaming import Batch, Lockstep, Side
from archaeologist.excavation.forward.tokens import Tokens
from archaeologist.excavation.walk import Walk
from contracts.artifacts import AttentionStats, LayerActivationStats
from tests.fixtures.models import VOCABULARY, model, saved
from tests.unit.excavation.walking import planned


def tokens(lengths: list[int], groups: tuple[tuple[int, ...], ...]) -> Tokens:
    generator = torch.Generator().manual_seed(5)
    ids = [tuple(torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()) for length in lengths]
    return Tokens(
        ids=tuple(ids),
        skills=(None,) * len(ids),
        batches=groups,
        truncated=False,
        sha256="",
        path="",
        pad_id=0,
    )


SOME = tokens([9, 5, 7, 4, 4], ((0, 1, 2), (3, 4)))
"""One batch with padding, one without."""


def batches(given: Tokens) -> list[Batch]:
    found = []
    for numbers in given.batches:
        longest = max(len(given.ids[number]) for number in numbers)
        rows = [given.ids[number] + (0,) * (longest - len(given.ids[number])) for number in numbers]
        mask = torch.tensor([[1] * len(given.ids[n]) + [0] * (longest - len(given.ids[n])) for n in numbers])
        found.append(Batch(input_ids=torch.tensor(rows), attention_mask=None if mask.all() else mask))
    return found


@contextmanager
def watched(folder: Path) -> Iterator[tuple[Side, Attention, dict[str, LayerActivationStats]]]:
    with ExitStack() as files:
        index = read_index(folder)
        reader = files.enter_context(Reader(index))
        side = Side(skeleton(folder, index), reader, batches(SOME), device=torch.device("cpu"))
        lanes = files.enter_context(Lanes(2))
        statistics = ActivationStatistics(SOME, lanes=lanes)
        lockstep = Lockstep(side, None, statistics.add, lanes=lanes, on_end=statistics.finish)
        files.callback(lockstep.close)
        seen = files.enter_context(Attention(side, SOME))
        plan = planned(folder)
        for _ in lockstep.through(Walk(plan, target=reader, kept_blocks=plan.run_blocks()).blocks()):
            pass
        assert lockstep.failure is None
        yield side, seen, seen.in_stats(statistics.stats)


def sharpened(made: PreTrainedModel) -> PreTrainedModel:
    """With queries far enough from zero that attention is not even."""
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if any(part in name for part in ("q_proj.weight", "k_proj.weight", "c_attn.weight", "query.weight")):
                parameter.mul_(12)
    return made


def eager(folder: Path) -> list[AttentionStats]:
    """From the weights that the loaded model returns, layer by layer."""
    made = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    made.eval()
    rows: list[list[torch.Tensor]] = []
    for batch, numbers in zip(batches(SOME), SOME.batches, strict=True):
        with torch.inference_mode():
            layers = made(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_attentions=True
            ).attentions
        rows = rows or [[] for _ in layers]
        for layer, weights in enumerate(layers):
            for row, number in enumerate(numbers):
                rows[layer] += [weights[row, :, position].double() for position in range(1, len(SOME.ids[number]))]
    found = []
    for queries in rows:
        entropies = torch.cat([-torch.special.xlogy(weights, weights).sum(dim=1) for weights in queries])
        masses = torch.cat([weights[:, 0] for weights in queries])
        # Of weights that no other than a hidden key has: exactly 0.
        seen = torch.cat([(weights > 0).sum(dim=1).double().log() for weights in queries])
        found.append(
            AttentionStats(
                entropy=float(entropies.mean()),
                normalized_entropy=float((entropies / seen).mean()),
                first_token_mass=float(masses.mean()),
                queries=len(queries),
                heads=queries[0].shape[0],
            )
        )
    return found


MODELS = ["qwen3", "llama", "mistral", "gpt2", "gemma2", "bert", "albert"]


@pytest.mark.parametrize("name", MODELS)
def test_attention_is_the_eager_models(name: str, tmp_path: Path) -> None:
    changes = {"sliding_window": 4, "attn_logit_softcapping": 0.5} if name == "gemma2" else {}
    folder = saved(sharpened(model(name, seed=1, dtype=torch.float32, **changes)), tmp_path / "a")
    with watched(folder) as (_, seen, stats):
        assert seen.missing(stats) is None
        found = [block.attention for block in stats.values() if block.attention is not None]
    expected = eager(folder)
    assert len(found) == len(expected) == 3
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.entropy == pytest.approx(theirs.entropy, rel=1e-4)
        assert mine.normalized_entropy == pytest.approx(theirs.normalized_entropy, rel=1e-4)
        assert mine.first_token_mass == pytest.approx(theirs.first_token_mass, rel=1e-4)
        assert (mine.queries, mine.heads, mine.undefined) == (theirs.queries, theirs.heads, 0)


@pytest.mark.parametrize("name", ["qwen3", "gemma2"])
def test_looking_changes_no_bit_of_the_hidden_states(name: str, tmp_path: Path) -> None:
    made = model(name, seed=1)
    with watched(saved(made, tmp_path / "a")) as (side, _, _):
        base = getattr(made, made.base_model_prefix)
        for batch, hidden in zip(batches(SOME), side.last_hidden(), strict=True):
            with torch.inference_mode():
                expected = base(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
            assert torch.equal(hidden, expected.last_hidden_state)


def test_broken_weights_are_counted_and_the_other_heads_stay(tmp_path: Path) -> None:
    made = model("llama", seed=1)
    with torch.no_grad():
        made.get_parameter("model.layers.2.self_attn.q_proj.weight")[0, 0] = float("nan")
    with watched(saved(made, tmp_path / "a")) as (_, seen, stats):
        assert seen.missing(stats) is None
        found = stats["model.layers.2"].attention
    assert found is not None
    assert found.undefined == found.queries
    assert found.entropy is not None


def test_the_registry_is_as_before_afterwards(tmp_path: Path) -> None:
    before = AttentionInterface.get_interface
    with watched(saved(model("llama", seed=1), tmp_path / "a")):
        assert AttentionInterface.get_interface is not before
    assert AttentionInterface.get_interface is before


def test_layers_that_do_not_ask_the_registry_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "transformers.models.llama.modeling_llama.ALL_ATTENTION_FUNCTIONS",
        type("Own", (), {"get_interface": staticmethod(modeling_utils.ALL_ATTENTION_FUNCTIONS.get_interface)})(),
    )
    with watched(saved(model("llama", seed=1), tmp_path / "a")) as (_, seen, stats):
        reason = seen.missing(stats)
    assert reason is not None
    assert "LlamaForCausalLM" in reason
    assert "model.layers.0, model.layers.1, model.layers.2" in reason
    assert all(block.attention is None for block in stats.values())


def test_scores_of_another_kind_are_left_out_and_the_pass_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_UNREAD", ("dropout",))
    with watched(saved(model("llama", seed=1), tmp_path / "a")) as (side, seen, stats):
        assert seen.missing(stats) == ("scores depend on dropout too: model.layers.0, model.layers.1, model.layers.2")
        assert side.last_hidden()


def test_queries_are_evenly_spaced_and_never_padding_or_a_first_position() -> None:
    given = tokens([40] * 10, (tuple(range(6)), tuple(range(6, 10))))
    found = sampled(given)
    flat = [
        (batch * 6 + row) * 39 + position - 1
        for batch, rows in enumerate(found)
        for row, positions in rows
        for position in positions
    ]
    assert len(flat) == len(set(flat)) == QUERIES
    assert flat == sorted(flat)
    assert max(later - earlier for earlier, later in pairwise(flat)) <= 4
    assert all(1 <= position < 40 for rows in found for _, positions in rows for position in positions)


def test_other_batches_look_at_the_same_positions() -> None:
    def places(given: Tokens) -> set[tuple[int, int]]:
        return {
            (given.batches[batch][row], position)
            for batch, rows in enumerate(sampled(given))
            for row, positions in rows
            for position in positions
        }

    lengths = [40, 17, 33, 25, 60, 11]
    together = places(tokens(lengths, ((5, 1), (3, 2, 0), (4,))))
    assert together == places(tokens(lengths, tuple((number,) for number in range(6))))
    assert len(together) == QUERIES


def test_few_positions_are_all_looked_at() -> None:
    assert sampled(SOME) == [
        [(0, list(range(1, 9))), (1, list(range(1, 5))), (2, list(range(1, 7)))],
        [(0, [1, 2, 3]), (1, [1, 2, 3])],
    ]
