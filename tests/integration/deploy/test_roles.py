"""Each role of ``deploy/nats-server.conf`` does its work with our own programs, and nothing else."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final

import httpx
import nats
import pytest
from msgspec.structs import replace
from nats.js import api

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.bus import connection, topology
from archaeologist.bus.connection import Bus, connect, connected
from archaeologist.bus.keys import ROLES, ensure_keys, inbox_prefix
from archaeologist.bus.log import events
from archaeologist.bus.server import find_binary
from archaeologist.daemon import service
from archaeologist.errors import BusUnavailable, KeysUnusable
from archaeologist.settings import BusSettings, JobsSettings, PolicySettings, Settings, WorkerSettings
from archaeologist.trainers import publish_checkpoint
from contracts import subjects
from contracts.messages import Event
from tests.fixtures.certificates import make_certificate
from tests.fixtures.checkpoints import write_checkpoint
from tests.fixtures.kernels import share_kernels
from tests.fixtures.programs import Daemon
from tests.fixtures.servers import Server
from tests.fixtures.waiting import until, until_asked
from tests.fixtures.web import served
from tests.integration.daemon import house
from tests.integration.daemon.house import with_quick_children
from tests.integration.deploy.conftest import DEPLOY, Guarded, server_variables

HERO: Final = "dio"
CAMPAIGN: Final = "c1"
PATIENCE_SECONDS: Final = 90.0


def settings_of(guarded: Guarded, role: str, root: Path) -> Settings:
    """One machine's settings, as this role connects."""
    return Settings(
        root=str(root),
        bus=guarded.bus(role),
        policy=PolicySettings(every=1),
        jobs=JobsSettings(poll_seconds=0.2, grace_seconds=0.5),
        readiness=house.SOON,  # what is written here is whole, and taken in the order of the requests
        worker=WorkerSettings(name="box", threads=1),
    )


def announce(guarded: Guarded, path: Path, **fields: Any) -> None:
    """``checkpoint.saved``, as a trainer publishes it."""
    ours = guarded.bus("trainer")
    publish_checkpoint(
        path,
        hero_id=HERO,
        campaign_id=CAMPAIGN,
        nats_url=ours.url,
        nkey_seed=ours.nkey_seed,
        inbox_prefix=ours.inbox_prefix,
        **fields,
    )


async def until_event(bus: Bus, kind: str) -> Event:
    """The first event of a type."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        async for logged in events(bus, follow=True):
            if logged.event.type == kind:
                return logged.event
    raise AssertionError


@contextlib.asynccontextmanager
async def working(settings: Settings) -> AsyncIterator[None]:
    """A daemon in this process."""
    stop = asyncio.Event()
    task = asyncio.create_task(service.run(settings, stop=stop, command=house.child_command))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait_for(task, timeout=PATIENCE_SECONDS)


async def until_ready(client: httpx.AsyncClient) -> None:
    """Waits until the edge has its connection."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (await client.get("/ready")).status_code != 200:  # noqa: ASYNC110 -- a server's answer has no event
            await asyncio.sleep(0.05)


async def until_state(client: httpx.AsyncClient, job_id: str, *states: str) -> dict[str, Any]:
    """The job, once it is in one of the states."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            found: dict[str, Any] = (await client.get(f"/api/jobs/{job_id}")).json()
            if found.get("status") in states:
                return found
            await asyncio.sleep(0.05)


# What each may.


@pytest.mark.timeout(240)
async def test_from_a_trainer_s_announcement_to_the_log_each_role_needs_only_what_it_has(
    guarded: Guarded, tmp_path: Path, kernels: Path
) -> None:
    root = (tmp_path / "root").resolve()
    share_kernels(root)
    checkpoint = write_checkpoint(CampaignFolder.of(root, HERO, CAMPAIGN).checkpoints / "checkpoint-100", seed=1)
    async with (
        Daemon(root=root, url=guarded.server.url, environment=guarded.environment("worker")) as daemon,
        connected(guarded.bus("battle-log"), name="dashboard") as reader,
    ):
        await asyncio.to_thread(announce, guarded, checkpoint, step=100)
        completed = await until_event(reader, subjects.ANALYSIS_COMPLETED)
        assert await daemon.stop() == 0
    assert Path(completed.data["artifact_path"]).is_file()
    assert guarded.violations() == []


async def test_jobs_are_asked_for_seen_refused_and_cancelled_over_http(
    guarded: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch, seconds=30.0)
    root = (tmp_path / "root").resolve()
    folder = CampaignFolder.of(root, HERO, CAMPAIGN)
    for step in (100, 200):
        write_checkpoint(folder.checkpoints / f"checkpoint-{step}", seed=step)
    async with (
        working(settings_of(guarded, "worker", root)),
        served(settings_of(guarded, "web", root)) as client,
    ):
        await until_ready(client)
        asked = []
        for step in (100, 200):
            body = {"hero_id": HERO, "campaign_id": CAMPAIGN, "checkpoint_step": step}
            asked.append((await client.post("/api/jobs", json=body)).json())
        first, second = (str(answer["job_id"]) for answer in asked)
        await until_state(client, first, "running")

        async def is_one_waiting() -> bool:
            queue = (await client.get("/api/status")).json()["queue"]
            return bool(queue["layer_stats"] == {"waiting": 1, "in_flight": 1})

        await until_asked(is_one_waiting, seconds=30)
        assert (await client.get("/api/workers")).json()["count"] == 1
        assert 'state="in_flight"' in (await client.get("/metrics")).text
        refused = await client.post("/api/jobs", json={"hero_id": HERO, "campaign_id": CAMPAIGN, "checkpoint_step": 9})
        await until_state(client, str(refused.json()["job_id"]), "refused", "failed")
        # What was refused is asked for again once its checkpoint is there.
        write_checkpoint(folder.checkpoints / "checkpoint-9", seed=9)
        again = await asyncio.to_thread(_command, guarded, root, "jobs", "requeue", "--all", "--json")
        assert [letter["action"] for letter in json.loads(again)] == ["asked"]
        for job_id in (second, first):
            assert (await client.delete(f"/api/jobs/{job_id}")).status_code == 200
            await until_state(client, job_id, "cancelled")
        assert len((await client.get("/api/jobs")).json()["jobs"]) == 3
        async with (
            asyncio.timeout(PATIENCE_SECONDS),
            client.stream("GET", "/api/events", params={"last": 20}) as stream,
        ):
            heard = set()
            async for line in stream.aiter_lines():
                if line.startswith("data: ") and "analysis." in line:
                    heard.add(json.loads(line.removeprefix("data: "))["type"])
                if subjects.ANALYSIS_CANCELLED in heard:
                    break
        assert subjects.ANALYSIS_STARTED in heard
    assert guarded.violations() == []


async def test_doctor_s_look_at_the_bus_is_allowed_to_whoever_runs_a_service(guarded: Guarded) -> None:
    for role in ("admin", "worker", "web"):
        async with connected(guarded.bus(role), name=role) as bus:
            assert await topology.differences(bus, Settings()) == []
    assert guarded.violations() == []


async def test_a_worker_that_finds_other_streams_than_it_needs_says_who_may_change_them(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "REQUEST_SECONDS", 0.5)  # the server answers nothing to what it denies
    other = replace(Settings(), jobs=JobsSettings(lease_seconds=7.0))
    async with connected(guarded.bus("worker"), name="worker") as bus:
        with pytest.raises(BusUnavailable, match=r"ensure.*admin"):
            await topology.ensure(bus, other)


# What each may not.

BUCKETS: Final = tuple(bucket.bucket for bucket in topology.buckets(Settings()))
STREAMS: Final = (*(str(stream.name) for stream in topology.streams(Settings())), *(f"KV_{name}" for name in BUCKETS))
EVERYTHING: Final = (
    *subjects.CHECKPOINTS_SUBJECTS,
    *subjects.REQUESTS_SUBJECTS,
    *subjects.BATTLE_LOG_SUBJECTS,
    subjects.job_subject("layer_stats", "high", "key"),
    subjects.dead_subject("message_invalid"),
    subjects.cancel_subject("key"),
    *(f"$KV.{bucket}.key" for bucket in BUCKETS),
    "$JS.API.INFO",
    *(
        f"$JS.API.STREAM.{verb}.{stream}"
        for verb in ("INFO", "CREATE", "UPDATE", "DELETE", "PURGE", "MSG.GET", "MSG.DELETE", "SNAPSHOT")
        for stream in STREAMS
    ),
    *(
        f"$JS.API.CONSUMER.{verb}.{stream}.name"
        for verb in ("INFO", "CREATE", "DURABLE.CREATE", "DELETE", "MSG.NEXT")
        for stream in STREAMS
    ),
    "$JS.API.STREAM.LIST",
    f"$JS.ACK.{subjects.JOBS}.name.1.1.1.1.0",
    f"$JS.ACK.{subjects.BATTLE_LOG}.name.1.1.1.1.0",
    "_INBOX_ADMIN.stolen",
    "_INBOX_WORKER.stolen",
    "_INBOX.stolen",
    "anything.else",
)

_READS: Final = {
    f"$JS.API.CONSUMER.{verb}.{stream}.name"
    for verb in ("INFO", "CREATE", "DELETE", "MSG.NEXT")
    for stream in (subjects.BATTLE_LOG, subjects.DEAD, *(f"KV_{bucket}" for bucket in BUCKETS))
}
_READS_THE_LOG: Final = {name for name in _READS if subjects.BATTLE_LOG in name}
_LOOKS: Final = {
    "$JS.API.INFO",
    *(name for name in EVERYTHING if name.startswith(("$JS.API.STREAM.INFO.", "$JS.API.CONSUMER.INFO."))),
}
MAY_PUBLISH: Final[dict[str, set[str]]] = {
    "admin": {name for name in EVERYTHING if name.startswith("$JS.API.")},
    "worker": {
        *subjects.BATTLE_LOG_SUBJECTS,
        *(name for name in EVERYTHING if name.startswith(("archaeologist.jobs.", "archaeologist.dead.", "$KV."))),
        *_LOOKS,
        *_READS,
        *(name for name in EVERYTHING if name.startswith("$JS.API.STREAM.MSG.GET.KV_")),
        "$JS.API.STREAM.PURGE.ARCHAEOLOGIST_JOBS",
        "$JS.API.CONSUMER.MSG.NEXT.ARCHAEOLOGIST_JOBS.name",
        "$JS.ACK.ARCHAEOLOGIST_JOBS.name.1.1.1.1.0",
        "$JS.ACK.BATTLE_LOG.name.1.1.1.1.0",
    },
    "web": {
        "analysis.requested",
        "analysis.cancelled",
        *subjects.CHECKPOINTS_SUBJECTS,
        f"$JS.API.STREAM.MSG.GET.{subjects.DEAD}",
        subjects.cancel_subject("key"),
        "$KV.archaeologist_jobs.key",
        *_LOOKS,
        *_READS,
        *(name for name in EVERYTHING if name.startswith("$JS.API.STREAM.MSG.GET.KV_")),
        "$JS.API.STREAM.PURGE.ARCHAEOLOGIST_JOBS",
    },
    "trainer": set(subjects.CHECKPOINTS_SUBJECTS),
    "battle-log": {"$JS.API.INFO", "$JS.API.STREAM.INFO.BATTLE_LOG", *_READS_THE_LOG},
}
MAY_SUBSCRIBE: Final[dict[str, set[str]]] = {
    "admin": set(),
    "worker": {"archaeologist.jobs.>", "archaeologist.control.>"},
    "web": set(),
    "trainer": set(),
    "battle-log": set(subjects.BATTLE_LOG_SUBJECTS),
}
LAST: Final = "nobody.may"
LISTENED: Final = (
    ">",
    "$JS.>",
    "$KV.>",
    "_INBOX.>",
    "archaeologist.jobs.>",
    "archaeologist.control.>",
    *(f"{inbox_prefix(role)}.>" for role in ROLES),
    *subjects.CHECKPOINTS_SUBJECTS,
    *subjects.REQUESTS_SUBJECTS,
    *subjects.BATTLE_LOG_SUBJECTS,
)


@pytest.mark.parametrize("role", ROLES)
async def test_a_role_publishes_and_hears_what_its_work_needs_and_nothing_else(guarded: Guarded, role: str) -> None:
    complaints: list[str] = []

    async def note(error: Exception) -> None:
        complaints.append(str(error).lower())

    ours = guarded.bus(role)
    client = await nats.connect(
        ours.url, nkeys_seed=ours.nkey_seed, inbox_prefix=ours.inbox_prefix.encode(), error_cb=note
    )
    try:
        for subject in EVERYTHING:
            await client.publish(subject, b"not what belongs there")
        for subject in LISTENED:
            await client.subscribe(subject)
        # Complaints come in order: with that of the last, which is denied to everybody, all are here.
        await client.publish(LAST, b"")
        await until(lambda: any(LAST in complaint for complaint in complaints))
    finally:
        await client.close()
    text = " ".join(complaints)
    published = {name for name in EVERYTHING if f'publish to "{name.lower()}"' not in text}
    heard = {name for name in LISTENED if f'subscription to "{name.lower()}"' not in text}
    assert published == MAY_PUBLISH[role]
    assert heard == {*MAY_SUBSCRIBE[role], f"{inbox_prefix(role)}.>"}


async def test_a_reader_can_have_events_copied_elsewhere_as_the_page_says(guarded: Guarded) -> None:
    """Where a later server refuses this, docs/operations.md and the comments of the file can be kinder."""
    copying = api.ConsumerConfig(
        name="copies", deliver_subject=subjects.CHECKPOINT_SAVED, ack_policy=api.AckPolicy.NONE
    )
    async with connected(guarded.bus("battle-log"), name="reader") as reader:
        await reader.jetstream.add_consumer(subjects.BATTLE_LOG, copying)
        async with connected(guarded.bus("worker"), name="worker") as worker:
            await worker.jetstream.publish(subjects.ANALYSIS_STARTED, b"an event")
    async with connected(guarded.bus("admin"), name="admin") as admin:

        async def is_copied() -> bool:
            return int((await admin.jetstream.stream_info(subjects.CHECKPOINTS)).state.messages) == 1

        await until_asked(is_copied)


async def stored(admin: Bus) -> dict[str, int]:
    """How many messages each stream has."""
    return {name: int((await admin.jetstream.stream_info(name)).state.messages) for name in STREAMS}


async def test_a_trainer_cannot_have_the_server_answer_into_a_stream(guarded: Guarded) -> None:
    """Nobody is asked whether he may publish where he wants to be answered: only an account of his own stops that."""
    async with (
        connected(guarded.bus("trainer"), name="trainer") as trainer,
        connected(guarded.bus("admin"), name="admin") as admin,
    ):
        for place in (*EVERYTHING, *subjects.CHECKPOINTS_SUBJECTS):
            await trainer.client.publish(subjects.CHECKPOINT_SAVED, b"{}", reply=place)
        # What comes last is answered, so everything before it was, and is in the stream soon.
        await trainer.jetstream.publish(subjects.SKILL_EVALUATED, b"{}")
        sent = len(EVERYTHING) + len(subjects.CHECKPOINTS_SUBJECTS) + 1

        async def are_there() -> bool:
            return (await stored(admin))[subjects.CHECKPOINTS] >= sent

        await until_asked(are_there)
        assert await stored(admin) == {**dict.fromkeys(STREAMS, 0), subjects.CHECKPOINTS: sent}


async def test_a_reader_can_have_answers_sent_elsewhere_as_the_page_says(guarded: Guarded) -> None:
    async with (
        connected(guarded.bus("battle-log"), name="reader") as reader,
        connected(guarded.bus("admin"), name="admin") as admin,
    ):
        look = f"$JS.API.STREAM.INFO.{subjects.BATTLE_LOG}"
        await reader.client.publish(look, b"", reply=subjects.ANALYSIS_REQUESTED)

        async def is_answered() -> bool:
            return (await stored(admin))[subjects.REQUESTS] == 1

        await until_asked(is_answered)


async def test_a_reader_that_may_publish_nothing_hears_the_log_live(tmp_path: Path) -> None:
    """As docs/operations.md says, for programs that are not trusted."""
    ensure_keys(tmp_path / "keys")
    text = (DEPLOY / "nats-server.conf").read_text(encoding="utf-8")
    start = text.index("publish: [", text.index("$NATS_BATTLE_LOG_NKEY"))
    file = tmp_path / "quieter.conf"
    file.write_text(text[:start] + 'publish: {deny: ">"}' + text[text.index("]", start) + 1 :])
    variables = server_variables(tmp_path / "keys", tmp_path / "store")
    async with Server(tmp_path / "nats", file=file, environment=variables) as server:
        guarded = Guarded(server, tmp_path / "keys")
        async with (
            connected(guarded.bus("battle-log"), name="reader") as reader,
            connected(guarded.bus("worker"), name="worker") as worker,
        ):
            heard = await reader.client.subscribe(subjects.ANALYSIS_STARTED)
            await reader.client.publish("$JS.API.INFO", b"", reply=subjects.ANALYSIS_STARTED)
            await reader.flush()
            await worker.client.publish(subjects.ANALYSIS_STARTED, b"an event")
            assert (await heard.next_msg(timeout=10)).data == b"an event"
        assert len(guarded.violations()) == 1


async def test_nobody_comes_in_without_a_key(guarded: Guarded, tmp_path: Path) -> None:
    with pytest.raises(BusUnavailable, match="Authorization Violation"):
        await connect(BusSettings(url=guarded.server.url), name="nobody")
    named = BusSettings(url=guarded.server.url, user="worker", password="worker")  # noqa: S106 -- what an intruder tries
    with pytest.raises(BusUnavailable, match="Authorization Violation"):
        await connect(named, name="nobody")


# What the server does without its variables.


@pytest.mark.parametrize("value", [None, "", "change-me"])
def test_the_server_does_not_start_without_every_role_s_key(tmp_path: Path, value: str | None) -> None:
    ensure_keys(tmp_path)
    whole = {**os.environ, **server_variables(tmp_path, tmp_path / "store")}
    assert _trial(whole) == 0
    for role in ROLES:
        without = {**whole, f"NATS_{role.upper().replace('-', '_')}_NKEY": value}
        assert _trial({name: text for name, text in without.items() if text is not None}) == 1, role


def test_a_second_call_keeps_every_key_and_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    first = ensure_keys(tmp_path / "keys")
    assert [key.action for key in first] == ["created"] * len(ROLES)
    assert {key.path.stat().st_mode & 0o777 for key in first} == {0o600}
    assert [key._replace(action="created") for key in ensure_keys(tmp_path / "keys")] == first
    first[0].path.write_text("no key")
    with pytest.raises(KeysUnusable, match=r"holds no nkey seed"):
        ensure_keys(tmp_path / "keys")


# Other machines.


async def test_behind_tls_a_daemon_works_with_the_authority_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    other, _ = make_certificate(tmp_path, "other")
    keys = tmp_path / "keys"
    ensure_keys(keys)
    variables = {
        **server_variables(keys, tmp_path / "store"),
        "NATS_TLS_CERT": str(certificate),
        "NATS_TLS_KEY": str(key),
    }
    async with Server(tmp_path / "nats", file=DEPLOY / "nats-server-tls.conf", environment=variables) as server:
        guarded = Guarded(server, keys)
        behind = replace(guarded.bus("admin"), url=server.url.replace("nats:", "tls:"), tls_ca=str(certificate))
        async with connected(behind, name="admin") as bus:
            await topology.ensure(bus, Settings())
        environment = {
            **guarded.environment("worker"),
            "ARCHAEOLOGIST_BUS__TLS_CA": str(certificate),
            "ARCHAEOLOGIST_NATS_URL": behind.url,
        }
        async with Daemon(root=tmp_path / "root", url=behind.url, environment=environment) as daemon:
            await until(lambda: '"ready"' in daemon.log(), seconds=30)
            assert await daemon.stop() == 0
        for wrong in (replace(behind, tls_ca=str(other)), replace(behind, tls_ca=None)):
            with pytest.raises(BusUnavailable, match=r"certificate") as raised:
                await connect(replace(wrong, connect_timeout_seconds=1.0), name="worker")
            assert raised.value.code == "bus_unavailable"
        with pytest.raises(BusUnavailable):  # in plain text it does not speak
            await connect(BusSettings(url=server.url, connect_timeout_seconds=1.0), name="worker")


@pytest.mark.parametrize("missing", ["NATS_TLS_CERT", "NATS_TLS_KEY"])
def test_without_a_certificate_the_server_for_other_machines_does_not_start(tmp_path: Path, missing: str) -> None:
    certificate, key = make_certificate(tmp_path)
    ensure_keys(tmp_path / "keys")
    variables = {**os.environ, **server_variables(tmp_path / "keys", tmp_path / "store")}
    variables |= {"NATS_TLS_CERT": str(certificate), "NATS_TLS_KEY": str(key)}
    assert _trial(variables, "nats-server-tls.conf") == 0
    del variables[missing]
    assert _trial(variables, "nats-server-tls.conf") == 1


def _command(guarded: Guarded, root: Path, *arguments: str) -> str:
    """What a command of ours prints, given by a person with the key of web."""
    variables = {**os.environ, **guarded.environment("web"), "ARCHAEOLOGIST_ROOT": str(root)}
    command = [sys.executable, "-m", "archaeologist", *arguments]
    return subprocess.run(command, env=variables, capture_output=True, check=True, timeout=60, text=True).stdout


def _trial(environment: Mapping[str, str], name: str = "nats-server.conf") -> int:
    """The exit code of the server's look at its configuration."""
    command = [find_binary(), "-c", str(DEPLOY / name), "-t"]
    return subprocess.run(command, env=environment, capture_output=True, check=False, timeout=20).returncode
