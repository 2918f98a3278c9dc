"""From a tensor's name to its place in the model: the block, the name within it, the kind of block.

Covers every naming of Hugging Face models by structure, not by a table of architectures: a numbered member of a list
of layers is a block; what has no number is a block of its own. Wrappers of training (``_orig_mod.``, ``module.``,
``base_model.model.``) are taken off. Pure text; it does not know shapes or what a module computes.
"""

import re
from collections.abc import Container, Iterable
from typing import Final, Literal

from msgspec import Struct

LayerType = Literal["transformer_block", "embedding", "norm", "output", "other"]

# torch.compile, FSDP, activation checkpointing and PEFT (around an adapted layer) put themselves between any two
# modules.
WRAPPERS: Final = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer"})

# Around the whole model: DataParallel and DDP, PEFT.
_OUTER_WRAPPERS: Final = (("module",), ("base_model", "model"))

# One expert's tensor: Qwen3-MoE's ``mlp.experts.3.gate_proj.weight``.
_EXPERT: Final = re.compile(r"(.*\bexperts)\.([0-9]{1,9})\..+")

# ``layers``, ``layer``, ``encoder_layers``, ``albert_layers``, ``block``, ``blocks``, GPT-2's ``h``.
_LIST: Final = re.compile(r"^(h|(.*_)?(res)?(layer|block)s?)$", re.IGNORECASE)

# What a part of a module's name says about it, first match wins: a norm after the embedding is a norm, and
# ``embed_out`` is a head.
_OUTPUT: Final = re.compile(
    r"^(lm_head|embed_out|output|score|cls|classifier|pooler|head|heads|(qa|lm|logits?)_outputs?|final_logits_bias"
    r"|.*_head|.*classifier|generator_lm_head|vocab_projector|vocab_transform)$",
    re.IGNORECASE,
)
_NORM: Final = re.compile(r"(^|_)(ln|norm|layernorm|rmsnorm|batchnorm)(_|\d|$)|layer_?norm", re.IGNORECASE)
_EMBEDDING: Final = re.compile(r"^(wte|wpe|shared)$|embed", re.IGNORECASE)

_RANK: Final[dict[LayerType, int]] = {"embedding": 0, "transformer_block": 2, "other": 3, "norm": 4, "output": 5}
_EMBEDDING_NORM_RANK: Final = 1
_EARLY: Final = ("encoder", "vision", "visual", "audio")
_LONGEST_NUMBER: Final = 9


class Place(Struct, frozen=True, kw_only=True):
    """Where a tensor belongs."""

    block: str
    """``model.layers.0``, ``model.embed_tokens``, ``lm_head``."""
    within: str
    """The rest of the name: ``self_attn.q_proj.weight``."""
    layer_type: LayerType


class Block(Struct, frozen=True, kw_only=True):
    """A block and its tensors."""

    name: str
    layer_type: LayerType
    tensors: dict[str, str] = {}
    """Name within the block → name as stored, in the order they came."""


def canonical(tensor_name: str) -> str:
    """The name without what wrappers of training added to it; the same tensor has the same one in every checkpoint."""
    parts = [part for part in tensor_name.split(".") if part not in WRAPPERS]
    while wrapper := next(
        (one for one in _OUTER_WRAPPERS if len(parts) > len(one) and parts[: len(one)] == [*one]), None
    ):
        del parts[: len(wrapper)]
    return ".".join(parts)


def place(tensor_name: str) -> Place:
    """The block that a tensor belongs to, its name in there, and the block's kind. Never raises."""
    parts = canonical(tensor_name).split(".")
    numbered = _numbered(parts)
    if numbered:
        return _place(parts, numbered, "transformer_block")
    modules = parts[:-1] or parts
    for depth, part in enumerate(modules, start=1):
        if kind := _kind(part):
            return _place(parts, depth, kind)
    return _place(parts, len(modules), "other")


def group(names: Iterable[str]) -> dict[str, Block]:
    """The blocks of a model in the order of its forward pass: embeddings, numbered blocks, final norm, head.

    Args:
        names: Tensor names as stored.
    """
    found: dict[str, tuple[LayerType, dict[str, str]]] = {}
    # One checkpoint may hold a tensor with its wrapper and without: both are kept, the former under its full name.
    for name in sorted(names, key=lambda name: name != canonical(name)):
        where = place(name)
        members = found.setdefault(where.block, (where.layer_type, {}))[1]
        members[_free(members, where.within, name)] = name
    blocks = (Block(name=name, layer_type=kind, tensors=members) for name, (kind, members) in found.items())
    return {block.name: block for block in sorted(blocks, key=_order)}


def is_bias(within: str) -> bool:
    """Whether a tensor is a bias: ``bias``, ``dt_bias``, an LSTM's ``bias_ih_l0``; not ``relative_bias.weight``."""
    last = within.rpartition(".")[2]
    return last == "bias" or last.startswith("bias_") or last.endswith("_bias")


def expert_of(within: str) -> tuple[str, int] | None:
    """The mixture and the number of the expert that a block's tensor belongs to; None: to no single expert."""
    found = _EXPERT.fullmatch(within)
    return (found[1], int(found[2])) if found else None


def _free(members: Container[str], within: str, name: str) -> str:
    """A name for a tensor in its block that no other has: its name within, else its full one."""
    if within not in members:
        return within
    # Only parameters without a module can have taken the full name too.
    while name in members:
        name += "_"
    return name


def _numbered(parts: list[str]) -> int:
    """How many parts name the numbered block; 0: there is none. The first list counts, so experts stay inside."""
    for index in range(1, len(parts) - 1):
        if _is_number(parts[index]) and _LIST.match(parts[index - 1]):
            return index + 1
    return 0


def _kind(part: str) -> LayerType | None:
    if _OUTPUT.match(part):
        return "output"
    if _NORM.search(part):
        return "norm"
    if _EMBEDDING.search(part):
        return "embedding"
    return None


def _place(parts: list[str], depth: int, kind: LayerType) -> Place:
    # A parameter without a module is its own block, under its own name.
    within = parts[depth:] or parts[-1:]
    return Place(block=".".join(parts[:depth]), within=".".join(within), layer_type=kind)


def _order(block: Block) -> tuple[int, bool, list[tuple[bool, int, str]], str]:
    """Kind, then encoders before decoders and vision before language, then the name with its numbers as numbers."""
    rank = _RANK[block.layer_type]
    if block.layer_type == "norm" and _EMBEDDING.search(block.name):
        rank = _EMBEDDING_NORM_RANK
    parts = block.name.split(".")
    is_later = not any(part.startswith(_EARLY) for part in parts)
    numbers = [(True, int(part), "") if _is_number(part) else (False, 0, part) for part in parts]
    return rank, is_later, numbers, block.name


def _is_number(part: str) -> bool:
    # isdecimal alone would take other scripts' digits; a number that long is a name.
    return part.isascii() and part.isdecimal() and len(part) <= _LONGEST_NUMBER
