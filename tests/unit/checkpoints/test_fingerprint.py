"""The fingerprint: the same for the same content, another one for another."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from archaeologist.checkpoints.fingerprint import SAMPLE_BYTES, SAMPLES_PER_FILE, _samples, fingerprint
from archaeologist.checkpoints.index import TensorEntry, read_index
from archaeologist.errors import CheckpointChanged
from tests.fixtures.checkpoints import qwen3_tensors, write_checkpoint


def of(folder: Path) -> str:
    return fingerprint(read_index(folder))


def test_it_is_32_hexadecimal_digits(tmp_path: Path) -> None:
    digits = of(write_checkpoint(tmp_path))
    assert len(digits) == 32
    int(digits, 16)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_copy_elsewhere_at_another_time_has_the_same(tmp_path: Path, shards: int) -> None:
    write_checkpoint(tmp_path / "a", shards=shards)
    shutil.copytree(tmp_path / "a", tmp_path / "b" / "c")
    for file in (tmp_path / "b" / "c").iterdir():
        os.utime(file, (0, 0))
    assert of(tmp_path / "a") == of(tmp_path / "b" / "c")


def test_files_outside_the_weights_do_not_matter(tmp_path: Path) -> None:
    before = of(write_checkpoint(tmp_path))
    (tmp_path / "trainer_state.json").write_text("{}")
    assert of(tmp_path) == before


def test_the_same_weights_under_the_files_own_path_have_the_same(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "other").mkdir()
    shutil.copy(tmp_path / "model.safetensors", tmp_path / "other" / "consolidated.safetensors")
    assert of(tmp_path) == of(tmp_path / "other" / "consolidated.safetensors")


def test_another_seed_has_another(tmp_path: Path) -> None:
    assert of(write_checkpoint(tmp_path / "a", seed=1)) != of(write_checkpoint(tmp_path / "b", seed=2))


def test_one_changed_value_in_any_small_tensor_gives_another(tmp_path: Path) -> None:
    tensors = qwen3_tensors()
    before = of(write_checkpoint(tmp_path / "before", tensors=tensors))
    seen = {before}
    for number, name in enumerate(tensors):
        changed = {key: tensor.clone() for key, tensor in tensors.items()}
        changed[name].view(-1)[-1] += 1
        seen.add(of(write_checkpoint(tmp_path / str(number), tensors=changed)))
    assert len(seen) == len(tensors) + 1


def test_another_name_dtype_shape_or_size_gives_another(tmp_path: Path) -> None:
    variants = [
        {"a": torch.zeros(4, 2)},
        {"b": torch.zeros(4, 2)},
        {"a": torch.zeros(2, 4)},
        {"a": torch.zeros(8, 2, dtype=torch.bfloat16)},
        {"a": torch.zeros(4, 3)},
        {"a": torch.zeros(4, 2), "b": torch.zeros(0)},
    ]
    found = {of(write_checkpoint(tmp_path / str(n), tensors=tensors)) for n, tensors in enumerate(variants)}
    assert len(found) == len(variants)


def test_tensors_without_elements_have_one_too(tmp_path: Path) -> None:
    one = of(write_checkpoint(tmp_path / "a", tensors={"a": torch.zeros(0, 2)}))
    assert one != of(write_checkpoint(tmp_path / "b", tensors={"a": torch.zeros(0, 3)}))


def test_another_split_into_shards_gives_another(tmp_path: Path) -> None:
    assert of(write_checkpoint(tmp_path / "a", shards=2)) != of(write_checkpoint(tmp_path / "b", shards=3))


def test_a_change_in_the_middle_of_a_large_tensor_that_no_sample_touches_is_not_seen(tmp_path: Path) -> None:
    tensors = {"w": torch.zeros(1_000_000)}
    before = of(write_checkpoint(tmp_path / "a", tensors=tensors))
    tensors["w"][1000] = 1.0
    assert of(write_checkpoint(tmp_path / "b", tensors=tensors)) == before


def test_a_change_all_over_a_large_tensor_is_seen(tmp_path: Path) -> None:
    tensors = {"w": torch.zeros(1_000_000)}
    before = of(write_checkpoint(tmp_path / "a", tensors=tensors))
    tensors["w"][::60] = 1.0
    assert of(write_checkpoint(tmp_path / "b", tensors=tensors)) != before


def entries(count: int, size: int) -> list[TensorEntry]:
    return [TensorEntry(name=str(n), dtype="F32", shape=(), file="f", offset=n * size, size=size) for n in range(count)]


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 310, 1024, 1025, 3000, 100_000])
@pytest.mark.parametrize("size", [1, 255, 256, 257, 5000, 10**9])
def test_a_files_samples_are_bounded_and_inside_its_tensors(count: int, size: int) -> None:
    samples = list(_samples(entries(count, size)))
    assert 0 < len(samples) <= SAMPLES_PER_FILE
    assert all(0 <= start < size and start + min(SAMPLE_BYTES, size - start) <= size for _, start in samples)
    sampled = {entry.name for entry, _ in samples}
    assert len(sampled) == count or count > SAMPLES_PER_FILE


def test_a_file_that_changes_its_size_meanwhile_is_a_changed_checkpoint(tmp_path: Path) -> None:
    index = read_index(write_checkpoint(tmp_path))
    os.truncate(tmp_path / "model.safetensors", 100)
    with pytest.raises(CheckpointChanged):
        fingerprint(index)
