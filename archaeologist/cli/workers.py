"""``workers``: every worker on the bus, from any machine."""

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from archaeologist.cli.options import AsJson, Config, NatsUrl, read_settings

if TYPE_CHECKING:
    from rich.table import Table

    from archaeologist.settings import Settings
    from contracts.http import WorkerEntry
    from contracts.records import WorkerGpu, WorkerJob

COLUMNS: Final = ("worker", "state", "host", "roles", "running", "free", "job", "gpu", "version", "heard")
GIBIBYTE: Final = 1 << 30
MINUTE: Final = 60


def workers(as_json: AsJson = False, config: Config = None, nats_url: NatsUrl = None) -> None:
    """Lists the workers: what each is for, does and could take besides, and whether it is still there."""
    from archaeologist.cli import console

    found = asyncio.run(_all(read_settings(config=config, nats_url=nats_url)))
    if as_json:
        console.print_json(found)
        return
    if not found:
        console.notices().print("no worker has been heard of for a day; `archaeologist daemon` is one")
        return
    console.output().print(table(found))
    for worker in found:
        if worker.note and worker.condition != "silent":
            console.notices().print(console.printable(f"{worker.name} {worker.note}"))


def table(found: Iterable["WorkerEntry"]) -> "Table":
    """One row a worker, and one more for each further job that it runs."""
    from rich.table import Table

    from archaeologist.cli.console import printable, word

    rows = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in COLUMNS:
        rows.add_column(column, no_wrap=column in {"worker", "state"}, overflow="fold")
    for worker in found:
        jobs = [progress(job) for job in worker.jobs] or [""]
        rows.add_row(
            printable(worker.name),
            word(worker.condition),
            printable(worker.host),
            printable(", ".join(worker.roles)),
            _counts({name: slots.running for name, slots in worker.slots.items()}),
            _counts({name: slots.free for name, slots in worker.slots.items()}),
            printable(jobs[0]),
            printable(", ".join(map(gpu, worker.gpus))),
            printable(worker.version),
            age(worker.age_sec),
        )
        for job in jobs[1:]:
            rows.add_row(*[""] * COLUMNS.index("job"), printable(job))
    return rows


def progress(job: "WorkerJob") -> str:
    """A job and how far it is, in one line."""
    share = f", {job.bytes_read / job.bytes_total:.0%}" if job.bytes_total else ""
    stage = f" ({job.stage}{share})" if job.stage else ""
    return f"{job.hero_id}/{job.campaign_id} step {job.checkpoint_step} {job.job_type}{stage}"


def gpu(found: "WorkerGpu") -> str:
    """A GPU's name, with its memory where it is known."""
    if found.memory_bytes is None:
        return found.name
    free = "" if found.free_bytes is None else f"{found.free_bytes / GIBIBYTE:.1f} of "
    return f"{found.name}, {free}{found.memory_bytes / GIBIBYTE:.1f} GiB{' free' if free else ''}"


def age(seconds: float) -> str:
    """How long ago, in the largest unit that says enough."""
    if seconds < 2 * MINUTE:
        return f"{seconds:.0f} s ago"
    if seconds < 2 * MINUTE * MINUTE:
        return f"{seconds / MINUTE:.0f} min ago"
    return f"{seconds / MINUTE / MINUTE:.0f} h ago"


def _counts(by_type: dict[str, int]) -> str:
    """Job types with their counts; those with none are left out."""
    return ", ".join(f"{count} {name}" for name, count in by_type.items() if count) or "0"


async def _all(settings: "Settings") -> "list[WorkerEntry]":
    from archaeologist.bus.connection import connected
    from archaeologist.daemon import control
    from archaeologist.daemon.workers import seen

    async with connected(settings.bus, name="archaeologist workers") as bus:
        records = await control.workers(bus)
    now = datetime.now(UTC)
    return [seen(record, now=now) for record in records]
