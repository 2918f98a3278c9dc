"""``python -m tests.faults --requests 10000 --faults 1000 --seed 1``: a campaign of faults, and the checker's verdict.

Prints what was done, by kind, what became of the requests, and everything that must not be. Exits with 0 when there is
nothing. Bounded by ``--minutes``: what was not sent by then is not sent, and the rest is checked all the same.
"""

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.faults import disk
from tests.faults.campaign import Campaign, Outcome
from tests.faults.evidence import KINDS, History
from tests.faults.plan import draw
from tests.faults.stage import Stage

SHOWN_FINDINGS = 60


def main() -> int:
    """Runs a campaign; 1 when the checker found something."""
    options = _options()
    may_mount = not options.no_mount and disk.enter_namespace()
    folder = Path(options.folder or tempfile.mkdtemp(prefix="faults-"))
    os.environ.setdefault("XDG_CACHE_HOME", str(folder / "cache"))
    plan = draw(requests=options.requests, faults=options.faults, seed=options.seed)
    _compile(folder)
    stage = Stage(folder, plan, boxes=options.daemons, may_mount=may_mount, seed=options.seed)
    campaign = Campaign(plan, stage, tell=_tell, limit_seconds=options.minutes * 60)
    outcome = asyncio.run(campaign.run())
    sys.stdout.write(report(outcome, title=f"seed {options.seed}, {options.daemons} daemons, disk: {stage.disk.kind}"))
    if not outcome.findings and not options.folder:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if outcome.findings else 0


def report(outcome: Outcome, *, title: str) -> str:
    """What was done and what came of it, for people."""
    history = outcome.history
    lines = [f"\n{title}, {outcome.seconds:.0f} s"]
    lines += [f"{outcome.sent} messages, {len(history.sent)} distinct requests, {len(history.jobs)} jobs"]
    lines += ["", f"{outcome.injected.total()} faults"]
    lines += [f"  {count:6} {kind}" for kind, count in sorted(outcome.injected.items())]
    lines += ["", "jobs ended as"]
    lines += [f"  {count:6} {ending}" for ending, count in sorted(_endings(history).items())]
    kinds = Counter(finding.kind for finding in outcome.findings)
    verdict = ", ".join(f"{kinds[kind]} {kind.replace('_', ' ')}" for kind in KINDS)
    lines += ["", f"verdict: {verdict}"]
    lines += [f"  {finding.kind}: {finding.what}: {finding.why}" for finding in outcome.findings[:SHOWN_FINDINGS]]
    return "\n".join(lines) + "\n"


def _endings(history: History) -> Counter[str]:
    endings = Counter(
        f"failed: {job['error']['code']}" if job["state"] == "failed" else job["state"] for job in history.jobs.values()
    )
    endings["lost by a worker, then run by another"] = sum(
        job["state"] == "done" and bool(job.get("lost_workers")) for job in history.jobs.values()
    )
    endings["(requests refused)"] = sum(record["state"] == "refused" for record in history.requests.values())
    return endings


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="A campaign of faults.")
    parser.add_argument("--requests", type=int, default=10_000, help="distinct requests")
    parser.add_argument("--faults", type=int, default=1000, help="at least so many")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--daemons", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=90.0, help="send nothing after so long")
    parser.add_argument("--no-mount", action="store_true", help="limits stand in for the small disk")
    parser.add_argument("--folder", help="empty; kept. Otherwise a temporary one, kept when something was found")
    return parser.parse_args()


def _compile(folder: Path) -> None:
    from tests.fixtures.kernels import compiled  # noqa: PLC0415 -- takes torch

    folder.mkdir(parents=True, exist_ok=True)
    compiled(folder / "compiling")


def _tell(text: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
