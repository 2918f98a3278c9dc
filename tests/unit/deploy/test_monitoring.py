"""The dashboard and the alert rules ask for measures that are there, by labels and values that they have."""

import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import yaml
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from archaeologist import metrics
from archaeologist.daemon import announcements, lifecycle
from contracts import subjects
from contracts.artifacts import Alert
from contracts.messages import CampaignId, Event, EventError
from tests.unit.daemon.jobs import NOW, REQUEST, done, running

DEPLOY: Final = Path(__file__).parents[3] / "deploy"
DASHBOARD: Final = json.loads((DEPLOY / "grafana-dashboard.json").read_text(encoding="utf-8"))
RULES: Final = yaml.safe_load((DEPLOY / "prometheus-alerts.yml").read_text(encoding="utf-8"))
OPERATIONS: Final = DEPLOY.parent / "docs" / "operations.md"

SCRAPED: Final = frozenset({"instance", "job"})
"""Labels that Prometheus itself puts on every series."""
GROUPING: Final = r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)"
WORDS: Final = frozenset({"and", "or", "unless", "bool", "offset", "by", "without"})


class Asked(NamedTuple):
    """What an expression asks for."""

    names: set[str]
    labels: set[str]
    values: set[tuple[str, str, str]]
    """Name, label, value."""


def asked(expression: str) -> Asked:
    """Names and labels in PromQL: an identifier that no parenthesis follows and that stands in no list of labels."""
    values = {
        (name, label, value)
        for name, inner in re.findall(r"([a-zA-Z_:][\w:]*)\{([^}]*)\}", expression)
        for label, value in re.findall(r'(\w+)\s*=\s*"([^"]*)"', inner)
    }
    grouped = re.findall(GROUPING, expression)
    labels = {label.strip() for inner in grouped for label in inner.split(",") if label.strip()}
    labels |= {label for _, label, _ in values}
    rest = re.sub(GROUPING + r"|\{[^}]*\}|\[[^\]]*\]", " ", expression)
    names = set(re.findall(r"(?<![\w.])([a-zA-Z_:][\w:]*)\b(?!\s*\()", rest)) - WORDS
    return Asked(names, labels, values)


def expressions() -> Iterator[tuple[str, str]]:
    """Every query, by the title of what asks it."""
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield f"panel {panel['title']}", target["expr"]
    for group in RULES["groups"]:
        for rule in group["rules"]:
            yield f"rule {rule['alert']}", rule["expr"]


@pytest.fixture(scope="module")
def exported() -> dict[str, dict[str, set[str]]]:
    """Every series that is exported once everything has happened: its labels and their values."""
    everything_happens()
    found: dict[str, dict[str, set[str]]] = {}
    for family in text_string_to_metric_families(metrics.exposition().decode()):
        for sample in family.samples:
            labels = found.setdefault(sample.name, defaultdict(set))
            for label, value in sample.labels.items():
                labels[label].add(value)
    return found


def everything_happens() -> None:
    """Notes one of each."""
    metrics.watch_bus("daemon", lambda: True)
    metrics.set_slots(dict.fromkeys(subjects.JOB_TYPES, 1))
    states = ("waiting", "in_flight")
    metrics.set_queue({(t, p, s): 1 for t in subjects.JOB_TYPES for p in subjects.PRIORITIES for s in states})
    for event in (*events_of_a_job_that_was_done(), *(failed(code) for code in ("shard_missing", "worker_lost"))):
        metrics.note_event(event)
    metrics.note_run("layer_stats", "done", seconds=1.0, bytes_read=1)
    metrics.note_sweep(at=NOW, stored_bytes=dict.fromkeys(metrics.KINDS, 1))
    metrics.note_request(200)
    metrics.set_streams(1)


def events_of_a_job_that_was_done(*, family: str = "weights", **changes: Any) -> list[Event]:
    """Its completed event and an alert."""
    record = done()
    alert = Alert(severity="critical", family=family, metric="nan_count")
    record = replace(record, alerts=(alert,), job=replace(record.job, **changes))
    return [announcement.event for announcement in announcements.ending(record, worker="box", now=NOW)]


def failed(code: str) -> Event:
    """A job that failed."""
    record, claim = running()
    ended = lifecycle.failed(record, EventError(code=code, message="why"), claim=claim, now=NOW)
    assert ended is not None
    return announcements.terminal(ended, worker="box", now=NOW)


def value(name: str, **labels: str) -> float:
    """A measure's value."""
    found = metrics.REGISTRY.get_sample_value(name, labels)
    return found or 0.0


# Queries.


@pytest.mark.parametrize(("where", "expression"), [*expressions()])
def test_a_query_asks_for_what_is_exported(
    where: str, expression: str, exported: dict[str, dict[str, set[str]]]
) -> None:
    wanted = asked(expression)
    assert wanted.names, where
    assert wanted.names <= exported.keys()
    for name, label, wanted_value in wanted.values:
        assert wanted_value in exported[name][label]
    known = {label for name in wanted.names for label in exported[name]} | SCRAPED
    assert wanted.labels <= known


def test_the_queries_are_read_as_prometheus_reads_them() -> None:
    found = asked('sum by (a, b) (rate(x_total{c="d"}[5m])) / on (e) group_left () y > 2e3 and time() - z')
    assert found == Asked({"x_total", "y", "z"}, {"a", "b", "c", "e"}, {("x_total", "c", "d")})


def test_a_query_for_what_is_not_there_is_found(exported: dict[str, dict[str, set[str]]]) -> None:
    assert not asked("rate(archaeologist_failures[5m])").names <= exported.keys()


def test_the_labels_that_texts_and_legends_show_are_there(exported: dict[str, dict[str, set[str]]]) -> None:
    known = {label for labels in exported.values() for label in labels} | SCRAPED
    legends = [target["legendFormat"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    assert {label for text in legends for label in re.findall(r"{{(\w+)}}", text)} <= known
    texts = [text for group in RULES["groups"] for rule in group["rules"] for text in rule["annotations"].values()]
    assert {label for text in texts for label in re.findall(r"\$labels\.(\w+)", text)} <= known


def test_every_measure_of_ours_is_explained_and_nothing_else(exported: dict[str, dict[str, set[str]]]) -> None:
    families = {family.name for family in metrics.REGISTRY.collect() if family.name.startswith("archaeologist_")}
    rows = re.findall(r"^\| `(archaeologist_\w+)", OPERATIONS.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert {re.sub(r"_(total|info)$", "", row) for row in rows} == families


def test_what_a_rule_wants_to_see_grow_at_once_is_there_from_the_start() -> None:
    """Prometheus sees no growth in a series that begins with one."""
    program = "from archaeologist import metrics; print(metrics.exposition().decode())"
    fresh = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True, timeout=60)
    there = [line for line in fresh.stdout.splitlines() if line.endswith(" 0.0")]
    at_once = [
        asked(rule["expr"])
        for group in RULES["groups"]
        for rule in group["rules"]
        if "increase(" in rule["expr"] and rule["expr"].endswith("> 0")
    ]
    assert at_once
    for wanted in at_once:
        for name, label, value_wanted in wanted.values:
            assert any(line.startswith(name + "{") and f'{label}="{value_wanted}"' in line for line in there)


def test_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (panel["gridPos"]["x"] + column, panel["gridPos"]["y"] + row)
        for panel in panels
        for column in range(panel["gridPos"]["w"])
        for row in range(panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


# What is noted.


def test_a_job_that_was_done_counts_its_event_its_alert_and_its_step() -> None:
    alerts = value("archaeologist_alerts_total", family="weights", severity="critical")
    completed = value("archaeologist_events_published_total", type="analysis.completed")
    for event in events_of_a_job_that_was_done(campaign_id=CampaignId("counted")):
        metrics.note_event(event)
    assert value("archaeologist_alerts_total", family="weights", severity="critical") == alerts + 1
    assert value("archaeologist_events_published_total", type="analysis.completed") == completed + 1
    assert value("archaeologist_last_analysed_step", hero_id="dio", campaign_id="counted") == 100


def test_a_refusal_counts_as_a_request_s_and_a_failure_as_a_job_s() -> None:
    labels = {"code": "step_unknown", "stage": "request"}
    before = value("archaeologist_failures_total", **labels)
    reason = EventError(code="step_unknown", message="why")
    metrics.note_event(announcements.refused(reason, request_id=REQUEST, body=b"{}", now=NOW))
    assert value("archaeologist_failures_total", **labels) == before + 1
    jobs = value("archaeologist_failures_total", code="header_invalid", stage="job")
    metrics.note_event(failed("header_invalid"))
    assert value("archaeologist_failures_total", code="header_invalid", stage="job") == jobs + 1


def test_whatever_comes_over_the_bus_the_series_stay_few() -> None:
    before = len(metrics.exposition().splitlines())
    for number in range(3 * metrics.MAX_CAMPAIGNS):
        for event in events_of_a_job_that_was_done(family=f"family {number}", campaign_id=CampaignId(f"c{number}")):
            metrics.note_event(event)
        metrics.note_event(failed(f"code {number}"))
    assert len(metrics.exposition().splitlines()) <= before + 2 * metrics.MAX_CAMPAIGNS + 10


def test_an_older_record_does_not_replace_the_step_of_a_newer_analysis() -> None:
    newest = events_of_a_job_that_was_done(campaign_id=CampaignId("replayed"))[0]
    metrics.note_event(newest)
    earlier = replace(newest, time="2020-01-01T00:00:00Z", data=replace(newest.data, checkpoint_step=7))
    metrics.note_event(earlier)
    assert value("archaeologist_last_analysed_step", hero_id="dio", campaign_id="replayed") == 100


def test_a_queue_that_nobody_knows_has_no_value() -> None:
    metrics.set_queue({("layer_stats", "high", "waiting"): 3})
    metrics.set_queue({})
    labels = {"job_type": "layer_stats", "priority": "high", "state": "waiting"}
    assert metrics.REGISTRY.get_sample_value("archaeologist_queue_jobs", labels) is None
