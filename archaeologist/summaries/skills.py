"""Every skill's scores in a file of the campaign, so that the summaries can be built without the bus.

The daemon's intake writes it from the campaign's record, the whole record each time: a score that could not be written
is written with the next one. The record forgets old checkpoints, the file does not.
"""

import contextlib
import fcntl
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.artifacts.store import put_in_place, write_whole
from archaeologist.errors import ArtifactInvalid, ArtifactUnwritable
from archaeologist.files import read_bounded
from contracts.artifacts import ARTIFACT_VERSION, SkillHistory, SkillScore
from contracts.records import CampaignRecord

MAX_BYTES: Final = 64_000_000
LOCK: Final = ".skills.lock"

_history: Final = msgspec.json.Decoder(SkillHistory)
"""Built while this is imported, as ``contracts.prepared`` says."""


def read_history(folder: CampaignFolder) -> SkillHistory:
    """The campaign's scores; none where there is no file.

    Raises:
        ArtifactInvalid: The file is not what it must be.
    """
    empty = SkillHistory(hero_id=folder.hero_id, campaign_id=folder.campaign_id)
    path = folder.skills
    try:
        found = _history.decode(read_bounded(path.resolve(strict=True), MAX_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        return empty
    except (OSError, ValueError, RecursionError, RuntimeError) as error:
        msg = f"scores in {str(path)!r} cannot be read: {error}; repair the file or move it away"
        raise ArtifactInvalid(msg) from error
    if found.version > ARTIFACT_VERSION:
        msg = f"scores in {str(path)!r} have version {found.version}, not {ARTIFACT_VERSION}; upgrade archaeologist"
        raise ArtifactInvalid(msg)
    ordered = {skill: {score.step: score for score in scores} for skill, scores in found.skills.items()}
    return msgspec.structs.replace(empty, skills=_tuples(ordered))


def keep(folder: CampaignFolder, record: CampaignRecord) -> bool:
    """Writes the scores that a campaign's record has into its file; whether there were any new. Blocking.

    A score of the same skill and step replaces the one in the file. Nothing is made for a campaign without a folder.

    Raises:
        ArtifactInvalid: The file is not what it must be; it is left alone.
        ArtifactUnwritable: The disk is full or read-only.
    """
    heard = _heard(record)
    if not heard or not folder.path.is_dir():
        return False
    try:
        folder.analysis.mkdir(exist_ok=True)
        with _locked(folder.analysis / LOCK):
            return _merge(folder, heard)
    except OSError as error:
        msg = f"scores in {str(folder.skills)!r} cannot be written: {error.strerror or error}; check their disk"
        raise ArtifactUnwritable(msg) from error


def _merge(folder: CampaignFolder, heard: Mapping[str, Mapping[int, SkillScore]]) -> bool:
    before = read_history(folder)
    merged = {skill: {score.step: score for score in scores} for skill, scores in before.skills.items()}
    for skill, scores in heard.items():
        merged.setdefault(skill, {}).update(scores)
    after = msgspec.structs.replace(before, skills=_tuples(merged))
    if after == before:
        return False
    temporary = folder.skills.with_name(f".{folder.skills.name}.tmp")
    write_whole(temporary, msgspec.json.encode(after))
    put_in_place(temporary, folder.skills, superseded_folder=None)
    return True


def _heard(record: CampaignRecord) -> dict[str, dict[int, SkillScore]]:
    """The record's scores by skill and step."""
    found: dict[str, dict[int, SkillScore]] = {}
    for entry in record.checkpoints:
        for skill, score in entry.skills.items():
            if math.isfinite(score):
                samples = entry.skill_samples.get(skill)
                found.setdefault(skill, {})[entry.step] = SkillScore(step=entry.step, score=score, num_samples=samples)
    return found


def _tuples(skills: Mapping[str, Mapping[int, SkillScore]]) -> dict[str, tuple[SkillScore, ...]]:
    return {skill: tuple(scores[step] for step in sorted(scores)) for skill, scores in sorted(skills.items())}


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        with contextlib.suppress(OSError):  # a file system that cannot lock
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
