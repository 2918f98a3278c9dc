"""Where attention looks: its entropy and how much of it the first token gets.

Called by the forward pass with the scores of some queries. Pure NumPy, float64. Definitions and traps are in
docs/statistics.md.

Shapes: N queries, H heads, K keys.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from archaeologist.statistics.distribution import Floats
from contracts.artifacts import AttentionStats


class Looks(NamedTuple):
    """One number a query and head, (N, H); NaN where a score is not finite or no key is seen."""

    entropy: Floats
    """Nats."""
    normalized: Floats
    """Entropy over that of looking at all keys alike; NaN also where one key is seen."""
    first: Floats
    """Share of the first key."""


def looks(scores: Floats) -> Looks:
    """What softmax makes of scores.

    Args:
        scores: (N, H, K), float64; -infinity for a key that the query does not see.
    """
    seen = ~np.isneginf(scores)
    with np.errstate(invalid="ignore", divide="ignore"):
        shifted = np.where(seen, scores - scores.max(axis=-1, keepdims=True), 0.0)
        weights = np.where(seen, np.exp(shifted), 0.0)
        total = weights.sum(axis=-1)
        # ln Σe^s - Σps: nothing is lost where a probability is near 0.
        entropy = np.log(total) - (weights * shifted).sum(axis=-1) / total
        normalized = entropy / np.log(seen.sum(axis=-1))
        first = weights[..., 0] / total
    is_defined = np.isfinite(entropy) & np.isfinite(first)
    entropy, first = (np.where(is_defined, values, np.nan) for values in (np.maximum(entropy, 0.0), first))
    return Looks(entropy, np.where(np.isfinite(normalized), normalized, np.nan), first)


def summary(found: Sequence[Looks]) -> AttentionStats:
    """Means over all queries and heads; sums are exact, so that their order does not matter."""
    entropies = [value for part in found for value in part.entropy.ravel().tolist()]
    return AttentionStats(
        entropy=_mean(entropies),
        normalized_entropy=_mean(value for part in found for value in part.normalized.ravel().tolist()),
        first_token_mass=_mean(value for part in found for value in part.first.ravel().tolist()),
        queries=sum(len(part.entropy) for part in found),
        heads=found[0].entropy.shape[1] if found else 0,
        undefined=sum(math.isnan(value) for value in entropies),
    )


def _mean(values: Iterable[float]) -> float | None:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else None
