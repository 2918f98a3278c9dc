"""Where the model runs: the CPU, or a GPU on which others come first.

``decide`` is pure: from what a GPU has and what is needed to where the model runs, with the reason in words. ``look``,
``claim`` and ``give_back`` are all that touches CUDA beside the model itself. What happens when memory runs out all the
same is ``after_shortage``: smaller batches, then the CPU, or the job is handed back, as the settings say.

Other processes' work cannot be preferred from here: a stream's priority holds within one process only, and ours are
lowest. What keeps us small are few bytes, small batches one at a time, and ``CUDA_MPS_CLIENT_PRIORITY``, which NVIDIA's
MPS heeds where it shares the GPU out.
"""

import contextlib
import gc
import math
import os
from collections.abc import Iterator, Sequence
from typing import Final

import torch
from msgspec import Struct
from torch import nn

from archaeologist.errors import DeviceUnavailable, GpuMemoryShort
from archaeologist.excavation.forward.model import Skeleton, Unit, hidden_size
from archaeologist.excavation.forward.way import Way
from contracts.messages import GpuOptions

HELD: Final = 4
"""Hidden states in memory of each batch: the residual stream, the outputs of a block, its attention and its MLP."""
WORKING_BYTES: Final = 4
"""Of a value while a block computes it: norms and softmax are float32."""
FIXED_BYTES: Final = 700_000_000
"""Not growing with the model: slices of the head (8 MB a lane and their copies), the float64 work space of the
predictions (170 MB), and what the libraries of CUDA take for themselves. [judgement]"""
MARGIN: Final = 1.2
"""Memory that an allocator holds in pieces too small for what comes next. [judgement]"""
MPS_PRIORITY: Final = ("CUDA_MPS_CLIENT_PRIORITY", "1")
"""Below normal."""


class Gpu(Struct, frozen=True, kw_only=True):
    """A GPU as it was found."""

    device: str
    """``cuda:0``"""
    name: str
    total_bytes: int = 0
    free_bytes: int = 0
    trouble: str | None = None
    """Why nothing runs on it."""


class Need(Struct, frozen=True):
    """What a run takes with batches of so many cells."""

    cells: int
    size: int
    """In bytes."""


class Choice(Struct, frozen=True, kw_only=True):
    """Where the model runs."""

    reason: str
    cells: int | None = None
    """Of a batch at most; None: as many as ever."""
    gpu: Gpu | None = None
    """None: the CPU."""
    room_bytes: int = 0
    """What may be taken of the GPU."""
    steps: tuple[str, ...] = ()
    """What was given up so far, this choice included."""


def decide(options: GpuOptions, gpu: Gpu | None, needs: Sequence[Need], *, way: Way) -> Choice:
    """The GPU with the largest batches that fit, else the CPU.

    Args:
        options: The settings.
        gpu: The one that the settings mean; None: there is none, or it was not looked for.
        needs: By cells of a batch, from many to few; none where there is no GPU.
        way: What earlier tries have left.

    Raises:
        DeviceUnavailable: The settings insist on a GPU that cannot be used.
        GpuMemoryShort: Not now, and the settings say to wait. What would not fit if the GPU were empty never waits.
    """
    if way.is_on_cpu or options.device == "cpu":
        return Choice(reason="as set", steps=way.steps)
    if gpu is None or gpu.trouble is not None:
        reason = "torch sees no such GPU" if gpu is None else f"nothing runs on {gpu.name}: {gpu.trouble}"
        if options.device != "auto":
            msg = (
                f"gpu.device is {options.device!r}: {reason}; see what `archaeologist doctor` says of torch and the"
                ' GPU, or set gpu.device = "auto"'
            )
            raise DeviceUnavailable(msg)
        return Choice(reason=reason, steps=(*way.steps, *([f"{reason}: the CPU"] if gpu else [])))
    allowed = [need for need in needs if way.cells is None or need.cells <= way.cells]
    return _fitting(options, gpu, allowed, way=way)


def _fitting(options: GpuOptions, gpu: Gpu, needs: Sequence[Need], *, way: Way) -> Choice:
    room = options.room_bytes(total_bytes=gpu.total_bytes, free_bytes=gpu.free_bytes)
    said = f"{_gb(room)} of {gpu.name} may be used"
    for need in needs:
        if need.size <= room:
            smaller = [f"{said}: {need.cells} tokens a batch"] if need is not needs[0] else []
            reason = f"{said}, {_gb(need.size)} are needed"
            return Choice(cells=need.cells, reason=reason, gpu=gpu, room_bytes=room, steps=(*way.steps, *smaller))
    reason = f"{said}, {_gb(needs[-1].size)} are needed"
    if options.when_full == "wait" and needs[-1].size <= _room_when_empty(options, gpu):
        msg = (
            f"{reason} ({_gb(gpu.free_bytes)} of {_gb(gpu.total_bytes)} are free, gpu.reserve_mb ="
            f' {options.reserve_mb} stay so); tried again later, or set gpu.when_full = "cpu"'
        )
        raise GpuMemoryShort(msg)
    return Choice(reason=reason, steps=(*way.steps, f"{reason}: the CPU"))


def after_shortage(choice: Choice, options: GpuOptions, needs: Sequence[Need]) -> Way:
    """How to go on when the memory of the GPU did not suffice.

    Raises:
        GpuMemoryShort: The batches cannot be smaller, others hold memory that may become free, and the settings say to
            wait for it.
    """
    smaller = next((need.cells for need in needs if choice.cells is not None and need.cells < choice.cells), None)
    gone = f"out of GPU memory at {choice.cells} tokens a batch"
    if smaller is not None:
        return Way(cells=smaller, steps=(*choice.steps, f"{gone}: {smaller}"))
    gpu = choice.gpu
    if options.when_full == "wait" and gpu is not None and choice.room_bytes < _room_when_empty(options, gpu):
        msg = (
            f"{gone}, the fewest, with {_gb(choice.room_bytes)} of {gpu.name}; tried again later, or set"
            ' gpu.when_full = "cpu"'
        )
        raise GpuMemoryShort(msg)
    return Way(is_on_cpu=True, steps=(*choice.steps, f"{gone}, the fewest: the CPU"))


def after_failure(choice: Choice, failure: str) -> Way:
    """How to go on when something else went wrong on the GPU."""
    return Way(is_on_cpu=True, steps=(*choice.steps, f"{failure}: the CPU"))


def is_shortage(error: BaseException) -> bool:
    """Whether an error says that the GPU's memory ran out."""
    texts = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
    )


def _room_when_empty(options: GpuOptions, gpu: Gpu) -> int:
    return options.room_bytes(total_bytes=gpu.total_bytes, free_bytes=gpu.total_bytes)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


# What is needed.


def needed_bytes(models: Sequence[Skeleton], batches: Sequence[tuple[int, int]], *, head_positions: int) -> int:
    """An estimate of the GPU memory that a run takes at its peak, from shapes alone.

    A block while it runs and the next one on its way, of each model; the hidden states of every batch; what one batch
    takes within a block, for one runs at a time; the logits of a slice of positions. An upper bound but for what an
    architecture does beside its matrices.

    Args:
        models: Target, and reference.
        batches: Sequences and positions of each.
        head_positions: Whose logits are in memory at once.
    """
    cells = [sequences * positions for sequences, positions in batches]
    squares = [sequences * positions**2 for sequences, positions in batches]
    held = sum(
        (HELD * sum(cells) * hidden_size(model) + sum(squares)) * model.dtype.itemsize + _resident(model)
        for model in models
    )
    working = max(_working(model, cells=max(cells), square=max(squares)) for model in models)
    placed = sum(2 * max(_size(unit, cells=sum(cells)) for unit in model.units.values()) for model in models)
    head = sum(_head(model, positions=head_positions) for model in models)
    return math.ceil(MARGIN * (held + max(placed + working, head)) + FIXED_BYTES)


def _working(model: Skeleton, *, cells: int, square: int) -> int:
    widest = max(sum(_width(module, values) for module, values in _parameters(unit)) for unit in model.units.values())
    config = model.model.config.get_text_config()
    heads = 0 if config._attn_implementation == "sdpa" else getattr(config, "num_attention_heads", 1)  # noqa: SLF001 - nowhere else to read
    return WORKING_BYTES * (cells * (widest + 2 * hidden_size(model)) + 2 * heads * square)


def _width(module: nn.Module, values: torch.Tensor) -> int:
    """Values that a matrix gives for a position, whichever way it is stored."""
    return 0 if values.dim() < 2 or isinstance(module, nn.Embedding) else max(values.shape[-2:])  # noqa: PLR2004


def _size(unit: Unit, *, cells: int) -> int:
    sizes = (slot.empty.numel() * slot.empty.element_size() for slot in unit.slots)
    if unit.is_token_table:
        return sum(min(cells, slot.empty.shape[0]) * slot.empty[0].nbytes for slot in unit.slots)
    return sum(sizes)


def _head(model: Skeleton, *, positions: int) -> int:
    if model.head is None:
        return 0
    vocabulary = int(next(model.model.get_input_embeddings().parameters()).shape[0])
    # A single matrix runs in slices.
    parts = {id(slot.module) for slot in model.head.slots}
    weights = sum(slot.empty.nbytes for slot in model.head.slots) if len(parts) > 1 else 0
    return weights + positions * vocabulary * (model.dtype.itemsize + WORKING_BYTES)


def _resident(model: Skeleton) -> int:
    """Weights that are in place from the start, of a model that is loaded whole."""
    return sum(parameter.nbytes for parameter in model.model.parameters() if not parameter.is_meta)


def _parameters(unit: Unit) -> Iterator[tuple[nn.Module, torch.Tensor]]:
    if unit.slots:
        yield from ((slot.module, slot.empty) for slot in unit.slots)
        return
    for module in unit.module.modules():
        yield from ((module, values) for values in module.parameters(recurse=False))


# What touches CUDA.


def look(device: str) -> Gpu | None:
    """The GPU that a setting means, with its memory; None where torch sees none.

    To ask CUDA is to take some hundred MB of the GPU until the process ends.
    """
    os.environ.setdefault(*MPS_PRIORITY)
    index = int(device.partition(":")[2] or 0)
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        return None
    name, named = torch.cuda.get_device_name(index), f"cuda:{index}"
    try:
        free, total = torch.cuda.mem_get_info(index)
        # A torch that was not built for this GPU says so at the first kernel.
        (torch.ones(1, device=named) + 1).item()
    except RuntimeError as error:
        if is_shortage(error):
            total = torch.cuda.get_device_properties(index).total_memory
            return Gpu(device=named, name=name, total_bytes=total, free_bytes=0)
        return Gpu(device=named, name=name, trouble=str(error).split("\n", maxsplit=1)[0])
    return Gpu(device=named, name=name, total_bytes=total, free_bytes=free)


def claim(choice: Choice) -> torch.device:
    """The device, with no more of its memory than may be used: more is an out-of-memory error of ours."""
    gpu = choice.gpu
    if gpu is None:
        return torch.device("cpu")
    torch.cuda.set_per_process_memory_fraction(choice.room_bytes / gpu.total_bytes, gpu.device)
    torch.cuda.reset_peak_memory_stats(gpu.device)
    # Sums of 16-bit products in float32 to the end, as on the CPU.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    return torch.device(gpu.device)


def peak_bytes(device: torch.device) -> int | None:
    """The most that was held of the GPU's memory; None on the CPU."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None


def give_back() -> None:
    """Frees what is not in use on every GPU; after an error of CUDA there may be nothing that can be done."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return
    gc.collect()
    with contextlib.suppress(RuntimeError):
        torch.cuda.empty_cache()
