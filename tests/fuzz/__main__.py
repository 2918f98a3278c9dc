"""``python -m tests.fuzz [--inputs N] [--seed S] [--only TEXT]``: malformed inputs, and how each was answered.

Exits with 1 where one input crashed a decoder.
"""

import argparse
import asyncio
import logging
import sys
import tempfile
from pathlib import Path

import structlog

from tests.fuzz import http, intake
from tests.fuzz.decoders import decoders
from tests.fuzz.running import Tally, run

HTTP_SHARE = 5
"""One input in so many is an HTTP request, beside those of the decoders."""


def main() -> int:
    """Runs all; the exit code."""
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="of all decoders together")
    parser.add_argument("--intake", type=int, default=2000, help="of these, through a daemon and a real nats-server")
    parser.add_argument("--seed", type=int, default=0, help="another one gives other inputs")
    parser.add_argument("--only", default="", help="decoders whose name contains this")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    names = {name: decoder for name, decoder in decoders().items() if options.only in name}
    left = options.inputs - options.intake
    requests = left // HTTP_SHARE if options.only in http.NAME else 0
    tallies: dict[str, Tally] = {}
    for name, decoder in names.items():
        tallies[name] = _told(name, run(name, decoder, inputs=(left - requests) // len(names), seed=options.seed))
    if requests:
        tallies[http.NAME] = _told(http.NAME, asyncio.run(http.run(inputs=requests, seed=options.seed)))
    if options.intake and options.only in intake.NAME:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
            found = asyncio.run(intake.run(Path(place), inputs=options.intake, seed=options.seed))
        tallies[intake.NAME] = _told(intake.NAME, found)
    crashes = sum(tally.crashes for tally in tallies.values())
    print(f"{sum(tally.inputs for tally in tallies.values()):,} inputs, {crashes} crashes")  # noqa: T201 -- its purpose
    return 1 if crashes else 0


def _told(name: str, tally: Tally) -> Tally:
    codes = ", ".join(f"{code} {count:,}" for code, count in tally.codes.most_common())
    growth = f"{tally.growth_bytes / 1e6:+.1f} MB"
    slowest = f"{tally.slowest_seconds * 1000:.0f} ms"
    print(f"{name}: {tally.inputs:,} inputs, {tally.crashes} crashes, slowest {slowest}, {growth}; {codes}")  # noqa: T201 -- the same
    for line in tally.shown:
        print(f"  {line}")  # noqa: T201 -- the same
    sys.stdout.flush()
    return tally


if __name__ == "__main__":
    sys.exit(main())
