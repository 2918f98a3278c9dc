"""Files of ``torch.save``: read like torch reads them, and hostile ones refused without running anything."""

import collections
import contextlib
import io
import os
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from archaeologist.checkpoints import pickles, torch_file
from archaeologist.checkpoints.index import CheckpointIndex, read_index
from archaeologist.checkpoints.reader import Reader
from archaeologist.errors import (
    ArchaeologistError,
    CheckpointEmpty,
    CheckpointFormatUnsupported,
    HeaderInvalid,
    PickleRefused,
)

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def saved(folder: Path, content: Any, **how: Any) -> Path:
    folder.mkdir(exist_ok=True)
    torch.save(content, folder / "pytorch_model.bin", **how)
    return folder


def values(index: CheckpointIndex) -> dict[str, torch.Tensor]:
    """Every tensor as the reader gives it."""
    found = {}
    with Reader(index) as reader:
        for name, entry in index.tensors.items():
            content = bytearray(entry.size)
            reader.read(entry, 0, memoryview(content))
            flat = torch.frombuffer(content, dtype=DTYPES[entry.dtype]) if content else torch.empty(0)
            found[name] = flat.to(DTYPES[entry.dtype]).reshape(entry.shape)
    return found


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    table = torch.randn(10, 4)
    whole = torch.randn(6, 8)
    return {
        "model.embed_tokens.weight": table,
        "lm_head.weight": table,  # tied: one storage
        "model.layers.0.a.weight": torch.randn(3, 5, dtype=torch.bfloat16),
        "model.layers.0.b.weight": torch.randn(7).half(),
        "model.layers.0.rows.weight": whole[2:5],  # a contiguous view into a larger storage
        "model.layers.0.one.weight": torch.randn(1, 4).t().contiguous().t(),  # strides of length 1 do not matter
        "model.layers.0.parameter.weight": torch.nn.Parameter(torch.randn(2, 2)).detach(),
        "model.layers.0.scalar": torch.tensor(1.5),
        "model.layers.0.empty": torch.empty(0, 3),
    }


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_every_tensor_has_the_values_that_torch_reads(tmp_path: Path, *, is_zip: bool) -> None:
    stored = collections.OrderedDict(tensors()) | {"model.layers.0.steps": torch.arange(5)}
    saved(tmp_path, stored, _use_new_zipfile_serialization=is_zip)
    index = read_index(tmp_path)
    found = values(index)
    loaded = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    assert found.keys() == tensors().keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, loaded[name]), name
    assert index.skipped == {"model.layers.0.steps": "I64: a buffer, not weights"}
    tied = index.tensors["lm_head.weight"], index.tensors["model.embed_tokens.weight"]
    assert tied[0].offset == tied[1].offset


def test_a_parameter_is_its_tensor(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.randn(3, 2))
    found = values(read_index(saved(tmp_path, {"a.weight": weight})))
    assert torch.equal(found["a.weight"], weight.detach())


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "module"])
def test_a_trainers_file_holds_the_model_one_level_down(tmp_path: Path, key: str) -> None:
    content = {"epoch": 3, "lr": 0.1, "name": "x", key: {"a.weight": torch.ones(2)}, "list": [1, (2, None)]}
    assert list(read_index(saved(tmp_path, content)).tensors) == ["a.weight"]


def test_a_single_file_is_named_itself(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.ones(2)}, tmp_path / "run.ckpt")
    assert list(read_index(tmp_path / "run.ckpt").tensors) == ["a.weight"]


def test_a_view_that_is_not_contiguous_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(CheckpointFormatUnsupported, match=r"'a.weight'.*strides \(1, 4\).*\.contiguous\(\)"):
        read_index(saved(tmp_path, {"a.weight": torch.randn(3, 4).t()}))


def test_a_compressed_zip_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, {"a.weight": torch.ones(100)})
    file = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(CheckpointFormatUnsupported, match=r"is compressed, torch\.save stores"):
        read_index(tmp_path)


def test_big_endian_bytes_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, {"a.weight": torch.ones(2)})
    rewrite(tmp_path / "pytorch_model.bin", {"archive/byteorder": b"big"})
    with pytest.raises(CheckpointFormatUnsupported, match="not little-endian"):
        read_index(tmp_path)


# Hostile ones. Each would write the canary if it were unpickled as Python does.


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call, self.arguments


def rewrite(file: Path, changed: dict[str, bytes]) -> None:
    """The zip with other entries in the places of some."""
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(entries)).partition("/")[0]
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in (entries | {name.replace("archive", root): one for name, one in changed.items()}).items():
            archive.writestr(name, content)


def with_pickle(folder: Path, content: bytes) -> Path:
    """A file of torch.save whose pickle has been replaced."""
    saved(folder, {"a.weight": torch.ones(2)})
    rewrite(folder / "pytorch_model.bin", {"archive/data.pkl": content})
    return folder


@pytest.mark.parametrize(
    "call",
    [
        lambda canary: (os.system, f"touch {canary}"),
        lambda canary: (open, canary, "w"),
        lambda canary: (eval, f"open({canary!r}, 'w')"),
        lambda canary: (torch.load, canary),
    ],
    ids=["system", "open", "eval", "torch.load"],
)
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_a_pickle_that_runs_something_is_refused_and_runs_nothing(
    tmp_path: Path, call: Callable[[str], tuple[Any, ...]], *, is_zip: bool
) -> None:
    canary = tmp_path / "canary"
    content = {"a.weight": torch.ones(2), "extra": Evil(*call(str(canary)))}
    saved(tmp_path, content, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(PickleRefused, match="nothing of it was run") as caught:
        read_index(tmp_path)
    assert caught.value.code == "pickle_refused"
    assert not canary.exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.", "'posix.system'"),
        (b"\x80\x04\x8c\x05posix\x8c\x06system\x93.", "'posix.system'"),
        (b"\x80\x02(S'true'\niposix\nsystem\n.", "STRING"),
        (b"\x80\x02(cposix\nsystem\nS'true'\no.", "'posix.system'"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x02}X\x01\x00\x00\x00a\x85R.", "calls"),
        (b"\x80\x02X\x01\x00\x00\x00a}b.", "sets attributes"),
        (b"\x80\x02P1\n.", "PERSID"),
    ],
)
def test_operations_that_weights_do_not_need_are_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(PickleRefused, match=reason):
        read_index(with_pickle(tmp_path, content))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02.",
        b"\x80\x02t.",
        b"\x80\x02\x86.",
        b"\x80\x02h\x07.",
        b"\x80\x02e.",
        b"\x80\x02Nu.",
        b"\x80\x02}(Nu.",
        b"\x80\x02X\xff\xff\xff\xffa.",
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"a.",
        b"\x80\x02cno newline",
        b"not a pickle",
        b"\x80\x02cctorch\nFloatStorage\n.",
    ],
)
def test_a_damaged_pickle_is_told_as_damaged(tmp_path: Path, content: bytes) -> None:
    with pytest.raises((HeaderInvalid, PickleRefused)):
        read_index(with_pickle(tmp_path, content))


def described(**changed: Any) -> bytes:
    """A pickle of one tensor with something wrong about it, as torch writes it."""
    parts: dict[str, Any] = {"key": "0", "count": 2, "offset": 0, "shape": (2,), "stride": (1,)} | changed
    return b"".join(
        [
            b"\x80\x02}X\x08\x00\x00\x00a.weightctorch._utils\n_rebuild_tensor_v2\n(",
            b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n",
            *(pickle.dumps(one, 2)[2:-1] for one in (parts["key"], "cpu", parts["count"])),
            b"tQ",
            *(pickle.dumps(parts[name], 2)[2:-1] for name in ("offset", "shape", "stride")),
            b"\x89ccollections\nOrderedDict\n)RtRs.",
        ]
    )


def test_what_the_pickle_says_is_held_against_the_storages(tmp_path: Path) -> None:
    assert list(read_index(with_pickle(tmp_path, described())).tensors) == ["a.weight"]


@pytest.mark.parametrize(
    "changed",
    [
        {"key": "1"},
        {"key": "../data.pkl"},
        {"key": 0},
        {"count": 3},
        {"count": -2},
        {"count": 1 << 80},
        {"offset": 1},
        {"offset": -1},
        {"offset": 1 << 70},
        {"offset": "0"},
        {"shape": (3,)},
        {"shape": (-1,)},
        {"shape": (True,)},
        {"shape": (1 << 62, 1 << 62), "stride": (1 << 62, 1)},
        {"shape": (1,) * 65, "stride": (1,) * 65},
        {"shape": [2]},
        {"stride": ()},
        {"stride": (1, 1)},
    ],
)
def test_a_tensor_that_its_storage_does_not_hold_is_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    with pytest.raises(HeaderInvalid):
        read_index(with_pickle(tmp_path, described(**changed)))


def test_a_pickle_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MAX_OPERATIONS", 1000)
    with pytest.raises(HeaderInvalid, match="more than 1000 operations"):
        read_index(with_pickle(tmp_path, b"\x80\x02" + b"N" * 2000 + b"."))
    monkeypatch.setattr(torch_file, "MAX_BYTES", 100)
    with pytest.raises(HeaderInvalid, match="at most 100 are read"):
        read_index(with_pickle(tmp_path, b"\x80\x02" + b"N" * 200 + b"."))


def test_a_pickle_that_grows_when_it_is_hashed_or_printed_is_read_as_data(tmp_path: Path) -> None:
    nested = b"N\x85q\x00" + b"".join(
        b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86q" + bytes([n + 1]) for n in range(100)
    )
    with pytest.raises(CheckpointEmpty):
        read_index(with_pickle(tmp_path, b"\x80\x02}(" + nested + b"Nu."))
    with pytest.raises(HeaderInvalid):
        read_index(with_pickle(tmp_path, b"\x80\x02}X\x01\x00\x00\x00a" + nested + b"es."))


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, tensors())
    file = tmp_path / "pytorch_model.bin"
    content = file.read_bytes()
    for size in range(0, len(content), 97):
        file.write_bytes(content[:size])
        with pytest.raises(HeaderInvalid):
            read_index(tmp_path)


def test_a_legacy_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, tensors(), _use_new_zipfile_serialization=False)
    file = tmp_path / "pytorch_model.bin"
    content = file.read_bytes()
    for size in (*range(0, len(content), 97), len(content) - 1):
        file.write_bytes(content[:size])
        with pytest.raises((HeaderInvalid, PickleRefused)):
            read_index(tmp_path)


@given(st.binary(max_size=200))
def test_no_pickle_does_more_than_be_refused_or_described(content: bytes) -> None:
    with contextlib.suppress(pickles.PickleBrokenError, pickles.PickleRefusedError):
        pickles.load(io.BytesIO(content), torch_file.NAMES, persistent=torch_file._storage)


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_changed_byte_gives_tensors_within_the_file_or_a_coded_error(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int
) -> None:
    folder = tmp_path_factory.mktemp("changed")
    file = saved(folder, {"a.weight": torch.ones(4), "b.weight": torch.ones(2, 2)}) / "pytorch_model.bin"
    content = bytearray(file.read_bytes())
    content[place % len(content)] = value
    file.write_bytes(content)
    try:
        index = read_index(folder)
    except ArchaeologistError:
        return
    assert all(0 <= entry.offset <= len(content) - entry.size for entry in index.tensors.values())


def test_operations_of_torchs_own_files_are_all_known(tmp_path: Path) -> None:
    saved(tmp_path, tensors())
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin") as archive:
        raw = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    used = {operation.name for operation, _, _ in pickletools.genops(raw)}
    assert used <= pickles.KNOWN
