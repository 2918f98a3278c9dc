"""How a job ended is told once, whoever dies or freezes between the log and the record; and nothing is read in vain."""

import asyncio
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from nats.aio.msg import Msg

from archaeologist.bus import topology
from archaeologist.bus.log import events
from archaeologist.daemon.completion import Completion
from archaeologist.daemon.herald import announce
from contracts import subjects
from tests.fixtures.programs import Daemon
from tests.fixtures.waiting import until
from tests.integration.daemon.dying import MEMORY_SECONDS, forgetful_streams
from tests.integration.daemon.house import PATIENCE_SECONDS, House, of, opened, with_quick_children

CREATED = f"$JS.EVENT.ADVISORY.CONSUMER.CREATED.{subjects.BATTLE_LOG}.>"
ENDS = {"analysis.completed", "analysis.failed", "analysis.cancelled", "analysis.alert"}


@pytest_asyncio.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with opened(tmp_path) as found:
        yield found


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server knows a repetition for a tenth of a second: whatever is not looked up is doubled."""
    monkeypatch.setattr(topology, "streams", forgetful_streams)


async def ends(house: House) -> tuple[Counter[str], set[int]]:
    """How often each kind of end was told, and where."""
    found = [logged async for logged in events(house.bus, follow=False) if logged.event.type in ENDS]
    told = {logged.sequence for logged in found if logged.event.type != "analysis.alert"}
    return Counter(logged.event.type for logged in found), told


async def readers(house: House) -> list[str]:
    """Names of the consumers that are made on the Battle Log from now on."""
    names: list[str] = []

    async def heard(message: Msg) -> None:
        names.append(msgspec.json.decode(message.data)["consumer"])

    await house.bus.client.subscribe(CREATED, cb=heard)
    await house.bus.flush()
    return names


@pytest.mark.parametrize("fate", ["succeed", "fail"])
async def test_the_first_end_of_a_job_is_told_without_reading_the_log(
    house: House, monkeypatch: pytest.MonkeyPatch, fate: str
) -> None:
    with_quick_children(monkeypatch, alerts=2, fate=fate)
    house.save(100)
    async with house.daemon(lease_seconds=60.0):
        made = await readers(house)
        await house.request("r", checkpoint_step=100)
        await house.until_ended("r")
        await house.bus.flush()
    assert [name for name in made if name.startswith("reader-")] == []


async def test_the_end_of_a_job_that_was_handed_back_is_looked_up_first(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch, seconds=60)
    house.save(100)
    async with house.daemon(lease_seconds=60.0):
        await house.request("r", checkpoint_step=100)
        await house.until_event(of("r", "started"))
    with_quick_children(monkeypatch)
    async with house.daemon(lease_seconds=60.0):
        made = await readers(house)
        await house.until_ended("r")
        await until(lambda: any(name.startswith("reader-") for name in made), seconds=PATIENCE_SECONDS)


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize(
    ("dies_after", "fate", "told"),
    [
        ("analysis.completed", "succeed", {"analysis.completed": 1, "analysis.alert": 2}),
        ("analysis.alert", "succeed", {"analysis.completed": 1, "analysis.alert": 2}),
        ("analysis.failed", "fail", {"analysis.failed": 1}),
    ],
)
async def test_a_daemon_killed_between_the_event_and_its_record_leaves_nothing_to_be_told_twice(
    house: House, monkeypatch: pytest.MonkeyPatch, dies_after: str, fate: str, told: dict[str, int]
) -> None:
    with_quick_children(monkeypatch, alerts=2, fate=fate)
    house.save(100)
    environment = {
        **os.environ,
        "ARCHAEOLOGIST_JOBS__LEASE_SECONDS": "2",
        "ARCHAEOLOGIST_JOBS__HEARTBEAT_SECONDS": "0.5",
    }
    environment |= {"ARCHAEOLOGIST_READINESS__QUIET_SECONDS": "0"}
    command = (sys.executable, "-m", "tests.integration.daemon.dying", dies_after)
    root = Path(house.settings.root)
    async with Daemon(root=root, url=house.server.url, environment=environment, command=command) as dying:
        await house.request("r", checkpoint_step=100)
        await until(lambda: not dying.is_running, seconds=PATIENCE_SECONDS)
    assert dying.exit_code == -9
    async with house.daemon(name="second"):
        _, job = await house.until_ended("r")
        await house.until_queue_is_empty()
    counts, places = await ends(house)
    assert counts == told
    assert job is not None
    assert {job.event_sequence} == places


def late(call: Callable[..., Awaitable[Any]], freezes: asyncio.Event, wakes: asyncio.Event) -> Callable[..., Any]:
    """The same call, whose first caller stands still at it until he is woken."""

    async def called(*arguments: Any, **named: Any) -> Any:
        if not freezes.is_set():
            freezes.set()
            await wakes.wait()
        return await call(*arguments, **named)

    return called


@pytest.mark.usefixtures("forgetful")
async def test_a_daemon_that_froze_before_it_told_the_end_finds_that_another_told_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch, alerts=1)
    house.save(100)
    freezes, wakes = asyncio.Event(), asyncio.Event()
    monkeypatch.setattr(Completion, "_mark", late(Completion._mark, freezes, wakes))
    async with house.daemon(name="first", grace_seconds=30.0):
        await house.request("r", checkpoint_step=100)
        await freezes.wait()
        # By now the message comes again: to this worker, which is as good as another, or to the second one.
        async with house.daemon(name="second"):
            await house.until_ended("r")
            await asyncio.sleep(3 * MEMORY_SECONDS)  # the server is to forget
        wakes.set()
    counts, _ = await ends(house)
    assert counts == {"analysis.completed": 1, "analysis.alert": 1}


async def test_a_daemon_that_froze_while_it_told_the_end_is_told_so_by_the_server(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch, alerts=1)
    house.save(100)
    freezes, wakes = asyncio.Event(), asyncio.Event()
    monkeypatch.setattr("archaeologist.daemon.completion.announce", late(announce, freezes, wakes))
    async with house.daemon(name="first", grace_seconds=30.0):
        await house.request("r", checkpoint_step=100)
        await freezes.wait()
        async with house.daemon(name="second"):
            await house.until_ended("r")
        wakes.set()
    counts, _ = await ends(house)
    assert counts == {"analysis.completed": 1, "analysis.alert": 1}
