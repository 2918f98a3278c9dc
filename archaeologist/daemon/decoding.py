"""Bytes from the bus → typed messages, or a refusal that names what is wrong.

Pure. Sizes and depths are bounded here; paths and the campaign's state are looked at later, by admission.
"""

import hashlib
from typing import Any, Final

import msgspec

from archaeologist.analyses import known_analyses
from archaeologist.errors import JobTypeUnknown, MessageInvalid, MessageMalformed, PermanentError, RequestIdReused
from contracts import subjects
from contracts.messages import AnalysisRequested, CheckpointSaved, RequestId, RequestIdText, SkillEvaluated

MAX_BYTES: Final = 256 * 1024
MAX_DEPTH: Final = 16

Message = CheckpointSaved | SkillEvaluated | AnalysisRequested

_TYPES: Final[dict[str, type[Message]]] = {
    subjects.CHECKPOINT_SAVED: CheckpointSaved,
    subjects.SKILL_EVALUATED: SkillEvaluated,
    subjects.ANALYSIS_REQUESTED: AnalysisRequested,
}


def decode(subject: str, body: bytes) -> Message:
    """The message that a subject carries.

    Raises:
        MessageMalformed: Not a JSON object, too large, too deep, not UTF-8.
        MessageInvalid: A field is missing, has the wrong type or breaks a rule.
        JobTypeUnknown: ``job_type`` is none of the known.
        AnalysisUnknown: One of ``analyses`` is none of the known.
    """
    fields = json_object(body)
    if subject == subjects.ANALYSIS_REQUESTED:
        fields = flattened(fields)
        _check_job_type(fields.get("job_type", subjects.JOB_TYPES[0]))
    try:
        message = msgspec.convert(fields, _TYPES[subject])
    except msgspec.ValidationError as error:
        msg = f"{subject}: {error}; docs/messages.md lists its fields"
        raise MessageInvalid(msg) from error
    if isinstance(message, AnalysisRequested):
        _check_completeness(message)
        _check_analyses(message)
    return message


def request_id_of(body: bytes) -> RequestId | None:
    """The id that a message carries, also where the rest of it is wrong: its asker waits for an answer under it."""
    try:
        return msgspec.convert(flattened(json_object(body)).get("request_id"), RequestIdText)
    except (msgspec.ValidationError, PermanentError):
        return None


def digest_of(subject: str, body: bytes) -> str:
    """SHA-256 of a message: one id cannot stand for two."""
    return hashlib.sha256(subject.encode() + b"\0" + body).hexdigest()


def id_reused(request_id: str) -> RequestIdReused:
    """What is said of a message under the id of another one."""
    return RequestIdReused(f"request_id {request_id!r} was used for another request; use a new id for each request")


def flattened(fields: dict[str, Any]) -> dict[str, Any]:
    """The flat form of ``{"job_type", "payload": {…}, "priority"}``; what is flat already stays."""
    payload = fields.get("payload")
    if payload is None:
        return fields
    if not isinstance(payload, dict):
        msg = f"{subjects.ANALYSIS_REQUESTED}: payload is {type(payload).__name__}, it must be an object"
        raise MessageInvalid(msg)
    return {**payload, **{name: value for name, value in fields.items() if name != "payload"}}


def json_object(body: bytes) -> dict[str, Any]:
    """The fields of a body that is one JSON object of bearable size and depth.

    Raises:
        MessageMalformed: It is not.
    """
    if len(body) > MAX_BYTES:
        msg = f"message of {len(body)} bytes; at most {MAX_BYTES} are read, so send paths and not contents"
        raise MessageMalformed(msg)
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        msg = f"message {_shown(body)} is not JSON ({error}); send one JSON object"
        raise MessageMalformed(msg) from error
    except RecursionError as error:
        msg = f"message is nested deeper than {MAX_DEPTH} levels; send a flat JSON object"
        raise MessageMalformed(msg) from error
    if not isinstance(fields, dict):
        msg = f"message {_shown(body)} is JSON but not an object; send one JSON object"
        raise MessageMalformed(msg)
    if depth_of(fields) > MAX_DEPTH:
        msg = f"message is nested deeper than {MAX_DEPTH} levels; send a flat JSON object"
        raise MessageMalformed(msg)
    return fields


def depth_of(value: object) -> int:
    """Levels of nesting, without recursion and no further than one past the limit."""
    level, depth = [value], 0
    while level and depth <= MAX_DEPTH:
        inner: list[object] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        depth += any(isinstance(item, dict | list) for item in level)
        level = inner
    return depth


def _check_job_type(job_type: object) -> None:
    if job_type not in subjects.JOB_TYPES:
        known = ", ".join(subjects.JOB_TYPES)
        msg = f"job_type {str(job_type)[:64]!r} is not known; use one of: {known}"
        raise JobTypeUnknown(msg)


def _check_completeness(request: AnalysisRequested) -> None:
    """Each job type's checkpoints, by path or by step."""
    sides = ("checkpoint",) if request.job_type == "layer_stats" else ("base_checkpoint", "target_checkpoint")
    for side in sides:
        if getattr(request, f"{side}_path") is None and getattr(request, f"{side}_step") is None:
            msg = f"{request.job_type} without {side}_path; give {side}_path or {side}_step"
            raise MessageInvalid(msg)


def _check_analyses(request: AnalysisRequested) -> None:
    if known_analyses(request.analyses or ()) and request.job_type != "layer_stats":
        msg = f"{request.job_type} takes no analyses and got {request.analyses}; ask layer_stats for them"
        raise MessageInvalid(msg)


def _shown(body: bytes) -> str:
    return repr(body[:60].decode("utf-8", errors="replace")) + ("…" if len(body) > 60 else "")  # noqa: PLR2004 -- a line's worth
