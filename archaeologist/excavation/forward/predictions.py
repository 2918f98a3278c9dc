"""What the models say comes next: their heads over the last hidden states, some positions at a time."""

import contextlib
import ctypes
from collections.abc import Sequence
from typing import Final

import torch

from archaeologist.excavation.forward.divergence import PredictionResult, Predictions
from archaeologist.excavation.forward.head import Head
from archaeologist.excavation.forward.lanes import Lanes
from archaeologist.excavation.forward.streaming import Side
from archaeologist.excavation.forward.tokens import Tokens

HEAD_POSITIONS: Final = 256
"""Positions whose logits are in memory at once, 80 MB a model of 150,000 tokens in bfloat16; for each lot of them the
head is read."""


def predict(sides: Sequence[Side], hidden: Sequence[torch.Tensor], tokens: Tokens, *, lanes: Lanes) -> PredictionResult:
    """The target's predictions, and how far they are from the reference's.

    Args:
        sides: The target, and the reference where there is one; both have a head.
        hidden: Their last hidden states, (positions, channels) in the order of the batches.
        tokens: The probes.
        lanes: Where slices of the heads run.
    """
    _trim()
    predictions = Predictions(has_reference=len(sides) > 1, lanes=lanes)
    keep, following, skills = _following(tokens)
    with contextlib.ExitStack() as stack:
        heads = [stack.enter_context(Head(side, lanes=lanes)) for side in sides]
        for start in range(0, len(keep), HEAD_POSITIONS):
            window = slice(start, start + HEAD_POSITIONS)
            logits = [
                head.logits(rows[keep[window]].to(side.device))
                for side, head, rows in zip(sides, heads, hidden, strict=True)
            ]
            predictions.add(logits[0], logits[1] if len(logits) > 1 else None, following[window], skills[window])
    return predictions.result()


def _trim() -> None:
    """Gives memory back to the system that glibc keeps for the passes, which are over: the head takes other sizes."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _following(tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor, list[str | None]]:
    """Positions with a next token, in the order of the batches; those tokens; their skills."""
    keep: list[int] = []
    following: list[int] = []
    skills: list[str | None] = []
    start = 0
    for number in (number for batch in tokens.batches for number in batch):
        ids = tokens.ids[number]
        keep += range(start, start + len(ids) - 1)
        following += ids[1:]
        skills += [tokens.skills[number]] * (len(ids) - 1)
        start += len(ids)
    return torch.tensor(keep, dtype=torch.int64), torch.tensor(following, dtype=torch.int64), skills
