"""What lies in a campaign's folder for the summaries to read: artifacts and sketches, each with its signature.

A signature changes whenever a file is replaced, so an unchanged one need not be read again. Needs no NumPy: the daemon
asks here whether there is anything to do.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, Self

import msgspec

import archaeologist
from archaeologist.artifacts.paths import CampaignFolder

FORMAT: Final = 2
"""Raised whenever an extract, a summary or what is computed from a sketch changes its meaning."""
MARKER: Final = ".inputs"
"""Beside the summaries: the digest of what they were made from."""

_ARTIFACT: Final = re.compile(r"ckpt-(\d{1,16})\.layer_stats\.json")


class Source(NamedTuple):
    """A file that may be an artifact."""

    name: str
    step: int | None
    """As its name says; None where the name is not one that an artifact gets."""
    signature: str


class Inputs(NamedTuple):
    """What the summaries are made of."""

    artifacts: list[Source]
    sketches: dict[str, str]
    skills: str | None

    @classmethod
    def of(cls, folder: CampaignFolder) -> Self:
        """As it lies there now."""
        return cls(artifacts(folder), sketches(folder), signature(folder.skills))

    def digest(self) -> str:
        """Changes with every file, and with the program that reads them."""
        files = [(source.name, source.signature) for source in self.artifacts]
        whole = (FORMAT, archaeologist.__version__, files, sorted(self.sketches.items()), self.skills)
        return hashlib.sha256(msgspec.json.encode(whole)).hexdigest()


def is_current(folder: CampaignFolder) -> bool:
    """Whether there is nothing to do: no artifact, or summaries made of exactly what lies there."""
    inputs = Inputs.of(folder)
    return not inputs.artifacts or (all_written(folder) and _marked(folder) == inputs.digest())


def all_written(folder: CampaignFolder) -> bool:
    """Whether every summary is in its place."""
    return all(path.exists() for path in (folder.timeline, folder.health, folder.stability, folder.skill_impact))


def mark(folder: CampaignFolder, digest: str) -> None:
    """Notes what the summaries were made from.

    Raises:
        OSError: The disk is full or read-only.
    """
    temporary = folder.summaries / f"{MARKER}.tmp"
    temporary.write_text(digest, encoding="ascii")
    temporary.replace(folder.summaries / MARKER)


def _marked(folder: CampaignFolder) -> str | None:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return (folder.summaries / MARKER).read_text(encoding="ascii")
    return None


def artifacts(folder: CampaignFolder) -> list[Source]:
    """The campaign's ``layer_stats`` artifacts by step; last, those with a wrong name."""
    found = []
    for entry, name in _entries(folder.layer_stats(0).parent):
        match = _ARTIFACT.fullmatch(name)
        if match is None:
            continue
        step = int(match[1])
        is_ours = match[1] == f"{step:06d}"
        if sign := _signature(entry):
            found.append(Source(name, step if is_ours else None, sign))
    return sorted(found, key=lambda source: (source.step is None, source.step or 0, source.name))


def sketches(folder: CampaignFolder) -> dict[str, str]:
    """The signature of each file in the campaign's folder of sketches, by name."""
    entries = _entries(folder.sketch(0).parent)
    return {name: sign for entry, name in entries if name.endswith(".safetensors") and (sign := _signature(entry))}


def signature(path: Path) -> str | None:
    """The signature of one file; None where there is none."""
    try:
        return _sign(path.stat())
    except OSError:
        return None


def _entries(folder: Path) -> Iterator[tuple["os.DirEntry[str]", str]]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    yield entry, entry.name
    except (FileNotFoundError, NotADirectoryError):
        return


def _signature(entry: "os.DirEntry[str]") -> str | None:
    try:
        return _sign(entry.stat())
    except FileNotFoundError:
        # Replaced or moved away while the folder was being read, or a link that leads nowhere.
        return None if not entry.is_symlink() else "dangling"


def _sign(status: os.stat_result) -> str:
    return f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"
