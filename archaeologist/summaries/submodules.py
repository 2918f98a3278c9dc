"""The drift of every submodule over a campaign's checkpoints, from what is kept of each artifact.

A file of all of it as JSON would have 80 MB in a campaign of 2,000 checkpoints; so it is read from the store by whoever
asks, as arrays. Page, report and a notebook do.
"""

import contextlib

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.errors import ArtifactInvalid
from archaeologist.summaries import store
from archaeologist.summaries.chronicle import rebuild, update
from archaeologist.summaries.extract import SUBMODULE_COLUMNS, Extract
from archaeologist.summaries.ledger import Damaged, Sheet
from archaeologist.summaries.store import Store
from archaeologist.summaries.table import Floats, Stack


class Submodules:
    """The drift of every submodule.

    Args:
        found: Each checkpoint that was compared with a reference, ascending by step, and its numbers.
    """

    def __init__(self, found: list[tuple[Extract, Sheet]]) -> None:
        self.steps = tuple(extract.step for extract, _ in found)
        self.references = tuple(extract.reference_step for extract, _ in found)
        self._stack = Stack([sheet for _, sheet in found], SUBMODULE_COLUMNS)

    @property
    def blocks(self) -> dict[str, str]:
        """The block of each submodule, by the tensor's name; the newest checkpoint's first, in its order."""
        return self._stack.labels

    def column(self, name: str) -> Floats:
        """A number of every submodule, shape (submodules, checkpoints); NaN where there is none.

        Args:
            name: One of ``SUBMODULE_COLUMNS``; ``below_resolution`` is 1 or 0.
        """
        return self._stack.column(name)


def read_submodules(folder: CampaignFolder, *, until: float | None = None) -> Submodules:
    """The drift of every submodule of a campaign, as its summaries have it. Blocking.

    What was kept is lost in a power failure, say: then the artifacts are read again.

    Args:
        folder: The campaign.
        until: When to stop that, by ``time.monotonic``; None: never.

    Raises:
        SummariesLate: It was lost, and the time is up; the next call goes on.
        ArtifactUnwritable: It was lost, and cannot be kept.
        ArtifactInvalid: It was lost again meanwhile.
    """
    for _ in range(2):  # a writer may have moved the numbers to another file meanwhile
        with contextlib.suppress(Damaged):
            return _of(folder, _known(folder, until))
    rebuild(folder, until=until)
    try:
        return _of(folder, _known(folder, until))
    except Damaged as error:
        msg = f"what was read of the submodules of {folder.campaign_id!r} is damaged: {error}; check the disk"
        raise ArtifactInvalid(msg) from error


def _known(folder: CampaignFolder, until: float | None) -> Store:
    known = store.load(folder.summaries, has_numbers=False)
    if known.entries:
        return known
    update(folder, until=until)
    return store.load(folder.summaries, has_numbers=False)


def _of(folder: CampaignFolder, known: Store) -> Submodules:
    sheets = store.submodules(folder.summaries, known)
    found = [(entry.extract, sheets[name]) for name, entry in known.entries.items() if entry.extract and name in sheets]
    return Submodules(sorted(found, key=lambda one: one[0].step))
