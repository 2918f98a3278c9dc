"""Artifacts that move to a WARM root, on real folders."""

import errno
import gzip
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from archaeologist.artifacts import archive as archiving
from archaeologist.artifacts.archive import DAY_SECONDS, Rule, archive, rule_of, warm_root
from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.artifacts.storage import archived_owner, archived_path, is_stored, signature, stored
from archaeologist.artifacts.store import (
    put_in_place,
    read_artifact,
    read_layer_drift,
    read_layer_stats,
    temporary_path,
    write_whole,
)
from archaeologist.errors import ArchiveUnavailable, ArtifactInvalid, ArtifactMissing, SettingInvalid
from archaeologist.settings import ArchiveSettings, Settings
from contracts.messages import encode
from tests.fixtures.artifacts import layer_drift, layer_stats

OLD = time.time() - 8 * DAY_SECONDS


@pytest.fixture
def folder(tmp_path: Path) -> CampaignFolder:
    """A campaign with an old artifact of each kind, a young one, and a WARM root beside it."""
    folder = CampaignFolder.of(tmp_path / "hot", "hero", "campaign")
    (tmp_path / "warm" / "campaigns").mkdir(parents=True)
    put_old(folder.layer_stats(100), encode(layer_stats("first")))
    put_old(folder.layer_drift(100, 200), encode(layer_drift("drift")))
    put_old(folder.superseded("before"), encode(layer_stats("before")))
    write_whole(folder.layer_stats(200), encode(layer_stats("young", step=200)))
    return folder


def put_old(path: Path, content: bytes) -> None:
    write_whole(path, content)
    os.utime(path, (OLD, OLD))


def settings(folder: CampaignFolder) -> Settings:
    warm = str(folder.root.with_name("warm"))
    return Settings(root=str(folder.root), archive=ArchiveSettings(warm_root=warm))


def rule(folder: CampaignFolder) -> Rule:
    return rule_of(settings(folder))


def below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def test_old_artifacts_move_and_read_as_before(folder: CampaignFolder) -> None:
    contents = [path.read_bytes() for path in (folder.layer_stats(100), folder.layer_drift(100, 200))]
    report = archive(folder, rule(folder))
    assert (report.archived, report.error, report.left_out) == (3, None, ())
    assert report.bytes_before > report.bytes_after > 0
    assert below(folder.analysis) == [
        ".archive.lock",
        "layer_drift/drift-000100-to-000200.json.gz",
        "layer_stats/ckpt-000100.layer_stats.json.gz",
        "layer_stats/ckpt-000200.layer_stats.json",
        "superseded/before.json.gz",
    ]
    warm = rule(folder).warm_root
    names = below(warm / "campaigns" / "hero" / "campaign" / "analysis")
    assert [name.rpartition(".json.gz")[0].rsplit(".", 1)[0] for name in names] == [
        "layer_drift/drift-000100-to-000200.drift",
        "layer_stats/ckpt-000100.layer_stats.first",
        "superseded/before.before",
    ]
    unpacked = [
        gzip.decompress(archived_path(path).read_bytes())
        for path in (folder.layer_stats(100), folder.layer_drift(100, 200))
    ]
    assert unpacked == contents
    assert read_layer_stats(folder.layer_stats(100)) == read_artifact(folder.layer_stats(100)) == layer_stats("first")
    assert read_layer_drift(folder.layer_drift(100, 200)) == layer_drift("drift")
    assert [name for name, _ in stored(folder.layer_drift(0, 0).parent)] == ["drift-000100-to-000200.json"]
    assert archived_owner(folder.layer_stats(100)) == "first"


def test_a_second_run_has_nothing_to_do(folder: CampaignFolder) -> None:
    archive(folder, rule(folder))
    before = below(folder.root.parent)
    assert archive(folder, rule(folder)).archived == 0
    assert below(folder.root.parent) == before


def test_a_trial_changes_nothing(folder: CampaignFolder) -> None:
    before = below(folder.root.parent)
    report = archive(folder, rule_of(settings(folder), is_trial=True))
    assert (report.archived, report.bytes_after) == (3, 0)
    assert below(folder.root.parent) == before


def test_equal_artifacts_give_equal_bytes(folder: CampaignFolder) -> None:
    archive(folder, rule(folder))
    first = archived_path(folder.layer_stats(100)).resolve()
    content = first.read_bytes()
    put_old(folder.layer_stats(100), encode(layer_stats("first")))
    first.unlink()
    assert archive(folder, rule(folder)).archived == 1
    assert archived_path(folder.layer_stats(100)).resolve() == first
    assert first.read_bytes() == content


def test_a_damaged_copy_is_made_anew(folder: CampaignFolder) -> None:
    archive(folder, rule(folder))
    copy = archived_path(folder.layer_stats(100)).resolve()
    copy.write_bytes(b"damaged")
    put_old(folder.layer_stats(100), encode(layer_stats("first")))
    archive(folder, rule(folder))
    assert read_layer_stats(folder.layer_stats(100)) == layer_stats("first")
    assert not folder.layer_stats(100).exists()


def test_another_jobs_artifact_sets_the_archived_one_aside(folder: CampaignFolder) -> None:
    archive(folder, rule(folder))
    replace_with(folder, "second")
    assert read_layer_stats(folder.layer_stats(100)) == layer_stats("second")
    assert read_layer_stats(folder.superseded("first")) == layer_stats("first")
    assert not os.path.lexists(archived_path(folder.layer_stats(100)))
    # Archived in its turn, it has a file of its own.
    os.utime(folder.layer_stats(100), (OLD, OLD))
    assert archive(folder, rule(folder)).archived == 1
    assert read_layer_stats(folder.layer_stats(100)) == layer_stats("second")
    assert read_layer_stats(folder.superseded("first")) == layer_stats("first")


def test_the_same_job_takes_the_place_of_what_it_had_archived(folder: CampaignFolder) -> None:
    archive(folder, rule(folder))
    replace_with(folder, "first", created_at="2026-03-01T00:00:00.000Z")
    assert read_layer_stats(folder.layer_stats(100)).created_at == "2026-03-01T00:00:00.000Z"
    assert not is_stored(folder.superseded("first"))
    # And a copy that was archived when another job had the path goes too.
    replace_with(folder, "before")
    assert not is_stored(folder.superseded("before"))


def test_an_archived_artifact_is_set_aside_although_the_warm_root_is_away(folder: CampaignFolder) -> None:
    archive(folder, rule(folder))
    warm = rule(folder).warm_root
    warm.rename(warm.with_name("away"))
    replace_with(folder, "second")
    assert read_layer_stats(folder.layer_stats(100)) == layer_stats("second")
    warm.with_name("away").rename(warm)
    assert read_layer_stats(folder.superseded("first")) == layer_stats("first")


def replace_with(folder: CampaignFolder, job_key: str, *, created_at: str | None = None) -> None:
    final = folder.layer_stats(100)
    artifact = layer_stats(job_key)
    temporary = temporary_path(final, job_key, 1)
    write_whole(temporary, encode(replace(artifact, created_at=created_at or artifact.created_at)))
    put_in_place(temporary, final, superseded_folder=folder.superseded("x").parent)


def test_an_artifact_that_is_replaced_while_it_is_copied_stays(
    folder: CampaignFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = archiving._copied

    def slowly(content: bytes, copy: Path) -> int:
        if copy.parent.name == "layer_stats":
            replace_with(folder, "second")
        return copied(content, copy)

    monkeypatch.setattr(archiving, "_copied", slowly)
    # The old one moves from where it was set aside.
    assert archive(folder, rule(folder)).archived == 3
    assert folder.layer_stats(100).exists()
    assert read_layer_stats(folder.layer_stats(100)) == layer_stats("second")
    assert read_layer_stats(folder.superseded("first")) == layer_stats("first")


def test_a_full_disk_leaves_everything_where_it_was(folder: CampaignFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    flush = os.fsync

    def full(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().suffix == ".tmp":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    report = archive(folder, rule(folder))
    assert report.archived == 0
    assert report.error is not None
    assert report.error.startswith("artifact_unwritable: ")
    assert "free space on its disk" in report.error
    assert below(rule(folder).warm_root) == []
    assert folder.layer_stats(100).exists()


def test_what_the_disk_gives_back_wrong_is_not_trusted(folder: CampaignFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path, content: bytes) -> str:
        return write_whole(path, content[:-9])

    monkeypatch.setattr(archiving, "write_whole", broken)
    report = archive(folder, rule(folder))
    assert "what was read back is not what was written" in str(report.error)
    assert below(rule(folder).warm_root) == []
    assert folder.layer_stats(100).exists()


def test_two_archivers_do_not_meet(folder: CampaignFolder) -> None:
    inside, go = threading.Event(), threading.Event()

    def held() -> bool:
        inside.set()
        go.wait(20)
        return True

    first = threading.Thread(target=archive, args=(folder, rule(folder)), kwargs={"is_stopped": held})
    first.start()
    assert inside.wait(20)
    second = archive(folder, rule(folder))
    go.set()
    first.join()
    assert second.error == "archive_unavailable: somebody else is archiving this campaign; nothing to do"
    assert second.archived == 0


def test_a_warm_root_that_is_away_is_said_and_the_others_are_read(folder: CampaignFolder) -> None:
    archive(folder, rule(folder))
    warm, known = rule(folder).warm_root, signature(folder.layer_stats(100))
    warm.rename(warm.with_name("away"))
    with pytest.raises(ArchiveUnavailable, match="mount the WARM root again"):
        read_layer_stats(folder.layer_stats(100))
    assert read_layer_stats(folder.layer_stats(200)).job_key == "young"
    assert signature(folder.layer_stats(100)) == known
    assert is_stored(folder.layer_stats(100))


@pytest.mark.parametrize("place", ["nowhere", "empty"])
def test_nothing_is_made_where_the_warm_root_is_not_mounted(folder: CampaignFolder, place: str) -> None:
    (folder.root.parent / "empty").mkdir()
    root = folder.root.parent / place
    with pytest.raises(ArchiveUnavailable, match="has no folder 'campaigns'"):
        warm_root(Settings(root=str(folder.root), archive=ArchiveSettings(warm_root=str(root))))
    assert below(root) == []


def test_a_warm_root_that_is_none_or_hot_is_refused(folder: CampaignFolder) -> None:
    for where in (None, str(folder.root), str(folder.path)):
        with pytest.raises(SettingInvalid):
            warm_root(Settings(root=str(folder.root), archive=ArchiveSettings(warm_root=where)))


def damaged(content: bytes) -> bytes:
    return content[:-20] + b"\0" * 12 + content[-8:]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (damaged, "damaged"),
        (lambda content: content[:-5], "cut off"),
        (lambda content: content + b"more", "something follows it"),
        (lambda _: b"", "cut off"),
        (lambda _: gzip.compress(b"{}"), "is not one"),
    ],
    ids=["damaged", "cut off", "too long", "empty", "no artifact"],
)
def test_a_damaged_copy_is_invalid(folder: CampaignFolder, spoil: Callable[[bytes], bytes], says: str) -> None:
    archive(folder, rule(folder))
    copy = archived_path(folder.layer_stats(100)).resolve()
    copy.write_bytes(spoil(copy.read_bytes()))
    with pytest.raises(ArtifactInvalid, match=says):
        read_layer_stats(folder.layer_stats(100))


def test_what_unpacks_to_too_much_is_refused(folder: CampaignFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    archive(folder, rule(folder))
    monkeypatch.setattr("archaeologist.artifacts.store.MAX_ARTIFACT_BYTES", 10_000)
    archived_path(folder.layer_stats(100)).resolve().write_bytes(gzip.compress(bytes(1_000_000)))
    with pytest.raises(ArtifactInvalid, match="unpacks to more than the 10000 bytes"):
        read_layer_stats(folder.layer_stats(100))


def test_a_file_copied_back_by_hand_is_read(folder: CampaignFolder) -> None:
    archive(folder, rule(folder))
    link = archived_path(folder.layer_stats(100))
    content = link.read_bytes()
    link.unlink()
    link.write_bytes(content)
    assert read_layer_stats(folder.layer_stats(100)) == layer_stats("first")
    replace_with(folder, "second")
    assert read_layer_stats(folder.superseded("first")) == layer_stats("first")


def test_hostile_files_and_names_do_not_move(folder: CampaignFolder, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    put_old(secret, encode(layer_stats("secret")))
    place = folder.layer_stats(0).parent
    (place / "ckpt-000300.layer_stats.json").symlink_to(secret)
    os.mkfifo(place / "ckpt-000400.layer_stats.json")
    put_old(place / "ckpt-000500.layer_stats.json", encode(replace(layer_stats("x"), hero_id="../..")))
    put_old(place / "ckpt-000600.layer_stats.json", encode(layer_stats("../../x")))
    put_old(place / "ckpt-000700.layer_stats.json", b"{")
    put_old(place / "notes.json", b"{}")
    report = archive(folder, rule(folder))
    assert report.archived == 3
    assert [one.file for one in report.left_out] == [
        f"layer_stats/ckpt-000{step}.layer_stats.json" for step in (500, 600, 700)
    ]
    assert {one.code for one in report.left_out} == {"artifact_invalid"}
    assert secret.exists()
    assert len(below(rule(folder).warm_root)) == 3


def test_folders_that_lead_elsewhere_are_refused(folder: CampaignFolder, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    put_old(elsewhere / "ckpt-000100.layer_stats.json", encode(layer_stats("first")))
    (rule(folder).warm_root / "campaigns" / "hero").symlink_to(tmp_path / "elsewhere")
    assert str(archive(folder, rule(folder)).error).startswith("path_outside_root: ")
    linked = CampaignFolder.of(folder.root, "hero", "linked")
    linked.analysis.mkdir(parents=True)
    (linked.analysis / "layer_stats").symlink_to(elsewhere)
    assert str(archive(linked, rule(folder)).error).startswith("path_outside_root: ")
    assert (elsewhere / "ckpt-000100.layer_stats.json").exists()


def test_an_artifact_that_is_nowhere_is_missing(folder: CampaignFolder) -> None:
    with pytest.raises(ArtifactMissing):
        read_layer_stats(folder.layer_stats(900))
    assert not is_stored(folder.layer_stats(900))
    assert signature(folder.layer_stats(900)) is None
