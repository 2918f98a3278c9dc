"""The messages on the bus: what trainers and people send, the job on the queue, what the Battle Log carries.

Constraints bite when a message is decoded, not when a Struct is built. Unknown fields are ignored; a new field has
a default; no field ever changes its type. Paths are the sender's until intake has resolved them.
"""

from typing import Annotated, Any, Final, Literal, NewType

import msgspec
from msgspec import Meta, Struct

from contracts.artifacts import Alert
from contracts.prepared import prepare

HeroId = NewType("HeroId", str)
CampaignId = NewType("CampaignId", str)
JobKey = NewType("JobKey", str)
RequestId = NewType("RequestId", str)

NAME_PATTERN: Final = r"^(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{0,127}$(?!\n)"
"""A plain name: letters, digits, ``.``, ``_`` and ``-``, never ``..``. Python's ``$`` lets a last newline through."""

REQUEST_ID_PATTERN: Final = r"^[A-Za-z0-9_-]{1,64}$(?!\n)"

DEVICE_PATTERN: Final = r"^(auto|cpu|cuda(:[0-9]{1,3})?)$(?!\n)"

DEFAULT_PROBES: Final = "default"
MAX_PROBE_TOKENS: Final = 4096
"""What a request that names neither gets, where the settings do not say otherwise."""

Hero = Annotated[HeroId, Meta(pattern=NAME_PATTERN, max_length=128, description="A hero: one model in training.")]
Campaign = Annotated[
    CampaignId, Meta(pattern=NAME_PATTERN, max_length=128, description="A campaign: one training run of a hero.")
]
RequestIdText = Annotated[
    RequestId,
    Meta(pattern=REQUEST_ID_PATTERN, description="The asker's own id of the request, a ULID for instance."),
]
Step = Annotated[int, Meta(ge=0, le=10**15, description="Optimizer steps since the start of the run.")]
PathText = Annotated[
    str, Meta(min_length=1, max_length=4096, pattern=r"^[^\x00]*$", description="A path as the sender sees it.")
]
Score = Annotated[float, Meta(description="A skill's score, higher is better.")]
MetricName = Annotated[str, Meta(min_length=1, max_length=128)]
Metrics = Annotated[dict[MetricName, float | None], Meta(max_length=256)]
Skills = Annotated[dict[MetricName, Score], Meta(max_length=256)]
SkillSamples = Annotated[dict[MetricName, Annotated[int, Meta(ge=1)]], Meta(max_length=256)]

JobType = Literal["layer_stats", "layer_drift"]
Priority = Literal["low", "normal", "high"]
ReferencePolicy = Literal["none", "previous", "base", "best"]
Severity = Literal["info", "success", "warning", "error"]
DriftMetric = Literal["l2", "cosine", "frobenius"]
Analysis = Literal["spectra", "attention", "generations", "htsr"]
AnalysisName = Annotated[str, Meta(description="spectra, attention, generations or htsr; another one is refused.")]


class CheckpointSaved(Struct, frozen=True, kw_only=True):
    """A trainer saved a checkpoint. Subject ``checkpoint.saved``."""

    hero_id: Hero
    campaign_id: Campaign
    checkpoint_path: PathText
    checkpoint_step: Step | None = None
    """Left out: taken from the folder's name, else from its ``trainer_state.json``."""
    model_ref: Annotated[str, Meta(max_length=256)] | None = None
    metrics: Metrics = {}
    """Last logged metrics, ``{"eval_loss": 1.9}`` for instance."""
    skills: Skills = {}
    """Scores by skill, ``{"BIN": 0.71}`` for instance."""
    skill_samples: SkillSamples = {}
    """On how many items each score was measured, where that is known."""
    level: int | None = None
    """The hero's level; a rise is a level-up."""
    saved_at: Annotated[str, Meta(max_length=64)] | None = None
    request_id: RequestIdText | None = None


class SkillEvaluated(Struct, frozen=True, kw_only=True):
    """An evaluation of one skill at one checkpoint ended. Subject ``skill.evaluated``."""

    hero_id: Hero
    campaign_id: Campaign
    checkpoint_step: Step
    skill: MetricName
    score: Score
    num_samples: Annotated[int, Meta(ge=1)] | None = None
    level: int | None = None
    evaluated_at: Annotated[str, Meta(max_length=64)] | None = None
    request_id: RequestIdText | None = None


class AnalysisRequested(Struct, frozen=True, kw_only=True):
    """Somebody asks for an analysis. Subject ``analysis.requested``.

    ``layer_stats`` needs ``checkpoint_path`` or ``checkpoint_step``; ``layer_drift`` needs a base and a target, each
    by path or by step. Which reference ``layer_stats`` uses: an explicit path or step, else ``reference``, else the
    campaign's policy.
    """

    hero_id: Hero
    campaign_id: Campaign
    job_type: JobType = "layer_stats"
    priority: Priority = "normal"
    force: bool = False
    """Run again although the same job is already done."""
    request_id: RequestIdText | None = None
    model_ref: Annotated[str, Meta(max_length=256)] | None = None
    output_path: PathText | None = None
    """Where the artifact goes instead of the campaign's folder: a folder for ``layer_stats``, a file for
    ``layer_drift``; absolute, or relative to the root."""

    checkpoint_path: PathText | None = None
    checkpoint_step: Step | None = None
    reference: ReferencePolicy | None = None
    reference_checkpoint_path: PathText | None = None
    reference_checkpoint_step: Step | None = None
    probe_dataset: PathText | None = None
    max_probe_tokens: Annotated[int, Meta(ge=1, le=10**7)] | None = None
    compute_activations: bool = True
    compute_drift: bool | None = None
    analyses: Annotated[list[AnalysisName], Meta(max_length=16)] | None = None
    """Optional analyses of a ``layer_stats`` job by name; left out: those of the policy."""

    base_checkpoint_path: PathText | None = None
    base_checkpoint_step: Step | None = None
    target_checkpoint_path: PathText | None = None
    target_checkpoint_step: Step | None = None
    metrics: Annotated[list[DriftMetric], Meta(min_length=1, max_length=8)] | None = None


class Side(Struct, frozen=True, kw_only=True):
    """One checkpoint of a job: where its owner put it, where it is read, what it held when the job was made."""

    path: str
    """Absolute and resolved, as recorded in the artifact."""
    step: int
    read_path: str
    """Where the bytes are read: the pin, or ``path`` itself."""
    fingerprint: str
    """Hash of sizes, headers and sampled bytes."""
    base_path: str | None = None
    """Of an adapter: where its base model is read; null where that was not found."""
    base_fingerprint: str | None = None


class JobOptions(Struct, frozen=True, kw_only=True):
    """The options that change a job's result; part of its key."""

    compute_activations: bool = True
    compute_drift: bool = True
    probe_dataset: str | None = None
    probes_sha256: str | None = None
    """Of the set's texts and skills when the job was made; null where the set could not be read."""
    max_probe_tokens: Annotated[int, Meta(ge=1)] | None = None
    model_ref: str | None = None
    metrics: tuple[DriftMetric, ...] = ("l2", "cosine")
    output_path: str | None = None
    analyses: tuple[Analysis, ...] = ()
    """Optional ones, sorted, each once."""


class Job(Struct, frozen=True, kw_only=True):
    """A job on the queue, ready to run: everything resolved, nothing left to decide.

    ``target`` is the checkpoint under analysis; ``reference`` is ``layer_drift``'s base, ``layer_stats``' reference,
    or null.
    """

    job_key: JobKey
    job_id: RequestId
    """The request that made the job."""
    job_type: JobType
    priority: Priority
    hero_id: HeroId
    campaign_id: CampaignId
    target: Side
    reference: Side | None = None
    reference_is_explicit: bool = False
    """True: a reference that cannot be read fails the job. False: it is left out, with a warning."""
    options: JobOptions = JobOptions()
    created_at: str
    run: int = 1
    """Counts how often this key was started anew by ``force``."""
    request: dict[str, Any] = {}
    """The request as received, for the failed event; cut at 4 KB."""
    notes: tuple[str, ...] = ()
    """What intake has to say to the reader, "no earlier analysed checkpoint" for instance."""


class EventError(Struct, frozen=True, kw_only=True):
    """Why something failed: a stable code, and a message with the value, the rule and the remedy."""

    code: str
    message: str


class EventData(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """What every event of the Battle Log says about its job; null where not known (yet)."""

    job_id: str | None = None
    job_key: str | None = None
    job_type: str | None = None
    hero_id: str | None = None
    campaign_id: str | None = None
    checkpoint_step: int | None = None
    attempt: int | None = None
    worker: str | None = None


class StartedData(EventData, frozen=True, kw_only=True):
    """``analysis.started``: a worker took the job."""

    reference_step: int | None = None
    device: str = "cpu"
    """As set; ``auto``: decided by the job, and in its artifact."""


class ProgressData(EventData, frozen=True, kw_only=True):
    """``analysis.progress``: how far a running job is. At most one a second."""

    stage: str
    block: int
    blocks: int
    bytes_read: int
    bytes_total: int
    eta_sec: float | None = None


class CompletedData(EventData, frozen=True, kw_only=True):
    """``analysis.completed``: the artifact lies in its place."""

    reference_step: int | None = None
    most_changed_layer: str | None = None
    """The block with the largest ``total_l2``, as in the specification."""
    most_changed_layer_relative: str | None = None
    """The block with the largest relative L2."""
    duration_sec: float = 0.0
    artifact_path: str = ""
    has_activations: bool = False
    has_drift: bool = False
    findings: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class FailedData(EventData, frozen=True, kw_only=True):
    """``analysis.failed``: a message was refused or a job ended without an artifact."""

    error: EventError
    request: Any = None
    """The message as received, cut at 4 KB; text where it is not JSON."""


class CancelledData(EventData, frozen=True, kw_only=True):
    """``analysis.cancelled``: a person took the job back."""

    by: str | None = None


class AlertData(EventData, frozen=True, kw_only=True):
    """``analysis.alert``: a sign of collapse or of broken weights; the envelope's message says it in words."""

    severity: Literal["warning", "critical"]
    family: str
    """representation, entropy, repetition, divergence, weights."""
    metric: str
    block: str | None = None
    """The block that stands out; null: the model as a whole."""
    value: float | None = None
    baseline: float | None = None
    """Median of the history, or the value of the reference or of the best checkpoint."""
    checkpoints: int = 0
    """How many earlier checkpoints it was judged against."""
    confidence: Literal["low", "normal"] = "normal"


class Event(Struct, frozen=True, kw_only=True):
    """The Battle Log's envelope; ``data`` has the shape that ``type`` names."""

    type: str
    message: str
    severity: Severity
    source: str = "archaeologist"
    data: Any
    id: str
    """A ULID."""
    time: str
    """RFC 3339, UTC."""
    version: int = 1


EVENT_DATA: Final[dict[str, type[EventData]]] = {
    "analysis.started": StartedData,
    "analysis.progress": ProgressData,
    "analysis.completed": CompletedData,
    "analysis.failed": FailedData,
    "analysis.cancelled": CancelledData,
    "analysis.alert": AlertData,
}


class ForwardOptions(Struct, frozen=True, kw_only=True):
    """Where probes and tokenizers lie on this machine, and what more is looked at; not part of a job's key."""

    probes_folder: str | None = None
    tokenizer_path: str | None = None
    """For a checkpoint saved without a tokenizer."""
    submodules: bool = False


class GpuOptions(Struct, frozen=True, kw_only=True):
    """What a job may take of a GPU that others use too; not part of a job's key."""

    device: Annotated[str, Meta(pattern=DEVICE_PATTERN)] = "auto"
    """auto: the first GPU, where torch sees one and it has room, else the CPU; cpu; cuda; cuda:1."""
    share: Annotated[float, Meta(gt=0, le=1)] = 0.5
    """The most of its memory that a job takes."""
    reserve_mb: Annotated[int, Meta(ge=0)] = 2048
    """Free memory that stays for others, in units of 1,000,000 bytes."""
    when_full: Literal["cpu", "wait"] = "cpu"

    def room_bytes(self, *, total_bytes: int, free_bytes: int) -> int:
        """What a job may take of a GPU with so much memory."""
        return max(0, min(int(self.share * total_bytes), free_bytes - self.reserve_mb * 1_000_000))


class NeighbourOptions(Struct, frozen=True, kw_only=True):
    """How a job stands back for others on its machine; not part of a job's key."""

    nice: Annotated[int, Meta(ge=0, le=19)] = 5
    """The process's niceness: inference on the same machine goes first."""
    io: Literal["normal", "low", "idle"] = "low"
    """Priority of its reads at the disk: as everybody's; the lowest of the best-effort class; only when nobody else
    reads. Counts where the disk's scheduler has priorities."""
    read_mb_per_second: Annotated[float, Meta(ge=0)] = 0.0
    """The most that the walk reads, in units of 1,000,000 bytes; 0: as fast as it can."""
    memory_mb: Annotated[int, Meta(ge=0)] = 0
    """The most private memory of the process, in units of 1,000,000 bytes; 0: no cap."""


class Excavation(Struct, frozen=True, kw_only=True):
    """What a child process reads on standard input: a job and where and how to run it."""

    job: Job
    artifact_path: str
    """The temporary file that the child writes and fsyncs; its caller puts it in place."""
    sketch_path: str | None = None
    """The temporary file of the target's sketch; null: no sketch."""
    history_path: str | None = None
    """The campaign's folder of ``layer_stats``, where the artifact is judged against more than lies beside it."""
    worker: str | None = None
    threads: Annotated[int, Meta(ge=0)] = 0
    """0: one for each core the process may use."""
    drop_page_cache: bool = False
    neighbour: NeighbourOptions = NeighbourOptions()
    allowed: tuple[str, ...] = ("/",)
    """Folders into which checkpoints and the links in them may lead; by default any, for a person at the terminal."""
    activations: ForwardOptions = ForwardOptions()
    gpu: GpuOptions = GpuOptions()


class Progress(Struct, frozen=True, kw_only=True, tag_field="kind", tag="progress"):
    """A line from the child: how far it is."""

    stage: str
    block: int
    blocks: int
    bytes_read: int
    bytes_total: int
    eta_sec: float | None = None


class Succeeded(Struct, frozen=True, kw_only=True, tag_field="kind", tag="succeeded"):
    """The child's last line after an artifact was written whole."""

    artifact_sha256: str
    has_sketch: bool = False
    has_activations: bool = False
    has_drift: bool = False
    most_changed_layer: str | None = None
    most_changed_layer_relative: str | None = None
    duration_sec: float = 0.0
    findings: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    """What the forward pass had to give up on a GPU, for the log."""
    alerts: tuple[Alert, ...] = ()


class Failed(Struct, frozen=True, kw_only=True, tag_field="kind", tag="failed"):
    """The child's last line after an error."""

    error: EventError
    retryable: bool = False


ChildLine = Progress | Succeeded | Failed


def encode(message: Struct) -> bytes:
    """JSON of a message; NaN and infinity become null."""
    return msgspec.json.encode(message)


prepare(__name__)
