"""The roles of ``deploy/nats-server.conf`` and a key for each.

A role's private half (its nkey seed) lies in a file of its own that only its owner reads; the server knows the public
halves alone, from its environment. Called by ``bus keys``.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal, NamedTuple

import nkeys

from archaeologist.errors import KeysUnusable

ROLES: Final = ("admin", "worker", "web", "trainer", "battle-log")
SERVER_FILE: Final = "nats.env"
"""The public halves, as an environment file for the server."""


class Key(NamedTuple):
    """What became of one role's key."""

    role: str
    path: Path
    public: str
    action: Literal["created", "kept"]


def ensure_keys(folder: Path) -> list[Key]:
    """Makes the keys that are missing, and the server's file of the public halves; an existing key stays.

    Raises:
        KeysUnusable: The folder cannot be written, or a file there holds no key.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        keys = [_ensure_key(folder / f"{role}.nk", role) for role in ROLES]
        _write(folder / SERVER_FILE, server_environment(keys), mode=0o644)
    except OSError as error:
        msg = f"the keys cannot be kept in {str(folder)!r}: {error.strerror or error}; give this user the right to"
        raise KeysUnusable(msg) from error
    return keys


def inbox_prefix(role: str) -> str:
    """Where answers to a role go; no other role may listen there."""
    return f"_INBOX_{_constant(role)}"


def server_environment(keys: Iterable[Key]) -> str:
    """The lines of the server's file."""
    return "".join(f"NATS_{_constant(key.role)}_NKEY={key.public}\n" for key in keys)


def _constant(role: str) -> str:
    return role.upper().replace("-", "_")


def _ensure_key(path: Path, role: str) -> Key:
    if path.exists():
        return Key(role, path, _public(path.read_bytes().strip(), path), "kept")
    seed = bytes(nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER))
    _write(path, f"{seed.decode()}\n", mode=0o600)
    return Key(role, path, _public(seed, path), "created")


def _public(seed: bytes, path: Path) -> str:
    try:
        pair = nkeys.from_seed(bytearray(seed))
        public = bytes(pair.public_key).decode()
        pair.wipe()
    except (nkeys.NkeysError, ValueError) as error:
        msg = f"{str(path)!r} holds no nkey seed; move it away, and a new key is made"
        raise KeysUnusable(msg) from error
    return public


def _write(path: Path, text: str, *, mode: int) -> None:
    """Whole or not at all: a seed that is half there would be kept for ever."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.chmod(mode)
    temporary.replace(path)
