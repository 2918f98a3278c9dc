"""Runs probes through the target, and through the reference beside it: the forward half of a ``layer_stats`` job.

Whatever cannot be computed is named with its reason in ``not_computed``; weights and drift never depend on it.
"""

import contextlib
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Self

import torch
import transformers
from msgspec import Struct
from msgspec.structs import replace

from archaeologist.checkpoints.index import CheckpointIndex
from archaeologist.checkpoints.reader import Reader
from archaeologist.errors import ArchaeologistError, CheckpointError, GpuMemoryShort, ModelUnsupported
from archaeologist.excavation.forward import device
from archaeologist.excavation.forward.activations import ActivationStatistics
from archaeologist.excavation.forward.algebra import GpuAlgebra
from archaeologist.excavation.forward.attention import Attention
from archaeologist.excavation.forward.found import Found
from archaeologist.excavation.forward.generation import NotGeneratedError, generate
from archaeologist.excavation.forward.lanes import Lanes
from archaeologist.excavation.forward.model import Skeleton, TensorsStoredOtherwise, skeleton, whole
from archaeologist.excavation.forward.predictions import HEAD_POSITIONS, predict
from archaeologist.excavation.forward.streaming import Batch, Lockstep, Side
from archaeologist.excavation.forward.tokens import Tokens, batch_limits, batched, is_same_tokenizer, tokenize
from archaeologist.excavation.forward.way import GpuGaveUpError, Way
from archaeologist.excavation.walk import BlockResult, thread_count
from archaeologist.probes.sets import ProbeSet
from contracts.artifacts import ForwardInfo, FunctionalDrift, Generations, ProbeInfo
from contracts.messages import MAX_PROBE_TOKENS, Excavation

WHOLE_FACTOR: Final = 1.5
"""Of a checkpoint's size: what loading it whole may take at its peak."""
READ_FACTOR: Final = 2.5
"""The same where we read it and hand its tensors to transformers."""


class Checkpoint(Struct, frozen=True, kw_only=True):
    """An open checkpoint and the folder it was opened in."""

    folder: Path
    """With config.json."""
    tokenizer: Path
    """Where the tokenizer is looked for."""
    index: CheckpointIndex
    reader: Reader


class Probing:
    """The probes on their way through the models; a context manager."""

    def __init__(
        self,
        excavation: Excavation,
        probes: ProbeSet,
        target: Checkpoint,
        open_reference: Callable[[], Checkpoint] | None,
        *,
        way: Way,
    ) -> None:
        """Builds the models without their weights, tokenizes the probes, and decides where the models run.

        Args:
            excavation: The job.
            probes: What is run.
            target: The checkpoint under analysis.
            open_reference: Gives what is run beside it, where there is one, or raises why it cannot be.
            way: What earlier tries have left.

        Raises:
            ArchaeologistError: Tokenizer, model or GPU cannot be used; the code says why.
            GpuMemoryShort: The GPU has no room now, and the settings say to wait.
        """
        options = excavation.activations
        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        self._not_computed: dict[str, str] = {}
        self._probes = probes
        self._gpu_options = excavation.gpu
        self._reason: str | None = None
        self._checkpoint = target
        self._wants_generations = "generations" in excavation.job.options.analyses
        self._model = self._built(target)
        self._tokens = tokenize(
            self._probes,
            target.tokenizer,
            fallback=Path(options.tokenizer_path) if options.tokenizer_path else None,
            max_tokens=excavation.job.options.max_probe_tokens or MAX_PROBE_TOKENS,
            vocabulary=_vocabulary(self._model),
            positions=getattr(self._model.model.config, "max_position_embeddings", None),
        )
        reference = self._opened(open_reference) if open_reference else None
        theirs = self._reference_model(reference) if reference else None
        self._choose([self._model, *([theirs] if theirs else [])], way)
        batches = [_batch(self._tokens, numbers) for numbers in self._tokens.batches]
        self._lanes = Lanes(thread_count(excavation.threads), passes=len(batches) * (2 if theirs else 1))
        with self._falling_back():  # a model that is loaded whole is copied here
            self._target = self._side(target, self._model, batches, has_submodules=options.submodules, has_neurons=True)
            self._reference = self._side(reference, theirs, batches) if reference and theirs else None
        self._statistics = ActivationStatistics(self._tokens, lanes=self._lanes)
        self._lockstep = Lockstep(
            self._target,
            self._reference,
            self._statistics.add,
            lanes=self._lanes,
            on_end=self._statistics.finish,
            is_guest=self._choice.gpu is not None,
        )
        wants_attention = "attention" in excavation.job.options.analyses
        self._attention = Attention(self._target, self._tokens) if wants_attention else None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Starts nothing yet."""
        self._stack.callback(device.give_back)
        self._stack.callback(self._lanes.__exit__)
        self._stack.callback(self._lockstep.close)
        if self._attention:
            self._stack.enter_context(self._attention)
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the threads."""
        self._stack.close()

    def algebra(self) -> GpuAlgebra | None:
        """The arithmetic of matrices on the GPU that the models run on; None: they run on the CPU."""
        gpu = self._choice.gpu
        return GpuAlgebra(gpu, self._device) if gpu is not None else None

    def timings(self) -> dict[str, float]:
        """Seconds of the forward passes by stage, as ``Lockstep`` has them."""
        return self._lockstep.timings

    def through(self, blocks: Iterator[BlockResult]) -> Iterator[BlockResult]:
        """The walk's blocks, each after the models ran through it.

        Raises:
            GpuGaveUpError: The GPU's memory did not suffice.
            GpuMemoryShort: Likewise, and the settings say to wait.
        """
        with self._falling_back():
            yield from self._lockstep.through(blocks)

    def found(self) -> Found:
        """The statistics; after the walk. Runs the head.

        Raises:
            GpuGaveUpError: The GPU's memory did not suffice, or something else went wrong there.
            GpuMemoryShort: Its memory did not suffice, and the settings say to wait.
        """
        not_computed, output = dict(self._not_computed), Found()
        if failure := self._lockstep.failure:
            self._give_up_gpu(failure)
            not_computed["activations"] = failure
        else:
            try:
                with self._falling_back():
                    output = self._predictions()
            except (GpuGaveUpError, GpuMemoryShort):
                raise
            except Exception as error:  # noqa: BLE001 - as in the lockstep: the walk's results are not lost
                traceback.print_exc()
                failure = f"the head failed: {type(error).__name__}: {error}"
                self._give_up_gpu(failure)
                not_computed["predictions"] = failure
        stats = self._statistics.stats
        if self._attention:
            if missing := self._lockstep.failure or self._attention.missing(stats):
                not_computed["attention"] = missing
            stats = self._attention.in_stats(stats)
        generations = self._generations()
        if isinstance(generations, str):
            not_computed["generations"] = generations
        return replace(
            output,
            activation_stats=stats,
            generations=generations if isinstance(generations, Generations) else None,
            probe_info=_probe_info(self._probes, self._tokens),
            forward=ForwardInfo(
                way="whole" if self._reason else "streamed",
                reason=self._reason,
                device=self._choice.gpu.device if self._choice.gpu else "cpu",
                device_name=self._choice.gpu.name if self._choice.gpu else None,
                peak_gpu_bytes=device.peak_bytes(self._device),
                steps=self._choice.steps,
                threads=self._lanes.threads_a_pass,
                dtype=str(self._model.dtype).removeprefix("torch."),
                attention=str(self._model.model.config._attn_implementation),  # noqa: SLF001 - nowhere else to read
            ),
            functional_drift=self._drift(output),
            not_computed=not_computed | output.not_computed,
        )

    def _choose(self, models: Sequence[Skeleton], way: Way) -> None:
        """Where the models run and in which batches."""
        device.give_back()  # what an earlier try left
        lengths = [len(ids) for ids in self._tokens.ids]
        wanted = self._gpu_options.device
        gpu = None if way.is_on_cpu or wanted == "cpu" else device.look(wanted)
        self._needs = tuple(
            device.Need(cells, device.needed_bytes(models, _shapes(lengths, cells), head_positions=HEAD_POSITIONS))
            for cells in (batch_limits(lengths) if gpu else ())
        )
        self._choice = device.decide(self._gpu_options, gpu, self._needs, way=way)
        if self._choice.cells is not None:
            self._tokens = replace(self._tokens, batches=batched(lengths, cells=self._choice.cells))
        self._device = device.claim(self._choice)
        if gpu is not None:
            where = self._choice.gpu.device if self._choice.gpu else "cpu"
            sys.stderr.write(f"the model runs on {where}: {self._choice.reason}\n")

    @contextlib.contextmanager
    def _falling_back(self) -> Iterator[None]:
        """Turns a shortage of the GPU's memory into the next step down."""
        try:
            yield
        except RuntimeError as error:
            if self._choice.gpu is None or not device.is_shortage(error):
                raise
            traceback.print_exc()
            way = device.after_shortage(self._choice, self._gpu_options, self._needs)
            raise GpuGaveUpError(way) from error

    def _give_up_gpu(self, failure: str) -> None:
        """What fails on a GPU for another reason may do well on the CPU."""
        if self._choice.gpu is not None:
            raise GpuGaveUpError(device.after_failure(self._choice, failure))

    def _generations(self) -> Generations | str | None:
        """What the model writes, or why nothing; None where it was not asked for."""
        if not self._wants_generations:
            return None
        if self._lockstep.failure:
            return self._lockstep.failure
        try:
            return generate(
                self._model,
                lambda: _whole(self._checkpoint),
                self._tokens,
                needed_bytes=_whole_bytes(self._checkpoint),
                free_bytes=_free_memory(),
            )
        except (NotGeneratedError, ArchaeologistError) as reason:
            return str(reason)
        except Exception as error:  # noqa: BLE001 - as in the lockstep: the walk's results are not lost
            traceback.print_exc()
            return f"the model failed to write: {type(error).__name__}: {error}"

    def _built(self, checkpoint: Checkpoint) -> Skeleton:
        """The model to be streamed, or loaded whole where its tensors are not stored as its code has them."""
        try:
            return skeleton(checkpoint.folder, checkpoint.index)
        except TensorsStoredOtherwise as reason:
            if (needed := _whole_bytes(checkpoint)) > (free := _free_memory()):
                msg = f"{reason}; loading it whole needs {needed:.0f} bytes of memory and {free} are free"
                raise ModelUnsupported(msg) from reason
            self._reason = self._reason or f"loaded whole: {reason}"
            return _whole(checkpoint)

    def _side(self, checkpoint: Checkpoint, model: Skeleton, batches: Sequence[Batch], **kept: bool) -> Side:
        return Side(
            model,
            checkpoint.reader,
            batches,
            device=self._device,
            threads=self._lanes.threads_a_pass,
            **kept,
        )

    def _opened(self, open_reference: Callable[[], Checkpoint]) -> Checkpoint | None:
        try:
            return open_reference()
        except CheckpointError as error:
            self._not_computed["functional_drift"] = f"the reference cannot be run: {error}"
            return None

    def _reference_model(self, reference: Checkpoint) -> Skeleton | None:
        try:
            model = self._built(reference)
        except ArchaeologistError as error:
            self._not_computed["functional_drift"] = f"the reference cannot be run: {error}"
            return None
        if _vocabulary(model) != _vocabulary(self._model):
            sizes = f"{_vocabulary(model)} tokens and the target's {_vocabulary(self._model)}"
            self._not_computed["functional_drift"] = (
                f"the reference's vocabulary has {sizes}; compare models with one tokenizer"
            )
            return None
        if not is_same_tokenizer(Path(self._tokens.path), reference.tokenizer, self._probes):
            self._not_computed["functional_drift"] = (
                f"the tokenizer in {str(reference.tokenizer)!r} gives other tokens than the target's; compare models"
                " with one tokenizer"
            )
            return None
        return model

    def _predictions(self) -> Found:
        asked = [self._target, *([self._reference] if self._reference else [])]
        sides = [side for side in asked if side.model.head is not None]
        if sides[:1] != [self._target]:
            return Found(not_computed={"predictions": "the model has no causal head"})
        hidden = [rows for side in sides if (rows := self._statistics.positions(side.last_hidden())) is not None]
        if len(hidden) < len(sides):
            return Found(not_computed={"predictions": "the last hidden states have another shape than the probes"})
        result = predict(sides, hidden, self._tokens, lanes=self._lanes)
        return Found(
            output_stats=result.output,
            output_stats_by_skill=result.output_by_skill,
            functional_drift=FunctionalDrift(
                output=result.drift, output_by_skill=result.drift_by_skill, reference_output=result.reference_output
            )
            if len(sides) > 1
            else None,
        )

    def _drift(self, output: Found) -> FunctionalDrift | None:
        if self._reference is None or not self._statistics.similarity:
            return None
        return replace(output.functional_drift or FunctionalDrift(), similarity=self._statistics.similarity)


def _whole(checkpoint: Checkpoint) -> Skeleton:
    return whole(checkpoint.folder, checkpoint.index, checkpoint.reader)


def _whole_bytes(checkpoint: Checkpoint) -> float:
    """What loading a checkpoint whole may take at its peak."""
    size = sum(entry.size for entry in checkpoint.index.tensors.values())
    return size * (WHOLE_FACTOR if checkpoint.index.format == "safetensors" else READ_FACTOR)


def _free_memory() -> int:
    """Bytes that can be had without swapping (proc(5))."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _vocabulary(model: Skeleton) -> int:
    return int(next(model.model.get_input_embeddings().parameters()).shape[0])


def _batch(tokens: Tokens, numbers: Sequence[int]) -> Batch:
    lengths = [len(tokens.ids[number]) for number in numbers]
    ids = torch.full((len(numbers), max(lengths)), tokens.pad_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, number in enumerate(numbers):
        ids[row, : lengths[row]] = torch.tensor(tokens.ids[number])
        mask[row, : lengths[row]] = 1
    return Batch(input_ids=ids, attention_mask=None if min(lengths) == max(lengths) else mask)


def _shapes(lengths: list[int], cells: int) -> list[tuple[int, int]]:
    """Sequences and positions of each batch."""
    return [(len(numbers), max(lengths[number] for number in numbers)) for numbers in batched(lengths, cells=cells)]


def _probe_info(probes: ProbeSet, tokens: Tokens) -> ProbeInfo:
    by_skill: dict[str, int] = {}
    for ids, skill in zip(tokens.ids, tokens.skills, strict=True):
        if skill:
            by_skill[skill] = by_skill.get(skill, 0) + len(ids)
    return ProbeInfo(
        dataset_id=probes.name,
        num_sequences=len(tokens.ids),
        total_tokens=sum(len(ids) for ids in tokens.ids),
        source_file=probes.source,
        sha256=probes.sha256,
        tokenizer_sha256=tokens.sha256,
        tokenizer_path=tokens.path,
        tokens_by_skill=by_skill,
        truncated=tokens.truncated or probes.is_cut,
        batches=tokens.batches,
    )
