"""``export``: a campaign in the forms that other tools read; no bus needed."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from archaeologist.cli.options import Config, Root, read_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from archaeologist.artifacts.paths import CampaignFolder
    from contracts.artifacts import LayerStats

ENDINGS: Final = {"parquet": ".parquet", "csv": ".csv", "tensorboard": "-tensorboard", "wandb": "-wandb"}


def export(
    campaign: Annotated[str, typer.Argument(help="Which one.", metavar="HERO/CAMPAIGN")],
    form: Annotated[
        str,
        typer.Option(
            "--format", help="parquet, csv: the table of tensors; tensorboard, wandb: the timelines.", metavar="FORMAT"
        ),
    ] = "parquet",
    output: Annotated[
        Path | None,
        typer.Option("--output", help="File or folder; else HERO-CAMPAIGN with the format's ending.", metavar="PATH"),
    ] = None,
    root: Root = None,
    config: Config = None,
) -> None:
    """Writes a campaign as Parquet, CSV, TensorBoard events or an offline W&B run."""
    from archaeologist.cli.campaigns import named_campaign
    from archaeologist.cli.request import one_of

    one_of("--format", form, tuple(ENDINGS))
    folder = named_campaign(campaign, root=read_settings(config=config, root=root).root_path)
    path = output or Path(f"{folder.hero_id}-{folder.campaign_id}{ENDINGS[form]}")
    count = _write_table(folder, path, form=form) if form in {"parquet", "csv"} else _write_series(folder, path, form)
    noun = "rows" if form in {"parquet", "csv"} else "numbers"
    _notice(f"written: {path} ({count} {noun})")


def _write_table(folder: "CampaignFolder", path: Path, *, form: str) -> int:
    from archaeologist.export.table import write_csv, write_parquet

    write = write_parquet if form == "parquet" else write_csv
    return write(_artifacts(folder), path)


def _artifacts(folder: "CampaignFolder") -> "Iterator[LayerStats]":
    """Every artifact of the campaign that can be read, ascending by step; what cannot is said.

    Raises:
        ArtifactMissing: None can.
    """
    from archaeologist.errors import ArchaeologistError, ArtifactMissing
    from archaeologist.summaries import sources

    count = 0
    for source in sources.artifacts(folder):
        try:
            artifact = sources.read_source(folder, source)
            sources.check_numbers(source, artifact)
        except ArchaeologistError as error:
            problem = sources.left_out(folder, source, error)
            _notice(f"left out: {problem.file}: {problem.reason}")
        else:
            count += 1
            yield artifact
    if not count:
        msg = (
            f"no artifact in {str(folder.layer_stats(0).parent)!r} can be read; request an analysis, or check the name"
        )
        raise ArtifactMissing(msg)


def _write_series(folder: "CampaignFolder", path: Path, form: str) -> int:
    from archaeologist.export.series import by_step, times
    from archaeologist.report.campaign import check_readable, read_campaign
    from archaeologist.summaries.skills import read_history

    found = read_campaign(folder)
    for note in found.notes:
        _notice(note)
    check_readable(found)
    scalars = by_step(found.timeline, found.health, read_history(folder))
    if form == "tensorboard":
        from archaeologist.export.tensorboard import write_events

        return write_events(scalars, times(found.health, tuple(scalars)), path)
    from archaeologist.export.wandb import write_run

    return write_run(scalars, path, hero_id=folder.hero_id, campaign_id=folder.campaign_id)


def _notice(text: str) -> None:
    from archaeologist.cli import console

    console.notices().print(console.printable(text))
