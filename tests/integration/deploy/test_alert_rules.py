"""The alert rules as Prometheus' own promtool reads and plays them, on what our exporter exports and nothing else."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.deploy.conftest import DEPLOY

RULES: Final = DEPLOY / "prometheus-alerts.yml"
BEFORE_MINUTES: Final = 10
AFTER_MINUTES: Final = 130

FIRES: Final = {
    "three_jobs_fail": (5, "ArchaeologistJobsFail"),
    "two_jobs_fail": (5, None),
    "a_worker_is_lost": (2, "ArchaeologistWorkerLost"),
    "a_model_collapses": (2, "ArchaeologistModelInTrouble"),
    "nobody_is_told": (2, "ArchaeologistNotTold"),
    "the_bus_goes": (7, "ArchaeologistBusAway"),
    "nothing_is_taken": (17, "ArchaeologistNothingRuns"),
    "the_queue_grows": (62, "ArchaeologistQueueGrows"),
    "pins_pile_up": (32, "ArchaeologistPinsLarge"),
    "nothing_happens": (40, None),
}
"""By scene: after how many minutes is looked, and what has fired by then, alone."""


def promtool(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs it. Without it the test is skipped; in CI, which installs it, it fails."""
    program = shutil.which("promtool")
    if program is None:
        reason = "promtool is not here: it is in Debian's package prometheus"
        assert not os.environ.get("CI"), reason
        pytest.skip(reason)
    return subprocess.run([program, *map(str, arguments)], capture_output=True, check=False, text=True, timeout=60)


@pytest.fixture(scope="module")
def played() -> dict[str, tuple[str, str]]:
    """What a new process exports before and after each scene."""
    command = [sys.executable, "-m", "tests.integration.deploy.scenes"]
    root = DEPLOY.parent
    done = subprocess.run(command, capture_output=True, check=True, text=True, timeout=120, cwd=root)
    return {name: (before, after) for name, before, after in map(json.loads, done.stdout.splitlines())}


def samples(text: str) -> dict[str, float]:
    """Every series with its value; the process's own are left out, of which no rule asks."""
    found = {}
    for family in text_string_to_metric_families(text):
        for name, labels, value, *_ in family.samples:
            if name.startswith("archaeologist_") and not name.endswith("_bucket"):
                inner = ",".join(f'{label}="{text}"' for label, text in sorted(labels.items()))
                found[f"{name}{{{inner}}}"] = float(value)
    return found


def series(before: str, after: str) -> Iterator[dict[str, str]]:
    """Input of promtool: each series for some minutes as it was, then as it became. ``_`` is no value."""
    first, then = samples(before), samples(after)
    for name in sorted(first | then):
        was, became = (f"{found[name]}" if name in found else "_" for found in (first, then))
        yield {"series": name, "values": f"{was}x{BEFORE_MINUTES - 1} {became}x{AFTER_MINUTES}"}


def case(before: str, after: str, *, minutes: int, alert: str | None) -> dict[str, Any]:
    """One of promtool's tests."""
    firing = [{"labels": f'{{alertname="{alert}"}}', "value": 1}] if alert else []
    return {
        "interval": "1m",
        "input_series": list(series(before, after)),
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": f"{BEFORE_MINUTES + minutes}m",
                "exp_samples": firing,
            }
        ],
    }


def verdict(folder: Path, *cases: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """What promtool says to them."""
    file = folder / "cases.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [*cases]}))
    return promtool("test", "rules", file)


def test_promtool_reads_every_rule() -> None:
    said = promtool("check", "rules", RULES)
    assert said.returncode == 0, said.stderr


@pytest.mark.parametrize("scene", FIRES)
def test_what_happens_for_the_first_time_fires_its_rule_and_no_other(
    scene: str, played: dict[str, tuple[str, str]], tmp_path: Path
) -> None:
    minutes, alert = FIRES[scene]
    said = verdict(tmp_path, case(*played[scene], minutes=minutes, alert=alert))
    assert said.returncode == 0, said.stdout + said.stderr


def test_a_daemon_that_is_not_there_is_missed(tmp_path: Path) -> None:
    said = verdict(tmp_path, case("", "", minutes=7, alert="ArchaeologistDaemonAway"))
    assert said.returncode == 0, said.stdout + said.stderr


def test_a_sweep_that_does_not_come_is_missed(played: dict[str, tuple[str, str]], tmp_path: Path) -> None:
    said = verdict(tmp_path, case(*played["nothing_happens"], minutes=75, alert="ArchaeologistSweepLate"))
    assert said.returncode == 0, said.stdout + said.stderr


def test_every_rule_is_tried() -> None:
    names = {rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]}
    tried = {alert for _, alert in FIRES.values() if alert}
    assert names == tried | {"ArchaeologistDaemonAway", "ArchaeologistSweepLate"}


def test_a_rule_that_should_fire_and_does_not_is_found(played: dict[str, tuple[str, str]], tmp_path: Path) -> None:
    said = verdict(tmp_path, case(*played["two_jobs_fail"], minutes=5, alert="ArchaeologistJobsFail"))
    assert said.returncode != 0
