"""Markup in every string that reaches a reader at once: of the page and the report, in a browser, and of the log."""

import io
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, get_args

import msgspec
import pytest
from playwright.async_api import Browser, Locator, expect
from rich.console import Console

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.bus.log import events
from archaeologist.cli.log import line
from archaeologist.daemon import workers
from archaeologist.report.campaign import read_campaign
from archaeologist.report.page import rendered
from contracts.artifacts import Alert, SkillHistory, SkillScore
from contracts.messages import (
    EVENT_DATA,
    Event,
    EventError,
    Job,
    JobKey,
    RequestId,
    Severity,
    Side,
    encode,
)
from contracts.records import JobRecord, JobState, RequestRecord, WorkerRecord
from tests.fixtures.artifacts import layer_drift
from tests.fixtures.browsers import Tab, browsing, opened
from tests.fixtures.histories import artifact, place_whole, sketch, with_activations
from tests.fixtures.hostile import MARKUP, marked
from tests.fixtures.web import served
from tests.integration.daemon.house import CAMPAIGN, HERO, House
from tests.integration.web.conftest import until_ready
from tests.integration.web.test_page import weights as plain_weights

PATIENCE_MILLISECONDS: Final = 20_000
STEPS: Final = (100, 200, 300, 400)
NOW: Final = "2026-01-02T03:04:05.000Z"
NAMES: Final = ("hero_id", "campaign_id")
"""Are plain names wherever they come from, which other tests attack."""
WHOSE: Final[dict[str, Any]] = {"hero_id": HERO, "campaign_id": CAMPAIGN}
SIDE: Final = Side(path="/c", step=100, read_path="/c", fingerprint="f")
FIGURES: Final = ("strata", "movers", "layer", "scores", "impact", "health")

expect.set_options(timeout=PATIENCE_MILLISECONDS)


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with browsing() as found:
        yield found


# What is read.


def weights(step: int) -> dict[str, Any]:
    """Tensors whose names are markup, within blocks and as blocks of their own."""
    return {f"{name.removesuffix('.weight')}.{MARKUP}": values for name, values in plain_weights(step).items()} | {
        f"model.{MARKUP}.weight": plain_weights(step)["lm_head.weight"]
    }


def fill(folder: CampaignFolder) -> None:
    """A campaign in which every string has markup."""
    for path in (folder.layer_stats(0), folder.sketch(0), folder.layer_drift(0, 1)):
        path.parent.mkdir(parents=True, exist_ok=True)
    before: tuple[int, Any] | None = None
    for step in STEPS:
        now = weights(step)
        found = marked(_artifact(step, now, before), keep=NAMES)
        place_whole(folder.layer_stats(step), msgspec.json.encode(found))
        place_whole(folder.sketch(step), sketch(found.fingerprint, step, now))
        before = (step, now)
    drift = msgspec.structs.replace(layer_drift(), **WHOSE, warnings=("w",))
    place_whole(folder.layer_drift(100, 200), msgspec.json.encode(marked(drift, keep=NAMES)))
    # Files of somebody else's are named with what is wrong with them.
    place_whole(folder.layer_stats(500), msgspec.json.encode(marked(_artifact(500, weights(500), before))))
    heard = tuple(SkillScore(step=step, score=(step / 1000) ** 2, num_samples=1_000_000) for step in STEPS)
    history = SkillHistory(skills={"sums": heard}, **WHOSE)
    place_whole(folder.skills, msgspec.json.encode(marked(history, keep=NAMES)))
    # Folders whose names are none.
    (folder.root / "campaigns" / "<img src=x onerror=window.__pwned=1>" / "c").mkdir(parents=True)
    (folder.root / "campaigns" / HERO / "<svg onload=window.__pwned=1>" / "analysis").mkdir(parents=True)


def _artifact(step: int, now: Any, before: tuple[int, Any] | None) -> Any:
    probed = with_activations(artifact(step, now, reference=before), std=1.0 + step / 1000, entropy=3.0)
    alert = Alert(severity="critical", family="entropy", metric="entropy", block=next(iter(probed.weight_stats)))
    return msgspec.structs.replace(
        probed,
        **WHOSE,
        alerts=(alert, msgspec.structs.replace(alert, severity="warning", metric="rankme", block=None)),
        warnings=("w",),
        not_computed={"spectra": "s"},
        timings={"walk": 1.0},
    )


def battle_log() -> list[tuple[str, bytes]]:
    """Each event with each severity, as somebody who may publish could send it."""
    found = []
    severities: tuple[Severity, ...] = ("info", "success", "warning", "error")
    more = {"severity": "critical", "family": "f", "metric": "m", "stage": "s", "block": 0, "blocks": 1}
    more |= {"bytes_read": 0, "bytes_total": 1, "error": {"code": "c", "message": "m"}, "request": {"a": "b"}}
    for number, (kind, data) in enumerate(EVENT_DATA.items()):
        fields = more if kind != "analysis.alert" else more | {"block": "b"}
        body = marked(msgspec.convert(fields | WHOSE, data), keep=NAMES)
        event = Event(type=kind, message="m", severity=severities[number % 4], data=body, id="I", time=NOW)
        # Its type decides who is told; the shape of its data is free.
        found.append((kind, encode(marked(event, keep=("type", "data")))))
        found.append((kind, encode(marked(event, keep=("data",)))))
        odd = {**WHOSE, "error": MARKUP, "job_key": [MARKUP], MARKUP: {MARKUP: MARKUP}}
        found.append((kind, encode(msgspec.structs.replace(event, message=MARKUP, data=odd))))
    return found


async def publish_all(house: House) -> None:
    """Events, jobs in every state, requests and workers whose strings have markup."""
    for subject, body in battle_log():
        await house.say_raw(subject, body)
    error = EventError(code="c", message="m")
    for number, state in enumerate(get_args(JobState)):
        key, made = JobKey(f"{number:032x}"), RequestId(f"R{number}")
        job = Job(
            job_key=key, job_id=made, job_type="layer_stats", priority="normal", target=SIDE, created_at=NOW, **WHOSE
        )
        record = JobRecord(job=job, state=state, queued_at=NOW, error=error, warnings=("w",), findings=("f",))
        await house.books.jobs.put(key, marked(record, keep=(*NAMES, "job_key", "job_id", "request_ids")))
        request = RequestRecord(request_id=made, state="accepted", job_key=key, error=error, at=NOW)
        await house.books.requests.put(made, marked(request, keep=("request_id", "job_key")))
    worker = WorkerRecord(
        name="box", incarnation="I", host="h", pid=1, root="/r", version="1", state="idle", roles=("analytics",),
        since=NOW, heartbeat_at=NOW, heartbeat_seconds=1.0,
    )  # fmt: skip
    await house.books.workers.put(workers.worker_key(worker), marked(worker))


# What is seen.


async def test_markup_in_every_string_that_reaches_the_page_is_text(house: House, browser: Browser) -> None:
    fill(house.folder)
    await publish_all(house)
    async with served(house.settings) as api:
        await until_ready(api)
        async with opened(browser, f"{api.base_url}/analysis") as tab:
            dialogs = watched(tab)
            for name in FIGURES:
                await expect(tab.page.locator(f"#figure-{name}[data-drawn]")).to_be_attached()
            await every_choice_is_made(tab)
            await every_section_shows_it_as_text(tab)
            await a_checkpoint_and_a_job_show_it_as_text(tab)
            assert tab.foreign(str(api.base_url)) == []
            await nothing_ran(tab, dialogs)


async def every_choice_is_made(tab: Tab) -> None:
    """Each metric, block, step, skill and kind of row, each table opened, each finding followed."""
    for name in ("metric", "rows", "block", "step", "skill"):
        select = tab.page.locator(f"#{name}")
        values = await select.locator("option").evaluate_all("(all) => all.map((one) => one.value)")
        assert values
        for value in values:
            if await select.is_enabled():
                await select.select_option(value)
                await expect(tab.page.locator("#figure-strata[data-drawn]")).to_be_attached()
        if name == "metric":
            await select.select_option("relative_l2")
    for summary in await tab.page.locator("details.behind summary").all():
        if await summary.is_visible():
            await summary.click()
    for link in await tab.page.locator("#findings-list .basis a").all():
        await link.click()
    for frame in ("strata", "movers", "layer"):
        await hovered(tab, tab.page.locator(f"#figure-{frame} .nsewdrag").first)
    await tab.page.locator("#figure-strata").focus()
    await tab.page.keyboard.press("ArrowUp")


async def hovered(tab: Tab, frame: Locator) -> None:
    """The labels under the pointer, at some places of a figure."""
    await frame.scroll_into_view_if_needed()
    box = await frame.bounding_box()
    assert box is not None
    for share in (0.1, 0.5, 0.9):
        await tab.page.mouse.move(box["x"] + share * box["width"], box["y"] + share * box["height"])


async def every_section_shows_it_as_text(tab: Tab) -> None:
    sections = (
        "#findings-list", "#cards", "#table-strata", "#cell", "#cell-detail", "#table-movers", "#table-layer", "#block",
        "#skill", "#supports", "#alerts", "#checkpoints-table", "#provenance-list", "#entries",
    )  # fmt: skip
    for section in sections:
        await expect(tab.page.locator(section), section).to_contain_text(MARKUP)
    await expect(tab.page.locator("#left-out")).to_contain_text(MARKUP.partition("'")[0])
    for figure in ("strata", "movers", "scores"):
        await expect(tab.page.locator(f"#figure-{figure}"), figure).to_contain_text("<b>x</b>")


async def a_checkpoint_and_a_job_show_it_as_text(tab: Tab) -> None:
    await tab.page.get_by_role("button", name="View step 400").click()
    await expect(tab.page.locator("#detail-body")).to_contain_text(MARKUP)
    await tab.page.keyboard.press("Escape")
    await expect(tab.page.locator(".job")).to_have_count(2)
    await tab.page.locator("#run-step").fill("100")
    await tab.page.locator("#run-button").click()
    await expect(tab.page.locator("#run-status")).not_to_be_empty()


def watched(tab: Tab) -> list[str]:
    """What dialogs said, from now on."""
    said: list[str] = []

    async def noted(dialog: Any) -> None:
        said.append(dialog.message)
        await dialog.dismiss()

    tab.page.on("dialog", noted)
    return said


async def nothing_ran(tab: Tab, dialogs: list[str]) -> None:
    """No piece of markup became more than text."""
    assert await tab.page.evaluate("typeof window.__pwned") == "undefined"
    assert await tab.page.locator("img, b, [onload], [onerror], iframe, object, embed").count() == 0
    assert dialogs == []
    assert tab.troubles == []


async def test_markup_in_every_string_that_reaches_the_report_is_text(tmp_path: Path, browser: Browser) -> None:
    folder = CampaignFolder.of(tmp_path / "root", HERO, CAMPAIGN)
    fill(folder)
    path = tmp_path / "report.html"
    path.write_text(rendered(read_campaign(folder), written=datetime.now(UTC)), encoding="utf-8")
    async with opened(browser, path.as_uri()) as tab:
        dialogs = watched(tab)
        await expect(tab.page.locator("html[data-drawn]")).to_be_attached()
        for summary in await tab.page.locator("summary:visible").all():
            await summary.click()
        for frame in await tab.page.locator(".nsewdrag:visible").all():
            await hovered(tab, frame)
        sections = await tab.page.locator("main section, body > section").all()
        assert len(sections) > 5
        for section in sections:
            await expect(section).to_contain_text("<b>x</b>")
        for figure in ("#strata-plot", "#movers .plot"):
            await expect(tab.page.locator(figure), figure).to_contain_text("<b>x</b>")
        assert [address for address in tab.addresses if not address.startswith(("file:", "data:", "blob:"))] == []
        await nothing_ran(tab, dialogs)


async def test_markup_and_escapes_in_every_event_are_a_line_of_text_on_the_terminal(house: House) -> None:
    for subject, body in battle_log():
        await house.say_raw(subject, body.replace(b"onload", b"\\u001b]0;x\\u0007[bold]\\r\\n\\u2028"))
    shown = [line(logged.event) async for logged in events(house.bus, follow=False)]
    assert len(shown) == len(battle_log())
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, color_system=None, width=10_000, markup=False, emoji=False)
    for one in shown:
        assert one.plain.isprintable()
        assert "[bold]" in one.plain
        console.print(one, soft_wrap=True)
    assert re.findall(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]", screen.getvalue()) == []
