"""Checkpoints of a few tensors, written byte by byte, and the values in them as float64."""

import json
import math
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.uint16] | npt.NDArray[np.float16] | npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

DTYPES = {np.dtype(np.uint16): "BF16", np.dtype(np.float16): "F16", np.dtype(np.float32): "F32"}


def bf16(values: npt.ArrayLike) -> npt.NDArray[np.uint16]:
    """The bits of bfloat16, rounded towards zero."""
    return (np.asarray(values, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)


def wide(stored: Bits) -> Floats:
    """The stored values as float64: uint16 holds the bits of bfloat16."""
    if stored.dtype == np.uint16:
        return (stored.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return stored.astype(np.float64)


def write(folder: Path, tensors: dict[str, Bits], *, config: dict[str, object] | None = None) -> Path:
    """A checkpoint's folder with one safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    header, payload = {}, b""
    for name, values in tensors.items():
        content = np.ascontiguousarray(values).tobytes()
        header[name] = {
            "dtype": DTYPES[values.dtype],
            "shape": list(values.shape),
            "data_offsets": [len(payload), len(payload) + len(content)],
        }
        payload += content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + payload)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def l2(values: Floats) -> float:
    """The norm, its squares added without rounding."""
    return math.sqrt(math.fsum((values.ravel() ** 2).tolist()))
