"""``log``: the Battle Log, replayed and followed."""

import asyncio
import contextlib
import re
from collections import deque
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import typer

from archaeologist.cli.options import AsJson, Config, NatsUrl, read_settings
from contracts import subjects

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from archaeologist.bus.connection import Bus
    from archaeologist.cli.console import Bars
    from archaeologist.settings import Settings
    from contracts.messages import Event

_DURATION: Final = re.compile(r"(\d{1,9})([smhdw])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
SEVERITY_WIDTH: Final = 7
ENDS: Final = frozenset({"analysis.completed", "analysis.failed", "analysis.cancelled"})


class Asked(NamedTuple):
    """What of the log is shown, and how."""

    follow: bool
    last: int | None
    since: datetime | None
    campaign: str | None
    has_progress: bool
    as_json: bool

    @property
    def subjects(self) -> list[str]:
        """Of the events that become lines."""
        known = subjects.BATTLE_LOG_SUBJECTS
        return [name for name in known if self.has_progress or name != subjects.ANALYSIS_PROGRESS]


def log(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    last: Annotated[int | None, typer.Option("--last", "-n", min=0, help="Only so many of what there is.")] = None,
    since: Annotated[
        str | None, typer.Option("--since", help="30m, 2h, 7d, or a time like 2026-01-02T03:04:05Z.")
    ] = None,
    campaign: Annotated[str | None, typer.Option("--campaign", help="CAMPAIGN or HERO/CAMPAIGN.")] = None,
    progress: Annotated[bool, typer.Option("--progress", help="Progress events too.")] = False,
    as_json: AsJson = False,
    config: Config = None,
    nats_url: NatsUrl = None,
) -> None:
    """Shows the Battle Log: what was analysed, what was found, what failed; followed on a terminal, what runs too."""
    settings = read_settings(config=config, nats_url=nats_url)
    start = moment(since, now=datetime.now(UTC)) if since else None
    asked = Asked(follow=follow, last=last, since=start, campaign=campaign, has_progress=progress, as_json=as_json)
    asyncio.run(_show(settings, asked))


def moment(text: str, *, now: datetime) -> datetime:
    """The moment that a duration before now, or a time in RFC 3339, names; without a zone it is local.

    Raises:
        UsageError: It names none.
    """
    from archaeologist.errors import UsageError

    if match := _DURATION.fullmatch(text):
        with contextlib.suppress(OverflowError):
            return now - timedelta(**{_UNITS[match[2]]: int(match[1])})
    with contextlib.suppress(ValueError):
        return datetime.fromisoformat(text).astimezone(UTC)
    msg = f"--since {text!r} is no time; write 30m, 2h, 7d, or a time like 2026-01-02T03:04:05Z"
    raise UsageError(msg)


def concerns(event: "Event", campaign: str | None) -> bool:
    """Whether an event is of a campaign, given as ``campaign`` or ``hero/campaign``."""
    if campaign is None:
        return True
    data = event.data if isinstance(event.data, dict) else {}
    return campaign in {data.get("campaign_id"), f"{data.get('hero_id')}/{data.get('campaign_id')}"}


def line(event: "Event") -> "Text":
    """An event as a line: local time, severity, campaign, message."""
    from rich.text import Text

    from archaeologist.cli.console import STYLES, printable

    data = event.data if isinstance(event.data, dict) else {}
    where = "/".join(printable(data[name]) for name in ("hero_id", "campaign_id") if data.get(name))
    error = data.get("error") if event.type == "analysis.failed" else None
    code = error.get("code") if isinstance(error, dict) else None
    return Text.assemble(
        (_clock(event.time), "dim"),
        "  ",
        (f"{printable(event.severity):{SEVERITY_WIDTH}}", STYLES.get(event.severity, "")),
        "  ",
        (f"{where}  ", "bold") if where else "",
        f"{printable(code)}: " if code else "",
        printable(event.message),
    )


def move(bars: "Bars", event: "Event") -> None:
    """Brings the bars of running jobs to where an event says that its job is."""
    import msgspec

    from archaeologist.cli.console import printable
    from contracts.messages import ProgressData

    data = event.data if isinstance(event.data, dict) else {}
    key = str(data.get("job_key"))
    title = printable(f"{data.get('hero_id')}/{data.get('campaign_id')} step {data.get('checkpoint_step')}")
    if event.type == "analysis.started":
        bars.begin(key, title)
    elif event.type in ENDS:
        bars.end(key)
    elif event.type == "analysis.progress":
        # What another version writes may have another shape: then there is no bar.
        with contextlib.suppress(msgspec.ValidationError):
            bars.show(key, title, msgspec.convert(data, ProgressData))


async def _show(settings: "Settings", asked: Asked) -> None:
    from archaeologist.bus.connection import connected
    from archaeologist.cli import console

    out = console.output()
    async with connected(settings.bus, name="archaeologist log") as bus:
        # What there is comes first, bounded by --last; what comes goes on behind it.
        position, running = await _replay(bus, asked, out)
        if asked.follow:
            await _follow(bus, asked, out, position=position, running=running)


async def _replay(bus: "Bus", asked: Asked, out: "Console") -> "tuple[int, list[Event]]":
    """Shows what there is; the last sequence, and the starts of the jobs that run."""
    from archaeologist.bus.log import events

    kept: deque[Event] = deque(maxlen=asked.last)
    running: dict[str, Event] = {}
    position = 0
    async for logged in events(bus, since=asked.since, follow=False, subjects=asked.subjects):
        position = logged.sequence
        if not concerns(logged.event, asked.campaign):
            continue
        _note(running, logged.event)
        if asked.last is None:
            _print(logged.event, out, as_json=asked.as_json)
        else:
            kept.append(logged.event)
    for event in kept:
        _print(event, out, as_json=asked.as_json)
    return position, list(running.values())


async def _follow(bus: "Bus", asked: Asked, out: "Console", *, position: int, running: "list[Event]") -> None:
    """Shows what comes, on a terminal with a bar for each job that runs."""
    from archaeologist.bus.log import events
    from archaeologist.cli import console

    has_bars = out.is_terminal and not asked.as_json
    heard = {*asked.subjects, *([subjects.ANALYSIS_PROGRESS] if has_bars else [])}
    with console.progress_bars(out) if has_bars else contextlib.nullcontext(console.Bars(None)) as bars:
        for event in running:
            move(bars, event)
        # Behind nothing that was seen, the same start again: an empty log has no sequence to go on from.
        following = events(bus, after_sequence=position, since=asked.since, follow=True, subjects=sorted(heard))
        async for logged in following:
            if concerns(logged.event, asked.campaign):
                move(bars, logged.event)
                if logged.event.type in asked.subjects:
                    _print(logged.event, out, as_json=asked.as_json)


def _note(running: "dict[str, Event]", event: "Event") -> None:
    """Keeps what began and has not ended."""
    key = str(event.data.get("job_key")) if isinstance(event.data, dict) else ""
    if event.type == "analysis.started":
        running[key] = event
    elif event.type in ENDS:
        running.pop(key, None)


def _print(event: "Event", out: "Console", *, as_json: bool) -> None:
    from archaeologist.cli import console

    if as_json:
        console.print_line(event)
    else:
        out.print(line(event), soft_wrap=True)


def _clock(time: str) -> str:
    from archaeologist.cli.console import printable
    from archaeologist.moments import read_moment

    at = read_moment(time)
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S") if at else printable(time[:19])
