"""The streamed forward pass: target and reference in lockstep, one block's weights in place at a time.

Of a table of embeddings only the rows of the probes' tokens are read.

``Lockstep.through`` takes the walk's blocks as they come and passes them on. While a block's bytes are at hand, every
forward pass that waits for it runs through it, one a batch of probes and model, as many at a time as there are lanes.
What a model asks for out of the walk's order, a head tied to the embedding for one, is read again. If the forward pass
fails, the walk goes on without it.
"""

import contextlib
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from msgspec import Struct
from torch import nn
from transformers.pytorch_utils import Conv1D

from archaeologist.checkpoints.index import TensorEntry
from archaeologist.checkpoints.reader import Reader
from archaeologist.excavation.forward.ahead import Copied, Copier
from archaeologist.excavation.forward.device import is_shortage
from archaeologist.excavation.forward.lanes import Lanes
from archaeologist.excavation.forward.model import DTYPES, Skeleton, Slot, Unit, hidden_size, tensor
from archaeologist.excavation.forward.stepper import Stepper
from archaeologist.excavation.walk import BlockResult

Bytes = npt.NDArray[np.uint8]
Hidden = tuple[torch.Tensor, ...]
"""One block's outputs, one a batch: (sequences, positions, channels)."""

SUBMODULES: Final = {"self_attn": "attn", "attention": "attn", "attn": "attn", "mlp": "mlp", "feed_forward": "mlp"}
"""What the parts of a block are called in models, and here."""


class Batch(Struct, frozen=True, kw_only=True):
    """Sequences that run together, padded on the right."""

    input_ids: torch.Tensor
    """(sequences, positions), int64."""
    attention_mask: torch.Tensor | None
    """The same shape, 1 for what is no padding; None where there is none."""


class Outputs(Struct, frozen=True, kw_only=True):
    """What a block gave."""

    name: str
    target: Hidden
    reference: Hidden | None
    submodules: Mapping[str, Hidden] = {}
    """The target's, by ``attn`` and ``mlp``, where they were asked for."""
    neurons: torch.Tensor | None = None
    """Largest magnitude of each neuron of the target's MLP over the positions, (neurons,)."""


class Side:
    """One model in the lockstep."""

    def __init__(
        self,
        model: Skeleton,
        reader: Reader,
        batches: Sequence[Batch],
        *,
        device: torch.device,
        threads: int = 1,
        has_submodules: bool = False,
        has_neurons: bool = False,
    ) -> None:
        """Starts nothing yet.

        Args:
            model: Its weights are put in place block by block.
            reader: The checkpoint's open files.
            batches: The probes.
            device: Where the model runs.
            threads: Of torch's own, for each pass.
            has_submodules: Whether the outputs of attention and MLP are kept too.
            has_neurons: Whether the largest magnitudes of the MLP's neurons are taken too.
        """
        self.model = model
        self.device = device
        self.reader = reader
        self._threads = threads
        self._batches = batches
        self._used = torch.unique(torch.cat([batch.input_ids.flatten() for batch in batches]))
        self._hooks = list(self._hooked(has_submodules=has_submodules, has_neurons=has_neurons))
        self._outputs: dict[str, dict[int, torch.Tensor]] = {}
        self._copier = Copier(device)
        self._copied: dict[str, Copied] = {}
        if not any(parameter.is_meta for parameter in model.model.parameters()):
            model.model.to(device)  # type: ignore[arg-type]
        # Buffers, the frequencies of rotary embeddings for one; parameters stay on the meta device.
        for module in model.model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = buffer.to(device)  # noqa: SLF001 - ``to`` would move the parameters too
        self.steppers = [Stepper(self._work(batch)) for batch in batches]
        self._sizes = [batch.input_ids.numel() for batch in batches]

    def waiting_for(self) -> str | None:
        """The unit that the first unfinished pass stopped at; None when all are done."""
        return next((stepper.waits_for for stepper in self.steppers if not stepper.is_done), None)

    @contextlib.contextmanager
    def placed(self, unit: Unit, at_hand: Mapping[str, Bytes]) -> Iterator[None]:
        """The unit's weights in place for the length of a block.

        Args:
            unit: One of the model's.
            at_hand: Bytes by stored name; what is missing is read.
        """
        copied = self._copied.get(unit.name)
        tensors = copied.ready() if copied else (self._value(unit, slot, at_hand) for slot in unit.slots)
        with contextlib.ExitStack() as stack:
            for slot, values in zip(unit.slots, tensors, strict=True):
                stack.callback(slot.module._parameters.__setitem__, slot.attribute, slot.empty)  # noqa: SLF001
                parameter = nn.Parameter(values, requires_grad=False)
                slot.module._parameters[slot.attribute] = parameter  # noqa: SLF001 - registering would check and copy
            yield

    def copy_ahead(self, name: str, at_hand: Mapping[str, Bytes]) -> None:
        """Begins to copy a block to the device, before its turn. The bytes are no longer needed when this returns."""
        unit = self.model.units.get(name)
        if unit is None or unit.is_token_table:
            return
        tensors = (tensor(slot.entry, self.reader, at_hand.get(slot.entry.name)) for slot in unit.slots)
        dtypes = (slot.empty.dtype for slot in unit.slots)
        self._copied[name] = self._copier.start(zip(tensors, dtypes, strict=True))

    def forget(self, name: str) -> None:
        """Drops what was copied ahead."""
        self._copied.pop(name, None)

    def _value(self, unit: Unit, slot: Slot, at_hand: Mapping[str, Bytes]) -> torch.Tensor:
        if unit.is_token_table:
            values = _rows(slot.entry, self._used, self.reader)
        else:
            values = tensor(slot.entry, self.reader, at_hand.get(slot.entry.name))
        return values.to(self.device, slot.empty.dtype)

    def stopped_at(self, name: str) -> list[tuple[int, Stepper[torch.Tensor]]]:
        """The passes that wait for the unit, each with the number of its positions."""
        passes = zip(self._sizes, self.steppers, strict=True)
        return [(size, stepper) for size, stepper in passes if stepper.waits_for == name]

    def start(self) -> None:
        """Runs every pass up to its first unit."""
        for stepper in self.steppers:
            stepper.resume()

    def take(self, name: str) -> Hidden | None:
        """A module's outputs since the last call, in the order of the batches; None unless each batch gave one."""
        found = self._outputs.pop(name, {})
        return (
            tuple(found[number] for number in range(len(self.steppers))) if len(found) == len(self.steppers) else None
        )

    def last_hidden(self) -> Hidden:
        """The model's last hidden states, once all passes are done."""
        return tuple(stepper.result() for stepper in self.steppers)

    def close(self) -> None:
        """Ends the threads."""
        for stepper in self.steppers:
            stepper.close()
        for hook in self._hooks:
            hook.remove()

    def _work(self, batch: Batch) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            torch.set_num_threads(self._threads)
            with torch.inference_mode():
                mask = None if batch.attention_mask is None else batch.attention_mask.to(self.device)
                output = self.model.base(input_ids=batch.input_ids.to(self.device), attention_mask=mask)
            found: torch.Tensor = output.last_hidden_state
            return found

        return run

    def _hooked(self, *, has_submodules: bool, has_neurons: bool) -> Iterator[Any]:
        for unit in self.model.units.values():
            yield unit.module.register_forward_pre_hook(self._pausing(unit))
            yield unit.module.register_forward_hook(self._keeping(unit.name))
            for name, child in unit.module.named_children():
                part = SUBMODULES.get(name)
                down = _down_projection(child, hidden_size(self.model)) if has_neurons and part == "mlp" else None
                if down is not None:
                    yield down.register_forward_pre_hook(self._measuring(f"{unit.name}/neurons"))
                if part is not None and has_submodules:
                    yield child.register_forward_hook(self._keeping(f"{unit.name}/{part}"))

    def _pausing(self, unit: Unit) -> Callable[[nn.Module, Any], Any]:
        def pause(_module: nn.Module, arguments: Any) -> Any:
            stepper = Stepper.running()
            if stepper is None:
                return None
            stepper.pause(unit.name)
            if not unit.is_token_table:
                return None
            # The ids as numbers of the rows that are in place.
            return torch.searchsorted(self._used.to(self.device), arguments[0].contiguous()), *arguments[1:]

        return pause

    def _keeping(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(_module: nn.Module, _arguments: Any, output: Any) -> None:
            stepper = Stepper.running()
            first = output[0] if isinstance(output, tuple) and output else output
            if stepper is not None and isinstance(first, torch.Tensor):
                self._outputs.setdefault(name, {})[self._number(stepper)] = first

        return keep

    def _measuring(self, name: str) -> Callable[[nn.Module, Any], None]:
        def measure(_module: nn.Module, arguments: Any) -> None:
            stepper = Stepper.running()
            if stepper is None:
                return
            number, values = self._number(stepper), arguments[0]
            mask = self._batches[number].attention_mask
            lengths = [values.shape[1]] * len(values) if mask is None else mask.sum(dim=1).tolist()
            # A sequence at a time, without its padding: magnitudes of all would take as much memory as the values.
            rows = [row[:length] for row, length in zip(values, lengths, strict=True)]
            largest = [torch.maximum(row.amax(dim=0), -row.amin(dim=0)) for row in rows]
            self._outputs.setdefault(name, {})[number] = torch.stack(largest).amax(dim=0)

        return measure

    def _number(self, stepper: Stepper[Any]) -> int:
        return next(number for number, one in enumerate(self.steppers) if one is stepper)


class Lockstep:
    """The forward passes of a target, and of a reference beside it."""

    def __init__(
        self,
        target: Side,
        reference: Side | None,
        on_outputs: Callable[[Outputs], None],
        *,
        lanes: Lanes,
        on_end: Callable[[], None] = lambda: None,
        is_guest: bool = False,
    ) -> None:
        """Starts nothing yet.

        Args:
            target: The model under analysis.
            reference: Run in lockstep, where there is one.
            on_outputs: Called after each block, while its outputs are in memory.
            lanes: Where the passes run.
            on_end: Called after the last block.
            is_guest: On a GPU: a block is copied there while the one before it computes, and one pass runs at a time.
        """
        self.failure: str | None = None
        """Why the forward pass ended early."""
        self.timings = dict.fromkeys(("forward_copy", "forward_place", "forward_run", "forward_statistics"), 0.0)
        """Seconds: copying blocks ahead to a GPU, putting weights in place, running the passes, looking at what they
        gave. A GPU computes on by itself, so that its time is partly that of whoever waits for it next."""
        self._target = target
        self._reference = reference
        self._sides = [target, *([reference] if reference else [])]
        self._on_outputs, self._on_end = on_outputs, on_end
        self._lanes = lanes
        self._is_guest = is_guest
        self._passed: set[str] = set()
        self._calls: dict[str, int] = {}

    def through(self, blocks: Iterator[BlockResult]) -> Iterator[BlockResult]:
        """The same blocks, each after the forward passes went through it; at the end they are done."""
        self._guarded(self._start)
        for block in self._copied_ahead(blocks) if self._is_guest else blocks:
            self._guarded(self._offer, block)
            yield block
        self._guarded(self._finish)

    def close(self) -> None:
        """Ends the threads; whoever made this calls it."""
        for side in self._sides:
            side.close()

    def _copied_ahead(self, blocks: Iterator[BlockResult]) -> Iterator[BlockResult]:
        """The same blocks, each once the next one is on its way to the device; their bytes are valid no more."""
        present: BlockResult | None = None
        for following in blocks:
            self._guarded(self._copy, following)
            if present is not None:
                yield present
                self._forget(present)
            present = following
        if present is not None:
            yield present
            self._forget(present)

    def _copy(self, block: BlockResult) -> None:
        with self._timed("forward_copy"):
            for side in self._sides:
                side.copy_ahead(block.block.name, block.target if side is self._target else block.reference)

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.timings[stage] += time.perf_counter() - started

    def _forget(self, block: BlockResult) -> None:
        for side in self._sides:
            side.forget(block.block.name)

    def _guarded(self, step: Callable[..., None], *arguments: BlockResult) -> None:
        """Weights and drift are delivered whatever a model's code does.

        Raises:
            RuntimeError: The GPU's memory ran out, which is for the caller to deal with.
        """
        if self.failure is not None:
            return
        try:
            step(*arguments)
        except Exception as error:  # any model's code runs here; where it failed is in the log
            if self._is_guest and is_shortage(error):
                raise
            traceback.print_exc()
            self.failure = f"the forward pass failed: {type(error).__name__}: {error}"

    def _start(self) -> None:
        for side in self._sides:
            side.start()

    def _offer(self, result: BlockResult) -> None:
        name = result.block.name
        while (wanted := self._wanted()) is not None and (wanted == name or wanted in self._passed):
            self._run(wanted, result)
        self._passed.add(name)

    def _finish(self) -> None:
        while (wanted := self._wanted()) is not None:
            self._run(wanted, None)
        self._on_end()

    def _wanted(self) -> str | None:
        """The unit to run next: the target's, for the reference follows it."""
        return next((name for side in self._sides if (name := side.waiting_for()) is not None), None)

    def _run(self, name: str, result: BlockResult | None) -> None:
        sides = [side for side in self._sides if name in side.model.units and side.waiting_for() == name]
        at_hand = result if result is not None and result.block.name == name else None
        with contextlib.ExitStack() as stack:
            with self._timed("forward_place"):
                for side in sides:
                    stack.enter_context(side.placed(side.model.units[name], self._bytes(side, at_hand)))
            with self._timed("forward_run"):
                self._step(sides, name)
        with self._timed("forward_statistics"):
            self._tell(name, [side.take(name) if side in sides else None for side in self._sides])

    def _bytes(self, side: Side, block: BlockResult | None) -> Mapping[str, Bytes]:
        # A guest's were copied ahead, and the walk has used their memory again.
        if block is None or self._is_guest:
            return {}
        return block.target if side is self._target else block.reference

    def _step(self, sides: Sequence[Side], name: str) -> None:
        """Runs every pass that waits for the unit up to its next one."""
        waiting = [found for side in sides for found in side.stopped_at(name)]
        passes = [stepper for _, stepper in sorted(waiting, key=lambda found: -found[0])]
        if self._is_guest or any(side.model.units[name].is_token_table for side in sides):
            # What comes between it and the first block may change the model: frequencies for longer sequences, for one.
            for stepper in passes:
                stepper.resume()
        else:
            self._lanes.each(Stepper.resume, passes)

    def _tell(self, name: str, outputs: Sequence[Hidden | None]) -> None:
        mine = outputs[0]
        if mine is None:
            return
        self._calls[name] = call = self._calls.get(name, 0) + 1
        parts = {part: hidden for part in ("attn", "mlp") if (hidden := self._target.take(f"{name}/{part}"))}
        neurons = self._target.take(f"{name}/neurons")
        self._on_outputs(
            Outputs(
                # A block whose weights several layers share has outputs of its own for each.
                name=name if call == 1 else f"{name} (call {call})",
                target=mine,
                reference=outputs[1] if len(outputs) > 1 else None,
                submodules=parts,
                neurons=torch.stack(neurons).amax(dim=0) if neurons else None,
            )
        )


def _down_projection(mlp: nn.Module, width: int) -> nn.Module | None:
    """The matrix that takes the neurons back to the residual stream: its input is what they say.

    The last one that gives ``width`` channels; a router of experts gives another number.
    """
    widths = {child: _output_width(child) for child in mlp.children()}
    matrices = [child for child, width in widths.items() if width is not None]
    return matrices[-1] if len(matrices) > 1 and widths[matrices[-1]] == width else None


def _output_width(module: nn.Module) -> int | None:
    if isinstance(module, nn.Linear):
        return module.out_features
    return module.nf if isinstance(module, Conv1D) else None


def _rows(entry: TensorEntry, rows: torch.Tensor, reader: Reader) -> torch.Tensor:
    """Some rows of a matrix, in the order given."""
    size = entry.size // entry.shape[0]
    found = np.empty((len(rows), size), np.uint8)
    for number, row in enumerate(rows.tolist()):
        reader.read(entry, row * size, found[number].data)
    return torch.from_numpy(found.reshape(-1)).view(DTYPES[entry.dtype]).reshape(len(rows), *entry.shape[1:])
