"""Models saved by ``torch.save``: analysed like the same weights in safetensors."""

from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from msgspec.structs import replace
from safetensors.torch import load_file
from transformers import PreTrainedModel

from contracts.artifacts import LayerStats
from tests.fixtures.models import model, saved
from tests.fixtures.tokenizers import save_tokenizer
from tests.integration.formats.excavating import drift, stats

VOCABULARY = 300


def made(seed: int, *, name: str = "qwen3") -> PreTrainedModel:
    return model(name, seed=seed, vocab_size=VOCABULARY)


def as_safetensors(made: PreTrainedModel, folder: Path) -> Path:
    return save_tokenizer(saved(made, folder), vocabulary=VOCABULARY, has_start=True)


def as_pickle(made: PreTrainedModel, folder: Path, *, shards: bool = False, is_zip: bool = True) -> Path:
    folder.mkdir()
    made.config.architectures = [type(made).__name__]
    made.config.save_pretrained(folder)
    if shards:
        save_torch_state_dict(made.state_dict(), folder, safe_serialization=False, max_shard_size=40_000)
        assert len(list(folder.glob("pytorch_model-*-of-*.bin"))) > 1
    else:
        torch.save(made.state_dict(), folder / "pytorch_model.bin", _use_new_zipfile_serialization=is_zip)
    return save_tokenizer(folder, vocabulary=VOCABULARY, has_start=True)


def results(artifact: LayerStats) -> LayerStats:
    """What does not depend on where and when it was computed, or in which files."""
    assert artifact.probe_info is not None
    blank: dict[str, Any] = {
        "checkpoint_path": "",
        "reference_checkpoint_path": None,
        "created_at": "",
        "compute_duration_sec": 0.0,
        "fingerprint": "",
        "reference_fingerprint": None,
        "timings": {},
    }
    return replace(
        artifact,
        **blank,
        probe_info=replace(artifact.probe_info, tokenizer_path=""),
        coverage=replace(artifact.coverage, tied={}, tensors_listed=0, tensors_read=0, bytes_listed=0, bytes_read=0),
        reference_coverage=None,
        comparison=None,
        warnings=(),
    )


@pytest.mark.parametrize(
    "how", [{}, {"is_zip": False}, {"shards": True}], ids=["pytorch_model.bin", "legacy", "sharded"]
)
def test_a_model_saved_by_torch_gives_what_it_gives_in_safetensors(tmp_path: Path, how: dict[str, bool]) -> None:
    before, after = made(1), made(2)
    expected = stats(
        as_safetensors(after, tmp_path / "s2"), as_safetensors(before, tmp_path / "s1"), compute_activations=True
    )
    found = stats(
        as_pickle(after, tmp_path / "p2", **how), as_pickle(before, tmp_path / "p1", **how), compute_activations=True
    )
    assert found.activation_stats
    assert found.functional_drift is not None
    assert results(found) == results(expected)
    # torch keeps the tied head, under the bytes of the embedding; safetensors does not.
    assert found.coverage.tied == {"lm_head.weight": "model.embed_tokens.weight"}


def test_the_drift_of_pickled_weights_is_that_of_the_tensors(tmp_path: Path) -> None:
    before, after = made(1, name="llama"), made(2, name="llama")
    artifact = drift(as_safetensors(before, tmp_path / "a"), as_pickle(after, tmp_path / "b"))
    for name, tensor in after.state_dict().items():
        distance = float((tensor.double() - before.state_dict()[name].double()).norm())
        block = next(block for block in artifact.layer_drift.values() if name in block.params)
        assert block.params[name] == pytest.approx(distance, rel=1e-9)
    assert not artifact.comparison.only_in_target
    assert not artifact.comparison.only_in_reference


def test_a_pickled_model_whose_tensors_are_stored_otherwise_is_loaded_whole(tmp_path: Path) -> None:
    mixture = made(1, name="mixtral")
    expected = stats(as_safetensors(mixture, tmp_path / "s"), compute_activations=True)
    per_expert = tmp_path / "p"
    as_pickle(mixture, per_expert)

    torch.save(load_file(tmp_path / "s" / "model.safetensors"), per_expert / "pytorch_model.bin")
    found = stats(per_expert, compute_activations=True)
    assert found.forward is not None
    assert found.forward.way == "whole"
    assert results(found) == results(expected)
