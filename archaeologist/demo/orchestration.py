"""The demo from start to end: a server, the daemon, a training run, the Battle Log, and what was found.

Called by ``archaeologist demo``. The parts are the real ones: the daemon and the training are processes of their own,
and what is shown at the end comes from the bus and from the artifacts on the disk. Everything started is stopped,
however it ends.
"""

import asyncio
import contextlib
import importlib.util
import json
import os
import shlex
import shutil
import sys
from asyncio import FIRST_COMPLETED
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.text import Text

from archaeologist import tasks
from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.bus.connection import Bus, connected
from archaeologist.bus.log import events
from archaeologist.bus.records import Records
from archaeologist.bus.server import EmbeddedServer
from archaeologist.bus.topology import ensure
from archaeologist.demo.findings import Finding, gather, impact_table, impact_words, shortcomings, table
from archaeologist.demo.processes import DemoFailed, Program, tail
from archaeologist.errors import UsageError
from archaeologist.report.campaign import read_campaign
from archaeologist.settings import load
from contracts import subjects
from contracts.artifacts import SkillImpact
from contracts.messages import Event
from contracts.records import CampaignRecord

HERO: Final = "tiny-qwen3"
NEEDED: Final = ("torch", "transformers", "accelerate")
BATTLE_LOG: Final = (
    subjects.ANALYSIS_STARTED,
    subjects.ANALYSIS_COMPLETED,
    subjects.ANALYSIS_FAILED,
    subjects.ANALYSIS_CANCELLED,
    subjects.ANALYSIS_ALERT,
)
"""What scrolls; progress would come a few times a second for a model this small."""
ENDINGS: Final = frozenset({subjects.ANALYSIS_COMPLETED, subjects.ANALYSIS_FAILED, subjects.ANALYSIS_CANCELLED})
COLOURS: Final = {"info": "cyan", "success": "green", "warning": "yellow", "error": "red"}
TRAINING_SECONDS: Final = 900.0
"""Ten times what it takes on two cores."""
ANALYSIS_SECONDS: Final = 120.0
"""From the end of training, or of an analysis, to the end of the next."""
BUS_SECONDS: Final = 10.0


class Plan(Struct, frozen=True, kw_only=True):
    """What the demo does."""

    root: Path
    """Absolute; everything lies under it, and is kept."""
    campaign_id: str
    steps: int
    save_every: int
    keep: bool = False
    """Leave server and daemon running at the end, until Ctrl-C."""

    @property
    def folder(self) -> CampaignFolder:
        """Where the campaign's files lie."""
        return CampaignFolder.of(self.root, HERO, self.campaign_id)

    @property
    def expected_steps(self) -> tuple[int, ...]:
        """The checkpoints that training saves."""
        # The Trainer also saves after its last step.
        return tuple(sorted({*range(self.save_every, self.steps + 1, self.save_every), self.steps}))

    def log_path(self, name: str) -> Path:
        """Where a process's log lies."""
        return self.root / "logs" / self.campaign_id / f"{name}.log"


def new_campaign(now: datetime) -> str:
    """A campaign's name: another for each run, so that nothing earlier is ever overwritten."""
    return f"bin-and-sy-{now.astimezone(UTC):%Y%m%d-%H%M%S}"


def check_installation() -> None:
    """Raises where a library that the training needs is missing.

    Raises:
        UsageError: One is missing.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        msg = f"the demo trains a model and needs {', '.join(missing)}; run `pip install 'model-archaeologist[demo]'`"
        raise UsageError(msg)


async def run(plan: Plan, console: Console) -> None:
    """Runs the demo and shows what was found.

    Raises:
        DemoFailed: Something that must be there is missing.
        BusUnavailable: The embedded server does not start.
    """
    settings_path = _write_settings(plan)
    base = load(config=settings_path, environ={})
    async with contextlib.AsyncExitStack() as stack:
        server = await EmbeddedServer.start(base.state_path / "nats")
        stack.push_async_callback(server.stop)
        settings = load(config=settings_path, overrides={"bus.url": server.url}, environ={})
        bus = await stack.enter_async_context(connected(settings.bus, name="archaeologist-demo"))
        await ensure(bus, settings)
        environment = _environment(settings_path, server.url)
        daemon = await Program.start(
            "the daemon", ["archaeologist", "daemon"], environment=environment, log_path=plan.log_path("daemon")
        )
        stack.push_async_callback(daemon.stop)
        console.print(f"server at {server.url}, daemon (pid {daemon.pid})")
        console.print(f"everything lies under {plan.root}", soft_wrap=True)
        console.print(f"training a tiny Qwen3 on BIN and SY: {plan.steps} steps, a checkpoint every {plan.save_every}")
        async with _watched(server, daemon, plan):
            await _train_and_follow(plan, bus, environment, console)
        findings = await _findings(plan, bus)
        impact = (await asyncio.to_thread(read_campaign, plan.folder)).skills
        show(plan, findings, impact=impact, url=server.url, console=console)
        if plan.keep:
            console.print("Server and daemon are still running; Ctrl-C stops them.")
            async with _watched(server, daemon, plan):
                await asyncio.Event().wait()


def show(plan: Plan, findings: Sequence[Finding], *, impact: SkillImpact, url: str, console: Console) -> None:
    """The table, where the artifacts are, and how to look further."""
    root = shlex.quote(str(plan.root))
    # The trainer's rotation has left these two.
    before, last = (shlex.quote(finding.artifact.checkpoint_path) for finding in findings[-2:])
    artifact = findings[-1].path
    console.print()
    console.print(table(findings))
    console.print()
    console.print(impact_table(impact))
    for sentence in impact_words(impact):
        console.print(sentence, soft_wrap=True, highlight=False)
    console.print(f"\n{len(findings)} artifacts in {artifact.parent}", soft_wrap=True)
    console.print("Look further:" if plan.keep else f"Look further (`{_program()} up --root {root}` first):")
    for command in (
        f"{_program()} log --nats-url {url}",
        f"{_program()} jobs list --nats-url {url}",
        f"{_program()} drift {before} {last}",
        f"python3 -m json.tool {shlex.quote(str(artifact))} | less",
    ):
        console.print(f"  {command}", soft_wrap=True, highlight=False)


def _program() -> str:
    """How this program is called from here: it need not be on the PATH."""
    beside = Path(sys.executable).with_name("archaeologist")
    is_on_path = shutil.which("archaeologist") is not None
    return "archaeologist" if is_on_path or not beside.is_file() else shlex.quote(str(beside))


def _write_settings(plan: Plan) -> Path:
    """The demo's settings as a file: the daemon reads it, and so does whoever looks further."""
    plan.root.mkdir(parents=True, exist_ok=True)
    path = plan.root / "archaeologist.toml"
    path.write_text(
        "# Written by `archaeologist demo`.\n"
        f"root = {json.dumps(str(plan.root))}\n\n"
        "[policy]\nevery = 1 # the demo's checkpoints are few\n\n"
        "[jobs]\ngrace_seconds = 5.0 # Ctrl-C need not wait for an analysis\n",
        encoding="utf-8",
    )
    return path


def _environment(settings_path: Path, url: str) -> dict[str, str]:
    """The processes' environment: nothing of the caller's settings, and nothing from the network."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ARCHAEOLOGIST_")}
    return {
        **kept,
        "ARCHAEOLOGIST_CONFIG": str(settings_path),
        "ARCHAEOLOGIST_NATS_URL": url,
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }


@contextlib.asynccontextmanager
async def _watched(server: EmbeddedServer, daemon: Program, plan: Plan) -> AsyncIterator[None]:
    """A block that fails as soon as the server or the daemon ends."""

    async def guard_server() -> None:
        code = await server.wait()
        log = plan.root / ".archaeologist" / "nats" / "server.log"
        msg = f"the nats-server ended with exit code {code}; its log {str(log)!r} ends with:\n{tail(log)}"
        raise DemoFailed(msg)

    async def guard_daemon() -> None:
        daemon.fail("ended by itself", code=await daemon.wait())

    try:
        async with asyncio.TaskGroup() as group:
            guards = [group.create_task(guard_server()), group.create_task(guard_daemon())]
            yield
            for guard in guards:
                guard.cancel()
    except* DemoFailed as failures:
        raise _first(failures) from None


async def _train_and_follow(plan: Plan, bus: Bus, environment: dict[str, str], console: Console) -> None:
    """Trains, shows the Battle Log meanwhile, and returns once each checkpoint's analysis has ended."""
    ended = asyncio.Event()
    following = asyncio.create_task(_follow(plan, bus, console, ended=ended))
    try:
        await _train(plan, environment, console)
        while not following.done():
            # Each end of an analysis starts the wait anew: a slow machine may have many of them left.
            ended.clear()
            next_end = asyncio.create_task(ended.wait())
            done, _ = await asyncio.wait({following, next_end}, timeout=ANALYSIS_SECONDS, return_when=FIRST_COMPLETED)
            await tasks.end(next_end)
            if not done:
                # What is missing is said by the check of what was found.
                console.print(f"no analysis ended within {ANALYSIS_SECONDS:g} s after training", style="yellow")
                return
        await following
    finally:
        await tasks.end(following)


async def _train(plan: Plan, environment: dict[str, str], console: Console) -> None:
    arguments = ["archaeologist.demo.training", "--output", str(plan.folder.checkpoints), "--hero", HERO]
    arguments += ["--campaign", plan.campaign_id, "--steps", str(plan.steps), "--save-every", str(plan.save_every)]
    training = await Program.start(
        "the training",
        arguments,
        environment=environment,
        log_path=plan.log_path("training"),
        is_read=True,
    )
    try:
        async with asyncio.timeout(TRAINING_SECONDS):
            async for line in training.lines:
                _show_save(line, console)
            code = await training.wait()
    except TimeoutError:
        training.fail("took too long", limit_seconds=TRAINING_SECONDS)
    finally:
        await training.stop()
    if code != 0:
        training.fail("failed", code=code)


def _show_save(line: bytes, console: Console) -> None:
    try:
        saved = msgspec.json.decode(line, type=dict[str, Any])
        text = (
            f"trainer   saved step {saved['step']}: BIN {saved['eval_BIN']:.2f}, SY {saved['eval_SY']:.2f},"
            f" eval loss {saved['eval_loss']:.3f}"
        )
    except (msgspec.DecodeError, KeyError, TypeError, ValueError):
        return  # something else that a library prints
    console.print(Text(f"{datetime.now(UTC):%H:%M:%S}  {text}", style="magenta"), soft_wrap=True)


async def _follow(plan: Plan, bus: Bus, console: Console, *, ended: asyncio.Event) -> None:
    """Shows this campaign's events until each expected checkpoint's analysis has ended; sets ``ended`` at each."""
    waiting = set(plan.expected_steps)
    # Set instead of leaving the loop, so that the reader takes its leave of the server.
    stop = asyncio.Event()
    async for logged in events(bus, last=0, follow=True, subjects=BATTLE_LOG, stop=stop):
        event = logged.event
        if _said(event, "campaign_id") != plan.campaign_id:
            continue
        _show_event(event, console)
        if event.type in ENDINGS:
            waiting.discard(_said(event, "checkpoint_step"))
            ended.set()
        if not waiting:
            stop.set()


def _show_event(event: Event, console: Console) -> None:
    line = Text(f"{event.time[11:19]}  ")
    line.append(f"{event.type.removeprefix('analysis.'):<10}", style=COLOURS.get(event.severity, ""))
    line.append(event.message)
    console.print(line, soft_wrap=True)


def _said(event: Event, field: str) -> Any:
    return event.data.get(field) if isinstance(event.data, dict) else None


async def _findings(plan: Plan, bus: Bus) -> list[Finding]:
    key = f"{HERO}/{plan.campaign_id}/record"
    record = await Records(bus, subjects.CAMPAIGN_RECORDS, CampaignRecord, deadline_seconds=BUS_SECONDS).get(key)
    findings = gather(record.value, plan.folder) if record else []
    if missing := shortcomings(findings, expected_steps=plan.expected_steps):
        log = plan.log_path("daemon")
        msg = f"{'; '.join(missing)}; the daemon's log {str(log)!r} ends with:\n{tail(log)}"
        raise DemoFailed(msg)
    return findings


def _first(group: BaseExceptionGroup[DemoFailed]) -> DemoFailed:
    error = group.exceptions[0]
    return error if isinstance(error, DemoFailed) else _first(error)
