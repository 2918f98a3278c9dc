"""Valid checkpoints of the formats that hold pickles, and of adapters, in the pieces that are made malformed."""

import functools
import io
import json
import pickle
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save

from archaeologist.checkpoints.fingerprint import fingerprint
from archaeologist.checkpoints.index import read_index
from archaeologist.checkpoints.reader import Reader

MOST_READ: Final = 65_536
"""Bytes of each tensor: those that say where its values lie were read before."""

TENSORS: Final = {
    "model.layers.0.a.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "model.layers.0.b.weight": torch.ones(3, dtype=torch.bfloat16),
    "model.layers.0.steps": torch.arange(2),
}
FACTORS: Final = {
    "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 4),
    "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": torch.ones(3, 2),
    "base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(2, 5),
    "base_model.model.model.embed_tokens.lora_embedding_B": torch.ones(4, 2),
}
FACTORS_BYTES: Final = sum(factor.nbytes for factor in FACTORS.values())
ADAPTER: Final = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 16,
    "use_rslora": True,
    "fan_in_fan_out": False,
    "rank_pattern": {"layers.0.self_attn.q_proj": 2},
    "alpha_pattern": {"^model.embed_tokens": 3.5},
    "base_model_name_or_path": "/models/base",
    "init_lora_weights": True,
    "use_dora": False,
    "layer_replication": None,
    "target_modules": ["q_proj", "embed_tokens"],
}


def read_values(checkpoint: Path) -> None:
    """All that is read of a checkpoint: where its tensors lie, what it is, and their values."""
    index = read_index(checkpoint)
    fingerprint(index)
    with Reader(index) as reader:
        for entry in index.tensors.values():
            reader.read(entry, 0, memoryview(bytearray(min(entry.size, MOST_READ))))


# What torch.save writes.


def torch_file(*, is_zip: bool) -> bytes:
    """The tensors under a trainer's name for them, and something beside them."""
    file = io.BytesIO()
    torch.save({"state_dict": TENSORS, "epoch": 3}, file, _use_new_zipfile_serialization=is_zip)
    return file.getvalue()


@functools.cache
def _valid() -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(torch_file(is_zip=True))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def with_pickle(pickled: bytes) -> bytes:
    """The same with another pickle in its place."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in _valid().items():
            archive.writestr(name, pickled if name.endswith("/data.pkl") else content)
    return file.getvalue()


def pickle_of_zip() -> bytes:
    """The pickle of such a file."""
    return next(content for name, content in _valid().items() if name.endswith("/data.pkl"))


@functools.cache
def legacy_parts() -> tuple[bytes, bytes, bytes]:
    """Of a file before torch 1.6: what stands before the pickle of the tensors, that pickle, and what follows."""
    content = torch_file(is_zip=False)
    stream, ends = io.BytesIO(content), []
    for _ in range(3):
        pickle.load(stream)  # noqa: S301 -- our own
        ends.append(stream.tell())
    end = ends[-1] + content[ends[-1] :].index(b"u.\x80") + 2
    return content[: ends[-1]], content[ends[-1] : end], content[end:]


# Folders.


def save_distributed(folder: Path) -> None:
    """What torch.distributed.checkpoint leaves of a trainer's state."""
    from torch.distributed.checkpoint.state_dict_saver import save as save_parts  # noqa: PLC0415 -- slow, needed here

    state: dict[str, Any] = {"model": TENSORS, "optim": {"state": torch.zeros(2)}, "epoch": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no process group is there
        save_parts(state, checkpoint_id=folder, no_dist=True)


def distributed_file(name: str) -> bytes:
    """A file of such a folder."""
    with tempfile.TemporaryDirectory() as folder:
        save_distributed(Path(folder))
        return (Path(folder) / name).read_bytes()


def save_adapter(folder: Path) -> None:
    """What PEFT leaves of a LoRA adapter."""
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER))
    (folder / "adapter_model.safetensors").write_bytes(save(FACTORS))


def factors_header() -> bytes:
    """The header of its weight file."""
    content = save(FACTORS)
    return content[8 : 8 + int.from_bytes(content[:8], "little")]
