"""Which campaigns a command is about: one by name, or all that have artifacts."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from archaeologist.artifacts.paths import CampaignFolder


def asked_for(campaign: str | None, *, every: bool, root: Path) -> "list[CampaignFolder]":
    """The campaigns that are asked for.

    Raises:
        UsageError: Neither or both forms, or no plain names.
        CampaignMissing: There is none.
    """
    from archaeologist.artifacts.paths import campaign_folders
    from archaeologist.errors import CampaignMissing, UsageError

    if (campaign is None) is not every:
        msg = "name one campaign, HERO/CAMPAIGN, or --all"
        raise UsageError(msg)
    if campaign is None:
        found = [folder for folder in campaign_folders(root) if folder.has_artifacts]
        if not found:
            msg = f"no campaign under {str(root)!r} has artifacts; name the folder that holds campaigns/ with --root"
            raise CampaignMissing(msg)
        return found
    return [named_campaign(campaign, root=root)]


def named_campaign(name: str, *, root: Path) -> "CampaignFolder":
    """The campaign that ``HERO/CAMPAIGN`` names.

    Raises:
        UsageError: No plain names.
        CampaignMissing: It has no artifacts.
    """
    from archaeologist.artifacts.paths import CampaignFolder
    from archaeologist.errors import CampaignMissing, MessageInvalid, UsageError

    hero_id, _, campaign_id = name.partition("/")
    try:
        folder = CampaignFolder.of(root, hero_id, campaign_id)
    except MessageInvalid as error:
        msg = f"{name!r}: {error}; write HERO/CAMPAIGN"
        raise UsageError(msg) from error
    if not folder.has_artifacts:
        msg = f"campaign {name!r} has no artifacts in {str(folder.analysis)!r}; check the name, or --root"
        raise CampaignMissing(msg)
    return folder
