"""How numbers, counts and blocks are written in a sentence."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeVar

NAMED: Final = 3
"""How many names a sentence lists."""

_NUMBER: Final = re.compile(r"\.(\d{1,9})$")
_START: Final = re.compile(r"(?:^|/)checkpoint-0+(?:/[^/]*)?$")
_DTYPES: Final = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F8_E4M3": "float8_e4m3",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}

Value = TypeVar("Value")


def finite(value: float | None) -> float | None:
    """The value, None where it is no number."""
    return value if value is not None and math.isfinite(value) else None


def at(values: Sequence[Value | None], place: int) -> Value | None:
    """The value at a place from 0 on, None where the array ends before."""
    return values[place] if 0 <= place < len(values) else None


def known_step(step: int | None, path: str | None = None) -> int | None:
    """The step of a reference for a sentence; None where nobody knows it.

    Args:
        step: In an artifact 0 stands for an unknown one too.
        path: The reference's folder or file; a name like ``checkpoint-0`` says that 0 is meant.
    """
    return step if step or (path is not None and _START.search(path)) else None


def number(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}"


def percent(share: float) -> str:
    """A share in percent; what is not all is not rounded to all, nor what is something to nothing."""
    rounded = f"{share:.1%}"
    if rounded == "0.0%" and share > 0:
        return "less than 0.1%"
    return "over 99.9%" if rounded == "100.0%" and share < 1 else rounded


def counted(count: int, noun: str) -> str:
    """``1 checkpoint``, ``1,200 checkpoints``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def labels(kinds: Mapping[str, str]) -> dict[str, str]:
    """A short name for each block: ``Block 15`` where that is unambiguous, else its own.

    Args:
        kinds: Layer type by block.
    """
    numbers = {name: _NUMBER.search(name) for name, kind in kinds.items() if kind == "transformer_block"}
    found = {name: f"Block {place[1]}" if (place := numbers.get(name)) else name for name in kinds}
    counts = Counter(found.values())
    return {name: label if counts[label] == 1 else name for name, label in found.items()}


def dtypes(stored: Iterable[str]) -> str:
    """The names of stored dtypes: ``bfloat16``, ``bfloat16 and float32``."""
    return " and ".join(sorted({_DTYPES.get(dtype, dtype) for dtype in stored}))
