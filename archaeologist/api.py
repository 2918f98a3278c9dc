"""``analyze`` and ``drift``: the same analyses as the daemon's, from Python or a terminal, without a bus.

    >>> import archaeologist
    >>> found = archaeologist.analyze("run/checkpoint-200", reference="run/checkpoint-100")  # doctest: +SKIP
    >>> found.global_drift_stats.most_changed_layer  # doctest: +SKIP
    'model.layers.3'

The work is done by a child process, so the caller's process needs no memory for it and imports neither torch nor numba.
Any path may be named: the allowed roots of the settings bind what comes over the bus.
"""

import asyncio
import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn, TypeVar, get_args

import msgspec

from archaeologist.analyses import known_analyses
from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.artifacts.store import put_in_place, read_artifact, remove_quietly, temporary_path
from archaeologist.checkpoints.bases import examine_base, find_base
from archaeologist.checkpoints.fingerprint import fingerprint
from archaeologist.checkpoints.index import read_index
from archaeologist.checkpoints.steps import step_of
from archaeologist.daemon.child import ChildLimits, run_child
from archaeologist.errors import ArtifactInvalid, ArtifactUnwritable, UsageError, class_of
from archaeologist.jobs import job_key
from archaeologist.probes.sets import digest, load
from contracts.artifacts import LayerDrift, LayerStats
from contracts.messages import (
    DEFAULT_PROBES,
    DEVICE_PATTERN,
    MAX_PROBE_TOKENS,
    CampaignId,
    DriftMetric,
    EventError,
    Excavation,
    Failed,
    ForwardOptions,
    GpuOptions,
    HeroId,
    Job,
    JobOptions,
    JobType,
    Progress,
    RequestId,
    Side,
    Succeeded,
)
from contracts.ulid import new_ulid

METRICS: Final[tuple[DriftMetric, ...]] = get_args(DriftMetric)
DEFAULT_METRICS: Final = ("l2", "cosine")
KILL_AFTER_SECONDS: Final = 10.0
UNCLAIMED: Final = 0
"""Claims count from 1; a file of claim 0 belongs to no worker."""

ANYWHERE: Final = (Path("/"),)
"""Where symbolic links may lead: a hub cache's snapshot is made of links out of its folder."""

T = TypeVar("T")


class Excavated(NamedTuple):
    """What a child process left."""

    content: bytes
    """The artifact, byte for byte."""
    outcome: Succeeded
    artifact_path: Path | None
    sketch_path: Path | None


def analyze(  # noqa: PLR0913 -- the options of the command, all by keyword
    checkpoint: str | Path,
    *,
    reference: str | Path | None = None,
    base: str | Path | None = None,
    compute_activations: bool = True,
    compute_drift: bool = True,
    model_ref: str | None = None,
    probes: str = DEFAULT_PROBES,
    probes_folder: str | Path | None = None,
    max_probe_tokens: int = MAX_PROBE_TOKENS,
    tokenizer: str | Path | None = None,
    submodules: bool = False,
    device: str = "auto",
    analyses: str | Iterable[str] = (),
    threads: int = 0,
    output: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    cache: Path | None = None,
) -> LayerStats:
    """Statistics of every block of a checkpoint, and its drift from a reference where one is named.

    Args:
        checkpoint: A checkpoint's folder, or one weight file.
        reference: The checkpoint to compare with.
        base: The model that an adapter was trained on, where its adapter_config.json names none that is here.
        compute_activations: Run the probes through the model.
        compute_drift: False: leave the reference out.
        model_ref: Recorded in the artifact.
        probes: A packaged probe set, ``default``, ``BIN`` or ``SY``, or one of the folder.
        probes_folder: Probe sets of your own.
        max_probe_tokens: Of all probes together, 1 or more; the last one is cut.
        tokenizer: Folder of the tokenizer, for a checkpoint saved without one.
        submodules: Activation statistics of the outputs of attention and MLP too.
        device: Where the model runs: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``. ``auto`` is the first GPU where it has
            room, else the CPU; half of its memory is used at most.
        analyses: Optional ones by name: ``spectra``, ``attention``, ``generations``, ``htsr``; one alone or several.
        threads: 0: one for each core.
        output: A folder: the artifact is written there as ``ckpt-{step:06d}.layer_stats.json``, the checkpoint's sketch
            beside it as ``ckpt-{step:06d}.sketch.safetensors``. None: nothing is written.
        progress: Called with each step of the walk.
        cache: Folder of the compiled kernels; by default the user's cache.

    Raises:
        AnalysisUnknown: One of ``analyses`` is not known.
        ProbesMissing: No probe set has this name.
        UsageError: Another option is wrong.
        ArchaeologistError: The checkpoint cannot be read or analysed; its class and ``code`` say why.
    """
    if compute_activations:
        check_probes(probes, folder=probes_folder)
    job = layer_stats_job(
        checkpoint,
        reference=reference if compute_drift else None,
        base=base,
        compute_activations=compute_activations,
        model_ref=model_ref,
        probes=probes,
        probes_folder=probes_folder,
        max_probe_tokens=max_probe_tokens,
        analyses=analyses,
    )
    options = ForwardOptions(
        probes_folder=str(probes_folder) if probes_folder else None,
        tokenizer_path=str(tokenizer) if tokenizer else None,
        submodules=submodules,
    )
    running = excavate(
        job,
        threads=threads,
        output=output,
        progress=progress,
        cache=cache,
        activations=options,
        gpu=GpuOptions(device=known_device(device)),
    )
    return decode_layer_stats(_run(running))


def drift(
    base: str | Path,
    target: str | Path,
    *,
    adapted: str | Path | None = None,
    metrics: str | Iterable[str] = DEFAULT_METRICS,
    threads: int = 0,
    output: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    cache: Path | None = None,
) -> LayerDrift:
    """How far each block of a checkpoint moved away from a base.

    Args:
        base: Where it came from.
        target: Where it went.
        adapted: The model that an adapter among them was trained on, where its adapter_config.json names none here.
        metrics: One or more of ``METRICS``; frobenius is l2 under its other name.
        threads: 0: one for each core.
        output: The artifact's file. None: nothing is written.
        progress: Called with each step of the walk.
        cache: Folder of the compiled kernels; by default the user's cache.

    Raises:
        UsageError: A metric is not known, or another option is wrong.
        ArchaeologistError: A checkpoint cannot be read or compared; its class and ``code`` say why.
    """
    job = layer_drift_job(base, target, adapted=adapted, metrics=metrics)
    found = _run(excavate(job, threads=threads, output=output, progress=progress, cache=cache))
    return decode_layer_drift(found)


# Jobs.


def layer_stats_job(  # noqa: PLR0913 -- those of ``analyze``, all by keyword
    checkpoint: str | Path,
    *,
    reference: str | Path | None = None,
    base: str | Path | None = None,
    compute_activations: bool = True,
    model_ref: str | None = None,
    probes: str = DEFAULT_PROBES,
    probes_folder: str | Path | None = None,
    max_probe_tokens: int = MAX_PROBE_TOKENS,
    analyses: str | Iterable[str] = (),
) -> Job:
    """The job that ``analyze`` runs: the daemon's own, without a queue. Reads both checkpoints' headers.

    Raises:
        AnalysisUnknown: One of ``analyses`` is not known.
        UsageError: Another option is wrong.
        CheckpointError: One cannot be read, with the code that says why.
    """
    if max_probe_tokens < 1:
        msg = (
            f"max_probe_tokens is {max_probe_tokens}, the limit is 1 or more; name such a one, or run no probes"
            " (compute_activations=False)"
        )
        raise UsageError(msg)
    options = JobOptions(
        compute_activations=compute_activations,
        compute_drift=reference is not None,
        probe_dataset=probes if compute_activations else None,
        probes_sha256=digest(probes, folder=Path(probes_folder) if probes_folder else None)
        if compute_activations
        else None,
        max_probe_tokens=max_probe_tokens if compute_activations else None,
        model_ref=model_ref,
        metrics=known_metrics(DEFAULT_METRICS),
        analyses=known_analyses(analyses),
    )
    target = side(checkpoint, adapted=base)
    compared = side(reference, adapted=base) if reference else None
    if base is not None:
        remedy = "to compare with it, name it as the reference"
        _check_adapter(base, [target, *([compared] if compared else [])], remedy=remedy)
    return _job("layer_stats", target=target, reference=compared, options=options)


def layer_drift_job(
    base: str | Path,
    target: str | Path,
    *,
    adapted: str | Path | None = None,
    metrics: str | Iterable[str] = DEFAULT_METRICS,
) -> Job:
    """The job that ``drift`` runs.

    Raises:
        UsageError: A metric is not known, or ``adapted`` is named and no adapter.
        CheckpointError: A checkpoint cannot be read, with the code that says why.
    """
    options = JobOptions(compute_activations=False, compute_drift=True, metrics=known_metrics(metrics))
    sides = [side(path, adapted=adapted) for path in (base, target)]
    if adapted is not None:
        _check_adapter(adapted, sides, remedy="leave it out, or name an adapter")
    return _job("layer_drift", target=sides[1], reference=sides[0], options=options)


def known_metrics(names: str | Iterable[str]) -> tuple[DriftMetric, ...]:
    """The metrics, each once, in the order that job keys are made of. A text alone is one name.

    Raises:
        UsageError: None is named, or one that is not known.
    """
    wanted = sorted({names} if isinstance(names, str) else set(names))
    if unknown := [name for name in wanted if name not in METRICS] or ([] if wanted else [""]):
        msg = f"metric {unknown[0]!r} is not known; use one or more of {', '.join(METRICS)}"
        raise UsageError(msg)
    return tuple(metric for metric in sorted(METRICS) if metric in wanted)


def known_device(name: str) -> str:
    """The name of a device, which need not be there.

    Raises:
        UsageError: It is none.
    """
    if not re.search(DEVICE_PATTERN, name):
        msg = f"device {name!r} is not known; use auto, cpu, cuda or cuda:N"
        raise UsageError(msg)
    return name


def check_probes(name: str, *, folder: str | Path | None = None) -> None:
    """Passes a probe set that somebody named and that can be used; a job says in its artifact what is wrong with one.

    Raises:
        ProbesMissing: No set has this name.
        PathOutsideRoot: The name leads out of the folder.
        ProbesInvalid: The file cannot be read or is not what it must be.
    """
    load(name, folder=Path(folder) if folder else None)


def side(path: str | Path, *, adapted: str | Path | None = None) -> Side:
    """A checkpoint as one side of a job. A step that nothing tells is 0: only the daemon insists on one.

    Args:
        path: The checkpoint's.
        adapted: The base model of an adapter; by default the one that its configuration names, if it is there.

    Raises:
        CheckpointError: It cannot be read, with the code that says why.
    """
    index = read_index(Path(path).expanduser(), allowed=ANYWHERE)
    found = None
    if index.adapter and adapted is not None:
        found = examine_base(Path(adapted).expanduser(), allowed=ANYWHERE)
    elif index.adapter and index.adapter.base:
        found = find_base(index, [Path(index.adapter.base)], allowed=ANYWHERE)
    return Side(
        path=index.path,
        step=step_of(Path(index.path)) or 0,
        read_path=index.path,
        fingerprint=fingerprint(index),
        base_path=found.path if found else None,
        base_fingerprint=found.fingerprint if found else None,
    )


def _check_adapter(base: str | Path, sides: Sequence[Side], *, remedy: str) -> None:
    """Passes the base that somebody named where it is one: each adapter among the sides has it."""
    if any(one.base_path for one in sides):
        return
    paths = [repr(one.path) for one in sides]
    none = f"neither {' nor '.join(paths)} is one" if len(paths) > 1 else f"{paths[0]} is none"
    msg = f"base {str(base)!r} is the model that an adapter was trained on, and {none}; {remedy}"
    raise UsageError(msg)


def _job(job_type: JobType, *, target: Side, reference: Side | None, options: JobOptions) -> Job:
    folder = CampaignFolder.enclosing(Path(target.path))
    hero_id, campaign_id = (folder.hero_id, folder.campaign_id) if folder else ("", "")
    key = job_key(
        job_type=job_type,
        hero_id=hero_id,
        campaign_id=campaign_id,
        target=target,
        reference=reference,
        options=options,
    )
    return Job(
        job_key=key,
        job_id=RequestId(new_ulid()),
        job_type=job_type,
        priority="normal",
        hero_id=HeroId(hero_id),
        campaign_id=CampaignId(campaign_id),
        target=target,
        reference=reference,
        reference_is_explicit=True,
        options=options,
        created_at=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    )


# Running one.


def decode_layer_stats(found: Excavated) -> LayerStats:
    """The artifact of a ``layer_stats`` job."""
    return msgspec.json.decode(found.content, type=LayerStats)


def decode_layer_drift(found: Excavated) -> LayerDrift:
    """The artifact of a ``layer_drift`` job."""
    return msgspec.json.decode(found.content, type=LayerDrift)


class _Places(NamedTuple):
    """Where the child writes, and what becomes of it."""

    temporary: Path
    temporary_sketch: Path | None
    artifact: Path | None
    sketch: Path | None


async def excavate(
    job: Job,
    *,
    threads: int = 0,
    output: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    cache: Path | None = None,
    activations: ForwardOptions | None = None,
    gpu: GpuOptions | None = None,
) -> Excavated:
    """The artifact of a job, computed by a child process; on disk only with ``output``.

    Raises:
        UsageError: ``threads`` is negative.
        ArchaeologistError: The child's error, as the class that has its code.
    """
    if threads < 0:
        msg = f"threads is {threads}, a number of threads is 1 or more; use 0 for one for each core"
        raise UsageError(msg)
    with _places(job, output) as places:
        excavation = Excavation(
            job=job,
            artifact_path=str(places.temporary),
            sketch_path=str(places.temporary_sketch) if places.temporary_sketch else None,
            threads=threads,
            activations=activations or ForwardOptions(),
            gpu=gpu or GpuOptions(),
        )
        outcome = await run_child(
            excavation,
            limits=ChildLimits(time_limit_seconds=None, kill_after_seconds=KILL_AFTER_SECONDS),
            on_progress=progress or (lambda _: None),
            cache=cache or default_cache(),
        )
        if isinstance(outcome, Failed):
            raise_coded(outcome.error)
        assert isinstance(outcome, Succeeded)  # noqa: S101 -- Stopped comes only to those who give a stop event
        return _collected(places, outcome)


@contextlib.contextmanager
def _places(job: Job, output: str | Path | None) -> Iterator[_Places]:
    """The files of one run; what is temporary is gone at the end."""
    with contextlib.ExitStack() as stack:
        if output is None:
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="archaeologist-"))
            yield _Places(Path(scratch) / "artifact.json", None, None, None)
            return
        artifact, sketch = _final_paths(job, Path(output).expanduser())
        # Beside the final files: a rename does not cross file systems.
        temporary = temporary_path(artifact, job.job_key, UNCLAIMED)
        temporary_sketch = temporary_path(sketch, f"{job.job_key}-sketch", UNCLAIMED) if sketch else None
        for file in (temporary, temporary_sketch):
            if file is not None:
                stack.callback(remove_quietly, file)
        yield _Places(temporary, temporary_sketch, artifact, sketch)


def _final_paths(job: Job, output: Path) -> tuple[Path, Path | None]:
    """Where artifact and sketch go. A folder, or a file that is no artifact of ours, is not replaced."""
    names = CampaignFolder(root=Path(), hero_id="", campaign_id="")
    artifact, sketch = output, None
    if job.job_type == "layer_stats":
        artifact, sketch = output / names.layer_stats(job.target.step).name, output / names.sketch(job.target.step).name
    try:
        artifact.parent.mkdir(parents=True, exist_ok=True)
        if artifact.is_dir():
            file = f"name a file, {str(artifact / 'drift.json')!r} for instance"
            msg = f"output {str(artifact)!r} is a folder; {file if sketch is None else 'name another output'}"
            raise UsageError(msg)
        if artifact.exists():
            _check_replaceable(artifact, read_artifact(artifact), job)
    except ArtifactInvalid as error:
        msg = f"output {str(artifact)!r} is a file and no artifact, only artifacts are replaced; name another output"
        raise ArtifactUnwritable(msg) from error
    except OSError as error:
        msg = f"output {str(output)!r} cannot be written: {error}; name another one"
        raise ArtifactUnwritable(msg) from error
    return artifact, sketch


def _check_replaceable(file: Path, there: LayerStats | LayerDrift, job: Job) -> None:
    """Refuses to replace another checkpoint's artifact: in a folder its name is the step alone."""
    if isinstance(there, LayerStats) and job.job_type == "layer_stats" and there.checkpoint_path != job.target.path:
        msg = (
            f"output {str(file)!r} is the artifact of checkpoint {there.checkpoint_path!r}, which has the same step"
            f" {job.target.step}; name another folder for {job.target.path!r}, or move that file away"
        )
        raise ArtifactUnwritable(msg)


def _collected(places: _Places, outcome: Succeeded) -> Excavated:
    content = places.temporary.read_bytes()
    has_sketch = outcome.has_sketch and places.sketch is not None
    if places.artifact is not None:
        put_in_place(places.temporary, places.artifact, superseded_folder=None)
    if has_sketch and places.temporary_sketch is not None and places.sketch is not None:
        put_in_place(places.temporary_sketch, places.sketch, superseded_folder=None)
    return Excavated(content, outcome, places.artifact, places.sketch if has_sketch else None)


def default_cache() -> Path:
    """Where compiled kernels are kept for this user: compiling them takes seconds."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "archaeologist" / "numba"


def raise_coded(error: EventError) -> NoReturn:
    """Raises the error class that has a code; the code of a later version's class becomes a PermanentError."""
    raise class_of(error.code)(error.message)


def _run(main: Coroutine[Any, Any, T]) -> T:
    """The coroutine's result, also where an event loop runs already: in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(main)
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[T]]] = Future()

    async def announced() -> T:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 -- a coroutine that runs under asyncio.run is a task's
        started.set_result((asyncio.get_running_loop(), task))
        return await main

    with ThreadPoolExecutor(max_workers=1) as pool:
        result = pool.submit(asyncio.run, announced())
        try:
            return result.result()
        except KeyboardInterrupt:
            # An interrupted cell: end the child, instead of waiting for it while the pool closes.
            loop, task = started.result()
            loop.call_soon_threadsafe(task.cancel)
            raise
