"""What a person sees on the terminal: consoles, colours, the progress bar.

Results go to standard output, everything else to standard error. Colours only on a terminal; rich respects NO_COLOR.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.text import Text

from contracts.messages import Progress

PIPE_WIDTH: Final = 240
"""Columns where no terminal sets them: nothing that a script greps for is cut."""

STYLES: Final = {
    "info": "cyan",
    "success": "green",
    "ok": "green",
    "done": "green",
    "warning": "yellow",
    "cancelled": "yellow",
    "running": "cyan",
    "error": "bold red",
    "critical": "bold red",
    "failed": "bold red",
    "refused": "bold red",
}
"""Colour of a severity or a state; the word always stands beside it."""


def output() -> Console:
    """Standard output."""
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False, markup=False, emoji=False)


def notices() -> Console:
    """Standard error."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def word(text: str) -> Text:
    """A severity or a state in its colour."""
    return Text(text, style=STYLES.get(text, ""))


def printable(text: object) -> str:
    """Text from elsewhere on one line, without what would steer the terminal."""
    return "".join(character if character.isprintable() else " " for character in str(text))


def print_json(value: Any) -> None:
    """A value as indented JSON on standard output."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def print_line(value: Any) -> None:
    """A value as one line of JSON on standard output, at once: somebody may be following."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Callable[[Progress], None]]:
    """A bar on standard error that goes away at the end; nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with ProgressBar(*columns, console=notices(), transient=True) as bar:
        task = bar.add_task(title, total=None)

        def show(line: Progress) -> None:
            text = f"{title}: {line.stage} {line.block}/{line.blocks}"
            bar.update(task, description=text, completed=line.bytes_read, total=line.bytes_total)

        yield show
