"""Blocks and names of real models, built without weights by transformers, and names that nobody should write."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from archaeologist.checkpoints.names import canonical, group, is_bias, place

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "pad_token_id": 0,
}
OPT = {"hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 12, "num_attention_heads": 4, "word_embed_proj_dim": 8}
T5 = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 12, "num_heads": 4, "vocab_size": 64}
EXPERTS = SMALL | {"num_local_experts": 4}

# Architecture, configuration, blocks that are numbered, and all others in order.
MODELS: list[tuple[str, dict[str, Any], list[str], list[str], list[str]]] = [
    ("Qwen3ForCausalLM", SMALL, ["model.layers"], ["model.embed_tokens"], ["model.norm", "lm_head"]),
    ("Qwen2ForCausalLM", SMALL, ["model.layers"], ["model.embed_tokens"], ["model.norm", "lm_head"]),
    ("LlamaForCausalLM", SMALL, ["model.layers"], ["model.embed_tokens"], ["model.norm", "lm_head"]),
    ("MistralForCausalLM", SMALL, ["model.layers"], ["model.embed_tokens"], ["model.norm", "lm_head"]),
    ("GemmaForCausalLM", SMALL, ["model.layers"], ["model.embed_tokens"], ["model.norm", "lm_head"]),
    ("PhiForCausalLM", SMALL, ["model.layers"], ["model.embed_tokens"], ["model.final_layernorm", "lm_head"]),
    ("MixtralForCausalLM", EXPERTS, ["model.layers"], ["model.embed_tokens"], ["model.norm", "lm_head"]),
    (
        "GPT2LMHeadModel",
        {"n_embd": 16, "n_layer": 12, "n_head": 4, "vocab_size": 64},
        ["transformer.h"],
        ["transformer.wpe", "transformer.wte"],
        ["transformer.ln_f", "lm_head"],
    ),
    ("GPTNeoXForCausalLM", SMALL, ["gpt_neox.layers"], ["gpt_neox.embed_in"], ["gpt_neox.final_layer_norm", "lm_head"]),
    ("BertForMaskedLM", SMALL, ["bert.encoder.layer"], ["bert.embeddings"], ["cls"]),
    (
        "T5ForConditionalGeneration",
        T5,
        ["encoder.block", "decoder.block"],
        ["encoder.embed_tokens", "decoder.embed_tokens", "shared"],
        ["encoder.final_layer_norm", "decoder.final_layer_norm", "lm_head"],
    ),
    ("MambaForCausalLM", SMALL, ["backbone.layers"], ["backbone.embeddings"], ["backbone.norm_f", "lm_head"]),
    (
        "BloomForCausalLM",
        {"hidden_size": 16, "n_layer": 12, "n_head": 4, "vocab_size": 64},
        ["transformer.h"],
        ["transformer.word_embeddings", "transformer.word_embeddings_layernorm"],
        ["transformer.ln_f", "lm_head"],
    ),
    (
        "OPTForCausalLM",
        OPT,
        ["model.decoder.layers"],
        ["model.decoder.embed_positions", "model.decoder.embed_tokens"],
        ["model.decoder.project_in", "model.decoder.project_out", "model.decoder.final_layer_norm", "lm_head"],
    ),
    ("FalconForCausalLM", SMALL, ["transformer.h"], ["transformer.word_embeddings"], ["transformer.ln_f", "lm_head"]),
]
LEGITIMATELY_OTHER = {"model.decoder.project_in", "model.decoder.project_out"}


def parameter_names(architecture: str, options: dict[str, Any]) -> list[str]:
    model_class = getattr(transformers, architecture)
    with torch.device("meta"):
        model = model_class(model_class.config_class(**options))
    # remove_duplicate: a tied head has a name of its own in some checkpoints.
    return [name for name, _ in model.named_parameters(remove_duplicate=False)]


@pytest.mark.parametrize(("architecture", "options", "stacks", "before", "after"), MODELS, ids=[m[0] for m in MODELS])
def test_blocks_of_a_real_model_come_in_the_order_of_its_forward_pass(
    architecture: str, options: dict[str, Any], stacks: list[str], before: list[str], after: list[str]
) -> None:
    names = parameter_names(architecture, options)
    blocks = group(sorted(names))
    numbered = [f"{stack}.{number}" for stack in stacks for number in range(12)]
    assert list(blocks) == [*before, *numbered, *after]
    assert {name for name, block in blocks.items() if block.layer_type == "transformer_block"} == set(numbered)
    others = {name for name, block in blocks.items() if block.layer_type == "other"}
    assert others <= LEGITIMATELY_OTHER
    assert sorted(stored for block in blocks.values() for stored in block.tensors.values()) == sorted(names)


@pytest.mark.parametrize(
    ("name", "block", "within", "layer_type"),
    [
        ("model.layers.0.self_attn.q_proj.weight", "model.layers.0", "self_attn.q_proj.weight", "transformer_block"),
        ("transformer.h.11.attn.c_attn.bias", "transformer.h.11", "attn.c_attn.bias", "transformer_block"),
        ("h.3.ln_1.weight", "h.3", "ln_1.weight", "transformer_block"),
        ("gpt_neox.layers.5.mlp.weight", "gpt_neox.layers.5", "mlp.weight", "transformer_block"),
        ("bert.encoder.layer.2.output.dense.bias", "bert.encoder.layer.2", "output.dense.bias", "transformer_block"),
        (
            "encoder.block.1.layer.0.SelfAttention.q.weight",
            "encoder.block.1",
            "layer.0.SelfAttention.q.weight",
            "transformer_block",
        ),
        ("backbone.layers.7.mixer.A_log", "backbone.layers.7", "mixer.A_log", "transformer_block"),
        (
            "model.language_model.layers.4.mlp.up_proj.weight",
            "model.language_model.layers.4",
            "mlp.up_proj.weight",
            "transformer_block",
        ),
        ("model.layers.0.mlp.experts.63.w1.weight", "model.layers.0", "mlp.experts.63.w1.weight", "transformer_block"),
        ("visual.blocks.3.attn.qkv.weight", "visual.blocks.3", "attn.qkv.weight", "transformer_block"),
        (
            "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn.weight",
            "albert.encoder.albert_layer_groups.0.albert_layers.0",
            "ffn.weight",
            "transformer_block",
        ),
        ("model.embed_tokens.weight", "model.embed_tokens", "weight", "embedding"),
        ("wte.weight", "wte", "weight", "embedding"),
        ("bert.embeddings.LayerNorm.weight", "bert.embeddings", "LayerNorm.weight", "embedding"),
        ("model.norm.weight", "model.norm", "weight", "norm"),
        ("transformer.ln_f.bias", "transformer.ln_f", "bias", "norm"),
        ("lm_head.weight", "lm_head", "weight", "output"),
        ("lm_head.dense.weight", "lm_head", "dense.weight", "output"),
        ("embed_out.weight", "embed_out", "weight", "output"),
        ("cls.predictions.transform.dense.weight", "cls", "predictions.transform.dense.weight", "output"),
        ("score.weight", "score", "weight", "output"),
        ("classifier.0.weight", "classifier", "0.weight", "output"),
        ("v_head.summary.weight", "v_head", "summary.weight", "output"),
        ("model.mm_projector.0.weight", "model.mm_projector.0", "weight", "other"),
        ("logit_scale", "logit_scale", "logit_scale", "other"),
        ("weight", "weight", "weight", "other"),
        ("model.layers.0", "model.layers", "0", "other"),
        ("0.weight", "0", "weight", "other"),
        ("model.layers.٣.weight", "model.layers.٣", "weight", "other"),
        ("", "", "", "other"),
        (".", "", "", "other"),
    ],
)
def test_a_tensor_has_its_place(name: str, block: str, within: str, layer_type: str) -> None:
    found = place(name)
    assert (found.block, found.within, found.layer_type) == (block, within, layer_type)


@pytest.mark.parametrize(
    "wrapped",
    [
        "_orig_mod.model.layers.0.mlp.up_proj.weight",
        "module.model.layers.0.mlp.up_proj.weight",
        "module.module._orig_mod.module.model.layers.0.mlp.up_proj.weight",
        "_orig_mod._orig_mod.module.model.layers.0.mlp.up_proj.weight",
        "model.layers.0._orig_mod.mlp.up_proj.weight",
        "base_model.model.model.layers.0.mlp.up_proj.weight",
        "module.base_model.model._orig_mod.module.model.layers.0.mlp.up_proj.base_layer.weight",
        "_fsdp_wrapped_module.model.layers.0._checkpoint_wrapped_module.mlp.up_proj.weight",
    ],
)
def test_wrappers_of_training_are_taken_off(wrapped: str) -> None:
    assert canonical(wrapped) == "model.layers.0.mlp.up_proj.weight"
    assert place(wrapped) == place("model.layers.0.mlp.up_proj.weight")


def test_a_module_called_module_further_in_stays() -> None:
    assert canonical("model.module.weight") == "model.module.weight"
    assert canonical("module") == "module"


def test_blocks_are_ordered_by_number_and_not_by_text() -> None:
    names = [f"model.layers.{number}.mlp.weight" for number in (10, 2, 1, 0, 100)]
    assert [block.rpartition(".")[2] for block in group(names)] == ["0", "1", "2", "10", "100"]


def test_a_tensor_stored_with_and_without_its_wrapper_is_kept_twice() -> None:
    names = ["model.norm.weight", "module.model.norm.weight"]
    assert group(names)["model.norm"].tensors == {"weight": names[0], names[1]: names[1]}


def test_no_tensors_are_no_blocks() -> None:
    assert group([]) == {}


@pytest.mark.parametrize(
    ("within", "expected"),
    [
        ("bias", True),
        ("self_attn.q_proj.bias", True),
        ("mixer.dt_bias", True),
        ("mlp.gate.e_score_correction_bias", True),
        ("rnn.bias_ih_l0", True),
        ("weight", False),
        ("layer.0.SelfAttention.relative_attention_bias.weight", False),
        ("debiased", False),
        ("", False),
    ],
)
def test_a_bias_is_told_by_its_last_name(within: str, *, expected: bool) -> None:
    assert is_bias(within) is expected


PARTS = st.sampled_from(
    ["model", "layers", "h", "0", "12", "_orig_mod", "module", "norm", "embed", "lm_head", "weight", ""]
)


def joined() -> Iterator[st.SearchStrategy[str]]:
    yield st.lists(PARTS, max_size=8).map(".".join)
    yield st.text(max_size=40)


@given(st.lists(st.one_of(*joined()), unique=True, max_size=12))
def test_any_names_are_grouped_without_losing_one(names: list[str]) -> None:
    blocks = group(names)
    assert sorted(stored for block in blocks.values() for stored in block.tensors.values()) == sorted(names)
    assert all(place(stored).block == name for name, block in blocks.items() for stored in block.tensors.values())
    assert list(group(reversed(names))) == list(blocks)
