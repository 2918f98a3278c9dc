"""``daemon``, ``web`` and ``up``: the programs that stay."""

import asyncio
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from archaeologist.cli.options import Config, NatsUrl, Root, read_settings

if TYPE_CHECKING:
    from archaeologist.bus.server import EmbeddedServer
    from archaeologist.settings import Settings

DEFAULT_PORT: Final = 4222
EVERYWHERE: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 -- compared, not bound


def daemon(config: Config = None, root: Root = None, nats_url: NatsUrl = None) -> None:
    """Serves the bus: takes requests, runs analyses, publishes what happened. Waits for a bus that is down."""
    settings = read_settings(config=config, root=root, nats_url=nats_url, is_service=True, is_worker=True)
    asyncio.run(_daemon(settings))


def web(
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on.", metavar="ADDRESS")] = None,
    port: Annotated[int | None, typer.Option("--port", min=0, max=65535, help="0: any that is free.")] = None,
    config: Config = None,
    root: Root = None,
    nats_url: NatsUrl = None,
) -> None:
    """Serves the HTTP API: artifacts and summaries under the root, jobs and live events from the bus."""
    settings = read_settings(config=config, root=root, nats_url=nats_url, is_service=True)
    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    asyncio.run(_web(settings, **given))


def up(
    port: Annotated[
        int | None, typer.Option("--port", min=1, max=65535, help="Default: last time's, else 4222, else a free one.")
    ] = None,
    listen: Annotated[
        str, typer.Option("--listen", help="Address for a trainer elsewhere; a token is made.", metavar="ADDRESS")
    ] = "127.0.0.1",
    web_port: Annotated[
        int | None, typer.Option("--web-port", min=0, max=65535, help="Default: 8767 if it is free.")
    ] = None,
    config: Config = None,
    root: Root = None,
) -> None:
    """Runs everything on this machine: a nats-server, the daemon and the HTTP API. Ctrl-C ends all."""
    settings = read_settings(config=config, root=root, is_service=True, is_worker=True)
    asyncio.run(_up(settings, port=port, listen=listen, web_port=web_port))


async def _daemon(settings: "Settings") -> None:
    from archaeologist.daemon import service
    from archaeologist.daemon.pulse import Pulse

    if not settings.metrics.port:
        await service.run(settings)
        return
    from archaeologist.web import telemetry

    listening, pulse, stop = telemetry.listener(settings), Pulse(), asyncio.Event()
    serving = asyncio.create_task(telemetry.serve(settings, listening, pulse, stop=stop))
    serving.add_done_callback(lambda _: stop.set())
    try:
        await service.run(settings, stop=stop, pulse=pulse)
    finally:
        stop.set()
        await asyncio.wait({serving})
    serving.result()


async def _web(settings: "Settings", **given: Any) -> None:
    from msgspec.structs import replace

    from archaeologist import tasks
    from archaeologist.watchdog import notify, watch
    from archaeologist.web import service

    ours = replace(settings, web=replace(settings.web, **given))
    listener, token = service.listen(ours.web), service.token_for(ours)
    typer.echo(web_lines(service.address_of(listener), token=token))
    stop = asyncio.Event()
    with tasks.stopped_by_signals(stop):
        # The socket listens already, so whoever waits for the service is answered.
        notify("READY=1")
        watching = asyncio.create_task(watch(asyncio.get_running_loop().time, stop))
        await service.serve(ours, listener, token=token, stop=stop)
        await watching


async def _up(settings: "Settings", *, port: int | None, listen: str, web_port: int | None) -> None:
    from msgspec.structs import replace

    from archaeologist.bus.connection import connected
    from archaeologist.bus.server import EmbeddedServer
    from archaeologist.bus.topology import ensure
    from archaeologist.settings import BusSettings
    from archaeologist.web.service import address_of, token_for
    from archaeologist.web.service import listen as listen_for_web

    store = settings.state_path / "nats"
    server = await EmbeddedServer.start(store, listen=listen, port=port)
    try:
        ours = replace(
            settings,
            bus=BusSettings(url=server.url),
            web=replace(settings.web, port=settings.web.port if web_port is None else web_port),
        )
        async with connected(ours.bus, name="archaeologist up") as bus:
            await ensure(bus, ours)
        typer.echo(banner(root=ours.root_path, url=server.url, trainer_url=server.url_at(outer_host(listen))))
        if port is None and (said := port_line(server.port, earlier=server.earlier_port)):
            typer.echo(said)
        listener = listen_for_web(ours.web, is_port_free_to_choose=web_port is None, setting="--web-port or web.port")
        token = token_for(ours)
        typer.echo(web_lines(address_of(listener), token=token))
        await _serve(ours, server, store, web=(listener, token))
    finally:
        await server.stop()


async def _serve(
    settings: "Settings", server: "EmbeddedServer", store: Path, *, web: tuple[socket.socket, str | None]
) -> None:
    """The daemon and the API, until they are told to stop or one of them or the server dies."""
    from archaeologist import tasks
    from archaeologist.daemon import service
    from archaeologist.errors import BusUnavailable
    from archaeologist.web.service import serve

    stop = asyncio.Event()
    server_ends = asyncio.create_task(server.wait())
    server_ends.add_done_callback(lambda _: stop.set())
    listener, token = web
    serving = asyncio.create_task(serve(settings, listener, token=token, stop=stop))
    try:
        await service.run(settings, stop=stop)
    finally:
        is_dead = server_ends.done()
        stop.set()
        await asyncio.wait({serving})
        await tasks.end(server_ends)
    if is_dead:
        msg = f"the embedded nats-server ended by itself; its log is {str(store / 'server.log')!r}, start `up` again"
        raise BusUnavailable(msg)
    serving.result()


def web_lines(address: str, *, token: str | None) -> str:
    """Where the API answers, and what a request that changes something must carry."""
    lines = [f"web       {address}"]
    if token:
        lines.append(f"token     Authorization: Bearer {token}")
    return "\n".join(lines)


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


def port_line(port: int, *, earlier: int | None) -> str | None:
    """Why a server whose port nobody chose has this one; None where it has the one that everybody expects.

    Args:
        port: That it has, and keeps from now on.
        earlier: That its store had before.
    """
    if port == DEFAULT_PORT and earlier in {None, port}:
        return None
    if port == earlier:
        return f"the server keeps port {port}, which this store had before; --port {DEFAULT_PORT} changes it"
    if earlier is None:
        return f"port {DEFAULT_PORT} is taken; the server has {port} and keeps it"
    return f"port {earlier}, which this store had before, is taken; the server has {port} and keeps it"


def outer_host(listen: str) -> str:
    """This machine's name for a trainer elsewhere."""
    return socket.gethostname() if listen in EVERYWHERE else listen
