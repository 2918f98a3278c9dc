"""Both checkpoints of a job opened, checked and walked: what ``layer_stats`` and ``layer_drift`` have in common.

Decides when a reference is left out: one that nobody named explicitly and that cannot be read costs its drift and a
warning, not the job.
"""

import collections
import contextlib
import os
import platform
import sys
import time
import traceback
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numba
import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from archaeologist import __version__
from archaeologist.checkpoints.index import CheckpointIndex
from archaeologist.checkpoints.layout import check_contents
from archaeologist.checkpoints.names import expert_of, is_bias
from archaeologist.checkpoints.reader import Pace
from archaeologist.errors import (
    ArchaeologistError,
    CheckpointError,
    DeviceUnavailable,
    NothingComparable,
    TemporaryError,
)
from archaeologist.excavation.forward.found import Found
from archaeologist.excavation.forward.tokens import find_tokenizer, has_tokenizer
from archaeologist.excavation.forward.way import GpuGaveUpError, Way
from archaeologist.excavation.matrices import Matrices
from archaeologist.excavation.plan import Plan, PlannedBlock, plan_walk
from archaeologist.excavation.sketch_file import SketchFile
from archaeologist.excavation.subjects import (
    Opened,
    Subjects,
    What,
    choose,
    described,
    exact,
    open_reference,
    open_side,
    roots,
    runnable,
)
from archaeologist.excavation.walk import BlockResult, OnProgress, ReferenceUnreadableError, Walk
from archaeologist.findings import analysis
from archaeologist.findings.movement import compared, resolution
from archaeologist.findings.wording import known_step, listed
from archaeologist.probes.sets import ProbeSet, load
from archaeologist.processes import uncollected
from archaeologist.statistics import kernels
from archaeologist.statistics.drift import PairSums, block_drift, global_drift, together
from archaeologist.statistics.experts import expert_drift, expert_weights
from archaeologist.statistics.sketch import SketchHeader
from archaeologist.statistics.weights import block_weights, global_weights, growth_of
from contracts.artifacts import (
    AdapterInfo,
    Alert,
    GlobalDriftStats,
    GlobalWeightStats,
    LayerDriftStats,
    LayerWeightStats,
    Versions,
)
from contracts.messages import DEFAULT_PROBES, Excavation, Job, Side

if TYPE_CHECKING:
    from archaeologist.excavation.forward.algebra import GpuAlgebra
    from archaeologist.excavation.forward.probing import Probing

DRIVERS: Final = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""Where a driver of NVIDIA, of Windows beneath its Linux, or of AMD shows itself: without one torch sees no GPU."""


class Survey(Struct, frozen=True, kw_only=True):
    """Everything that the walk found out."""

    plan: Plan
    architecture: str | None
    subject: What = "model"
    reference_subject: What = "model"
    adapter: AdapterInfo | None = None
    weights: dict[str, LayerWeightStats]
    global_weights: GlobalWeightStats
    drift: dict[str, LayerDriftStats] = {}
    global_drift: GlobalDriftStats | None = None
    """None where nothing was compared."""
    forward: Found | None = None
    """What running the model gave; None where that was not asked for."""
    has_sketch: bool = False
    device: str = "cpu"
    """A GPU's name where matrices were looked at on one."""
    not_computed: dict[str, str] = {}
    """Optional analyses of matrices that are missing, and why."""
    warnings: tuple[str, ...] = ()
    timings: dict[str, float] = {}
    """Seconds by stage: load (the compiled code), open (headers, fingerprints, ties), model (importing torch, building
    it and reading the probes, while the walk goes ahead), walk (the rest of it, with the forward pass), head; of the
    walk's threads as ``Walk.timings`` has them, of the forward passes as ``Lockstep.timings``."""


def survey(excavation: Excavation, on_progress: OnProgress, *, is_reference_needed: bool) -> Survey:
    """The walk over the job's checkpoints.

    Args:
        excavation: The job and how to run it.
        on_progress: Called with each report of progress.
        is_reference_needed: Whether a reference that cannot be used fails the job.

    Raises:
        CheckpointError: The target, or a needed reference, cannot be read or is not the one that the job means.
        NothingComparable: A needed reference has nothing in common with the target.
        ArtifactUnwritable: The sketch cannot be written.
        GpuMemoryShort: The GPU has no room now, and the settings say to wait.
    """
    reference = excavation.job.reference if excavation.job.options.compute_drift else None
    if reference is None:
        return _surveyed(excavation, None, on_progress)
    try:
        return _surveyed(excavation, reference, on_progress)
    except ReferenceUnreadableError as failure:
        cause = failure.__cause__
        if is_reference_needed and cause is not None:
            raise cause from None
        warning = f"the reference was left out: {cause}"
    found = _surveyed(excavation, None, on_progress)
    return replace(found, warnings=(warning, *found.warnings))


def _surveyed(excavation: Excavation, reference: Side | None, on_progress: OnProgress) -> Survey:
    """The survey; done again, in a smaller way, each time that a GPU gives up."""
    way = Way()
    while True:
        try:
            return _survey(excavation, reference, on_progress, way=way)
        except GpuGaveUpError as failure:
            way = failure.way
            sys.stderr.write(f"the survey begins again: {failure}\n")


def _survey(excavation: Excavation, reference: Side | None, on_progress: OnProgress, *, way: Way) -> Survey:
    started = time.perf_counter()
    with uncollected():
        kernels.load()
    loaded = time.perf_counter()
    with contextlib.ExitStack() as files:
        rate = excavation.neighbour.read_mb_per_second * 1e6
        pace = Pace(rate) if rate else None
        opened = open_side(excavation.job.target, files, excavation, pace)
        opened_reference = open_reference(reference, files, excavation, pace) if reference else None
        subjects = choose(opened, opened_reference)
        target, theirs = subjects.target, subjects.reference
        plan = _planned(subjects)
        ready = time.perf_counter()
        probes = _probes(excavation, opened)
        # The walk's bytes are the model's own only where both sides are models; an adapter is run after the walk.
        is_lockstep = opened.index.adapter is None and not (opened_reference and opened_reference.index.adapter)
        matrices = Matrices(
            excavation.job.options.analyses,
            plan,
            target=target.reader,
            reference=theirs.reader if theirs else None,
            threads=excavation.threads,
        )
        is_kept = isinstance(probes, ProbeSet) and is_lockstep
        walk = Walk(
            plan,
            target=target.reader,
            reference=theirs.reader if theirs else None,
            threads=excavation.threads,
            has_sketch=excavation.sketch_path is not None,
            kept_blocks=matrices.needed() | (plan.run_blocks() if is_kept else frozenset()),
            on_progress=on_progress,
        )
        # Its threads go ahead while torch is imported and the model built, and read the files: it ends before these.
        files.callback(walk.close)
        walk.start()
        probing, reason = _probing(excavation, probes, opened, opened_reference, files, way=way)
        gpu = _algebra(excavation, matrices, probing)
        built = time.perf_counter()
        # Closed here whoever ends it: a sketch is removed after an error.
        sketched = files.enter_context(contextlib.closing(_sketched(walk.blocks(), plan, excavation)))
        blocks = exact(matrices.through(sketched, gpu=gpu), subjects)
        found = _collect(plan, target.index, probing.through(blocks) if probing and is_lockstep else blocks)
        if probing and not is_lockstep:
            collections.deque(probing.through(iter(())), maxlen=0)
        walked = time.perf_counter()
        forward = probing.found() if probing else reason
        opened.check_unwritten()
        if opened_reference is not None:
            _check_unwritten(opened_reference)
    stages = {"load": loaded - started, "open": ready - loaded, "walk": walked - built, **walk.timings()}
    if probing:
        stages |= {"model": built - ready, "head": time.perf_counter() - walked}
    return replace(
        found,
        subject=target.what,
        reference_subject=theirs.what if theirs else "model",
        adapter=described(opened, target),
        weights=matrices.in_weights(found.weights),
        drift=matrices.in_drift(found.drift),
        device=matrices.device,
        not_computed=matrices.not_computed,
        forward=forward,
        has_sketch=excavation.sketch_path is not None,
        warnings=(*_warnings(found), *matrices.warnings),
        timings={stage: round(seconds, 6) for stage, seconds in stages.items()},
    )


def _probes(excavation: Excavation, target: Opened) -> ProbeSet | Found | None:
    """The probes that are to be run, or why none are; None where it was not asked for.

    What can be told without torch, whose import takes seconds and 200 MB.
    """
    job = excavation.job
    if job.job_type != "layer_stats" or not job.options.compute_activations:
        return None
    options = excavation.activations
    folder = Path(options.probes_folder) if options.probes_folder else None
    fallback = Path(options.tokenizer_path) if options.tokenizer_path else None
    try:
        probes = load(job.options.probe_dataset or DEFAULT_PROBES, folder=folder)
        find_tokenizer(_tokenizer_folder(target, runnable(target)), fallback=fallback)
    except ArchaeologistError as error:
        return Found(not_computed={"activations": f"{error.code}: {error}"})
    return probes


def _probing(
    excavation: Excavation,
    probes: ProbeSet | Found | None,
    target: Opened,
    reference: Opened | None,
    files: contextlib.ExitStack,
    *,
    way: Way,
) -> "tuple[Probing | None, Found | None]":
    """The forward pass beside the walk, or why there is none; both None where it was not asked for."""
    if not isinstance(probes, ProbeSet):
        return None, probes
    try:
        with uncollected():  # and not the models: where a GPU gives up they are
            from archaeologist.excavation.forward.probing import Checkpoint, Probing  # noqa: PLC0415 - imports torch

        def runs(opened: Opened) -> Checkpoint:
            made = runnable(opened)
            tokenizer = _tokenizer_folder(opened, made)
            for place in {made.folder, tokenizer}:
                check_contents(place, roots(excavation))
            return Checkpoint(folder=made.folder, tokenizer=tokenizer, index=made.index, reader=made.reader)

        beside = (lambda: runs(reference)) if reference else None
        probing = Probing(excavation, probes, runs(target), beside, way=way)
    except TemporaryError:
        raise
    except ArchaeologistError as error:
        return None, Found(not_computed={"activations": f"{error.code}: {error}"})
    except Exception as error:  # noqa: BLE001 - a model's own code runs here: weights and drift are delivered
        traceback.print_exc()
        return None, Found(not_computed={"activations": f"the model failed: {type(error).__name__}: {error}"})
    return files.enter_context(probing), None


def _algebra(excavation: Excavation, matrices: Matrices, probing: "Probing | None") -> "GpuAlgebra | None":
    """Where matrices are looked at: on the models' GPU, else on one that is looked for; None: the CPU."""
    side, asked = matrices.largest_side(), excavation.gpu.device
    if side == 0:
        return None
    if probing is not None:
        return probing.algebra()
    # To import torch takes seconds: only for a GPU that is there, or that the settings insist on.
    if asked == "cpu" or (asked == "auto" and not any(map(os.path.exists, DRIVERS))):
        return None
    try:
        with uncollected():
            from archaeologist.excavation.forward.algebra import chosen  # noqa: PLC0415 - imports torch

        gpu, steps = chosen(excavation.gpu, side=side)
    except DeviceUnavailable as error:
        matrices.give_up(f"{error.code}: {error}")
        return None
    except TemporaryError:
        raise
    except Exception as error:  # noqa: BLE001 - torch and the driver's own code: weights and drift do not depend on them
        traceback.print_exc()
        matrices.warn(f"on the CPU, for the GPU cannot be used: {type(error).__name__}: {error}")
        return None
    matrices.warn(*steps)
    return gpu


def _tokenizer_folder(opened: Opened, model: Opened) -> Path:
    """An adapter's own tokenizer, else its base's."""
    return opened.folder if has_tokenizer(opened.folder) else model.folder


def _planned(subjects: Subjects) -> Plan:
    theirs = subjects.reference
    plan = plan_walk(
        subjects.target.index,
        ties=subjects.target.ties,
        reference=theirs.index if theirs else None,
        reference_ties=theirs.ties if theirs else None,
    )
    _check_comparable(plan)
    if plan.comparison is None:
        return plan
    return replace(plan, comparison=replace(plan.comparison, compared_as=subjects.compared_as))


def _check_unwritten(reference: Opened) -> None:
    try:
        reference.check_unwritten()
    except CheckpointError as error:
        raise ReferenceUnreadableError from error


def _check_comparable(plan: Plan) -> None:
    if plan.comparison is None or plan.comparison.compared:
        return
    differing = plan.comparison.shape_differs
    example = next((f"{name}: {shapes}" for name, shapes in differing.items()), "no name is in both")
    msg = f"target and reference share no tensor of the same shape ({example}); compare checkpoints of one model"
    raise ReferenceUnreadableError from NothingComparable(msg)


def _sketched(blocks: Iterator[BlockResult], plan: Plan, excavation: Excavation) -> Generator[BlockResult, None, None]:
    """The blocks as they come, their sketches written in passing."""
    if excavation.sketch_path is None:
        yield from blocks
        return
    target = excavation.job.target
    header = SketchHeader(fingerprint=target.fingerprint, step=target.step)
    counts = ((pair.name, pair.count) for pair in plan.pairs())
    with SketchFile(Path(excavation.sketch_path), header, counts) as file:
        for block in blocks:
            for result in block.tensors:
                file.add(result)
            yield block


def _collect(plan: Plan, index: CheckpointIndex, blocks: Iterator[BlockResult]) -> Survey:
    weights: dict[str, LayerWeightStats] = {}
    drift: dict[str, LayerDriftStats] = {}
    sums: list[PairSums] = []
    for result in blocks:
        block = result.block
        by_tensor = {tensor.pair.within: tensor.drift for tensor in result.tensors if tensor.drift is not None}
        whole = together(by_tensor.values())
        mixtures = _mixtures(block)
        tensors = {tensor.pair.within: tensor.weights for tensor in result.tensors}
        found = block_weights(
            tensors,
            name=block.name,
            layer_type=block.layer_type,
            biases={pair.within for pair in block.pairs if is_bias(pair.within)},
            # A block whose tensors are not all compared has no growth: its norms are over different tensors.
            growth=growth_of(whole.squares, whole.reference_squares) if len(by_tensor) == len(block.pairs) else None,
        )
        experts = {name: expert_weights(mixture, tensors) for name, mixture in mixtures.items()}
        weights[block.name] = replace(found, experts=experts)
        if by_tensor:
            moved = {name: one for name, mixture in mixtures.items() if (one := expert_drift(mixture, by_tensor))}
            drift[block.name] = replace(block_drift(by_tensor, name=block.name), experts=moved)
            sums.append(whole)
    return Survey(
        plan=plan,
        architecture=_architecture(index.config),
        weights=weights,
        global_weights=global_weights(weights.values()),
        drift=drift,
        global_drift=global_drift(drift, together(sums)) if drift else None,
    )


def _mixtures(block: PlannedBlock) -> dict[str, dict[int, list[str]]]:
    """The block's tensors that belong to single experts, by mixture and number."""
    found: dict[str, dict[int, list[str]]] = {}
    for pair in block.pairs:
        if expert := expert_of(pair.within):
            found.setdefault(expert[0], {}).setdefault(expert[1], []).append(pair.within)
    return found


def _architecture(config: dict[str, Any] | None) -> str | None:
    names = (config or {}).get("architectures") or [None]
    first: str | None = names[0]
    return first


def _warnings(found: Survey) -> tuple[str, ...]:
    """What a reader must know before using the numbers."""
    return tuple(
        sentence
        for sentence in (
            _nonfinite(found),
            _nonfinite_reference(found),
            _untied(found.plan),
            _incomparable(found.plan),
            _resolution(found),
        )
        if sentence
    )


def _nonfinite(found: Survey) -> str | None:
    broken = [
        f"{block.name}.{within}"
        for block in found.weights.values()
        for within, tensor in block.tensors.items()
        if tensor.nan_count or tensor.inf_count
    ]
    if not broken:
        return None
    whole = found.global_weights
    counts = f"{whole.nan_count} NaN and {whole.inf_count} infinite values"
    return f"{counts} in {listed(broken)}; statistics cover the finite values"


def _nonfinite_reference(found: Survey) -> str | None:
    """What the drift leaves out although the target's values are finite."""
    missing = {
        f"{block.name}.{within}": count
        for block in found.drift.values()
        for within, tensor in block.tensors.items()
        if (count := tensor.nonfinite_pairs - _broken(found, block.name, within)) > 0
    }
    if not missing:
        return None
    what = f"where {sum(missing.values()):,} values of the reference are NaN or infinite"
    return f"the drift of {listed(list(missing))} leaves out pairs {what}"


def _broken(found: Survey, block: str, within: str) -> int:
    """NaN and infinities of a tensor of the target."""
    tensor = found.weights[block].tensors[within]
    return tensor.nan_count + tensor.inf_count


def _untied(plan: Plan) -> str | None:
    heads = plan.coverage.untied
    return (
        f"{listed(list(heads))} is tied by config.json but differs from the embedding; both are counted"
        if heads
        else None
    )


def _incomparable(plan: Plan) -> str | None:
    if plan.comparison is None:
        return None
    parts = {
        "only in the target": list(plan.comparison.only_in_target),
        "only in the reference": list(plan.comparison.only_in_reference),
        "of another shape": list(plan.comparison.shape_differs),
    }
    said = [f"{listed(names)} ({what})" for what, names in parts.items() if names]
    return f"not compared: {'; '.join(said)}" if said else None


def _resolution(found: Survey) -> str | None:
    told = resolution(compared(found.drift, found.weights, step=None, reference_step=None))
    return told.text.removesuffix(".") if told else None


def findings(found: Survey, job: Job, *, alerts: Sequence[Alert] = ()) -> tuple[str, ...]:
    """The sentences of the completed event."""
    told = analysis.findings(
        found.weights,
        found.global_weights,
        drift=found.drift,
        global_drift=found.global_drift,
        functional=found.forward.functional_drift if found.forward else None,
        alerts=alerts,
        steps=(job.target.step, known_step(job.reference.step, job.reference.path) if job.reference else None),
        left_out=len(found.plan.comparison.shape_differs) if found.plan.comparison else 0,
    )
    return tuple(one.text for one in told)


def versions() -> Versions:
    """What computes the artifact; torch and transformers where they ran."""
    modules = {name: sys.modules.get(name) for name in ("torch", "transformers")}
    return Versions(
        archaeologist=__version__,
        python=platform.python_version(),
        numpy=np.__version__,
        numba=numba.__version__,
        **{name: str(module.__version__) for name, module in modules.items() if module is not None},
    )
