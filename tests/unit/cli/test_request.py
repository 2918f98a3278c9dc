"""What a command line says on the bus, and when a request has ended."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from archaeologist.cli.request import (
    Ending,
    Fields,
    campaign_of,
    ending_of,
    messages,
    one_of,
    refuse_beside_sides,
    side_fields,
    tell,
    what_is_asked,
)
from archaeologist.errors import UsageError
from contracts.messages import AnalysisRequested, EventError, RequestId
from contracts.records import JobRecord, RequestRecord, RequestState
from tests.unit.daemon.jobs import done, queued, running

COMMON: Fields = {"hero_id": "dio", "campaign_id": "c1"}


def decoded(bodies: dict[str, bytes]) -> list[AnalysisRequested]:
    return [msgspec.json.decode(body, type=AnalysisRequested) for body in bodies.values()]


def record(state: RequestState = "accepted", **fields: Any) -> RequestRecord:
    return RequestRecord(request_id=RequestId("R1"), state=state, at="2026-01-01T00:00:00Z", **fields)


def announced(job: JobRecord) -> JobRecord:
    return replace(job, event_sequence=9)


# Where.


def test_a_path_under_a_campaign_names_hero_and_campaign(tmp_path: Path) -> None:
    path = tmp_path / "campaigns" / "dio" / "c1" / "checkpoints" / "checkpoint-5"
    folder = campaign_of(None, None, path=str(path), root=tmp_path)
    assert (folder.hero_id, folder.campaign_id) == ("dio", "c1")


def test_a_name_that_is_given_goes_before_the_path(tmp_path: Path) -> None:
    path = tmp_path / "campaigns" / "dio" / "c1" / "checkpoints" / "checkpoint-5"
    assert campaign_of("ozzy", None, path=str(path), root=tmp_path).hero_id == "ozzy"


@pytest.mark.parametrize(("hero", "campaign"), [(None, "c1"), ("dio", None), ("a/b", "c1"), ("dio", "..")])
def test_a_campaign_that_is_not_named_or_no_name_is_refused(
    tmp_path: Path, hero: str | None, campaign: str | None
) -> None:
    with pytest.raises(UsageError):
        campaign_of(hero, campaign, path="checkpoint-5", root=tmp_path)


# What.


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, {}),
        ("183000", {"reference_checkpoint_step": 183000}),
        ("best", {"reference": "best"}),
        ("none", {"reference": "none"}),
        ("checkpoint-77", {"reference_checkpoint_path": "checkpoint-77"}),
    ],
)
def test_a_reference_is_a_policy_a_step_or_a_path(value: str | None, expected: Fields) -> None:
    assert side_fields("reference_checkpoint", value, policies=True) == expected


@pytest.mark.parametrize("value", ["²", "٣", "9" * 5000])
def test_what_only_looks_like_a_step_is_a_path(value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert side_fields("reference_checkpoint", value, policies=True) == {"reference_checkpoint_path": value}


@pytest.mark.parametrize(
    "path", ["/c/checkpoint-300", "/c/checkpoint-300/", "/c/checkpoint-300/model.safetensors", "300"]
)
def test_a_step_that_contradicts_its_path_is_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--step 500 contradicts .*, which says step 300"):
        what_is_asked(path, step=500, steps=None, checkpoints=tmp_path)


@pytest.mark.parametrize("path", ["/c/checkpoint-500", "/c/best", None])
def test_a_path_without_a_step_or_with_the_same_may_be_given_it(path: str | None, tmp_path: Path) -> None:
    (fields,) = what_is_asked(path, step=500, steps=None, checkpoints=tmp_path)
    assert (fields["checkpoint_step"], fields.get("checkpoint_path")) == (500, path)


@pytest.mark.parametrize(
    "named",
    [
        {"checkpoint": "/c", "step": None, "steps": None},
        {"checkpoint": None, "step": 0, "steps": None},
        {"checkpoint": None, "step": None, "steps": "1:2"},
    ],
)
def test_beside_base_and_target_nothing_else_names_a_checkpoint(named: Any) -> None:
    with pytest.raises(UsageError, match="leave the path, --step and --steps out"):
        refuse_beside_sides(**named)


def test_a_relative_path_that_exists_here_is_sent_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkpoint-8").mkdir()
    monkeypatch.chdir(tmp_path)
    assert side_fields("checkpoint", "checkpoint-8") == {"checkpoint_path": str(tmp_path / "checkpoint-8")}


def test_a_checkpoint_called_best_is_no_policy_on_the_other_sides() -> None:
    assert side_fields("base_checkpoint", "best") == {"base_checkpoint_path": "best"}


def test_a_backfill_asks_for_each_existing_checkpoint_in_order(tmp_path: Path) -> None:
    for step in (300, 100, 200):
        (tmp_path / f"checkpoint-{step}").mkdir()
    asked = what_is_asked(None, step=None, steps="100:300:2", checkpoints=tmp_path)
    assert [message.checkpoint_step for message in decoded(messages(COMMON, asked))] == [100, 300]


def test_a_backfill_that_finds_nothing_says_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-100").mkdir()
    with pytest.raises(UsageError, match="there are 100 to 100"):
        what_is_asked(None, step=None, steps="101:300:1", checkpoints=tmp_path)


def test_a_backfill_and_a_step_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="leave the path and --step out"):
        what_is_asked(None, step=5, steps="1:9:1", checkpoints=tmp_path)


def test_every_message_has_an_id_of_its_own_under_which_it_is_kept() -> None:
    bodies = messages(COMMON, [{"checkpoint_step": 1}, {"checkpoint_step": 2}])
    assert [message.request_id for message in decoded(bodies)] == list(bodies)
    assert len(bodies) == 2


def test_what_is_not_said_is_not_sent() -> None:
    (body,) = messages({**COMMON, "force": None}, [{"checkpoint_step": 1}]).values()
    assert set(msgspec.json.decode(body)) == {"hero_id", "campaign_id", "checkpoint_step", "request_id"}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"job_type": "layer_drift", "base_checkpoint_step": 1},
        {"checkpoint_step": 1, "metrics": ["l7"]},
        {"checkpoint_step": 1, "analyses": ["speed"]},
    ],
)
def test_what_intake_would_refuse_is_not_sent(fields: Fields) -> None:
    with pytest.raises(UsageError):
        messages(COMMON, [fields])


def test_an_unknown_choice_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="--priority 'urgent' is not known; use one of: high, low"):
        one_of("--priority", "urgent", ("high", "low"))


# Its end.


def test_the_artifact_s_path_is_told_in_one_piece(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    path = "/data/" + "a b/" * 100 + "ckpt-000100.layer_stats.json"
    tell(Ending("R1", "done", artifact_path=path, most_changed_layer="model.layers.3"), as_json=False)
    assert capsys.readouterr().out == f"done, most changed model.layers.3: {path}\n"


def test_nothing_has_ended_before_the_records_say_so() -> None:
    unannounced = done()
    assert ending_of("R1", None, None) is None
    assert ending_of("R1", record("received"), None) is None
    assert ending_of("R1", record(), queued()) is None
    assert ending_of("R1", record(), running()[0]) is None
    assert ending_of("R1", record(), unannounced) is None


def test_an_earlier_run_does_not_end_a_request_that_is_only_received() -> None:
    assert ending_of("R1", record("received"), announced(done())) is None


def test_a_done_job_ends_its_request_well() -> None:
    ending = ending_of("R1", record(), announced(done()))
    assert ending is not None
    assert ending.is_good
    assert (ending.artifact_path, ending.most_changed_layer) == ("/a.json", "model.layers.3")


def test_a_refused_request_ends_without_a_job() -> None:
    error = EventError(code="step_unknown", message="m")
    ending = ending_of("R1", record("refused", error=error), None)
    assert ending is not None
    assert (ending.state, ending.error, ending.is_good) == ("refused", error, False)


def test_a_failed_job_ends_its_request_with_the_error() -> None:
    error = EventError(code="job_crashed", message="m")
    ending = ending_of("R1", record(), announced(replace(done(), state="failed", error=error)))
    assert ending is not None
    assert (ending.state, ending.error, ending.is_good) == ("failed", error, False)
