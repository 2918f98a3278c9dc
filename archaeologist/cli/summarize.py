"""``summarize``: a campaign's summaries, built anew from its artifacts; no bus needed."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from archaeologist.cli.campaigns import asked_for
from archaeologist.cli.options import AsJson, Config, Root, read_settings

if TYPE_CHECKING:
    from archaeologist.artifacts.paths import CampaignFolder
    from archaeologist.errors import ArchaeologistError


def summarize(
    campaign: Annotated[str | None, typer.Argument(help="Which one.", metavar="HERO/CAMPAIGN")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every campaign under the root that has artifacts.")] = False,
    root: Root = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Builds a campaign's summaries anew from its artifacts: timelines, stability, skill impact."""
    from archaeologist.cli import console

    base = read_settings(config=config, root=root).root_path
    failures: list[tuple[str, ArchaeologistError]] = []
    rows = [_summarized(folder, failures) for folder in asked_for(campaign, every=every, root=base)]
    if as_json:
        console.print_json(rows)
    else:
        for row in rows:
            console.print_text(_sentence(row))
    if failures:
        first, error = failures[0]
        msg = f"{len(failures)} of {len(rows)} campaigns not summarized, first {first}: {error}"
        raise type(error)(msg) from error
    _refuse_left_out(rows)


def _refuse_left_out(rows: list[dict[str, Any]]) -> None:
    """Ends with the code of what could not be read; a sketch that the budget took is no fault."""
    from archaeologist.errors import SketchThinned, class_of

    faults = [(row, one) for row in rows for one in row["left_out"] if one.code != SketchThinned.code]
    if faults:
        row, first = faults[0]
        noun = "file" if len(faults) == 1 else "files"
        msg = f"{len(faults)} {noun} left out, first {first.file} of {row['campaign']}: {first.reason}"
        raise class_of(first.code)(msg)


def _summarized(folder: "CampaignFolder", failures: "list[tuple[str, ArchaeologistError]]") -> dict[str, Any]:
    """What is told of a campaign; if it fails, its name and the error are put to the failures."""
    from archaeologist.errors import ArchaeologistError
    from archaeologist.summaries.chronicle import rebuild

    name = f"{folder.hero_id}/{folder.campaign_id}"
    row: dict[str, Any] = {"campaign": name, "folder": str(folder.summaries)}
    try:
        outcome = rebuild(folder)
    except ArchaeologistError as error:
        failures.append((name, error))
        return {**row, "checkpoints": 0, "left_out": [], "error": f"{error.code}: {error}"}
    return {**row, "checkpoints": outcome.checkpoints, "left_out": outcome.left_out, "error": None}


def _sentence(row: dict[str, Any]) -> str:
    if row["error"]:
        return f"{row['campaign']}: {row['error']}"
    noun = "checkpoint" if row["checkpoints"] == 1 else "checkpoints"
    left_out = "".join(f"; left out: {problem.file} ({problem.reason})" for problem in row["left_out"])
    return f"{row['campaign']}: {row['checkpoints']} {noun} in {row['folder']}{left_out}"
