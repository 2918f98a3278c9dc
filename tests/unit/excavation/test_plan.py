"""Which tensors of two checkpoints are compared, and what is said of the others."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from contracts.artifacts import Comparison
from tests.unit.excavation.checkpoints import Floats
from tests.unit.excavation.walking import planned, walked


def _checkpoint(folder: Path, tensors: dict[str, Floats]) -> Path:
    folder.mkdir()
    save_file({name: values.astype(np.float32) for name, values in tensors.items()}, folder / "model.safetensors")
    return folder


def _compared(target: Path, reference: Path) -> Comparison:
    found = planned(target, reference).comparison
    assert found is not None
    return found


def test_of_a_reference_with_and_without_a_wrapper_the_tensor_without_is_compared(tmp_path: Path) -> None:
    name, values = "model.layers.0.mlp.weight", np.arange(12.0).reshape(3, 4)
    target = _checkpoint(tmp_path / "a", {name: values})
    both = _checkpoint(tmp_path / "b", {name: values, f"module.{name}": values + 5})
    drift = walked(target, both)[name].drift
    assert drift is not None
    assert drift.difference == 0
    wrapped = _checkpoint(tmp_path / "c", {f"module.{name}": values})
    drift = walked(target, wrapped)[name].drift
    assert drift is not None
    assert drift.difference == 0


def test_a_head_that_only_the_reference_has_apart_from_its_embedding_is_named(tmp_path: Path) -> None:
    embedding = np.arange(12.0).reshape(3, 4)
    tied = {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding}
    untied = {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding + 1}
    one, other = _checkpoint(tmp_path / "tied", tied), _checkpoint(tmp_path / "untied", untied)
    assert _compared(one, other).only_in_reference == ("lm_head.weight",)
    assert _compared(one, one).only_in_reference == ()
    assert _compared(other, one).only_in_target == ()
    assert _compared(other, one).compared == 2
