"""Checkpoints to measure on: the shapes of real models, random weights, and the same after a little training.

Every value is random and the two checkpoints of a pair differ everywhere, as they do after a step of training; or
nothing is written but headers, and the shards are holes, which take no disk and show memory alone.
"""

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from msgspec import Struct

MOVED: Final = 0.05
"""How far the target's weights are from the reference's, in standard deviations."""
SHARD_BYTES: Final = 5_000_000_000
"""As transformers saves them."""
_CHUNK: Final = 1 << 20
_VALUE_BYTES: Final = 2
_SCALE: Final = np.float32(0.02)


class Shape(Struct, frozen=True, kw_only=True):
    """A decoder of Qwen3's kind, in bfloat16."""

    layers: int
    hidden: int
    heads: int
    intermediate: int
    key_value_heads: int = 8
    head_size: int = 128
    vocabulary: int = 151_936
    is_tied: bool = True


SIZES: Final = {
    "0.6b": Shape(layers=28, hidden=1024, heads=16, intermediate=3072),
    "1.7b": Shape(layers=28, hidden=2048, heads=16, intermediate=6144),
    "4b": Shape(layers=36, hidden=2560, heads=32, intermediate=9728),
    "8b": Shape(layers=36, hidden=4096, heads=32, intermediate=12_288, is_tied=False),
    "70b": Shape(layers=80, hidden=8192, heads=64, intermediate=28_672, vocabulary=128_256, is_tied=False),
    "400b": Shape(layers=126, hidden=16_384, heads=128, intermediate=53_248, vocabulary=128_256, is_tied=False),
}
"""By the name that ``bench --size`` takes: Qwen3's own, and the dimensions of Llama 3's two largest."""


class Pair(NamedTuple):
    """Two checkpoints' folders."""

    target: Path
    reference: Path


def make_pair(folder: Path, shape: Shape, *, has_holes: bool = False) -> Pair:
    """A checkpoint, and the one that it came from.

    Args:
        folder: Empty, or not there yet.
        shape: Of both.
        has_holes: No weights are written: the shards are holes, whose bytes read as 0.
    """
    return Pair(
        target=make(folder / "checkpoint-2", shape, moved=MOVED, has_holes=has_holes),
        reference=make(folder / "checkpoint-1", shape, moved=0, has_holes=has_holes),
    )


def make(folder: Path, shape: Shape, *, moved: float, has_holes: bool = False) -> Path:
    """A checkpoint's folder with config.json and shards.

    Args:
        folder: Empty, or not there yet.
        shape: The model's.
        moved: How far from the weights that the shape has by itself.
        has_holes: As for ``make_pair``.
    """
    folder.mkdir(parents=True)
    shards = list(_shards(shapes(shape)))
    weight_map: dict[str, str] = {}
    seed = 0
    for number, shard in enumerate(shards, 1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        weight_map |= dict.fromkeys(shard, name)
        with (folder / name).open("wb") as file:
            file.write(_header(shard))
            for size in shard.values():
                if has_holes:
                    file.truncate(file.seek(_VALUE_BYTES * prod(size), 1))
                else:
                    file.writelines(_values(prod(size), seed=2 * seed, moved=moved))
                seed += 1
    if len(shards) > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(_config(shape)))
    return folder


def shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """The parameters."""
    queries, keys = shape.heads * shape.head_size, shape.key_value_heads * shape.head_size
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocabulary, shape.hidden)}
    for layer in range(shape.layers):
        found |= {
            f"model.layers.{layer}.{name}.weight": size
            for name, size in {
                "input_layernorm": (shape.hidden,),
                "self_attn.q_proj": (queries, shape.hidden),
                "self_attn.k_proj": (keys, shape.hidden),
                "self_attn.v_proj": (keys, shape.hidden),
                "self_attn.o_proj": (shape.hidden, queries),
                "self_attn.q_norm": (shape.head_size,),
                "self_attn.k_norm": (shape.head_size,),
                "post_attention_layernorm": (shape.hidden,),
                "mlp.gate_proj": (shape.intermediate, shape.hidden),
                "mlp.up_proj": (shape.intermediate, shape.hidden),
                "mlp.down_proj": (shape.hidden, shape.intermediate),
            }.items()
        }
    found["model.norm.weight"] = (shape.hidden,)
    return found if shape.is_tied else found | {"lm_head.weight": (shape.vocabulary, shape.hidden)}


def _shards(tensors: Mapping[str, tuple[int, ...]]) -> Iterator[dict[str, tuple[int, ...]]]:
    shard: dict[str, tuple[int, ...]] = {}
    filled = 0
    for name, size in tensors.items():
        if shard and filled + _VALUE_BYTES * prod(size) > SHARD_BYTES:
            yield shard
            shard, filled = {}, 0
        shard[name] = size
        filled += _VALUE_BYTES * prod(size)
    yield shard


def _header(shard: Mapping[str, tuple[int, ...]]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, size in shard.items():
        start, end = end, end + _VALUE_BYTES * prod(size)
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [start, end]}
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    return len(content).to_bytes(8, "little") + content


def _values(count: int, *, seed: int, moved: float) -> Iterator[bytes]:
    """Normal weights as bfloat16, a million at a time."""
    weights, steps = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    for start in range(0, count, _CHUNK):
        size = min(_CHUNK, count - start)
        chunk = weights.standard_normal(size, np.float32)
        if moved:
            chunk += steps.standard_normal(size, np.float32) * np.float32(moved)
        yield ((chunk * _SCALE).view(np.uint32) >> 16).astype(np.uint16).tobytes()


def _config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_value_heads,
        "head_dim": shape.head_size,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.is_tied,
        "torch_dtype": "bfloat16",
    }


def write_tokenizer(folder: Path, texts: Iterator[str]) -> None:
    """A tokenizer of the texts' own words, so that a generated checkpoint can be run on probes."""
    words = {word: None for text in islice(texts, 10_000) for word in text.split()}
    vocabulary = {word: number for number, word in enumerate(["<unk>", "<pad>", *words])}
    document = {
        "version": "1.0",
        "added_tokens": [
            {
                "id": number,
                "content": word,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for number, word in enumerate(("<unk>", "<pad>"))
        ],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(document))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))
