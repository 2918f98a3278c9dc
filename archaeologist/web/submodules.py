"""Parts of the drift of submodules: some tensors, some steps, some numbers. Needs NumPy; pure."""

from typing import Any, Final

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.errors import ParameterInvalid
from archaeologist.summaries.submodules import Submodules
from archaeologist.summaries.table import flags, numbers
from archaeologist.web.timelines import Choice, fields_of
from contracts.artifacts import ARTIFACT_VERSION, SubmoduleTimeline

MOST_VALUES: Final = 1_000_000
"""Of one reply: some 20 MB as JSON."""


def part(folder: CampaignFolder, found: Submodules, choice: Choice) -> dict[str, Any]:
    """The chosen part of the drift of submodules; every array has an entry for each of its checkpoints.

    Args:
        folder: The campaign.
        found: Of the campaign.
        choice: ``layers`` are parts of names of tensors.

    Raises:
        ParameterInvalid: It is too much for one reply.
    """
    last_step = choice.last_step if choice.last_step is not None else max(found.steps, default=0)
    kept = [at for at, step in enumerate(found.steps) if (choice.first_step or 0) <= step <= last_step]
    names = [
        (row, name)
        for row, name in enumerate(found.blocks)
        if choice.layers is None or any(wanted in name for wanted in choice.layers)
    ]
    fields = choice.fields or fields_of(SubmoduleTimeline)
    if (count := len(names) * len(kept) * len(fields)) > MOST_VALUES:
        msg = (
            f"{len(names)} submodules, {len(kept)} checkpoints and {len(fields)} fields are {count} values; at most"
            f" {MOST_VALUES} are sent, choose some by layers, fields, first_step and last_step"
        )
        raise ParameterInvalid(msg)
    columns = {field: found.column(field)[:, kept] for field in fields}
    return {
        "version": ARTIFACT_VERSION,
        "campaign_id": folder.campaign_id,
        "hero_id": folder.hero_id,
        "checkpoints": [found.steps[at] for at in kept],
        "submodules": {
            name: {"name": name, "block": found.blocks[name]}
            | {
                field: flags(values[row]) if field == "below_resolution" else numbers(values[row])
                for field, values in columns.items()
            }
            for row, name in names
        },
        "reference_steps": [found.references[at] for at in kept],
    }
