"""Containment of paths from outside."""

from pathlib import Path

import pytest

from archaeologist.errors import PathOutsideRoot
from archaeologist.paths import resolve_under


def refusal(path: Path, roots: list[Path]) -> str:
    with pytest.raises(PathOutsideRoot) as caught:
        resolve_under(path, roots)
    assert caught.value.code == "path_outside_root"
    return str(caught.value)


def test_a_path_under_a_root_is_resolved_whether_it_exists_or_not(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert resolve_under(tmp_path / "a", [tmp_path]) == tmp_path / "a"
    assert resolve_under(tmp_path / "new" / ".." / "b", [tmp_path]) == tmp_path / "b"


def test_a_root_lies_under_itself(tmp_path: Path) -> None:
    assert resolve_under(tmp_path, [tmp_path]) == tmp_path


def test_any_of_several_roots_will_do(tmp_path: Path) -> None:
    assert resolve_under(tmp_path / "b" / "x", [tmp_path / "a", tmp_path / "b"]) == tmp_path / "b" / "x"


def test_a_relative_path_lies_under_the_first_root(tmp_path: Path) -> None:
    assert resolve_under(Path("x/y"), [tmp_path / "a", tmp_path / "b"]) == tmp_path / "a" / "x" / "y"


@pytest.mark.parametrize("path", ["/etc/passwd", "../outside", "a/../../outside", "/"])
def test_a_path_outside_is_refused_with_the_rule_and_the_remedy(tmp_path: Path, path: str) -> None:
    root = tmp_path / "root"
    message = refusal(Path(path), [root])
    assert message.startswith(f"path '{path}'")
    assert f"lies outside the allowed roots '{root}'; move it there or name its folder in the setting" in message


def test_a_folder_whose_name_begins_like_the_root_is_outside(tmp_path: Path) -> None:
    refusal(tmp_path / "roots" / "x", [tmp_path / "root"])


def test_a_link_out_of_the_root_is_followed_and_refused(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "way-out").symlink_to("/etc")
    message = refusal(tmp_path / "root" / "way-out" / "passwd", [tmp_path / "root"])
    assert "leads to '/etc/passwd' and lies outside" in message


def test_a_link_to_nothing_outside_is_refused(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "x").symlink_to(tmp_path / "not-yet")
    refusal(tmp_path / "root" / "x", [tmp_path / "root"])


def test_the_parent_of_a_links_target_is_meant_by_dot_dot(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "outside" / "deep").mkdir(parents=True)
    (tmp_path / "root" / "link").symlink_to(tmp_path / "outside" / "deep")
    # By text this is root/x; by what the kernel does it is outside/x.
    refusal(tmp_path / "root" / "link" / ".." / "x", [tmp_path / "root"])


def test_a_link_into_the_root_is_inside(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "link").symlink_to("root")
    assert resolve_under(tmp_path / "link" / "x", [tmp_path / "root"]) == tmp_path / "root" / "x"


def test_a_root_may_be_a_link_itself(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "root").symlink_to("real")
    assert resolve_under(tmp_path / "root" / "x", [tmp_path / "root"]) == tmp_path / "real" / "x"


def test_a_loop_of_links_is_refused_or_stays_a_path_that_opens_nothing(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert not resolve_under(tmp_path / "loop" / "x", [tmp_path]).exists()


def test_a_path_with_a_nul_character_is_refused(tmp_path: Path) -> None:
    assert "cannot be resolved" in refusal(Path("a\0b"), [tmp_path])
