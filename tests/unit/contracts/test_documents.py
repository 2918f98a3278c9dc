"""The generated documents: up to date, valid, and true to what is encoded."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft7Validator, Draft202012Validator, ValidationError
from jsonschema.validators import extend
from msgspec import Struct

from contracts import artifacts, documents, messages, records, subjects

REPOSITORY = Path(documents.__file__).parents[1]

INCOMING: dict[str, type[Struct]] = {
    subjects.CHECKPOINT_SAVED: messages.CheckpointSaved,
    subjects.SKILL_EVALUATED: messages.SkillEvaluated,
    subjects.ANALYSIS_REQUESTED: messages.AnalysisRequested,
}
STORED: dict[str, type[Struct]] = {
    "job": messages.Job,
    "job_record": records.JobRecord,
    "request_record": records.RequestRecord,
    "campaign_record": records.CampaignRecord,
    "worker_record": records.WorkerRecord,
    "layer_stats": artifacts.LayerStats,
    "layer_drift": artifacts.LayerDrift,
    "layer_drift_timeline": artifacts.DriftTimeline,
    "submodule_drift_timeline": artifacts.SubmoduleDriftTimeline,
    "health_timeline": artifacts.HealthTimeline,
    "stability_report": artifacts.StabilityReport,
    "skill_impact": artifacts.SkillImpact,
    "skill_history": artifacts.SkillHistory,
    "drift_estimate": artifacts.DriftEstimate,
}

GENERATED = {name.removesuffix(".json"): json.loads(content) for name, content in documents.documents().items()}
SCHEMAS = sorted(GENERATED.keys() - {"asyncapi"})

COMMAND = re.compile(r"nats pub (?:-\S+ )*([a-z.]+) '(\{.*?\})'", re.DOTALL)


def everywhere(node: Any) -> Iterator[dict[str, Any]]:
    """Every object within a JSON document."""
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from everywhere(value)
    elif isinstance(node, list):
        for value in node:
            yield from everywhere(value)


def resolved(document: Any, reference: str) -> Any:
    """What a ``#/…`` reference points at."""
    for part in reference.removeprefix("#/").split("/"):
        document = document[part.replace("~1", "/").replace("~0", "~")]
    return document


def ends_in_ecma(pattern: str) -> re.Pattern[str]:
    """A pattern as JSON Schema means it: ``$`` is the end of the text, for Python's also before a last newline."""
    return re.compile(pattern.replace("$", r"\Z"))


def keeps_pattern(_: object, pattern: str, value: object, __: object) -> Iterator[ValidationError]:
    """The ``pattern`` keyword in JSON Schema's dialect."""
    if isinstance(value, str) and not ends_in_ecma(pattern).search(value):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


Validator = extend(Draft202012Validator, {"pattern": keeps_pattern})


def check(name: str, value: Any) -> None:
    """Fails with the first rule that a JSON value breaks."""
    Draft202012Validator(GENERATED[name]).validate(value)


def test_the_checked_in_documents_are_those_that_the_code_generates() -> None:
    assert documents.outdated(documents.SCHEMAS) == []


def test_every_message_event_record_and_artifact_has_a_schema() -> None:
    assert set(SCHEMAS) == {*INCOMING, *messages.EVENT_DATA, *STORED}


def test_generating_twice_gives_the_same_bytes_ending_in_a_newline() -> None:
    first, second = documents.documents(), documents.documents()
    assert list(first.items()) == list(second.items())
    assert all(content.endswith(b"}\n") for content in first.values())


def test_a_missing_a_changed_and_a_left_over_document_are_each_named(tmp_path: Path) -> None:
    documents.write(tmp_path)
    assert documents.outdated(tmp_path) == []
    (tmp_path / "job.json").unlink()
    (tmp_path / "layer_stats.json").write_text("{}\n")
    (tmp_path / "old.json").write_text("{}\n")
    assert documents.outdated(tmp_path) == ["job.json", "layer_stats.json", "old.json"]


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_is_valid_and_described_and_its_references_resolve(name: str) -> None:
    schema = GENERATED[name]
    Draft202012Validator.check_schema(schema)
    assert schema["title"] == name
    assert schema["description"]
    for node in everywhere(schema):
        if "$ref" in node:
            assert resolved(schema, node["$ref"])


def test_the_docstring_of_a_field_is_its_description() -> None:
    tensor = GENERATED["layer_stats"]["$defs"]["TensorWeights"]["properties"]
    assert tensor["std"]["description"] == "Population standard deviation."
    assert tensor["dtype"]["description"] == "As stored: `BF16`, `F16`, `F32`."


def test_an_inherited_field_and_a_multi_line_docstring_are_described() -> None:
    event = GENERATED[subjects.ANALYSIS_COMPLETED]
    assert event["properties"]["id"]["description"] == "A ULID."
    assert GENERATED["job"]["description"].startswith("A job on the queue")
    assert "\n    " not in GENERATED["job"]["description"]


def test_a_statistic_may_be_null_in_every_artifact() -> None:
    statistics = GENERATED["layer_stats"]["$defs"]["TensorWeights"]["properties"]
    assert {kind["type"] for kind in statistics["kurtosis"]["anyOf"]} == {"number", "null"}


@pytest.mark.parametrize("subject", sorted(documents.EXAMPLES))
def test_an_example_keeps_its_schema_and_decodes_as_its_type(subject: str) -> None:
    example = documents.EXAMPLES[subject]
    check(subject, example)
    if subject in INCOMING:
        msgspec.convert(example, INCOMING[subject])
    else:
        event = msgspec.convert(example, messages.Event)
        msgspec.convert(event.data, messages.EVENT_DATA[subject])


def test_every_nats_pub_in_the_documentation_keeps_its_schema() -> None:
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]
    commands = [found for page in pages if page.exists() for found in COMMAND.findall(page.read_text(encoding="utf-8"))]
    assert commands
    for subject, body in commands:
        check(subject, json.loads(body))


@pytest.mark.parametrize(
    "form",
    [
        {"hero_id": "h", "campaign_id": "c", "checkpoint_step": 5},
        {"job_type": "layer_stats", "priority": "low", "payload": {"hero_id": "h", "campaign_id": "c"}},
    ],
    ids=["flat", "with payload"],
)
def test_a_request_is_valid_in_either_form(form: dict[str, Any]) -> None:
    check(subjects.ANALYSIS_REQUESTED, form)


@pytest.mark.parametrize(
    ("subject", "field", "value"),
    [
        (subjects.CHECKPOINT_SAVED, "hero_id", "a/b"),
        (subjects.CHECKPOINT_SAVED, "hero_id", "a..b"),
        (subjects.CHECKPOINT_SAVED, "campaign_id", "c\n"),
        (subjects.CHECKPOINT_SAVED, "checkpoint_step", -1),
        (subjects.CHECKPOINT_SAVED, "checkpoint_path", ""),
        (subjects.CHECKPOINT_SAVED, "checkpoint_path", "a\x00b"),
        (subjects.SKILL_EVALUATED, "score", None),
        (subjects.ANALYSIS_REQUESTED, "priority", "urgent"),
        (subjects.ANALYSIS_REQUESTED, "metrics", []),
    ],
)
def test_what_decoding_refuses_the_schema_refuses_too(subject: str, field: str, value: object) -> None:
    wrong = {**documents.EXAMPLES[subject], field: value}
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, INCOMING[subject])
    assert not Validator(GENERATED[subject]).is_valid(wrong)


@pytest.mark.parametrize("name", GENERATED)
def test_no_pattern_has_a_look_around(name: str) -> None:
    patterns = [node["pattern"] for node in everywhere(GENERATED[name]) if isinstance(node.get("pattern"), str)]
    assert not [pattern for pattern in patterns if "(?" in pattern], "RE2 and Rust refuse it"


@pytest.mark.parametrize(
    ("pattern", "kind"), [(messages.NAME_PATTERN, messages.Hero), (messages.REQUEST_ID_PATTERN, messages.RequestIdText)]
)
@given(
    text=st.text("aZ09._-\n", max_size=12)
    | st.text(max_size=6)
    | st.text("a.", min_size=60, max_size=130)
    | st.sampled_from(
        ["", "a", "a.", "a..", ".a", "a.b.c", "a..b", "a.-", "a\n", "a" * 64, "a" * 65, "a" * 128, "a" * 129]
    )
)
def test_the_exported_pattern_takes_what_decoding_takes(pattern: str, kind: Any, text: str) -> None:
    try:
        msgspec.convert(text, kind)
    except msgspec.ValidationError:
        is_taken = False
    else:
        is_taken = True
    limit = 128 if kind is messages.Hero else 64
    exported = ends_in_ecma(documents.PORTABLE_PATTERNS[pattern])
    assert (exported.search(text) is not None and len(text) <= limit) == is_taken


def test_an_event_of_another_type_is_refused_by_the_schema() -> None:
    completed = documents.EXAMPLES[subjects.ANALYSIS_COMPLETED]
    assert not Draft202012Validator(GENERATED[subjects.ANALYSIS_FAILED]).is_valid(completed)


# hypothesis builds each Struct from its annotations, its constraints included.
names = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,12}\Z")
words = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=12)
numbers = st.none() | st.floats()
steps = st.integers(0, 10**15)
scores = st.floats(allow_nan=False, allow_infinity=False)

errors = st.builds(messages.EventError, code=words, message=words)
sides = st.builds(messages.Side, path=words, step=steps, read_path=words, fingerprint=words)
jobs = st.builds(
    messages.Job,
    job_key=words.map(messages.JobKey),
    job_id=words.map(messages.RequestId),
    job_type=st.sampled_from(["layer_stats", "layer_drift"]),
    priority=st.sampled_from(["low", "normal", "high"]),
    hero_id=names.map(messages.HeroId),
    campaign_id=names.map(messages.CampaignId),
    target=sides,
    reference=st.none() | sides,
    created_at=words,
    notes=st.lists(words, max_size=2).map(tuple),
)
incoming = st.one_of(
    st.builds(
        messages.CheckpointSaved,
        hero_id=names.map(messages.HeroId),
        campaign_id=names.map(messages.CampaignId),
        checkpoint_path=words,
        checkpoint_step=st.none() | steps,
        metrics=st.dictionaries(words, numbers, max_size=3),
        skills=st.dictionaries(words, scores, max_size=3),
    ),
    st.builds(
        messages.SkillEvaluated,
        hero_id=names.map(messages.HeroId),
        campaign_id=names.map(messages.CampaignId),
        checkpoint_step=steps,
        skill=words,
        score=scores,
    ),
    st.builds(
        messages.AnalysisRequested,
        hero_id=names.map(messages.HeroId),
        campaign_id=names.map(messages.CampaignId),
        checkpoint_step=steps,
        reference=st.sampled_from([None, "none", "previous", "base", "best"]),
        metrics=st.none() | st.lists(st.sampled_from(["l2", "cosine", "frobenius"]), min_size=1, max_size=3),
    ),
)
event_data = st.one_of(
    st.builds(messages.StartedData, job_id=words, reference_step=st.none() | steps),
    st.builds(messages.ProgressData, stage=words, block=steps, blocks=steps, bytes_read=steps, bytes_total=steps),
    st.builds(messages.CompletedData, job_id=words, most_changed_layer=st.none() | words, duration_sec=scores),
    st.builds(messages.FailedData, error=errors, request=st.none() | words | st.dictionaries(words, words, max_size=2)),
    st.builds(messages.CancelledData, by=st.none() | words),
    st.builds(
        messages.AlertData,
        severity=st.sampled_from(["warning", "critical"]),
        family=words,
        metric=words,
        value=numbers,
        baseline=numbers,
    ),
)
coverages = st.builds(
    artifacts.Coverage, tensors_listed=steps, tensors_read=steps, bytes_listed=steps, bytes_read=steps
)
tensors = st.builds(
    artifacts.TensorWeights, dtype=words, shape=st.lists(steps, max_size=3).map(tuple), l2=numbers, kurtosis=numbers
)
blocks = st.builds(
    artifacts.LayerWeightStats,
    name=words,
    layer_type=words,
    weight_norms=st.dictionaries(words, numbers, max_size=2),
    tensors=st.dictionaries(words, tensors, max_size=2),
)
drifts = st.builds(
    artifacts.LayerDriftStats,
    name=words,
    weight_l2=st.dictionaries(words, numbers, max_size=2),
    relative_l2=numbers,
    tensors=st.dictionaries(words, st.builds(artifacts.TensorDrift, l2=numbers, cosine=numbers), max_size=2),
)
layer_stats = st.builds(
    artifacts.LayerStats,
    campaign_id=names,
    hero_id=names,
    checkpoint_path=words,
    checkpoint_step=steps,
    created_at=words,
    weight_stats=st.dictionaries(words, blocks, max_size=2),
    global_weight_stats=st.builds(artifacts.GlobalWeightStats, l2=numbers),
    drift_stats=st.dictionaries(words, drifts, max_size=2),
    global_drift_stats=st.none() | st.builds(artifacts.GlobalDriftStats, l2=numbers),
    job_key=words,
    job_id=words,
    fingerprint=words,
    coverage=coverages,
    versions=st.builds(artifacts.Versions, archaeologist=words, python=words),
)
layer_drift = st.builds(
    artifacts.LayerDrift,
    campaign_id=names,
    hero_id=names,
    base_checkpoint=words,
    target_checkpoint=words,
    base_checkpoint_step=steps,
    target_checkpoint_step=steps,
    created_at=words,
    metrics=st.just(("l2", "cosine")),
    layer_drift=st.dictionaries(words, st.builds(artifacts.BlockDrift, l2_total=numbers), max_size=2),
    drift_stats=st.dictionaries(words, drifts, max_size=2),
    global_drift_stats=st.builds(artifacts.GlobalDriftStats, l2=numbers),
    job_key=words,
    job_id=words,
    base_fingerprint=words,
    target_fingerprint=words,
    base_coverage=coverages,
    target_coverage=coverages,
    comparison=st.builds(artifacts.Comparison, compared=steps),
    versions=st.builds(artifacts.Versions, archaeologist=words, python=words),
)
job_records = st.builds(
    records.JobRecord,
    job=jobs,
    state=st.sampled_from(["queued", "running", "done", "failed", "cancelled"]),
    queued_at=words,
    error=st.none() | errors,
)
request_records = st.builds(
    records.RequestRecord,
    request_id=words.map(messages.RequestId),
    state=st.sampled_from(["received", "accepted", "refused", "skipped"]),
    at=words,
)
checkpoints = st.builds(
    records.SeenCheckpoint, step=steps, path=words, metrics=st.dictionaries(words, numbers, max_size=2)
)
campaign_records = st.builds(
    records.CampaignRecord, hero_id=names, campaign_id=names, checkpoints=st.lists(checkpoints, max_size=2).map(tuple)
)


@given(st.one_of(incoming, jobs, layer_stats, layer_drift, job_records, request_records, campaign_records))
def test_what_is_encoded_keeps_its_schema_and_decodes_to_the_same(value: Struct) -> None:
    encoded = messages.encode(value)
    (name,) = (name for name, kind in {**INCOMING, **STORED}.items() if kind is type(value))
    check(name, json.loads(encoded))
    # Compared as JSON: NaN becomes null on the way, and that is the contract.
    assert messages.encode(msgspec.json.decode(encoded, type=type(value))) == encoded


@given(event_data)
def test_an_encoded_event_keeps_its_schema_and_its_data_decode_to_the_same(data: messages.EventData) -> None:
    (name,) = (name for name, kind in messages.EVENT_DATA.items() if kind is type(data))
    event = messages.Event(
        type=name, message="m", severity="info", data=data, id="01JDBG4X0V3W8M2K7H5N1S9TPQ", time="2025-11-22T10:15:30Z"
    )
    encoded = messages.encode(event)
    check(name, json.loads(encoded))
    decoded = msgspec.json.decode(encoded, type=messages.Event)
    assert messages.encode(msgspec.convert(decoded.data, type(data))) == messages.encode(data)


def test_every_reference_in_the_asyncapi_document_resolves() -> None:
    document = GENERATED["asyncapi"]
    references = [node["$ref"] for node in everywhere(document) if "$ref" in node]
    assert len(references) > len(document["channels"])
    for reference in references:
        assert resolved(document, reference)


def test_the_asyncapi_document_has_a_channel_for_every_subject() -> None:
    covered = {
        *subjects.CHECKPOINTS_SUBJECTS,
        *subjects.REQUESTS_SUBJECTS,
        *subjects.BATTLE_LOG_SUBJECTS,
        subjects.job_subject("{job_type}", "{priority}", "{job_key}"),
        subjects.dead_subject("{code}"),
        subjects.cancel_subject("{job_key}"),
    }
    assert {channel["address"] for channel in GENERATED["asyncapi"]["channels"].values()} == covered


def test_a_channel_declares_every_parameter_of_its_address_and_no_other() -> None:
    for channel in GENERATED["asyncapi"]["channels"].values():
        assert set(re.findall(r"\{(\w+)\}", channel["address"])) == set(channel.get("parameters", {}))


def test_every_channel_is_used_and_every_operation_says_which_way() -> None:
    document = GENERATED["asyncapi"]
    used = {operation["channel"]["$ref"].removeprefix("#/channels/") for operation in document["operations"].values()}
    assert used == set(document["channels"])
    assert {operation["action"] for operation in document["operations"].values()} == {"send", "receive"}


def test_the_schemas_inside_asyncapi_are_of_its_dialect_and_put_nothing_beside_a_reference() -> None:
    for schema in GENERATED["asyncapi"]["components"]["schemas"].values():
        Draft7Validator.check_schema(schema)
        for node in everywhere(schema):
            assert "$ref" not in node or len(node) == 1


def test_the_examples_inside_asyncapi_keep_the_schemas_beside_them() -> None:
    document = GENERATED["asyncapi"]
    for message in document["components"]["messages"].values():
        for example in message.get("examples", []):
            Draft7Validator({**document, **message["payload"]}).validate(example["payload"])


def test_main_says_which_documents_are_not_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(documents, "SCHEMAS", tmp_path)
    assert documents.main(["--check"]) == 1
    assert "asyncapi.json" in capsys.readouterr().err
    assert documents.main([]) == 0
    assert documents.main(["--check"]) == 0
