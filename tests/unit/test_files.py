"""Files that others wrote: what is opened is what was checked, whatever they do in between."""

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from archaeologist.files import entries, folder_of, made, opened, read_bounded

RACES = 2000


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder that somebody may put a link in the place of."""
    for name, content in (("root/inside", b"ours"), ("outside", b"secret")):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_bytes(content)
    return tmp_path.resolve() / "root" / "inside"


def swap(place: Path) -> None:
    """A link to the folder outside, in the folder's place."""
    place.rename(place.with_name("kept"))
    place.symlink_to(place.parent.parent / "outside")


@pytest.fixture
def flipping(place: Path) -> Iterator[None]:
    """The folder is a folder and a link to the one outside in turn, as fast as it goes."""
    kept, link, stop = place.with_name("kept"), place.with_name("link"), threading.Event()
    link.symlink_to(place.parent.parent / "outside")

    def flip() -> None:
        while not stop.is_set():
            place.rename(kept)
            link.rename(place)
            place.rename(link)
            kept.rename(place)

    thread = threading.Thread(target=flip)
    thread.start()
    yield
    stop.set()
    thread.join()


def test_a_file_is_read_whole(place: Path) -> None:
    assert read_bounded(place / "file", 4) == b"ours"


def test_a_link_in_a_files_place_is_not_followed(place: Path) -> None:
    (place / "file").unlink()
    (place / "file").symlink_to(place.parent.parent / "outside" / "file")
    with pytest.raises(OSError, match="symbolic links"):
        read_bounded(place / "file", 10)


def test_a_link_put_in_a_folders_place_is_not_followed(place: Path) -> None:
    swap(place)
    with pytest.raises(NotADirectoryError):
        read_bounded(place / "file", 10)


def test_a_link_further_up_is_not_followed(place: Path) -> None:
    swap(place.parent)
    with pytest.raises(NotADirectoryError):
        read_bounded(place / "file", 10)


@pytest.mark.usefixtures("flipping")
def test_a_folder_swapped_while_files_are_opened_never_leads_outside(place: Path) -> None:
    seen: set[bytes | int | None] = set()
    for _ in range(RACES):
        try:
            seen.add(read_bounded(place / "file", 10))
        except OSError as error:
            seen.add(error.errno)
    assert seen <= {b"ours", errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
    assert errno.ENOTDIR in seen


def test_what_is_no_file_is_refused_and_not_waited_for(place: Path) -> None:
    os.mkfifo(place / "pipe")
    for path in (place / "pipe", place, Path("/dev/null"), Path("/dev/zero")):
        with pytest.raises(OSError, match="not a regular file"), opened(path):
            pass


def test_a_file_above_the_limit_is_refused_unread(place: Path) -> None:
    (place / "file").write_bytes(b"whole")
    with pytest.raises(OSError, match="5 bytes, at most 4 are read"):
        read_bounded(place / "file", 4)


def test_no_descriptor_is_left_open(place: Path) -> None:
    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    for path in (place / "file", place / "none", place / "none" / "file", place / "file" / "file"):
        with folder_of(place / "file"):
            pass
        try:
            with opened(path):
                pass
        except OSError:
            continue
    assert len(os.listdir("/proc/self/fd")) == len(before)  # noqa: PTH208


def test_a_listing_is_by_name_and_closed_whatever_its_reader_does(place: Path) -> None:
    for name in ("b", "a"):
        (place / name).touch()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    iterator = iter(entries(place))
    assert next(iterator).name == "a"
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_file_is_made_and_what_it_held_is_gone(place: Path) -> None:
    for content in (b"longer than before", b"short"):
        with made(place / "new") as file:
            file.write(content)
    assert (place / "new").read_bytes() == b"short"


def test_what_a_link_leads_to_is_not_written(place: Path) -> None:
    (place / "new").symlink_to(place.parent.parent / "outside" / "file")
    with pytest.raises(OSError, match="symbolic links"):
        made(place / "new")
    assert (place.parent.parent / "outside" / "file").read_bytes() == b"secret"
