"""A server, a campaign and any number of daemons for one test."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from msgspec.structs import replace

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.bus.connection import Bus, connected
from archaeologist.bus.log import events
from archaeologist.bus.publisher import publish
from archaeologist.bus.topology import ensure
from archaeologist.daemon import service
from archaeologist.daemon.admission import Admission
from archaeologist.daemon.books import Books
from archaeologist.daemon.child import COMMAND
from archaeologist.settings import (
    BusSettings,
    JobsSettings,
    PolicySettings,
    ReadinessSettings,
    Settings,
    WorkerSettings,
)
from contracts.messages import AnalysisRequested, Event, RequestId
from contracts.records import JobRecord, RequestRecord
from contracts.ulid import new_ulid
from tests.fixtures import child
from tests.fixtures.checkpoints import write_checkpoint
from tests.fixtures.kernels import share_kernels
from tests.fixtures.servers import Server

HERO: Final = "dio"
CAMPAIGN: Final = "c1"
PATIENCE_SECONDS: Final = 60.0

child_command = COMMAND
"""What the daemons of a test start for a job; ``with_quick_children`` changes it."""

SOON: Final = ReadinessSettings(quiet_seconds=0.0, idle_seconds=0.5, wait_seconds=30.0, poll_seconds=0.1)

FAST: Final = JobsSettings(
    lease_seconds=2.0, heartbeat_seconds=0.5, poll_seconds=0.2, grace_seconds=0.5, retry_delay_seconds=0.5
)


@dataclass
class House:
    """What a test needs at hand."""

    server: Server
    settings: Settings
    bus: Bus
    books: Books
    folder: CampaignFolder

    def save(self, step: int, *, seed: int | None = None) -> Path:
        """A checkpoint, as a trainer leaves it."""
        return write_checkpoint(self.folder.checkpoints / f"checkpoint-{step}", seed=step if seed is None else seed)

    async def say(self, subject: str, **fields: Any) -> None:
        """Publishes a message of this campaign."""
        body = {"hero_id": HERO, "campaign_id": CAMPAIGN, **fields}
        await self.say_raw(subject, json.dumps(body).encode())

    async def say_raw(self, subject: str, body: bytes) -> None:
        """Publishes anything."""
        await publish(self.bus, subject, body, message_id=new_ulid())

    async def request(self, request_id: str, **fields: Any) -> None:
        """Publishes ``analysis.requested``."""
        await self.say("analysis.requested", request_id=request_id, **fields)

    @contextlib.asynccontextmanager
    async def daemon(
        self, *, name: str = "box", roles: tuple[str, ...] = ("analytics",), root: Path | None = None, **jobs: Any
    ) -> AsyncIterator[asyncio.Event]:
        """A daemon for the length of a block; the event stops it early."""
        settings = replace(
            self.settings,
            root=str(root) if root else self.settings.root,
            worker=WorkerSettings(name=name, roles=roles, threads=1, heartbeat_seconds=0.5),
            jobs=replace(self.settings.jobs, **jobs),
        )
        stop = asyncio.Event()
        task = asyncio.create_task(service.run(settings, stop=stop, command=child_command))
        try:
            yield stop
        finally:
            stop.set()
            await asyncio.wait_for(task, timeout=PATIENCE_SECONDS)

    async def log(self) -> list[Event]:
        """Every event so far, progress left out."""
        found = [logged.event async for logged in events(self.bus, follow=False)]
        return [event for event in found if event.type != "analysis.progress"]

    async def until_event(self, matches: Callable[[Event], bool]) -> Event:
        """The first event that matches, past or to come."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            async for logged in events(self.bus, follow=True):
                if matches(logged.event):
                    return logged.event
        raise AssertionError

    async def until_ended(self, request_id: str) -> tuple[RequestRecord, JobRecord | None]:
        """A request's record, and its job's once that is over and announced."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                request = await self.books.requests.get(request_id)
                key = request.value.job_key if request else None
                job = await self.books.jobs.get(key) if key else None
                is_settled = request is not None and request.value.state != "received"
                if request is not None and is_settled and (job is None or job.value.event_sequence is not None):
                    return request.value, job.value if job else None
                await asyncio.sleep(0.05)

    async def until_queue_is_empty(self) -> None:
        """Waits until every message of the queue is acknowledged."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await self.books.queue.subjects():  # noqa: ASYNC110 -- another process's stream
                await asyncio.sleep(0.05)


async def queue_job(admission: Admission, request: AnalysisRequested, *, request_id: str) -> JobRecord:
    """The record of a request's job, with its message on the queue, as intake would leave it."""
    job = await admission.decide(request, request_id=RequestId(request_id), received={})
    return await admission.admit(job, request_id=RequestId(request_id), force=request.force)


def of(request_id: str, kind: str) -> Callable[[Event], bool]:
    """Matches a request's event of a type."""
    return lambda event: event.type == f"analysis.{kind}" and event.data["job_id"] == request_id


@contextlib.asynccontextmanager
async def opened(tmp_path: Path) -> AsyncIterator[House]:
    """A house with a running server and nobody in it."""
    root = (tmp_path / "root").resolve()
    share_kernels(root)
    async with Server(tmp_path / "nats") as server:
        settings = Settings(
            root=str(root), bus=BusSettings(url=server.url), policy=PolicySettings(every=1), jobs=FAST, readiness=SOON
        )
        async with connected(settings.bus, name="test") as bus:
            await ensure(bus, settings)
            folder = CampaignFolder.of(root, HERO, CAMPAIGN)
            yield House(server=server, settings=settings, bus=bus, books=Books.on(bus), folder=folder)


def with_quick_children(
    monkeypatch: pytest.MonkeyPatch, *, seconds: float = 0.0, fate: str = "succeed", alerts: int = 0
) -> None:
    """Daemons of this test start ``tests.fixtures.child`` instead of the real child."""
    monkeypatch.setattr(sys.modules[__name__], "child_command", child.COMMAND)
    monkeypatch.setenv("CHILD_SECONDS", str(seconds))
    monkeypatch.setenv("CHILD_FATE", fate)
    monkeypatch.setenv("CHILD_ALERTS", str(alerts))
