"""Headers and pickles made to exhaust whoever reads them: each is answered soon, in bounded memory.

Each is read in a process of its own, because a process's peak never falls.
"""

import io
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fixtures.checkpoints import safetensors_bytes

BOUND_MEGABYTES = 400

READING = """
import resource, sys
from pathlib import Path
from archaeologist.checkpoints.index import read_index
from archaeologist.errors import CheckpointError

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

before = peak()
try:
    read_index(Path(sys.argv[1]))
except CheckpointError as error:
    print(peak() - before, error.code, str(error)[:500])
else:
    print(peak() - before, "read", "")
"""


def text(size: int, *, more: str = "") -> bytes:
    return f'{{"__metadata__":{{"a":"{"x" * size}{more}"}}}}'.encode()


def tensors(count: int) -> bytes:
    entry = '"{0}":{{"dtype":"U8","shape":[1],"data_offsets":[{0},{1}]}}'
    return ("{" + ",".join(entry.format(number, number + 1) for number in range(count)) + "}").encode()


def objects(count: int) -> bytes:
    return ("{" + ",".join(f'"{number}":{{"a":0}}' for number in range(count)) + "}").encode()


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "one long text": (lambda: text(31_000_000), "holds no weights"),
    "one long text and one wide character": (lambda: text(31_000_000, more="😀"), "holds no weights"),
    "one long text of escapes": (lambda: text(0, more="\\ud83d\\ude00" * 2_600_000), "holds no weights"),
    "a hundred megabytes": (lambda: text(99_000_000), "at most 32000000 are read"),
    "a million tensors": (lambda: tensors(1_000_000), "at most 32000000 are read"),
    "three hundred thousand tensors": (lambda: tensors(300_000), "JSON values, at most 2000000 are read"),
    "a million objects": (lambda: objects(990_000), "it needs dtype, shape and data_offsets"),
    "a number of millions of digits": (lambda: b'{"a":' + b"9" * 31_000_000 + b"}", "its header is not JSON"),
    "a million levels": (lambda: b'{"a":' * 900_000 + b"1" + b"}" * 900_000, "nested too deeply"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_header_bomb_is_refused_in_bounded_memory(tmp_path: Path, bomb: str) -> None:
    make, words = BOMBS[bomb]
    code, message = told(tmp_path, "model.safetensors", safetensors_bytes(make()))
    assert code in {"header_invalid", "checkpoint_empty"}
    assert words in message


PICKLES: dict[str, tuple[Callable[[], bytes], str]] = {
    "millions of mappings": (lambda: b"}" * 3_900_000, "too many values"),
    "millions of marks": (lambda: b"(" * 3_900_000, "too many values"),
    "millions remembered": (lambda: b"}" + b"\x94" * 3_900_000, "holds no weights"),
    "millions of levels": (lambda: b"N" + b"\x85" * 3_900_000, "holds no weights"),
    "a long text with one wide character": (lambda: long_text("x" * 60_000_000 + "😀"), "holds no weights"),
    "a text longer than the file": (lambda: b"X" + (1 << 31).to_bytes(4, "little"), "damaged"),
    "more bytes than are read": (lambda: long_text("x" * 65_000_000), "at most 64000000 are read"),
}
"""What a pickle does between its beginning and its end."""


def long_text(text: str) -> bytes:
    content = text.encode()
    return b"X" + len(content).to_bytes(4, "little") + content


@pytest.mark.parametrize("bomb", PICKLES)
def test_a_pickle_bomb_is_refused_in_bounded_memory(tmp_path: Path, bomb: str) -> None:
    make, words = PICKLES[bomb]
    code, message = told(tmp_path, "pytorch_model.bin", torch_zip(b"\x80\x04" + make() + b"."))
    assert code in {"header_invalid", "checkpoint_empty"}
    assert words in message


def test_metadata_that_is_long_twice_is_not_read_squared(tmp_path: Path) -> None:
    names = [f"k{number}" for number in range(200_000)]
    fields = {"state_dict_metadata": dict.fromkeys(names), "planner_data": dict.fromkeys(names), "storage_data": {}}
    made = b"ctorch.distributed.checkpoint.metadata\nMetadata\n)R"
    code, message = told(tmp_path, ".metadata", b"\x80\x02" + made + pickle.dumps(fields, 2)[2:-1] + b"b.")
    assert (code, "list no tensor" in message) == ("checkpoint_empty", True)


def torch_zip(pickled: bytes) -> bytes:
    """What ``torch.save`` leaves, without storages."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
    return file.getvalue()


def told(folder: Path, name: str, content: bytes) -> tuple[str, str]:
    """Code and message with which a checkpoint of this file is refused, in bounded memory."""
    (folder / name).write_bytes(content)
    done = subprocess.run([sys.executable, "-c", READING, folder], capture_output=True, text=True, check=True)
    (folder / name).unlink()
    megabytes, code, message = done.stdout.split(" ", 2)
    assert int(megabytes) < BOUND_MEGABYTES
    return code, message
