"""The replies of the HTTP API that are neither artifacts nor summaries.

Field names of the specification's section 8 are kept; everything more is an added field. Every error is a ``Problem``.
"""

from typing import Any, Literal

from msgspec import Struct

from contracts.artifacts import Alert, LayerTotal, LeftOut
from contracts.findings import Card, Finding
from contracts.messages import EventError
from contracts.prepared import prepare
from contracts.records import WorkerRecord

JobStatus = Literal["received", "queued", "running", "done", "failed", "cancelled", "refused", "skipped"]

Condition = Literal["idle", "busy", "draining", "silent"]
"""Of a worker."""


class Problem(Struct, frozen=True, kw_only=True):
    """Why a request was not answered: the value, the rule and the remedy in ``error``, a stable ``code``."""

    error: str
    code: str


class Answer(Struct, frozen=True, kw_only=True):
    """What became of a request for a job, or for its end."""

    accepted: bool
    job_id: str | None = None
    """Look the job up by it; null where nothing was published."""
    message: str
    """For people; where it was not accepted, the rule and the remedy."""
    status: JobStatus | None = None
    """``received``: on the bus, nobody has taken it yet."""
    code: str | None = None
    """Of the error, where it was not accepted."""
    error: str | None = None
    """The same as ``message``, where it was not accepted."""


class CampaignEntry(Struct, frozen=True, kw_only=True):
    """A campaign that has a folder."""

    hero_id: str
    campaign_id: str
    analyzed: int = 0
    """Artifacts of checkpoints."""
    latest_step: int | None = None


class Campaigns(Struct, frozen=True, kw_only=True):
    """Every campaign under the root, by hero and name."""

    campaigns: tuple[CampaignEntry, ...]
    count: int
    """Of all, not of this page."""
    next_offset: int | None = None
    """Where the next page begins; null: there is none."""


class StatsEntry(Struct, frozen=True, kw_only=True):
    """An analysed checkpoint."""

    checkpoint_step: int
    created_at: str | None = None
    has_drift: bool = False
    has_activations: bool = False
    most_changed_layer: str | None = None
    avg_weight_norm: float | None = None
    filename: str
    reference_checkpoint_step: int | None = None
    alerts: int = 0


class StatsList(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The analysed checkpoints of a campaign, ascending by step."""

    stats: tuple[StatsEntry, ...]
    count: int
    """Of all, not of this page."""
    campaign_id: str | None = None
    hero_id: str | None = None
    next_offset: int | None = None
    """Where the next page begins; left out: there is none."""
    left_out: tuple[LeftOut, ...] = ()
    """Files that could not be read; left out: there are none."""


class DriftEntry(Struct, frozen=True, kw_only=True):
    """A ``layer_drift`` artifact."""

    base_checkpoint_step: int
    target_checkpoint_step: int
    filename: str
    created_at: str | None = None
    avg_drift_l2: float | None = None
    most_changed_layer: str | None = None


class DriftList(Struct, frozen=True, kw_only=True):
    """The ``layer_drift`` artifacts of a campaign, by target and base."""

    drifts: tuple[DriftEntry, ...]
    count: int
    campaign_id: str
    hero_id: str
    next_offset: int | None = None
    left_out: tuple[LeftOut, ...] = ()


class Movers(Struct, frozen=True, kw_only=True):
    """The blocks that changed the most and the least over all artifacts."""

    top_movers: tuple[LayerTotal, ...]
    most_stable: tuple[LayerTotal, ...]


class Table(Struct, frozen=True, kw_only=True):
    """Rows of text; the first cell of each is its heading."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    """What was left out."""


class Definition(Struct, frozen=True, kw_only=True):
    """What a field means."""

    text: str
    address: str
    """Where on this server more is said."""


class Drawing(Struct, frozen=True, kw_only=True):
    """A figure as plotly takes it, without a theme, and the table behind it."""

    figure: dict[str, Any]
    """``data`` and ``layout``; ``layout.meta`` says what a click means."""
    table: Table
    title: str = ""
    definition: str = ""
    """Of the metric."""
    address: str = ""
    """Where on this server more is said of it."""


class MetricEntry(Struct, frozen=True, kw_only=True):
    """A number that the strata can show."""

    name: str
    title: str
    definition: str
    has_submodules: bool = False
    """Whether the strata have it for a row a submodule too."""


class SkillEntry(Struct, frozen=True, kw_only=True):
    """A skill, and what its sample supports."""

    skill: str
    intervals: int
    intervals_used: int
    supports: str
    does_not_support: str
    has_impact: bool
    """Whether there is a figure of its blocks."""


class Contents(Struct, frozen=True, kw_only=True):
    """What there is to show of a campaign."""

    hero_id: str
    campaign_id: str
    checkpoints: int
    metrics: tuple[MetricEntry, ...] = ()
    """Those that were measured, in the switch's order."""
    blocks: tuple[str, ...] = ()
    """From the embedding to the head."""
    skills: tuple[SkillEntry, ...] = ()
    has_movers: bool = False
    has_health: bool = False
    has_probes: bool = False
    """Whether any checkpoint was run on probes; without, only weights were looked at."""
    has_rounding: bool = False
    """Whether a drift is below the resolution of the stored precision."""
    classes: dict[str, int] = {}
    """How many blocks move how."""
    window: int = 0
    """Newest checkpoints that ``classes`` is about."""
    provenance: tuple[tuple[str, str], ...] = ()
    """Names and values: what the numbers were made from."""


class PlacedFinding(Finding, frozen=True, kw_only=True):
    """A finding and the section of the page that has its numbers."""

    section: str


class Findings(Struct, frozen=True, kw_only=True):
    """What the numbers say, the most important first."""

    findings: tuple[PlacedFinding, ...]


class Cards(Struct, frozen=True, kw_only=True):
    """The numbers above the strata."""

    cards: tuple[Card, ...]


class JobEntry(Struct, frozen=True, kw_only=True):
    """A job, or a request that led to none."""

    job_id: str
    """The request's id where it was asked for by that, else the id of the request that made the job."""
    status: JobStatus
    job_key: str | None = None
    job_type: str | None = None
    hero_id: str | None = None
    campaign_id: str | None = None
    checkpoint_step: int | None = None
    checkpoint_path: str | None = None
    reference_step: int | None = None
    reference_path: str | None = None
    priority: str | None = None
    request_ids: tuple[str, ...] = ()
    queued_at: str | None = None
    started_at: str | None = None
    finished_at: str | None = None
    worker: str | None = None
    attempt: int = 0
    lost_workers: int = 0
    cancelled_by: str | None = None
    device: str | None = None
    artifact_path: str | None = None
    has_activations: bool = False
    has_drift: bool = False
    most_changed_layer: str | None = None
    most_changed_layer_relative: str | None = None
    duration_sec: float | None = None
    notes: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    alerts: tuple[Alert, ...] = ()
    error: EventError | None = None
    reason: str | None = None
    """Why a checkpoint was skipped by the sampling policy."""


class Jobs(Struct, frozen=True, kw_only=True):
    """Jobs, the newest first."""

    jobs: tuple[JobEntry, ...]
    count: int
    """Of all that match, not of this page."""
    next_offset: int | None = None


class BusStatus(Struct, frozen=True, kw_only=True):
    """The connection to the bus."""

    connected: bool
    url: str
    """Without its secrets."""
    since: str | None = None
    """Since when it is so."""
    error: str | None = None


class WorkerEntry(WorkerRecord, frozen=True, kw_only=True):
    """A worker: what it last said of itself, and whether it still says anything."""

    condition: Condition
    """``silent``: killed, frozen or cut off; the rest is what it said before."""
    age_sec: float
    """Since it last said anything."""


class Workers(Struct, frozen=True, kw_only=True):
    """Every worker that was heard of within a day, by name."""

    workers: tuple[WorkerEntry, ...]
    count: int


class Status(Struct, frozen=True, kw_only=True):
    """What runs here."""

    version: str
    bus: BusStatus
    streams: int
    """Live streams open now."""
    max_streams: int
    log_sequence: int | None = None
    """Of the Battle Log's last event; null: the bus does not say."""
    queue: dict[str, dict[str, int]] | None = None
    """By job type, how many wait and how many are with a worker; null: the bus does not say."""
    workers: dict[str, int] | None = None
    """How many are ``idle``, ``busy``, ``draining``, ``silent``; null: the bus does not say."""


class Health(Struct, frozen=True, kw_only=True):
    """Whether this process answers, and whether it can do all it is for."""

    status: Literal["ok", "degraded"]
    reason: str | None = None


prepare(__name__)
