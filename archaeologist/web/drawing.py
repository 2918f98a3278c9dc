"""What the page shows, made from a campaign's summaries. Needs NumPy and plotly, so it is imported when first asked.

The figures, tables and sentences are those of the report.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Literal, NamedTuple, NoReturn

import msgspec
from msgspec.structs import asdict

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.errors import ArtifactMissing, ParameterInvalid
from archaeologist.figures.encoding import encoded
from archaeologist.figures.grid import METRICS, Submodules, grid, measured
from archaeologist.figures.health import series, timelines
from archaeologist.figures.layer import detail, parts_of
from archaeologist.figures.movers import movers, ranking
from archaeologist.figures.skills import impact, scores
from archaeologist.figures.strata import strata
from archaeologist.findings.campaign import findings
from archaeologist.findings.cards import cards
from archaeologist.findings.health import measured as measured_places
from archaeologist.findings.places import section
from archaeologist.report import tables
from archaeologist.report.campaign import Campaign, artifacts, last
from archaeologist.report.page import CLASSES
from archaeologist.report.provenance import provenance
from archaeologist.web.library import Library
from archaeologist.web.manual import PLACE
from contracts.artifacts import DriftTimeline, HealthTimeline, LayerStats, SkillFinding, SkillImpact, StabilityReport
from contracts.http import Cards, Contents, Findings, MetricEntry, PlacedFinding, SkillEntry

FigureName = Literal["strata", "movers", "layer", "scores", "impact", "health"]
TableName = Literal["alerts", "checkpoints"]
Rows = Literal["block", "submodule"]

OF_SUBMODULES: Final = tuple(name for name, metric in METRICS.items() if metric.has_submodules)
SHOWN: Final = 100
"""Characters of a value that an error repeats."""


class Asked(NamedTuple):
    """Which figure."""

    name: FigureName
    metric: str | None = None
    block: str | None = None
    skill: str | None = None
    rows: Rows = "block"
    """Of the strata."""


class Chronicle(NamedTuple):
    """A campaign's summaries."""

    folder: CampaignFolder
    timeline: DriftTimeline
    health: HealthTimeline
    stability: StabilityReport
    skills: SkillImpact
    submodules: Callable[[], Submodules]
    """Reads them, for who draws them."""

    @property
    def blocks(self) -> tuple[str, ...]:
        """From the embedding to the head."""
        return tuple(dict.fromkeys([*self.timeline.layers, *self.health.layers]))

    @property
    def newest(self) -> LayerStats | None:
        """The artifact of the newest comparison, or of the newest checkpoint where nothing was compared."""
        return last(artifacts(self.folder, (self.timeline.checkpoints or self.health.checkpoints)[-1:]))


def read(library: Library, folder: CampaignFolder) -> Chronicle:
    """The summaries of a campaign; errors as for ``Library.read``."""
    return Chronicle(
        folder,
        library.read(folder, folder.timeline, DriftTimeline),
        library.read(folder, folder.health, HealthTimeline),
        library.read(folder, folder.stability, StabilityReport),
        library.read(folder, folder.skill_impact, SkillImpact),
        partial(library.submodules, folder),
    )


def sentences(found: Chronicle) -> bytes:
    """The findings, each with the section that has its numbers."""
    metrics = measured(found.timeline, found.health)
    said = findings(found.timeline, found.health, stability=found.stability, skills=found.skills, newest=found.newest)
    placed = (PlacedFinding(**asdict(one), section=section(one, blocks=found.blocks, metrics=metrics)) for one in said)
    return msgspec.json.encode(Findings(findings=tuple(placed)))


def numbers(found: Chronicle) -> bytes:
    """The cards."""
    return msgspec.json.encode(Cards(cards=cards(found.timeline, found.health, found.stability)))


def contents(found: Chronicle) -> bytes:
    """What there is to choose and to draw."""
    timeline, health, stability = found.timeline, found.health, found.stability
    counts = ((name.replace("_", " "), len(getattr(stability, name))) for name in CLASSES)
    shown = Contents(
        hero_id=found.folder.hero_id,
        campaign_id=found.folder.campaign_id,
        checkpoints=len({*timeline.checkpoints, *health.checkpoints}),
        metrics=tuple(
            MetricEntry(
                name=name,
                title=METRICS[name].title,
                definition=METRICS[name].definition,
                has_submodules=METRICS[name].has_submodules,
            )
            for name in measured(timeline, health)
        ),
        blocks=found.blocks,
        skills=tuple(map(_skill_entry, found.skills.skills.values())),
        has_movers=bool(ranking(stability)),
        has_health=bool(series(health)),
        has_probes=bool(measured_places(health)),
        has_rounding=bool(grid("relative_l2", timeline, health).below.any()),
        classes={name: count for name, count in counts if count},
        window=len(stability.checkpoints),
        provenance=tuple(provenance(_campaign(found))),
    )
    return msgspec.json.encode(shown)


def drawn(found: Chronicle, asked: Asked) -> bytes:
    """A figure and its table.

    Raises:
        ParameterInvalid: A metric, block or skill is missing or none of the campaign's.
        ArtifactMissing: It was not measured.
    """
    return _FIGURES[asked.name](found, asked)


def table(found: Chronicle, name: TableName) -> bytes:
    """A table without a figure."""
    if name == "alerts":
        return msgspec.json.encode(tables.alerts(found.health))
    return msgspec.json.encode(tables.checkpoints(found.timeline, found.health))


def _strata(found: Chronicle, asked: Asked) -> bytes:
    known = measured(found.timeline, found.health)
    if not known:
        msg = "strata: not measured, no checkpoint was compared with a reference or run on probes; request an analysis"
        raise ArtifactMissing(msg)
    metric = asked.metric or known[0]
    if metric not in METRICS:
        _refuse("metric", metric, "use some of " + ", ".join(known))
    if metric not in known:
        msg = f"metric {metric!r} was not measured in this campaign; use some of {', '.join(known)}"
        raise ArtifactMissing(msg)
    submodules = _submodules(found, metric) if asked.rows == "submodule" else None
    return _encoded(
        strata(metric, found.timeline, found.health, submodules=submodules),
        tables.strata(metric, found.timeline, found.health, submodules),
        title=METRICS[metric].title,
        definition=METRICS[metric].definition,
        address=f"{PLACE}#{METRICS[metric].section}",
    )


def _submodules(found: Chronicle, metric: str) -> Submodules:
    if not METRICS[metric].has_submodules:
        _refuse("metric", metric, f"of submodules there are {', '.join(OF_SUBMODULES)}")
    submodules = found.submodules()
    if not submodules.blocks:
        msg = "strata: no artifact of this campaign has the drift of submodules; use rows=block"
        raise ArtifactMissing(msg)
    return submodules


def _movers(found: Chronicle, _: Asked) -> bytes:
    return _encoded(movers(found.stability), tables.movers(found.stability))


def _layer(found: Chronicle, asked: Asked) -> bytes:
    block = asked.block or ""
    if block not in found.blocks:
        _refuse("block", block, "contents lists those that are there")
    metric = asked.metric or OF_SUBMODULES[0]
    if metric not in OF_SUBMODULES:
        _refuse("metric", metric, f"of a block over time there are {', '.join(OF_SUBMODULES)}")
    parts = parts_of(block, found.submodules(), metric)
    return _encoded(
        detail(block, found.timeline, found.health, parts),
        tables.detail(block, found.timeline, found.health, parts),
        title=block,
    )


def _scores(found: Chronicle, asked: Asked) -> bytes:
    skill = _skill(found, asked)
    return _encoded(scores(skill), tables.scores(skill), title=skill.skill)


def _impact(found: Chronicle, asked: Asked) -> bytes:
    skill = _skill(found, asked)
    return _encoded(impact(skill), tables.skill(skill), title=skill.skill)


def _health(found: Chronicle, _: Asked) -> bytes:
    return _encoded(timelines(found.health), tables.health(found.health, series(found.health)))


_FIGURES: Final[Mapping[FigureName, Callable[[Chronicle, Asked], bytes]]] = {
    "strata": _strata,
    "movers": _movers,
    "layer": _layer,
    "scores": _scores,
    "impact": _impact,
    "health": _health,
}


def _skill(found: Chronicle, asked: Asked) -> SkillFinding:
    skill = found.skills.skills.get(asked.skill or "")
    if skill is None:
        _refuse("skill", asked.skill or "", "contents lists those that were evaluated")
    return skill


def _skill_entry(found: SkillFinding) -> SkillEntry:
    return SkillEntry(
        skill=found.skill,
        intervals=len(found.intervals),
        intervals_used=found.intervals_used,
        supports=found.supports,
        does_not_support=found.does_not_support,
        has_impact=bool(found.layers),
    )


def _campaign(found: Chronicle) -> Campaign:
    return Campaign(
        hero_id=found.folder.hero_id,
        campaign_id=found.folder.campaign_id,
        timeline=found.timeline,
        health=found.health,
        stability=found.stability,
        skills=found.skills,
        newest=last(artifacts(found.folder, found.health.checkpoints[-1:])) or found.newest,
    )


def _encoded(figure: Any, grid_of: tables.Grid, *, title: str = "", definition: str = "", address: str = "") -> bytes:
    return msgspec.json.encode(
        {
            "figure": msgspec.Raw(encoded(figure).encode()),
            "table": grid_of,
            "title": title,
            "definition": definition,
            "address": address,
        }
    )


def _refuse(name: str, value: str, remedy: str) -> NoReturn:
    msg = f"{name}={value[:SHOWN]!r} is not known in this campaign; {remedy}"
    raise ParameterInvalid(msg)
