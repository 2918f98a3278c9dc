"""The report as a document: nothing from outside, no script but its own, every name as text."""

import base64
import hashlib
import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import pytest
from msgspec.structs import replace

from archaeologist.figures.grid import METRICS
from archaeologist.figures.layer import Parts
from archaeologist.findings.campaign import findings
from archaeologist.report.campaign import Campaign
from archaeologist.report.page import rendered
from contracts.artifacts import (
    BlockImpact,
    DriftTimeline,
    HealthAlert,
    HealthTimeline,
    LeftOut,
    SkillFinding,
    SkillImpact,
    StabilityReport,
)
from contracts.findings import Evidence, Finding
from tests.fixtures.artifacts import layer_stats
from tests.fixtures.summaries import BLOCKS, STEPS, WHOSE, drift_timeline, health_timeline, stability_report

WRITTEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
HOSTILE = "model.</script><img src=x onerror=alert(1)>"


def campaign(blocks: tuple[str, ...] = BLOCKS, **fields: Any) -> Campaign:
    alert = HealthAlert(severity="critical", family="entropy", metric="entropy", block=blocks[0], checkpoint_step=200)
    timeline, health = drift_timeline(blocks), health_timeline(blocks, alerts=(alert,))
    layers = tuple(BlockImpact(layer=name, spearman=0.5) for name in blocks)
    skill = SkillFinding(
        skill=blocks[0], checkpoints=STEPS, scores=(0.1, 0.2, 0.3), layers=layers, intervals_used=3, support="ranking"
    )
    skills = SkillImpact(**WHOSE, skills={blocks[0]: skill})
    stability = stability_report(blocks)
    values: dict[str, Any] = {
        **WHOSE,
        "timeline": timeline,
        "health": health,
        "stability": stability,
        "skills": skills,
        "newest": layer_stats(step=300),
        "findings": findings(timeline, health, stability=stability, skills=skills),
        "parts": {blocks[0]: Parts(steps=STEPS[1:], values={f"{blocks[0]}.w": (0.1, 0.2)})},
    }
    return Campaign(**(values | fields))


def test_what_turns_the_direction_of_a_name_is_written_out() -> None:
    turned = ("model.layers.\u202e0", *BLOCKS[1:])
    html = rendered(campaign(turned), written=WRITTEN)
    assert "\u202e" not in html
    assert r"<h3>model.layers.\u202e0</h3>" in html


class Document(HTMLParser):
    """What a browser would see of a report."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str | None, str] = {}
        self.inline: list[str] = []
        self.text = ""
        self._open: dict[str, str | None] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = dict(attrs) if tag == "script" else None

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002 -- the parser's
        self._open = None

    def handle_data(self, data: str) -> None:
        if self._open is None:
            self.text += data
        elif self._open.get("type") == "application/json":
            key = self._open["id"]
            self.scripts[key] = self.scripts.get(key, "") + data
        else:
            self.inline.append(data)


@pytest.fixture(scope="module")
def page() -> str:
    """A report of a campaign with everything."""
    return rendered(campaign(), written=WRITTEN)


def policy(text: str) -> str:
    found = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert found
    return found[1].replace("&#39;", "'")


def test_nothing_comes_from_outside(page: str) -> None:
    document = Document(page)
    addresses = [
        value
        for tag, attributes in document.elements
        for name, value in attributes.items()
        if name in {"src", "srcset", "action", "data"} or (name == "href" and tag != "a")
    ]
    assert addresses == ["data:,"]
    assert all(str(attributes.get("href", "#")).startswith("#") for tag, attributes in document.elements if tag == "a")
    assert "@import" not in page.partition("<body>")[0]
    assert "url(" not in page.partition("<body>")[0]


def test_the_policy_allows_the_two_scripts_and_no_other(page: str) -> None:
    document, allowed = Document(page), policy(page)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in document.inline]
    assert len(digests) == 2
    assert allowed.startswith("default-src 'none'")
    directives = dict(part.strip().split(" ", 1) for part in allowed.split(";"))
    assert directives["script-src"].split() == [f"'sha256-{digest}'" for digest in reversed(digests)]
    assert not any(name.startswith("on") for _, attributes in document.elements for name in attributes)


def test_every_figure_has_its_data_and_a_table_behind_it(page: str) -> None:
    document = Document(page)
    drawn = {attributes["data-figure"] for _, attributes in document.elements if "data-figure" in attributes}
    assert drawn <= set(document.scripts)
    assert {f"strata-{name}" for name in METRICS} <= set(document.scripts)
    for data in document.scripts.values():
        assert json.loads(data)
    assert [tag for tag, _ in document.elements].count("details") >= len(drawn)


def test_every_link_to_evidence_leads_somewhere(page: str) -> None:
    document = Document(page)
    places = {attributes.get("id") for _, attributes in document.elements}
    links = [str(attributes["href"])[1:] for tag, attributes in document.elements if tag == "a"]
    assert set(links) <= places


def test_headings_and_findings_are_there(page: str) -> None:
    text = Document(page).text
    for words in ("Findings", "Critical", "compared with", "strata", "Layer detail", "Skill impact", "Provenance"):
        assert words in text
    assert "2026-01-02T03:04:05+00:00" in text
    assert "Hatched or greyed: below the resolution" in text


def test_names_with_markup_are_text() -> None:
    text = rendered(campaign((HOSTILE, "model.layers.0"), campaign_id="<b>c1", notes=("<i>note",)), written=WRITTEN)
    document = Document(text)
    tags = {tag for tag, _ in document.elements}
    assert not tags & {"img", "b", "i"}
    assert HOSTILE in document.text
    assert len(document.inline) == 2
    for data in document.scripts.values():
        json.loads(data)
    assert "<b>c1" in document.text
    assert "<i>note" in document.text


def test_a_campaign_without_anything_says_what_was_not_measured() -> None:
    timeline, health = DriftTimeline(**WHOSE), HealthTimeline(**WHOSE)
    empty = Campaign(
        **WHOSE,
        timeline=timeline,
        health=health,
        stability=StabilityReport(**WHOSE),
        skills=SkillImpact(**WHOSE),
        findings=findings(timeline, health),
    )
    text = Document(rendered(empty, written=WRITTEN)).text
    assert "No checkpoint has been analysed yet." in text
    assert text.count("Not measured") >= 3
    assert "No sign of collapse" not in text


def test_no_path_of_the_machine_is_shared() -> None:
    left_out = (LeftOut(file="layer_stats/a.json", code="artifact_invalid", reason="/home/somebody/a.json is broken"),)
    found = campaign()
    found = replace(found, timeline=replace(found.timeline, left_out=left_out))
    text = rendered(found, written=WRITTEN)
    assert "/home/somebody" not in text
    assert "/checkpoints/checkpoint-300" not in text
    assert "layer_stats/a.json: artifact_invalid" in text


def test_whatever_a_finding_points_at_has_a_place() -> None:
    topics = ("skill", "left_out", "alert", "collapse", "frozen", "movement", "coverage")
    metrics = (None, "relative_l2", "stability", "unknown")
    told = tuple(
        Finding(topic=topic, severity="info", text="x", evidence=Evidence(block="unknown", metric=metric))
        for topic in topics
        for metric in metrics
    )
    text = rendered(replace(campaign(), findings=told), written=WRITTEN)
    document = Document(text[: text.index("<script")])
    places = {attributes.get("id") for _, attributes in document.elements}
    assert {str(attributes["href"])[1:] for tag, attributes in document.elements if tag == "a"} <= places
