"""The contracts for readers in other languages: a JSON Schema of each message, record and artifact, and AsyncAPI 3.

Generated from the Structs and the names in ``contracts.subjects``; titles and descriptions are the docstrings of the
classes and of their fields. ``python -m contracts.documents`` writes the checked-in files, with ``--check`` it tells
whether they are up to date. What a schema cannot say (``layer_stats`` needs a path or a step) is in the descriptions.
"""

import ast
import inspect
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import msgspec
from msgspec import Struct

from contracts import artifacts, messages, records, subjects

SCHEMAS: Final = Path(__file__).parent / "schemas"
"""Where the generated documents are checked in."""

CONTRACT_VERSION: Final = "1.0.0"
"""Of the names and shapes, not of the program: a new field raises the second number, a changed one the first."""

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

JsonObject = dict[str, Any]

PORTABLE_PATTERNS: Final[dict[str, str]] = {
    messages.NAME_PATTERN: r"^[A-Za-z0-9](\.?[A-Za-z0-9_-])*\.?$",
    messages.REQUEST_ID_PATTERN: r"^[A-Za-z0-9_-]{1,64}$",
}
"""Patterns as other languages read them: RE2 and Rust know no look-ahead. ``maxLength`` bounds a name, and ``$`` is the
end of the text as in ECMA-262, JSON Schema's dialect; Python's stands before a last newline too."""

_INCOMING: Final[dict[str, type[Struct]]] = {
    subjects.CHECKPOINT_SAVED: messages.CheckpointSaved,
    subjects.SKILL_EVALUATED: messages.SkillEvaluated,
    subjects.ANALYSIS_REQUESTED: messages.AnalysisRequested,
}
_STORED: Final[dict[str, type[Struct]]] = {
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

EXAMPLES: Final[dict[str, JsonObject]] = {
    subjects.CHECKPOINT_SAVED: {
        "hero_id": "qwen3-tiny",
        "campaign_id": "binary-1",
        "checkpoint_path": "campaigns/qwen3-tiny/binary-1/checkpoints/checkpoint-183000",
        "checkpoint_step": 183000,
        "metrics": {"eval_loss": 1.9},
        "skills": {"BIN": 0.71},
    },
    subjects.SKILL_EVALUATED: {
        "hero_id": "qwen3-tiny",
        "campaign_id": "binary-1",
        "checkpoint_step": 183000,
        "skill": "BIN",
        "score": 0.71,
    },
    subjects.ANALYSIS_REQUESTED: {
        "hero_id": "qwen3-tiny",
        "campaign_id": "binary-1",
        "checkpoint_step": 183000,
        "reference": "previous",
    },
    subjects.ANALYSIS_COMPLETED: {
        "type": subjects.ANALYSIS_COMPLETED,
        "message": "Analysis complete for checkpoint 183000 (most changed: model.layers.3)",
        "severity": "success",
        "source": "archaeologist",
        "data": {
            "job_id": "01JDBG3Q4Y9B6V0ZC6T4E5R2MN",
            "job_type": "layer_stats",
            "hero_id": "qwen3-tiny",
            "campaign_id": "binary-1",
            "checkpoint_step": 183000,
            "most_changed_layer": "model.layers.3",
            "duration_sec": 4.2,
            "has_drift": True,
        },
        "id": "01JDBG4X0V3W8M2K7H5N1S9TPQ",
        "time": "2025-11-22T10:15:30.250Z",
        "version": 1,
    },
    subjects.ANALYSIS_ALERT: {
        "type": subjects.ANALYSIS_ALERT,
        "message": "Checkpoint 183000: RankMe (median over the transformer blocks) is 41.2, 62 % below 108, the median"
        " of 9 earlier checkpoints (robust z 9.3). Entropy deviates as well. A sign of collapse, not a proof.",
        "severity": "error",
        "source": "archaeologist",
        "data": {
            "job_id": "01JDBG3Q4Y9B6V0ZC6T4E5R2MN",
            "job_type": "layer_stats",
            "hero_id": "qwen3-tiny",
            "campaign_id": "binary-1",
            "checkpoint_step": 183000,
            "severity": "critical",
            "family": "representation",
            "metric": "rankme",
            "value": 41.2,
            "baseline": 108.4,
            "checkpoints": 9,
        },
        "id": "01JDBG4X0V3W8M2K7H5N1S9TPQ",
        "time": "2025-11-22T10:15:30.250Z",
        "version": 1,
    },
    subjects.ANALYSIS_FAILED: {
        "type": subjects.ANALYSIS_FAILED,
        "message": "Request refused: path '/etc' lies outside the allowed roots '/data'; move it there or name its"
        " folder in the setting 'allowed'",
        "severity": "error",
        "source": "archaeologist",
        "data": {
            "job_id": "01JDBG3Q4Y9B6V0ZC6T4E5R2MN",
            "error": {
                "code": "path_outside_root",
                "message": "path '/etc' lies outside the allowed roots '/data'; move it there or name its folder in the"
                " setting 'allowed'",
            },
            "request": {"hero_id": "qwen3-tiny", "campaign_id": "binary-1", "checkpoint_path": "/etc"},
        },
        "id": "01JDBG4X0V3W8M2K7H5N1S9TPQ",
        "time": "2025-11-22T10:15:30.250Z",
        "version": 1,
    },
}
"""Messages as they look on the bus, by subject."""


def documents() -> dict[str, bytes]:
    """Every document by file name: ``{name}.json`` for each schema, and ``asyncapi.json``."""
    found = {name: json_schema(name) for name in (*_INCOMING, *messages.EVENT_DATA, *_STORED)}
    found["asyncapi"] = asyncapi()
    return {f"{name}.json": _as_bytes(document) for name, document in sorted(found.items())}


def write(folder: Path) -> list[Path]:
    """Writes every document into a folder, made when it is missing; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, content in documents().items():
        path = folder / name
        path.write_bytes(content)
        paths.append(path)
    return paths


def outdated(folder: Path) -> list[str]:
    """Names of documents in a folder that are missing, differ from the code, or are no longer generated."""
    generated = documents()
    present = {path.name: path.read_bytes() for path in folder.glob("*.json")}
    return sorted(name for name in generated.keys() | present.keys() if generated.get(name) != present.get(name))


def json_schema(name: str) -> JsonObject:
    """The JSON Schema of a message, by its subject, or of a record or artifact, by its name."""
    if name in messages.EVENT_DATA:
        schema, definitions = _event_schema(name, ref_template="#/$defs/{name}")
    else:
        root = {**_INCOMING, **_STORED}[name]
        definitions = _components([root], ref_template="#/$defs/{name}")
        schema = definitions.pop(root.__name__)
        if name == subjects.ANALYSIS_REQUESTED:
            schema = _either_form(schema)
    document = {"$schema": DIALECT, **schema, "title": name}
    return {**document, "$defs": definitions} if definitions else document


def asyncapi() -> JsonObject:
    """The AsyncAPI 3 document: which message goes where. It stands alone, with its own copies of the schemas."""
    return {
        "asyncapi": "3.0.0",
        "id": "urn:model-archaeologist",
        "info": {
            "title": "Model Archaeologist",
            "version": CONTRACT_VERSION,
            "description": "Trainers announce checkpoints and people ask for analyses; the archaeologist answers in "
            "the Battle Log. Every body is plain JSON. Unknown fields are ignored, and a field that is there never "
            "changes its type.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "local": {
                "host": "127.0.0.1:4222",
                "protocol": "nats",
                "description": "NATS with JetStream: the server that `archaeologist up` embeds, or one of your own.",
            }
        },
        "channels": _channels(),
        "operations": _operations(),
        "components": {"messages": _messages(), "schemas": _schemas()},
    }


def _channels() -> JsonObject:
    streams = {
        subjects.CHECKPOINTS: subjects.CHECKPOINTS_SUBJECTS,
        subjects.REQUESTS: subjects.REQUESTS_SUBJECTS,
        subjects.BATTLE_LOG: subjects.BATTLE_LOG_SUBJECTS,
    }
    channels = {
        subject: _channel(subject, messages=(subject,), stream=stream)
        for stream, covered in streams.items()
        for subject in covered
    }
    job_type = {"description": "What is done.", "enum": list(subjects.JOB_TYPES)}
    priority = {"description": "Served from the first to the last.", "enum": list(subjects.PRIORITIES)}
    job_key = {"description": "Hash of what is analysed, against what and how."}
    code = {"description": "The error's stable code."}
    channels["jobs"] = {
        **_channel(
            subjects.job_subject("{job_type}", "{priority}", "{job_key}"), messages=("job",), stream=subjects.JOBS
        ),
        "description": "The job queue: one message a job, gone when the job has ended.",
        "parameters": {"job_type": job_type, "priority": priority, "job_key": job_key},
    }
    channels["dead"] = {
        **_channel(subjects.dead_subject("{code}"), messages=("dead",), stream=subjects.DEAD),
        "description": "Messages that were refused and jobs that failed for good.",
        "parameters": {"code": code},
    }
    channels["cancel"] = {
        **_channel(subjects.cancel_subject("{job_key}"), messages=("cancel",), stream=None),
        "description": "Core NATS, kept by no stream: tells the owner of a running job to stop it.",
        "parameters": {"job_key": job_key},
    }
    return channels


def _channel(address: str, *, messages: Iterable[str], stream: str | None) -> JsonObject:
    channel: JsonObject = {
        "address": address,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
        "servers": [{"$ref": "#/servers/local"}],
    }
    # The NATS binding has nothing about streams, so they stand in an extension.
    return {**channel, "x-jetstream": {"stream": stream}} if stream else channel


def _operations() -> JsonObject:
    """What the archaeologist does, seen from itself."""
    durables = {
        subjects.CHECKPOINT_SAVED: subjects.INTAKE_CHECKPOINTS,
        subjects.SKILL_EVALUATED: subjects.INTAKE_CHECKPOINTS,
        subjects.ANALYSIS_REQUESTED: subjects.INTAKE_REQUESTS,
    }
    operations = {
        f"receive {subject}": _operation("receive", subject, title=f"Takes in {subject}.", durables=(durable,))
        for subject, durable in durables.items()
    }
    for subject in messages.EVENT_DATA:
        operations[f"send {subject}"] = _operation("send", subject, title=f"Writes {subject} into the Battle Log.")
    queue = [subjects.job_durable(kind, priority) for kind in subjects.JOB_TYPES for priority in subjects.PRIORITIES]
    operations["send job"] = _operation("send", "jobs", title="Puts a job on the queue.")
    operations["receive job"] = _operation("receive", "jobs", title="Takes a job from the queue.", durables=queue)
    operations["send dead"] = _operation("send", "dead", title="Buries what cannot be done.")
    operations["send cancel"] = _operation("send", "cancel", title="Asks the job's owner to stop.")
    operations["receive cancel"] = _operation("receive", "cancel", title="Stops a running job.")
    return operations


def _operation(action: str, channel: str, *, title: str, durables: Iterable[str] = ()) -> JsonObject:
    operation: JsonObject = {"action": action, "channel": {"$ref": f"#/channels/{channel}"}, "title": title}
    # Pull consumers: a queue group, which the NATS binding could name, plays no part.
    return {**operation, "x-jetstream": {"durables": list(durables)}} if durables else operation


def _messages() -> JsonObject:
    deduplicated = {subjects.MESSAGE_ID: "Repeats with the same id are stored once; optional, recommended."}
    buried = {
        subjects.DEAD_SUBJECT: "Subject that the message came from.",
        subjects.DEAD_STREAM: "Stream that the message came from.",
        subjects.DEAD_SEQUENCE: "Its sequence in that stream.",
        subjects.DEAD_CODE: "The error's stable code.",
        subjects.DEAD_REASON: "What was wrong, as one line of ASCII.",
    }
    found = {subject: _message(subject, kind.__name__, deduplicated) for subject, kind in _INCOMING.items()}
    for subject in messages.EVENT_DATA:
        headers = deduplicated
        if subject == subjects.ANALYSIS_PROGRESS:
            headers = {**headers, subjects.MESSAGE_TTL: "How long the server keeps it, in seconds."}
        found[subject] = _message(subject, subject, headers)
    found["job"] = _message("job", messages.Job.__name__, deduplicated)
    found["dead"] = {
        **_message("dead", "AnyBody", {**deduplicated, **buried}),
        "contentType": "application/octet-stream",
    }
    found["cancel"] = _message("cancel", "EmptyBody", {})
    return found


def _message(name: str, schema: str, headers: Mapping[str, str]) -> JsonObject:
    message: JsonObject = {"name": name, "payload": {"$ref": f"#/components/schemas/{schema}"}}
    if headers:
        properties = {header: {"type": "string", "description": meaning} for header, meaning in headers.items()}
        message["headers"] = {"type": "object", "properties": properties}
    if name in EXAMPLES:
        message["examples"] = [{"payload": EXAMPLES[name]}]
    return message


def _schemas() -> JsonObject:
    template = "#/components/schemas/{name}"
    schemas = _components([*_INCOMING.values(), messages.Job], ref_template=template)
    request = messages.AnalysisRequested.__name__
    schemas[request] = _either_form(schemas[request])
    for subject in messages.EVENT_DATA:
        schemas[subject], definitions = _event_schema(subject, ref_template=template)
        schemas |= definitions
    schemas["AnyBody"] = {"description": "The body as it came, whatever it was."}
    schemas["EmptyBody"] = {"description": "No body.", "type": "string", "maxLength": 0}
    return dict(sorted(schemas.items()))


def _event_schema(name: str, *, ref_template: str) -> tuple[JsonObject, JsonObject]:
    """The envelope with its ``type`` fixed and its ``data`` typed, and the definitions that it refers to."""
    data = messages.EVENT_DATA[name]
    definitions = _components([messages.Event, data], ref_template=ref_template)
    envelope = definitions.pop(messages.Event.__name__)
    properties = {
        **envelope["properties"],
        "type": {"const": name},
        "data": {"$ref": ref_template.format(name=data.__name__)},
    }
    description = definitions[data.__name__]["description"]
    return {**envelope, "title": name, "description": description, "properties": properties}, definitions


def _either_form(schema: JsonObject) -> JsonObject:
    """A request as it may be typed: flat, or with its fields under ``payload``."""
    properties = schema["properties"]
    outer = {name: properties[name] for name in ("job_type", "priority")}
    wrapped = {
        "title": "With payload",
        "description": "The same fields under `payload`; those outside it count where both are there.",
        "type": "object",
        "properties": {**outer, "payload": {"type": "object", "properties": properties}},
        "required": ["payload"],
    }
    flat = {**schema, "title": "Flat"}
    return {"title": schema["title"], "description": schema["description"], "anyOf": [flat, wrapped]}


def _components(types: Iterable[type[Struct]], *, ref_template: str) -> JsonObject:
    """Schemas of Structs and of all that they refer to, by class name, with the fields' docstrings."""
    _, components = msgspec.json.schema_components(types, ref_template=ref_template)
    structs = _structs(messages, records, artifacts)
    described = {name: _described(component, structs[name]) for name, component in sorted(components.items())}
    return {name: _portable(component) for name, component in described.items()}


def _portable(node: Any) -> Any:
    """A schema with every pattern in the form that all languages read."""
    if isinstance(node, dict):
        return {
            name: PORTABLE_PATTERNS.get(value, value)
            if name == "pattern" and isinstance(value, str)
            else _portable(value)
            for name, value in node.items()
        }
    return [_portable(value) for value in node] if isinstance(node, list) else node


def _structs(*modules: ModuleType) -> dict[str, type[Struct]]:
    members = (member for module in modules for member in vars(module).values())
    return {kind.__name__: kind for kind in members if isinstance(kind, type) and issubclass(kind, Struct)}


def _described(component: JsonObject, struct: type[Struct]) -> JsonObject:
    """A component with the descriptions that msgspec cannot see, as Markdown."""
    documented = _field_docstrings(struct)
    properties = {}
    for name, schema in component["properties"].items():
        described = {**schema, "description": documented[name]} if name in documented else schema
        # Draft 7, the dialect inside AsyncAPI, ignores everything beside a $ref.
        if "$ref" in described and len(described) > 1:
            described = {"allOf": [{"$ref": described["$ref"]}], **described}
            del described["$ref"]
        properties[name] = described
    description = _markdown(inspect.getdoc(struct) or "")
    return {**component, "description": description, "properties": properties}


def _field_docstrings(struct: type[Struct]) -> dict[str, str]:
    """Docstrings of a Struct's fields, inherited ones included, read from the source."""
    found: dict[str, str] = {}
    for kind in reversed(struct.__mro__):
        if issubclass(kind, Struct) and kind is not Struct:
            found |= _docstrings_in(kind)
    return found


def _docstrings_in(kind: type) -> dict[str, str]:
    # Classes stand at the top level of their modules, so their source parses as it is.
    (definition,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)  # noqa: S101 -- what getsource gives for a class
    found = {}
    for field, after in zip(definition.body, definition.body[1:], strict=False):
        match field, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(docstring))):
                found[name] = _markdown(inspect.cleandoc(docstring))
    return found


def _markdown(docstring: str) -> str:
    return docstring.replace("``", "`")


def _as_bytes(document: JsonObject) -> bytes:
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def main(arguments: list[str]) -> int:
    """Writes the checked-in documents, or with ``--check`` names those that are not up to date."""
    if arguments == ["--check"]:
        if names := outdated(SCHEMAS):
            sys.stderr.write(f"not up to date in {SCHEMAS}: {', '.join(names)}; run `make schemas`\n")
            return 1
        return 0
    write(SCHEMAS)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
