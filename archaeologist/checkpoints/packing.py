"""Which quantiser packed a checkpoint's weights, told by the names that it leaves beside them."""

from collections.abc import Iterable
from typing import Final, NamedTuple


class Packing(NamedTuple):
    """A quantiser, and how its weights become floats again."""

    by: str
    remedy: str


_ORIGINAL: Final = "analyse the checkpoint that it was made from"

_BY_MARK: Final = (
    ((".quant_state.bitsandbytes", ".SCB"), Packing("bitsandbytes", "load it, call model.dequantize() and save that")),
    ((".g_idx",), Packing("GPTQ", f"{_ORIGINAL}, or dequantise it with the library that packed it")),
    ((".qzeros",), Packing("AWQ", f"{_ORIGINAL}, or dequantise it with the library that packed it")),
    (
        (".weight_packed",),
        Packing("compressed-tensors", "load it with run_compressed=False and save that"),
    ),
    (("_blocks",), Packing("MXFP4", "load it with Mxfp4Config(dequantize=True) and save that")),
)
"""Parts of names, the first that is there counts: GPTQ has what AWQ has, and an order of groups."""


def find_packing(names: Iterable[str]) -> Packing | None:
    """The quantiser whose names are among these; None: none that is known."""
    found = list(names)
    return next((packing for marks, packing in _BY_MARK if any(mark in name for name in found for mark in marks)), None)
