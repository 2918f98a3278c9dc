"""The head of a model in slices of its vocabulary, so that it is never in memory whole.

A slice's weights are read, applied to some positions and dropped. The logits are those of the model's own forward with
its base left out: whatever it does to them, a scale or a soft cap, is done, value by value.
"""

import contextlib
import threading
from typing import Final, Self

import numpy as np
import torch
from msgspec import Struct
from torch import nn
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from archaeologist.excavation.forward.lanes import Lanes
from archaeologist.excavation.forward.model import DTYPES, Skeleton, Slot
from archaeologist.excavation.forward.streaming import Side

SLICE_BYTES: Final = 1 << 23
"""Weights that a lane has in memory: enough to keep its processor busy."""


class _Rows(Struct, frozen=True):
    """Some rows of the head and what they are applied to."""

    hidden: torch.Tensor
    """(positions, channels)"""
    weight: torch.Tensor
    """(rows, channels)"""
    bias: torch.Tensor | None


class Head:
    """Logits at some positions at a time; a context manager, in which the model runs nothing but its head."""

    def __init__(self, side: Side, *, lanes: Lanes) -> None:
        """Reads nothing yet.

        Args:
            side: A model with a causal head, its passes done.
            lanes: Where the slices run.

        Raises:
            ValueError: The model has no head.
        """
        if side.model.head is None:
            msg = "the model has no causal head"
            raise ValueError(msg)
        self._side = side
        self._unit = side.model.head
        self._lanes = lanes
        self._own = threading.local()
        self._logits: torch.Tensor | None = None
        self._slots = _linear_slots(side.model)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Leaves the base out of the model's forward."""
        base = self._side.model.base
        base.forward = lambda *_, **__: _LastHidden(last_hidden_state=self._own.rows.hidden[None])
        self._stack.callback(delattr, base, "forward")
        if self._slots:
            linear = self._slots["weight"].module
            linear.forward = lambda hidden: functional.linear(hidden, self._own.rows.weight, self._own.rows.bias)
            self._stack.callback(delattr, linear, "forward")
        else:
            self._stack.enter_context(self._side.placed(self._unit, {}))
        return self

    def __exit__(self, *_: object) -> None:
        """Puts the model back together."""
        self._stack.close()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(positions, channels) → (positions, vocabulary), valid until the next call."""
        if not self._slots:
            return self._applied(_Rows(hidden, hidden, None))
        entry = self._slots["weight"].entry
        rows = max(1, SLICE_BYTES // (entry.size // entry.shape[0]))
        starts = range(0, entry.shape[0], rows)
        first = self._sliced(hidden, slice(0, rows))
        if self._logits is None or len(self._logits) < len(hidden) or self._logits.dtype != first.dtype:
            self._logits = torch.empty((len(hidden), entry.shape[0]), dtype=first.dtype, device=first.device)
        found = self._logits[: len(hidden)]
        found[:, :rows] = first

        def fill(start: int) -> None:
            window = slice(start, start + rows)
            found[:, window] = self._sliced(hidden, window)

        self._lanes.each(fill, starts[1:])
        return found

    def _sliced(self, hidden: torch.Tensor, window: slice) -> torch.Tensor:
        weight, bias = self._slots["weight"], self._slots.get("bias")
        return self._applied(
            _Rows(hidden, self._read(weight, window), None if bias is None else self._read(bias, window))
        )

    def _applied(self, rows: _Rows) -> torch.Tensor:
        self._own.rows = rows
        with torch.inference_mode():
            ids = torch.zeros((1, len(rows.hidden)), dtype=torch.int64, device=rows.hidden.device)
            found: torch.Tensor = self._side.model.model(input_ids=ids).logits[0]
        return found

    def _read(self, slot: Slot, window: slice) -> torch.Tensor:
        entry = slot.entry
        width, count = entry.size // entry.shape[0], len(range(entry.shape[0])[window])
        # One buffer a lane and parameter: fresh memory for every slice would take as long as reading it.
        buffers = self._own.__dict__.setdefault("buffers", {})
        buffer = buffers.setdefault(slot.attribute, np.empty(0, np.uint8))
        if buffer.size < count * width:
            buffer = buffers[slot.attribute] = np.empty(count * width, np.uint8)
        content = buffer[: count * width]
        self._side.reader.read(entry, window.start * width, content.data)
        values = torch.from_numpy(content).view(DTYPES[entry.dtype]).reshape(count, *entry.shape[1:])
        return values.to(self._side.device, slot.empty.dtype)


class _LastHidden(BaseModelOutputWithPastAndCrossAttentions):
    """A base model's output that has whatever a head looks for, router logits for one."""

    def __getattr__(self, name: str) -> None:
        """Called for what is not there."""


def _linear_slots(model: Skeleton) -> dict[str, Slot]:
    """Weight and bias of the output embeddings by attribute; empty where the head is something else or is in place."""
    head: nn.Module | None = model.model.get_output_embeddings()  # type: ignore[no-untyped-call]
    slots = model.head.slots if model.head else ()
    is_linear = isinstance(head, nn.Linear) and all(slot.module is head for slot in slots)
    return {slot.attribute: slot for slot in slots} if is_linear else {}
