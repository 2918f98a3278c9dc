"""Times how long a browser takes to show the page of a long campaign.

``python -m tests.benchmarks.page [--checkpoints 2000] [--rounds 7] [--folder DIR]``. The campaign and the server are
those of ``tests.benchmarks.web``; the browser is a headless Chromium on the same machine. Milliseconds from the
navigation (or the choice of another metric) until the heatmap is drawn, by the browser's own clock; the first opening
asks the server for figures that it has not made yet. Nothing is asserted.
"""

import argparse
import asyncio
import statistics
from pathlib import Path

from playwright.async_api import Browser, Page

from tests.benchmarks.web import campaign_of, serving
from tests.fixtures.browsers import browsing

PATIENCE_SECONDS = 120
WATCH = """() => {
    // Each moment at which a heatmap is drawn.
    window.drawnAt = [];
    const watch = () => {
        const frame = document.getElementById("figure-strata");
        if (!frame) return requestAnimationFrame(watch);
        new MutationObserver(() => frame.dataset.drawn && window.drawnAt.push(performance.now()))
            .observe(frame, { attributes: true, attributeFilter: ["data-drawn"] });
    };
    watch();
}"""
CHOOSE = """(name) => {
    window.drawnAt = [];
    window.chosenAt = performance.now();
    const metric = document.getElementById("metric");
    metric.value = name;
    metric.dispatchEvent(new Event("change"));
}"""


async def main() -> None:
    """Makes the campaign, starts server and browser, opens the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    with campaign_of(options.checkpoints, within=options.folder) as root:
        async with serving(root) as address, browsing() as browser:
            print(f"{options.checkpoints} checkpoints, milliseconds until the heatmap is drawn:")  # noqa: T201
            first, switched = await _opened(browser, f"{address}/analysis")
            again = [await _opened(browser, f"{address}/analysis") for _ in range(options.rounds)]
            _tell("opened, figures not made yet", [first])
            _tell("opened, warm", [opening for opening, _ in again])
            _tell("another metric, not made yet", [switched])
            _tell("another metric, warm", [switching for _, switching in again])


def _tell(what: str, taken: list[float]) -> None:
    most = f", most {max(taken):6.0f}" if len(taken) > 1 else ""
    print(f"  {what:30} {statistics.median(taken):6.0f}{most}")  # noqa: T201


async def _opened(browser: Browser, address: str) -> tuple[float, float]:
    """Until the heatmap is drawn: from the navigation, and from the choice of another metric."""
    context = await browser.new_context(viewport={"width": 1280, "height": 900})
    try:
        page = await context.new_page()
        await page.add_init_script(f"({WATCH})()")
        await page.goto(address)
        opening = await _drawn(page)
        await page.locator("#loading").wait_for(state="hidden", timeout=1000 * PATIENCE_SECONDS)
        await page.evaluate(CHOOSE, "l2")
        return opening, await _drawn(page) - float(await page.evaluate("window.chosenAt"))
    finally:
        await context.close()


async def _drawn(page: Page) -> float:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not (moments := await page.evaluate("window.drawnAt")):
            await page.wait_for_timeout(20)
    return float(moments[0])


if __name__ == "__main__":
    asyncio.run(main())
