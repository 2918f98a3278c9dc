"""What was found out: the specification's section 8, and the summaries that it does not have."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec
from litestar import Request, Response, Router, get
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import PathParameter, QueryParameter
from litestar.types import ControllerRouterHandler
from msgspec import Struct

from archaeologist.artifacts import storage
from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.artifacts.storage import standing
from archaeologist.artifacts.store import read_checked
from archaeologist.errors import ArtifactMissing, CampaignMissing
from archaeologist.paths import resolve_under
from archaeologist.web import campaigns, listings
from archaeologist.web.campaigns import analysed, find
from archaeologist.web.documents import respond, signature
from archaeologist.web.library import Library, Summary
from archaeologist.web.timelines import Choice, Timeline, fields_of, part
from contracts.artifacts import (
    DriftTimeline,
    HealthTimeline,
    LayerDrift,
    LayerHealthTimeline,
    LayerStats,
    LayerTimeline,
    SkillImpact,
    StabilityReport,
    SubmoduleDriftTimeline,
    SubmoduleTimeline,
)
from contracts.documents import PORTABLE_PATTERNS
from contracts.http import Campaigns, DriftList, Movers, Problem, StatsList
from contracts.messages import NAME_PATTERN

ALREADY_ENCODED: Final = "already_encoded"
"""Option of a route whose replies come compressed from the shelf."""
PAGE: Final = 10_000
DRIFT_PAGE: Final = 1000
"""Most entries in one reply."""
MAX_MOVERS: Final = 1000
MAX_STEP: Final = 10**15

ArtifactType = TypeVar("ArtifactType", LayerStats, LayerDrift)

NAME: Final = {"pattern": PORTABLE_PATTERNS[NAME_PATTERN], "minLength": 1, "maxLength": 128}
"""A name's rule, for the description; it is looked at where the name is used, which says more."""

PERHAPS_A_NAME: Final = {"oneOf": [{"type": "string", **NAME}, {"type": "null"}]}


def _fields(layer: type[Struct]) -> QueryParameter:
    """The parameter that chooses fields of a block, with the rule for the description."""
    name = "|".join(fields_of(layer))
    rule = {"oneOf": [{"type": "string", "pattern": f"^(({name})(,({name}))*)?$"}, {"type": "null"}]}
    return QueryParameter(description="Fields of each block, with commas; left out or empty: all.", schema_extra=rule)


Asked = Request[Any, Any, Any]
Campaign = Annotated[str, PathParameter(description="A campaign's name.", schema_extra=NAME)]
HeroId = Annotated[
    str | None,
    QueryParameter(
        description="Whose campaign; left out: the only hero that has one of this name.", schema_extra=PERHAPS_A_NAME
    ),
]
Limit = Annotated[int, QueryParameter(ge=1, le=PAGE, description="Most entries in one reply.")]
DriftLimit = Annotated[int, QueryParameter(ge=1, le=DRIFT_PAGE, description="Most entries in one reply.")]
Offset = Annotated[
    int, QueryParameter(ge=0, le=10**9, description="Entries to pass over: next_offset of the page before.")
]
Layers = Annotated[
    str | None, QueryParameter(description="Names of blocks or parts of them, with commas; left out or empty: all.")
]
DriftFields = Annotated[str | None, _fields(LayerTimeline)]
SubmoduleFields = Annotated[str | None, _fields(SubmoduleTimeline)]
HealthFields = Annotated[str | None, _fields(LayerHealthTimeline)]
FirstStep = Annotated[int | None, QueryParameter(ge=0, le=MAX_STEP, description="From this step on.")]
LastStep = Annotated[int | None, QueryParameter(ge=0, le=MAX_STEP, description="Up to this step.")]
Checkpoint = Annotated[str, PathParameter(description="A step, or the file's name as the list has it.")]
Pair = Annotated[str, PathParameter(description="BASE-TARGET, two steps, or the file's name as the list has it.")]
Count = Annotated[int, QueryParameter(ge=1, le=MAX_MOVERS, description="Most blocks in each list.")]

_STATS_NAME: Final = re.compile(r"([0-9]{1,16})|ckpt-([0-9]{1,16})\.layer_stats\.json")
_DRIFT_NAME: Final = re.compile(r"(?:drift-)?([0-9]{1,16})-(?:to-)?([0-9]{1,16})(?:\.json)?")

PROBLEMS: Final[Mapping[int, str]] = {
    400: "A parameter breaks a rule.",
    403: "The request comes from another site, or a path leads out of the allowed roots.",
    404: "Not there.",
    500: "A file cannot be read.",
    503: "The summaries are being made, or the bus is down.",
}


def responses(kind: type[Struct], *, has_etag: bool = True) -> dict[int, ResponseSpec]:
    """The replies of a route, for its description."""
    documented = (kind.__doc__ or "").partition("\n")[0]
    found = {200: ResponseSpec(kind, generate_examples=False, description=documented)}
    if has_etag:
        found[304] = ResponseSpec(None, generate_examples=False, description="As the client has it.")
    problems = {
        status: ResponseSpec(Problem, generate_examples=False, description=text) for status, text in PROBLEMS.items()
    }
    return found | problems


@get("/api/campaigns", sync_to_thread=True, tags=["campaigns"], responses=responses(Campaigns, has_etag=False))
def list_campaigns(library: NamedDependency[Library], limit: Limit = PAGE, offset: Offset = 0) -> Campaigns:
    """Every campaign under the root."""
    return campaigns.listed(library.settings, limit=limit, offset=offset)


@get("/{campaign_id:str}/layer_stats", sync_to_thread=True, responses=responses(StatsList))
def list_layer_stats(
    request: Asked,
    library: NamedDependency[Library],
    campaign_id: Campaign,
    *,
    hero_id: HeroId = None,
    limit: Limit = PAGE,
    offset: Offset = 0,
) -> Response[bytes]:
    """The analysed checkpoints of a campaign; an empty list where there is no such campaign."""
    try:
        folder = analysed(find(library.settings, campaign_id, hero_id))
    except CampaignMissing:
        nothing = StatsList(stats=(), count=0)
        return respond(request, library.shelf, ("nothing",), lambda: msgspec.json.encode(nothing))
    is_current = library.bring_up_to_date(folder)
    source = listings.stats_source(folder)
    return respond(
        request,
        library.shelf,
        ("stats", str(source), signature(source), limit, offset),
        lambda: msgspec.json.encode(library.stats(folder, limit=limit, offset=offset)),
        is_behind=not is_current,
    )


@get("/{campaign_id:str}/layer_stats/{checkpoint:str}", sync_to_thread=True, responses=responses(LayerStats))
def read_layer_stats(
    request: Asked,
    library: NamedDependency[Library],
    campaign_id: Campaign,
    checkpoint: Checkpoint,
    *,
    hero_id: HeroId = None,
) -> Response[bytes]:
    """All that was found out about one checkpoint: the artifact as it lies on the disk."""
    folder = find(library.settings, campaign_id, hero_id)
    match = _STATS_NAME.fullmatch(checkpoint)
    path = folder.layer_stats(int(match[1] or match[2])) if match else None
    if match is None or path is None or (match[2] and path.name != checkpoint):
        msg = f"Not found: {checkpoint[:100]!r}; give a step, or a name like ckpt-000100.layer_stats.json"
        raise ArtifactMissing(msg)
    return _artifact(request, library, path, LayerStats)


@get("/{campaign_id:str}/drift_timeline", sync_to_thread=True, responses=responses(DriftTimeline))
def read_drift_timeline(
    request: Asked,
    library: NamedDependency[Library],
    campaign_id: Campaign,
    *,
    hero_id: HeroId = None,
    layers: Layers = None,
    fields: DriftFields = None,
    first_step: FirstStep = None,
    last_step: LastStep = None,
) -> Response[bytes]:
    """The drift of every block over the checkpoints that were compared with a reference."""
    choice = Choice.of(LayerTimeline, layers=layers, fields=fields, first_step=first_step, last_step=last_step)
    folder = analysed(find(library.settings, campaign_id, hero_id))
    return _timeline(request, library, folder, folder.timeline, DriftTimeline, choice)


@get("/{campaign_id:str}/submodule_drift", sync_to_thread=True, responses=responses(SubmoduleDriftTimeline))
def read_submodule_drift(
    request: Asked,
    library: NamedDependency[Library],
    campaign_id: Campaign,
    *,
    hero_id: HeroId = None,
    layers: Layers = None,
    fields: SubmoduleFields = None,
    first_step: FirstStep = None,
    last_step: LastStep = None,
) -> Response[bytes]:
    """The drift of every tensor over the checkpoints that were compared with a reference: a part of it at a time."""
    from archaeologist.web import submodules  # noqa: PLC0415 -- NumPy, needed once there is something to show

    choice = Choice.of(SubmoduleTimeline, layers=layers, fields=fields, first_step=first_step, last_step=last_step)
    folder = analysed(find(library.settings, campaign_id, hero_id))
    is_current = library.bring_up_to_date(folder)
    source = listings.stats_source(folder)
    return respond(
        request,
        library.shelf,
        ("submodules", str(source), signature(source), *choice),
        lambda: msgspec.json.encode(submodules.part(folder, library.submodules(folder), choice)),
        is_behind=not is_current,
    )


@get("/{campaign_id:str}/health_timeline", sync_to_thread=True, responses=responses(HealthTimeline))
def read_health_timeline(
    request: Asked,
    library: NamedDependency[Library],
    campaign_id: Campaign,
    *,
    hero_id: HeroId = None,
    layers: Layers = None,
    fields: HealthFields = None,
    first_step: FirstStep = None,
    last_step: LastStep = None,
) -> Response[bytes]:
    """The health of every block over all analysed checkpoints, and the alerts."""
    choice = Choice.of(LayerHealthTimeline, layers=layers, fields=fields, first_step=first_step, last_step=last_step)
    folder = analysed(find(library.settings, campaign_id, hero_id))
    return _timeline(request, library, folder, folder.health, HealthTimeline, choice)


@get("/{campaign_id:str}/top_movers", sync_to_thread=True, responses=responses(Movers))
def read_top_movers(
    request: Asked,
    library: NamedDependency[Library],
    campaign_id: Campaign,
    *,
    hero_id: HeroId = None,
    n: Count = 10,
) -> Response[bytes]:
    """The blocks that changed the most and the least, summed over all artifacts."""
    folder = analysed(find(library.settings, campaign_id, hero_id))

    def movers(report: StabilityReport) -> Movers:
        return Movers(top_movers=report.top_movers[:n], most_stable=report.top_movers[-n:][::-1])

    return _summary(request, library, folder, folder.stability, StabilityReport, part=("movers", n), view=movers)


@get("/{campaign_id:str}/stability", sync_to_thread=True, responses=responses(StabilityReport))
def read_stability(
    request: Asked, library: NamedDependency[Library], campaign_id: Campaign, *, hero_id: HeroId = None
) -> Response[bytes]:
    """How each block moves: frozen, settled, directed, diffusive or thrashing."""
    folder = analysed(find(library.settings, campaign_id, hero_id))
    return _summary(request, library, folder, folder.stability, StabilityReport)


@get("/{campaign_id:str}/skill_impact", sync_to_thread=True, responses=responses(SkillImpact))
def read_skill_impact(
    request: Asked, library: NamedDependency[Library], campaign_id: Campaign, *, hero_id: HeroId = None
) -> Response[bytes]:
    """Which blocks move when a skill's score does, and what the sample supports."""
    folder = analysed(find(library.settings, campaign_id, hero_id))
    return _summary(request, library, folder, folder.skill_impact, SkillImpact)


@get("/{campaign_id:str}/layer_drift", sync_to_thread=True, responses=responses(DriftList))
def list_layer_drift(
    request: Asked,
    library: NamedDependency[Library],
    campaign_id: Campaign,
    *,
    hero_id: HeroId = None,
    limit: DriftLimit = DRIFT_PAGE,
    offset: Offset = 0,
) -> Response[bytes]:
    """The comparisons of two checkpoints that were asked for."""
    folder = find(library.settings, campaign_id, hero_id)
    source = listings.drifts_source(folder)
    return respond(
        request,
        library.shelf,
        ("drifts", str(source), signature(source), listings.is_warm_there(library.settings), limit, offset),
        lambda: msgspec.json.encode(listings.drifts(folder, limit=limit, offset=offset)),
    )


@get("/{campaign_id:str}/layer_drift/{pair:str}", sync_to_thread=True, responses=responses(LayerDrift))
def read_layer_drift(
    request: Asked, library: NamedDependency[Library], campaign_id: Campaign, pair: Pair, *, hero_id: HeroId = None
) -> Response[bytes]:
    """The comparison of two checkpoints: the artifact as it lies on the disk."""
    folder = find(library.settings, campaign_id, hero_id)
    match = _DRIFT_NAME.fullmatch(pair)
    if match is None:
        msg = f"Not found: {pair[:100]!r}; give BASE-TARGET, or a name like drift-000100-to-000200.json"
        raise ArtifactMissing(msg)
    return _artifact(request, library, folder.layer_drift(int(match[1]), int(match[2])), LayerDrift)


def _artifact(request: Asked, library: Library, path: Path, kind: type[ArtifactType]) -> Response[bytes]:
    found = storage.signature(path)
    if found is None:
        msg = f"Not found: {path.name}; request the analysis, or look at the list of those that are there"
        raise ArtifactMissing(msg)
    roots = library.settings.artifact_roots
    # Before what is on the shelf is looked for, and once more when it is read: the file may be another one by then.
    resolve_under(standing(path), roots)
    return respond(request, library.shelf, ("file", str(path), found), lambda: read_checked(path, kind, allowed=roots))


def _timeline(
    request: Asked, library: Library, folder: CampaignFolder, path: Path, kind: type[Timeline], choice: Choice
) -> Response[bytes]:
    return _summary(request, library, folder, path, kind, part=choice, view=lambda timeline: part(timeline, choice))


def _summary(
    request: Asked,
    library: Library,
    folder: CampaignFolder,
    path: Path,
    kind: type[Summary],
    *,
    part: tuple[object, ...] = (),
    view: Callable[[Summary], object] = lambda summary: summary,
) -> Response[bytes]:
    """The reply with what ``view`` shows of a summary; ``part`` says which view that is."""
    is_current = library.bring_up_to_date(folder)
    key = ("summary", str(path), signature(path), *part)
    return respond(
        request,
        library.shelf,
        key,
        lambda: msgspec.json.encode(view(library.read(folder, path, kind))),
        is_behind=not is_current,
    )


def routes() -> list[ControllerRouterHandler]:
    """The handlers of this module."""
    handlers = [
        list_layer_stats,
        read_layer_stats,
        read_drift_timeline,
        read_submodule_drift,
        read_health_timeline,
        read_top_movers,
        read_stability,
        read_skill_impact,
        list_layer_drift,
        read_layer_drift,
    ]
    return [
        list_campaigns,
        Router("/api/analysis", tags=["analysis"], opt={ALREADY_ENCODED: True}, route_handlers=handlers),
    ]
