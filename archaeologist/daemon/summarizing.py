"""The daemon's part in the summaries: scores kept as they are heard, summaries brought up to date after each job.

Neither may stand in a job's way: what goes wrong is logged, and the next message, job or sweep tries again.
"""

import asyncio
import time
from typing import Final

import structlog

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.errors import ArtifactUnwritable, SummariesLate
from archaeologist.summaries.skills import keep
from archaeologist.summaries.sources import is_current
from contracts.records import CampaignRecord

log = structlog.get_logger(__name__)

SECONDS: Final = 10.0
"""How long a job's end waits for its campaign's summaries; those of 2,000 checkpoints take about one."""


async def keep_scores(folder: CampaignFolder, campaign: CampaignRecord) -> None:
    """Writes the scores of a campaign's record into its folder."""
    try:
        await asyncio.to_thread(keep, folder, campaign)
    except Exception as error:  # noqa: BLE001 -- the record still has them; the next message writes them
        await log.awarning("scores not written", campaign=str(folder.path), reason=str(error))


async def bring_up_to_date(
    folder: CampaignFolder, campaign: CampaignRecord | None, *, seconds: float = SECONDS
) -> None:
    """Brings a campaign's summaries up to date, if they are not.

    Args:
        folder: The campaign's.
        campaign: Its record, whose scores are kept first.
        seconds: How long that may take.
    """
    if campaign is not None:
        await keep_scores(folder, campaign)
    try:
        await asyncio.to_thread(_update, folder, until=time.monotonic() + seconds)
    except SummariesLate as error:
        await log.ainfo("summaries put off", campaign=str(folder.path), reason=str(error))
    except ArtifactUnwritable as error:
        await log.awarning("summaries not written", campaign=str(folder.path), reason=str(error))
    except Exception:  # noqa: BLE001 -- a defect here must not fail the job, whose artifact is in its place
        await log.aexception("summaries failed", campaign=str(folder.path))


def _update(folder: CampaignFolder, *, until: float) -> None:
    if not folder.has_artifacts or is_current(folder):
        return
    # NumPy, which a daemon that has nothing to summarize does without.
    from archaeologist.summaries.chronicle import update  # noqa: PLC0415

    update(folder, until=until)
