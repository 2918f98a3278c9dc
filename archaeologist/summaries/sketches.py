"""A campaign's sketches: which can be used, how far blocks moved between two of them, and in which direction.

Each file is read when somebody asks for a number that is not known yet; at most ``HELD`` are in memory.
"""

import contextlib
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.artifacts.store import read_layer_stats
from archaeologist.artifacts.thinning import thinned
from archaeologist.checkpoints.names import place
from archaeologist.errors import ArchaeologistError, ArtifactInvalid, ArtifactMissing, SketchThinned, SummariesLate
from archaeologist.files import opened, read_at, read_bounded
from archaeologist.statistics.sketch import (
    SEED,
    VERSION,
    WIDTH,
    Floats,
    Sketch,
    decode_header,
    decode_sketch,
    differences,
    start_bytes,
)
from archaeologist.summaries.extract import Extract
from archaeologist.summaries.store import Measured, Store, measured
from contracts.artifacts import DriftEstimate, EstimatedDrift, LeftOut

HELD: Final = 6
"""Sketches in memory at once: the three of a turn, the ends of the window, and one to come."""
MAX_BYTES: Final = 1_000_000_000
FIRST_BYTES: Final = 8


class Sketches:
    """The sketches of the checkpoints that have an extract.

    Args:
        folder: The campaign.
        extracts: By step.
        signatures: Of the files in its folder of sketches, by name.
        store: What was measured before.
        until: When to stop, by ``time.monotonic``; None: never.
    """

    def __init__(
        self,
        folder: CampaignFolder,
        extracts: Mapping[int, Extract],
        *,
        signatures: Mapping[str, str],
        store: Store,
        until: float | None,
    ) -> None:
        self._folder = folder
        self._extracts = extracts
        self._signatures = signatures
        self._store = store
        self._until = until
        self._read = lru_cache(maxsize=HELD)(self._read_sketch)
        self._thinned = frozenset(thinned(folder).steps)
        self._missed: set[int] = set()
        self.checked: dict[str, LeftOut | None] = {}
        self.distances: dict[str, Measured] = {}
        self.turns: dict[str, Measured] = {}

    def is_usable(self, step: int) -> bool:
        """Whether the checkpoint's sketch is there, whole, and of the bytes that its artifact is of."""
        identity = self._identity(step)
        if identity is None:
            self._missed.update({step} & self._thinned)
            return False
        if identity not in self.checked:
            known = self._store.sketches
            self.checked[identity] = known[identity] if identity in known else self._problem(step)
        return self.checked[identity] is None

    def distance(self, base: int, target: int) -> dict[str, float] | None:
        """L2 of each block's change between two checkpoints; None where a sketch cannot be used.

        Raises:
            SummariesLate: The time is up.
        """
        if not (self.is_usable(base) and self.is_usable(target)):
            return None
        key = f"{self._identity(base)} {self._identity(target)}"
        found = self.distances.get(key) or self._store.distances.get(key)
        self.distances[key] = found or measured(block_distances(self._read(target), self._read(base)))
        return self.distances[key].by_block()

    def turn(self, first: int, second: int, third: int) -> dict[str, float] | None:
        """Cosine of each block's change from second to third with that from first to second.

        Raises:
            SummariesLate: The time is up.
        """
        steps = (first, second, third)
        if not all(self.is_usable(step) for step in steps):
            return None
        key = " ".join(str(self._identity(step)) for step in steps)
        found = self.turns.get(key) or self._store.turns.get(key)
        self.turns[key] = found or measured(block_turns(*(self._read(step) for step in steps)))
        return self.turns[key].by_block()

    @property
    def problems(self) -> tuple[LeftOut, ...]:
        """What is wrong with those that were asked for and cannot be used."""
        found = sorted((problem for problem in self.checked.values() if problem), key=lambda problem: problem.file)
        return (*found, *([self._given_up()] if self._missed else []))

    def _given_up(self) -> LeftOut:
        """One entry for all sketches that were asked for and are gone for want of room."""
        steps = sorted(self._missed)
        which = f"of step {steps[0]}" if len(steps) == 1 else f"of {len(steps)} steps from {steps[0]} to {steps[-1]}"
        reason = f"sketches {which} were given up to keep within sketches.max_gb; estimates from them are missing"
        file = self._folder.sketch(steps[0]).parent.relative_to(self._folder.analysis)
        return LeftOut(file=str(file), code=SketchThinned.code, reason=reason)

    def _identity(self, step: int) -> str | None:
        sign = self._signatures.get(self._folder.sketch(step).name)
        return f"{sign}:{self._extracts[step].fingerprint}" if sign else None

    def _problem(self, step: int) -> LeftOut | None:
        path = self._folder.sketch(step)
        try:
            check(path, fingerprint=self._extracts[step].fingerprint)
        except ArchaeologistError as error:
            file = path.relative_to(self._folder.analysis)
            return LeftOut(file=str(file), code=error.code, reason=str(error))
        return None

    def _read_sketch(self, step: int) -> Sketch:
        if self._until is not None and time.monotonic() > self._until:
            msg = "the sketches could not all be read in time; the next update goes on from here"
            raise SummariesLate(msg)
        return read_sketch(self._folder.sketch(step))


def check(path: Path, *, fingerprint: str) -> None:
    """Looks at the start of a sketch's file.

    Raises:
        ArtifactMissing: There is none.
        ArtifactInvalid: It is no whole sketch, of another version, or of other bytes than ``fingerprint``.
    """
    with _reading(path):
        resolved = path.resolve(strict=True)
        with opened(resolved) as file:
            start = read_at(file, start_bytes(read_at(file, FIRST_BYTES, 0)), 0)
        header = decode_header(start, file_bytes=resolved.stat().st_size)
    if (header.version, header.seed, header.width) != (VERSION, SEED, WIDTH):
        msg = f"sketch {path.name!r} was made by another version; analyse its checkpoint again with force"
        raise ArtifactInvalid(msg)
    if header.fingerprint != fingerprint:
        msg = f"sketch {path.name!r} is of other bytes than its artifact; analyse its checkpoint again with force"
        raise ArtifactInvalid(msg)


def read_sketch(path: Path) -> Sketch:
    """The sketch in a file.

    Raises:
        ArtifactMissing: There is none.
        ArtifactInvalid: It is none.
    """
    with _reading(path):
        return decode_sketch(read_bounded(path.resolve(strict=True), MAX_BYTES))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Tells which sketch could not be read, and why."""
    try:
        yield
    except FileNotFoundError as error:
        msg = f"sketch {str(path)!r} is not there; analyse its checkpoint again with force"
        raise ArtifactMissing(msg) from error
    except (OSError, RuntimeError) as error:
        msg = f"sketch {str(path)!r} cannot be read: {error}; check the file"
        raise ArtifactInvalid(msg) from error


def block_distances(target: Sketch, base: Sketch) -> dict[str, float]:
    """L2 of each block's change, an estimate."""
    squares: dict[str, list[float]] = defaultdict(list)
    for name, change in differences(target, base).items():
        squares[_block(name)].append(_dot(change, change))
    found = {name: math.sqrt(sum(parts)) for name, parts in squares.items()}
    return {name: length for name, length in found.items() if math.isfinite(length)}


def block_turns(first: Sketch, second: Sketch, third: Sketch) -> dict[str, float]:
    """Cosine of each block's two changes, an estimate; a block that rests in one of them has none."""
    earlier, later = differences(second, first), differences(third, second)
    sums: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for name in earlier.keys() & later.keys():
        one, other = earlier[name], later[name]
        if one.shape == other.shape:
            sums[_block(name)].append((_dot(one, other), _dot(one, one), _dot(other, other)))
    found = {}
    for block in sorted(sums):
        dot, square, other_square = (sum(parts) for parts in zip(*sums[block], strict=True))
        if square > 0 and other_square > 0 and math.isfinite(dot):
            found[block] = max(-1.0, min(1.0, dot / math.sqrt(square) / math.sqrt(other_square)))
    return found


def _dot(one: Floats, other: Floats) -> float:
    # A damaged sketch may hold anything; what overflows is left out by the callers.
    with np.errstate(all="ignore"):
        return float(one @ other)


_block: Callable[[str], str] = lru_cache(maxsize=65536)(lambda name: place(name).block)


def estimate(target: Sketch, base: Sketch, *, norms: Mapping[str, float | None]) -> dict[str, EstimatedDrift]:
    """How far each block moved, with the spread of the estimate.

    The squared norm of a tensor's sketch has a relative standard deviation of about √(2 / WIDTH), independent of the
    other tensors'; tensors of fewer than WIDTH values are exact. So that of a block's norm e = √Σeᵢ² is
    √(2 / WIDTH) · √Σeᵢ⁴ / (2 Σeᵢ²), the upper sum over the tensors that are not exact.

    Args:
        target: Sketch of the later checkpoint.
        base: Of the earlier one.
        norms: The base's norm by block.
    """
    parts: dict[str, list[tuple[float, bool]]] = defaultdict(list)
    for name, change in differences(target, base).items():
        parts[_block(name)].append((_dot(change, change), change.size < WIDTH))
    return {block: estimated(squares, norm=norms.get(block)) for block, squares in parts.items()}


def estimated(squares: list[tuple[float, bool]], *, norm: float | None) -> EstimatedDrift:
    """The estimate from each tensor's squared norm and whether that is exact."""
    total = sum(square for square, _ in squares)
    uncertain = sum(square * square for square, is_exact in squares if not is_exact)
    l2 = math.sqrt(total)
    return EstimatedDrift(
        l2=l2,
        relative_l2=l2 / norm if norm else None,
        spread=math.sqrt(2 / WIDTH) * math.sqrt(uncertain) / (2 * total) if total > 0 else 0.0,
        tensors=len(squares),
    )


def drift_estimate(folder: CampaignFolder, base_step: int, target_step: int) -> DriftEstimate:
    """How far two analysed checkpoints of a campaign are apart, although neither may exist any more.

    Raises:
        ArtifactMissing: One of them has no artifact or no sketch.
        ArtifactInvalid: One of these cannot be read, or they do not belong together.
    """
    sketches, norms = [], []
    for step in (base_step, target_step):
        artifact = read_layer_stats(folder.layer_stats(step))
        check(folder.sketch(step), fingerprint=artifact.fingerprint)
        sketches.append(read_sketch(folder.sketch(step)))
        norms.append((artifact.global_weight_stats.l2, {name: of.l2 for name, of in artifact.weight_stats.items()}))
    base, target = sketches
    compared = differences(target, base)
    squares = [(_dot(change, change), change.size < WIDTH) for change in compared.values()]
    whole, by_block = norms[0]
    return DriftEstimate(
        campaign_id=folder.campaign_id,
        hero_id=folder.hero_id,
        base_step=base_step,
        target_step=target_step,
        whole=estimated(squares, norm=whole),
        layers=estimate(target, base, norms=by_block),
        not_compared=tuple(sorted((base.tensors.keys() | target.tensors.keys()) - compared.keys())),
    )
