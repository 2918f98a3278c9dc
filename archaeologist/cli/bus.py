"""``bus ensure``: makes the server's streams, buckets and consumers what they shall be."""

import asyncio
from typing import TYPE_CHECKING

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
        console.output().print(f"{change.action:10} {change.kind:9} {change.name}")


async def _ensure(settings: "Settings") -> "list[Change]":
    from archaeologist.bus import topology
    from archaeologist.bus.connection import connected

    async with connected(settings.bus, name="archaeologist bus ensure") as connection:
        return await topology.ensure(connection, settings)
