"""Containment: a path from outside counts only once it is resolved and lies under an allowed root."""

import os
from collections.abc import Sequence
from pathlib import Path

from archaeologist.errors import PathOutsideRoot


def resolve_under(path: Path, allowed_roots: Sequence[Path]) -> Path:
    """The path with every symbolic link followed, under one of the roots. It need not exist.

    Args:
        path: Absolute, or relative to the first root.
        allowed_roots: At least one folder.

    Raises:
        PathOutsideRoot: Resolved, it lies under none of the roots.
    """
    roots = [_resolved(root) for root in allowed_roots]
    # Joining leaves an absolute path as it is.
    found = _resolved(roots[0] / path)
    if any(found.is_relative_to(root) for root in roots):
        return found
    names = ", ".join(repr(str(root)) for root in roots)
    led = "" if str(found) == str(path) else f" leads to {str(found)!r} and"
    msg = (
        f"path {str(path)!r}{led} lies outside the allowed roots {names};"
        " move it there or name its folder in the setting 'allowed'"
    )
    raise PathOutsideRoot(msg)


def is_under(path: Path, roots: Sequence[Path]) -> bool:
    """Whether a resolved path lies under one of the roots, once these are resolved."""
    return any(path.is_relative_to(_resolved(root)) for root in roots)


def _resolved(path: Path) -> Path:
    # Not Path.resolve: that raises RuntimeError on a loop of links, where this leaves a path that cannot be opened.
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError) as error:
        msg = f"path {str(path)!r} cannot be resolved ({error}); send a path without NUL characters"
        raise PathOutsideRoot(msg) from error
