"""``bus ensure`` makes the server's streams, buckets and consumers what they shall be; ``bus keys`` makes the keys."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from archaeologist.cli.options import AsJson, Config, NatsUrl, read_settings

if TYPE_CHECKING:
    from archaeologist.bus.topology import Change
    from archaeologist.settings import Settings

app = typer.Typer(help="The bus itself.")


@app.callback()
def bus() -> None:
    """The bus itself."""


@app.command()
def ensure(as_json: AsJson = False, config: Config = None, nats_url: NatsUrl = None) -> None:
    """Creates or updates every stream, bucket and durable consumer; says what it did to each."""
    from archaeologist.cli import console

    changes = asyncio.run(_ensure(read_settings(config=config, nats_url=nats_url)))
    if as_json:
        console.print_json([change._asdict() for change in changes])
        return
    for change in changes:
        console.print_text(f"{change.action:10} {change.kind:9} {change.name}")


@app.command()
def keys(
    folder: Annotated[Path, typer.Argument(help="Where they lie; made if it is missing.", metavar="FOLDER")],
    as_json: AsJson = False,
) -> None:
    """Makes a key for each role of deploy/nats-server.conf, and the server's file of their public halves."""
    from archaeologist.bus.keys import SERVER_FILE, ensure_keys
    from archaeologist.cli import console

    made = ensure_keys(folder)
    if as_json:
        console.print_json([{**key._asdict(), "path": str(key.path)} for key in made])
        return
    rows = [*((key.action, key.role, key.path) for key in made), ("written", "the server", folder / SERVER_FILE)]
    for action, role, path in rows:
        console.print_text(f"{action:10} {role:11} {path}")


async def _ensure(settings: "Settings") -> "list[Change]":
    from archaeologist.bus import topology
    from archaeologist.bus.connection import connected

    async with connected(settings.bus, name="archaeologist bus ensure") as connection:
        return await topology.ensure(connection, settings)
