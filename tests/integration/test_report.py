"""A report in a real browser: drawn, in silence, at the height that it tells."""

import struct
from datetime import UTC, datetime
from pathlib import Path

import pytest
from playwright.async_api import expect

from archaeologist.errors import BrowserFailed
from archaeologist.report.browser import screenshot
from archaeologist.report.page import rendered
from tests.fixtures.browsers import browsing, needed_browser, opened
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


async def test_a_report_that_is_resized_is_drawn_for_its_width_without_pieces_of_the_other(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    path.write_text(rendered(campaign((HOSTILE, "model.layers.0")), written=NOW), encoding="utf-8")
    async with browsing() as browser, opened(browser, path.as_uri()) as tab:
        texts = tab.page.locator("#strata-plot .infolayer text")
        await expect(tab.page.locator("html[data-drawn]")).to_be_attached()
        before = await texts.all_text_contents()
        for width, narrow in ((500, "true"), (1280, "false")):
            await tab.page.set_viewport_size({"width": width, "height": 900})
            await expect(tab.page.locator(f"#strata-plot[data-narrow={narrow}]")).to_be_attached()
        await expect(texts).to_have_text(before)
        assert tab.troubles == []
