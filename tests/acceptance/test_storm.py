"""Two hundred messages, a quarter of them bad or repeated, server and daemon killed: nothing lost or doubled."""

import asyncio
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from archaeologist.artifacts.store import read_artifact
from archaeologist.bus.connection import Bus, connected
from archaeologist.bus.log import events
from archaeologist.bus.publisher import publish
from archaeologist.bus.topology import ensure
from archaeologist.daemon.books import Books
from archaeologist.settings import BusSettings, Settings
from contracts import subjects
from contracts.records import FINISHED, JobRecord, RequestRecord
from tests.fixtures.checkpoints import write_checkpoint
from tests.fixtures.kernels import share_kernels
from tests.fixtures.programs import UNMEASURED, Daemon
from tests.fixtures.servers import Server

HERO: Final = "dio"
CAMPAIGN: Final = "storm"
STEPS: Final = tuple(range(100, 1400, 100))
SEED: Final = 20260102

FAST: Final = {
    **UNMEASURED,  # 150 children, each with a file of its own
    "ARCHAEOLOGIST_JOBS__LEASE_SECONDS": "5",
    "ARCHAEOLOGIST_JOBS__HEARTBEAT_SECONDS": "1",
    "ARCHAEOLOGIST_JOBS__POLL_SECONDS": "0.5",
    "ARCHAEOLOGIST_JOBS__RETRY_DELAY_SECONDS": "1",
    "ARCHAEOLOGIST_JOBS__MAX_LOST_WORKERS": "10",
    "ARCHAEOLOGIST_JOBS__LAYER_STATS__MAX_RUNNING": "1",
    "ARCHAEOLOGIST_JOBS__LAYER_DRIFT__MAX_RUNNING": "2",
    "ARCHAEOLOGIST_POLICY__EVERY": "1",
    "ARCHAEOLOGIST_WORKER__THREADS": "1",
}


@dataclass
class Message:
    """One message of the storm."""

    subject: str
    body: bytes
    request_id: str
    is_valid: bool
    sending: str = ""
    """Its Nats-Msg-Id: a repeat is a message of its own."""


@dataclass
class Storm:
    """What is sent, in order."""

    messages: list[Message] = field(default_factory=list)

    @classmethod
    def brewed(cls, root: Path) -> "Storm":
        """150 valid distinct requests, 25 repeats of some of them, 25 bad ones, shuffled but for the repeats."""
        chance = random.Random(SEED)
        valid = [_saved(root, step) for step in STEPS[:12]]
        pairs = [(base, target) for base in STEPS for target in STEPS if base != target]
        valid += [_drift(base, target) for base, target in chance.sample(pairs, 138)]
        messages = valid + [_bad(number) for number in range(25)]
        chance.shuffle(messages)
        for number, original in enumerate(chance.sample(valid, 25)):
            where = chance.randrange(messages.index(original) + 1, len(messages) + 1)
            # Half of the repeats come under the same request id, half as somebody else's request for the same.
            again = original.request_id if number % 2 else f"again-{number}"
            body = {**json.loads(original.body), "request_id": again}
            if number % 2:
                body = json.loads(original.body)
            messages.insert(
                where,
                Message(original.subject, json.dumps(body).encode(), again, is_valid=True, sending=f"repeat-{number}"),
            )
        return cls(messages)


def _saved(root: Path, step: int) -> Message:
    path = root / "campaigns" / HERO / CAMPAIGN / "checkpoints" / f"checkpoint-{step}"
    request_id = f"saved-{step}"
    body = {
        "hero_id": HERO,
        "campaign_id": CAMPAIGN,
        "checkpoint_path": str(path),
        "checkpoint_step": step,
        "request_id": request_id,
    }
    return Message(subjects.CHECKPOINT_SAVED, json.dumps(body).encode(), request_id, is_valid=True, sending=request_id)


def _drift(base: int, target: int) -> Message:
    request_id = f"drift-{base}-{target}"
    body = {
        "job_type": "layer_drift",
        "payload": {
            "hero_id": HERO,
            "campaign_id": CAMPAIGN,
            "base_checkpoint_step": base,
            "target_checkpoint_path": f"checkpoint-{target}",
            "request_id": request_id,
        },
    }
    return Message(
        subjects.ANALYSIS_REQUESTED, json.dumps(body).encode(), request_id, is_valid=True, sending=request_id
    )


def _bad(number: int) -> Message:
    request_id = f"bad-{number}"
    known = {"hero_id": HERO, "campaign_id": CAMPAIGN, "request_id": request_id}
    bodies: list[Any] = [
        {**known, "checkpoint_path": f"/etc/passwd-{number}"},
        {**known, "checkpoint_path": f"../../../../outside-{number}"},
        {**known, "checkpoint_step": 999_000 + number},
        {**known, "job_type": "layer_magic"},
        {"hero_id": "a/b", "campaign_id": CAMPAIGN, "checkpoint_step": 100, "request_id": request_id},
    ]
    body = json.dumps(bodies[number % 5]).encode()
    return Message(subjects.ANALYSIS_REQUESTED, body, request_id, is_valid=False, sending=request_id)


@pytest.mark.timeout(1080)
async def test_two_hundred_messages_survive_three_server_kills_and_two_daemon_kills(
    tmp_path: Path, kernels: Path
) -> None:
    root = tmp_path / "root"
    share_kernels(root)
    for step in STEPS:
        folder = root / "campaigns" / HERO / CAMPAIGN / "checkpoints" / f"checkpoint-{step}"
        write_checkpoint(folder, seed=step)
    storm = Storm.brewed(root)
    assert len(storm.messages) == 200

    async with Server(tmp_path / "nats") as server:
        settings = Settings(root=str(root), bus=BusSettings(url=server.url))
        async with Daemon(root=root, url=server.url, environment=FAST) as daemon:
            await _send(storm, server, daemon, settings)
            async with connected(settings.bus, name="checker", wait=True) as bus:
                records = await _until_all_ended(bus, storm, daemon)
                await _check(bus, storm, records, root)


async def _send(storm: Storm, server: Server, daemon: Daemon, settings: Settings) -> None:
    """Publishes everything; kills the server after messages 40, 100 and 160, the daemon after 70 and 130."""
    async with connected(settings.bus, name="storm", wait=True) as bus:
        await ensure(bus, settings)
        for number, message in enumerate(storm.messages):
            if number in {40, 100, 160}:
                await server.kill()
                await server.start()
            if number in {70, 130}:
                await daemon.kill()
                await daemon.start()
            await publish(bus, message.subject, message.body, message_id=message.sending)


async def _until_all_ended(bus: Bus, storm: Storm, daemon: Daemon) -> dict[str, tuple[RequestRecord, JobRecord | None]]:
    """What became of each request, once nothing is pending any more."""
    memory = Books.on(bus)
    wanted = {message.request_id for message in storm.messages}
    async with asyncio.timeout(900):
        while True:
            assert daemon.is_running, daemon.log()[-2000:]
            requests = {key: request for key, request in (await memory.requests.all()).items() if key in wanted}
            jobs = await memory.jobs.all()
            if len(requests) == len(wanted) and all(
                record.state in FINISHED and record.event_sequence is not None for record in jobs.values()
            ):
                return {key: (request, jobs.get(request.job_key or "")) for key, request in requests.items()}
            await asyncio.sleep(1)


async def _check(
    bus: Bus, storm: Storm, records: dict[str, tuple[RequestRecord, JobRecord | None]], root: Path
) -> None:
    log = [logged.event async for logged in events(bus, follow=False)]
    terminal = [event for event in log if event.type in {subjects.ANALYSIS_COMPLETED, subjects.ANALYSIS_FAILED}]
    completed = Counter(event.data["job_key"] for event in terminal if event.type == subjects.ANALYSIS_COMPLETED)

    keys = set()
    for message in (message for message in storm.messages if message.is_valid):
        request, job = records[message.request_id]
        assert request.state == "accepted", f"{message.request_id}: {request}"
        assert job is not None
        assert job.state == "done", f"{message.request_id}: {job.error}"
        assert completed[job.job.job_key] == 1
        keys.add(job.job.job_key)
    assert len(keys) == 150
    assert set(completed) == keys, "no completed event without its request"

    for message in (message for message in storm.messages if not message.is_valid):
        failures = [
            event
            for event in terminal
            if event.type == subjects.ANALYSIS_FAILED and event.data["job_id"] == message.request_id
        ]
        assert len(failures) == 1, f"{message.request_id}: {failures}"
    assert len(terminal) == 150 + 25

    analysis = root / "campaigns" / HERO / CAMPAIGN / "analysis"
    found = Counter(read_artifact(path).job_key for path in _files(analysis, "layer_*/*.json"))
    assert found == Counter(dict.fromkeys(keys, 1)), "each job has exactly one artifact"
    assert _files(root, "**/*.tmp") == []
    stream = await bus.jetstream.stream_info(subjects.JOBS)
    assert stream.state.messages == 0
    assert msgspec.json.encode(log), "the whole log is JSON again"


def _files(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern))
