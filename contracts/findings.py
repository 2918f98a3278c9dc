"""Findings: sentences made from an analysis's numbers, for the page, the report, the terminal and events."""

from typing import Literal

from msgspec import Struct

from contracts.prepared import prepare

FindingSeverity = Literal["critical", "warning", "success", "info"]


class Evidence(Struct, frozen=True, kw_only=True):
    """Where the numbers behind a finding are to be seen; null: not one block, metric or checkpoint."""

    block: str | None = None
    metric: str | None = None
    """A metric of the strata (``relative_l2``), of health (``entropy``), or ``stability``, ``skill``, ``left_out``."""
    step: int | None = None


class Finding(Struct, frozen=True, kw_only=True):
    """One sentence, what it rests on, and where to look."""

    topic: str
    """alert, collapse, movement, resolution, function, thrashing, frozen, leader, skill, left_out, coverage."""
    severity: FindingSeverity
    text: str
    """Text, not markup: names in it come from checkpoints."""
    basis: str = ""
    """What it rests on: numbers, sample size, what is missing."""
    confidence: Literal["low", "normal"] = "normal"
    evidence: Evidence = Evidence()


class Card(Struct, frozen=True, kw_only=True):
    """One number above the strata."""

    title: str
    value: str
    detail: str = ""
    """What it is of, and how it goes."""
    trend: tuple[float | None, ...] = ()
    """Over time, for a line beside it."""
    block: str | None = None


prepare(__name__)
