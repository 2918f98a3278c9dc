"""Live events over a real server and a real bus: replay, filters, loss, slow and many clients."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec
import pytest

from archaeologist.bus.log import last_sequence
from archaeologist.bus.publisher import publish
from archaeologist.settings import Settings
from contracts.messages import Event
from contracts.ulid import new_ulid
from tests.fixtures.waiting import until_asked
from tests.fixtures.web import application, asking, served
from tests.integration.daemon.house import House
from tests.integration.web.conftest import until_ready

PATIENCE_SECONDS = 30.0


class Message(NamedTuple):
    """One message of a stream; ``comment`` for a sign of life."""

    kind: str
    id: str | None
    data: Any


class Stream:
    """What a browser's EventSource reads."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._lines = lines

    async def next(self) -> Message:
        """The next message or comment."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(PATIENCE_SECONDS):
            async for line in self._lines:
                if line.startswith(":"):
                    fields["event"] = "comment"
                elif line:
                    name, _, value = line.partition(": ")
                    fields[name] = value
                elif fields:
                    data = msgspec.json.decode(fields["data"]) if "data" in fields else None
                    return Message(fields.get("event", "message"), fields.get("id"), data)
        raise EOFError

    async def event(self) -> Message:
        """The next event of the Battle Log."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (message := await self.next()).kind != "message" or message.data is None:
                pass
            return message

    async def is_connected(self, *, expected: bool) -> None:
        """Waits until the stream says so of the bus."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (message := await self.next()).kind != "bus" or message.data["connected"] is not expected:
                pass


@contextlib.asynccontextmanager
async def following(api: httpx.AsyncClient, query: str = "", **headers: str) -> AsyncIterator[Stream]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with api.stream("GET", f"/api/events{query}", headers=named) as reply:
        assert reply.status_code == 200, await reply.aread()
        assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert "content-encoding" not in reply.headers
        yield Stream(reply.aiter_lines())


async def happen(house: House, message: str, *, campaign: str = "c1", kind: str = "analysis.started") -> int:
    """Something happens: its sequence in the log."""
    event = Event(
        type=kind,
        message=message,
        severity="info",
        data={"hero_id": "dio", "campaign_id": campaign},
        id=new_ulid(),
        time="2026-01-02T03:04:05.000Z",
    )
    return (await publish(house.bus, kind, msgspec.json.encode(event), message_id=event.id)).sequence


async def streams_of(api: httpx.AsyncClient) -> int:
    return int((await api.get("/api/status")).json()["streams"])


async def until_streams(api: httpx.AsyncClient, count: int) -> None:
    async def is_so() -> bool:
        return await streams_of(api) == count

    await until_asked(is_so, seconds=PATIENCE_SECONDS)


async def test_an_event_comes_as_it_happens_with_its_sequence(house: House, api: httpx.AsyncClient) -> None:
    await happen(house, "before")
    async with following(api, "?last=1") as stream:
        assert (await stream.event()).data["message"] == "before"
        sequence = await happen(house, "<b>now</b>\n\ndata: forged")
        found = await stream.event()
    assert found.id == str(sequence)
    assert msgspec.convert(found.data, Event).message == "<b>now</b>\n\ndata: forged"


async def test_without_a_position_a_stream_begins_with_what_comes(house: House, api: httpx.AsyncClient) -> None:
    await happen(house, "before")
    async with following(api) as stream:
        await stream.is_connected(expected=True)
        # Nothing tells that the reader stands at the log's end: one of these is the first that it sees.
        for number in range(200):
            await happen(house, f"after {number}")
        assert (await stream.event()).data["message"].startswith("after")


async def test_who_comes_back_gets_what_was_missed_once(house: House, api: httpx.AsyncClient) -> None:
    sequences = [await happen(house, f"event {number}") for number in range(5)]
    async with following(api, Last_Event_ID=str(sequences[1])) as stream:
        found = [await stream.event() for _ in range(3)]
        await happen(house, "event 5")
        found.append(await stream.event())
    assert [message.data["message"] for message in found] == [f"event {number}" for number in range(2, 6)]
    async with following(api, f"?after={sequences[3]}") as stream:
        assert (await stream.event()).data["message"] == "event 4"


async def test_a_position_beyond_the_log_s_end_is_one_of_an_older_log(house: House, api: httpx.AsyncClient) -> None:
    await happen(house, "the new log's first")
    async with following(api, Last_Event_ID="999999") as stream:
        assert (await stream.event()).data["message"] == "the new log's first"


async def test_events_of_other_campaigns_and_types_are_left_out(house: House, api: httpx.AsyncClient) -> None:
    for campaign, kind in (("c2", "analysis.started"), ("c1", "analysis.progress"), ("c1", "analysis.completed")):
        await happen(house, f"{campaign} {kind}", campaign=campaign, kind=kind)
    async with following(api, "?last=1000&campaign_id=c1") as stream:
        assert [(await stream.event()).data["message"] for _ in range(2)] == [
            "c1 analysis.progress",
            "c1 analysis.completed",
        ]
    async with following(api, "?last=1000&hero_id=dio&types=analysis.started,analysis.failed") as stream:
        assert (await stream.event()).data["message"] == "c2 analysis.started"


async def test_a_stream_outlives_the_bus_and_fills_the_gap(house: House, api: httpx.AsyncClient) -> None:
    await happen(house, "first")
    async with following(api, "?last=1") as stream:
        assert (await stream.event()).data["message"] == "first"
        await house.server.kill()
        await stream.is_connected(expected=False)
        await house.server.start()
        await happen(house, "second")
        assert (await stream.event()).data["message"] == "second"


async def test_a_quiet_stream_gives_signs_of_life(house: House) -> None:
    async with served(house.settings, heartbeat_seconds=0.1) as api, following(api) as stream:
        await until_ready(api)
        for _ in range(2):
            while (await stream.next()).kind != "comment":
                pass


async def test_a_stream_opened_without_a_bus_begins_when_it_comes(house: House) -> None:
    await house.server.kill()
    async with served(house.settings) as api, following(api, "?after=0") as stream:
        await stream.is_connected(expected=False)
        await house.server.start()
        await stream.is_connected(expected=True)
        await happen(house, "later")
        assert (await stream.event()).data["message"] == "later"


async def test_more_streams_than_allowed_are_refused_until_one_ends(house: House) -> None:
    async with served(house.settings, max_streams=2) as api:
        async with following(api), following(api):
            refused = await api.get("/api/events")
            assert (refused.status_code, refused.json()["code"]) == (503, "streams_full")
            assert refused.headers["retry-after"]
            assert (await api.get("/api/campaigns")).status_code == 200
        await until_streams(api, 0)
        async with following(api):
            assert await streams_of(api) == 1


async def test_a_client_that_takes_nothing_is_dropped(house: House) -> None:
    body = "x" * 100_000
    for number in range(60):
        await happen(house, f"{number} {body}")
    async with served(house.settings, slow_client_seconds=0.5) as api:
        await until_ready(api)
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect((api.base_url.host, api.base_url.port or 0))
            slow.sendall(b"GET /api/events?last=60 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await until_streams(api, 1)
            await until_streams(api, 0)
        async with following(api, "?last=1") as stream:
            assert (await stream.event()).data["message"].startswith("59 ")


async def test_a_client_that_leaves_frees_its_stream(house: House, api: httpx.AsyncClient) -> None:
    async with following(api):
        assert await streams_of(api) == 1
    await until_streams(api, 0)


async def test_the_server_ends_although_streams_are_open(house: House) -> None:
    async with contextlib.AsyncExitStack() as clients:
        async with served(house.settings) as api:
            other = await clients.enter_async_context(httpx.AsyncClient(base_url=api.base_url, trust_env=False))
            stream = await clients.enter_async_context(following(other))
            await stream.is_connected(expected=True)
        with contextlib.suppress(EOFError, httpx.HTTPError):
            while True:
                await stream.next()
    assert await last_sequence(house.bus) == 0


@pytest.mark.parametrize(
    ("query", "position"),
    [
        *((query, "") for query in ("?last=-1", "?last=1001", "?after=-1", "?types=analysis.x", "?types=,")),
        *((query, "") for query in ("?campaign_id=../x", "?hero_id=<b>")),
        *(("", position) for position in ("abc", "-1", "9" * 30, "\u0661")),
    ],
)
async def test_a_wrong_parameter_is_refused(tmp_path: Path, query: str, position: str) -> None:
    headers = {b"last-event-id": position.encode()} if position else {}
    async with asking(application(Settings(root=str(tmp_path)))) as api:
        reply = await api.get(f"/api/events{query}", headers=headers)
        assert (reply.status_code, reply.headers["content-type"]) == (400, "application/json")
        assert reply.json()["code"] in {"parameter_invalid", "message_invalid"}
