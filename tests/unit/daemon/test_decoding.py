"""Bytes from the bus become typed messages or a refusal that says what is wrong."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from archaeologist.daemon import announcements, decoding
from archaeologist.errors import AnalysisUnknown, JobTypeUnknown, MessageInvalid, MessageMalformed, PermanentError
from contracts.messages import AnalysisRequested, EventError, RequestId
from tests.unit.daemon.jobs import NOW

REQUEST = "analysis.requested"


def body(**fields: object) -> bytes:
    return msgspec.json.encode({"hero_id": "dio", "campaign_id": "c1", **fields})


def test_the_flat_and_the_nested_form_are_the_same_request() -> None:
    nested = msgspec.json.encode(
        {
            "job_type": "layer_stats",
            "payload": {"hero_id": "dio", "campaign_id": "c1", "checkpoint_path": "/x"},
            "priority": "low",
        }
    )
    flat = body(checkpoint_path="/x", priority="low")
    assert decoding.decode(REQUEST, nested) == decoding.decode(REQUEST, flat)


def test_job_type_and_priority_have_defaults_and_unknown_fields_are_ignored() -> None:
    request = decoding.decode(REQUEST, body(checkpoint_step=5, someday=1))
    assert isinstance(request, AnalysisRequested)
    assert (request.job_type, request.priority, request.checkpoint_step) == ("layer_stats", "normal", 5)


@pytest.mark.parametrize(
    ("raw", "error", "words"),
    [
        (b"not json", MessageMalformed, ["'not json'", "not JSON", "send one JSON object"]),
        (b"[1]", MessageMalformed, ["not an object"]),
        (b"\xff\xfe\x00", MessageMalformed, ["not JSON"]),
        (b"", MessageMalformed, ["not JSON"]),
        (b"[" * 200_000, MessageMalformed, ["nested deeper than 16"]),
        (b'{"a":' * 30 + b"1" + b"}" * 30, MessageMalformed, ["nested deeper than 16"]),
        (b" " * (decoding.MAX_BYTES + 1), MessageMalformed, ["262145 bytes", "at most 262144"]),
        (b"{}", MessageInvalid, ["hero_id"]),
        (body(), MessageInvalid, ["without checkpoint_path", "checkpoint_step"]),
        (body(checkpoint_path=5), MessageInvalid, ["checkpoint_path", "int"]),
        (body(checkpoint_step=True), MessageInvalid, ["checkpoint_step", "bool"]),
        (body(checkpoint_step=-1), MessageInvalid, ["checkpoint_step"]),
        (body(checkpoint_path="/a\x00b"), MessageInvalid, ["checkpoint_path"]),
        (body(hero_id="a/b", checkpoint_step=1), MessageInvalid, ["hero_id"]),
        (body(hero_id="..", checkpoint_step=1), MessageInvalid, ["hero_id"]),
        (body(hero_id="a..b", checkpoint_step=1), MessageInvalid, ["hero_id"]),
        (body(hero_id="a\n", checkpoint_step=1), MessageInvalid, ["hero_id"]),
        (body(campaign_id="x" * 129, checkpoint_step=1), MessageInvalid, ["campaign_id"]),
        (body(payload=3), MessageInvalid, ["payload", "object"]),
        (body(checkpoint_step=1, metrics=["l3"]), MessageInvalid, ["metrics"]),
        (body(job_type="layer_magic"), JobTypeUnknown, ["'layer_magic'", "layer_stats, layer_drift"]),
        (body(job_type=["x"]), JobTypeUnknown, ["layer_stats"]),
        (body(job_type="layer_drift", base_checkpoint_step=1), MessageInvalid, ["target_checkpoint_path"]),
        (body(checkpoint_step=1, max_probe_tokens=0), MessageInvalid, ["max_probe_tokens", "1"]),
        (body(checkpoint_step=1, max_probe_tokens=-5), MessageInvalid, ["max_probe_tokens", "1"]),
        (body(checkpoint_step=1, analyses="htsr"), MessageInvalid, ["analyses"]),
        (body(checkpoint_step=1, analyses=["htsr"] * 17), MessageInvalid, ["analyses", "16"]),
        (
            body(checkpoint_step=1, analyses=["htsr", "x" * 999]),
            AnalysisUnknown,
            [f"'{'x' * 64}'", "spectra, attention, generations, htsr"],
        ),
        (
            body(job_type="layer_drift", base_checkpoint_step=1, target_checkpoint_step=2, analyses=["htsr"]),
            MessageInvalid,
            ["['htsr']", "layer_stats"],
        ),
    ],
)
def test_a_bad_message_is_refused_with_value_rule_and_remedy(
    raw: bytes, error: type[PermanentError], words: list[str]
) -> None:
    with pytest.raises(error) as caught:
        decoding.decode(REQUEST, raw)
    for word in words:
        assert word in str(caught.value)


@given(st.binary(max_size=300) | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(msgspec.json.encode))
def test_any_bytes_are_a_message_or_a_refusal_that_can_be_announced(raw: bytes) -> None:
    try:
        decoding.decode(REQUEST, raw)
    except PermanentError as error:
        reason = EventError(code=error.code, message=str(error))
        event = announcements.refused(reason, request_id=RequestId("R"), body=raw, now=NOW)
        assert len(msgspec.json.encode(event)) < 32_768


def test_the_request_in_a_failed_event_is_cut_at_four_kilobytes() -> None:
    assert announcements.as_received(b'{"a": 1}') == {"a": 1}
    assert announcements.as_received(b"x" * 10_000) == "x" * 4096


def test_a_refused_message_is_answered_under_the_id_that_it_carries() -> None:
    assert decoding.request_id_of(b'{"request_id": "R-1", "job_type": 5}') == "R-1"
    assert decoding.request_id_of(b'{"payload": {"request_id": "R-2"}}') == "R-2"
    for raw in (b"nope", b"{}", b'{"request_id": "a b"}', b'{"request_id": 5}', b'{"payload": 3}'):
        assert decoding.request_id_of(raw) is None
