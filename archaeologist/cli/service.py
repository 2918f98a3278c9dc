"""``daemon`` and ``up``: the programs that stay."""

import asyncio
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from archaeologist.cli.options import Config, NatsUrl, Root, read_settings

if TYPE_CHECKING:
    from archaeologist.bus.server import EmbeddedServer
    from archaeologist.settings import Settings

DEFAULT_PORT: Final = 4222
EVERYWHERE: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 -- compared, not bound


def daemon(config: Config = None, root: Root = None, nats_url: NatsUrl = None) -> None:
    """Serves the bus: takes requests, runs analyses, publishes what happened. Waits for a bus that is down."""
    from archaeologist.daemon import service

    settings = read_settings(config=config, root=root, nats_url=nats_url, is_service=True)
    asyncio.run(service.run(settings))


def up(
    port: Annotated[int | None, typer.Option("--port", min=1, max=65535, help="Default: 4222 if it is free.")] = None,
    listen: Annotated[
        str, typer.Option("--listen", help="Address for a trainer elsewhere; a token is made.", metavar="ADDRESS")
    ] = "127.0.0.1",
    config: Config = None,
    root: Root = None,
) -> None:
    """Runs everything on this machine: a nats-server and the daemon. Ctrl-C ends both."""
    settings = read_settings(config=config, root=root, is_service=True)
    asyncio.run(_up(settings, port=port, listen=listen))


async def _up(settings: "Settings", *, port: int | None, listen: str) -> None:
    from msgspec.structs import replace

    from archaeologist.bus.connection import connected
    from archaeologist.bus.server import EmbeddedServer
    from archaeologist.bus.topology import ensure
    from archaeologist.settings import BusSettings

    store = settings.state_path / "nats"
    server = await EmbeddedServer.start(store, listen=listen, port=port)
    try:
        ours = replace(settings, bus=BusSettings(url=server.url))
        async with connected(ours.bus, name="archaeologist up") as bus:
            await ensure(bus, ours)
        typer.echo(banner(root=ours.root_path, url=server.url, trainer_url=server.url_at(outer_host(listen))))
        if port is None and server.port != DEFAULT_PORT:
            typer.echo(f"port {DEFAULT_PORT} was taken when this store was first used; the server keeps {server.port}")
        await _serve(ours, server, store)
    finally:
        await server.stop()


async def _serve(settings: "Settings", server: "EmbeddedServer", store: Path) -> None:
    """The daemon, until it is told to stop or its server dies."""
    from archaeologist import tasks
    from archaeologist.daemon import service
    from archaeologist.errors import BusUnavailable

    stop = asyncio.Event()
    server_ends = asyncio.create_task(server.wait())
    server_ends.add_done_callback(lambda _: stop.set())
    try:
        await service.run(settings, stop=stop)
    finally:
        is_dead = server_ends.done()
        await tasks.end(server_ends)
    if is_dead:
        msg = f"the embedded nats-server ended by itself; its log is {str(store / 'server.log')!r}, start `up` again"
        raise BusUnavailable(msg)


def banner(*, root: Path, url: str, trainer_url: str) -> str:
    """What a person needs to know to use what runs now."""
    option = "" if url == f"nats://127.0.0.1:{DEFAULT_PORT}" else f" --nats-url {url}"
    return "\n".join(
        (
            f"bus       {url}",
            f"root      {root}",
            f"trainer   export ARCHAEOLOGIST_NATS_URL={trainer_url}",
            "          trainer.add_callback(ArchaeologistCallback(hero_id=…, campaign_id=…))",
            f"ask       archaeologist request --hero HERO --campaign CAMPAIGN --step STEP --wait{option}",
            f"read      archaeologist log --follow{option}",
            "stop      Ctrl-C",
        )
    )


def outer_host(listen: str) -> str:
    """This machine's name for a trainer elsewhere."""
    return socket.gethostname() if listen in EVERYWHERE else listen
