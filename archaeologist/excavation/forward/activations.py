"""From the outputs of blocks to the artifact's activation statistics, and to similarity with the reference's."""

from collections import deque
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import torch
from msgspec import Struct

from archaeologist.excavation.forward.lanes import Lanes
from archaeologist.excavation.forward.streaming import Hidden, Outputs
from archaeologist.excavation.forward.tokens import Tokens
from archaeologist.statistics import activations, representation
from contracts.artifacts import ActivationDistribution, LayerActivationStats, Similarity

if TYPE_CHECKING:
    from concurrent.futures import Future

Floats = npt.NDArray[np.float32]

SAMPLE: Final = 512
"""Positions for RankMe and CKA, whose cost grows with the square or cube of their number."""
PENDING: Final = 2
"""Blocks whose hidden states wait for their statistics, at most."""


class _Block(Struct, frozen=True):
    """What a block's statistics are made from, on the CPU."""

    name: str
    rows: torch.Tensor
    """The real positions of all batches in a row, (positions, channels)."""
    reference: torch.Tensor | None
    submodules: dict[str, torch.Tensor]
    neurons: Floats | None
    """Largest magnitude of each MLP neuron, (neurons,)."""


class ActivationStatistics:
    """Collects each block's statistics: they are computed in a lane while the next block runs."""

    def __init__(self, tokens: Tokens, *, lanes: Lanes) -> None:
        """Holds nothing yet."""
        self.stats: dict[str, LayerActivationStats] = {}
        self.similarity: dict[str, Similarity] = {}
        self._lanes = lanes
        self._pending: deque[Future[tuple[LayerActivationStats, Similarity | None]]] = deque()
        self._lengths = [[len(tokens.ids[number]) for number in batch] for batch in tokens.batches]
        order = [number for batch in tokens.batches for number in batch]
        starts = [position == 0 for number in order for position in range(len(tokens.ids[number]))]
        skills = np.array([tokens.skills[number] or "" for number in order for _ in tokens.ids[number]], dtype=object)
        self._first = torch.tensor(starts)
        self._later = ~self._first
        self._of_skill = {
            skill: torch.from_numpy(skills == skill) & self._later for skill in sorted(set(skills)) if skill
        }
        # Evenly over all: the batches are in order of length, so the first ones are short probes.
        count = int(self._later.sum())
        self._sample = np.linspace(0, count - 1, min(count, SAMPLE)).round().astype(np.int64)
        self._sampled_of_skill = {
            skill: mask[self._later].numpy()[self._sample] for skill, mask in self._of_skill.items()
        }

    def add(self, outputs: Outputs) -> None:
        """A block's; ignored where they are no hidden states of the probes."""
        rows = self.positions(outputs.target)
        if rows is None:
            return
        parts = {part: self.positions(hidden) for part, hidden in outputs.submodules.items()}
        block = _Block(
            name=outputs.name,
            rows=rows,
            reference=None if outputs.reference is None else self.positions(outputs.reference),
            submodules={part: hidden for part, hidden in parts.items() if hidden is not None},
            neurons=None if outputs.neurons is None else outputs.neurons.float().cpu().numpy(),
        )
        while len(self._pending) >= PENDING:
            self._take()
        self._pending.append(self._lanes.later(self._measured, block))

    def finish(self) -> None:
        """Waits for the last blocks.

        Raises:
            Exception: The statistics of one failed.
        """
        while self._pending:
            self._take()

    def positions(self, hidden: Hidden) -> torch.Tensor | None:
        """The real positions of all batches in a row, a copy on the CPU; None where the shapes are others."""
        rows = []
        for batch, numbers in zip(hidden, self._lengths, strict=True):
            if batch.dim() != 3 or batch.shape[0] != len(numbers) or batch.shape[1] < max(numbers):  # noqa: PLR2004
                return None
            rows += [batch[row, :length] for row, length in enumerate(numbers)]
        return torch.cat(rows).cpu()

    def _take(self) -> None:
        stats, similarity = self._pending.popleft().result()
        self.stats[stats.name] = stats
        if similarity is not None:
            self.similarity[stats.name] = similarity

    # In a lane.

    def _measured(self, block: _Block) -> tuple[LayerActivationStats, Similarity | None]:
        rows = block.rows
        massive_count, massive_channels = activations.massive(rows.float().numpy())
        everywhere = _distribution(rows[self._later])
        hidden = rows[self._later].float().numpy()
        sampled = hidden[self._sample]
        stats = LayerActivationStats(
            name=block.name,
            mean=everywhere.mean,
            std=everywhere.std,
            max=everywhere.max,
            min=everywhere.min,
            percentile_1=everywhere.percentile_1,
            percentile_99=everywhere.percentile_99,
            zero_fraction=everywhere.zero_fraction,
            distribution=everywhere,
            first_token=_distribution(rows[self._first]),
            by_skill={skill: _distribution(rows[mask]) for skill, mask in self._of_skill.items()},
            submodules={part: _distribution(found[self._later]) for part, found in block.submodules.items()},
            positions=len(hidden),
            token_norm=activations.token_norm(hidden),
            massive_count=massive_count,
            massive_channels=massive_channels,
            outlier_channels=len(activations.outlier_channels(hidden)),
            neurons=None if block.neurons is None else len(block.neurons),
            dead_neurons=None if block.neurons is None else activations.dead_neurons(block.neurons),
            rankme=representation.rankme(sampled),
            rankme_tokens=len(sampled),
            anisotropy=representation.anisotropy(hidden),
            feature_variance=representation.feature_variance(hidden),
        )
        if block.reference is None:
            return stats, None
        theirs = block.reference[self._later].float().numpy()[self._sample]
        return stats, representation.similarity(sampled, theirs, skills=self._sampled_of_skill)


def _distribution(rows: torch.Tensor) -> ActivationDistribution:
    rows = rows.contiguous()
    if rows.dtype in (torch.bfloat16, torch.float16):
        kind = "BF16" if rows.dtype == torch.bfloat16 else "F16"
        return activations.distribution_of_bits(rows.view(torch.uint16).numpy(), kind)
    return activations.distribution(rows.float().numpy())
