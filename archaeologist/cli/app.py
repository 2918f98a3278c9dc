"""The program: its commands, and what becomes of an error.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. An error is one line on standard error, ``error: code:
message``; a traceback is shown only with ``--debug``.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import typer

import archaeologist
from archaeologist.cli import (
    analyze,
    archive,
    bench,
    bus,
    demo,
    doctor,
    documents,
    export,
    jobs,
    log,
    report,
    request,
    restore,
    service,
    summarize,
    watch,
    workers,
)
from archaeologist.errors import ArchaeologistError, UsageError

FAILED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130


@dataclass
class Invocation:
    """What the whole program was asked for, beside the command."""

    is_debug: bool = False


app = typer.Typer(
    name="archaeologist",
    help="Tells what changed in a language model between two checkpoints.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(analyze.analyze)
app.command()(analyze.drift)
app.command()(request.request)
app.command()(watch.watch)
app.command()(log.log)
app.add_typer(jobs.app, name="jobs")
app.command()(workers.workers)
app.command()(summarize.summarize)
app.command()(archive.archive)
app.command()(report.report)
app.command()(export.export)
app.command()(restore.restore_block)
app.command()(service.up)
app.command()(service.daemon)
app.command()(service.web)
app.add_typer(bus.app, name="bus")
app.add_typer(documents.app, name="contracts")
app.command()(doctor.doctor)
app.command()(bench.bench)
app.command()(demo.demo)


@app.callback(invoke_without_command=True)
def program(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Tells what changed in a language model between two checkpoints."""
    context.obj.is_debug = debug
    if version:
        typer.echo(archaeologist.__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(USAGE)


def main() -> None:
    """Runs the program and ends the process."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """The exit code of the program with these arguments."""
    invocation = Invocation()
    try:
        # Not typer's standalone mode: it answers an error in several lines.
        code = app(list(arguments), obj=invocation, prog_name="archaeologist", standalone_mode=False)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has gone, `| head` for instance; what is left in the buffer has no place to go either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        if invocation.is_debug:
            traceback.print_exc()
        return _answer(error)
    return code if isinstance(code, int) else 0


def _answer(error: BaseException) -> int:
    cause = _first(error)
    if isinstance(cause, KeyboardInterrupt) or type(cause).__name__ == "Abort":
        return INTERRUPTED
    if isinstance(cause, ArchaeologistError):
        _complain(cause.code, str(cause))
        return USAGE if isinstance(cause, UsageError) else FAILED
    if format_message := getattr(cause, "format_message", None):
        # The errors of typer's parser. It may be click's own or one that typer carries; both have this method.
        _complain(UsageError.code, f"{format_message()} See `archaeologist --help`.")
        return USAGE
    _complain("internal_error", f"{type(cause).__name__}: {cause}; this is a defect, please report it with --debug")
    return FAILED


def _first(error: BaseException) -> BaseException:
    """The first error of a group: one dead task of a service ends all of them."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _complain(code: str, message: str) -> None:
    from archaeologist.cli.console import printable  # takes rich, and most commands end without a complaint

    sys.stderr.write(f"error: {code}: {printable(' '.join(message.split()))}\n")
