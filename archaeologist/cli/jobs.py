"""``jobs list``, ``jobs show``, ``jobs cancel``, ``jobs dead``, ``jobs requeue``."""

import asyncio
import getpass
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from archaeologist.cli.options import AsJson, Config, NatsUrl, Root, read_settings

if TYPE_CHECKING:
    from rich.table import Table

    from archaeologist.settings import Settings
    from contracts.records import DeadLetter, JobRecord, RequestRecord, Requeued

app = typer.Typer(help="The jobs: what waits, runs and has ended.", no_args_is_help=False)

Identifier = Annotated[str, typer.Argument(help="A job's key or a request's id.", metavar="ID")]


@app.command("list")
def list_jobs(
    state: Annotated[str | None, typer.Option("--state", help="queued, running, done, failed or cancelled.")] = None,
    campaign: Annotated[str | None, typer.Option("--campaign", help="CAMPAIGN or HERO/CAMPAIGN.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Only the newest.")] = 50,
    as_json: AsJson = False,
    config: Config = None,
    nats_url: NatsUrl = None,
) -> None:
    """Lists jobs, the newest last."""
    from archaeologist.cli import console
    from archaeologist.cli.request import one_of
    from contracts.records import JobState

    one_of("--state", state, get_args(JobState))
    records = asyncio.run(_all(read_settings(config=config, nats_url=nats_url)))
    chosen = newest(records, state=state, campaign=campaign, limit=limit)
    if as_json:
        console.print_json(chosen)
    elif chosen:
        console.output().print(table(chosen))
    else:
        console.notices().print("no such job")


@app.command()
def show(
    identifier: Identifier,
    as_json: AsJson = False,
    config: Config = None,
    root: Root = None,
    nats_url: NatsUrl = None,
) -> None:
    """Shows all that is known of one job; on its worker's machine also where its process's last words lie."""
    from archaeologist.cli import console
    from archaeologist.daemon.control import unknown
    from archaeologist.errors import JobUnknown

    settings = read_settings(config=config, root=root, nats_url=nats_url)
    request, job = asyncio.run(_find(settings, identifier))
    if request is None and job is None:
        raise JobUnknown(unknown(identifier, listing="`archaeologist jobs list`"))
    if as_json:
        console.print_json({"request": request, "job": job})
        return
    for name, value in (*_request_facts(request), *_job_facts(job), *_printed(settings, job)):
        console.print_text(f"{name:16}{value}")


@app.command()
def cancel(identifier: Identifier, as_json: AsJson = False, config: Config = None, nats_url: NatsUrl = None) -> None:
    """Takes a job back: a waiting one at once, a running one by stopping it."""
    from archaeologist.cli import console

    record = asyncio.run(_cancel(read_settings(config=config, nats_url=nats_url), identifier))
    if as_json:
        console.print_json(record)
    else:
        console.print_text(cancellation(record))


Code = Annotated[str | None, typer.Option("--code", help="Only those with this error code.")]


@app.command()
def dead(
    code: Code = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Only the newest.")] = 50,
    as_json: AsJson = False,
    config: Config = None,
    nats_url: NatsUrl = None,
) -> None:
    """Lists the dead letters: messages that were refused and jobs that failed, the newest last."""
    from archaeologist.cli import console
    from archaeologist.cli.request import one_of
    from archaeologist.errors import known_codes

    one_of("--code", code, known_codes())
    found = asyncio.run(_letters(read_settings(config=config, nats_url=nats_url), code))[-limit:]
    if as_json:
        console.print_json(found)
    elif found:
        console.output().print(letter_table(found))
    else:
        console.notices().print("no dead letter")


@app.command()
def requeue(
    identifiers: Annotated[
        list[str] | None,
        typer.Argument(help="Sequences of dead letters, requests' ids or jobs' keys.", metavar="[ID]..."),
    ] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="Every dead letter.")] = False,
    code: Code = None,
    as_json: AsJson = False,
    config: Config = None,
    nats_url: NatsUrl = None,
) -> None:
    """Asks again for what failed: a failed job runs anew, a refused message is sent as it came. Twice is once."""
    from archaeologist.cli import console
    from archaeologist.cli.request import one_of
    from archaeologist.errors import UsageError, known_codes

    one_of("--code", code, known_codes())
    if bool(identifiers) == (every or code is not None):
        msg = (
            "name dead letters or jobs, or else give --all or --code CODE; `archaeologist jobs dead` lists the letters"
        )
        raise UsageError(msg)
    settings = read_settings(config=config, nats_url=nats_url)
    done = asyncio.run(_requeue(settings, tuple(identifiers or ()), code))
    if as_json:
        console.print_json(done)
        return
    for one in done:
        console.print_text(requeueing(one))
    if not done:
        console.notices().print("no dead letter")


def newest(records: Iterable["JobRecord"], *, state: str | None, campaign: str | None, limit: int) -> list["JobRecord"]:
    """The newest records of a state and a campaign, in the order in which they were queued."""
    chosen = [
        record
        for record in records
        if state in {None, record.state}
        and campaign in {None, record.job.campaign_id, f"{record.job.hero_id}/{record.job.campaign_id}"}
    ]
    return sorted(chosen, key=lambda record: (record.queued_at, record.job.job_key))[-limit:]


def table(records: Iterable["JobRecord"]) -> "Table":
    """One row a job."""
    from rich.table import Table

    from archaeologist.cli.console import printable, word

    rows = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("job", "state", "type", "campaign", "step", "against", "priority", "queued", "seconds", "result"):
        rows.add_column(column, no_wrap=column == "job", overflow="fold")
    for record in records:
        job = record.job
        rows.add_row(
            printable(job.job_key),
            word(record.state),
            job.job_type,
            printable(f"{job.hero_id}/{job.campaign_id}"),
            str(job.target.step),
            str(job.reference.step) if job.reference else "",
            job.priority,
            printable(record.queued_at[:19].replace("T", " ")),
            "" if record.duration_sec is None else f"{record.duration_sec:.1f}",
            printable(record.error.code if record.error else record.most_changed_layer or ""),
        )
    return rows


def letter_table(found: Iterable["DeadLetter"]) -> "Table":
    """One row a dead letter."""
    from rich.table import Table

    from archaeologist.cli.console import printable

    rows = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("letter", "at", "code", "from", "of", "reason"):
        rows.add_column(column, no_wrap=column == "letter", overflow="fold")
    for letter in found:
        cells = (letter.at[:19].replace("T", " "), letter.code, letter.subject, letter.owner, letter.reason)
        rows.add_row(str(letter.sequence), *map(printable, cells))
    return rows


def requeueing(one: "Requeued") -> str:
    """What was done for a dead letter or a failed job."""
    which = "job" if one.sequence is None else f"letter {one.sequence}"
    of = f"{which} ({one.code})" if one.code else which
    if one.action == "left_out":
        return f"{of}: left out, {one.reason}"
    before = " before" if one.action == "asked_before" else ""
    return f"{of}: asked for again{before} as request {one.request_id}"


def cancellation(record: "JobRecord") -> str:
    """What a cancellation came to."""
    key = record.job.job_key
    if record.state == "cancelled":
        return f"job {key} is cancelled"
    if record.state == "running":
        return f"job {key} is running; its worker was told to stop"
    return f"job {key} is {record.state} already; nothing to cancel"


def _request_facts(request: "RequestRecord | None") -> list[tuple[str, object]]:
    if request is None:
        return []
    facts = [("request", request.request_id), ("request state", request.state), ("reason", request.reason)]
    if request.error:
        facts.append(("error", f"{request.error.code}: {request.error.message}"))
    return [(name, value) for name, value in facts if value is not None]


def _job_facts(record: "JobRecord | None") -> list[tuple[str, object]]:
    if record is None:
        return []
    job = record.job
    facts: list[tuple[str, object]] = [
        ("job", job.job_key),
        ("state", record.state),
        ("type", job.job_type),
        ("campaign", f"{job.hero_id}/{job.campaign_id}"),
        ("checkpoint", f"{job.target.path} (step {job.target.step})"),
        ("against", f"{job.reference.path} (step {job.reference.step})" if job.reference else None),
        ("priority", job.priority),
        ("requests", ", ".join(record.request_ids)),
        ("queued", record.queued_at),
        ("started", record.started_at),
        ("finished", record.finished_at),
        ("worker", record.owner),
        ("attempts", record.attempt or None),
        ("lost workers", record.lost_workers or None),
        ("cancelled by", record.cancelled_by),
        ("seconds", record.duration_sec),
        ("most changed", record.most_changed_layer),
        ("artifact", record.artifact_path),
        ("error", f"{record.error.code}: {record.error.message}" if record.error else None),
        *(("note", note) for note in job.notes),
        *(("finding", finding) for finding in record.findings),
        *(("warning", warning) for warning in record.warnings),
        *(("alert", f"{alert.severity}: {alert.message}") for alert in record.alerts),
    ]
    return [(name, value) for name, value in facts if value is not None]


def _printed(settings: "Settings", record: "JobRecord | None") -> list[tuple[str, object]]:
    from archaeologist.daemon.outputs import output_path

    path = output_path(settings, record.job.job_key) if record else None
    return [("printed", path)] if path and path.is_file() else []


async def _all(settings: "Settings") -> list["JobRecord"]:
    from archaeologist.bus.connection import connected
    from archaeologist.daemon.books import Books
    from archaeologist.daemon.control import DEADLINE_SECONDS

    async with connected(settings.bus, name="archaeologist jobs") as bus:
        return list((await Books.on(bus, deadline_seconds=DEADLINE_SECONDS).jobs.all()).values())


async def _find(settings: "Settings", identifier: str) -> "tuple[RequestRecord | None, JobRecord | None]":
    from archaeologist.bus.connection import connected
    from archaeologist.daemon.control import find

    async with connected(settings.bus, name="archaeologist jobs") as bus:
        return await find(bus, identifier)


async def _letters(settings: "Settings", code: str | None) -> "list[DeadLetter]":
    from archaeologist.bus.connection import connected
    from archaeologist.bus.letters import letters

    async with connected(settings.bus, name="archaeologist jobs") as bus:
        return await letters(bus, code=code)


async def _requeue(settings: "Settings", identifiers: tuple[str, ...], code: str | None) -> "list[Requeued]":
    from archaeologist.bus.connection import connected
    from archaeologist.daemon.requeueing import requeue

    async with connected(settings.bus, name="archaeologist jobs") as bus:
        return await requeue(bus, identifiers, code=code)


async def _cancel(settings: "Settings", identifier: str) -> "JobRecord":
    from archaeologist.bus.connection import connected
    from archaeologist.daemon import control

    async with connected(settings.bus, name="archaeologist jobs") as bus:
        return await control.cancel(bus, identifier, by=_person())


def _person() -> str:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        name = "somebody"
    return f"{name}@{socket.gethostname()}"
