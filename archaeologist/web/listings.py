"""Lists of a campaign's artifacts, page by page. Blocking file work."""

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from archaeologist.artifacts.paths import CAMPAIGNS, CampaignFolder
from archaeologist.artifacts.storage import SUFFIX, read_stored, signature
from archaeologist.artifacts.store import MAX_ARTIFACT_BYTES
from archaeologist.errors import ArchiveUnavailable, ArtifactInvalid
from archaeologist.settings import Settings
from contracts.artifacts import ARTIFACT_VERSION, LeftOut
from contracts.http import DriftEntry, DriftList, StatsEntry, StatsList
from contracts.prepared import prepare

PEEKS: Final = 10_000
"""Heads of ``layer_drift`` artifacts kept in memory."""

_STATS: Final = re.compile(r"ckpt-([0-9]{1,16})\.layer_stats\.json")
_DRIFT: Final = re.compile(r"drift-([0-9]{1,16})-to-([0-9]{1,16})\.json")


class _Head(Struct, frozen=True):
    """The little of a ``layer_drift`` artifact that a list shows."""

    version: int
    created_at: str
    avg_drift_l2: float | None = None
    most_changed_layer: str | None = None


def following(offset: int, shown: int, count: int) -> int | None:
    """Where the next page begins; None: there is none."""
    return offset + shown if offset + shown < count else None


def steps(folder: CampaignFolder) -> list[int]:
    """Steps of the ``layer_stats`` artifacts, by their names, in no order."""
    matches = (_STATS.fullmatch(name) for name in _names(folder.layer_stats(0).parent))
    # As CampaignFolder writes them; making thousands of paths to compare with takes longer than listing the folder.
    return [int(match[1]) for match in matches if match and match[1] == f"{int(match[1]):06d}"]


def stats_source(folder: CampaignFolder) -> Path:
    """The file that ``stats`` is made from."""
    from archaeologist.summaries.store import NAME  # noqa: PLC0415 -- NumPy, needed once there is something to list

    return folder.summaries / NAME


def stats(folder: CampaignFolder, *, limit: int, offset: int) -> StatsList:
    """A page of the analysed checkpoints, from what the last update of the summaries read of them."""
    from archaeologist.summaries.listing import listing  # noqa: PLC0415 -- as above

    found = listing(folder)
    page = found.extracts[offset : offset + limit]
    entries = (
        StatsEntry(
            checkpoint_step=extract.step,
            created_at=extract.created_at,
            has_drift=extract.has_drift,
            has_activations=extract.has_activations,
            most_changed_layer=extract.most_changed_layer,
            avg_weight_norm=extract.avg_weight_norm,
            filename=folder.layer_stats(extract.step).name,
            reference_checkpoint_step=extract.reference_step,
            alerts=len(extract.alerts),
        )
        for extract in page
    )
    return StatsList(
        stats=tuple(entries),
        count=len(found.extracts),
        campaign_id=folder.campaign_id,
        hero_id=folder.hero_id,
        next_offset=following(offset, len(page), len(found.extracts)),
        left_out=found.left_out,
    )


def is_warm_there(settings: Settings) -> bool:
    """Whether the WARM root is there now: a list with what is archived there is another one without."""
    warm = settings.archive.warm_root
    return warm is not None and os.path.isdir(Path(warm).expanduser() / CAMPAIGNS)  # noqa: PTH112 -- never raises


def drifts_source(folder: CampaignFolder) -> Path:
    """The folder that ``drifts`` is made from."""
    return folder.layer_drift(0, 0).parent


def drifts(folder: CampaignFolder, *, limit: int, offset: int) -> DriftList:
    """A page of the ``layer_drift`` artifacts, by target and base; only the page's own are looked into."""
    pairs = sorted(_pairs(folder))
    page = pairs[offset : offset + limit]
    entries, left_out = [], []
    for target, base in page:
        path = folder.layer_drift(base, target)
        try:
            head = _found(path)
        except (ArchiveUnavailable, ArtifactInvalid) as error:
            file = str(path.relative_to(folder.analysis))
            left_out.append(LeftOut(file=file, code=error.code, reason=str(error)))
            continue
        entries.append(
            DriftEntry(
                base_checkpoint_step=base,
                target_checkpoint_step=target,
                filename=path.name,
                created_at=head.created_at,
                avg_drift_l2=head.avg_drift_l2,
                most_changed_layer=head.most_changed_layer,
            )
        )
    return DriftList(
        drifts=tuple(entries),
        count=len(pairs),
        campaign_id=folder.campaign_id,
        hero_id=folder.hero_id,
        next_offset=following(offset, len(page), len(pairs)),
        left_out=tuple(left_out),
    )


def _pairs(folder: CampaignFolder) -> list[tuple[int, int]]:
    """Target and base of each artifact, by its name."""
    matches = [match for name in _names(drifts_source(folder)) if (match := _DRIFT.fullmatch(name))]
    found = [(int(match[2]), int(match[1]), match[0]) for match in matches]
    return [(target, base) for target, base, name in found if folder.layer_drift(base, target).name == name]


def _names(folder: Path) -> set[str]:
    """Plain names in a folder, archived or not; none where there is no folder."""
    try:
        # Names are enough, and there may be thousands; one that is archived and back again has two.
        return {name.removesuffix(SUFFIX) for name in os.listdir(folder)}  # noqa: PTH208
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _found(path: Path) -> _Head:
    found = _head(path, signature(path))
    if isinstance(found, str):
        raise ArtifactInvalid(found)
    return found


@lru_cache(maxsize=PEEKS)
def _head(path: Path, _signature: str | None) -> _Head | str:
    """What the artifact's head says, or why it is none; the signature makes a replaced file a new one.

    Raises:
        ArchiveUnavailable: It is archived and out of reach, which is not kept.
    """
    try:
        head = msgspec.json.decode(read_stored(path, MAX_ARTIFACT_BYTES), type=_Head)
    except (OSError, ValueError, RecursionError, RuntimeError) as error:
        return f"{path.name} is no artifact: {error}; move it away and request the analysis again with force"
    if head.version > ARTIFACT_VERSION:
        return f"{path.name} has version {head.version}, at most {ARTIFACT_VERSION} is read; upgrade archaeologist"
    return head


prepare(__name__)
