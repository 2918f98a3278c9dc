"""What the last update knew of a campaign's artifacts, for whoever lists them without reading them again."""

from typing import NamedTuple

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.summaries import store
from archaeologist.summaries.extract import Extract
from contracts.artifacts import LeftOut


class Listing(NamedTuple):
    """The artifacts of a campaign."""

    extracts: tuple[Extract, ...]
    """Ascending by step, without their numbers of blocks."""
    left_out: tuple[LeftOut, ...]
    """Files that are no artifact of this campaign."""


def listing(folder: CampaignFolder) -> Listing:
    """The artifacts as the last update saw them; none before the first. Blocking."""
    entries = store.load(folder.summaries, has_numbers=False).entries.values()
    extracts = (entry.extract for entry in entries if entry.extract)
    return Listing(
        extracts=tuple(sorted(extracts, key=lambda extract: extract.step)),
        left_out=tuple(entry.problem for entry in entries if entry.problem),
    )
