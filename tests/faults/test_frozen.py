"""A daemon that freezes past its lease and wakes up beside a second one; ``frozen`` says how."""

from pathlib import Path

import pytest

from tests.faults.frozen import FEW, freeze


@pytest.mark.timeout(300)
async def test_a_daemon_that_wakes_up_beside_a_second_one_doubles_neither_artifact_nor_event(
    tmp_path: Path, kernels: Path
) -> None:
    history, findings = await freeze(tmp_path, lease_seconds=3.0, frozen_seconds=5.0)
    assert findings == []
    assert sum(bool(job["lost_workers"]) for job in history.jobs.values()) >= FEW - 1, "the second one took them over"
