"""How a child stands back for others: priorities, caps, pace, and the page cache that it leaves as it was."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from archaeologist.bench import models
from archaeologist.bench.disk import drop, resident_share, weight_files
from archaeologist.checkpoints.index import read_index
from archaeologist.checkpoints.reader import Pace, Reader

SHAPE = models.Shape(layers=1, hidden=256, heads=2, intermediate=512, key_value_heads=1, vocabulary=60_000)

STANDING_BACK = """
import ctypes, json, os, platform, resource, sys, threading
from archaeologist.job import _IOPRIO_SET, _stand_back
from contracts.messages import NeighbourOptions
_stand_back(NeighbourOptions(nice=12, io=sys.argv[1], memory_mb=500))
found = {}
def look():
    get = _IOPRIO_SET[platform.machine()] + 1
    found["io"] = ctypes.CDLL(None).syscall(get, 1, 0)
    found["nice"] = os.nice(0)
thread = threading.Thread(target=look)
thread.start()
thread.join()
found["memory"] = resource.getrlimit(resource.RLIMIT_DATA)[0]
try:
    bytearray(600_000_000)
except MemoryError:
    found["is_capped"] = True
print(json.dumps(found))
"""


@pytest.mark.parametrize(("io", "expected"), [("low", (2, 7)), ("idle", (3, 0))])
def test_threads_of_a_child_have_its_priorities_and_its_memory_is_capped(io: str, expected: tuple[int, int]) -> None:
    done = subprocess.run([sys.executable, "-c", STANDING_BACK, io], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert (found["io"] >> 13, found["io"] & 7) == expected
    assert found["nice"] == 12
    assert found["memory"] == 500_000_000
    assert found["is_capped"]


def _read_all(folder: Path, *, drop_page_cache: bool = False, pace: Pace | None = None) -> None:
    index = read_index(folder)
    buffer = memoryview(bytearray(1 << 20))
    with Reader(index, drop_page_cache=drop_page_cache, pace=pace) as reader:
        for entry in index.tensors.values():
            reader.ask_ahead(entry, 0, entry.size)
            for start in range(0, entry.size, len(buffer)):
                reader.read(entry, start, buffer[: min(len(buffer), entry.size - start)])


@pytest.mark.parametrize("was_there", [False, True])
def test_the_page_cache_is_left_as_it_was_found(tmp_path: Path, *, was_there: bool) -> None:
    folder = models.make(tmp_path / "a", SHAPE, moved=0)
    files = weight_files(folder)
    drop(files)
    if resident_share(files) > 0:
        pytest.skip("a memory file system, or one that does not tell what is in memory")
    if was_there:
        _read_all(folder)
        assert resident_share(files) == 1
    _read_all(folder, drop_page_cache=True)
    assert resident_share(files) == (1 if was_there else 0)


def test_readers_that_share_a_pace_keep_it_together(tmp_path: Path) -> None:
    folder = models.make(tmp_path / "a", SHAPE, moved=0)
    size = read_index(folder).bytes_listed
    started = time.monotonic()
    pace = Pace(size * 8)
    for _ in range(2):
        _read_all(folder, pace=pace)
    # Never faster; slower whenever the machine is busy.
    assert time.monotonic() - started >= 2 / 8
