"""From the outputs of blocks to the artifact's activation statistics, and to similarity with the reference's."""

from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from archaeologist.excavation.forward.streaming import Hidden, Outputs
from archaeologist.excavation.forward.tokens import Tokens
from archaeologist.statistics import activations, representation
from contracts.artifacts import ActivationDistribution, LayerActivationStats, Similarity

Floats = npt.NDArray[np.float32]

SIMILARITY_POSITIONS: Final = 1024
"""CKA is of the first so many: the estimate is unbiased for any number, and its cost grows with the square."""


class ActivationStatistics:
    """Collects each block's statistics while its outputs are in memory."""

    def __init__(self, tokens: Tokens) -> None:
        """Holds nothing yet."""
        self.stats: dict[str, LayerActivationStats] = {}
        self.similarity: dict[str, Similarity] = {}
        self._lengths = [[len(tokens.ids[number]) for number in batch] for batch in tokens.batches]
        order = [number for batch in tokens.batches for number in batch]
        starts = [position == 0 for number in order for position in range(len(tokens.ids[number]))]
        skills = np.array([tokens.skills[number] or "" for number in order for _ in tokens.ids[number]], dtype=object)
        self._first = torch.tensor(starts)
        self._later = ~self._first
        self._of_skill = {
            skill: torch.from_numpy(skills == skill) & self._later for skill in sorted(set(skills)) if skill
        }

    def add(self, outputs: Outputs) -> None:
        """A block's; ignored where they are no hidden states of the probes."""
        rows = self.positions(outputs.target)
        if rows is None:
            return
        everywhere = _distribution(rows[self._later])
        massive_count, massive_channels = activations.massive(rows.float().cpu().numpy())
        hidden = rows[self._later].float().cpu().numpy()
        rank, rank_tokens = representation.rankme(hidden)
        self.stats[outputs.name] = LayerActivationStats(
            name=outputs.name,
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
            submodules=self._submodules(outputs),
            positions=len(hidden),
            token_norm=activations.token_norm(hidden),
            massive_count=massive_count,
            massive_channels=massive_channels,
            outlier_channels=len(activations.outlier_channels(hidden)),
            rankme=rank,
            rankme_tokens=rank_tokens,
            anisotropy=representation.anisotropy(hidden),
            feature_variance=representation.feature_variance(hidden),
        )
        if outputs.reference is not None and (theirs := self.positions(outputs.reference)) is not None:
            self.similarity[outputs.name] = self._similar(hidden, theirs[self._later].float().cpu().numpy())

    def positions(self, hidden: Hidden) -> torch.Tensor | None:
        """The real positions of all batches in a row, (positions, channels); None where the shapes are others."""
        rows = []
        for batch, numbers in zip(hidden, self._lengths, strict=True):
            if batch.dim() != 3 or batch.shape[0] != len(numbers) or batch.shape[1] < max(numbers):  # noqa: PLR2004
                return None
            rows += [batch[row, :length] for row, length in enumerate(numbers)]
        return torch.cat(rows)

    def _submodules(self, outputs: Outputs) -> dict[str, ActivationDistribution]:
        parts = {part: self.positions(hidden) for part, hidden in outputs.submodules.items()}
        return {part: _distribution(rows[self._later]) for part, rows in parts.items() if rows is not None}

    def _similar(self, mine: Floats, theirs: Floats) -> Similarity:
        return representation.similarity(
            mine[:SIMILARITY_POSITIONS],
            theirs[:SIMILARITY_POSITIONS],
            skills={skill: mask[self._later][:SIMILARITY_POSITIONS].numpy() for skill, mask in self._of_skill.items()},
        )


def _distribution(rows: torch.Tensor) -> ActivationDistribution:
    rows = rows.contiguous().cpu()
    if rows.dtype in (torch.bfloat16, torch.float16):
        kind = "BF16" if rows.dtype == torch.bfloat16 else "F16"
        return activations.distribution_of_bits(rows.view(torch.uint16).numpy(), kind)
    return activations.distribution(rows.float().numpy())
