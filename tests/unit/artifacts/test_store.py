"""Artifacts: written whole, put in place once, read with their types checked."""

import hashlib
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from archaeologist.artifacts import store
from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.artifacts.store import (
    MAX_ARTIFACT_BYTES,
    has_content,
    put_in_place,
    read_artifact,
    read_layer_drift,
    read_layer_stats,
    remove_temporaries,
    temporaries,
    temporary_path,
    write_whole,
)
from archaeologist.errors import ArchaeologistError, ArtifactInvalid, ArtifactMissing, ArtifactUnwritable
from contracts.artifacts import LayerStats
from contracts.messages import encode
from tests.fixtures.artifacts import layer_drift, layer_stats


@pytest.fixture
def folder(tmp_path: Path) -> CampaignFolder:
    return CampaignFolder.of(tmp_path, "hero", "campaign")


def place(folder: CampaignFolder, artifact: LayerStats, *, claim: int = 1, final: Path | None = None) -> Path:
    """Writes and puts in place as a job does."""
    final = final or folder.layer_stats(artifact.checkpoint_step)
    temporary = temporary_path(final, artifact.job_key, claim)
    write_whole(temporary, encode(artifact))
    put_in_place(temporary, final, superseded_folder=folder.superseded("x").parent)
    return final


def files(folder: CampaignFolder) -> dict[str, bytes]:
    found = (path for path in folder.path.rglob("*") if path.is_file())
    return {str(path.relative_to(folder.analysis)): path.read_bytes() for path in found}


@contextmanager
def no_file_larger_than(size_bytes: int) -> Iterator[None]:
    """The disk is as good as full: the kernel refuses to write beyond a size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# Writing.


def test_what_is_written_is_whole_and_its_hash_is_told(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "x"
    assert write_whole(path, b"content") == hashlib.sha256(b"content").hexdigest()
    assert path.read_bytes() == b"content"


def test_writing_again_replaces_a_longer_content(tmp_path: Path) -> None:
    write_whole(tmp_path / "x", b"long content")
    write_whole(tmp_path / "x", b"short")
    assert (tmp_path / "x").read_bytes() == b"short"


def test_a_disk_that_takes_no_more_is_unwritable_and_leaves_nothing(tmp_path: Path) -> None:
    with no_file_larger_than(1000), pytest.raises(ArtifactUnwritable) as caught:
        write_whole(tmp_path / "x", bytes(2000))
    assert caught.value.code == "artifact_unwritable"
    assert str(caught.value) == (
        f"artifact '{tmp_path}/x' cannot be written: File too large; check its folder and its disk"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_unwritable(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(ArtifactUnwritable, match="cannot be written"):
        write_whole(tmp_path / "x" / "y", b"")
    assert (tmp_path / "x").exists()


def test_a_folder_that_may_not_be_made_is_unwritable() -> None:
    # Nobody makes folders in /proc, root included.
    with pytest.raises(ArtifactUnwritable, match="cannot be written"):
        write_whole(Path("/proc/archaeologist/x"), b"")


def test_a_link_in_the_temporary_files_place_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"kept")
    (tmp_path / "x").symlink_to("victim")
    with pytest.raises(ArtifactUnwritable):
        write_whole(tmp_path / "x", b"content")
    assert (tmp_path / "victim").read_bytes() == b"kept"


def test_a_temporary_file_lies_beside_the_final_one_and_names_job_and_claim(folder: CampaignFolder) -> None:
    final = folder.layer_stats(5)
    assert temporary_path(final, "k3y", 2) == final.parent / ".k3y.2.tmp"


def test_only_the_temporary_files_of_one_job_are_listed_and_removed(tmp_path: Path) -> None:
    names = [".a.1.tmp", ".a.2.tmp", ".ab.1.tmp", "a.1.tmp", ".a.json", ".[ab].1.tmp"]
    for name in names:
        (tmp_path / name).write_text("")
    assert [(file.job_key, file.claim) for file in temporaries(tmp_path)] == [("a", 1), ("a", 2), ("ab", 1)]
    remove_temporaries(tmp_path, "a", up_to_claim=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".[ab].1.tmp", ".a.json", ".ab.1.tmp", "a.1.tmp"]


def test_a_later_claims_temporary_file_stays(tmp_path: Path) -> None:
    for claim in (1, 2, 10):
        (tmp_path / f".a.{claim}.tmp").write_text("")
    remove_temporaries(tmp_path, "a", up_to_claim=2)
    assert [file.claim for file in temporaries(tmp_path)] == [10]


def test_an_artifact_is_known_by_its_digest(tmp_path: Path) -> None:
    digest = write_whole(tmp_path / "x", b"content")
    assert has_content(tmp_path / "x", digest)
    assert has_content(tmp_path / "x", None)
    assert not has_content(tmp_path / "x", digest[::-1])
    assert not has_content(tmp_path / "y", None)


def test_a_folder_that_is_not_there_has_no_temporary_files(tmp_path: Path) -> None:
    assert list(temporaries(tmp_path / "gone")) == []
    remove_temporaries(tmp_path / "gone", "a", up_to_claim=1)


# Putting in place.


def test_the_artifact_gets_its_name_and_the_temporary_file_is_gone(folder: CampaignFolder) -> None:
    place(folder, layer_stats("a"))
    assert files(folder) == {"layer_stats/ckpt-000100.layer_stats.json": encode(layer_stats("a"))}


def test_an_artifact_of_another_job_is_kept_under_its_own_key(folder: CampaignFolder) -> None:
    for key in ("a", "b", "c"):
        place(folder, layer_stats(key))
    assert files(folder) == {
        "layer_stats/ckpt-000100.layer_stats.json": encode(layer_stats("c")),
        "superseded/a.json": encode(layer_stats("a")),
        "superseded/b.json": encode(layer_stats("b")),
    }


def test_a_job_that_runs_again_replaces_its_own_artifact(folder: CampaignFolder) -> None:
    place(folder, layer_stats("a", created_at="2026-01-01T00:00:00.000Z"))
    place(folder, layer_stats("a", created_at="2026-02-02T00:00:00.000Z"), claim=2)
    assert list(files(folder)) == ["layer_stats/ckpt-000100.layer_stats.json"]


def test_a_job_that_gets_its_path_back_has_no_superseded_copy(folder: CampaignFolder) -> None:
    for key in ("a", "b", "a"):
        place(folder, layer_stats(key))
    assert files(folder) == {
        "layer_stats/ckpt-000100.layer_stats.json": encode(layer_stats("a")),
        "superseded/b.json": encode(layer_stats("b")),
    }


def test_putting_in_place_twice_changes_nothing(folder: CampaignFolder) -> None:
    place(folder, layer_stats("a"))
    final = place(folder, layer_stats("b"))
    before = files(folder)
    put_in_place(temporary_path(final, "b", 1), final, superseded_folder=folder.superseded("x").parent)
    assert files(folder) == before


def test_neither_file_there_is_a_missing_artifact(folder: CampaignFolder) -> None:
    final = folder.layer_stats(1)
    final.parent.mkdir(parents=True)
    with pytest.raises(ArtifactMissing, match="request the analysis again with force"):
        put_in_place(temporary_path(final, "a", 1), final, superseded_folder=None)


def test_a_sketch_replaces_the_one_before(folder: CampaignFolder) -> None:
    final = folder.sketch(1)
    for content in (b"old", b"new"):
        write_whole(temporary_path(final, "a", 1), content)
        put_in_place(temporary_path(final, "a", 1), final, superseded_folder=None)
    assert files(folder) == {"sketches/ckpt-000001.sketch.safetensors": b"new"}


@pytest.mark.parametrize("content", [b"{", b"", b'{"version": 9, "job_key": "../../../escape"}', b'{"job_key": 1}'])
def test_what_is_no_artifact_in_the_campaigns_own_folder_is_kept_aside(folder: CampaignFolder, content: bytes) -> None:
    final = folder.layer_stats(100)
    write_whole(final, content)
    place(folder, layer_stats("a"))
    kept = [path for path in folder.superseded("x").parent.iterdir() if path.name.startswith("unreadable-")]
    assert [path.read_bytes() for path in kept] == [content]
    assert len(files(folder)) == 2


def test_an_artifact_of_a_later_version_is_kept_under_its_key(folder: CampaignFolder) -> None:
    later = msgspec.json.encode(msgspec.to_builtins(layer_stats("later")) | {"version": 99})
    write_whole(folder.layer_stats(100), later)
    place(folder, layer_stats("a"))
    assert folder.superseded("later").read_bytes() == later


def test_a_file_elsewhere_that_is_no_artifact_is_never_replaced(folder: CampaignFolder, tmp_path: Path) -> None:
    victim = tmp_path / "model.safetensors"
    victim.write_bytes(b"precious")
    with pytest.raises(ArtifactUnwritable) as caught:
        place(folder, layer_stats("a"), final=victim)
    assert str(caught.value) == (
        f"file '{victim}' is no artifact, only artifacts are replaced; name another output_path"
    )
    assert victim.read_bytes() == b"precious"


def test_an_artifact_elsewhere_is_kept_in_the_campaign(folder: CampaignFolder, tmp_path: Path) -> None:
    final = tmp_path / "out" / "drift.json"
    for key in ("a", "b"):
        place(folder, layer_stats(key), final=final)
    assert read_layer_stats(final).job_key == "b"
    assert read_layer_stats(folder.superseded("a")).job_key == "a"


def test_an_artifact_on_another_file_system_is_copied_aside(folder: CampaignFolder, tmp_path: Path) -> None:
    shared_memory = Path("/dev/shm")  # noqa: S108 - another file system than the temporary folder, on most machines
    if not shared_memory.is_dir() or shared_memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system here")
    output = shared_memory / f"artifacts-{os.getpid()}"
    try:
        for key in ("a", "b"):
            place(folder, layer_stats(key), final=output / "drift.json")
        assert read_layer_stats(output / "drift.json").job_key == "b"
    finally:
        shutil.rmtree(output, ignore_errors=True)
    assert files(folder) == {"superseded/a.json": encode(layer_stats("a"))}


def test_a_final_path_that_is_a_folder_is_unwritable(folder: CampaignFolder) -> None:
    folder.layer_stats(100).mkdir(parents=True)
    with pytest.raises(ArtifactUnwritable):
        place(folder, layer_stats("a"))


# Reading.


def refusal(path: Path, error: type[ArchaeologistError], code: str) -> str:
    messages = set()
    for read in (read_artifact, read_layer_stats):
        with pytest.raises(error) as caught:
            read(path)
        assert caught.value.code == code
        messages.add(str(caught.value))
    message = messages.pop()
    assert f"artifact '{path}'" in message
    assert ";" in message, "the remedy follows a semicolon"
    return message


def test_an_artifact_is_read_as_what_it_is(tmp_path: Path) -> None:
    stats, drift = layer_stats(), layer_drift()
    write_whole(tmp_path / "stats", encode(stats))
    write_whole(tmp_path / "drift", encode(drift))
    assert read_layer_stats(tmp_path / "stats") == read_artifact(tmp_path / "stats") == stats
    assert read_layer_drift(tmp_path / "drift") == read_artifact(tmp_path / "drift") == drift


def test_one_type_is_not_read_as_the_other(tmp_path: Path) -> None:
    write_whole(tmp_path / "stats", encode(layer_stats()))
    write_whole(tmp_path / "drift", encode(layer_drift()))
    with pytest.raises(ArtifactInvalid, match="is not one: "):
        read_layer_drift(tmp_path / "stats")
    with pytest.raises(ArtifactInvalid, match="is not one: "):
        read_layer_stats(tmp_path / "drift")


def test_an_artifact_that_is_not_there_is_missing(tmp_path: Path) -> None:
    assert "request the analysis" in refusal(tmp_path / "x", ArtifactMissing, "artifact_missing")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"{}", b"[" * 100_000, b'{"version": "1"}']
)
def test_what_is_no_artifact_is_invalid(tmp_path: Path, content: bytes) -> None:
    write_whole(tmp_path / "x", content)
    message = refusal(tmp_path / "x", ArtifactInvalid, "artifact_invalid")
    assert "request the analysis again with force" in message


@pytest.mark.parametrize("size", [1, 100, 500])
def test_an_artifact_cut_short_is_invalid(tmp_path: Path, size: int) -> None:
    write_whole(tmp_path / "x", encode(layer_stats())[:-size])
    refusal(tmp_path / "x", ArtifactInvalid, "artifact_invalid")


def test_a_later_version_asks_for_an_upgrade(tmp_path: Path) -> None:
    later = msgspec.to_builtins(layer_stats()) | {"version": 2, "global_weight_stats": "of another type by then"}
    write_whole(tmp_path / "x", msgspec.json.encode(later))
    message = refusal(tmp_path / "x", ArtifactInvalid, "artifact_invalid")
    assert message == f"artifact '{tmp_path}/x' has version 2, versions up to 1 are read; upgrade archaeologist"


def test_fields_added_later_are_ignored(tmp_path: Path) -> None:
    more = msgspec.to_builtins(layer_stats()) | {"added_in_1_1": [1]}
    write_whole(tmp_path / "x", msgspec.json.encode(more))
    assert read_layer_stats(tmp_path / "x") == layer_stats()


def test_an_endless_file_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        file.truncate(MAX_ARTIFACT_BYTES + 1)
    assert f"at most {MAX_ARTIFACT_BYTES} are read" in refusal(tmp_path / "x", ArtifactInvalid, "artifact_invalid")


@pytest.mark.timeout(10)
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x")
    assert "not a regular file" in refusal(tmp_path / "x", ArtifactInvalid, "artifact_invalid")


def test_an_artifact_behind_a_link_is_read(tmp_path: Path) -> None:
    write_whole(tmp_path / "archive", encode(layer_stats()))
    (tmp_path / "x").symlink_to("archive")
    assert read_layer_stats(tmp_path / "x") == layer_stats()


def test_two_jobs_that_end_at_once_on_one_path_both_keep_their_artifacts(
    folder: CampaignFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    final, aside = folder.layer_stats(5), folder.superseded("k").parent
    temporary = {key: temporary_path(final, key, 1) for key in ("one", "other")}
    for key, path in temporary.items():
        write_whole(path, encode(layer_stats(key)))
    owner = store._owner

    def looked_at(path: Path) -> str | None:
        """The other job ends just when the first one sees that it owns the path, if it can."""
        found = owner(path)
        if path == final and found == "one" and not other.is_alive() and temporary["other"].exists():
            other.start()
            other.join(timeout=0.5)
        return found

    other = threading.Thread(target=lambda: put_in_place(temporary["other"], final, superseded_folder=aside))
    monkeypatch.setattr(store, "_owner", looked_at)
    put_in_place(temporary["one"], final, superseded_folder=aside)
    other.join()
    assert read_layer_stats(final).job_key == "other"
    assert read_layer_stats(aside / "one.json").job_key == "one"


READING_AT_ONCE = """
import sys, threading
from pathlib import Path
from archaeologist.artifacts.store import read_layer_stats
sys.setswitchinterval(1e-6)
begin = threading.Barrier(6)
def read():
    begin.wait()
    read_layer_stats(Path(sys.argv[1]))
threads = [threading.Thread(target=read) for _ in range(6)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


def test_threads_that_read_their_first_artifact_at_once_do_not_crash_the_process(tmp_path: Path) -> None:
    write_whole(tmp_path / "x.json", encode(layer_stats("k")))
    for _ in range(4):
        subprocess.run([sys.executable, "-c", READING_AT_ONCE, str(tmp_path / "x.json")], check=True)
