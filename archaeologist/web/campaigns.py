"""Which campaign a request means, and which there are. Blocking file work."""

from typing import Final

from archaeologist.artifacts.paths import CampaignFolder, campaign_folders
from archaeologist.errors import CampaignMissing, HeroUnclear
from archaeologist.settings import Settings
from archaeologist.web import listings
from archaeologist.web.listings import following
from contracts.http import CampaignEntry, Campaigns

HEROES_SHOWN: Final = 10
_ANY_HERO: Final = "any"


def find(settings: Settings, campaign_id: str, hero_id: str | None) -> CampaignFolder:
    """The folder of a campaign; it need not be there where the hero is named.

    Raises:
        MessageInvalid: A name is none.
        CampaignMissing: No hero is named and none has such a campaign.
        HeroUnclear: No hero is named and several have one.
    """
    root = settings.root_path
    if hero_id is not None:
        return CampaignFolder.of(root, hero_id, campaign_id)
    CampaignFolder.of(root, _ANY_HERO, campaign_id)  # a plain name
    found = [folder for folder in campaign_folders(root) if folder.campaign_id == campaign_id]
    if not found:
        msg = f"there is no campaign {campaign_id!r}; /api/campaigns lists those that are there"
        raise CampaignMissing(msg)
    if len(found) > 1:
        heroes = ", ".join(folder.hero_id for folder in found[:HEROES_SHOWN])
        msg = f"campaign {campaign_id!r} is one of several heroes ({heroes}); say which: hero_id=HERO"
        raise HeroUnclear(msg)
    return found[0]


def analysed(folder: CampaignFolder) -> CampaignFolder:
    """The folder, if there is an analysis in it.

    Raises:
        CampaignMissing: There is none.
    """
    if not folder.has_artifacts:
        msg = (
            f"no analysis data found for campaign {folder.campaign_id!r} of hero {folder.hero_id!r}; check the names at"
            " /api/campaigns, or request an analysis"
        )
        raise CampaignMissing(msg)
    return folder


def listed(settings: Settings, *, limit: int, offset: int) -> Campaigns:
    """A page of all campaigns."""
    found = list(campaign_folders(settings.root_path))
    page = found[offset : offset + limit]
    return Campaigns(
        campaigns=tuple(_entry(folder) for folder in page),
        count=len(found),
        next_offset=following(offset, len(page), len(found)),
    )


def _entry(folder: CampaignFolder) -> CampaignEntry:
    steps = listings.steps(folder)
    return CampaignEntry(
        hero_id=folder.hero_id,
        campaign_id=folder.campaign_id,
        analyzed=len(steps),
        latest_step=max(steps, default=None),
    )
