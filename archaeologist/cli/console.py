"""What a person sees on the terminal: consoles, colours, the progress bar.

Results go to standard output, everything else to standard error. Colours only on a terminal; rich respects NO_COLOR.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.text import Text

from archaeologist.texts import escaped_json
from contracts.messages import Progress, ProgressData

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


def print_text(text: object) -> None:
    """A line on standard output, however long: a path or an id that wraps cannot be copied or searched for."""
    output().print(printable(text), soft_wrap=True)


def print_json(value: Any) -> None:
    """A value as indented JSON on standard output."""
    sys.stdout.write(escaped_json(msgspec.json.format(msgspec.json.encode(value), indent=2).decode()) + "\n")


def print_line(value: Any) -> None:
    """A value as one line of JSON on standard output, at once: somebody may be following."""
    sys.stdout.write(escaped_json(msgspec.json.encode(value).decode()) + "\n")
    sys.stdout.flush()


class Bars:
    """Progress bars of what runs, below whatever the console prints; nothing where that is no terminal.

    Args:
        bars: None where there is no terminal.
    """

    def __init__(self, bars: ProgressBar | None) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    @property
    def titles(self) -> list[str]:
        """What the bars say, from above."""
        return [task.description for task in self._bars.tasks] if self._bars else []

    def begin(self, key: str, title: str) -> None:
        """A bar that does not move yet; one that is there begins anew."""
        self.end(key)
        if self._bars is not None:
            self._tasks[key] = self._bars.add_task(title, total=None)

    def show(self, key: str, title: str, line: Progress | ProgressData) -> None:
        """How far it is."""
        if self._bars is not None:
            if key not in self._tasks:
                self.begin(key, title)
            text = f"{title}: {printable(line.stage)} {line.block}/{line.blocks}"
            done, total = line.bytes_read, line.bytes_total
            self._bars.update(self._tasks[key], description=text, completed=done, total=total)

    def end(self, key: str) -> None:
        """The bar goes away."""
        if self._bars is not None and key in self._tasks:
            self._bars.remove_task(self._tasks.pop(key))


@contextlib.contextmanager
def progress_bars(console: Console) -> Iterator[Bars]:
    """Bars on a console, gone at the end."""
    if not console.is_terminal:
        yield Bars(None)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with ProgressBar(*columns, console=console, transient=True) as bars:
        yield Bars(bars)


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Callable[[Progress], None]]:
    """One bar on standard error."""
    with progress_bars(notices()) as bars:
        bars.begin("", title)
        yield lambda line: bars.show("", title, line)
