"""PEFT LoRA adapters: which tensors are the factors of which weight's change, and how it is scaled.

The change of a weight is s·B·A (transposed where the weight is stored so), with s = alpha/r, or alpha/√r for rsLoRA.
Neither B nor A means anything alone. Whatever of PEFT does more than that is refused with what to run instead, never
read as if it did not. Nothing is computed here; the standard library and msgspec alone.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from archaeologist.checkpoints.header import shown
from archaeologist.checkpoints.names import canonical
from archaeologist.errors import CheckpointFormatUnsupported, ConfigInvalid
from archaeologist.files import read_bounded

CONFIG: Final = "adapter_config.json"
MAX_CONFIG_BYTES: Final = 4_000_000

CHANGE: Final = "lora_change"
"""What a weight's change is called in the place of ``weight``: it is no weight."""

_FACTOR: Final = re.compile(r"(.+)\.lora_(embedding_)?([AB])(\.default)?(\.weight)?")
_PLAIN_KEY: Final = re.compile(r"\^?[\w.]+")

_BEYOND: Final = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "lora_bias": "LoRA biases",
    "layer_replication": "replicated layers",
    "trainable_token_indices": "trainable tokens",
    "target_parameters": "LoRA of parameters",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}
_MERGE: Final = "merge it into its base model (merge_and_unload) and analyse that"

Rank = Annotated[int, Meta(ge=1, le=1_000_000)]


class _Config(Struct, frozen=True, kw_only=True):
    """The part of adapter_config.json that says what the change is."""

    peft_type: str | None = None
    r: Rank
    lora_alpha: float
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, float] | None = None
    base_model_name_or_path: str | None = None
    init_lora_weights: bool | str | None = True
    use_dora: Any = None
    use_qalora: Any = None
    use_bdlora: Any = None
    lora_bias: Any = None
    layer_replication: Any = None
    trainable_token_indices: Any = None
    target_parameters: Any = None
    alora_invocation_tokens: Any = None
    arrow_config: Any = None
    kasa_config: Any = None
    monteclora_config: Any = None


_config: Final = msgspec.json.Decoder(_Config)
"""Built while this is imported, as ``contracts.prepared`` says."""


class LowRank(Struct, frozen=True, kw_only=True):
    """The change of one weight: scaling · B · A, of the weight's shape where not transposed."""

    weight: str
    """Canonical name of the weight."""
    a: str
    """Stored name of A, (rank, inputs)."""
    b: str
    """Stored name of B, (outputs, rank)."""
    rank: int
    scaling: float
    shape: tuple[int, int]
    """Of the weight as the base stores it."""
    is_transposed: bool
    """The weight is stored as (inputs, outputs): embeddings, and GPT-2's Conv1D."""

    @property
    def name(self) -> str:
        """Of the change."""
        return f"{self.weight.removesuffix('.weight')}.{CHANGE}"


class Adapter(Struct, frozen=True, kw_only=True):
    """What an adapter changes."""

    base: str | None
    """As adapter_config.json names its base model: a path, or a name on a hub."""
    changes: tuple[LowRank, ...]
    left_out: dict[str, str] = {}
    """Stored names that say nothing about the change, each with the reason."""
    starts_from: str | None = None
    """How B and A began, where that took a part out of the base's own weights (PiSSA, OLoRA, CorDA): the base that
    they belong to is then not the model that was trained."""

    @property
    def factors(self) -> frozenset[str]:
        """Stored names of all A and B."""
        return frozenset(name for change in self.changes for name in (change.a, change.b))


def read_adapter(config_file: Path, shapes: Mapping[str, tuple[int, ...]]) -> Adapter:
    """The adapter that a configuration and its tensors describe.

    Args:
        config_file: adapter_config.json, resolved.
        shapes: Of the stored tensors by name.

    Raises:
        ConfigInvalid: The configuration is broken, or contradicts the tensors.
        CheckpointFormatUnsupported: It is another kind of adapter, or does more than B·A.
    """
    config = _read_config(config_file)
    factors: dict[str, dict[str, str]] = {}
    is_embedding: dict[str, bool] = {}
    for name in shapes:
        if found := _FACTOR.fullmatch(name):
            module = canonical(found[1])
            factors.setdefault(module, {})[found[3]] = name
            is_embedding[module] = bool(found[2])
        elif "lora_" in name or "trainable_tokens" in name:
            raise _beyond(config_file, f"tensor {shown(name)}, which is more than B·A")
    if not factors:
        raise _beyond(config_file, "no A and B")
    changes = tuple(
        _change(module, pair, shapes, config, file=config_file, is_embedding=is_embedding[module])
        for module, pair in factors.items()
    )
    changed = {change.weight for change in changes}
    frozen = (name for name in shapes if canonical(name) in changed and not _FACTOR.fullmatch(name))
    return Adapter(
        base=config.base_model_name_or_path or None,
        changes=changes,
        left_out=dict.fromkeys(frozen, "the base's own weight, under the change"),
        starts_from=_start(str(config.init_lora_weights)),
    )


def _read_config(file: Path) -> _Config:
    try:
        raw = read_bounded(file, MAX_CONFIG_BYTES)
        kind = msgspec.json.decode(raw, type=dict[str, Any]).get("peft_type", "LORA")
        if kind != "LORA":
            raise _beyond(file, f"an adapter of type {shown(kind)}")
        config = _config.decode(raw)
    except (OSError, ValueError, RecursionError) as error:
        msg = f"file {str(file)!r} is not a LoRA adapter's configuration: {error}; save the adapter again"
        raise ConfigInvalid(msg) from error
    for field, what in _BEYOND.items():
        if getattr(config, field):
            raise _beyond(file, f"{what} ({field})")
    return config


def _beyond(file: Path, what: str) -> CheckpointFormatUnsupported:
    msg = f"adapter {str(file.parent)!r} has {what}; adapters of LoRA, s·B·A for each weight, are read: {_MERGE}"
    return CheckpointFormatUnsupported(msg)


def _change(
    module: str,
    pair: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    config: _Config,
    *,
    file: Path,
    is_embedding: bool,
) -> LowRank:
    if pair.keys() != {"A", "B"}:
        msg = f"adapter {str(file.parent)!r} has only {', '.join(pair.values())} of {module!r}; save the adapter again"
        raise ConfigInvalid(msg)
    a, b = shapes[pair["A"]], shapes[pair["B"]]
    if len(a) != 2 or len(b) != 2:  # noqa: PLR2004 - rows and columns
        raise _beyond(file, f"A and B of {module!r} with shapes {a} and {b}, a convolution's for instance")
    rank = _by_pattern(config.rank_pattern, module, file=file) or config.r
    if a[0] != rank or b[1] != rank:
        msg = (
            f"adapter {str(file.parent)!r} has A of shape {a} and B of shape {b} for {module!r}, {CONFIG} says rank"
            f" {rank}; save the adapter again"
        )
        raise ConfigInvalid(msg)
    alpha = _by_pattern(config.alpha_pattern, module, file=file)
    scaling = (config.lora_alpha if alpha is None else alpha) / (math.sqrt(rank) if config.use_rslora else rank)
    is_transposed = is_embedding or config.fan_in_fan_out
    return LowRank(
        weight=f"{module}.weight",
        a=pair["A"],
        b=pair["B"],
        rank=rank,
        scaling=scaling,
        shape=(a[1], b[0]) if is_transposed else (b[0], a[1]),
        is_transposed=is_transposed,
    )


def _by_pattern(pattern: Mapping[str, Any] | None, module: str, *, file: Path) -> Any:
    """The first entry whose key is the module's name or ends it, as PEFT looks it up; None: there is none.

    PEFT takes keys as regular expressions. A stranger's are not run here: they may take for ever.
    """
    for key, value in (pattern or {}).items():
        if not _PLAIN_KEY.fullmatch(key):
            raise _beyond(file, f"the regular expression {shown(key)} as a pattern")
        name = key.removeprefix("^")
        if module == name or (key == name and module.endswith(f".{name}")):
            return value
    return None


def _start(said: str) -> str | None:
    """The way of beginning, where it changed the base: all of PEFT's others leave it as it is."""
    return None if said.lower() in {"gaussian", "eva", "orthogonal", "true", "false", "none"} else said
