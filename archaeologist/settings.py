"""The settings: one TOML file, overridden by ``ARCHAEOLOGIST_*`` variables, overridden by options.

``load`` is called once by the command line. A wrong key or value is a ``SettingInvalid`` that names it. This module
covers names, defaults and validation; what a setting does is said where it is used.
"""

import os
import re
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct, field

from archaeologist.analyses import known_analyses
from archaeologist.devices import read_device
from archaeologist.errors import AnalysisUnknown, SettingInvalid
from contracts.messages import (
    DEFAULT_PROBES,
    DEVICE_PATTERN,
    MAX_PROBE_TOKENS,
    NAME_PATTERN,
    ForwardOptions,
    GpuOptions,
    JobType,
    NeighbourOptions,
    ReferencePolicy,
    Severity,
)
from contracts.prepared import prepare

PREFIX: Final = "ARCHAEOLOGIST_"
SHORT_FORMS: Final = {"ARCHAEOLOGIST_NATS_URL": ("bus", "url"), "ARCHAEOLOGIST_ROOT": ("root",)}
NOT_SETTINGS: Final = frozenset({"ARCHAEOLOGIST_CONFIG"})
SEARCH_PATH: Final = (Path("archaeologist.toml"), Path("/etc/archaeologist/archaeologist.toml"))

Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0, le=31_536_000)]
"""At most a year: what the bus and timers take."""
Gigabytes = Annotated[float, Meta(ge=0)]
"""Of 1,000,000,000 bytes."""
Fraction = Annotated[float, Meta(gt=0, le=1)]


class BusSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to reach the bus."""

    url: str = "nats://127.0.0.1:4222"
    """One address or several with commas."""
    credentials: str | None = None
    """Path of a ``.creds`` file."""
    nkey_seed: str | None = None
    """Path of a file that holds an nkey seed."""
    user: str | None = None
    password: str | None = None
    token: str | None = None
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    inbox_prefix: str = "_INBOX"
    connect_timeout_seconds: Seconds = 5.0
    replicas: Annotated[int, Meta(ge=1, le=5)] = 1
    """Copies of each stream in a cluster."""


class PathMapping(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"source": "from"}):
    """Rewrites a path prefix of a trainer on another machine: ``from``, ``to``."""

    source: str
    to: str


class BestReference(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which checkpoint is the best one."""

    metric: str = "eval_loss"
    mode: Literal["min", "max"] = "min"


class PolicySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which saved checkpoints are analysed, and against what."""

    automatic: bool = True
    """False: on demand only."""
    every: Positive = 5
    on_level_up: bool = True
    level_up_step: Fraction = 0.1
    """A skill whose best score crosses the next multiple of this is a level-up."""
    reference: ReferencePolicy = "previous"
    best: BestReference = BestReference()
    base: str | None = None
    """Path of the base checkpoint, for reference ``base``."""
    compute_activations: bool = True
    analyses: tuple[str, ...] = ()
    """Optional ones by name."""


class CampaignSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A campaign's overrides of the policy, under ``[campaigns."hero/campaign"]`` or ``[campaigns.hero]``."""

    automatic: bool | None = None
    every: Positive | None = None
    on_level_up: bool | None = None
    level_up_step: Fraction | None = None
    reference: ReferencePolicy | None = None
    best: BestReference | None = None
    base: str | None = None
    compute_activations: bool | None = None
    analyses: tuple[str, ...] | None = None


class PinSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hard links that keep a checkpoint's bytes while they are needed."""

    enabled: bool = True
    when_impossible: Literal["read_in_place", "refuse"] = "read_in_place"
    max_gb: Gigabytes | None = None
    """What pins may hold of checkpoints that are gone; None: a tenth of their file system."""


class ReadinessSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long a checkpoint that is still being written is waited for."""

    quiet_seconds: Annotated[float, Meta(ge=0)] = 2.0
    """A checkpoint without a trainer's last file is whole when nothing of it has changed for so long."""
    idle_seconds: Annotated[float, Meta(ge=0)] = 30.0
    """One that is not whole is given up when nothing of it has changed or arrived for so long."""
    wait_seconds: Annotated[float, Meta(ge=0)] = 600.0
    """The longest wait, from the message on."""
    poll_seconds: Annotated[float, Meta(gt=0)] = 1.0
    """How often it is looked at, at first; later every tenth of the time that was waited, at most 10 s."""


class SketchSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The sketches under the root."""

    max_gb: Gigabytes = 20.0
    """The oldest beyond it go."""


class ActivationSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the model is run on, where a request does not say."""

    probes: str = DEFAULT_PROBES
    probes_folder: str | None = None
    """The user's own probe sets; ``probes`` under the root by default."""
    max_probe_tokens: Annotated[int, Meta(ge=1, le=10**7)] = MAX_PROBE_TOKENS
    tokenizers: dict[str, str] = {}
    """Folder of the tokenizer by ``model_ref``, for checkpoints saved without one."""
    submodules: bool = False
    """Statistics of the outputs of attention and MLP too."""


class GpuSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a job may take of a GPU that others use too."""

    device: Annotated[str, Meta(pattern=DEVICE_PATTERN)] = "auto"
    share: Fraction = 0.5
    """The most of its memory that a job takes."""
    reserve_mb: Annotated[int, Meta(ge=0)] = 2048
    """Free memory that stays for others."""
    when_full: Literal["cpu", "wait"] = "cpu"


class ArchiveSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where older artifacts move to."""

    warm_root: str | None = None
    """None: nothing is archived."""
    after_days: Annotated[float, Meta(ge=0, le=36_500)] = 7.0
    daily: bool = True
    """The daemon archives every campaign once a day."""


class JobTypeSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of one job type."""

    time_limit_seconds: Seconds
    max_running: Positive
    """Running at once on this machine."""
    max_running_cluster: Positive | None = None
    """Running at once on all machines together; None: as many as they can."""
    allowed_roles: tuple[str, ...] = ("analytics",)
    """A worker with none of these takes no such job."""
    max_pending: Positive
    when_full: Literal["allow", "warn", "reject"]


class LayerStatsSettings(JobTypeSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of ``layer_stats``."""

    time_limit_seconds: Seconds = 1800.0
    max_running: Positive = 1
    max_pending: Positive = 10
    when_full: Literal["allow", "warn", "reject"] = "warn"


class LayerDriftSettings(JobTypeSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of ``layer_drift``."""

    time_limit_seconds: Seconds = 600.0
    max_running: Positive = 2
    max_pending: Positive = 20
    when_full: Literal["allow", "warn", "reject"] = "allow"


class JobsSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits and times in the life of a job."""

    layer_stats: LayerStatsSettings = LayerStatsSettings()
    layer_drift: LayerDriftSettings = LayerDriftSettings()
    lease_seconds: Seconds = 120.0
    """Without a heartbeat for this long a job goes to another worker."""
    heartbeat_seconds: Seconds = 30.0
    grace_seconds: Seconds = 60.0
    """On SIGTERM a running job may finish for this long; then it is handed back."""
    kill_after_seconds: Seconds = 20.0
    """From SIGTERM to SIGKILL of a child."""
    poll_seconds: Seconds = 2.0
    max_lost_workers: Positive = 3
    low_after: Positive = 4
    """One job of a lower priority is served after this many of higher ones."""
    retry_delay_seconds: Seconds = 30.0

    def of(self, job_type: JobType) -> JobTypeSettings:
        """Limits of a job type."""
        limits: JobTypeSettings = getattr(self, job_type)
        return limits


class WorkerSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """This machine as a worker."""

    name: Annotated[str, Meta(pattern=NAME_PATTERN, max_length=128)] = field(
        default_factory=lambda: (
            re.sub(r"[^A-Za-z0-9._-]+|\.\.+", "-", socket.gethostname()).strip("-.")[:128] or "worker"
        )
    )
    roles: tuple[str, ...] = ("analytics",)
    devices: str | None = None
    """Path of a ``devices.json`` from which name and roles are taken where they are not set."""
    device: str | None = None
    """Which of its entries this machine is; None: by its host name or address."""
    threads: Annotated[int, Meta(ge=0)] = 0
    """Threads of a child; 0: one for each core."""
    heartbeat_seconds: Seconds = 15.0
    """How often it tells the others that it is there."""
    drop_page_cache: bool = True
    """Give the page cache of what was read back to the machine; what was in it before stays."""
    nice: Annotated[int, Meta(ge=0, le=19)] = 10
    """A child's niceness."""
    io_priority: Literal["normal", "low", "idle"] = "low"
    read_mb_per_second: Annotated[float, Meta(ge=0)] = 0.0
    """The most that a child reads; 0: as fast as it can."""
    memory_mb: Annotated[int, Meta(ge=0)] = 0
    """The most private memory of a child; 0: no cap."""


class LinkSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A link in the page's header, to another page of the house."""

    title: Annotated[str, Meta(min_length=1, max_length=40)]
    address: Annotated[str, Meta(pattern=r"^(https?://|/(?!/))[!-~]{0,1000}$(?!\n)")]
    """``https://…``, ``http://…`` or a path of this server."""


class WebSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The HTTP API."""

    host: str = "127.0.0.1"
    """The address to listen on."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 8767
    """0: any that is free."""
    token: Annotated[str, Meta(min_length=16, max_length=256, pattern=r"^[!-~]*$(?!\n)")] | None = None
    """What a request that changes something must carry; made where it is needed and none is set."""
    allowed_hosts: tuple[str, ...] = ()
    """More names under which this server is asked for."""
    links: tuple[LinkSettings, ...] = ()
    """What the page's header links to."""
    max_streams: Positive = 32
    """Live streams open at once."""
    max_body_bytes: Annotated[int, Meta(ge=1024, le=256 * 1024)] = 256 * 1024
    max_cache_bytes: Annotated[int, Meta(ge=0)] = 128 * 1024 * 1024
    """Rendered replies kept in memory."""
    heartbeat_seconds: Seconds = 15.0
    """A live stream without events says that it is alive."""
    slow_client_seconds: Seconds = 30.0
    """A client that takes nothing for this long is dropped."""


class MetricsSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The daemon's own listener, for Prometheus and for whoever asks whether it is well."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 0
    """0: none."""


class NotifySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whom the daemon tells what happened."""

    command: tuple[str, ...] = ()
    """A program and its arguments; the event comes on its standard input."""
    webhook: Annotated[str, Meta(pattern=r"^https?://[^/\s]+", max_length=2048)] | None = None
    """An address to which the event is posted."""
    webhook_headers: dict[str, str] = {}
    """Headers of that request."""
    events: tuple[Literal["started", "completed", "failed", "cancelled", "alert"], ...] = ("alert", "failed")
    severity: Severity = "warning"
    """The least that is told."""
    timeout_seconds: Annotated[float, Meta(gt=0, le=60)] = 10.0
    attempts: Annotated[int, Meta(ge=1, le=50)] = 5


class LogSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the log looks."""

    format: Literal["auto", "json", "console"] = "auto"
    """auto: readable on a terminal, JSON elsewhere."""
    level: Literal["debug", "info", "warning", "error"] = "info"


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings. Paths are as written; ``root_path`` and ``allowed_roots`` are resolved."""

    root: str = "."
    """The folder that holds ``campaigns/``."""
    allowed: tuple[str, ...] = ()
    """More folders from which checkpoints may be read."""
    bus: BusSettings = BusSettings()
    paths: tuple[PathMapping, ...] = ()
    policy: PolicySettings = PolicySettings()
    campaigns: dict[str, CampaignSettings] = {}
    pins: PinSettings = PinSettings()
    readiness: ReadinessSettings = ReadinessSettings()
    sketches: SketchSettings = SketchSettings()
    activations: ActivationSettings = ActivationSettings()
    gpu: GpuSettings = GpuSettings()
    jobs: JobsSettings = JobsSettings()
    archive: ArchiveSettings = ArchiveSettings()
    worker: WorkerSettings = field(default_factory=WorkerSettings)
    web: WebSettings = WebSettings()
    metrics: MetricsSettings = MetricsSettings()
    notify: NotifySettings = NotifySettings()
    log: LogSettings = LogSettings()

    @property
    def root_path(self) -> Path:
        """The root, absolute and resolved."""
        return Path(self.root).expanduser().resolve()

    def forward_options(self, model_ref: str | None) -> ForwardOptions:
        """Where this machine has its probes and a model's tokenizer."""
        own = self.activations
        tokenizer = own.tokenizers.get(model_ref or "")
        return ForwardOptions(
            probes_folder=str(self.probes_path),
            tokenizer_path=str(Path(tokenizer).expanduser().resolve()) if tokenizer else None,
            submodules=own.submodules,
        )

    @property
    def gpu_options(self) -> GpuOptions:
        """What a job may take of this machine's GPU."""
        return msgspec.convert(self.gpu, GpuOptions, from_attributes=True)

    @property
    def neighbour_options(self) -> NeighbourOptions:
        """How a job stands back for others on this machine."""
        own = self.worker
        return NeighbourOptions(
            nice=own.nice, io=own.io_priority, read_mb_per_second=own.read_mb_per_second, memory_mb=own.memory_mb
        )

    @property
    def probes_path(self) -> Path:
        """The folder of the user's probe sets, absolute and resolved."""
        own = self.activations.probes_folder
        return (Path(own).expanduser() if own else self.root_path / "probes").resolve()

    @property
    def state_path(self) -> Path:
        """Our own state: embedded bus store, caches, locks."""
        return self.root_path / ".archaeologist"

    @property
    def allowed_roots(self) -> tuple[Path, ...]:
        """Folders under which every path from the bus or HTTP must lie."""
        return (self.root_path, *(Path(folder).expanduser().resolve() for folder in self.allowed))

    @property
    def artifact_roots(self) -> tuple[Path, ...]:
        """Folders under which every artifact must lie that is shown: the WARM root too."""
        warm = self.archive.warm_root
        return (*self.allowed_roots, *([Path(warm).expanduser().resolve()] if warm else []))

    def policy_for(self, hero_id: str, campaign_id: str) -> PolicySettings:
        """The policy with the hero's and then the campaign's overrides."""
        policy = self.policy
        for key in (hero_id, f"{hero_id}/{campaign_id}"):
            if overrides := self.campaigns.get(key):
                values = msgspec.structs.asdict(overrides).items()
                policy = msgspec.structs.replace(policy, **{name: value for name, value in values if value is not None})
        return policy


def find_file(explicit: str | Path | None, environ: Mapping[str, str]) -> Path | None:
    """The settings file: the option, ``ARCHAEOLOGIST_CONFIG``, else the first of the search path that exists.

    Raises:
        SettingInvalid: A file that was named is not there.
    """
    named = explicit or environ.get("ARCHAEOLOGIST_CONFIG")
    if named is None:
        return next((path for path in SEARCH_PATH if path.is_file()), None)
    path = Path(named)
    if not path.is_file():
        msg = f"settings file {str(path)!r} is not there; name an existing TOML file or leave --config out"
        raise SettingInvalid(msg)
    return path


def load(
    *,
    config: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    is_worker: bool = False,
) -> Settings:
    """The settings in force.

    Args:
        config: The ``--config`` option.
        overrides: Options by dotted name, ``{"bus.url": …}``; None values are ignored.
        environ: The environment; the process's own by default.
        is_worker: Whether name and roles matter, and ``worker.devices`` is read for them.

    Raises:
        SettingInvalid: An unknown key or a wrong value, named with where it was found.
        DeviceUnknown: ``worker.devices`` does not have this machine.
    """
    environ = os.environ if environ is None else environ
    path = find_file(config, environ)
    values = _read_toml(path) if path else {}
    _check(values, where=str(path))
    for keys, value, variable in _from_environment(environ):
        _put(values, keys, value)
        _check(values, where=variable)
    for name, value in (overrides or {}).items():
        if value is not None:
            _put(values, tuple(name.split(".")), value)
            _check(values, where=f"option for {name}")
    if is_worker:
        _take_device(values)
    settings = _check(values, where="settings")
    _check_times(settings)
    return settings


def _take_device(values: dict[str, Any]) -> None:
    """Name and roles of this machine from ``worker.devices``, where they are not set themselves.

    Raises:
        SettingInvalid: The file cannot be read.
        DeviceUnknown: It does not have this machine.
    """
    worker = values.get("worker", {})
    if worker.get("devices") is None:
        return
    device = read_device(Path(worker["devices"]).expanduser(), worker.get("device"))
    worker.setdefault("name", device.name)
    worker.setdefault("roles", list(device.roles))
    _check(values, where=f"{worker['devices']}, device {device.name!r}")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        msg = f"settings file {str(path)!r} cannot be read as TOML: {error}"
        raise SettingInvalid(msg) from error


def _from_environment(environ: Mapping[str, str]) -> list[tuple[tuple[str, ...], str, str]]:
    found = []
    for variable, value in sorted(environ.items()):
        if variable in SHORT_FORMS:
            found.append((SHORT_FORMS[variable], value, variable))
        elif variable.startswith(PREFIX) and variable not in NOT_SETTINGS:
            found.append((tuple(variable.removeprefix(PREFIX).lower().split("__")), value, variable))
    return found


def _put(values: dict[str, Any], keys: tuple[str, ...], value: Any) -> None:
    for key in keys[:-1]:
        nested = values.setdefault(key, {})
        if not isinstance(nested, dict):
            msg = f"setting {'.'.join(keys)!r}: {key!r} is a value, not a table"
            raise SettingInvalid(msg)
        values = nested
    values[keys[-1]] = value


def _check(values: dict[str, Any], *, where: str) -> Settings:
    try:
        # Lax, because an environment variable is text: "1" for 1, "true" for true.
        settings = msgspec.convert(values, Settings, strict=False)
        for names in (settings.policy.analyses, *(own.analyses for own in settings.campaigns.values())):
            known_analyses(names or ())
    except (msgspec.ValidationError, AnalysisUnknown) as error:
        msg = f"setting in {where}: {error}; see docs/settings.md for the known names and values"
        raise SettingInvalid(msg) from error
    return settings


def _check_times(settings: Settings) -> None:
    """Rules between settings, which may come from different places.

    Raises:
        SettingInvalid: A running job would lose its lease between two heartbeats, or a notice its own.
    """
    lease, heartbeat, timeout = (
        settings.jobs.lease_seconds,
        settings.jobs.heartbeat_seconds,
        settings.notify.timeout_seconds,
    )
    if heartbeat > lease / 2:
        msg = (
            f"setting jobs.heartbeat_seconds is {heartbeat:g} and jobs.lease_seconds {lease:g}: a job that is well"
            f" would go to another worker; set the heartbeat to at most half the lease, {lease / 4:g} for instance"
        )
        raise SettingInvalid(msg)
    if timeout >= lease and (settings.notify.command or settings.notify.webhook):
        msg = (
            f"setting notify.timeout_seconds is {timeout:g} and jobs.lease_seconds {lease:g}: what still runs would be"
            " told again; set it below the lease"
        )
        raise SettingInvalid(msg)


prepare(__name__)
