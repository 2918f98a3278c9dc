"""A link is put in a file's or folder's place between check and use; nothing outside is read or written."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from archaeologist.artifacts import store
from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.artifacts.store import write_whole
from archaeologist.checkpoints import pins
from archaeologist.checkpoints.fingerprint import fingerprint
from archaeologist.checkpoints.index import read_index
from archaeologist.errors import ArchaeologistError, ArtifactUnwritable, PathOutsideRoot, PinImpossible
from archaeologist.excavation import layer_stats
from archaeologist.files import folder_of, opened
from archaeologist.settings import Settings
from archaeologist.summaries import store as extracts
from archaeologist.web import analysis
from contracts.artifacts import LayerStats
from contracts.messages import Excavation, JobOptions, Side
from tests.fixtures import artifacts
from tests.fixtures.checkpoints import write_checkpoint
from tests.fixtures.jobs import layer_stats_job
from tests.fixtures.tokenizers import save_tokenizer
from tests.fixtures.web import application, asking


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The only folder that is allowed."""
    root = tmp_path.resolve() / "root"
    root.mkdir()
    return root


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """What nobody may reach."""
    folder = tmp_path.resolve() / "outside"
    folder.mkdir()
    return folder


def moved(path: Path, place: Path) -> None:
    """The file or folder, somewhere else; in its place a link to it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(path, place)
    path.symlink_to(place)


def once(swap: Callable[[], None], call: Callable[..., Any]) -> Callable[..., Any]:
    """The call, and the first time a swap just before it."""
    is_done = False

    def swapped(*arguments: Any, **options: Any) -> Any:
        nonlocal is_done
        if not is_done:
            is_done = True
            swap()
        return call(*arguments, **options)

    return swapped


# A job whose checkpoint was looked at when it was made.


def analysed(folder: Path, root: Path, *, wants_activations: bool = False) -> Callable[[], LayerStats]:
    """A job of the checkpoint as it is now, to be run later."""
    mark = fingerprint(read_index(folder, allowed=[root]))
    side = Side(path=str(folder), step=100, read_path=str(folder), fingerprint=mark)
    options = JobOptions(compute_activations=wants_activations, probe_dataset="default", max_probe_tokens=64)
    excavation = Excavation(
        job=layer_stats_job(side, None, options=options),
        artifact_path=str(root / "a.tmp"),
        threads=1,
        allowed=(str(root),),
    )
    return lambda: layer_stats.excavate(excavation, lambda _: None)[0]


@pytest.mark.parametrize("name", ["", "model.safetensors", "config.json"])
def test_a_waiting_job_reads_nothing_behind_a_link_that_was_put_there_since(
    root: Path, outside: Path, name: str
) -> None:
    folder = write_checkpoint(root / "checkpoints" / "checkpoint-100")
    run = analysed(folder, root)
    assert run().weight_stats
    moved(folder / name if name else folder, outside / "moved")
    with pytest.raises(PathOutsideRoot, match=r"outside the allowed roots|under an allowed root"):
        run()


def test_a_waiting_job_reads_nothing_behind_a_link_in_the_place_of_a_folder_above(root: Path, outside: Path) -> None:
    folder = write_checkpoint(root / "checkpoints" / "checkpoint-100")
    run = analysed(folder, root)
    moved(root / "checkpoints", outside / "moved")
    with pytest.raises(PathOutsideRoot, match="outside the allowed roots"):
        run()


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_no_library_opens_what_a_link_out_of_the_roots_leads_to(root: Path, outside: Path, name: str) -> None:
    folder = save_tokenizer(write_checkpoint(root / "checkpoints" / "checkpoint-100"))
    run = analysed(folder, root, wants_activations=True)
    (folder / name).touch()
    moved(folder / name, outside / name)
    artifact = run()
    assert artifact.weight_stats
    assert artifact.not_computed["activations"].startswith(f"path_outside_root: file {name!r}")


def test_no_library_opens_a_pipe_or_what_is_too_large(root: Path) -> None:
    folder = save_tokenizer(write_checkpoint(root / "checkpoints" / "checkpoint-100"))
    run = analysed(folder, root, wants_activations=True)
    with (folder / "added_tokens.json").open("wb") as file:
        file.truncate(128_000_001)
    assert "has 128000001 bytes, at most 128000000 are read" in run().not_computed["activations"]
    (folder / "added_tokens.json").unlink()
    (folder / "added_tokens.json").symlink_to("/dev/zero")
    assert "path_outside_root" in run().not_computed["activations"]


# While it is looked at.


@pytest.mark.parametrize("place", ["checkpoint", "file"])
def test_a_link_put_there_while_the_index_is_read_is_not_followed(
    root: Path, outside: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    folder = write_checkpoint(root / "checkpoint-100")
    write_checkpoint(outside / "checkpoint-100", seed=7)
    path = folder if place == "checkpoint" else folder / "model.safetensors"
    other = outside / path.relative_to(root)

    def swap() -> None:
        path.rename(outside / "kept")
        path.symlink_to(other)

    monkeypatch.setattr("archaeologist.checkpoints.index.opened", once(swap, opened))
    with pytest.raises(ArchaeologistError) as caught:
        read_index(folder, allowed=[root])
    assert caught.value.code in {"checkpoint_unreadable", "path_outside_root"}


@pytest.mark.parametrize("place", ["checkpoint", "file"])
def test_a_link_put_there_while_a_checkpoint_is_pinned_is_not_followed(
    root: Path, outside: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    folder = write_checkpoint(root / "checkpoint-100")
    write_checkpoint(outside / "checkpoint-100", seed=7)
    path = folder if place == "checkpoint" else folder / "config.json"

    def swap() -> None:
        path.rename(outside / "kept")
        path.symlink_to(outside / path.relative_to(root))

    monkeypatch.setattr(pins, "folder_of", once(swap, folder_of))
    with pytest.raises(PinImpossible):
        pins.pin(folder, root / ".pins", "100-abc", allowed=[root])
    assert [path.name for path in (root / ".pins").iterdir()] == []


async def test_an_artifact_that_became_a_link_out_of_the_roots_after_the_check_is_not_served(
    root: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = CampaignFolder.of(root, "dio", "c1")
    path = folder.layer_stats(100)
    secret = replace(artifacts.layer_stats(step=100), job_id="secret")
    write_whole(path, msgspec.json.encode(artifacts.layer_stats(step=100)))
    write_whole(outside / "a.json", msgspec.json.encode(secret))

    def swap() -> None:
        path.unlink()
        path.symlink_to(outside / "a.json")

    monkeypatch.setattr(analysis, "read_checked", once(swap, store.read_checked))
    async with asking(application(Settings(root=str(root)))) as client:
        reply = await client.get("/api/analysis/c1/layer_stats/100?hero_id=dio")
    assert (reply.status_code, reply.json()["code"]) == (403, "path_outside_root")
    assert "secret" not in reply.text


# Where we write.


def test_a_link_in_the_place_of_a_temporary_sketch_is_not_written_through(root: Path, outside: Path) -> None:
    folder = write_checkpoint(root / "checkpoint-100")
    (outside / "file").write_bytes(b"theirs")
    (root / "s.tmp").symlink_to(outside / "file")
    mark = fingerprint(read_index(folder))
    side = Side(path=str(folder), step=100, read_path=str(folder), fingerprint=mark)
    excavation = Excavation(
        job=layer_stats_job(side, None, options=JobOptions(compute_activations=False)),
        artifact_path=str(root / "a.tmp"),
        sketch_path=str(root / "s.tmp"),
        threads=1,
    )
    with pytest.raises(ArtifactUnwritable):
        layer_stats.excavate(excavation, lambda _: None)
    assert (outside / "file").read_bytes() == b"theirs"


def test_a_link_in_the_place_of_a_temporary_store_is_not_written_through(root: Path, outside: Path) -> None:
    (outside / "file").write_bytes(b"theirs")
    (root / ".extracts.tmp").symlink_to(outside / "file")
    with pytest.raises(OSError, match="symbolic links"):
        extracts.save(root, extracts.Store())
    assert (outside / "file").read_bytes() == b"theirs"
    assert not (root / ".extracts.tmp").exists()
