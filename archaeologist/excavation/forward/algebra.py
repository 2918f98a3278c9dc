"""Gram matrices and eigenvalues on a GPU, in float64: what ``excavation.matrices`` does on the CPU with NumPy.

Anything shorter would lose the small singular values, on which the effective rank depends. Consumer GPUs compute
float64 at a small part of their rate; whether they beat the cores that they replace was not measured.
"""

import sys
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from archaeologist.excavation.forward import device
from archaeologist.excavation.forward.way import Way
from archaeologist.excavation.matrices import SLICE_VALUES
from archaeologist.statistics.spectrum import settled
from contracts.messages import GpuOptions

_GRAMS: Final = 4
"""Gram matrices at once: the sum, and what the eigenvalues take beside it. [judgement]"""
_SLICES: Final = 3
"""Slices at once, of 8 bytes a value: the present one, its copy for the product, and the next. [judgement]"""

Floats = npt.NDArray[np.float64]


class GpuAlgebra:
    """On one device."""

    def __init__(self, gpu: device.Gpu, place: torch.device) -> None:
        """Takes nothing of the device yet."""
        self.device = gpu.device
        self._place = place

    def squares(self, slices: Iterator[Floats], *, side: int) -> Floats | None:
        """As ``matrices.Algebra`` has it."""
        try:
            return self._squares(slices, side=side)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise np.linalg.LinAlgError(str(error)) from error
        except RuntimeError as error:
            if not device.is_shortage(error):
                raise
            raise MemoryError(str(error)) from error

    def close(self) -> None:
        """Frees what is not in use."""
        device.give_back()

    def _squares(self, slices: Iterator[Floats], *, side: int) -> Floats | None:
        total = torch.zeros((side, side), dtype=torch.float64, device=self._place)
        for values in slices:
            rows = torch.from_numpy(np.ascontiguousarray(values)).to(self._place)
            total.addmm_(rows.T, rows)
        if not bool(total.isfinite().all()):
            return None
        found: Floats = torch.linalg.eigvalsh(total).cpu().numpy()
        return settled(found)


def chosen(options: GpuOptions, *, side: int) -> tuple[GpuAlgebra | None, tuple[str, ...]]:
    """The GPU, for a job that runs no model there, or None: the CPU; and what was given up for it, in words.

    Args:
        options: The settings.
        side: The largest smaller side of a matrix.

    Raises:
        DeviceUnavailable: The settings insist on a GPU that cannot be used.
        GpuMemoryShort: The GPU has no room now, and the settings say to wait.
    """
    need = device.FIXED_BYTES + 8 * (_GRAMS * side**2 + _SLICES * max(SLICE_VALUES, side))
    choice = device.decide(options, device.look(options.device), [device.Need(0, need)], way=Way())
    place = device.claim(choice)
    sys.stderr.write(f"matrices are looked at on {place}: {choice.reason}\n")
    return GpuAlgebra(choice.gpu, place) if choice.gpu is not None else None, choice.steps
