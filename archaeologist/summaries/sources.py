"""What lies in a campaign's folder for the summaries to read: artifacts and sketches, each with its signature.

A signature changes whenever a file is replaced, so an unchanged one need not be read again.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from archaeologist.artifacts.paths import CampaignFolder

_ARTIFACT: Final = re.compile(r"ckpt-(\d{1,16})\.layer_stats\.json")


class Source(NamedTuple):
    """A file that may be an artifact."""

    path: Path
    step: int | None
    """As its name says; None where the name is not one that an artifact gets."""
    signature: str


def artifacts(folder: CampaignFolder) -> list[Source]:
    """The campaign's ``layer_stats`` artifacts by step; last, those with a wrong name."""
    found = []
    for entry, name in _entries(folder.layer_stats(0).parent):
        match = _ARTIFACT.fullmatch(name)
        if match is None:
            continue
        step = int(match[1])
        is_ours = folder.layer_stats(step).name == name
        if sign := _signature(entry):
            found.append(Source(Path(entry.path), step if is_ours else None, sign))
    return sorted(found, key=lambda source: (source.step is None, source.step or 0, source.path.name))


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
