"""Reading tensors' bytes: in full, from several threads, from files that change or go away."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from archaeologist.checkpoints.index import read_index
from archaeologist.checkpoints.reader import Reader
from archaeologist.errors import CheckpointChanged, CheckpointError, CheckpointMissing
from tests.fixtures.checkpoints import qwen3_tensors, write_checkpoint

EMBEDDING = "model.embed_tokens.weight"


def whole(reader: Reader, folder: Path, name: str) -> bytes:
    entry = read_index(folder).tensors[name]
    buffer = bytearray(entry.size)
    reader.read(entry, 0, memoryview(buffer))
    return bytes(buffer)


@pytest.mark.parametrize("drop_page_cache", [False, True])
def test_what_is_read_is_what_was_saved(tmp_path: Path, *, drop_page_cache: bool) -> None:
    tensors = qwen3_tensors(seed=3, dtype=torch.float32)
    index = read_index(write_checkpoint(tmp_path, tensors=tensors, shards=2))
    with Reader(index, drop_page_cache=drop_page_cache) as reader:
        for name, entry in index.tensors.items():
            values = np.empty(entry.shape, dtype=np.float32)
            reader.read(entry, 0, values.data)
            np.testing.assert_array_equal(values, tensors[name].numpy())


@given(data=st.data())
def test_any_range_within_a_tensor_is_that_part_of_it(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = write_checkpoint(tmp_path_factory.getbasetemp() / "ranges")
    index = read_index(folder)
    entry = index.tensors[EMBEDDING]
    start = data.draw(st.integers(0, entry.size))
    part = bytearray(data.draw(st.integers(0, entry.size - start)))
    with Reader(index) as reader:
        reader.read(entry, start, memoryview(part))
        assert bytes(part) == whole(reader, folder, EMBEDDING)[start : start + len(part)]


@pytest.mark.parametrize(("start", "size"), [(-1, 1), (0, 2049), (2048, 1), (2**62, 1)])
def test_a_range_that_leaves_the_tensor_is_an_error(tmp_path: Path, start: int, size: int) -> None:
    index = read_index(write_checkpoint(tmp_path))
    with (
        Reader(index) as reader,
        pytest.raises(ValueError, match="leave tensor 'model\\.embed_tokens\\.weight' of 2048"),
    ):
        reader.read(index.tensors[EMBEDDING], start, memoryview(bytearray(size)))


def test_a_tensor_without_elements_reads_nothing(tmp_path: Path) -> None:
    index = read_index(write_checkpoint(tmp_path, tensors={"a": torch.ones(1), "b": torch.ones(0, 3)}))
    with Reader(index) as reader:
        reader.read(index.tensors["b"], 0, memoryview(bytearray()))


def test_threads_read_at_once(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, shards=3, layers=4)
    index = read_index(folder)
    with Reader(index) as reader, ThreadPoolExecutor(8) as pool:
        alone = {name: whole(reader, folder, name) for name in index.tensors}
        names = list(index.tensors) * 20
        together = pool.map(lambda name: whole(reader, folder, name), names)
        assert all(found == alone[name] for name, found in zip(names, together, strict=True))


def test_a_checkpoint_that_is_deleted_while_it_is_read_is_read_to_the_end(tmp_path: Path) -> None:
    tensors = qwen3_tensors()
    index = read_index(write_checkpoint(tmp_path / "checkpoint-1", tensors=tensors, shards=2))
    with Reader(index) as reader:
        shutil.rmtree(tmp_path / "checkpoint-1")
        for name, entry in index.tensors.items():
            buffer = bytearray(entry.size)
            reader.read(entry, 0, memoryview(buffer))
            assert bytes(buffer) == tensors[name].flatten().view(torch.uint8).numpy().tobytes()


def test_a_file_that_is_cut_while_it_is_read_is_a_changed_checkpoint(tmp_path: Path) -> None:
    index = read_index(write_checkpoint(tmp_path))
    entry = index.tensors["model.norm.weight"]
    with Reader(index) as reader:
        os.truncate(entry.file, entry.offset + 10)
        with pytest.raises(CheckpointChanged) as caught:
            reader.read(entry, 0, memoryview(bytearray(entry.size)))
    assert caught.value.code == "checkpoint_changed"
    assert f"ends at byte {entry.offset + 10}, inside tensor 'model.norm.weight'; " in str(caught.value)
    assert "request it again" in str(caught.value)


def test_a_file_of_another_size_than_the_index_found_is_a_changed_checkpoint(tmp_path: Path) -> None:
    index = read_index(write_checkpoint(tmp_path))
    with (tmp_path / "model.safetensors").open("ab") as file:
        file.write(b"x")
    size = index.files[str(tmp_path / "model.safetensors")]
    with pytest.raises(CheckpointChanged, match=f"has {size + 1} bytes and had {size}"), Reader(index):
        pass


def test_a_file_that_is_gone_is_a_missing_checkpoint(tmp_path: Path) -> None:
    index = read_index(write_checkpoint(tmp_path, shards=2))
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    before = open_descriptors()
    with pytest.raises(CheckpointMissing, match="raise save_total_limit or enable pins"), Reader(index):
        pass
    assert open_descriptors() == before


def test_a_link_put_in_the_files_place_is_not_followed(tmp_path: Path) -> None:
    index = read_index(write_checkpoint(tmp_path / "a"))
    (tmp_path / "a" / "model.safetensors").rename(tmp_path / "elsewhere")
    (tmp_path / "a" / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="cannot be read"), Reader(index):
        pass


def test_the_files_are_closed_at_the_end(tmp_path: Path) -> None:
    index = read_index(write_checkpoint(tmp_path, shards=3))
    before = open_descriptors()
    with Reader(index):
        assert open_descriptors() == before + 3
    assert open_descriptors() == before


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_file_that_was_written_to_is_noticed_and_one_that_was_only_linked_or_removed_is_not(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint")
    weights = folder / "model.safetensors"
    with Reader(read_index(folder)) as reader:
        os.link(weights, tmp_path / "pin")
        weights.unlink()
        reader.check_unwritten()
        with (tmp_path / "pin").open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\1")
        with pytest.raises(CheckpointChanged, match="was written to while it was read"):
            reader.check_unwritten()
