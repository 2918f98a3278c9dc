"""Trains and analyses campaigns, healthy ones and ones with a planted collapse, and records which alerts came when.

``python -m tests.campaigns.collapse --seeds 20 [--first 0] [--starts warm,scratch] [--json FILE]``. Each seed is
trained once a start; the two campaigns that come of it differ only in the collapse, see ``tests.fixtures.campaigns``.
The record of the last long run lies beside this file; ``docs/statistics.md``, "Signs of collapse", has its table. Seeds
below ``UNSEEN`` were looked at while the rule was made, the others were run once, after it.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import torch
from msgspec import Struct
from transformers.utils import logging as transformers_logging

from contracts.artifacts import Alert, LayerStats
from tests.fixtures.campaigns import SAVES, Pair, Plan, Start, loss, pair

UNSEEN: Final = 10
COLLAPSE: Final = frozenset({"representation", "entropy", "divergence"})
"""The families of a collapse; a block's norm that jumps announces none."""


class Told(Struct, frozen=True, kw_only=True):
    """An alert, without its words."""

    save: int
    severity: str
    confidence: str
    family: str
    metric: str
    block: str | None = None


class Record(Struct, frozen=True, kw_only=True):
    """What became of a seed's two campaigns."""

    seed: int
    start: Start
    recipe: str
    first_ill: int
    is_fast: bool
    has_whole_norm: bool
    doubled: int | None
    """The first save at which the ill model's loss on the probes is twice the healthy one's."""
    healthy_losses: list[float]
    ill_losses: list[float]
    healthy: list[Told]
    ill: list[Told]

    def first(self, *, severity: str | None = None) -> int | None:
        """The save of the first sign of the planted collapse."""
        saves = (
            told.save
            for told in self.ill
            if told.save >= self.first_ill and told.family in COLLAPSE and severity in {None, told.severity}
        )
        return next(saves, None)

    @property
    def verdict(self) -> str:
        """When the collapse was announced, in relation to the doubling."""
        if self.doubled is None:
            return "not doubled"
        first = self.first()
        if first is None:
            return "missed"
        return "before" if first < self.doubled else "at" if first == self.doubled else "after"


def recorded(plan: Plan, found: Pair) -> Record:
    """A pair of campaigns as a record."""
    return Record(
        seed=plan.seed,
        start=plan.start,
        recipe=plan.recipe,
        first_ill=plan.first_ill,
        is_fast=plan.is_fast,
        has_whole_norm=plan.has_whole_norm,
        doubled=found.doubled,
        healthy_losses=[round(loss(artifact), 3) for artifact in found.healthy],
        ill_losses=[round(loss(artifact), 3) for artifact in found.ill],
        healthy=told(found.healthy),
        ill=told(found.ill),
    )


def told(artifacts: Sequence[LayerStats]) -> list[Told]:
    """The alerts of a campaign."""
    return [_told(save, alert) for save, artifact in enumerate(artifacts, start=1) for alert in artifact.alerts]


def _told(save: int, alert: Alert) -> Told:
    return Told(
        save=save,
        severity=alert.severity,
        confidence=alert.confidence,
        family=alert.family,
        metric=alert.metric,
        block=alert.block,
    )


def summary(records: Sequence[Record]) -> str:
    """Both tables, as in ``docs/statistics.md``."""
    lines = ["| planted collapse | campaigns | before | at | after | missed | saves before, median | critical before |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    lines += [_ill_row(name, group) for name, group in _groups(records)]
    lines += ["", "| healthy | campaigns | critical alerts | warned of | warnings | of them of low confidence |"]
    lines += ["|---|---|---|---|---|---|"]
    lines += [_healthy_row(name, group) for name, group in _groups(records)]
    return "\n".join(lines)


def _groups(records: Sequence[Record]) -> list[tuple[str, list[Record]]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        half = "looked at" if record.seed < UNSEEN else "unseen"
        groups.setdefault(f"{record.start}, {half}", []).append(record)
    return sorted(groups.items(), reverse=True)


def _ill_row(name: str, group: Sequence[Record]) -> str:
    verdicts = [record.verdict for record in group]
    firsts = [(record.doubled, record.first()) for record in group]
    margins = [doubled - first for doubled, first in firsts if doubled is not None and first is not None]
    sure = [record.first(severity="critical") for record in group]
    critical = sum(
        found is not None and record.doubled is not None and found < record.doubled
        for found, record in zip(sure, group, strict=True)
    )
    counts = " | ".join(str(verdicts.count(verdict)) for verdict in ("before", "at", "after", "missed"))
    return f"| {name} | {len(group)} | {counts} | {statistics.median(margins or [0]):g} | {critical} |"


def _healthy_row(name: str, group: Sequence[Record]) -> str:
    alerts = [alert for record in group for alert in record.healthy]
    warnings = [alert for alert in alerts if alert.severity == "warning"]
    low = sum(alert.confidence == "low" for alert in warnings)
    warned = sum(bool(record.healthy) for record in group)
    return f"| {name} | {len(group)} | {len(alerts) - len(warnings)} | {warned} | {len(warnings)} | {low} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.collapse", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--starts", default="warm,scratch")
    parser.add_argument("--json", type=Path, help="where the record goes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    records = []
    for start in options.starts.split(","):
        for seed in range(options.first, options.first + options.seeds):
            plan, started = Plan(seed=seed, start=start), time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                record = recorded(plan, pair(plan, Path(folder)))
            records.append(record)
            seconds = time.perf_counter() - started
            sys.stdout.write(
                f"{start} {seed} ({record.recipe}): ill from save {record.first_ill} of {SAVES}, doubled at"
                f" {record.doubled}, announced at {record.first()} ({record.verdict}), healthy alerts"
                f" {len(record.healthy)}; {seconds:.0f} s\n"
            )
            sys.stdout.flush()
    if options.json:
        lines = ",\n".join(msgspec.json.encode(record).decode() for record in records)
        options.json.write_text(f"[\n{lines}\n]\n")
    sys.stdout.write(f"\n{summary(records)}\n")


if __name__ == "__main__":
    main()
