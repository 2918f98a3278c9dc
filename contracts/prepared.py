"""Structs that are ready before threads use them.

msgspec builds what it knows of a type when something is first decoded or converted to it, and two threads that do so at
once crash the process (0.22). So it is built while modules are imported, by one thread: every module of ours that
decodes ends with ``prepare(__name__)``, and so does every module of contracts. It takes some 20 µs a Struct.
"""

import sys

import msgspec
from msgspec import Struct


def prepare(module: str) -> None:
    """Builds what msgspec knows of every Struct that a module defines, and of those within them.

    Args:
        module: Its name; called at its end, when all of its names are there.
    """
    for kind in list(vars(sys.modules[module]).values()):
        if isinstance(kind, type) and issubclass(kind, Struct) and kind.__module__ == module:
            msgspec.json.Decoder(kind)
