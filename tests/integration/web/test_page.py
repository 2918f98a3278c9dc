"""The page in a real browser, on a real server, a real bus and a daemon with quick children."""

import contextlib
import itertools
import json
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal

import httpx
import msgspec
import numpy as np
import pytest
from playwright.async_api import Browser, expect

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.settings import BusSettings, Settings
from contracts.artifacts import Alert, SkillHistory, SkillScore
from tests.fixtures.browsers import Tab, browsing, opened
from tests.fixtures.histories import artifact, place_whole, put, with_activations
from tests.fixtures.servers import free_port
from tests.fixtures.waiting import until_asked
from tests.fixtures.web import served
from tests.integration.daemon.house import CAMPAIGN, HERO, House, with_quick_children
from tests.integration.web.conftest import until_ready

PATIENCE_MILLISECONDS: Final = 20_000
HOSTILE: Final = "model.<img src=x onerror=alert(1)>\u202e"
HOSTILE_SHOWN: Final = HOSTILE.replace("\u202e", r"\u202e")
"""What would turn the direction of the text after it is written out."""
SKILL: Final = "<b>sums</b>"
LAYERS: Final = 6
STEPS: Final = range(100, 900, 100)
TOKEN: Final = "0123456789abcdef"  # noqa: S105 -- a test's
WHOSE: Final[dict[str, Any]] = {"hero_id": HERO, "campaign_id": CAMPAIGN}

expect.set_options(timeout=PATIENCE_MILLISECONDS)


def weights(step: int) -> dict[str, Any]:
    """Blocks deeper down move farther, by their own length; the head's values are larger."""
    of_layers = (f"model.layers.{number}.mlp.weight" for number in range(LAYERS))
    names = [*of_layers, f"{HOSTILE}.weight", "lm_head.weight", "model.layers.1.attn.weight"]
    sizes = {"lm_head.weight": 100.0}
    return {
        name: np.full(16, sizes.get(name, 1.0) * (1.0 + step * 1e-3 / (place + 1))) for place, name in enumerate(names)
    }


def fill(folder: CampaignFolder) -> None:
    """A campaign with everything that a page shows."""
    folder.layer_stats(0).parent.mkdir(parents=True, exist_ok=True)
    folder.sketch(0).parent.mkdir(parents=True, exist_ok=True)
    before: tuple[int, Any] | None = None
    for step in STEPS:
        now = weights(step)
        probed = with_activations(artifact(step, now, reference=before), std=1.0 + step / 1000, entropy=3.0)
        alerts = (Alert(severity="critical", family="entropy", metric="entropy", message="entropy <i>fell"),)
        put(
            folder,
            step,
            now,
            reference=before,
            activation_stats=probed.activation_stats,
            probe_info=probed.probe_info,
            output_stats=probed.output_stats,
            alerts=alerts if step == STEPS[-1] else (),
            **WHOSE,
        )
        before = (step, now)
    heard = tuple(SkillScore(step=step, score=(step / 1000) ** 2, num_samples=1_000_000) for step in STEPS)
    history = SkillHistory(skills={SKILL: heard}, **WHOSE)
    place_whole(folder.skills, msgspec.json.encode(history))


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with browsing() as found:
        yield found


PLACE: Final = """([row, column]) => {
    const frame = document.getElementById("figure-strata");
    frame.scrollIntoView({ block: "center" });
    const { left, top } = frame.getBoundingClientRect();
    const { xaxis, yaxis } = frame._fullLayout;
    return [left + xaxis._offset + xaxis.c2p(column), top + yaxis._offset + yaxis.c2p(row)];
}"""
"""Where a cell's middle is on the screen."""
VALUES: Final = "document.getElementById('figure-strata')._fullData[0].customdata.map((row) => [...row])"


async def shown(tab: Tab) -> None:
    """Waits until everything that is drawn is."""
    for name in ("strata", "movers", "layer", "scores", "impact", "health"):
        await expect(tab.page.locator(f"#figure-{name}[data-drawn]")).to_be_attached()


async def drawn_as(tab: Tab, what: str) -> None:
    """Waits until the strata have these values; the page lets no text be run, so it is asked from here."""
    await until_asked(lambda: tab.page.evaluate(VALUES + what))
    await expect(tab.page.locator("#figure-strata[data-drawn]")).to_be_attached()


async def test_a_campaign_is_read_without_a_bus(tmp_path: Path, browser: Browser) -> None:
    folder = CampaignFolder.of(tmp_path / "root", HERO, CAMPAIGN)
    fill(folder)
    settings = Settings(root=str(folder.root), bus=BusSettings(url=f"nats://127.0.0.1:{free_port()}"))
    async with contextlib.AsyncExitStack() as server:
        api = await server.enter_async_context(served(settings))
        async with opened(browser, f"{api.base_url}/analysis") as tab:
            await shown(tab)
            # The farthest by relative L2, as the cards have it; by raw L2 it would be the head.
            await expect(tab.page.locator("#block")).to_have_value("model.layers.0")
            timeline = (await api.get(f"/api/analysis/{CAMPAIGN}/drift_timeline")).json()
            await the_strata_are_right(tab, timeline)
            await rows_are_submodules_where_they_are_asked_for(tab)
            await a_cell_opens_its_block(tab, timeline)
            await the_keys_go_on_from_their_cell_in_another_figure(tab)
            await a_name_says_what_it_means(tab)
            await a_frame_that_is_resized_is_drawn_for_its_width(tab)
            await names_are_text(tab)
            await a_checkpoint_is_shown_whole(tab)
            await expect(tab.page.locator("#lamp-words")).to_contain_text("bus down since")
            await expect(tab.page.locator("#jobs")).to_contain_text("the bus is down")
            await tab.page.locator("#run-step").fill("900")
            await tab.page.locator("#run-button").click()
            await expect(tab.page.locator("#run-status.trouble")).to_contain_text("no connection to the bus")
            assert tab.foreign(str(api.base_url)) == []
            # The browser's own words for the replies that say the bus is down.
            assert [trouble for trouble in tab.troubles if "503" not in trouble] == []
            await server.aclose()
            await expect(tab.page.locator("#stream")).to_contain_text("reconnecting")


async def the_strata_are_right(tab: Tab, timeline: dict[str, Any]) -> None:
    await expect(tab.page.locator("#figure-strata .hm image")).to_be_attached()
    drawn = await tab.page.evaluate(VALUES)
    expected = [layer["relative_l2"] for layer in timeline["layers"].values()]
    assert len(drawn) == len(expected) == LAYERS + 2
    for row, numbers in zip(drawn, expected, strict=True):
        assert row[0] is None or np.isnan(row[0])  # the first checkpoint was compared with nothing
        assert row[1:] == pytest.approx(numbers, rel=1e-6)
    await tab.page.locator("#metric").select_option("changed_fraction")
    await expect(tab.page.locator("#definition")).to_have_text("share of values whose bits differ")
    await drawn_as(tab, "[0][1] === 1")
    await tab.page.locator("#metric").select_option("relative_l2")
    await expect(tab.page.locator("#definition")).to_contain_text("reference's norm")
    await drawn_as(tab, "[0][1] !== 1")


async def rows_are_submodules_where_they_are_asked_for(tab: Tab) -> None:
    await tab.page.locator("#rows").select_option("submodule")
    await expect(tab.page.locator("#figure-strata .subplot.xy .yaxislayer-above")).to_contain_text("layers.1.attn")
    await drawn_as(tab, f".length === {LAYERS + 3}")
    await tab.page.mouse.click(*await tab.page.evaluate(PLACE, [2, STEPS.index(600)]))
    await expect(tab.page.locator("#cell-title")).to_have_text("At step 600")
    await expect(tab.page.locator("#block")).to_have_value("model.layers.1")
    await expect(tab.page.locator("#figure-layer .legend")).to_contain_text("attn")
    await tab.page.locator("#metric").select_option("activation_std")
    await expect(tab.page.locator("#rows")).to_be_disabled()
    await drawn_as(tab, f".length === {LAYERS + 2}")
    await tab.page.locator("#metric").select_option("relative_l2")
    await drawn_as(tab, f".length === {LAYERS + 3}")
    await tab.page.locator("#rows").select_option("block")
    await drawn_as(tab, f".length === {LAYERS + 2}")
    await expect(tab.page.locator("#figure-strata .subplot.xy .yaxislayer-above")).not_to_contain_text("layers.1.attn")


async def a_cell_opens_its_block(tab: Tab, timeline: dict[str, Any]) -> None:
    column = STEPS.index(500)
    await tab.page.mouse.click(*await tab.page.evaluate(PLACE, [2, column]))
    await expect(tab.page.locator("#cell-title")).to_have_text("At step 500")
    await expect(tab.page.locator("#block")).to_have_value("model.layers.2")
    value = timeline["layers"]["model.layers.2"]["relative_l2"][column - 1]
    await expect(tab.page.locator("#cell-detail")).to_contain_text(f"{value:.4g}")
    await tab.page.locator("#figure-strata").focus()
    for key in ("ArrowUp", "ArrowLeft", "ArrowDown", "ArrowUp"):
        await tab.page.keyboard.press(key)
    await expect(tab.page.locator("#cell")).to_contain_text("model.layers.3, step 400: Relative L2 0.0")
    await tab.page.keyboard.press("Enter")
    await expect(tab.page.locator("#cell-title")).to_have_text("At step 400")
    await expect(tab.page.locator("#block")).to_have_value("model.layers.3")


async def the_keys_go_on_from_their_cell_in_another_figure(tab: Tab) -> None:
    said = tab.page.locator("#cell")
    await tab.page.locator("#metric").select_option("changed_fraction")
    await drawn_as(tab, "[0][1] === 1")
    await tab.page.locator("#figure-strata").press("ArrowRight")
    await expect(said).to_contain_text("model.layers.3, step 500: Changed")
    await tab.page.locator("#rows").select_option("submodule")
    await drawn_as(tab, f".length === {LAYERS + 3}")
    await tab.page.locator("#figure-strata").press("ArrowLeft")
    await expect(said).to_contain_text("model.layers.3.mlp.weight, step 400: Changed")
    await tab.page.locator("#metric").select_option("relative_l2")
    await tab.page.locator("#rows").select_option("block")
    await drawn_as(tab, f".length === {LAYERS + 2} && document.getElementById('metric').value === 'relative_l2'")


async def a_name_says_what_it_means(tab: Tab) -> None:
    meaning = tab.page.locator("#meaning")
    drift = tab.page.locator("#cell-detail a.term", has_text="drift: relative l2")
    await drift.hover()
    await expect(meaning).to_contain_text("The headline: raw L2 favours large tensors")
    await tab.page.keyboard.press("Escape")
    await expect(meaning).to_be_hidden()
    await drift.focus()
    await expect(meaning).to_be_visible()
    await expect(drift).to_have_attribute("href", "/docs/statistics#weight-drift")
    await expect(tab.page.locator("#definition-more")).to_have_attribute("href", "/docs/statistics#weight-drift")
    await tab.page.locator("#block").focus()
    await expect(meaning).to_be_hidden()


SCALE: Final = """[...document.querySelectorAll("#figure-strata .infolayer text")].map((text) => text.textContent)"""


async def a_frame_that_is_resized_is_drawn_for_its_width(tab: Tab) -> None:
    before = await tab.page.evaluate(SCALE)
    for width, narrow in ((500, "true"), (1280, "false")):
        await tab.page.set_viewport_size({"width": width, "height": 900})
        await expect(tab.page.locator(f"#figure-strata[data-narrow={narrow}][data-drawn]")).to_be_attached()
    assert await tab.page.evaluate(SCALE) == before
    await tab.page.mouse.click(*await tab.page.evaluate(PLACE, [2, STEPS.index(400)]))
    await expect(tab.page.locator("#cell-title")).to_have_text("At step 400")
    await expect(tab.page.locator("#block")).to_have_value("model.layers.2")


async def names_are_text(tab: Tab) -> None:
    assert await tab.page.locator("img").count() == 0
    await tab.page.locator("#block").select_option(HOSTILE)
    assert "\u202e" not in await tab.page.locator("body").inner_text()
    await expect(tab.page.locator("#block option:checked")).to_have_text(HOSTILE_SHOWN)
    await expect(tab.page.locator("#cell-detail")).to_contain_text("drift: relative l2")
    await tab.page.locator("#strata .behind summary").click()
    await expect(tab.page.locator("#table-strata th", has_text=HOSTILE_SHOWN)).to_be_visible()
    await expect(tab.page.locator("#alerts")).to_contain_text("critical")
    await expect(tab.page.locator("#findings-list .critical")).to_contain_text("alert at step 800")
    await expect(tab.page.locator("#skill")).to_have_value(SKILL)
    await expect(tab.page.locator("#skill-size")).to_contain_text("of 7 intervals used")
    await expect(tab.page.locator("#figure-scores .gtitle")).to_have_text(f"{SKILL}: 8 scores")
    assert await tab.page.locator("img, b").count() == 0


async def a_checkpoint_is_shown_whole(tab: Tab) -> None:
    await tab.page.get_by_role("button", name="View step 800").click()
    detail = tab.page.locator("#detail")
    await expect(detail).to_contain_text("entropy <i>fell")
    await expect(detail.locator("th", has_text=HOSTILE_SHOWN).first).to_be_attached()
    async with tab.page.expect_download() as waiting:
        await detail.get_by_text("Download JSON").click()
    path = await (await waiting.value).path()
    assert json.loads(path.read_bytes())["checkpoint_step"] == 800
    await tab.page.keyboard.press("Escape")
    await expect(detail).to_be_hidden()


async def test_a_job_is_asked_for_followed_and_taken_back(
    house: House, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(house.folder)
    house.save(900)
    house.save(1000)
    with_quick_children(monkeypatch, alerts=1)
    async with served(house.settings) as api, house.daemon():
        await until_ready(api)
        async with opened(browser, "about:blank") as tab:
            # A reader's clock that is fast.
            await tab.page.clock.install(time=datetime.now(UTC) + timedelta(hours=1))
            await tab.page.goto(f"{api.base_url}/analysis")
            await shown(tab)
            await expect(tab.page.locator("#lamp-words")).to_contain_text("bus connected since")
            await ask(tab, "900")
            entries = tab.page.locator("#entries")
            for kind in ("started", "alert", "completed"):
                await expect(entries.locator(f"li[data-type='analysis.{kind}']")).to_be_visible()
            await expect(tab.page.locator(".card .value").first).to_have_text("9")
            await tab.page.locator("#run-step").fill("900")
            await tab.page.locator("#run-button").click()
            await expect(tab.page.locator("#run-status")).to_contain_text("tick “again, although it is done”")
            monkeypatch.setenv("CHILD_SECONDS", "60")
            await ask(tab, "1000")
            job = tab.page.locator(".job")
            await expect(job).to_contain_text("step 1000")
            await expect(job.locator("progress")).to_have_attribute("value", "0")
            await job.get_by_role("button", name="Cancel").click()
            await expect(entries.locator("li[data-type='analysis.cancelled']")).to_be_visible()
            await expect(tab.page.locator("#jobs")).to_have_text("nothing")
            assert tab.troubles == []
            assert tab.foreign(str(api.base_url)) == []


async def see(tab: Tab, *, is_hidden: bool) -> None:
    """Puts the tab behind another, or in front; Chromium without a window has only what is in front."""
    await tab.page.evaluate(
        """(is) => {
            Object.defineProperty(document, "hidden", { value: is, configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
        }""",
        is_hidden,
    )


async def test_a_tab_that_is_hidden_holds_no_stream_and_takes_up_what_it_missed(
    house: House, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.save(900)
    house.save(1000)
    with_quick_children(monkeypatch)
    async with served(house.settings) as api, house.daemon():
        await until_ready(api)

        async def holds(count: int) -> bool:
            return bool((await api.get("/api/status")).json()["streams"] == count)

        async with opened(browser, f"{api.base_url}/analysis") as tab:
            done = tab.page.locator("#entries li[data-type='analysis.completed']")
            await ask(tab, "900")
            await expect(done).to_have_count(1)
            await see(tab, is_hidden=True)
            await until_asked(lambda: holds(0))
            await expect(tab.page.locator("#stream")).to_contain_text("paused")
            await ask(tab, "1000")
            await until_asked(lambda: api_has(api, 2))
            await see(tab, is_hidden=False)
            await until_asked(lambda: holds(1))
            await expect(done).to_have_count(2)
            await expect(tab.page.locator(".card .value").first).to_have_text("2")


async def api_has(api: httpx.AsyncClient, count: int) -> bool:
    """Whether so many checkpoints are analysed."""
    return bool((await api.get("/api/campaigns")).json()["campaigns"][0]["analyzed"] == count)


async def test_a_campaign_that_begins_meanwhile_can_be_chosen_without_a_bus(tmp_path: Path, browser: Browser) -> None:
    folder = CampaignFolder.of(tmp_path / "root", HERO, CAMPAIGN)
    fill(folder)
    settings = Settings(root=str(folder.root), bus=BusSettings(url=f"nats://127.0.0.1:{free_port()}"))
    async with served(settings) as api, opened(browser, "about:blank") as tab:
        await tab.page.clock.install()
        await tab.page.goto(f"{api.base_url}/analysis")
        await shown(tab)
        fill(CampaignFolder.of(folder.root, HERO, "second"))
        await tab.page.clock.fast_forward(11_000)
        await expect(tab.page.locator("#campaign option")).to_have_count(2)
        await expect(tab.page.locator("#campaign")).to_have_value(CAMPAIGN)


async def test_a_real_run_is_followed_and_its_heatmap_has_the_artifacts_values(house: House, browser: Browser) -> None:
    steps = (100, 200, 300)
    for step in steps:
        house.save(step)
    async with served(house.settings) as api, house.daemon():
        await until_ready(api)
        async with opened(browser, str(api.base_url)) as tab:
            await expect(tab.page.locator("#empty")).to_be_visible()
            for count, step in enumerate(steps, start=1):
                await ask(tab, str(step))
                done = tab.page.locator("#entries li[data-type='analysis.completed']")
                await expect(done).to_have_count(count, timeout=3 * PATIENCE_MILLISECONDS)
            await expect(tab.page.locator(".card .value").first).to_have_text("3")
            await expect(tab.page.locator("#figure-strata[data-drawn]")).to_be_attached()
            await expect(tab.page.locator("#step option")).to_have_count(3)
            drawn = await tab.page.evaluate(VALUES)
            timeline = (await api.get(f"/api/analysis/{CAMPAIGN}/drift_timeline")).json()
            artifact = (await api.get(f"/api/analysis/{CAMPAIGN}/layer_stats/300")).json()
            assert len(drawn) == len(timeline["layers"]) == len(artifact["drift_stats"])
            for row, (name, layer) in zip(drawn, timeline["layers"].items(), strict=True):
                assert layer["relative_l2"][-1] == artifact["drift_stats"][name]["relative_l2"]
                assert row[1:] == pytest.approx(layer["relative_l2"], rel=1e-6)
            # The browser's own words for the first reply, which says that nothing was analysed yet.
            assert [trouble for trouble in tab.troubles if "404" not in trouble] == []
            assert tab.foreign(str(api.base_url)) == []


async def ask(tab: Tab, step: str) -> None:
    await tab.page.locator("#run-step").fill(step)
    await tab.page.locator("#run-activations").uncheck()
    await tab.page.locator("#run-button").click()
    await expect(tab.page.locator("#run-status.success")).to_contain_text("the job is")


async def test_an_empty_campaign_says_what_makes_the_first_checkpoint_arrive(tmp_path: Path, browser: Browser) -> None:
    folder = CampaignFolder.of(tmp_path / "root", HERO, CAMPAIGN)
    folder.checkpoints.mkdir(parents=True)
    bus = f"127.0.0.1:{free_port()}"
    settings = Settings(root=str(folder.root), bus=BusSettings(url=f"nats://me:secret@{bus}"))
    async with (
        served(settings, token=TOKEN) as api,
        opened(browser, f"{api.base_url}/analysis", width=360, theme="light") as tab,
    ):
        await expect(tab.page.locator("#empty")).to_be_visible()
        mine = f'nats_url="nats://{bus}"', f"nats pub -s nats://{bus} ", f"--nats-url nats://{bus}"
        for line in ("ArchaeologistCallback", "archaeologist watch", "archaeologist analyze", *mine):
            await expect(tab.page.locator("#empty")).to_contain_text(line)
        await expect(tab.page.locator("#empty")).not_to_contain_text("secret")
        ground = "getComputedStyle(document.documentElement).backgroundColor"
        assert await tab.page.evaluate(ground) == "rgb(247, 242, 230)"
        await tab.page.locator("#theme").select_option("dark")
        assert await tab.page.evaluate(ground) == "rgb(22, 19, 15)"
        assert await tab.page.evaluate("document.documentElement.scrollWidth") == 360
        await tab.page.locator("#run-step").fill("1")
        await tab.page.locator("#run-button").click()
        await expect(tab.page.locator("#token")).to_be_focused()
        troubles = len(tab.troubles)
        await tab.page.get_by_text("What the numbers are").click()
        await expect(tab.page.locator("#weight-drift")).to_be_attached()
        assert await tab.page.evaluate(ground) == "rgb(22, 19, 15)"  # as chosen
        assert await tab.page.evaluate("document.documentElement.scrollWidth") == 360
        # The first page may still have been told that the bus is down, in the browser's own words.
        assert [trouble for trouble in tab.troubles[troubles:] if "503" not in trouble] == []


CUT: Final = """[...document.querySelectorAll("[data-drawn] .xtitle, [data-drawn] .ytitle")].filter((title) => {
    const [own, frame] = [title, title.closest("[data-drawn]")].map((node) => node.getBoundingClientRect());
    return own.left < frame.left - 1 || own.right > frame.right + 1;
}).map((title) => title.textContent)"""
"""Titles of axes that reach out of their figure."""


async def test_the_page_is_drawn_at_three_widths_in_both_themes(
    house: House, browser: Browser, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images = Path(os.environ.get("PAGE_SHOTS", tmp_path))  # for looking at
    fill(house.folder)
    house.save(1000)
    with_quick_children(monkeypatch, seconds=60)
    async with served(house.settings) as api, house.daemon():
        await until_ready(api)
        await api.post("/api/jobs", json={**WHOSE, "checkpoint_step": 1000})
        themes: tuple[Literal["dark", "light"], ...] = ("dark", "light")
        for width, theme in itertools.product((360, 1280, 2560), themes):
            async with opened(browser, f"{api.base_url}/analysis", width=width, theme=theme) as tab:
                await shown(tab)
                await expect(tab.page.locator("#entries li").first).to_be_visible()
                assert await tab.page.evaluate("document.documentElement.scrollWidth") == width
                assert await tab.page.evaluate(CUT) == []
                image = images / f"page-{width}-{theme}.png"
                await tab.page.screenshot(path=image, full_page=True)
                assert tab.troubles == []
