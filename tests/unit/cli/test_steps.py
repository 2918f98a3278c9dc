"""Which checkpoints a backfill asks for."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archaeologist.cli.steps import StepRange, existing_steps, parse, select
from archaeologist.errors import UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [("100:500:2", StepRange(100, 500, 2)), ("0:7", StepRange(0, 7, 1)), ("5:5:1", StepRange(5, 5, 1))],
)
def test_a_range_is_read(text: str, expected: StepRange) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize("text", ["", "100", "a:b:c", "1:2:3:4", "-1:5:1", "1:2:", "5:4:1", "1:2:0", "1:2:1\n"])
def test_what_is_no_range_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(UsageError, match="--steps") as refusal:
        parse(text)
    assert repr(text) in str(refusal.value)


def test_every_second_of_those_that_exist_is_taken_in_ascending_order() -> None:
    assert select([500, 100, 300, 200, 900, 400], StepRange(100, 500, 2)) == [100, 300, 500]


def test_both_ends_of_a_range_are_included() -> None:
    assert select([100, 200, 300], StepRange(100, 300, 1)) == [100, 200, 300]


@given(
    existing=st.lists(st.integers(0, 50)),
    first=st.integers(0, 50),
    width=st.integers(0, 50),
    every=st.integers(1, 10),
)
def test_a_selection_is_ascending_existing_inside_and_starts_with_the_lowest(
    existing: list[int], first: int, width: int, every: int
) -> None:
    chosen = select(existing, StepRange(first, first + width, every))
    inside = {step for step in existing if first <= step <= first + width}
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= inside
    assert len(chosen) == -(-len(inside) // every)
    assert chosen[:1] == sorted(inside)[:1]


def test_only_checkpoint_folders_have_steps(tmp_path: Path) -> None:
    for name in ("checkpoint-20", "checkpoint-3", "checkpoint-x", "runs", "checkpoint-7-old"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-9").write_text("a file")
    assert sorted(existing_steps(tmp_path)) == [3, 20]


def test_a_backfill_without_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder"):
        existing_steps(tmp_path / "nowhere")
