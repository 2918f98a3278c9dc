"""An image of a report, made by a browser that is installed: Chromium, Chrome or Edge, headless."""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from archaeologist.errors import BrowserFailed, BrowserMissing

NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
WIDTH: Final = 1280
SECONDS: Final = 120
DRAWING_MILLISECONDS: Final = 20_000
"""Of the page's own time, which runs as fast as it can."""
MOST_HIGH: Final = 16_000
"""Pixels; beyond, Chromium's surface ends."""

_DRAWN: Final = re.compile(rb'<html[^>]* data-drawn="(\d{1,6})"')


def find_browser() -> str:
    """The path of a browser.

    Raises:
        BrowserMissing: None is installed.
    """
    for name in NAMES:
        if found := shutil.which(name):
            return found
    msg = f"none of {', '.join(NAMES)} is on the PATH, an image needs one; install Chromium, or leave out --png"
    raise BrowserMissing(msg)


def screenshot(report: Path, image: Path, *, browser: str, width: int = WIDTH) -> None:
    """Writes the whole report as a PNG. Blocking, some seconds.

    Args:
        report: An HTML file that tells its height in ``data-drawn`` once it is drawn.
        image: The file to write; one that is there is replaced.
        browser: From ``find_browser``.
        width: In CSS pixels.

    Raises:
        BrowserFailed: It ended with an error, took too long, or drew nothing.
    """
    with tempfile.TemporaryDirectory(prefix="archaeologist-") as profile:
        drawn = _run(browser, profile, width, 1000, "--dump-dom", report.resolve().as_uri())
        found = _DRAWN.search(drawn)
        if found is None:
            msg = f"{browser!r} did not finish drawing {str(report)!r}; open the report in it and look at its console"
            raise BrowserFailed(msg)
        height = min(MOST_HIGH, int(found[1]))
        made = Path(profile) / "report.png"
        _run(browser, profile, width, height, f"--screenshot={made}", report.resolve().as_uri())
        if not made.exists():
            msg = f"{browser!r} wrote no image of {str(report)!r}; try another browser"
            raise BrowserFailed(msg)
        image.write_bytes(made.read_bytes())


def _run(browser: str, profile: str, width: int, height: int, *arguments: str) -> bytes:
    command = [
        browser,
        "--headless",
        "--disable-gpu",
        "--hide-scrollbars",
        "--no-first-run",
        "--disable-extensions",
        f"--user-data-dir={profile}",
        f"--window-size={width},{height}",
        f"--virtual-time-budget={DRAWING_MILLISECONDS}",
        # Chromium's sandbox refuses to run as root; the page is our own and may load nothing.
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
        *arguments,
    ]
    try:
        done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=True)
    except subprocess.TimeoutExpired as error:
        msg = f"{browser!r} took longer than {SECONDS} s for the report; leave out --png"
        raise BrowserFailed(msg) from error
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", b"") or b"").decode(errors="replace").strip().rpartition("\n")[2]
        msg = f"{browser!r} failed: {error}; {said[:200] or 'it said nothing'}"
        raise BrowserFailed(msg) from error
    return done.stdout
