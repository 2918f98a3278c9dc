"""What the page shows of a campaign: findings, cards, figures and the tables behind them, as JSON."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from litestar import Request, Response, Router, get
from litestar.di import NamedDependency
from litestar.params import FromPath, PathParameter, QueryParameter
from litestar.types import ControllerRouterHandler

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.web.analysis import ALREADY_ENCODED, HeroId, responses
from archaeologist.web.campaigns import analysed, find
from archaeologist.web.documents import respond, signature
from archaeologist.web.library import Library
from contracts.http import Cards, Contents, Drawing, Findings, Table

if TYPE_CHECKING:
    from archaeologist.web.drawing import Chronicle

MOST_NAME: Final = 1000

Asked = Request[Any, Any, Any]
FigureName = Annotated[
    Literal["strata", "movers", "layer", "scores", "impact", "health"], PathParameter(description="Which figure.")
]
TableName = Annotated[Literal["alerts", "checkpoints"], PathParameter(description="Which table.")]
Metric = Annotated[
    str | None,
    QueryParameter(
        max_length=MOST_NAME, description="Of the strata and the layer detail; left out: the first measured."
    ),
]
Block = Annotated[str | None, QueryParameter(max_length=MOST_NAME, description="Of the layer detail.")]
Rows = Annotated[
    Literal["block", "submodule"],
    QueryParameter(
        description="Of the strata: a row a block, or a row a submodule where the metric is one of weights."
    ),
]
Skill = Annotated[str | None, QueryParameter(max_length=MOST_NAME, description="Of scores and impact.")]


@get("/{campaign_id:str}/contents", sync_to_thread=True, responses=responses(Contents))
def read_contents(
    request: Asked, library: NamedDependency[Library], campaign_id: FromPath[str], *, hero_id: HeroId = None
) -> Response[bytes]:
    """What there is to show of a campaign."""
    from archaeologist.web import drawing  # noqa: PLC0415 -- NumPy and plotly, needed once there is something to draw

    return _exhibit(request, library, _folder(library, campaign_id, hero_id), ("contents",), drawing.contents)


@get("/{campaign_id:str}/findings", sync_to_thread=True, responses=responses(Findings))
def read_findings(
    request: Asked, library: NamedDependency[Library], campaign_id: FromPath[str], *, hero_id: HeroId = None
) -> Response[bytes]:
    """Sentences made from the numbers, the most important first."""
    from archaeologist.web import drawing  # noqa: PLC0415 -- as above

    return _exhibit(request, library, _folder(library, campaign_id, hero_id), ("findings",), drawing.sentences)


@get("/{campaign_id:str}/cards", sync_to_thread=True, responses=responses(Cards))
def read_cards(
    request: Asked, library: NamedDependency[Library], campaign_id: FromPath[str], *, hero_id: HeroId = None
) -> Response[bytes]:
    """The four numbers above the strata."""
    from archaeologist.web import drawing  # noqa: PLC0415 -- as above

    return _exhibit(request, library, _folder(library, campaign_id, hero_id), ("cards",), drawing.numbers)


@get("/{campaign_id:str}/figures/{name:str}", sync_to_thread=True, responses=responses(Drawing))
def read_figure(
    request: Asked,
    library: NamedDependency[Library],
    campaign_id: FromPath[str],
    name: FigureName,
    *,
    hero_id: HeroId = None,
    metric: Metric = None,
    block: Block = None,
    skill: Skill = None,
    rows: Rows = "block",
) -> Response[bytes]:
    """A figure as plotly takes it, and the table behind it."""
    from archaeologist.web import drawing  # noqa: PLC0415 -- as above

    asked = drawing.Asked(name, metric, block, skill, rows)
    folder = _folder(library, campaign_id, hero_id)
    return _exhibit(request, library, folder, ("figure", *asked), lambda found: drawing.drawn(found, asked))


@get("/{campaign_id:str}/tables/{name:str}", sync_to_thread=True, responses=responses(Table))
def read_table(
    request: Asked,
    library: NamedDependency[Library],
    campaign_id: FromPath[str],
    name: TableName,
    *,
    hero_id: HeroId = None,
) -> Response[bytes]:
    """The alert history, or the analysed checkpoints, the newest first."""
    from archaeologist.web import drawing  # noqa: PLC0415 -- as above

    folder = _folder(library, campaign_id, hero_id)
    return _exhibit(request, library, folder, ("table", name), lambda found: drawing.table(found, name))


def routes() -> list[ControllerRouterHandler]:
    """The handlers of this module."""
    handlers = [read_contents, read_findings, read_cards, read_figure, read_table]
    return [Router("/api/analysis", tags=["page"], opt={ALREADY_ENCODED: True}, route_handlers=handlers)]


def _folder(library: Library, campaign_id: str, hero_id: str | None) -> CampaignFolder:
    return analysed(find(library.settings, campaign_id, hero_id))


def _exhibit(
    request: Asked,
    library: Library,
    folder: CampaignFolder,
    what: tuple[object, ...],
    make: "Callable[[Chronicle], bytes]",
) -> Response[bytes]:
    """The reply with what is made from a campaign's four summaries."""
    from archaeologist.web import drawing  # noqa: PLC0415 -- as above

    is_current = library.bring_up_to_date(folder)
    summaries = (folder.timeline, folder.health, folder.stability, folder.skill_impact)
    key = (str(folder.path), *map(signature, summaries), *what)
    return respond(request, library.shelf, key, lambda: make(drawing.read(library, folder)), is_behind=not is_current)
