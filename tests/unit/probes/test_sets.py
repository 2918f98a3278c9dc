"""Probe sets: the package's own, the user's, and files that are none."""

import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from archaeologist.errors import PathOutsideRoot, ProbesInvalid, ProbesMissing
from archaeologist.probes.sets import MAX_LINE_BYTES, PACKAGED, Probe, ProbeSet, load

SPECIFIED = (
    "What is 15 + 27?",
    "If x + 5 = 12, what is x?",
    "Calculate 144 / 12.",
    "If all cats are mammals and all mammals breathe air, do cats breathe air?",
    "True or False: If A implies B, and B is false, then A must be false.",
    "What is the opposite of 'happy'?",
    "Complete this sentence: The quick brown fox jumps over the lazy ___.",
    "What rhymes with 'cat'?",
    "Convert 5 to binary.",
    "What is ①①① in decimal?",
    "What are the first letters of: Apple, Banana, Cherry?",
)


def texts(probes: ProbeSet) -> tuple[str, ...]:
    return tuple(probe.text for probe in probes.probes)


def saved(folder: Path, *lines: Any, name: str = "mine.jsonl") -> Path:
    """A file of JSON lines; text and bytes go in as they are."""
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"".join(line + b"\n" for line in raw))
    return folder / name


def refusal(folder: Path, *lines: Any) -> str:
    file = saved(folder, *lines)
    with pytest.raises(ProbesInvalid) as raised:
        load("mine", folder=folder)
    assert raised.value.code == "probes_invalid"
    assert repr(str(file)) in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("first", [b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"], ids=["before a probe", "alone"])
def test_a_byte_order_mark_at_the_beginning_is_no_part_of_the_first_probe(tmp_path: Path, first: bytes) -> None:
    plain, marked = (saved(tmp_path, {"text": "one"}, {"text": "two"}, name=name) for name in ("a.jsonl", "b.jsonl"))
    marked.write_bytes(first + plain.read_bytes())
    assert load("b", folder=tmp_path).sha256 == load("a", folder=tmp_path).sha256
    marked.write_bytes(plain.read_bytes() + first + b'{"text": "three"}\n')
    with pytest.raises(ProbesInvalid, match="line 3"):
        load("b", folder=tmp_path)


# The package's own.


def test_the_default_probes_are_the_specification_s_with_the_skills_that_they_test() -> None:
    probes = load()
    assert texts(probes) == SPECIFIED
    assert [probe.skill for probe in probes.probes] == [None] * 8 + ["BIN", "BIN", "SY"]
    assert (probes.name, probes.source) == ("default", "package:default.jsonl")


@pytest.mark.parametrize("skill", ["BIN", "SY"])
def test_a_skill_s_set_has_enough_different_probes_of_it_and_none_of_the_default_ones(skill: str) -> None:
    probes = load(skill)
    assert len(set(texts(probes))) == len(probes.probes) >= 24
    assert {probe.skill for probe in probes.probes} == {skill}
    assert set(texts(probes)).isdisjoint(SPECIFIED)


def test_the_package_s_sets_come_before_files_of_the_same_name(tmp_path: Path) -> None:
    for name in PACKAGED:
        saved(tmp_path, {"text": "another"}, name=f"{name}.jsonl")
        assert load(name, folder=tmp_path) == load(name)
    assert texts(load("BIN.jsonl", folder=tmp_path)) == ("another",)


def test_at_most_as_many_probes_as_asked_for_are_read(tmp_path: Path) -> None:
    assert texts(load(max_probes=3)) == SPECIFIED[:3]
    saved(tmp_path, {"text": "a"}, {"text": "b"}, b"not read any more")
    assert texts(load("mine", folder=tmp_path, max_probes=2)) == ("a", "b")
    assert load("mine", folder=tmp_path, max_probes=2).is_cut
    assert not load("default").is_cut


# The user's.


@pytest.mark.parametrize("name", ["mine", "mine.jsonl", "./mine", "more/../mine.jsonl"])
def test_a_user_s_set_is_found_by_its_name_with_or_without_the_ending(name: str, tmp_path: Path) -> None:
    file = saved(tmp_path, {"prompt": "1 + 1 ="})
    (tmp_path / "more").mkdir()
    found = load(name, folder=tmp_path)
    assert (found.name, found.source, found.probes) == (name, str(file), (Probe(text="1 + 1 ="),))


def test_a_set_may_lie_deeper_in_the_folder(tmp_path: Path) -> None:
    saved(tmp_path / "skills", {"prompt": "a"}, name="LOGIC.jsonl")
    assert texts(load("skills/LOGIC", folder=tmp_path)) == ("a",)


def test_a_line_s_text_is_its_prompt_else_its_text_else_its_instruction(tmp_path: Path) -> None:
    saved(
        tmp_path,
        {"instruction": "i", "text": "t", "prompt": "p"},
        {"instruction": "i", "text": "t"},
        {"instruction": "i", "output": "o"},
    )
    assert texts(load("mine", folder=tmp_path)) == ("p", "t", "i")


def test_blank_lines_mean_nothing_and_a_skill_may_be_null(tmp_path: Path) -> None:
    saved(tmp_path, {"text": " a ", "skill": None}, b"", b"  \r", {"text": "b", "skill": "LO-1"})
    assert load("mine", folder=tmp_path).probes == (Probe(text=" a "), Probe(text="b", skill="LO-1"))


def test_the_hash_is_of_texts_and_skills_in_order_and_of_nothing_else(tmp_path: Path) -> None:
    def digest(*probes: dict[str, str], name: str = "mine") -> str:
        saved(tmp_path, *probes, name=f"{name}.jsonl")
        return load(name, folder=tmp_path).sha256

    same = digest({"text": "a", "skill": "X"}, {"text": "b"})
    assert digest({"prompt": "a", "skill": "X", "id": "7"}, {"instruction": "b"}, name="other") == same
    others = [
        digest({"text": "b"}, {"text": "a", "skill": "X"}),
        digest({"text": "a"}, {"text": "b", "skill": "X"}),
        digest({"text": "a", "skill": "X"}),
        digest({"text": "aX"}, {"text": "b"}),
    ]
    assert Counter([same, *others]).most_common(1)[0][1] == 1


# What is refused.


def test_a_name_that_nothing_has_is_refused_with_the_names_there_are(tmp_path: Path) -> None:
    with pytest.raises(ProbesMissing, match=r"'LOGIC' is none of the package's \(default, BIN, SY\).*LOGIC\.jsonl"):
        load("LOGIC", folder=tmp_path)
    with pytest.raises(ProbesMissing, match=r"activations\.probes_folder"):
        load("LOGIC")


@pytest.mark.parametrize("name", ["a" * 300, "mine.jsonl/more", "nowhere/mine"])
def test_a_name_that_cannot_be_a_file_s_is_missing(name: str, tmp_path: Path) -> None:
    saved(tmp_path, {"text": "a"})
    with pytest.raises(ProbesMissing):
        load(name, folder=tmp_path)


@pytest.mark.parametrize("name", ["../secret", "../secret.jsonl", "/etc/passwd", "sub/../../secret", "a\0b"])
def test_a_name_that_leads_out_of_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    saved(tmp_path, {"text": "secret"}, name="secret.jsonl")
    (tmp_path / "probes" / "sub").mkdir(parents=True)
    with pytest.raises(PathOutsideRoot, match="leads out of the probes folder"):
        load(name, folder=tmp_path / "probes")


@pytest.mark.parametrize("name", ["link", "link.jsonl", "folder/secret"])
def test_a_link_out_of_the_folder_is_followed_and_refused(name: str, tmp_path: Path) -> None:
    secret = saved(tmp_path, {"text": "secret"}, name="secret.jsonl")
    probes = tmp_path / "probes"
    probes.mkdir()
    (probes / "link.jsonl").symlink_to(secret)
    (probes / "folder").symlink_to(tmp_path)
    with pytest.raises(PathOutsideRoot):
        load(name, folder=probes)


def test_a_link_within_the_folder_is_followed(tmp_path: Path) -> None:
    saved(tmp_path / "probes", {"text": "a"})
    (tmp_path / "probes" / "link.jsonl").symlink_to("mine.jsonl")
    (tmp_path / "alias").symlink_to("probes")
    assert texts(load("link", folder=tmp_path / "alias")) == ("a",)


@pytest.mark.parametrize("lines", [[], [b""], [b"", b"   "]])
def test_a_set_without_a_probe_is_refused(lines: list[bytes], tmp_path: Path) -> None:
    assert "has no probe" in refusal(tmp_path, *lines)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"What is 2 + 2?", "not JSON"),
        (b'{"text": "a"', "not JSON"),
        (b'{"text": "a"} {"text": "b"}', "not JSON"),
        (b'{"text": NaN}', "not JSON"),
        (b'{"text": "\\ud800"}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"text": "caf\xe9"}', "not UTF-8"),
        (["a", "b"], "['a', 'b'], a probe is an object"),
        ("just text", "'just text', a probe is an object"),
        (None, "None, a probe is an object"),
        ({}, "none of the fields prompt, text, instruction"),
        ({"question": "a"}, "none of the fields"),
        ({"text": 7}, "its text is 7"),
        ({"prompt": None, "text": "a"}, "its prompt is None"),
        ({"instruction": ""}, "its instruction is ''"),
        ({"text": " \n\t"}, "its text is ' \\n\\t'"),
        ({"text": ["a"]}, "its text is ['a']"),
        ({"text": "a", "skill": ""}, "its skill is ''"),
        ({"text": "a", "skill": "../x"}, "its skill is '../x'"),
        ({"text": "a", "skill": "a b"}, "its skill is 'a b'"),
        ({"text": "a", "skill": "BIN\n"}, "its skill is 'BIN\\n'"),
        ({"text": "a", "skill": 7}, "its skill is 7"),
        ({"text": "a", "skill": "x" * 129}, "its skill is 'xxx"),
    ],
)
def test_a_line_that_is_no_probe_is_named_with_what_is_wrong(line: Any, said: str, tmp_path: Path) -> None:
    message = refusal(tmp_path, {"text": "fine"}, b"", line)
    assert "line 3 of" in message
    assert said in message
    assert len(message) < 600


def test_a_line_of_ten_megabytes_is_refused_after_its_first(tmp_path: Path) -> None:
    message = refusal(tmp_path, {"text": "fine"}, {"text": "a" * 10_000_000})
    assert re.search(rf"line 2 of .*longer than {MAX_LINE_BYTES} bytes", message)


def test_a_line_of_the_greatest_length_is_read(tmp_path: Path) -> None:
    saved(tmp_path, {"text": "a" * (MAX_LINE_BYTES - len('{"text": ""}\n'))})
    assert len(texts(load("mine", folder=tmp_path))[0]) > MAX_LINE_BYTES - 20


def test_what_is_no_regular_file_is_refused_and_does_not_block(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        with pytest.raises(ProbesInvalid, match="not a regular file"):
            load(name, folder=tmp_path)
