"""How much generated texts repeat themselves and each other: shares of n-grams of tokens that occur once.

Called by the forward pass with token ids. Pure. Definitions and traps are in docs/statistics.md.
"""

from collections.abc import Sequence
from typing import Final

from contracts.artifacts import GenerationStats

REPEATED: Final = 4
"""Length of the n-grams whose repeats within a text are counted, as in arXiv 1908.04319."""

Texts = Sequence[Sequence[int]]
"""Token ids of each text."""


def distinct(texts: Texts, n: int) -> float | None:
    """Different n-grams over all n-grams, of all texts together (arXiv 1510.03055); None where there are none.

    No n-gram reaches from one text into the next.
    """
    found = [gram for text in texts for gram in _grams(text, n)]
    return len(set(found)) / len(found) if found else None


def repeated(texts: Texts, n: int = REPEATED) -> float | None:
    """Mean over the texts of the share of n-grams that repeat an earlier one of the same text.

    seq-rep-n of arXiv 1908.04319. Texts of fewer than n tokens are left out; None where all are.
    """
    shares = [1 - len(set(grams)) / len(grams) for text in texts if (grams := _grams(text, n))]
    return sum(shares) / len(shares) if shares else None


def summary(texts: Texts, *, ended: int) -> GenerationStats:
    """The numbers of texts that were generated in one way.

    Args:
        texts: Without what ends them.
        ended: How many the model ended itself.
    """
    return GenerationStats(
        texts=len(texts),
        tokens=sum(len(text) for text in texts),
        ended=ended,
        distinct_1=distinct(texts, 1),
        distinct_2=distinct(texts, 2),
        distinct_3=distinct(texts, 3),
        repeated_4=repeated(texts),
    )


def _grams(text: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(text[start : start + n]) for start in range(len(text) - n + 1)]
