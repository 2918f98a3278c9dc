"""Every Struct that is decoded is known before a thread decodes it: msgspec 0.22 crashes where two do at once, first.

Looked at in a process of its own, in which nothing was decoded yet.
"""

import json
import subprocess
import sys
from typing import Final

import pytest

LOOKING: Final = '''
import ast, importlib, importlib.util, json, pkgutil, sys
from pathlib import Path
import msgspec
from msgspec import Struct
import archaeologist, contracts

def is_ready(kind):
    """Whether msgspec needs no Python code any more to learn what a type is."""
    learned = []
    def noted(frame, event, _):
        if event == "call" and "msgspec" in frame.f_code.co_filename:
            learned.append(frame.f_code.co_name)
    sys.setprofile(noted)
    try:
        msgspec.json.Decoder(kind)
    finally:
        sys.setprofile(None)
    return not learned

def sources():
    """Every module's name and tree; none is imported for it."""
    for package in (archaeologist, contracts):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            origin = importlib.util.find_spec(found.name).origin
            yield found.name, ast.parse(Path(origin).read_text(encoding="utf-8"))

def decoded(tree):
    """The expressions of the types that a module decodes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "msgspec.convert":
            yield node.args[1]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"msgspec.json.decode", "msgspec.msgpack.decode"}:
            yield from (word.value for word in node.keywords if word.arg == "type")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Decoder"):
            yield node.args[0]

unready, unknown, seen = [], [], 0
for name, tree in sources():
    expressions = {ast.unparse(expression) for expression in decoded(tree)}
    if not expressions and not name.startswith("contracts."):
        continue  # nothing to look at, and some take a second to import
    names = dict(vars(importlib.import_module(name)))
    for node in ast.walk(tree):  # imports within functions
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("archaeologist", "contracts")):
            own = importlib.import_module(node.module)
            names |= {one.name: getattr(own, one.name) for one in node.names if hasattr(own, one.name)}
    for expression in expressions:
        try:
            kind = eval(expression, dict(names))
        except (NameError, KeyError):
            unknown.append(f"{name}: {expression}")
            continue
        seen += 1
        if not is_ready(kind):
            unready.append(f"{name}: {expression}")
    for kind in names.values():
        if name.startswith("contracts.") and isinstance(kind, type) and issubclass(kind, Struct) and kind is not Struct:
            if not is_ready(kind):
                unready.append(f"{kind.__module__}.{kind.__name__}")

class Fresh(Struct):
    a: int

print(json.dumps({"unready": unready, "unknown": sorted(unknown), "seen": seen, "fresh": is_ready(Fresh)}))
'''

GIVEN: Final = {
    "archaeologist.artifacts.store: kind",
    "archaeologist.bus.records: self._kind",
    "archaeologist.daemon.decoding: _TYPES[subject]",
    "archaeologist.report.campaign: kind",
    "archaeologist.web.library: kind",
    "contracts.prepared: kind",
}
"""Where a caller says what is decoded: types of contracts, all of which are looked at."""


@pytest.fixture(scope="module")
def found() -> dict[str, object]:
    done = subprocess.run([sys.executable, "-c", LOOKING], capture_output=True, text=True, check=True, timeout=100)
    told: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return told


def test_a_struct_that_nobody_prepared_would_be_found(found: dict[str, object]) -> None:
    assert found["fresh"] is False


def test_every_type_that_is_decoded_is_ready_once_its_module_is_imported(found: dict[str, object]) -> None:
    assert found["unready"] == [], "end the module that defines it with prepare(__name__)"
    assert isinstance(found["seen"], int)
    assert found["seen"] > 25


def test_types_that_a_caller_gives_are_those_of_contracts(found: dict[str, object]) -> None:
    assert found["unknown"] == sorted(GIVEN)
