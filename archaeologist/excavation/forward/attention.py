"""Where the target's layers look: attention recomputed from queries and keys, for some of the probes' positions.

Fused attention returns no weights. So what transformers' registry of attention functions hands out is wrapped: the
function itself is called unchanged, and then its query, key, scaling and mask are looked at. Called by ``probing``.
"""

import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Self

import numpy as np
import torch
from msgspec.structs import replace
from transformers.modeling_utils import AttentionInterface

from archaeologist.checkpoints.names import place
from archaeologist.excavation.forward.stepper import Stepper
from archaeologist.excavation.forward.streaming import Side
from archaeologist.excavation.forward.tokens import Tokens
from archaeologist.statistics.attention import Looks, looks, summary
from archaeologist.statistics.distribution import Floats
from contracts.artifacts import LayerActivationStats

QUERIES: Final = 128
"""Positions that are looked at, evenly spaced."""
_ARGUMENTS: Final = ("module", "query", "key", "value", "attention_mask")
"""Of an attention function, in their order."""
_UNREAD: Final = ("s_aux", "sinks", "position_bias", "indices", "block_indices")
"""Options that change the scores in ways that are not recomputed here."""
_NAMED: Final = 3

Function = Callable[..., Any]


class UnreadScoresError(Exception):
    """A layer's scores are more than queries times keys; the message says what."""


class Attention:
    """Looks on while the target's forward passes run; a context manager."""

    def __init__(self, side: Side, tokens: Tokens) -> None:
        """Changes nothing yet."""
        self._side = side
        self._queries = sampled(tokens)
        self._blocks = _blocks(side)
        self._calls: dict[tuple[int, int], int] = {}
        self._found: dict[str, list[Looks]] = {}
        self._failures: dict[str, str] = {}

    def __enter__(self) -> Self:
        """Wraps what the registry hands out, a model's own eager function too: both come from this look-up."""
        self._get_interface = get_interface = AttentionInterface.get_interface

        def wrapped(registry: AttentionInterface, name: str, default: Function) -> Function:
            return self._watched(get_interface(registry, name, default))

        AttentionInterface.get_interface = wrapped  # type: ignore[method-assign,assignment]
        return self

    def __exit__(self, *_: object) -> None:
        """Puts the registry back as it was."""
        AttentionInterface.get_interface = self._get_interface  # type: ignore[method-assign]

    def in_stats(self, stats: Mapping[str, LayerActivationStats]) -> dict[str, LayerActivationStats]:
        """The activations with what was found in its places."""
        return {
            name: replace(block, attention=summary(self._found[name]) if name in self._found else None)
            for name, block in stats.items()
        }

    def missing(self, stats: Mapping[str, LayerActivationStats]) -> str | None:
        """Why blocks have none; None where every transformer block has."""
        if self._failures:
            reasons = dict.fromkeys(self._failures.values())
            return "; ".join(f"{why}: {_listed([b for b, w in self._failures.items() if w == why])}" for why in reasons)
        without = [name for name in stats if name not in self._found and _is_layer(name)]
        if not without:
            return None
        model = type(self._side.model.model).__name__
        return f"{model} takes no attention function from transformers' registry in {_listed(without)}"

    def _watched(self, usual: Function) -> Function:
        def watched(*arguments: Any, **options: Any) -> Any:
            found = usual(*arguments, **options)
            self._look(dict(zip(_ARGUMENTS, arguments, strict=False)) | options)
            return found

        return watched

    def _look(self, given: Mapping[str, Any]) -> None:
        """Whatever goes wrong here, the forward pass goes on."""
        stepper = Stepper.running()
        block = self._blocks.get(id(given.get("module")))
        batch = next((number for number, own in enumerate(self._side.steppers) if own is stepper), None)
        if block is None or batch is None:
            return
        # A block whose weights several layers share is called once for each.
        call = self._calls[id(given["module"]), batch] = self._calls.get((id(given["module"]), batch), 0) + 1
        name = block if call == 1 else f"{block} (call {call})"
        try:
            found = [looks(part) for part in _scores(given, self._queries[batch])]
            self._found.setdefault(name, []).extend(found)
        except UnreadScoresError as reason:
            self._failures[name] = str(reason)
        except Exception as error:  # noqa: BLE001 - any model's attention comes here; where it failed is in the log
            traceback.print_exc()
            self._failures[name] = f"{type(error).__name__}: {error}"


def sampled(tokens: Tokens) -> list[list[tuple[int, list[int]]]]:
    """By batch: rows and the positions in them that are looked at.

    Evenly spaced over all positions in the order of the probes, so that other batches change nothing; no padding, and
    no sequence's first position, which sees itself only.
    """
    rows_of = {
        number: (batch, row) for batch, numbers in enumerate(tokens.batches) for row, number in enumerate(numbers)
    }
    places = [(*rows_of[number], position) for number, ids in enumerate(tokens.ids) for position in range(1, len(ids))]
    count = min(QUERIES, len(places))
    found: list[dict[int, list[int]]] = [{} for _ in tokens.batches]
    for number in range(count):
        batch, row, position = places[(2 * number + 1) * len(places) // (2 * count)]
        found[batch].setdefault(row, []).append(position)
    return [list(rows.items()) for rows in found]


def _scores(given: Mapping[str, Any], queries: list[tuple[int, list[int]]]) -> Iterator[Floats]:
    """One row's scores after another, (positions, heads, keys); -infinity where a key is not seen."""
    if odd := [name for name in _UNREAD if given.get(name) is not None]:
        msg = f"scores depend on {odd[0]} too"
        raise UnreadScoresError(msg)
    rows = [row for row, _ in queries]
    # NumPy from here on: on pieces this small torch's threads do little but wait for each other.
    keys = _wide(given["key"][rows])
    asked = _wide(given["query"][rows])
    masks = _masks(given, rows)
    scaling = given.get("scaling")
    scaling = asked.shape[-1] ** -0.5 if scaling is None else float(scaling)
    for number, (_, positions) in enumerate(queries):
        # Several heads of queries share one of keys, in runs.
        grouped = asked[number][:, positions].reshape(keys.shape[1], -1, asked.shape[-1])
        # What is not finite is counted later.
        with np.errstate(invalid="ignore", over="ignore"):
            found = (grouped @ keys[number].swapaxes(-1, -2) * scaling).reshape(asked.shape[1], len(positions), -1)
            if (cap := given.get("softcap")) is not None:
                found = np.tanh(found / cap) * cap
            found += masks[number % len(masks)][:, positions, : found.shape[-1]]
        yield found.swapaxes(0, 1)


def _masks(given: Mapping[str, Any], rows: list[int]) -> Floats:
    """What is added to scores, (rows or 1, heads or 1, queries, keys): -infinity where a key is not seen."""
    mask, key, query = given.get("attention_mask"), given["key"], given["query"]
    if mask is None:
        is_causal = given.get("is_causal")
        is_causal = getattr(given["module"], "is_causal", True) if is_causal is None else is_causal
        seen = np.tri(query.shape[2], key.shape[2], dtype=bool) if is_causal else np.True_
        return np.where(seen, 0.0, -np.inf) + np.zeros((1, 1, query.shape[2], key.shape[2]))
    if mask.dim() != 4:  # noqa: PLR2004 - sequences, heads, queries, keys
        msg = f"the mask has {mask.dim()} axes and not 4"
        raise UnreadScoresError(msg)
    own = mask[rows] if len(mask) > 1 else mask
    if own.dtype == torch.bool:
        return np.where(own.cpu().numpy(), 0.0, -np.inf)
    # Models hide with the least value of the dtype, not with infinity.
    added = _wide(own)
    return np.where(added <= torch.finfo(own.dtype).min / 2, -np.inf, added)


def _wide(values: torch.Tensor) -> Floats:
    found: Floats = values.cpu().double().numpy()
    return found


def _blocks(side: Side) -> dict[int, str]:
    """The block that each module is in, by the module's identity; of nested ones the innermost."""
    units = sorted(side.model.units.values(), key=lambda unit: -sum(1 for _ in unit.module.modules()))
    return {id(module): unit.name for unit in units for module in unit.module.modules()}


def _is_layer(block: str) -> bool:
    return place(f"{block.partition(' (')[0]}.weight").layer_type == "transformer_block"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
