"""``summarize``: a campaign's summaries, built anew from its artifacts; no bus needed."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from archaeologist.cli.options import AsJson, Config, Root, read_settings

if TYPE_CHECKING:
    from archaeologist.artifacts.paths import CampaignFolder


def summarize(
    campaign: Annotated[str | None, typer.Argument(help="Which one.", metavar="HERO/CAMPAIGN")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every campaign under the root that has artifacts.")] = False,
    root: Root = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Builds a campaign's summaries anew from its artifacts: timelines, stability, skill impact."""
    from archaeologist.cli import console
    from archaeologist.errors import PermanentError

    base = read_settings(config=config, root=root).root_path
    rows = [_summarized(folder) for folder in _folders(campaign, every=every, root=base)]
    if as_json:
        console.print_json(rows)
    else:
        for row in rows:
            console.output().print(console.printable(_sentence(row)))
    if failed := [row for row in rows if row["error"]]:
        first = failed[0]
        msg = f"{len(failed)} of {len(rows)} campaigns not summarized, first {first['campaign']}: {first['error']}"
        raise PermanentError(msg)


def _folders(campaign: str | None, *, every: bool, root: Path) -> "list[CampaignFolder]":
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


def _summarized(folder: "CampaignFolder") -> dict[str, Any]:
    from archaeologist.errors import ArchaeologistError
    from archaeologist.summaries.chronicle import rebuild

    row: dict[str, Any] = {"campaign": f"{folder.hero_id}/{folder.campaign_id}", "folder": str(folder.summaries)}
    try:
        outcome = rebuild(folder)
    except ArchaeologistError as error:
        return {**row, "checkpoints": 0, "left_out": [], "error": f"{error.code}: {error}"}
    return {**row, "checkpoints": outcome.checkpoints, "left_out": outcome.left_out, "error": None}


def _sentence(row: dict[str, Any]) -> str:
    if row["error"]:
        return f"{row['campaign']}: {row['error']}"
    noun = "checkpoint" if row["checkpoints"] == 1 else "checkpoints"
    left_out = "".join(f"; left out: {problem.file} ({problem.reason})" for problem in row["left_out"])
    return f"{row['campaign']}: {row['checkpoints']} {noun} in {row['folder']}{left_out}"
