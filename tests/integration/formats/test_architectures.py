"""Ten published architectures, shrunk, saved by transformers and analysed: every parameter has a block and a kind."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.fixtures.models import saved
from tests.integration.formats.excavating import stats

_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "pad_token_id": 0,
}
_EXPERTS = {**_SMALL, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

# Configuration, and the blocks that are not numbered with their kinds.
_ROOT = {"model.embed_tokens": "embedding", "model.norm": "norm"}
_HEAD = {"lm_head": "output"}
ARCHITECTURES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "qwen3": ({**_SMALL, "head_dim": 8, "tie_word_embeddings": True}, _ROOT),
    "qwen3_moe": ({**_EXPERTS, "head_dim": 8, "decoder_sparse_step": 1}, _ROOT | _HEAD),
    "llama": (_SMALL, _ROOT | _HEAD),
    "mistral": (_SMALL, _ROOT | _HEAD),
    "mixtral": (_EXPERTS, _ROOT | _HEAD),
    "gemma": ({**_SMALL, "head_dim": 8}, _ROOT),
    "phi": (_SMALL, {"model.embed_tokens": "embedding", "model.final_layernorm": "norm"} | _HEAD),
    "gpt2": (
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 100},
        {"transformer.wpe": "embedding", "transformer.wte": "embedding", "transformer.ln_f": "norm"},
    ),
    "gpt_neox": (
        _SMALL,
        {"gpt_neox.embed_in": "embedding", "gpt_neox.final_layer_norm": "norm", "embed_out": "output"},
    ),
    "mamba": (_SMALL, {"backbone.embeddings": "embedding", "backbone.norm_f": "norm"}),
}


def made(name: str) -> PreTrainedModel:
    torch.manual_seed(1)
    config = AutoConfig.for_model(name, **ARCHITECTURES[name][0])
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    return model


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_parameter_of_a_published_architecture_has_a_block_and_a_kind(name: str, tmp_path: Path) -> None:
    model = made(name)
    artifact = stats(saved(model, tmp_path / name))
    kinds = {block: found.layer_type for block, found in artifact.weight_stats.items()}
    numbered = [block for block, kind in kinds.items() if kind == "transformer_block"]
    assert [block.rpartition(".")[2] for block in numbered] == ["0", "1"]
    assert {block: kind for block, kind in kinds.items() if block not in numbered} == ARCHITECTURES[name][1]
    parameters = [parameter.detach() for parameter in model.parameters()]
    assert artifact.global_weight_stats.param_count == sum(parameter.numel() for parameter in parameters)
    norm = math.sqrt(math.fsum(float((parameter.double() ** 2).sum()) for parameter in parameters))
    assert artifact.global_weight_stats.l2 == pytest.approx(norm, rel=1e-9)
    assert not artifact.coverage.skipped


@pytest.mark.parametrize(("name", "mixture"), [("qwen3_moe", "mlp.experts"), ("mixtral", "block_sparse_moe.experts")])
def test_experts_are_told_one_by_one_and_together(name: str, mixture: str, tmp_path: Path) -> None:
    model = made(name)
    before = saved(model, tmp_path / "before")
    start = {key: value.double().clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 3:  # all experts in one tensor, as transformers holds them
                parameter[2] += 0.25
    artifact = stats(saved(model, tmp_path / "after"), before)
    block = "model.layers.1"
    now = {
        key: value.double() for key, value in model.state_dict().items() if key.startswith(block) and value.dim() == 3
    }
    was = {key: start[key] for key in now}
    assert now

    experts = artifact.weight_stats[block].experts[mixture]
    squares = sum((value**2).sum(dim=(1, 2)) for value in now.values())
    assert isinstance(squares, torch.Tensor)
    assert experts.experts == (0, 1, 2, 3)
    assert experts.expert_l2 == pytest.approx(squares.sqrt().tolist(), rel=1e-9)
    assert experts.l2 == pytest.approx(math.sqrt(squares.sum()), rel=1e-9)
    assert experts.param_count == sum(value.numel() for value in now.values())

    moved = artifact.drift_stats[block].experts[mixture]
    change = sum(((now[key] - was[key]) ** 2).sum(dim=(1, 2)) for key in now)
    size = sum((was[key] ** 2).sum(dim=(1, 2)) for key in was)
    assert isinstance(change, torch.Tensor)
    assert isinstance(size, torch.Tensor)
    assert moved.most_changed == 2
    assert moved.expert_l2 == pytest.approx(change.sqrt().tolist(), rel=1e-9)
    assert moved.expert_relative_l2 == pytest.approx((change / size).sqrt().tolist(), rel=1e-9)
    assert moved.relative_l2 == pytest.approx(math.sqrt(change.sum() / size.sum()), rel=1e-9)
