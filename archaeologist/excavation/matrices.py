"""The optional analyses of single matrices, beside the walk: spectra of the changes, power laws of the weights.

The bytes are those that the walk keeps of the transformer blocks; embeddings and heads, which it does not keep, are
read again in slices. What is held of a matrix is its smaller side's Gram matrix and one slice. Gram matrix and
eigenvalues are NumPy's, or torch's on a GPU (``forward/algebra.py``) until that fails.
"""

import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from archaeologist.checkpoints.index import TensorEntry
from archaeologist.checkpoints.reader import Reader
from archaeologist.errors import ArchaeologistError
from archaeologist.excavation.plan import Pair, Plan
from archaeologist.excavation.tally import WIDTHS
from archaeologist.excavation.walk import BlockResult, thread_count
from archaeologist.findings.wording import listed
from archaeologist.statistics import float8
from archaeologist.statistics.power_law import FEWEST, PowerLaw, fitted
from archaeologist.statistics.spectrum import eigenvalues, gram, spectrum
from contracts.artifacts import LayerDriftStats, LayerWeightStats, Spectrum
from contracts.messages import Analysis

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

MAX_SIDE: Final = 8192
"""Of the smaller side. Its Gram matrix is held twice, 1 GB in all, and its eigenvalues take about half a minute."""
_MEMORY: Final = 1 << 30
"""Bytes of Gram matrices that are held at once: with larger matrices fewer threads work."""
SLICE_VALUES: Final = 1 << 22
"""Values decoded at a time: 32 MB as float64."""
_AXES: Final = 2


class UnfitMatrixError(Exception):
    """A matrix is left out of an analysis; the message says why."""


class Algebra(Protocol):
    """Where the arithmetic is done, other than here."""

    device: str
    """As torch names it."""

    def squares(self, slices: Iterator[Floats], *, side: int) -> Floats | None:
        """Squared singular values of the matrix of these rows, as ``spectrum.settled`` has them; None: not finite.

        Args:
            slices: (any number, side), float64.
            side: Columns of each.

        Raises:
            numpy.linalg.LinAlgError: The iteration does not converge.
            MemoryError: Not enough for this matrix.
            RuntimeError: It cannot be used any more.
        """

    def close(self) -> None:
        """Gives back what it holds."""


class _Source(Struct, frozen=True, kw_only=True):
    """Where a matrix's values come from."""

    entry: TensorEntry
    reader: Reader
    at_hand: Bytes | None = None
    """All its bytes, where the walk kept them."""

    def values(self, rows: slice, columns: slice) -> Floats:
        """A window; either all columns or all rows."""
        height, width = self.entry.shape
        if self.at_hand is not None:
            stored = self.at_hand.reshape(height, width, -1)[rows, columns]
            return decoded(np.ascontiguousarray(stored), self.entry.dtype)
        size = WIDTHS[self.entry.dtype]
        first, last = rows.start or 0, height if rows.stop is None else rows.stop
        left, right = columns.start or 0, width if columns.stop is None else columns.stop
        found = np.empty((last - first, right - left, size), np.uint8)
        # Whole rows lie one after the other.
        count = 1 if right - left == width else last - first
        for part, row in zip(np.split(found, count), range(first, last), strict=False):
            self.reader.read(self.entry, (row * width + left) * size, part.reshape(-1).data)
        return decoded(found, self.entry.dtype)


class Matrices:
    """Looks at each matrix while its bytes are at hand."""

    def __init__(
        self,
        analyses: Collection[Analysis],
        plan: Plan,
        *,
        target: Reader,
        reference: Reader | None = None,
        threads: int = 0,
    ) -> None:
        """Reads nothing yet.

        Args:
            analyses: Those that were asked for; others than ``spectra`` and ``htsr`` are somebody else's.
            plan: The walk's.
            target: The target's open files.
            reference: The reference's, where there is one.
            threads: 0: one for each core. Each matrix is one thread's, so that the number changes no bit.
        """
        self.not_computed: dict[str, str] = {}
        self._plan = plan
        self._target, self._reference = target, reference
        self._threads = thread_count(threads)
        self._measures: dict[str, Callable[[Pair, BlockResult], Spectrum | PowerLaw]] = {}
        if "htsr" in analyses:
            self._measures["htsr"] = self._power_law
        if "spectra" in analyses and reference is not None:
            self._measures["spectra"] = self._spectrum
        elif "spectra" in analyses:
            self.not_computed["spectra"] = "there is no reference to take a change from"
        self.warnings: tuple[str, ...] = ()
        self.device = "cpu"
        """Where matrices were looked at: a GPU's name as soon as one was looked at there."""
        self._gpu: Algebra | None = None
        self._found: dict[tuple[str, str, str], Spectrum | PowerLaw] = {}
        self._left_out: dict[str, dict[str, list[str]]] = {}

    def needed(self) -> frozenset[str]:
        """The blocks whose bytes the walk must keep."""
        if not self._measures:
            return frozenset()
        return frozenset(
            block.name
            for block in self._plan.blocks
            if block.layer_type == "transformer_block" and any(len(pair.target.shape) == _AXES for pair in block.pairs)
        )

    def largest_side(self) -> int:
        """The largest smaller side of the matrices that are looked at; 0: none is."""
        return max(_sides(self._plan.pairs()), default=0) if self._measures else 0

    def warn(self, *what: str) -> None:
        """Adds warnings about what was asked for, each once."""
        told = (f"{listed(list(self._measures))}: {one}" for one in what)
        self.warnings = tuple(dict.fromkeys((*self.warnings, *told)))

    def give_up(self, reason: str) -> None:
        """Leaves out whatever was asked for."""
        self.not_computed |= dict.fromkeys(self._measures, reason)
        self._measures.clear()

    def through(self, blocks: Iterator[BlockResult], *, gpu: Algebra | None = None) -> Iterator[BlockResult]:
        """The walk's blocks, each after its matrices were looked at.

        Args:
            blocks: As they come.
            gpu: Where the arithmetic is done as long as it can be done there, one matrix at a time; None: the CPU.
        """
        self._gpu = gpu
        for block in blocks:
            if self._measures:
                self._look(block)
            yield block
        for analysis, reasons in self._left_out.items():
            self.not_computed[analysis] = "; ".join(f"{why}: {listed(names)}" for why, names in reasons.items())

    def in_drift(self, drift: Mapping[str, LayerDriftStats]) -> dict[str, LayerDriftStats]:
        """The drift with spectra in their places."""
        return {
            name: replace(
                block,
                tensors={
                    within: replace(tensor, spectrum=found)
                    if isinstance(found := self._found.get(("spectra", name, within)), Spectrum)
                    else tensor
                    for within, tensor in block.tensors.items()
                },
            )
            for name, block in drift.items()
        }

    def in_weights(self, weights: Mapping[str, LayerWeightStats]) -> dict[str, LayerWeightStats]:
        """The weights with power laws in their places."""
        return {
            name: replace(
                block,
                tensors={
                    within: replace(tensor, htsr_alpha=found.alpha, htsr_tail=found.tail, htsr_distance=found.distance)
                    if isinstance(found := self._found.get(("htsr", name, within)), PowerLaw)
                    else tensor
                    for within, tensor in block.tensors.items()
                },
            )
            for name, block in weights.items()
        }

    def _look(self, block: BlockResult) -> None:
        pairs = [pair for pair in block.block.pairs if len(pair.target.shape) >= _AXES and pair.count]
        tasks = [(analysis, pair) for analysis in self._measures for pair in pairs]
        with ThreadPoolExecutor(self._lanes(pairs)) as pool:
            found = list(pool.map(lambda task: self._measured(task[0], task[1], block), tasks))
        for (analysis, pair), one in zip(tasks, found, strict=True):
            if isinstance(one, str):
                self._left_out.setdefault(analysis, {}).setdefault(one, []).append(pair.name)
            else:
                self._found[analysis, block.block.name, pair.within] = one

    def _lanes(self, pairs: Sequence[Pair]) -> int:
        if self._gpu is not None:
            return 1
        return max(1, min(self._threads, _MEMORY // (16 * max(_sides(pairs), default=1) ** 2)))

    def _measured(self, analysis: str, pair: Pair, block: BlockResult) -> Spectrum | PowerLaw | str:
        """What was found of a matrix, or why nothing."""
        try:
            return self._measures[analysis](pair, block)
        except UnfitMatrixError as reason:
            return str(reason)
        except (ArchaeologistError, MemoryError, np.linalg.LinAlgError) as error:
            return f"{type(error).__name__}: {error}"

    def _spectrum(self, pair: Pair, block: BlockResult) -> Spectrum:
        if pair.reference is None or self._reference is None:
            msg = "no tensor of that name and shape in the reference"
            raise UnfitMatrixError(msg)
        theirs = _Source(entry=pair.reference, reader=self._reference, at_hand=block.reference.get(pair.reference.name))
        return spectrum(self._squares(self._target_source(pair, block), theirs))

    def _power_law(self, pair: Pair, block: BlockResult) -> PowerLaw:
        found = fitted(self._squares(self._target_source(pair, block)))
        if found is None:
            msg = f"fewer than {FEWEST} eigenvalues above 0, or all alike"
            raise UnfitMatrixError(msg)
        return found

    def _squares(self, source: _Source, less: _Source | None = None) -> Floats:
        """Squared singular values of a matrix, or of its difference from another one."""
        shape = source.entry.shape
        if len(shape) != _AXES:
            msg = f"{len(shape)} axes, a matrix has 2"
            raise UnfitMatrixError(msg)
        side = min(shape)
        if side > MAX_SIDE:
            msg = f"smaller side above {MAX_SIDE}"
            raise UnfitMatrixError(msg)
        # Infinity less infinity is NaN, and told below.
        with np.errstate(invalid="ignore", over="ignore"):
            found = self._computed(lambda: _slices(source, less), side=side)
        if found is None:
            msg = "NaN or infinite values"
            raise UnfitMatrixError(msg)
        return found

    def _computed(self, slices: Callable[[], Iterator[Floats]], *, side: int) -> Floats | None:
        """On the GPU where there is one; what fails there is done again here."""
        if (gpu := self._gpu) is not None:
            try:
                found = gpu.squares(slices(), side=side)
            except MemoryError:
                traceback.print_exc()
                self.warn(f"matrices that the memory of {gpu.device} did not suffice for are from the CPU")
            except RuntimeError as error:
                traceback.print_exc()
                reason = str(error).split("\n", maxsplit=1)[0]
                self.warn(f"on the CPU after the GPU failed: {reason}")
                self._gpu = None
            else:
                self.device = gpu.device
                return found
            # Only now: until here the error held what was on the GPU.
            gpu.close()
        products = gram(slices(), side=side)
        return eigenvalues(products) if np.isfinite(products).all() else None

    def _target_source(self, pair: Pair, block: BlockResult) -> _Source:
        return _Source(entry=pair.target, reader=self._target, at_hand=block.target.get(pair.target.name))


def _sides(pairs: Iterable[Pair]) -> list[int]:
    """Smaller sides of the matrices that are not too large."""
    shapes = (pair.target.shape for pair in pairs)
    return [min(shape) for shape in shapes if len(shape) == _AXES and min(shape) <= MAX_SIDE]


def _slices(source: _Source, less: _Source | None) -> Iterator[Floats]:
    """Slices of the larger side, each (any number, smaller side)."""
    height, width = source.entry.shape
    is_tall = height >= width
    step = max(1, SLICE_VALUES // min(height, width))
    for start in range(0, max(height, width), step):
        part = slice(start, min(start + step, max(height, width)))
        window = (part, slice(None)) if is_tall else (slice(None), part)
        values = source.values(*window)
        if less is not None:
            values -= less.values(*window)
        yield values if is_tall else values.T


def decoded(stored: Bytes, dtype: str) -> Floats:
    """(rows, columns, bytes of a value) → float64, exact."""
    if dtype == "BF16":
        bits = stored.view(np.uint16)[..., 0].astype(np.uint32) << np.uint32(16)
        return bits.view(np.float32).astype(np.float64)
    if dtype in float8.FORMATS:
        return float8.values(dtype).astype(np.float64)[stored[..., 0]]
    return stored.view(np.float16 if dtype == "F16" else np.float32)[..., 0].astype(np.float64)
