"""A model without its weights: the code of transformers around parameters on the meta device, and where each belongs.

Every parameter is matched with a tensor of the checkpoint by its name; with what ``checkpoints.names`` says about that
tensor, the module that is the block follows from the two names. No table of architectures.
"""

import contextlib
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from msgspec import Struct
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from archaeologist.checkpoints.index import CONFIG, MAX_CONFIG_BYTES, CheckpointIndex, TensorEntry
from archaeologist.checkpoints.names import canonical, place
from archaeologist.checkpoints.reader import Reader
from archaeologist.errors import ModelUnsupported
from archaeologist.files import read_bounded

MAX_MODULES: Final = 4096
"""Layers, or experts in a layer, at most: many times those of any known model."""
OWN_ATTENTION: Final = (None, "eager", "sdpa")
"""Attention that is transformers' own code."""

_COUNT: Final = re.compile(r"(layer|block|expert|head|depth)s?$")

DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}


class TensorsStoredOtherwise(ModelUnsupported):
    """The checkpoint's tensors are not the model's parameters; transformers converts them when it loads the model."""


class Slot(Struct, frozen=True):
    """A parameter's place in a module, and the tensor that belongs there."""

    module: nn.Module
    attribute: str
    entry: TensorEntry
    empty: nn.Parameter
    """The parameter on the meta device, which tells dtype and shape."""


class Unit(Struct, frozen=True):
    """What is put in place at once: a block of the checkpoint and the module that uses it."""

    name: str
    module: nn.Module
    slots: tuple[Slot, ...]
    is_token_table: bool = False
    """Whether it is the token embeddings and nothing else; of these only some rows are needed."""


class Skeleton(Struct, frozen=True):
    """A model whose parameters are on the meta device."""

    model: PreTrainedModel
    base: nn.Module
    """The model without its head."""
    units: dict[str, Unit]
    """By block, without the head's."""
    head: Unit | None
    """None for an encoder; its module is the whole model, for what comes between head and logits."""
    dtype: torch.dtype


def skeleton(folder: Path, index: CheckpointIndex) -> Skeleton:
    """The model that the checkpoint's configuration describes, ready to take its weights block by block.

    Args:
        folder: With config.json.
        index: The checkpoint's tensors.

    Raises:
        ModelUnsupported: transformers does not know it.
        TensorsStoredOtherwise: Names or shapes of the tensors do not fit its code.
    """
    config = _config(folder)
    kind = AutoModelForCausalLM if has_head(config) else AutoModel
    dtype = _dtype(config, index)
    try:
        with _parameters_on_meta():
            model = kind.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    except Exception as error:
        msg = f"the model of {str(folder)!r} cannot be built: {error}; its config.json must fit transformers' own code"
        raise ModelUnsupported(msg) from error
    model.eval()
    base = getattr(model, model.base_model_prefix, model) if kind is AutoModelForCausalLM else model
    units = _units(model, index)
    inside = {id(module) for module in base.modules()}
    outer = [unit for unit in units.values() if id(unit.module) not in inside]
    if kind is not AutoModelForCausalLM:
        return Skeleton(model, base, units, None, dtype)
    slots = tuple(slot for unit in outer for slot in unit.slots)
    head = Unit("head", model, slots)
    return Skeleton(model, base, {name: unit for name, unit in units.items() if unit not in outer}, head, dtype)


def whole(folder: Path, index: CheckpointIndex, reader: Reader) -> Skeleton:
    """The model with its weights, for an architecture whose tensors are not stored as its code has them.

    Its units hold no slots: nothing is left to put in place. transformers opens safetensors itself; what is stored
    otherwise is read here and handed to it.

    Args:
        folder: The checkpoint's.
        index: Its tensors.
        reader: Its open files.

    Raises:
        ModelUnsupported: transformers cannot load it.
    """
    config = _config(folder)
    kind = AutoModelForCausalLM if has_head(config) else AutoModel
    try:
        if index.format == "safetensors":
            model = kind.from_pretrained(
                folder,
                config=config,
                dtype="auto",
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
            )
        else:
            weights = {canonical(name): tensor(entry, reader) for name, entry in index.tensors.items()}
            # With a state_dict the class must be named; a mapping gives one class a configuration, or a tuple of them.
            known: Any = kind._model_mapping[type(config)]  # noqa: SLF001 - nowhere else to read
            known = known[0] if isinstance(known, tuple) else known
            model = known.from_pretrained(None, config=config, state_dict=weights, dtype=_dtype(config, index))
    except Exception as error:
        msg = f"the model of {str(folder)!r} cannot be loaded: {str(error).splitlines()[0]}; its files must be complete"
        raise ModelUnsupported(msg) from error
    model.eval()
    base = getattr(model, model.base_model_prefix, model) if kind is AutoModelForCausalLM else model
    inside = {id(module) for module in base.modules()}
    units = {}
    for parameter in dict(model.named_parameters()):
        where = place(parameter)
        module = model.get_submodule(parameter.removesuffix(f".{where.within}"))
        if id(module) in inside:
            units[where.block] = Unit(where.block, module, ())
    head = Unit("head", model, ()) if kind is AutoModelForCausalLM else None
    return Skeleton(model, base, units, head, model.dtype)


def tensor(entry: TensorEntry, reader: Reader, at_hand: npt.NDArray[np.uint8] | None = None) -> torch.Tensor:
    """A tensor of the checkpoint as it is stored, sharing memory with the bytes where they are at hand."""
    if at_hand is None:
        at_hand = np.empty(entry.size, np.uint8)
        reader.read(entry, 0, at_hand.data)
    return torch.from_numpy(at_hand).view(DTYPES[entry.dtype]).reshape(entry.shape)


def has_head(config: PreTrainedConfig) -> bool:
    """Whether the checkpoint is a causal language model; an encoder is run without a head."""
    names = getattr(config, "architectures", None) or []
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    return bool(causal) and (not names or names[0] == causal)


def hidden_size(model: Skeleton) -> int:
    """Channels of a hidden state; of the text's part, where a model sees images too."""
    return int(model.model.config.get_text_config().hidden_size)


def _config(folder: Path) -> PreTrainedConfig:
    # Before transformers sees it: configurations make lists as long as their counts.
    _check_counts(_written(folder))
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        text = str(error).split("\n", maxsplit=1)[0]
        msg = f"config.json of {str(folder)!r} describes no model that transformers runs by itself: {text}"
        raise ModelUnsupported(msg) from error
    if getattr(config, "is_encoder_decoder", False):
        msg = f"{config.model_type!r} is an encoder with a decoder, which cannot be run on probes; weights only"
        raise ModelUnsupported(msg)
    if getattr(config, "quantization_config", None) is not None:
        msg = f"the checkpoint in {str(folder)!r} is quantised; activations need its weights as floats"
        raise ModelUnsupported(msg)
    # Of another name transformers loads code from a hub, or from a library that may not be there.
    if any(part._attn_implementation not in OWN_ATTENTION for part in _parts(config)):  # noqa: SLF001 - nowhere else to read
        config._attn_implementation = None  # noqa: SLF001 - the same
    config.use_cache = False
    return config


def _parts(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """A configuration and those of its parts, text and images for instance."""
    found = (getattr(config, name, None) for name in config.sub_configs)
    return [config, *(part for part in found if isinstance(part, PreTrainedConfig))]


def _written(folder: Path) -> Any:
    """The configuration as it is written."""
    file = folder / CONFIG
    try:
        return msgspec.json.decode(read_bounded(file.resolve(strict=True), MAX_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError, RuntimeError) as error:
        msg = f"{str(file)!r} cannot be read: {error}; the model's configuration must lie beside its weights"
        raise ModelUnsupported(msg) from error


def _check_counts(values: Any) -> None:
    """Passes a configuration that does not ask for millions of modules: they need no weights to take memory."""
    for name, value in values.items() if isinstance(values, Mapping) else ():
        _check_counts(value)
        if isinstance(value, int) and value > MAX_MODULES and _COUNT.search(name):
            msg = f"config.json says {name} = {value}, at most {MAX_MODULES} are built; correct it"
            raise ModelUnsupported(msg)


def _dtype(config: PreTrainedConfig, index: CheckpointIndex) -> torch.dtype:
    """As the configuration says, else what most of the values are stored in; nothing computes in 8 bits."""
    found = getattr(config, "dtype", None)
    if not isinstance(found, torch.dtype):
        sizes: dict[str, int] = {}
        for entry in index.tensors.values():
            sizes[entry.dtype] = sizes.get(entry.dtype, 0) + math.prod(entry.shape)
        found = DTYPES[max(sizes, key=lambda dtype: sizes[dtype])]
    return found if found.itemsize > 1 else torch.bfloat16


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters made in this block take no memory; buffers, which no checkpoint stores, get their values."""
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None:
            module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=False)  # noqa: SLF001 - as nn.Module

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


# From parameters to tensors.


def _units(model: PreTrainedModel, index: CheckpointIndex) -> dict[str, Unit]:
    found = _matched(model, index)
    slots: dict[str, list[Slot]] = {}
    paths: dict[str, str] = {}
    for parameter, entry in found.items():
        module_path, _, attribute = parameter.rpartition(".")
        name, path = _unit_of(parameter, entry)
        # Two modules that share a block's tensors, a head tied to the embedding for one, are units of their own.
        while paths.setdefault(name, path) != path:
            name, path = parameter.rpartition(".")[0], module_path
        module = model.get_submodule(module_path)
        slots.setdefault(name, []).append(Slot(module, attribute, entry, module._parameters[attribute]))  # type: ignore[arg-type]  # noqa: SLF001
    table = model.get_input_embeddings()
    return {
        name: Unit(
            name,
            module := model.get_submodule(paths[name]),
            tuple(held),
            module is table and isinstance(module, nn.Embedding) and len(held) == 1,
        )
        for name, held in slots.items()
    }


def _unit_of(parameter: str, entry: TensorEntry) -> tuple[str, str]:
    """Name and module of the block that a parameter belongs to."""
    where = place(entry.name)
    if parameter.endswith(f".{where.within}"):
        return where.block, parameter.removesuffix(f".{where.within}")
    module_path = parameter.rpartition(".")[0]
    return module_path or where.block, module_path


def _matched(model: PreTrainedModel, index: CheckpointIndex) -> dict[str, TensorEntry]:
    """Each parameter's tensor.

    Raises:
        TensorsStoredOtherwise: One has none, or one of another shape.
    """
    stored = {canonical(name): entry for name, entry in index.tensors.items()}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found = {name: entry for name in parameters if (entry := _stored(name, model.base_model_prefix, stored))}
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    for name, source in tied.items():
        if name not in found and source in found:
            found[name] = found[source]
    left = [entry for entry in stored.values() if entry not in found.values()]
    for name in [name for name in parameters if name not in found]:
        # A renamed tensor, ``embed_out`` for ``lm_head``: the only one of this shape that is left.
        alike = [entry for entry in left if entry.shape == tuple(parameters[name].shape)]
        if len(alike) != 1:
            msg = f"no tensor is stored for {name!r} of {type(model).__name__}"
            raise TensorsStoredOtherwise(msg)
        found[name] = alike[0]
    for name, entry in found.items():
        if entry.shape != tuple(parameters[name].shape):
            wanted = tuple(parameters[name].shape)
            msg = f"{entry.name!r} has shape {entry.shape} and {type(model).__name__} wants {wanted}"
            raise TensorsStoredOtherwise(msg)
    return found


def _stored(name: str, prefix: str, stored: Mapping[str, TensorEntry]) -> TensorEntry | None:
    """A checkpoint of the model without its head has no prefix, and one with a head has it."""
    candidates = (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}")
    return next((stored[candidate] for candidate in candidates if candidate in stored), None)
