"""Weights on their way to a device. On a GPU they are copied while it computes; on the CPU they are there at once."""

from collections.abc import Iterable, Sequence

import torch


class Copied:
    """Tensors that are there, or soon will be."""

    def __init__(self, tensors: Sequence[torch.Tensor], done: torch.cuda.Event | None) -> None:
        """Waits for nothing yet.

        Args:
            tensors: On the device.
            done: Follows the last copy; None: they are there.
        """
        self._tensors = tensors
        self._done = done

    def ready(self) -> Sequence[torch.Tensor]:
        """The tensors, as often as they are asked for. What the device computes from now on waits until they are there.

        Only the device waits, not the caller.
        """
        if self._done is not None:
            for tensor in self._tensors[:1]:
                torch.cuda.current_stream(tensor.device).wait_event(self._done)
            for tensor in self._tensors:
                # Their memory belongs to the other stream, which must not use it again before this one is through.
                tensor.record_stream(torch.cuda.current_stream(tensor.device))
        return self._tensors


class Copier:
    """Copies tensors from memory to one device."""

    def __init__(self, device: torch.device) -> None:
        """Copies nothing yet."""
        self._device = device
        # Priority 0 is the lowest that CUDA has.
        self._stream = torch.cuda.Stream(device, priority=0) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def start(self, tensors: Iterable[tuple[torch.Tensor, torch.dtype]]) -> Copied:
        """Begins to copy.

        Args:
            tensors: Each with the dtype that it is wanted in. Their memory may be used again once this returns.
        """
        if self._stream is None:
            return Copied([tensor.to(self._device, dtype, copy=True) for tensor, dtype in tensors], None)
        with torch.cuda.stream(self._stream):
            # Only from pinned memory is a copy made beside the computing. torch keeps that memory until it is done.
            copies = [tensor.pin_memory().to(self._device, non_blocking=True).to(dtype) for tensor, dtype in tensors]
            return Copied(copies, self._stream.record_event())
