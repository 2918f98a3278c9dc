"""``log``: the Battle Log, replayed and followed."""

import asyncio
import contextlib
import re
from collections import deque
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Final

import typer

from archaeologist.cli.options import AsJson, Config, NatsUrl, read_settings

if TYPE_CHECKING:
    from rich.text import Text

    from archaeologist.settings import Settings
    from contracts.messages import Event

_DURATION: Final = re.compile(r"(\d{1,9})([smhdw])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
SEVERITY_WIDTH: Final = 7


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
    """Shows the Battle Log: what was analysed, what was found, what failed."""
    settings = read_settings(config=config, nats_url=nats_url)
    start = moment(since, now=datetime.now(UTC)) if since else None
    asyncio.run(
        _show(
            settings, follow=follow, last=last, since=start, campaign=campaign, has_progress=progress, as_json=as_json
        )
    )


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
    code = (data.get("error") or {}).get("code") if event.type == "analysis.failed" else None
    return Text.assemble(
        (_clock(event.time), "dim"),
        "  ",
        (f"{printable(event.severity):{SEVERITY_WIDTH}}", STYLES.get(event.severity, "")),
        "  ",
        (f"{where}  ", "bold") if where else "",
        f"{printable(code)}: " if code else "",
        printable(event.message),
    )


async def _show(
    settings: "Settings",
    *,
    follow: bool,
    last: int | None,
    since: datetime | None,
    campaign: str | None,
    has_progress: bool,
    as_json: bool,
) -> None:
    from archaeologist.bus.connection import connected
    from archaeologist.bus.log import events
    from contracts import subjects

    wanted = [name for name in subjects.BATTLE_LOG_SUBJECTS if has_progress or name != subjects.ANALYSIS_PROGRESS]
    async with connected(settings.bus, name="archaeologist log") as bus:
        # What there is comes first, bounded by --last; what comes goes on behind it.
        kept: deque[Event] = deque(maxlen=last)
        position = 0
        async for logged in events(bus, since=since, follow=False, subjects=wanted):
            position = logged.sequence
            if not concerns(logged.event, campaign):
                continue
            if last is None:
                _print(logged.event, as_json=as_json)
            else:
                kept.append(logged.event)
        for event in kept:
            _print(event, as_json=as_json)
        if not follow:
            return
        # Behind nothing that was seen, the same start again: an empty log has no sequence to go on from.
        async for logged in events(bus, after_sequence=position, since=since, follow=True, subjects=wanted):
            if concerns(logged.event, campaign):
                _print(logged.event, as_json=as_json)


def _print(event: "Event", *, as_json: bool) -> None:
    from archaeologist.cli import console

    if as_json:
        console.print_line(event)
    else:
        console.output().print(line(event), soft_wrap=True)


def _clock(time: str) -> str:
    try:
        return datetime.fromisoformat(time).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return time[:19]
