"""Headers made to exhaust whoever reads them: each is answered soon, in bounded memory.

Each is read in a process of its own, because a process's peak never falls.
"""

import subprocess
import sys
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
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(make()))
    told = subprocess.run([sys.executable, "-c", READING, tmp_path], capture_output=True, text=True, check=True).stdout
    megabytes, code, message = told.split(" ", 2)
    assert code in {"header_invalid", "checkpoint_empty"}
    assert words in message
    assert int(megabytes) < BOUND_MEGABYTES
    (tmp_path / "model.safetensors").unlink()
