"""``archive``: older artifacts moved to the WARM root; no bus needed."""

from typing import TYPE_CHECKING, Annotated

import typer

from archaeologist.cli.campaigns import asked_for
from archaeologist.cli.options import AsJson, Config, Root, read_settings

if TYPE_CHECKING:
    from archaeologist.artifacts.archive import Report


def archive(
    campaign: Annotated[str | None, typer.Argument(help="Which one.", metavar="HERO/CAMPAIGN")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every campaign under the root that has artifacts.")] = False,
    older_than: Annotated[
        float | None,
        typer.Option("--older-than", min=0, max=36_500, help="Else archive.after_days.", metavar="DAYS"),
    ] = None,
    is_trial: Annotated[bool, typer.Option("--dry-run", help="Say what would move; change nothing.")] = False,
    root: Root = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Moves older artifacts, compressed, to archive.warm_root; they are read from there as before."""
    from msgspec.structs import asdict

    from archaeologist.artifacts.archive import archive as move
    from archaeologist.artifacts.archive import rule_of
    from archaeologist.cli import console
    from archaeologist.errors import PermanentError

    settings = read_settings(config=config, root=root)
    folders = asked_for(campaign, every=every, root=settings.root_path)
    rule = rule_of(settings, after_days=older_than, is_trial=is_trial)
    reports = [move(folder, rule) for folder in folders]
    if as_json:
        console.print_json([{**asdict(report), "dry_run": is_trial} for report in reports])
    else:
        for report in reports:
            console.print_text(_sentence(report, is_trial=is_trial))
    if failed := sum(report.error is not None for report in reports):
        msg = f"{failed} of {len(reports)} campaigns not archived to the end; the lines above say why"
        raise PermanentError(msg)


def _sentence(report: "Report", *, is_trial: bool) -> str:
    noun = "artifact" if report.archived == 1 else "artifacts"
    size = f"{report.bytes_before / 1e6:.1f} MB"
    left_out = "".join(f"; left out: {one.file} ({one.reason})" for one in report.left_out)
    error = f"; {report.error}" if report.error else ""
    if is_trial:
        return f"{report.campaign}: {report.archived} {noun} would move ({size}){left_out}{error}"
    moved = f"{report.archived} {noun} moved ({size}, now {report.bytes_after / 1e6:.1f} MB)"
    return f"{report.campaign}: {moved}{left_out}{error}"
