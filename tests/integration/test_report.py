"""A report in a real browser: drawn, in silence, at the height that it tells."""

import struct
from datetime import UTC, datetime
from pathlib import Path

import pytest

from archaeologist.errors import BrowserFailed
from archaeologist.report.browser import screenshot
from archaeologist.report.page import rendered
from tests.fixtures.browsers import needed_browser
from tests.unit.report.test_page import HOSTILE, campaign

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def test_a_report_with_hostile_names_is_drawn_whole_by_a_browser(tmp_path: Path) -> None:
    browser = needed_browser()
    path, image = tmp_path / "r.html", tmp_path / "r.png"
    path.write_text(rendered(campaign((HOSTILE, "model.layers.0")), written=NOW), encoding="utf-8")
    screenshot(path, image, browser=browser)
    content = image.read_bytes()
    width, height = struct.unpack(">II", content[16:24])
    assert width == 1280
    assert height > 2000


def test_a_page_that_never_says_it_is_drawn_gives_no_image(tmp_path: Path) -> None:
    browser = needed_browser()
    path, image = tmp_path / "r.html", tmp_path / "r.png"
    path.write_text("<!DOCTYPE html><p>no report", encoding="utf-8")
    with pytest.raises(BrowserFailed, match="did not finish drawing"):
        screenshot(path, image, browser=browser)
    assert not image.exists()
