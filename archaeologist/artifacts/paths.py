"""Where a campaign's files lie. Names only; nothing is made, and only the last function and ``has_artifacts`` look."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

from msgspec import Struct

from archaeologist.errors import MessageInvalid
from contracts.messages import NAME_PATTERN

CAMPAIGNS: Final = "campaigns"

_NAME: Final = re.compile(NAME_PATTERN)


class CampaignFolder(Struct, frozen=True, kw_only=True):
    """The folder of one campaign, ``{root}/campaigns/{hero_id}/{campaign_id}``."""

    root: Path
    hero_id: str
    campaign_id: str

    @classmethod
    def of(cls, root: Path, hero_id: str, campaign_id: str) -> Self:
        """The folder of a campaign.

        Raises:
            MessageInvalid: An id is not a plain name.
        """
        for kind, name in (("hero_id", hero_id), ("campaign_id", campaign_id)):
            if not _NAME.match(name):
                msg = (
                    f"{kind} {name[:200]!r} is not a plain name; use up to 128 letters, digits, '.', '_' and '-',"
                    " with a letter or digit first and never '..'"
                )
                raise MessageInvalid(msg)
        return cls(root=root, hero_id=hero_id, campaign_id=campaign_id)

    @classmethod
    def enclosing(cls, path: Path) -> Self | None:
        """The campaign that a path lies in, by its ``campaigns/{hero}/{campaign}``; None where there is none."""
        parts = path.parts
        for position in range(len(parts) - 3, -1, -1):
            if parts[position] == CAMPAIGNS and _NAME.match(parts[position + 1]) and _NAME.match(parts[position + 2]):
                return cls(root=Path(*parts[:position]), hero_id=parts[position + 1], campaign_id=parts[position + 2])
        return None

    @property
    def path(self) -> Path:
        """The campaign itself."""
        return self.root / CAMPAIGNS / self.hero_id / self.campaign_id

    @property
    def checkpoints(self) -> Path:
        """Where the trainer saves."""
        return self.path / "checkpoints"

    @property
    def pins(self) -> Path:
        """Hard links to checkpoints that are still needed."""
        return self.path / ".pins"

    @property
    def analysis(self) -> Path:
        """Everything that was found out."""
        return self.path / "analysis"

    @property
    def summaries(self) -> Path:
        """What many artifacts say together."""
        return self.analysis / "summaries"

    @property
    def has_artifacts(self) -> bool:
        """Whether a checkpoint of this campaign was ever analysed."""
        return self.layer_stats(0).parent.is_dir()

    @property
    def timeline(self) -> Path:
        """The drift of every block over time."""
        return self.summaries / "layer_drift_timeline.json"

    @property
    def stability(self) -> Path:
        """Which blocks are stable."""
        return self.summaries / "stability_report.json"

    @property
    def health(self) -> Path:
        """The health of every block over time."""
        return self.summaries / "health_timeline.json"

    @property
    def skill_impact(self) -> Path:
        """Which blocks move when a skill's score does."""
        return self.summaries / "skill_impact.json"

    @property
    def skills(self) -> Path:
        """Every skill's scores, as heard on the bus."""
        return self.analysis / "skills.json"

    def layer_stats(self, step: int) -> Path:
        """The ``layer_stats`` artifact of a checkpoint."""
        return self.analysis / "layer_stats" / f"ckpt-{step:06d}.layer_stats.json"

    def layer_drift(self, base: int, target: int) -> Path:
        """The ``layer_drift`` artifact of two checkpoints."""
        return self.analysis / "layer_drift" / f"drift-{base:06d}-to-{target:06d}.json"

    def sketch(self, step: int) -> Path:
        """The sketch of a checkpoint."""
        return self.analysis / "sketches" / f"ckpt-{step:06d}.sketch.safetensors"

    def superseded(self, job_key: str) -> Path:
        """Where a job's artifact lies once another job owns its path."""
        return self.analysis / "superseded" / f"{job_key}.json"


def campaign_folders(root: Path) -> Iterator[CampaignFolder]:
    """Every campaign under the root, by hero and name. Folders without a plain name are passed over."""
    for path in sorted((root / CAMPAIGNS).glob("*/*")):
        hero_id, campaign_id = path.parts[-2:]
        if path.is_dir() and _NAME.match(hero_id) and _NAME.match(campaign_id):
            yield CampaignFolder(root=root, hero_id=hero_id, campaign_id=campaign_id)
