"""A short campaign of faults: every kind at least once, and nothing lost, doubled, torn or left over.

The long one is the same program with other numbers: docs/reliability.md.
"""

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from tests.faults.plan import INFRASTRUCTURE, NAMES, draw
from tests.faults.stage import Stage
from tests.fixtures.programs import UNMEASURED

REQUESTS, FAULTS, SEED = 150, 45, 20260102
MESSAGES_THEMSELVES = ("message repeated", "checkpoint announced out of order")


@pytest.mark.timeout(600)
async def test_a_short_campaign_loses_doubles_and_tears_nothing(tmp_path: Path, kernels: Path) -> None:
    options = ("--requests", str(REQUESTS), "--faults", str(FAULTS), "--seed", str(SEED), "--folder", str(tmp_path))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.faults", *options),
        env={**os.environ, **UNMEASURED},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    text = said.decode()
    assert process.returncode == 0, text[-6000:]
    for kind in (*INFRASTRUCTURE, *NAMES.values(), *MESSAGES_THEMSELVES):
        assert re.search(rf"^ +[1-9]\d* {re.escape(kind)}$", text, re.MULTILINE), kind


def test_the_same_seed_draws_the_same_plan() -> None:
    one, same, other = (draw(requests=REQUESTS, faults=FAULTS, seed=seed) for seed in (SEED, SEED, SEED + 1))
    assert (one.messages, one.faults) == (same.messages, same.faults)
    assert one.messages != other.messages


def test_a_plan_has_as_many_requests_as_were_asked_for_and_every_kind_of_fault() -> None:
    plan = draw(requests=REQUESTS, faults=FAULTS, seed=SEED)
    assert len(plan.sent) == REQUESTS
    assert {fault.kind for fault in plan.faults} == set(INFRASTRUCTURE)
    assert {NAMES.get(message.body.get("fate", "")) for message in plan.messages} >= set(NAMES.values())


async def test_whatever_a_plan_may_do_to_the_machinery_is_known_how(tmp_path: Path) -> None:
    stage = Stage(tmp_path, draw(requests=REQUESTS, faults=FAULTS, seed=SEED), boxes=1, may_mount=False, seed=SEED)
    # The queue's messages are repeated by whoever sends, not by the machinery.
    assert set(stage.faults) == set(INFRASTRUCTURE) - {"queue message repeated"}
