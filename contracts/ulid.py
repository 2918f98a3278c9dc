"""ULIDs: 26 characters that sort by time, unique without asking anybody (github.com/ulid/spec)."""

import hashlib
import os
import time
from typing import Final

_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_RANDOM_BYTES: Final = 10


def new_ulid() -> str:
    """A ULID of now."""
    return ulid_at(time.time_ns() // 1_000_000, os.urandom(_RANDOM_BYTES))


def ulid_at(milliseconds: int, random_bytes: bytes) -> str:
    """The ULID of a Unix time in milliseconds and ten bytes."""
    number = (milliseconds << 80) | int.from_bytes(random_bytes[:_RANDOM_BYTES], "big")
    return "".join(_ALPHABET[(number >> shift) & 31] for shift in range(125, -1, -5))


def ulid_from(milliseconds: int, source: str) -> str:
    """The ULID that belongs to a time and a text: the same for the same two."""
    return ulid_at(milliseconds, hashlib.sha256(source.encode()).digest())
