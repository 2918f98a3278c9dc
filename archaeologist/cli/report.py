"""``report``: a campaign as one HTML file for sharing; no bus needed."""

from pathlib import Path
from typing import Annotated

import typer

from archaeologist.cli.options import Config, Root, read_settings


def report(
    campaign: Annotated[str, typer.Argument(help="Which one.", metavar="HERO/CAMPAIGN")],
    output: Annotated[
        Path | None, typer.Option("--output", help="The file; else report-HERO-CAMPAIGN.html here.", metavar="FILE")
    ] = None,
    png: Annotated[
        bool, typer.Option("--png", help="An image beside it, where Chromium, Chrome or Edge is installed.")
    ] = False,
    root: Root = None,
    config: Config = None,
) -> None:
    """Writes a campaign's report: findings, strata, movers, skills and health in one HTML file."""
    from datetime import UTC, datetime

    from archaeologist.artifacts.output import whole_file
    from archaeologist.cli import console
    from archaeologist.cli.campaigns import named_campaign
    from archaeologist.errors import UsageError
    from archaeologist.report.browser import find_browser, screenshot
    from archaeologist.report.campaign import check_readable, read_campaign
    from archaeologist.report.page import rendered

    folder = named_campaign(campaign, root=read_settings(config=config, root=root).root_path)
    path = output or Path(f"report-{folder.hero_id}-{folder.campaign_id}.html")
    if path.is_dir():
        msg = f"--output {str(path)!r} is a folder; name a file, {str(path / 'report.html')!r} for instance"
        raise UsageError(msg)
    # Before the work, so that nobody waits for an answer that was clear.
    browser = find_browser() if png else None
    found = read_campaign(folder)
    check_readable(found)
    content = rendered(found, written=datetime.now(UTC)).encode()
    with whole_file(path) as temporary:
        temporary.write_bytes(content)
    for finding in found.findings:
        console.output().print(console.word(finding.severity), console.printable(finding.text), soft_wrap=True)
    console.notices().print(f"written: {path}")
    if browser is not None:
        image = path.with_suffix(".png")
        screenshot(path, image, browser=browser)
        console.notices().print(f"written: {image}")
