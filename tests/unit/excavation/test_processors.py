"""The kernels on a processor that has none of the newer instructions: machines of before 2012, many virtual ones."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.unit.excavation.walking import walked

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)
SHAPE = (67, 517)


def _checkpoint(folder: Path, seed: int) -> Path:
    """A tensor of each dtype, and one of each with a NaN."""
    folder.mkdir()
    values = np.random.default_rng(seed).standard_normal(SHAPE) * 0.02
    with_hole = values.copy()
    with_hole[3, 5] = np.nan
    kinds = {"plain": values, "hole": with_hole}
    tensors = {f"{kind} {dtype}": torch.tensor(found).to(dtype) for dtype in DTYPES for kind, found in kinds.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


def digest(target: Path, reference: Path) -> str:
    """Of everything that a walk finds."""
    found = hashlib.sha256()
    for name, tensor in sorted(walked(target, reference).items()):
        found.update(f"{name} {tensor.weights} {tensor.drift}".encode())
        assert tensor.sketch is not None
        found.update(tensor.sketch.tobytes())
    return found.hexdigest()


@pytest.mark.timeout(300)
def test_every_processor_finds_the_same_bits(tmp_path: Path) -> None:
    folders = [_checkpoint(tmp_path / str(seed), seed) for seed in (1, 2)]
    asked = "import pathlib, sys; from tests.unit.excavation.test_processors import digest;"
    plain = subprocess.run(
        [sys.executable, "-c", f"{asked} print(digest(*map(pathlib.Path, sys.argv[1:])))", *map(str, folders)],
        env={**os.environ, "NUMBA_CPU_NAME": "generic", "NUMBA_CACHE_DIR": str(tmp_path / "numba")},
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    assert plain.stdout.strip() == digest(*folders)
