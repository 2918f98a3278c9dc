"""The user's command and webhook: told once, in time, and whatever they do, nothing else is disturbed."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from archaeologist.daemon import notification
from archaeologist.daemon.notification import Command, NotTold, Webhook, body, is_wanted, pause_seconds
from archaeologist.settings import NotifySettings
from contracts.messages import Event
from tests.fixtures.servers import free_port
from tests.fixtures.waiting import until
from tests.integration.daemon.house import House, of, opened, with_quick_children

ALERT: Final = Event(type="analysis.alert", message="RankMe fell", severity="error", data={}, id="01J", time="now")
SECRET: Final = "hooks-a-secret"  # noqa: S105 -- a test's


@dataclass
class Hook:
    """A webhook that notes what is posted, and answers with what it was told to, the last of it for ever."""

    port: int
    answers: list[int]
    heard: list[tuple[dict[str, str], Any]] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}/{SECRET}"

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        self.heard.append((headers, json.loads(await reader.readexactly(int(headers["content-length"])))))
        status = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        writer.write(f"HTTP/1.1 {status} X\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def hook(*answers: int) -> AsyncIterator[Hook]:
    """A webhook on loopback."""
    found = Hook(free_port(), list(answers))
    async with await asyncio.start_server(found.answer, "127.0.0.1", found.port):
        yield found


def program(tmp_path: Path, source: str) -> tuple[str, ...]:
    """A command of a user's."""
    path = tmp_path / "hook.py"
    path.write_text(source, encoding="utf-8")
    return (sys.executable, str(path))


def noting(tmp_path: Path) -> tuple[str, ...]:
    """A command that writes down each event that it gets, and its own environment."""
    return program(
        tmp_path,
        f"import os, sys\nopen({str(tmp_path / 'noted')!r}, 'a').write(sys.stdin.read())\n"
        f"open({str(tmp_path / 'environment')!r}, 'w').write(repr(dict(os.environ)))\n",
    )


def noted(tmp_path: Path) -> list[dict[str, Any]]:
    """What it wrote down."""
    path = tmp_path / "noted"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def given_up(logs: Sequence[MutableMapping[str, Any]]) -> list[MutableMapping[str, Any]]:
    """What the log says was given up."""
    return [line for line in logs if line["event"] == "notification given up"]


async def refusal(teller: Command | Webhook) -> NotTold:
    """Why it could not be told."""
    with pytest.raises(NotTold) as raised:
        await teller(ALERT)
    return raised.value


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with opened(tmp_path) as house:
        yield house


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    with_quick_children(monkeypatch, alerts=1)
    monkeypatch.setattr(notification, "FIRST_PAUSE_SECONDS", 0.1)


def telling(house: House, **notify: Any) -> None:
    """Sets what the house's daemons tell."""
    house.settings = replace(house.settings, notify=NotifySettings(**notify))


# From the log to the target.


@pytest.mark.usefixtures("_quick")
async def test_alerts_and_failures_are_told_to_both_and_nothing_else(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCHAEOLOGIST_BUS__PASSWORD", SECRET)
    house.save(100)
    async with hook(204) as web:
        telling(house, command=noting(tmp_path), webhook=web.url, webhook_headers={"X-Token": "t"})
        async with house.daemon():
            await house.request("good", checkpoint_step=100)
            await house.request("bad", checkpoint_step=99)
            await house.until_event(of("good", "alert"))
            await house.until_event(of("bad", "failed"))
            await until(lambda: len(noted(tmp_path)) == 2 and len(web.heard) == 2, seconds=30)
    assert {event["type"] for event in noted(tmp_path)} == {"analysis.alert", "analysis.failed"}
    headers, event = web.heard[0]
    assert (headers["x-token"], headers["content-type"]) == ("t", "application/json")
    assert event["text"] == event["message"]
    assert {event["id"] for _, event in web.heard} == {event["id"] for event in noted(tmp_path)}
    assert SECRET not in (tmp_path / "environment").read_text()


@pytest.mark.usefixtures("_quick")
async def test_an_event_of_a_time_without_a_daemon_is_told_when_one_comes_and_by_one_of_two(
    house: House, tmp_path: Path
) -> None:
    for step in (100, 200):
        house.save(step)
    async with house.daemon():  # it has nobody to tell
        await house.request("earlier", checkpoint_step=100)
        await house.until_event(of("earlier", "alert"))
    telling(house, command=noting(tmp_path))
    async with house.daemon(name="one"), house.daemon(name="two"):
        await until(lambda: len(noted(tmp_path)) == 1, seconds=30)
        await house.request("later", checkpoint_step=200)
        await house.until_event(of("later", "alert"))
        await until(lambda: len(noted(tmp_path)) == 2, seconds=30)
    assert [event["data"]["job_id"] for event in noted(tmp_path)] == ["earlier", "later"]


@pytest.mark.usefixtures("_quick")
async def test_what_fails_is_tried_again_and_then_given_up_and_jobs_go_on(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (100, 200):
        house.save(step)
    async with hook(503, 500, 200, 404) as web:
        command = program(tmp_path, "import sys; sys.exit('nobody is there')")
        telling(house, webhook=web.url, command=command, attempts=3)
        with capture_logs() as logs:
            async with house.daemon():
                await house.request("first", checkpoint_step=100)
                await until(lambda: len(web.heard) == 3, seconds=30)
                await house.request("second", checkpoint_step=200)
                await house.until_event(of("second", "completed"))
                await until(lambda: len(given_up(logs)) == 3, seconds=30)
    # The first of the webhook came through at the third try, the second was refused for good.
    assert len(web.heard) == 4
    assert sorted((line["target"], line["tries"]) for line in given_up(logs)) == [
        ("command", 3),
        ("command", 3),
        ("webhook", 1),
    ]
    assert "nobody is there" in str(given_up(logs))
    assert SECRET not in str(logs)


@pytest.mark.usefixtures("_quick")
async def test_what_is_too_old_to_be_news_is_not_told(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notification, "TOO_OLD", timedelta(0))
    house.save(100)
    telling(house, command=noting(tmp_path))
    with capture_logs() as logs:
        async with house.daemon():
            await house.request("first", checkpoint_step=100)
            await until(lambda: any(line["event"] == "notification too old" for line in logs), seconds=30)
    assert noted(tmp_path) == []


# A command.


async def test_a_command_that_hangs_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    source = f"""
import os, subprocess, time
child = subprocess.Popen(["sleep", "300"])
open({str(tmp_path / "pids")!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
time.sleep(300)
"""
    settings = NotifySettings(command=program(tmp_path, source), timeout_seconds=5.0)
    refused = await refusal(Command(settings, os.environ))
    assert "ran longer than 5 s and was killed" in str(refused)
    pids = (tmp_path / "pids").read_text().split()
    await until(lambda: not any(is_alive(pid) for pid in pids))


async def test_a_command_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notification, "KILL_AFTER_SECONDS", 0.3)
    source = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(300)"
    settings = NotifySettings(command=program(tmp_path, source), timeout_seconds=1.0)
    async with asyncio.timeout(20):
        await refusal(Command(settings, os.environ))


@pytest.mark.parametrize(
    "source",
    [
        "import sys; sys.stderr.write('x' * 10_000_000)",  # floods
        "pass",  # reads nothing
        # Leaves one that holds the pipe.
        "import subprocess; subprocess.Popen(['sleep', '5'], start_new_session=True)",
    ],
)
async def test_a_command_that_ends_well_has_been_told_whatever_else_it_does(tmp_path: Path, source: str) -> None:
    async with asyncio.timeout(20):
        await Command(NotifySettings(command=program(tmp_path, source)), os.environ)(ALERT)


@pytest.mark.parametrize(
    ("command", "words"),
    [(("/no/such/program",), "cannot be started: No such file"), (("false",), "ended with code 1: it said nothing")],
)
async def test_a_command_that_cannot_start_or_fails_says_so(command: tuple[str, ...], words: str) -> None:
    assert words in str(await refusal(Command(NotifySettings(command=command), os.environ)))


async def test_no_shell_reads_the_command(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    await Command(NotifySettings(command=("echo", f"$(touch {marker})", f"; touch {marker}")), os.environ)(ALERT)
    assert not marker.exists()


def is_alive(pid: str) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# A webhook.


@pytest.mark.parametrize(("status", "is_final"), [(500, False), (429, False), (404, True), (302, True)])
async def test_only_what_may_pass_is_tried_again(status: int, is_final: bool) -> None:  # noqa: FBT001 -- a parameter
    async with hook(status) as web:
        refused = await refusal(Webhook(NotifySettings(webhook=web.url)))
    assert (refused.is_final, len(web.heard)) == (is_final, 1)
    assert SECRET not in str(refused)


async def test_a_webhook_that_is_away_or_silent_is_waited_for_no_longer_than_the_limit() -> None:
    away = NotifySettings(webhook=f"http://127.0.0.1:{free_port()}/{SECRET}", timeout_seconds=1.0)
    assert SECRET not in str(await refusal(Webhook(away)))

    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while not writer.is_closing():  # each byte within any limit of a single read
                writer.write(b"H")
                await writer.drain()
                await asyncio.sleep(0.1)
        writer.close()
        is_over.set()

    is_over = asyncio.Event()
    port = free_port()
    server = await asyncio.start_server(drip, "127.0.0.1", port)
    async with asyncio.timeout(10):
        await refusal(Webhook(NotifySettings(webhook=f"http://127.0.0.1:{port}/", timeout_seconds=1.0)))
        await is_over.wait()
    server.close()


# What is told.


def test_the_types_and_the_least_severity_decide() -> None:
    settings = NotifySettings(events=("alert",), severity="error")
    assert is_wanted(ALERT, settings)
    assert not is_wanted(replace(ALERT, severity="warning"), settings)
    assert not is_wanted(replace(ALERT, type="analysis.failed"), settings)
    assert is_wanted(replace(ALERT, severity="info"), NotifySettings(severity="success"))


def test_pauses_grow_to_five_minutes() -> None:
    assert [pause_seconds(tries) for tries in (1, 2, 3, 4, 5, 50)] == [5, 15, 45, 135, 300, 300]


def test_the_body_is_the_event_and_its_text() -> None:
    decoded = json.loads(body(ALERT))
    assert decoded.pop("text") == "RankMe fell"
    assert decoded["type"] == "analysis.alert"
