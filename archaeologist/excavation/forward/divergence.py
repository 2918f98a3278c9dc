"""Predictions and functional drift: from the logits of target and reference to the artifact's fields.

Called with slices of positions as the head is applied to them. Probabilities are float64, on the logits' device. Models
of two vocabularies cannot be compared, and that is an error here: whether to go on without the reference is the
caller's decision. Definitions are in docs/statistics.md.

Shapes: N positions, V tokens of the vocabulary.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Final

import torch
from msgspec import Struct

from archaeologist.excavation.forward.lanes import Lanes
from contracts.artifacts import OutputDrift, OutputStats

_PIECE_VALUES: Final = 1 << 17
"""Logits that a thread works on at once, one position's at least: 1 MB as float64, so that passes over them stay in a
CPU's caches."""
_PIECE_VALUES_OFF_CPU: Final = 1 << 22
"""The same on a GPU: enough to keep it busy, and about 170 MB in all."""

_IMPOSSIBLE: Final = -1e300
"""Stands for a logit of -infinity, whose probability of 0 times infinity would be NaN."""
_INFINITE: Final = 1e40
"""More than float32 logits can differ by: what is larger came from ``_IMPOSSIBLE``."""
_TINY: Final = 1e-300
"""Stands for a probability of 0 under a logarithm; times the probability it is 0."""


class PredictionResult(Struct, frozen=True, kw_only=True):
    """The predictions, and how far they are from the reference's; over all positions and by skill."""

    output: OutputStats
    output_by_skill: dict[str, OutputStats]
    reference_output: OutputStats | None = None
    drift: OutputDrift | None = None
    drift_by_skill: dict[str, OutputDrift] = {}


class Predictions:
    """Collects a few numbers a position while its logits are in memory.

    Float64 throughout: with float32 probabilities a position's entropy, loss and divergences were off by up to 1e-6
    (151,936 tokens), which is the divergence of a short stretch of training; with float64 by 1e-14, for twice the time.
    """

    def __init__(self, *, has_reference: bool, lanes: Lanes) -> None:
        """Holds nothing yet.

        Args:
            has_reference: Whether every slice comes with the reference's logits.
            lanes: Where the positions of a slice are measured.
        """
        self._has_reference = has_reference
        self._positions: list[_Position] = []
        self._lanes = lanes
        self._gauges: list[_Gauge] = []

    def add(
        self,
        logits: torch.Tensor,
        reference: torch.Tensor | None,
        next_ids: torch.Tensor,
        skills: Sequence[str | None],
    ) -> None:
        """A slice of positions, of any length.

        Args:
            logits: The target's, (N, V), of any float dtype.
            reference: The reference's, (N, V); None exactly where there is none.
            next_ids: The tokens that really follow, (N,).
            skills: Of each position.

        Raises:
            ValueError: The reference has another vocabulary, or is missing or unexpected; lengths differ.
        """
        self._check(logits, reference, next_ids, skills)
        if not self._gauges or not self._gauges[0].is_for(logits):
            self._gauges = [_Gauge(logits) for _ in range(self._lanes.count if logits.device.type == "cpu" else 1)]
        rows = self._measure(logits, reference, next_ids.to(logits.device))
        self._positions += [_Position(skill, *row) for skill, row in zip(skills, rows, strict=True)]

    def result(self) -> PredictionResult:
        """Means over what was added. The sums are exact, so that their order does not matter."""
        everything = self._positions
        by_skill: dict[str, list[_Position]] = {}
        for position in everything:
            if position.skill is not None:
                by_skill.setdefault(position.skill, []).append(position)
        groups = sorted(by_skill.items())
        return PredictionResult(
            output=_output(everything),
            output_by_skill={skill: _output(found) for skill, found in groups},
            reference_output=_reference_output(everything) if self._has_reference else None,
            drift=_drift(everything) if self._has_reference else None,
            drift_by_skill={skill: _drift(found) for skill, found in groups} if self._has_reference else {},
        )

    def _measure(
        self, logits: torch.Tensor, reference: torch.Tensor | None, ids: torch.Tensor
    ) -> Iterator[list[float]]:
        """The numbers of ``_Position``, for each position; every lane takes its share of them."""
        count = len(self._gauges)
        mine, follows = logits.chunk(count), ids.chunk(count)
        theirs = [None] * len(mine) if reference is None else reference.chunk(count)
        shares = zip(self._gauges, mine, theirs, follows, strict=False)
        return chain.from_iterable(self._lanes.each(lambda share: share[0].measure(*share[1:]), shares))

    def _check(
        self,
        logits: torch.Tensor,
        reference: torch.Tensor | None,
        next_ids: torch.Tensor,
        skills: Sequence[str | None],
    ) -> None:
        if (reference is not None) != self._has_reference:
            msg = f"logits of a reference: {reference is not None}, expected: {self._has_reference}; give all or none"
            raise ValueError(msg)
        if reference is not None and reference.shape[1] != logits.shape[1]:
            msg = (
                f"vocabularies of {logits.shape[1]} and {reference.shape[1]} tokens cannot be compared;"
                " run the target without this reference"
            )
            raise ValueError(msg)
        lengths = {len(logits), len(next_ids), len(skills), len(logits if reference is None else reference)}
        if len(lengths) > 1:
            msg = f"logits, next tokens and skills of {sorted(lengths)} positions; give one of each for every position"
            raise ValueError(msg)


class _Position(Struct, frozen=True):
    """What is kept of a position; NaN where logits are not finite. In the order of ``_Gauge``'s columns."""

    skill: str | None
    entropy: float
    loss: float
    reference_entropy: float = math.nan
    reference_loss: float = math.nan
    kl: float = math.nan
    js: float = math.nan
    agrees: float = math.nan


class _Probabilities(Struct, frozen=True, kw_only=True):
    """One model's predictions at N positions, float64. (N, V) lie in a workspace: they last until its next use."""

    shifted: torch.Tensor
    """Logits less the largest, (N, V)."""
    share: torch.Tensor
    """Probabilities, (N, V)."""
    log_total: torch.Tensor
    """The log-probabilities are ``shifted`` less this, (N,)."""
    entropy: torch.Tensor
    """(N,)"""

    def loss(self, ids: torch.Tensor) -> torch.Tensor:
        """Negative log-likelihood of these tokens, (N,)."""
        return _unbounded(self.log_total - self.shifted.gather(1, ids[:, None])[:, 0])


class _Workspace:
    """Memory for one model's probabilities. Fresh memory for every piece would take longer than the sums."""

    def __init__(self, shape: tuple[int, int], device: torch.device) -> None:
        """For this many positions of a vocabulary."""
        self._shifted = torch.empty(shape, dtype=torch.float64, device=device)
        self._share = torch.empty_like(self._shifted)

    def probabilities(self, logits: torch.Tensor) -> _Probabilities:
        """Softmax; NaN for a position with a NaN or +infinity, and for one of -infinities only."""
        shifted, share = self._shifted[: len(logits)], self._share[: len(logits)]
        shifted.copy_(logits)
        shifted -= shifted.amax(dim=1, keepdim=True)
        shifted.clamp_(min=_IMPOSSIBLE)
        torch.exp(shifted, out=share)
        total = share.sum(dim=1)
        share /= total[:, None]
        log_total = total.log()
        entropy = log_total - torch.linalg.vecdot(share, shifted)
        return _Probabilities(shifted=shifted, share=share, log_total=log_total, entropy=entropy.clamp_(min=0))


class _Gauge:
    """What one lane needs: a workspace a model, for a piece of the positions at a time."""

    def __init__(self, logits: torch.Tensor) -> None:
        """For logits of this vocabulary, on this device."""
        self._device, self._vocabulary = logits.device, logits.shape[1]
        values = _PIECE_VALUES if self._device.type == "cpu" else _PIECE_VALUES_OFF_CPU
        self._rows = max(1, values // self._vocabulary)
        shape = (self._rows, self._vocabulary)
        self._mine, self._theirs = _Workspace(shape, self._device), _Workspace(shape, self._device)

    def is_for(self, logits: torch.Tensor) -> bool:
        """Whether it fits logits of this vocabulary, on this device."""
        return self._device == logits.device and self._vocabulary == logits.shape[1]

    def measure(self, logits: torch.Tensor, reference: torch.Tensor | None, ids: torch.Tensor) -> list[list[float]]:
        """The numbers of ``_Position``, for each position."""
        found: list[list[float]] = []
        with torch.inference_mode():
            for start in range(0, len(logits), self._rows):
                piece = slice(start, start + self._rows)
                theirs = None if reference is None else reference[piece]
                found += self._columns(logits[piece], theirs, ids[piece]).tolist()
        return found

    def _columns(self, logits: torch.Tensor, reference: torch.Tensor | None, ids: torch.Tensor) -> torch.Tensor:
        mine = self._mine.probabilities(logits)
        columns = [mine.entropy, mine.loss(ids)]
        if reference is not None:
            theirs = self._theirs.probabilities(reference)
            # Of several largest logits, as 16-bit heads give, both sides take the first. Before the divergences, which
            # overwrite the workspaces.
            agrees = mine.shifted.argmax(dim=1) == theirs.shifted.argmax(dim=1)
            columns += [theirs.entropy, theirs.loss(ids)]
            columns += [*_divergences(mine, theirs), agrees.double()]
        return torch.stack(columns, dim=1)


def _divergences(mine: _Probabilities, theirs: _Probabilities) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(theirs ‖ mine) and Jensen-Shannon at each position; overwrites both sides.

    From differences of logits, so that equal logits have a KL of exactly 0.
    """
    apart = theirs.shifted.sub_(mine.shifted)
    kl = torch.linalg.vecdot(theirs.share, apart) + mine.log_total - theirs.log_total
    middle = mine.share.add_(theirs.share).mul_(0.5)
    surprise = torch.clamp(middle, min=_TINY, out=mine.shifted).log_()
    js = -torch.linalg.vecdot(middle, surprise) - (mine.entropy + theirs.entropy) / 2
    return _unbounded(kl.clamp_(min=0)), js.clamp_(min=0, max=math.log(2))


def _unbounded(values: torch.Tensor) -> torch.Tensor:
    return values.masked_fill(values > _INFINITE, math.inf)


def _output(positions: Sequence[_Position]) -> OutputStats:
    return _stats([(position.entropy, position.loss) for position in positions])


def _reference_output(positions: Sequence[_Position]) -> OutputStats:
    return _stats([(position.reference_entropy, position.reference_loss) for position in positions])


def _stats(numbers: Sequence[tuple[float, float]]) -> OutputStats:
    """Means of entropy and loss."""
    known = [(entropy, loss) for entropy, loss in numbers if not math.isnan(entropy)]
    return OutputStats(
        positions=len(known),
        entropy=_mean(entropy for entropy, _ in known),
        loss=_mean(loss for _, loss in known),
        nonfinite_positions=len(numbers) - len(known),
    )


def _drift(positions: Iterable[_Position]) -> OutputDrift:
    known = [position for position in positions if not math.isnan(position.kl)]
    return OutputDrift(
        positions=len(known),
        kl=_mean(position.kl for position in known),
        js=_mean(position.js for position in known),
        top1_agreement=_mean(position.agrees for position in known),
    )


def _mean(values: Iterable[float]) -> float | None:
    """None where there are none, or the mean is infinite: a token that follows was impossible."""
    found = list(values)
    mean = math.fsum(found) / len(found) if found else math.inf
    return mean if math.isfinite(mean) else None
