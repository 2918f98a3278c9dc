"""``archaeologist demo``: the main job on real input, on this machine, in about three minutes."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


def demo(
    root: Annotated[
        Path, typer.Option("--root", help="Folder for everything that the demo writes; it is kept.", file_okay=False)
    ] = Path("demo-output"),
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the server and the daemon running at the end, until Ctrl-C.")
    ] = False,
    steps: Annotated[int, typer.Option("--steps", help="Training steps.", min=6)] = 1600,
    save_every: Annotated[
        int, typer.Option("--save-every", help="Steps from one checkpoint to the next.", min=1)
    ] = 200,
) -> None:
    """Train a tiny Qwen3 on two skills, analyse each checkpoint as it is saved, and show what changed.

    Starts a nats-server and the daemon, and stops them at the end. Exit code 0: at least six checkpoints were
    analysed, five of them with drift, with real skill scores.
    """
    import asyncio

    from archaeologist.cli.console import output
    from archaeologist.demo.orchestration import Plan, check_installation, new_campaign, run
    from archaeologist.demo.processes import DemoFailed

    check_installation()
    plan = Plan(
        root=root.expanduser().resolve(),
        campaign_id=new_campaign(datetime.now(UTC)),
        steps=steps,
        save_every=save_every,
        keep=keep,
    )
    try:
        asyncio.run(run(plan, output()))
    except DemoFailed as error:
        # Said here, because the end of a log has several lines.
        typer.echo(f"error: {error.code}: {error}", err=True)
        raise typer.Exit(EXIT_FAILED) from error
    except KeyboardInterrupt:
        typer.echo("stopped; everything that was started has ended", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
