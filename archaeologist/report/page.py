"""A campaign as one HTML file: everything inside, nothing from outside, every name escaped."""

import base64
import hashlib
from collections.abc import Iterator
from datetime import datetime
from importlib import resources
from typing import Any, Final

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from archaeologist import __version__
from archaeologist.figures.encoding import embeddable, encoded, templates
from archaeologist.figures.grid import METRICS, grid, measured
from archaeologist.figures.health import series, timelines
from archaeologist.figures.layer import detail
from archaeologist.figures.movers import movers
from archaeologist.figures.skills import impact, scores
from archaeologist.figures.strata import strata
from archaeologist.figures.themes import DARK, FONTS, LIGHT, variables
from archaeologist.findings.cards import cards
from archaeologist.findings.health import measured as measured_places
from archaeologist.findings.places import section
from archaeologist.report import tables
from archaeologist.report.campaign import Campaign
from archaeologist.report.provenance import provenance
from archaeologist.texts import visible
from contracts.findings import Card, Finding

ICONS: Final = {"critical": "✕", "warning": "▲", "success": "✓", "info": "·"}
WORDS: Final = {"critical": "Critical", "warning": "Warning", "success": "Good", "info": "Note"}
CLASSES: Final = ("frozen", "below_resolution", "settled", "directed", "diffusive", "thrashing", "undetermined")
MOST_SKILLS: Final = 8
MOST_COLUMNS: Final = 250
"""Of the strata: eight metrics of a large model in one file of some 15 MB."""


def rendered(campaign: Campaign, *, written: datetime) -> str:
    """The report.

    Args:
        campaign: What is shown.
        written: When the report is made, with a time zone.
    """
    script, plotly = _file("narrow.js") + _file("report.js"), get_plotlyjs()
    environment = Environment(
        loader=PackageLoader("archaeologist.report"),
        autoescape=True,
        undefined=StrictUndefined,
        # Before names are escaped as HTML: what turns the direction of text would show another name.
        finalize=lambda value: visible(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    metrics = measured(campaign.timeline, campaign.health)
    return environment.get_template("report.html.jinja").render(
        campaign=campaign,
        version=__version__,
        written=written.isoformat(timespec="seconds"),
        policy=_policy(script, plotly),
        # These four are our own files and JSON that is escaped for its place.
        style=Markup(_style()),  # noqa: S704
        script=Markup(script),  # noqa: S704
        plotly=Markup(plotly),  # noqa: S704
        templates=Markup(templates()),  # noqa: S704
        definitions=Markup(embeddable({name: METRICS[name].definition for name in metrics})),  # noqa: S704
        figures=[(name, Markup(encoded(figure))) for name, figure in _figures(campaign)],  # noqa: S704
        **_words(campaign),
        **_sections(campaign),
    )


def _words(campaign: Campaign) -> dict[str, Any]:
    """Findings and cards."""
    return {
        "icons": ICONS,
        "words": WORDS,
        "findings": [_finding(one, campaign) for one in campaign.findings],
        "cards": [_card(one) for one in cards(campaign.timeline, campaign.health, campaign.stability)],
    }


def _sections(campaign: Campaign) -> dict[str, Any]:
    """The tables and what else stands beside the figures."""
    timeline, health, stability = campaign.timeline, campaign.health, campaign.stability
    counts = ((name.replace("_", " "), len(getattr(stability, name))) for name in CLASSES)
    return {
        "strata": [
            {
                "name": name,
                "title": METRICS[name].title,
                "definition": METRICS[name].definition,
                "table": tables.strata(name, timeline, health),
            }
            for name in measured(timeline, health)
        ],
        "has_kl": any(value is not None for value in timeline.kl),
        "has_rounding": bool(grid("relative_l2", timeline, health).below.any()),
        "has_alerts": bool(health.alerts),
        "movers": tables.movers(stability),
        "classes": [(name, count) for name, count in counts if count],
        "window": len(stability.checkpoints),
        "details": [
            {"block": block, "table": tables.detail(block, timeline, health, parts)}
            for block, parts in campaign.parts.items()
        ],
        "skills": [
            {"finding": one, "table": tables.skill(one), "scores": tables.scores(one)}
            for one in list(campaign.skills.skills.values())[:MOST_SKILLS]
        ],
        "health": tables.health(health, series(health)),
        "alerts": tables.alerts(health),
        "measured": bool(measured_places(health)),
        "checkpoints": tables.checkpoints(timeline, health),
        "provenance": provenance(campaign),
    }


def _figures(campaign: Campaign) -> Iterator[tuple[str, go.Figure]]:
    """Every figure by the id of the element that holds it."""
    timeline, health = campaign.timeline, campaign.health
    for metric in measured(timeline, health):
        yield f"strata-{metric}", strata(metric, timeline, health, most_columns=MOST_COLUMNS)
    yield "figure-movers", movers(campaign.stability)
    for number, (block, parts) in enumerate(campaign.parts.items(), start=1):
        yield f"figure-layer-{number}", detail(block, timeline, health, parts)
    for number, skill in enumerate(list(campaign.skills.skills.values())[:MOST_SKILLS], start=1):
        yield f"figure-scores-{number}", scores(skill)
        yield f"figure-impact-{number}", impact(skill)
    yield "figure-health", timelines(health)


def _finding(found: Finding, campaign: Campaign) -> dict[str, Any]:
    evidence, blocks = found.evidence, list(campaign.parts)
    metrics = measured(campaign.timeline, campaign.health)
    return {
        "severity": found.severity,
        "text": found.text,
        "basis": found.basis,
        "metric": evidence.metric if evidence.metric in metrics else None,
        "anchor": _anchor(found, blocks, metrics=metrics),
    }


def _anchor(found: Finding, blocks: list[str], *, metrics: tuple[str, ...]) -> str:
    """The id of the section that shows the finding's numbers."""
    place = section(found, blocks=blocks, metrics=metrics)
    if place == "layers":
        assert found.evidence.block is not None  # noqa: S101 -- it is one of the blocks
        return f"layer-{blocks.index(found.evidence.block) + 1}"
    return place


def _card(card: Card) -> dict[str, Any]:
    # A long name breaks where its words end.
    value = escape(visible(card.value)).replace("_", Markup("_<wbr>"))
    return {"title": card.title, "value": value, "detail": card.detail, "line": list(_lines(card.trend))}


def _lines(trend: tuple[float | None, ...]) -> Iterator[str]:
    """Points of the trend's lines in a box of 120 by 28, from 0 up; a gap where there is no value."""
    known = [value for value in trend if value is not None]
    if len(known) <= 1:
        return
    top = max(known) or 1.0
    piece: list[str] = []
    for place, value in enumerate((*trend, None)):
        if value is not None:
            piece.append(f"{2 + 116 * place / (len(trend) - 1):.1f},{26 - 24 * max(0.0, value) / top:.1f}")
        elif piece:
            yield " ".join(piece)
            piece = []


def _style() -> str:
    light = f"@media (prefers-color-scheme: light) {{ :root {{ {variables(LIGHT)} }} }}"
    return f":root {{ {FONTS} {variables(DARK)} }}\n{light}\n{_file('report.css')}"


def _policy(*scripts: str) -> str:
    """Nothing from outside, and no script but ours, each by its hash; plotly sets styles as it draws."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:;"
        " base-uri 'none'; form-action 'none'"
    )


def _file(name: str) -> str:
    return (resources.files("archaeologist.report") / "templates" / name).read_text(encoding="utf-8")
