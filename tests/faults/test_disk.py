"""The small disk refuses what a full or read-only one refuses, and nothing afterwards."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

TRYING = """
import errno, os, sys
from pathlib import Path
from tests.faults import disk
from archaeologist.artifacts.store import write_whole
from archaeologist.errors import ArtifactUnwritable

def code(name):
    if os.fork() == 0:  # the limit of a stand-in stays with whoever put it on himself
        disk.limit_files(folder)
        try:
            write_whole(folder / "analysis" / "layer_stats" / name, b"x" * 1000)
        except ArtifactUnwritable as error:
            os._exit(error.__cause__.errno)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.wait()[1])

folder = Path(sys.argv[1])
small = disk.Disk(folder, may_mount=sys.argv[2] == "tmpfs" and disk.enter_namespace())
codes = [code("1")]
small.fill(); codes.append(code("2")); small.free(); codes.append(code("3"))
small.forbid(); codes.append(code("4")); small.allow(); codes.append(code("5"))
print(small.kind, *codes, *sorted(file.name for file in folder.glob("analysis/layer_stats/*")))
"""


@pytest.mark.parametrize("kind", ["tmpfs", "limits"])
def test_what_is_refused_is_refused_by_the_system(tmp_path: Path, kind: str) -> None:
    run = [sys.executable, "-c", TRYING, str(tmp_path / "disk"), kind]
    words = subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()
    refusals = {"tmpfs": (errno.ENOSPC, errno.EROFS), "limits": (errno.EFBIG, errno.EEXIST)}
    # Where mounting is not allowed, the first is the second.
    full, read_only = refusals[words[0]]
    assert [int(word) for word in words[1:]] == [0, full, 0, read_only, 0, *(1, 3, 5)]
    assert words[0] in {kind, "limits"}
