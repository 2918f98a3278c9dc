"""``archaeologist bench`` on a pair that takes no time, and the checkpoints that it generates."""

import io
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from archaeologist.bench import models
from archaeologist.bench.disk import drop, resident_share, weight_files
from archaeologist.bench.record import BenchRecord, append
from archaeologist.bench.table import rendered
from archaeologist.checkpoints.index import read_index

TINY = models.Shape(layers=2, hidden=64, heads=2, intermediate=128, key_value_heads=1, head_size=32, vocabulary=500)


def bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "archaeologist", "bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=220)


def shown(record: BenchRecord) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(rendered(record))
    return console.export_text()


@pytest.mark.timeout(240)
def test_a_given_pair_is_measured_and_recorded(tmp_path: Path, kernels: Path) -> None:
    pair = models.make_pair(tmp_path / "pair", TINY)
    table = tmp_path / "history.md"
    asked = ("--reference", pair.reference, "--rounds", 1, "--no-activations", "--json", "--record", table)
    done = bench(pair.target, *asked)
    assert done.returncode == 0, done.stderr
    found = msgspec.json.decode(done.stdout, type=BenchRecord)
    assert found.gigabytes * 1e9 == sum(file.stat().st_size for file in weight_files(*pair))
    assert found.reading_gb_s > 0
    assert found.walk_gb_s > 0
    assert 0 < found.start_seconds <= found.process_seconds
    assert found.specification is not None, found.left_out
    assert found.specification.ratio_process > 0
    assert {name.partition(" ")[0] for name in found.kernels} == {"BF16", "F16", "F32", "F8_E4M3"}
    assert found.cold is not None or "cold" in found.left_out
    assert "read and dropped" in shown(found)
    append(found, table)
    lines = table.read_text().splitlines()
    assert len(lines) == 4
    assert lines[2] == lines[3]
    assert all(line.count("|") == lines[0].count("|") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "said"), [(("--size", "9000b"), "size '9000b' is not known"), (("--reference", "x"), "a reference")]
)
def test_what_cannot_be_measured_is_refused_in_one_line(arguments: tuple[str, ...], said: str) -> None:
    done = bench(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_generated_checkpoints_differ_everywhere_and_holes_take_no_disk(tmp_path: Path) -> None:
    pair = models.make_pair(tmp_path / "real", TINY)
    target, reference = (file.read_bytes() for file in weight_files(*pair))
    start = len(target) - read_index(pair.target).bytes_listed
    changed = sum(a != b for a, b in zip(target[start::2], reference[start::2], strict=True))
    assert changed > 0.6 * (len(target) - start) / 2
    shape = msgspec.structs.replace(TINY, vocabulary=4_000_000, is_tied=False)
    hollow = models.make_pair(tmp_path / "hollow", shape, has_holes=True)
    index = read_index(hollow.target)
    assert index.bytes_listed > 1_000_000_000
    assert sum(file.stat().st_blocks for file in weight_files(*hollow)) * 512 < 1_000_000


def test_dropped_files_are_no_longer_in_memory(tmp_path: Path) -> None:
    pair = models.make_pair(tmp_path / "pair", TINY)
    files = weight_files(*pair)
    for file in files:
        file.read_bytes()
    if resident_share(files) < 1:
        pytest.skip("the file system does not tell what is in memory")
    drop(files)
    if resident_share(files) == 1:
        pytest.skip("a memory file system")
    assert resident_share(files) == 0
