"""Probe sets: which texts are run through a checkpoint, and which skill each one tests.

A set is a file of JSON lines, one probe a line: its text as ``prompt``, ``text`` or ``instruction``, and optionally its
``skill``. Called by the excavation. What becomes of the texts is ``excavation.forward``'s business.
"""

import codecs
import errno
import hashlib
import os
import re
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from archaeologist.errors import ArchaeologistError, PathOutsideRoot, ProbesInvalid, ProbesMissing
from archaeologist.files import opened
from archaeologist.paths import resolve_under
from contracts.messages import DEFAULT_PROBES, NAME_PATTERN

PACKAGED: Final = ("default", "BIN", "SY")
"""The sets that come with the package: a mixed one, numbers to binary and back, first letters of words."""
TEXT_FIELDS: Final = ("prompt", "text", "instruction")
"""The first of them that a line has is its text."""
MAX_LINE_BYTES: Final = 1 << 20
MAX_PROBES: Final = 256

_DATA: Final = Path(__file__).resolve().parent / "data"
_SUFFIX: Final = ".jsonl"
_EXAMPLE: Final = '{"prompt": "What is 2 + 2?"}'

_shown: Final = reprlib.repr
"""A value from a file for a message: without control characters, short whatever it holds."""


class Probe(Struct, frozen=True, kw_only=True):
    """One text."""

    text: str
    skill: str | None = None


class ProbeSet(Struct, frozen=True, kw_only=True):
    """Texts in a fixed order."""

    name: str
    source: str
    """``package:default.jsonl``, or the file's path."""
    probes: tuple[Probe, ...]
    sha256: str
    """Of texts and skills, in order."""
    is_cut: bool = False
    """Whether the file has more than are read."""


class _Broken(Exception):
    """What is wrong with a line."""


def load(name: str = DEFAULT_PROBES, *, folder: Path | None = None, max_probes: int = MAX_PROBES) -> ProbeSet:
    """The probe set of a name.

    Args:
        name: One of ``PACKAGED``, which come first; else a file in the folder, with or without ``.jsonl``.
        folder: The user's own sets. Nothing outside it is read, wherever a link in it leads.
        max_probes: What the file has beyond them is neither read nor checked.

    Raises:
        ProbesMissing: No set has this name.
        PathOutsideRoot: The name leads out of the folder.
        ProbesInvalid: The file cannot be read or is not what it must be.
    """
    if name in PACKAGED:
        return _read(name, _DATA / f"{name}{_SUFFIX}", source=f"package:{name}{_SUFFIX}", max_probes=max_probes)
    if folder is None:
        msg = (
            f"probe set {name!r} is none of the package's ({', '.join(PACKAGED)}) and there is no folder of your own;"
            " use one of these or name the folder in the setting 'activations.probes_folder'"
        )
        raise ProbesMissing(msg)
    for file in (name, f"{name}{_SUFFIX}"):
        path = _inside(folder, file)
        try:
            return _read(name, path, source=str(path), max_probes=max_probes)
        except FileNotFoundError:
            continue
    msg = (
        f"probe set {name!r} is none of the package's ({', '.join(PACKAGED)}) and no file in the probes folder"
        f" {str(folder)!r}; use one of these or put {name + _SUFFIX!r} there"
    )
    raise ProbesMissing(msg)


def digest(name: str, *, folder: Path | None) -> str | None:
    """The hash of a set as it is now, for a job's key; None where it cannot be used, which the job then says."""
    try:
        return load(name, folder=folder).sha256
    except ArchaeologistError:
        return None


def _inside(folder: Path, file: str) -> Path:
    try:
        return resolve_under(Path(file), [folder])
    except PathOutsideRoot as error:
        msg = (
            f"probe set {file!r} leads out of the probes folder {str(folder)!r}; copy the file into the folder and"
            " give its name"
        )
        raise PathOutsideRoot(msg) from error


def _read(name: str, path: Path, *, source: str, max_probes: int) -> ProbeSet:
    """The set in a file.

    Raises:
        FileNotFoundError: It is not there.
        ProbesInvalid: It cannot be read or is not what it must be.
    """
    probes: list[Probe] = []
    is_cut = False
    try:
        with opened(path) as descriptor:
            for number, line in _lines(descriptor):
                if is_cut := len(probes) == max_probes:
                    break
                try:
                    probes.append(_probe(line))
                except _Broken as broken:
                    msg = f"probe set {name!r}, line {number} of {source!r}: {broken}; correct the line or take it out"
                    raise ProbesInvalid(msg) from broken
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG}:
            raise FileNotFoundError(*error.args) from error
        msg = f"probe set {name!r}: {source!r} cannot be read ({error.strerror}); name a regular, readable file"
        raise ProbesInvalid(msg) from error
    if not probes:
        msg = f"probe set {name!r}: {source!r} has no probe, a set has one or more; add a line like {_EXAMPLE}"
        raise ProbesInvalid(msg)
    return ProbeSet(name=name, source=source, probes=tuple(probes), sha256=_digest(probes), is_cut=is_cut)


def _lines(descriptor: int) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers from 1; of one that is too long as much as shows that."""
    with os.fdopen(descriptor, "rb", closefd=False) as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if number == 1:
                # Some editors begin UTF-8 files with it.
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                yield number, line


def _probe(line: bytes) -> Probe:
    if len(line) > MAX_LINE_BYTES:
        msg = f"it is longer than {MAX_LINE_BYTES} bytes, the most that are read"
        raise _Broken(msg)
    fields = _decoded(line)
    if not isinstance(fields, dict):
        msg = f"it is {_shown(fields)}, a probe is an object like {_EXAMPLE}"
        raise _Broken(msg)
    field = next((field for field in TEXT_FIELDS if field in fields), None)
    if field is None:
        msg = f"it has none of the fields {', '.join(TEXT_FIELDS)}, one of them is the probe's text"
        raise _Broken(msg)
    text, skill = fields[field], fields.get("skill")
    if not isinstance(text, str) or not text.strip():
        msg = f"its {field} is {_shown(text)}, it is a text that is not blank"
        raise _Broken(msg)
    if skill is not None and not (isinstance(skill, str) and re.search(NAME_PATTERN, skill)):
        msg = f"its skill is {_shown(skill)}, it is a plain name: letters, digits, '.', '_' and '-'"
        raise _Broken(msg)
    return Probe(text=text, skill=skill)


def _decoded(line: bytes) -> object:
    try:
        return msgspec.json.decode(line)
    except UnicodeDecodeError as error:
        msg = "it is not UTF-8, the only encoding that is read"
        raise _Broken(msg) from error
    except (msgspec.DecodeError, RecursionError) as error:
        msg = f"it is not JSON ({error}), each line is one JSON object"
        raise _Broken(msg) from error


def _digest(probes: list[Probe]) -> str:
    content = msgspec.json.encode([(probe.text, probe.skill) for probe in probes])
    return hashlib.sha256(content).hexdigest()
