"""Malformed inputs from valid ones: JSON and pickles with something wrong in one place, and damaged bytes. Pure.

Everything comes from one random generator, so that a seed and a number give the same input again.
"""

import json
import pickle
import pickletools
import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final

from tests.fixtures.hostile import MARKUP

MOST_BYTES: Final = 300_000
"""Larger inputs are refused by their size, which their own tests show."""

VALUES: Final[tuple[Any, ...]] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**53 + 1,
    2**63,
    2**64,
    -(2**63) - 1,
    10**100,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    "",
    " ",
    "\x00",
    "a\x00b",
    "\n",
    "\r\nNats-Msg-Id: x",
    "\x1b[31m",
    "\u202e",
    "\ud800",
    "😀",
    "\u0661",
    "..",
    "../../../etc/passwd",
    "/etc/passwd",
    "/dev/zero",
    "x" * 5000,
    "a/" * 2000,
    "%s%n{0}",
    MARKUP,
    [],
    {},
    [[]],
    [None] * 100,
    {"": None},
    {"a": {"a": {"a": {}}}},
)
"""What one would not expect where one expects something else."""

Mutation = Callable[[random.Random, bytes], bytes]


def mutated(chance: random.Random, seed: bytes) -> bytes:
    """A malformed input made from a valid one."""
    kind = chance.random()
    if kind < 0.05:
        return chance.randbytes(chance.choice((0, 1, 7, 8, 9, 64, 1000)))
    content = restructured(chance, seed) if kind < 0.7 else seed
    if kind >= 0.6 or content == seed:
        for _ in range(chance.randint(1, 4)):
            content = chance.choice(BYTES)(chance, content)
    return content[:MOST_BYTES]


def restructured(chance: random.Random, seed: bytes) -> bytes:
    """JSON or a pickle with up to three things wrong; bytes that are neither stay as they are."""
    if seed.startswith(pickle.PROTO):
        return rewritten(chance, seed)
    try:
        value = json.loads(seed)
    except ValueError:
        return seed
    for _ in range(chance.randint(1, 3)):
        value = changed(chance, value)
    text = json.dumps(value, ensure_ascii=chance.random() < 0.5)
    return text.encode("utf-8", "surrogatepass")


def changed(chance: random.Random, value: Any) -> Any:
    """The value with one thing in it changed, at any depth."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        return _changed_members(chance, dict(value))
    if isinstance(value, list) and value and chance.random() < 0.8:
        place = chance.randrange(len(value))
        kind = chance.random()
        if kind < 0.6:
            return [*value[:place], changed(chance, value[place]), *value[place + 1 :]]
        return value[:place] + value[place + 1 :] if kind < 0.8 else value * chance.choice((2, 50))
    return _other(chance, value)


def _changed_members(chance: random.Random, members: dict[str, Any]) -> dict[str, Any]:
    name = chance.choice(list(members))
    kind = chance.random()
    if kind < 0.7:
        return {**members, name: changed(chance, members[name])}
    if kind < 0.85:
        del members[name]
        return members
    other = chance.choice([*members, str(chance.choice(VALUES))[:200], name + "\u0000"])
    return {**members, other: members[name]}


def _other(chance: random.Random, value: Any) -> Any:
    kind = chance.random()
    if kind < 0.7:
        return chance.choice(VALUES)
    if kind < 0.8:
        return [value]
    if kind < 0.9:
        return {"a": value}
    if isinstance(value, int | float) and not isinstance(value, bool):
        return chance.choice((-value, value + 1, value * 2**40, str(value), float(min(value, 2**53))))
    nested: Any = value
    for _ in range(chance.choice((15, 16, 17, 300))):
        nested = [nested]
    return nested


# Pickles.


def rewritten(chance: random.Random, seed: bytes) -> bytes:
    """A pickle with up to three operations left out, doubled, moved, or others put among them."""
    starts = [place for _, _, place in pickletools.genops(seed) if place is not None]
    operations = [seed[start:end] for start, end in pairwise([*starts, len(seed)])]
    for _ in range(chance.randint(1, 3)):
        place = chance.randrange(1, len(operations))
        kind = chance.random()
        if kind < 0.2 and len(operations) > 2:
            del operations[place]
        elif kind < 0.4:
            operations.insert(chance.randrange(1, len(operations)), operations[place])
        elif kind < 0.6:
            operations[place : place + 1] = [_flip(chance, operations[place])]
        else:
            is_instead = chance.random() < 0.5
            operations[place : place + is_instead] = [chance.choice(OPERATIONS)]
    return b"".join(operations)


OPERATIONS: Final[tuple[bytes, ...]] = (
    *(bytes([code]) for code in b"N()}]t.0123abdeloqsuRQ\x81\x85\x86\x87\x88\x89\x8f\x90\x93\x94"),
    *(pickle.dumps(value, 2)[2:-1] for value in VALUES if not (isinstance(value, str) and "\ud800" in value)),
    *(pickle.dumps(value, 2)[2:-1] for value in ((1 << 62,) * 2, (0,), (-1,), (1,) * 65, "../0", "0", 3, 4)),
    *(b"h" + bytes([number]) for number in (0, 1, 5, 255)),
    *(f"c{name}\n".encode() for name in ("posix\nsystem", "builtins\neval", "torch\nFloatStorage", "torch\nfloat32")),
    *(
        f"c{name}\n".encode()
        for name in ("collections\nOrderedDict", "torch._utils\n_rebuild_tensor_v2", "torch\nSize")
    ),
    b"\x95" + bytes(8),
    b"\x8a\xff" + b"\xff" * 255,
    b"X\xff\xff\xff\xffa",
)
"""Operations with their arguments: those of weights, and those that run something."""


# Damaged bytes.


def _flip(chance: random.Random, content: bytes) -> bytes:
    if not content:
        return content
    place = chance.randrange(len(content))
    return content[:place] + bytes([content[place] ^ (1 << chance.randrange(8))]) + content[place + 1 :]


def _insert(chance: random.Random, content: bytes) -> bytes:
    place = chance.randint(0, len(content))
    more = chance.choice(
        (b"\x00", b"\xff", b'"', b"{", b"}", b"[" * 50, b",", b"\n", b"9" * 400, b"\\u", b"\xed\xa0\x80")
    )
    return content[:place] + more + content[place:]


def _delete(chance: random.Random, content: bytes) -> bytes:
    start = chance.randint(0, len(content))
    return content[:start] + content[start + chance.choice((1, 2, 8, 100)) :]


def _cut(chance: random.Random, content: bytes) -> bytes:
    return content[: chance.randint(0, len(content))]


def _repeat(chance: random.Random, content: bytes) -> bytes:
    start = chance.randint(0, len(content))
    part = content[start : start + chance.choice((1, 10, 100))]
    return content[:start] + part * chance.choice((2, 3, 100)) + content[start:]


def _swap(chance: random.Random, content: bytes) -> bytes:
    middle = chance.randint(0, len(content))
    return content[middle:] + content[:middle]


def _overwrite(chance: random.Random, content: bytes) -> bytes:
    place = chance.randint(0, len(content))
    number = chance.choice((0, 1, 2**31, 2**63, 2**64 - 1, len(content)))
    return content[:place] + number.to_bytes(8, "little") + content[place + 8 :]


BYTES: Final[tuple[Mutation, ...]] = (_flip, _insert, _delete, _cut, _repeat, _swap, _overwrite)
