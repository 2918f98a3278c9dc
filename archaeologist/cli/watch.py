"""``watch``: announces the checkpoints that appear in a folder, for trainers that cannot."""

import asyncio
from pathlib import Path
from typing import Annotated, Final

import typer

from archaeologist.cli.options import Config, NatsUrl, Root, read_settings

A_DAY: Final = 86_400


def watch(  # noqa: PLR0917 -- the options of the command
    folder: Annotated[Path, typer.Argument(help="Where the trainer saves; it need not be there yet.", metavar="DIR")],
    hero: Annotated[str | None, typer.Option("--hero", help="Default: from DIR, campaigns/HERO/CAMPAIGN/….")] = None,
    campaign: Annotated[str | None, typer.Option("--campaign", help="Default: as with --hero.")] = None,
    pattern: Annotated[
        str, typer.Option("--pattern", help="Names of checkpoints, folders or weight files.", metavar="GLOB")
    ] = "checkpoint-*",
    quiet: Annotated[
        float,
        typer.Option(
            "--quiet", min=0, max=A_DAY, help="Whole once unchanged so long, if nothing else tells.", metavar="SECONDS"
        ),
    ] = 5.0,
    poll: Annotated[
        float | None,
        typer.Option(
            "--poll", min=0.1, max=A_DAY, help="Look so often; default: inotify, where it works.", metavar="SECONDS"
        ),
    ] = None,
    only_new: Annotated[
        bool, typer.Option("--only-new", help="Pass over what is there when DIR is first watched.")
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="Announce what is there and end.")] = False,
    config: Config = None,
    root: Root = None,
    nats_url: NatsUrl = None,
) -> None:
    """Publishes checkpoint.saved once for each checkpoint that is whole; goes on where it was after a restart."""
    from archaeologist import tasks
    from archaeologist.checkpoints.header import is_unicode
    from archaeologist.cli.request import campaign_of
    from archaeologist.errors import UsageError
    from archaeologist.trainers.announcement import absolute
    from archaeologist.watcher.ledger import Ledger, LedgerFile
    from archaeologist.watcher.service import Watch, run, run_once
    from archaeologist.watcher.survey import Rules

    settings = read_settings(config=config, root=root, nats_url=nats_url, is_service=True)
    place = absolute(folder.expanduser())
    if not is_unicode(str(place)):
        msg = f"folder {str(place)!r} has a name that is no Unicode text, which no message can say; rename it"
        raise UsageError(msg)
    ours = campaign_of(hero, campaign, path=str(place / "checkpoint"), root=settings.root_path)
    rules = Rules(folder=place, pattern=pattern, quiet_seconds=quiet, allowed=settings.allowed_roots)
    asked = Watch(rules=rules, poll_seconds=poll, only_new=only_new)
    empty = Ledger(folder=str(place), hero_id=ours.hero_id, campaign_id=ours.campaign_id)
    file = LedgerFile(settings.state_path, empty)

    async def watched() -> None:
        stop = asyncio.Event()
        with tasks.stopped_by_signals(stop):
            await run(asked, file, empty, bus=settings.bus, stop=stop)

    if once:
        if not place.is_dir():
            msg = f"folder {str(place)!r} is not there; check the name, or leave out --once, which waits for it"
            raise UsageError(msg)
        found = asyncio.run(run_once(asked, file, empty, bus=settings.bus))
        typer.echo(f"{found.announced} announced" + (f", {found.not_whole} not whole" if found.not_whole else ""))
    else:
        asyncio.run(watched())
