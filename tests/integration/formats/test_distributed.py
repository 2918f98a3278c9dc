"""Checkpoints of torch.distributed.checkpoint, saved by one process and by two, against the tensors that were saved."""

import os
import pathlib
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import metadata
from torch.distributed.checkpoint.state_dict_saver import save

from archaeologist.checkpoints.index import CheckpointIndex, read_index
from archaeologist.checkpoints.pins import pin
from archaeologist.checkpoints.reader import Reader
from archaeologist.errors import (
    ArchaeologistError,
    CheckpointFormatUnsupported,
    IndexInvalid,
    PickleRefused,
    ShardMissing,
)
from tests.fixtures import sharded
from tests.fixtures.models import model, saved
from tests.fixtures.tokenizers import save_tokenizer
from tests.integration.formats.excavating import drift, stats

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch.distributed", "ignore::FutureWarning")

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16}


def by_two(folder: Path, how: str) -> Path:
    """A checkpoint that two processes saved together."""
    store = folder.parent / "store"
    command = [sys.executable, "-m", "tests.fixtures.sharded", str(folder)]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(store), how], env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE
        )
        for rank in range(sharded.RANKS)
    ]
    for rank in ranks:
        _, errors = rank.communicate(timeout=100)
        assert rank.returncode == 0, errors.decode()
    return folder


def values(index: CheckpointIndex, *, at_once: int | None = None) -> dict[str, torch.Tensor]:
    """Every tensor as the reader gives it, some bytes at a time."""
    found = {}
    with Reader(index) as reader:
        for name, entry in index.tensors.items():
            content, step = bytearray(entry.size), at_once or entry.size
            for start in range(0, entry.size, step):
                reader.read(entry, start, memoryview(content)[start : start + step])
            found[name] = torch.frombuffer(content, dtype=DTYPES[entry.dtype]).reshape(entry.shape)
    return found


@pytest.mark.parametrize("at_once", [None, 4, 28, 100])
def test_tensors_that_ranks_share_in_every_way_are_put_together(at_once: int | None, grid: Path) -> None:
    found = values(read_index(grid), at_once=at_once)
    assert found.keys() == sharded.tensors().keys()
    for name, tensor in sharded.tensors().items():
        assert torch.equal(found[name], tensor), name


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return by_two(tmp_path_factory.mktemp("grid") / "c", "grid")


def test_a_model_sharded_by_fsdp_is_analysed_as_the_whole_one(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-5"
    folder.mkdir()
    by_two(folder / "pytorch_model_fsdp_0", "fsdp")
    whole = saved(model("llama", seed=1), tmp_path / "whole")
    (folder / "config.json").write_bytes((whole / "config.json").read_bytes())
    for one in (folder, whole):
        save_tokenizer(one, vocabulary=100)
    index = read_index(folder)
    assert index.format == "distributed"
    assert any(entry.pieces for entry in index.tensors.values())
    artifact = drift(whole, folder)
    assert artifact.global_drift_stats.l2 == 0
    assert artifact.global_drift_stats.changed_fraction == 0
    assert not artifact.comparison.only_in_target
    assert not artifact.comparison.only_in_reference
    found, expected = stats(folder, compute_activations=True), stats(whole, compute_activations=True)
    assert found.weight_stats == expected.weight_stats
    assert found.activation_stats == expected.activation_stats
    assert found.output_stats == expected.output_stats
    held = pin(folder, tmp_path / ".pins", "5-abc")
    assert read_index(held).tensors.keys() == index.tensors.keys()


def by_one(folder: Path, content: dict[str, Any]) -> Path:
    save(content, checkpoint_id=folder)
    return folder


def test_beside_the_model_the_optimizer_is_left_alone(tmp_path: Path) -> None:
    weights = {"a.weight": torch.randn(4, 6), "b.weight": torch.randn(3).bfloat16()}
    folder = by_one(
        tmp_path / "c", {"model": weights, "optim": {"step": 3, "state.a.weight": torch.zeros(4, 6)}, "epoch": 2}
    )
    index = read_index(folder)
    found = values(index)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())


# Hostile ones.


class Evil:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


def metadata_of(folder: Path) -> Any:
    return pickle.loads((folder / ".metadata").read_bytes())  # noqa: S301 - our own


def test_metadata_that_runs_something_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    folder = by_one(tmp_path / "c", {"a.weight": torch.ones(2)})
    metadata = metadata_of(folder)
    metadata.storage_meta = Evil(tmp_path / "canary")
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(PickleRefused, match="nothing of it was run"):
        read_index(folder)
    assert not (tmp_path / "canary").exists()


def test_members_of_enumerations_are_read_as_any_python_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As Python 3.11.2 does.
    monkeypatch.setattr(
        metadata._MEM_FORMAT_ENCODING,
        "__reduce_ex__",
        lambda self, _: (getattr, (type(self), self.name)),
    )
    tensors = {"layers.0.w": torch.arange(6.0).reshape(2, 3)}
    save(tensors, checkpoint_id=str(tmp_path / "c"), no_dist=True)
    assert b"getattr" in (tmp_path / "c" / ".metadata").read_bytes()
    assert values(read_index(tmp_path / "c"))["layers.0.w"].equal(tensors["layers.0.w"])


@pytest.mark.parametrize("taken", [(pathlib.Path, "cwd"), ("text", "__class__")])
def test_getattr_takes_nothing_but_members_of_enumerations(tmp_path: Path, taken: tuple[object, str]) -> None:
    class Taking:
        def __reduce__(self) -> Any:
            return getattr, taken

    save({"w": torch.zeros(2)}, checkpoint_id=str(tmp_path / "c"), no_dist=True)
    (tmp_path / "c" / ".metadata").write_bytes(pickle.dumps(Taking()))
    with pytest.raises(PickleRefused, match="nothing of it was run"):
        read_index(tmp_path / "c")


def test_a_part_that_runs_something_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    folder = by_one(tmp_path / "c", {"a.weight": torch.ones(2)})
    file, metadata = folder / "__0_0.distcp", metadata_of(folder)
    torch.save({"a": Evil(tmp_path / "canary")}, file)
    (place,) = metadata.storage_data.values()
    place.offset, place.length = 0, file.stat().st_size
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(PickleRefused):
        read_index(folder)
    assert not (tmp_path / "canary").exists()


def test_missing_and_cut_files_are_told(tmp_path: Path, grid: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    for file in grid.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    os.truncate(folder / "__1_0.distcp", 100)
    with pytest.raises(IndexInvalid, match="truncated"):
        read_index(folder)
    (folder / "__1_0.distcp").unlink()
    with pytest.raises(ShardMissing, match=r"__1_0\.distcp"):
        read_index(folder)
    (folder / ".metadata").unlink()
    with pytest.raises(CheckpointFormatUnsupported, match=r"without their \.metadata"):
        read_index(folder)


@pytest.mark.parametrize("fault", ["hole", "overlap", "elsewhere", "outside"])
def test_parts_that_do_not_cover_their_tensor_are_refused(tmp_path: Path, grid: Path, fault: str) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    for file in grid.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    metadata = metadata_of(folder)
    places = metadata.storage_data
    first = next(index for index in places if index.fqn.endswith("rows.weight") and index.offset[0] == 0)
    second = next(index for index in places if index.fqn.endswith("rows.weight") and index.offset[0] > 0)
    if fault == "hole":
        del places[second]
    elif fault == "overlap":
        places[type(second)(second.fqn, torch.Size([1, 0]), 1)] = places.pop(second)
    elif fault == "elsewhere":
        places[second] = places[first]
    else:
        places[first].relative_path = "../../secret.distcp"
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(IndexInvalid):
        read_index(folder)


def test_parts_of_two_tensors_that_share_bytes_are_refused(tmp_path: Path) -> None:
    folder = by_one(tmp_path / "c", {"a.weight": torch.ones(2), "b.weight": torch.ones(2)})
    metadata = metadata_of(folder)
    first, second = metadata.storage_data
    metadata.storage_data[second] = metadata.storage_data[first]
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(IndexInvalid, match=r"'a\.weight' and 'b\.weight' share bytes of '__0_0\.distcp'"):
        read_index(folder)


def test_metadata_with_any_byte_changed_gives_tensors_or_a_coded_error(tmp_path: Path) -> None:
    folder = by_one(tmp_path / "c", {"a.weight": torch.ones(2, 3), "b": 1})
    content = (folder / ".metadata").read_bytes()
    for place in range(0, len(content), 7):
        changed = bytearray(content)
        changed[place] ^= 0x55
        (folder / ".metadata").write_bytes(changed)
        try:
            index = read_index(folder)
        except ArchaeologistError:
            continue
        values(index)
