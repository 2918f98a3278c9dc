"""``--steps A:B:N``: which existing checkpoints a backfill asks for. Pure, but for the listing of a folder."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from archaeologist.errors import UsageError

_RANGE: Final = re.compile(r"(\d{1,15}):(\d{1,15})(?::(\d{1,15}))?")
_CHECKPOINT: Final = re.compile(r"checkpoint-(\d{1,15})")


class StepRange(NamedTuple):
    """From ``first`` to ``last``, both included, every ``every``-th checkpoint that is there."""

    first: int
    last: int
    every: int


def parse(text: str) -> StepRange:
    """The range that ``A:B`` or ``A:B:N`` says.

    Raises:
        UsageError: It says none.
    """
    match = _RANGE.fullmatch(text)
    if match is None:
        msg = f"--steps {text!r} is no range; write A:B:N: from step A to step B, every Nth checkpoint that is there"
        raise UsageError(msg)
    first, last, every = int(match[1]), int(match[2]), int(match[3] or 1)
    if first > last or every == 0:
        msg = f"--steps {text!r} is empty; A must not be above B and N at least 1"
        raise UsageError(msg)
    return StepRange(first, last, every)


def select(existing: Iterable[int], wanted: StepRange) -> list[int]:
    """The steps of a backfill in ascending order, so that each finds the one before as its reference."""
    inside = sorted({step for step in existing if wanted.first <= step <= wanted.last})
    return inside[:: wanted.every]


def existing_steps(folder: Path) -> list[int]:
    """Steps of the ``checkpoint-{step}`` folders in a folder.

    Raises:
        UsageError: There is no such folder.
    """
    if not folder.is_dir():
        msg = f"--steps: there is no folder {str(folder)!r}; name the root with --root, or ask step by step"
        raise UsageError(msg)
    names = (_CHECKPOINT.fullmatch(entry.name) for entry in folder.iterdir() if entry.is_dir())
    return [int(match[1]) for match in names if match]
