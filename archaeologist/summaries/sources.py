"""What lies in a campaign's folder for the summaries to read: artifacts and sketches, each with its signature.

A signature changes whenever a file is replaced, so an unchanged one need not be read again. Needs no NumPy: the daemon
asks here whether there is anything to do.
"""

import contextlib
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import msgspec
from msgspec import Struct

import archaeologist
from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.artifacts.storage import sign, stored
from archaeologist.artifacts.store import read_layer_stats
from archaeologist.errors import ArchaeologistError, ArtifactInvalid
from archaeologist.files import made, read_bounded
from contracts.artifacts import LayerStats, LeftOut

if TYPE_CHECKING:
    import os

FORMAT: Final = 4
"""Raised whenever an extract, a summary or what is computed from a sketch changes its meaning."""
MARKER: Final = ".inputs"
"""Beside the summaries: the digest of what they were made from."""
MAX_MARKER_BYTES: Final = 1024

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
    return not inputs.artifacts or is_made_of(folder, inputs.digest())


def is_made_of(folder: CampaignFolder, digest: str) -> bool:
    """Whether every summary is in its place, made of the inputs with this digest."""
    return all_written(folder) and _marked(folder) == digest


def all_written(folder: CampaignFolder) -> bool:
    """Whether every summary is in its place."""
    return all(path.exists() for path in (folder.timeline, folder.health, folder.stability, folder.skill_impact))


def mark(folder: CampaignFolder, digest: str) -> None:
    """Notes what the summaries were made from.

    Raises:
        OSError: The disk is full or read-only.
    """
    temporary = folder.summaries / f"{MARKER}.tmp"
    with made(temporary) as file:
        file.write(digest.encode("ascii"))
    temporary.replace(folder.summaries / MARKER)


def _marked(folder: CampaignFolder) -> str | None:
    with contextlib.suppress(OSError, UnicodeDecodeError, RuntimeError):
        marker = (folder.summaries / MARKER).resolve(strict=True)
        return read_bounded(marker, MAX_MARKER_BYTES).decode("ascii")
    return None


def artifacts(folder: CampaignFolder) -> list[Source]:
    """The campaign's ``layer_stats`` artifacts by step; last, those with a wrong name."""
    found = []
    for name, entry in stored(folder.layer_stats(0).parent):
        match = _ARTIFACT.fullmatch(name)
        if match is None:
            continue
        step = int(match[1])
        is_ours = match[1] == f"{step:06d}"
        if of_entry := _signature(entry, is_archived=entry.name != name):
            found.append(Source(name, step if is_ours else None, of_entry))
    return sorted(found, key=lambda source: (source.step is None, source.step or 0, source.name))


def read_source(folder: CampaignFolder, source: Source) -> LayerStats:
    """The artifact in a file that may be one of this campaign.

    Raises:
        ArtifactInvalid: It is none, or another's.
        ArtifactMissing: It is gone meanwhile.
        ArchiveUnavailable: It is archived, and the WARM root cannot be reached.
    """
    if source.step is None:
        msg = f"{source.name!r} is not the name of an artifact, ckpt-000100.layer_stats.json for instance"
        raise ArtifactInvalid(msg)
    artifact = read_layer_stats(folder.layer_stats(source.step))
    for name, expected, found in (
        ("checkpoint_step", source.step, artifact.checkpoint_step),
        ("hero_id", folder.hero_id, artifact.hero_id),
        ("campaign_id", folder.campaign_id, artifact.campaign_id),
    ):
        if expected != found:
            msg = f"its {name} is {found!r}, its place says {expected!r}; move it to where it belongs"
            raise ArtifactInvalid(msg)
    return artifact


def left_out(folder: CampaignFolder, source: Source, error: ArchaeologistError) -> LeftOut:
    """A file that is not used, and why."""
    file = str((folder.layer_stats(0).parent / source.name).relative_to(folder.analysis))
    return LeftOut(file=file, code=error.code, reason=str(error))


def check_numbers(source: Source, numbers: Struct) -> None:
    """Passes what fits into the columns and files that are made of artifacts.

    Raises:
        ArtifactInvalid: A whole number has more than 64 bits.
    """
    try:
        msgspec.msgpack.encode(numbers)
    except OverflowError as error:
        msg = f"artifact {source.name!r} has a whole number of more than 64 bits; analyse its checkpoint again"
        raise ArtifactInvalid(msg) from error


def sketches(folder: CampaignFolder) -> dict[str, str]:
    """The signature of each file in the campaign's folder of sketches, by name."""
    entries = stored(folder.sketch(0).parent)
    ours = [entry for name, entry in entries if entry.name == name and name.endswith(".safetensors")]
    return {entry.name: of_entry for entry in ours if (of_entry := _signature(entry))}


def signature(path: Path) -> str | None:
    """The signature of one file; None where there is none."""
    try:
        return sign(path.stat())
    except OSError:
        return None


def _signature(entry: "os.DirEntry[str]", *, is_archived: bool = False) -> str | None:
    try:
        # Of an archived one the link counts: what is known of it stays known while the WARM root is away.
        return sign(entry.stat(follow_symlinks=not is_archived))
    except FileNotFoundError:
        # Replaced or moved away while the folder was being read, or a link that leads nowhere.
        return None if not entry.is_symlink() else "dangling"
