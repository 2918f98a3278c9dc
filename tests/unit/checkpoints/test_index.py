"""The index of real checkpoints, and of folders that are none."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from archaeologist.checkpoints.index import CheckpointIndex, read_index
from archaeologist.errors import (
    ArchaeologistError,
    CheckpointEmpty,
    CheckpointError,
    CheckpointFormatUnsupported,
    CheckpointMissing,
    ConfigInvalid,
    DtypeUnsupported,
    HeaderInvalid,
    IndexInvalid,
    PathOutsideRoot,
    ShardMissing,
)
from tests.fixtures.checkpoints import (
    qwen3_tensors,
    safetensors_bytes,
    write_checkpoint,
    write_single,
)

FIRST = "model-00001-of-00002.safetensors"
READ = "F32, F16, BF16, F8_E4M3, F8_E5M2, F8_E4M3FNUZ, F8_E5M2FNUZ"
SECOND = "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def refusal(folder: Path, error: type[ArchaeologistError], *, code: str, **options: Any) -> str:
    with pytest.raises(error) as caught:
        read_index(folder, **options)
    assert caught.value.code == code
    message = str(caught.value)
    assert str(folder.name) in message
    assert ";" in message, "the remedy follows a semicolon"
    return message


def stored_bytes(index: CheckpointIndex, name: str) -> bytes:
    entry = index.tensors[name]
    with Path(entry.file).open("rb") as file:
        file.seek(entry.offset)
        return file.read(entry.size)


def raw_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.flatten().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_tensor_is_found_where_the_library_wrote_it(tmp_path: Path, shards: int, dtype: torch.dtype) -> None:
    tensors = qwen3_tensors(seed=1, dtype=dtype, is_tied=False)
    index = read_index(write_checkpoint(tmp_path, tensors=tensors, shards=shards))
    assert index.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert index.tensors[name].shape == tuple(tensor.shape)
        assert stored_bytes(index, name) == raw_bytes(tensor)


def test_tensors_are_listed_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    index = read_index(write_checkpoint(tmp_path, shards=3))
    places = [(entry.file, entry.offset) for entry in index.tensors.values()]
    assert places == sorted(places)


def test_files_have_their_sizes(tmp_path: Path) -> None:
    index = read_index(write_checkpoint(tmp_path, shards=2))
    assert index.files == {str(tmp_path / name): (tmp_path / name).stat().st_size for name in (FIRST, SECOND)}
    assert index.headers.keys() == index.files.keys()


def test_a_weight_file_itself_is_a_checkpoint(tmp_path: Path) -> None:
    tensors = qwen3_tensors()
    save_file(tensors, tmp_path / "consolidated.safetensors")
    index = read_index(tmp_path / "consolidated.safetensors")
    assert index.path == str(tmp_path / "consolidated.safetensors")
    assert index.tensors.keys() == tensors.keys()
    assert index.config is None


def test_the_single_file_wins_over_the_sharded_index_as_in_transformers(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=2, layers=2)
    write_checkpoint(tmp_path, shards=1, layers=1)
    assert read_index(tmp_path).files.keys() == {str(tmp_path / "model.safetensors")}


def test_the_trainers_files_beside_the_weights_do_not_matter(tmp_path: Path) -> None:
    assert read_index(write_checkpoint(tmp_path, step=100)).tensors_listed == 24


# Buffers and dtypes.


def test_integer_buffers_are_listed_as_skipped_with_the_reason(tmp_path: Path) -> None:
    tensors = qwen3_tensors() | {"model.position_ids": torch.arange(8), "mask": torch.ones(3, dtype=torch.bool)}
    index = read_index(write_checkpoint(tmp_path, tensors=tensors))
    assert index.skipped == {"model.position_ids": "I64: a buffer, not weights", "mask": "BOOL: a buffer, not weights"}
    assert index.skipped_bytes == 8 * 8 + 3
    assert index.tensors_listed == 26
    assert index.bytes_listed == sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def test_a_double_buffer_is_skipped_and_says_what_is_read(tmp_path: Path) -> None:
    tensors = qwen3_tensors() | {"rotary.inv_freq": torch.ones(4, dtype=torch.float64)}
    index = read_index(write_checkpoint(tmp_path, tensors=tensors))
    assert index.skipped == {"rotary.inv_freq": f"F64: {READ} are read"}


@pytest.mark.parametrize(
    ("name", "dtype", "label", "remedy"),
    [
        ("up_proj.weight", torch.float64, "F64", "save a copy in float32: model.to(torch.float32)"),
        ("up_proj.weight", torch.complex64, "C64", "save real and imaginary parts as tensors of their own"),
        ("up_proj.weight", torch.uint8, "U8", "save the model dequantised in one of them"),
        ("up_proj.qweight", torch.int32, "I32", "save the model dequantised in one of them"),
        ("scale", torch.float8_e8m0fnu, "F8_E8M0", "save the model dequantised in one of them"),
    ],
)
def test_weights_in_another_dtype_refuse_the_checkpoint(
    tmp_path: Path, name: str, dtype: torch.dtype, label: str, remedy: str
) -> None:
    tensors = qwen3_tensors() | {name: torch.ones(4).to(dtype)}
    with pytest.raises(DtypeUnsupported) as caught:
        read_index(write_checkpoint(tmp_path, tensors=tensors))
    assert str(caught.value) == f"tensor {name!r} has dtype {label}, weights of {READ} are read; {remedy}"


@pytest.mark.parametrize(
    "name", ["mlp.up_proj.weight_scale_inv", "mlp.up_proj.weight_scale", "mlp.up_proj.scale_weight"]
)
def test_8_bit_weights_are_read_unless_scales_lie_beside_them(tmp_path: Path, name: str) -> None:
    weights = {"mlp.up_proj.weight": torch.ones(4, 4).to(torch.float8_e4m3fn), "norm.weight": torch.ones(4)}
    elsewhere = weights | {"norm.scale": torch.ones(4)}
    index = read_index(write_checkpoint(tmp_path / "plain", tensors=elsewhere))
    assert index.tensors["mlp.up_proj.weight"].dtype == "F8_E4M3"
    with pytest.raises(DtypeUnsupported) as caught:
        read_index(write_checkpoint(tmp_path / "scaled", tensors=weights | {name: torch.ones(1)}))
    assert str(caught.value) == (
        f"tensor 'mlp.up_proj.weight' is F8_E4M3 and multiplied by {name!r}, 8-bit floats are read without scales;"
        " save the model dequantised"
    )


def test_a_checkpoint_most_of_whose_bytes_are_not_read_is_refused(tmp_path: Path) -> None:
    tensors = {"norm.weight": torch.ones(4), "experts.packed": torch.ones(100, dtype=torch.int32)}
    with pytest.raises(DtypeUnsupported, match=r"'experts\.packed' has dtype I32"):
        read_index(write_checkpoint(tmp_path, tensors=tensors))


def test_tensors_without_elements_are_listed(tmp_path: Path) -> None:
    index = read_index(write_checkpoint(tmp_path, tensors={"a.weight": torch.ones(2), "b.weight": torch.ones(0, 3)}))
    assert index.tensors["b.weight"].size == 0


# Sharded indices.


def rewrite_index(folder: Path, change: dict[str, Any]) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] |= change
    (folder / INDEX).write_text(json.dumps(index))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=2)
    (tmp_path / SECOND).unlink()
    assert f"file '{SECOND}' of checkpoint" in refusal(tmp_path, ShardMissing, code="shard_missing")


def test_a_listed_tensor_that_its_shard_does_not_hold_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=2)
    rewrite_index(tmp_path, {"model.layers.9.ghost.weight": SECOND})
    message = refusal(tmp_path, IndexInvalid, code="index_invalid")
    assert f"lists tensor 'model.layers.9.ghost.weight' in '{SECOND}', which does not hold it" in message


def test_a_tensor_that_the_index_does_not_list_is_skipped_with_the_reason(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=2)
    index = json.loads((tmp_path / INDEX).read_text())
    del index["weight_map"]["model.norm.weight"]
    (tmp_path / INDEX).write_text(json.dumps(index))
    read = read_index(tmp_path)
    assert read.skipped == {"model.norm.weight": "not in the sharded index"}
    assert read.skipped_bytes == 32


def test_of_a_tensor_in_two_shards_the_index_decides(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2), "b": torch.zeros(2)}, tmp_path / FIRST)
    save_file({"a": torch.ones(2)}, tmp_path / SECOND)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": SECOND, "b": FIRST}}))
    index = read_index(tmp_path)
    assert stored_bytes(index, "a") == raw_bytes(torch.ones(2))
    assert index.tensors_listed == 2


@pytest.mark.parametrize(
    "shard",
    [
        "../outside.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "..",
        "",
        "model.bin",
        "x\x00.safetensors",
        5,
        None,
        "a\\b.safetensors",
        "x" * 256 + ".safetensors",
    ],
)
def test_a_shard_is_a_plain_file_name(tmp_path: Path, shard: object) -> None:
    write_checkpoint(tmp_path, shards=2)
    rewrite_index(tmp_path, {"model.norm.weight": shard})
    message = refusal(tmp_path, IndexInvalid, code="index_invalid")
    assert "puts 'model.norm.weight' into" in message
    assert "a shard is a plain .safetensors file name" in message


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"weight_map": []}', b'{"weight_map": {}}', b"{}"])
def test_a_broken_sharded_index_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / INDEX).write_bytes(content)
    refusal(tmp_path, IndexInvalid, code="index_invalid")


def test_an_endless_sharded_index_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / INDEX).open("wb") as file:
        file.truncate(32_000_001)
    assert "32000001 bytes, at most 32000000 are read" in refusal(tmp_path, IndexInvalid, code="index_invalid")


# Links.


def hub_cache(tmp_path: Path) -> Path:
    """A snapshot as the Hugging Face cache has it: every file a link to ``../../blobs``."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    write_checkpoint(blobs)
    snapshot.mkdir(parents=True)
    for name in ("model.safetensors", "config.json"):
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    return snapshot


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path)
    message = refusal(snapshot, PathOutsideRoot, code="path_outside_root")
    assert f"leads to '{tmp_path}/blobs/model.safetensors'" in message
    assert "setting 'allowed'" in message


def test_a_link_to_an_allowed_folder_is_followed(tmp_path: Path) -> None:
    index = read_index(hub_cache(tmp_path), allowed=[tmp_path])
    assert index.files.keys() == {str(tmp_path / "blobs" / "model.safetensors")}
    assert index.config is not None


def test_a_folder_whose_name_only_begins_like_the_allowed_one_is_outside(tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path)
    refusal(snapshot, PathOutsideRoot, code="path_outside_root", allowed=[tmp_path / "blob"])


def test_a_checkpoint_that_is_a_link_itself_is_its_target(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint-100")
    (tmp_path / "latest").symlink_to("checkpoint-100")
    assert read_index(tmp_path / "latest").path == str(tmp_path / "checkpoint-100")


def test_a_link_in_a_circle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to("model.safetensors")
    refusal(tmp_path, CheckpointError, code="checkpoint_unreadable")


def test_a_link_to_nothing_is_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to("gone.safetensors")
    refusal(tmp_path, ShardMissing, code="shard_missing")


@pytest.mark.timeout(10)
def test_a_pipe_in_place_of_the_weights_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    assert "not a regular file" in refusal(tmp_path, CheckpointError, code="checkpoint_unreadable")


# What is not a checkpoint.


def test_nothing_there_is_missing(tmp_path: Path) -> None:
    refusal(tmp_path / "checkpoint-5", CheckpointMissing, code="checkpoint_missing")


def test_a_path_with_a_nul_character_is_missing() -> None:
    with pytest.raises(CheckpointMissing):
        read_index(Path("a\0b"))


def test_a_folder_without_weights_is_empty(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    message = refusal(tmp_path, CheckpointEmpty, code="checkpoint_empty")
    assert "holds 'config.json', it needs model.safetensors" in message


def test_an_empty_folder_is_empty(tmp_path: Path) -> None:
    assert "holds nothing" in refusal(tmp_path, CheckpointEmpty, code="checkpoint_empty")


def test_a_weight_file_without_tensors_is_empty(tmp_path: Path) -> None:
    write_single(tmp_path, safetensors_bytes({}))
    refusal(tmp_path, CheckpointEmpty, code="checkpoint_empty")


def test_a_file_of_another_kind_is_unsupported(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"x")
    refusal(tmp_path / "model.gguf", CheckpointFormatUnsupported, code="checkpoint_format_unsupported")


@pytest.mark.parametrize(
    ("name", "kind", "remedy"),
    [
        ("pytorch_model-00001-of-00002.bin", "shards without their index", "pytorch_model.bin.index.json"),
        ("optimizer.pt", "a trainer's own state", "wait until the model is saved"),
        ("rng_state.pth", "a trainer's own state", "wait until the model is saved"),
        ("pytorch_model_fsdp_0", "FSDP shards without their .metadata", "copy it beside them"),
        ("global_step100", "ZeRO shards", "zero_to_fp32.py"),
        ("consolidated.safetensors", "weights under another name", "name that file itself"),
        ("model-00001-of-00002.safetensors", "shards without their index", INDEX),
        ("model.gguf", "GGUF weights", "that they were made from"),
        ("tf_model.h5", "TensorFlow or Flax weights", "convert them"),
        ("consolidated.00.pth", "weights under another name", "name that file itself"),
    ],
)
def test_weights_in_another_format_are_named_with_what_to_do(tmp_path: Path, name: str, kind: str, remedy: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"not to be opened")
    message = refusal(tmp_path, CheckpointFormatUnsupported, code="checkpoint_format_unsupported")
    assert f"{kind} ('{name}')" in message
    assert remedy in message


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state_0.pth", "training_args.bin"])
def test_a_trainers_own_file_is_not_opened_even_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not to be opened")
    message = refusal(tmp_path / name, CheckpointFormatUnsupported, code="checkpoint_format_unsupported")
    assert "a trainer's own state" in message


def test_a_truncated_weight_file_is_named_by_its_name_in_the_folder(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=2)
    os.truncate(tmp_path / SECOND, 500)
    assert f"{tmp_path.name}/{SECOND}" in refusal(tmp_path, HeaderInvalid, code="header_invalid")


# config.json.


def test_of_the_configuration_only_what_is_used_is_kept(tmp_path: Path) -> None:
    assert read_index(write_checkpoint(tmp_path)).config == {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "tie_word_embeddings": True,
    }


def test_a_nested_text_model_says_whether_it_is_tied(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": null, "text_config": {"tie_word_embeddings": false}}')
    assert read_index(tmp_path).config == {"tie_word_embeddings": False}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b"null",
        b"\xff\xfe",
        b'{"architectures": "Qwen3"}',
        b'{"tie_word_embeddings": 1}',
        b"[" * 99999,
    ],
)
def test_a_broken_configuration_is_refused(tmp_path: Path, content: bytes) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    refusal(tmp_path, ConfigInvalid, code="config_invalid")


def test_an_endless_configuration_is_refused_unread(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "config.json").write_bytes(b" " * 4_000_001)
    assert "at most 4000000 are read" in refusal(tmp_path, ConfigInvalid, code="config_invalid")


def test_the_library_sees_the_same_tensors(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, is_tied=False)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert names == read_index(tmp_path).tensors.keys()


@pytest.mark.parametrize(
    ("names", "by"),
    [
        (("weight", "weight.quant_state.bitsandbytes__nf4", "weight.absmax"), "bitsandbytes"),
        (("weight", "SCB"), "bitsandbytes"),
        (("qweight", "qzeros", "g_idx"), "GPTQ"),
        (("qweight", "qzeros"), "AWQ"),
        (("weight_packed",), "compressed-tensors"),
    ],
)
def test_packed_weights_are_refused_with_who_packed_them(tmp_path: Path, names: tuple[str, ...], by: str) -> None:
    packed = {f"model.layers.0.mlp.up_proj.{name}": torch.zeros(8, dtype=torch.uint8) for name in names}
    write_checkpoint(tmp_path, tensors={"model.norm.weight": torch.ones(4), **packed})
    with pytest.raises(DtypeUnsupported, match=f"packed by {by}, "):
        read_index(tmp_path)
