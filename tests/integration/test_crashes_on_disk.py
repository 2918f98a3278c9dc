"""A process that dies before any one of its file operations leaves a state that the next one brings to the same end."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.artifacts.storage import archived_path, stored
from archaeologist.artifacts.store import read_layer_stats, temporary_path, write_whole
from archaeologist.checkpoints import pins
from archaeologist.checkpoints.fingerprint import fingerprint
from archaeologist.checkpoints.index import read_index
from contracts.messages import encode
from tests.fixtures.artifacts import layer_stats
from tests.fixtures.checkpoints import write_checkpoint

DIES = 9
MOST_OPERATIONS = 100

# Imports once, then a process for each line of JSON: a call, and after how many file operations it dies. Of these
# the interpreter tells before they are done.
DYING = """
import json, os, sys
from pathlib import Path
from archaeologist.artifacts.archive import Rule, archive
from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.artifacts.store import put_in_place
from archaeologist.checkpoints.pins import pin, unpin

def work(call, left):
    def count(event, arguments):
        nonlocal left
        if event == "open" and arguments[2] & os.O_PATH:
            return  # a folder on the way to a file
        if event == "open" or event.startswith(("os.", "shutil.")):
            left -= 1
            if left < 0:
                os._exit(9)
    sys.addaudithook(count)
    exec(call)

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        work(*json.loads(line))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

Run = Callable[[str, int], int]
"""Runs a call in a process of its own that dies before the operation after so many; its exit code."""


@pytest.fixture
def run() -> Iterator[Run]:
    with subprocess.Popen(
        [sys.executable, "-c", DYING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        asked, answers = parent.stdin, parent.stdout

        def ran(call: str, operations: int) -> int:
            asked.write(json.dumps([call, operations]) + "\n")
            asked.flush()
            return int(answers.readline())

        yield ran


def run_with_every_death(run: Run, prepare: Callable[[int], str], check: Callable[[], None]) -> None:
    """For each operation: prepared anew, run to its death, run again whole, checked."""
    for operations in range(MOST_OPERATIONS):
        call = prepare(operations)
        status = run(call, operations)
        assert status in {0, DIES}
        assert run(call, MOST_OPERATIONS) == 0
        check()
        if status == 0:
            assert operations > 3, "it never died in the middle"
            return
    pytest.fail(f"more than {MOST_OPERATIONS} operations")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_artifact_is_put_in_place_after_a_death_at_any_point(tmp_path: Path, run: Run) -> None:
    folders: list[CampaignFolder] = []

    def prepare(operations: int) -> str:
        folder = CampaignFolder.of(tmp_path / str(operations), "hero", "campaign")
        folders.append(folder)
        final = folder.layer_stats(100)
        temporary = temporary_path(final, "new", 1)
        write_whole(final, encode(layer_stats("old")))
        write_whole(folder.superseded("new"), encode(layer_stats("new", created_at="2026-01-01T00:00:00.000Z")))
        write_whole(temporary, encode(layer_stats("new")))
        aside = folder.superseded("x").parent
        return f"put_in_place(Path({str(temporary)!r}), Path({str(final)!r}), superseded_folder=Path({str(aside)!r}))"

    def check() -> None:
        assert files(folders[-1].analysis) == {
            "layer_stats/ckpt-000100.layer_stats.json": encode(layer_stats("new")),
            "superseded/old.json": encode(layer_stats("old")),
        }

    run_with_every_death(run, prepare, check)


def test_at_every_death_a_reader_finds_the_old_artifact_or_the_new_one(tmp_path: Path, run: Run) -> None:
    for operations in range(MOST_OPERATIONS):
        folder = CampaignFolder.of(tmp_path / str(operations), "hero", "campaign")
        final, temporary = folder.layer_stats(100), temporary_path(folder.layer_stats(100), "new", 1)
        write_whole(final, encode(layer_stats("old")))
        write_whole(temporary, encode(layer_stats("new")))
        aside = folder.superseded("x").parent
        paths = f"Path({str(temporary)!r}), Path({str(final)!r}), superseded_folder=Path({str(aside)!r})"
        status = run(f"put_in_place({paths})", operations)
        owner = read_layer_stats(final).job_key
        assert owner in {"old", "new"}
        if owner == "new":
            assert read_layer_stats(folder.superseded("old")) == layer_stats("old")
        if status == 0:
            return
    pytest.fail(f"more than {MOST_OPERATIONS} operations")


def archiving(root: Path) -> tuple[CampaignFolder, str]:
    """A campaign with two artifacts, and the call that archives them."""
    folder = CampaignFolder.of(root / "hot", "hero", "campaign")
    (root / "warm" / "campaigns").mkdir(parents=True)
    for step in (100, 200):
        write_whole(folder.layer_stats(step), encode(layer_stats(f"key{step}", step=step)))
    rule = f"Rule(warm_root=Path({str(root / 'warm')!r}), before=1e12, allowed=(Path({str(root)!r}),))"
    return folder, f"archive(CampaignFolder.of(Path({str(root / 'hot')!r}), 'hero', 'campaign'), {rule})"


def test_artifacts_are_archived_after_a_death_at_any_point_and_always_read(tmp_path: Path, run: Run) -> None:
    for operations in range(MOST_OPERATIONS):
        folder, call = archiving(tmp_path / str(operations))
        status = run(call, operations)
        place = folder.layer_stats(0).parent
        assert sorted(name for name, _ in stored(place)) == [folder.layer_stats(step).name for step in (100, 200)]
        for step in (100, 200):
            assert read_layer_stats(folder.layer_stats(step)) == layer_stats(f"key{step}", step=step)
        assert run(call, MOST_OPERATIONS) == 0
        links = [archived_path(folder.layer_stats(step)) for step in (100, 200)]
        assert sorted(place.iterdir()) == links
        assert sorted(path.read_bytes() for path in links) == sorted(
            path.read_bytes() for path in (tmp_path / str(operations) / "warm").rglob("*.gz")
        )
        assert list((tmp_path / str(operations)).rglob("*.tmp")) == []
        if status == 0:
            assert operations > 20
            return
    pytest.fail(f"more than {MOST_OPERATIONS} operations")


def test_an_archived_artifact_is_superseded_after_a_death_at_any_point(tmp_path: Path, run: Run) -> None:
    folders: list[CampaignFolder] = []

    def prepare(operations: int) -> str:
        folder, call = archiving(tmp_path / str(operations))
        folders.append(folder)
        assert run(call, MOST_OPERATIONS) == 0
        final = folder.layer_stats(100)
        temporary = temporary_path(final, "new", 1)
        write_whole(temporary, encode(layer_stats("new")))
        aside = folder.superseded("x").parent
        return f"put_in_place(Path({str(temporary)!r}), Path({str(final)!r}), superseded_folder=Path({str(aside)!r}))"

    def check() -> None:
        folder = folders[-1]
        assert read_layer_stats(folder.layer_stats(100)) == layer_stats("new")
        assert read_layer_stats(folder.superseded("key100")) == layer_stats("key100")
        names = [name for place in ("layer_stats", "superseded") for name, _ in stored(folder.analysis / place)]
        assert sorted(names) == ["ckpt-000100.layer_stats.json", "ckpt-000200.layer_stats.json", "key100.json"]
        assert not archived_path(folder.layer_stats(100)).is_symlink()

    run_with_every_death(run, prepare, check)


def test_a_pin_is_whole_or_not_there_after_a_death_at_any_point(tmp_path: Path, run: Run) -> None:
    source = write_checkpoint(tmp_path / "checkpoint-100", shards=2, step=100)
    content = fingerprint(read_index(source))
    name = pins.pin_name(100, content)
    held: list[Path] = []

    def prepare(operations: int) -> str:
        folder = tmp_path / f"pins-{operations}"
        held.append(folder)
        return f"pin(Path({str(source)!r}), Path({str(folder)!r}), {name!r})"

    def check() -> None:
        assert pins.listed(held[-1]) == (name,)
        assert fingerprint(read_index(held[-1] / name)) == content
        pins.release(held[-1], keep={name}, older_than_seconds=0)
        assert [entry.name for entry in held[-1].iterdir()] == [name]

    run_with_every_death(run, prepare, check)


def test_a_pin_that_is_listed_is_whole_even_when_its_removal_died(tmp_path: Path, run: Run) -> None:
    source = write_checkpoint(tmp_path / "checkpoint-100", shards=2)
    content = fingerprint(read_index(source))
    for operations in range(MOST_OPERATIONS):
        folder = tmp_path / f"pins-{operations}"
        pins.pin(source, folder, "100-a")
        status = run(f"unpin(Path({str(folder)!r}), '100-a')", operations)
        if pins.listed(folder):
            assert fingerprint(read_index(folder / "100-a")) == content
        if status == 0:
            assert pins.listed(folder) == ()
            return
    pytest.fail(f"more than {MOST_OPERATIONS} operations")
