"""The timelines as an offline W&B run, by its own client; ``wandb sync`` uploads it."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from archaeologist.artifacts.output import whole_folder
from archaeologist.errors import ExportFailed
from archaeologist.export.extra import tool
from archaeologist.export.series import Scalars


def write_run(found: Mapping[int, Scalars], output: Path, *, hero_id: str, campaign_id: str) -> int:
    """Writes an offline run's folder; how many numbers. Nothing is sent, and nothing of this machine is written down.

    Args:
        found: From ``series.by_step``.
        output: The run's folder; it must not be there, or be empty.
        hero_id: The run's project.
        campaign_id: The run's name.

    Raises:
        ExtraMissing: wandb is not installed.
        ExportFailed: It wrote no run.
        UsageError: Something lies at the output.
        ArtifactUnwritable: The file system refuses.
    """
    wandb = tool("wandb", wanted_by="--format wandb")
    with whole_folder(output) as temporary:
        work = temporary.with_name(f"{temporary.name}.work")
        work.mkdir()
        try:
            _log(wandb, found, work, hero_id=hero_id, campaign_id=campaign_id)
            run = next((path.parent for path in work.glob("wandb/offline-run-*/*.wandb")), None)
            if run is None:
                msg = f"wandb wrote no offline run into {str(work)!r}; look at its messages above"
                raise ExportFailed(msg)
            temporary.rmdir()
            run.rename(temporary)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return sum(len(scalars) for scalars in found.values())


def _log(wandb: Any, found: Mapping[int, Scalars], work: Path, *, hero_id: str, campaign_id: str) -> None:
    settings = wandb.Settings(
        silent=True,
        console="off",
        host="",
        disable_code=True,
        disable_git=True,
        save_code=False,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
    with wandb.init(
        mode="offline",
        dir=str(work),
        project=hero_id,
        name=campaign_id,
        config={"hero_id": hero_id, "campaign_id": campaign_id},
        settings=settings,
    ) as run:
        for step, scalars in found.items():
            run.log(scalars, step=step)
