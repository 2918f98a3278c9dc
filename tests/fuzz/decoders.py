"""Everything that reads what others wrote, each with valid inputs to begin from, and one way to be asked.

An answer is the code of an error of ours, or None where the input was taken. Anything else that is raised, and our own
code for a defect, is a crash.
"""

import contextlib
import functools
import gzip
import json
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.artifacts.store import read_artifact, read_layer_drift, read_layer_stats
from archaeologist.bus.log import decoded
from archaeologist.checkpoints.fingerprint import fingerprint
from archaeologist.checkpoints.index import read_index
from archaeologist.checkpoints.steps import TRAINER_STATE, step_of
from archaeologist.daemon.announcements import refused
from archaeologist.daemon.decoding import decode, request_id_of
from archaeologist.errors import ArchaeologistError, InternalError
from archaeologist.probes.sets import load as load_probes
from archaeologist.settings import load as load_settings
from archaeologist.statistics.sketch import SketchHeader, encode_header
from archaeologist.summaries.extract import extract
from archaeologist.summaries.sketches import check, read_sketch
from archaeologist.summaries.skills import read_history
from contracts import subjects
from contracts.messages import Event, EventError, RequestId, encode
from tests.fixtures.artifacts import layer_drift, layer_stats
from tests.fixtures.checkpoints import safetensors_bytes, write_checkpoint
from tests.fuzz import weights

Ask = Callable[[Path, bytes], None]
"""Reads an input, in a folder of its own where it needs one."""

NOW: Final = datetime(2026, 1, 2, tzinfo=UTC)
EXAMPLE_SETTINGS: Final = Path(__file__).parents[2] / "deploy" / "archaeologist.toml"
SHARDED: Final = "model.safetensors.index.json"
DISTRIBUTED: Final = ".metadata"
PARTS: Final = "__0_0.distcp"


class Decoder(NamedTuple):
    """One thing that reads."""

    ask: Ask
    seeds: tuple[bytes, ...]
    prepare: Callable[[Path], object] = lambda _: None
    """Puts into the folder what is read beside the input."""


def answer(ask: Ask, folder: Path, content: bytes) -> str | None:
    """The code with which an input is refused; None where it is taken.

    Raises:
        AssertionError: It was answered as a defect of ours, or with an error without a sentence.
    """
    try:
        ask(folder, content)
    except ArchaeologistError as error:
        refusal = error
    else:
        return None
    assert refusal.code != InternalError.code, str(refusal)
    # Half a surrogate pair could not be published.
    assert str(refusal).encode(), refusal.code
    return refusal.code


def _json(*values: Any) -> tuple[bytes, ...]:
    return tuple(json.dumps(value).encode() for value in values)


# Messages.

WHOSE: Final = {"hero_id": "dio", "campaign_id": "c1", "request_id": "01HXREQUEST"}

MESSAGES: Final[dict[str, tuple[dict[str, Any], ...]]] = {
    subjects.CHECKPOINT_SAVED: (
        {
            **WHOSE,
            "checkpoint_path": "checkpoint-100",
            "checkpoint_step": 100,
            "model_ref": "tiny",
            "metrics": {"eval_loss": 1.9, "more": None},
            "skills": {"BIN": 0.71},
            "level": 3,
            "saved_at": "2026-11-25T00:00:00Z",
        },
    ),
    subjects.SKILL_EVALUATED: (
        {**WHOSE, "checkpoint_step": 100, "skill": "BIN", "score": 0.5, "num_samples": 10, "level": 2},
    ),
    subjects.ANALYSIS_REQUESTED: (
        {
            **WHOSE,
            "job_type": "layer_stats",
            "priority": "high",
            "force": True,
            "checkpoint_path": "checkpoint-100",
            "checkpoint_step": 100,
            "reference": "previous",
            "reference_checkpoint_step": 50,
            "probe_dataset": "default",
            "max_probe_tokens": 64,
            "compute_activations": True,
            "analyses": ["spectra"],
            "output_path": "out",
        },
        {
            "job_type": "layer_drift",
            "priority": "low",
            "payload": {
                **WHOSE,
                "base_checkpoint_path": "checkpoint-50",
                "target_checkpoint_step": 100,
                "metrics": ["l2", "cosine"],
            },
        },
    ),
}


def _message(subject: str) -> Ask:
    def ask(_: Path, body: bytes) -> None:
        request_id = request_id_of(body) or RequestId("made")
        try:
            decode(subject, body)
        except ArchaeologistError as error:
            # What intake says of it must be readable by whoever follows the Battle Log.
            reason = EventError(code=error.code, message=str(error))
            event = refused(reason, request_id=request_id, body=body, now=NOW)
            assert msgspec.json.decode(encode(event), type=Event).type == event.type
            raise

    return ask


def _event(_: Path, body: bytes) -> None:
    event = decoded(subjects.ANALYSIS_FAILED, body)
    assert event is None or event.id is not None


# Files.


def _in_file(name: str, read: Callable[[Path], object], *, of_folder: bool = False) -> Ask:
    """Asks with the input as a file of this name."""

    def ask(folder: Path, content: bytes) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        read(folder if of_folder else path)

    return ask


def _checkpoint(folder: Path) -> None:
    fingerprint(read_index(folder))


def _header(_: Path, content: bytes) -> None:
    """A weight file in memory, so that many can be tried."""
    from archaeologist.checkpoints.header import read_header  # noqa: PLC0415 -- beside what it is for

    with _in_memory(content) as descriptor:
        read_header(descriptor, file="memory", size=len(content))


@contextlib.contextmanager
def _in_memory(content: bytes) -> Iterator[int]:
    descriptor = os.memfd_create("weights")
    try:
        os.write(descriptor, content)
        yield descriptor
    finally:
        os.close(descriptor)


HEADER: Final = {
    "__metadata__": {"format": "pt"},
    "a.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    "b": {"dtype": "BF16", "shape": [3], "data_offsets": [16, 22]},
    "c": {"dtype": "U8", "shape": [], "data_offsets": [22, 23]},
}


def _parsed(_: Path, raw: bytes) -> None:
    _header(_, safetensors_bytes(raw, bytes(23)))


def _sketch_bytes() -> bytes:
    start = encode_header(SketchHeader(fingerprint="0" * 32, step=100), [("a.weight", 4), ("b", 2)])
    return start + np.arange(6, dtype="<f8").tobytes()


def _read_sketch(path: Path) -> None:
    check(path, fingerprint="0" * 32)
    read_sketch(path)


def _sketch_header(folder: Path, raw: bytes) -> None:
    content = len(raw).to_bytes(8, "little") + raw + bytes(48)
    (folder / "sketch").write_bytes(content)
    _read_sketch(folder / "sketch")


def _torch_file(_: Path, content: bytes) -> None:
    from archaeologist.checkpoints.torch_file import read_torch_header  # noqa: PLC0415 -- beside what it is for

    with _in_memory(content) as descriptor:
        header = read_torch_header(descriptor, file="memory", size=len(content))
    assert all(0 <= tensor.offset <= len(content) - tensor.size for tensor in header.tensors)


def _torch_pickle(folder: Path, pickled: bytes) -> None:
    _torch_file(folder, weights.with_pickle(pickled))


def _legacy_pickle(folder: Path, pickled: bytes) -> None:
    before, _, behind = weights.legacy_parts()
    _torch_file(folder, before + pickled + behind)


def _weights() -> dict[str, Decoder]:
    """Those whose weights are pickles' or an adapter's."""
    files = tuple(weights.torch_file(is_zip=is_zip) for is_zip in (True, False))
    metadata, parts = (weights.distributed_file(name) for name in (DISTRIBUTED, PARTS))
    in_file = functools.partial(_in_file, read=weights.read_values, of_folder=True)
    return {
        "torch.save file": Decoder(_torch_file, files),
        "torch.save pickle": Decoder(_torch_pickle, (weights.pickle_of_zip(),)),
        "torch.save pickle before 1.6": Decoder(_legacy_pickle, (weights.legacy_parts()[1],)),
        "distributed metadata": Decoder(in_file(DISTRIBUTED), (metadata,), weights.save_distributed),
        "distributed parts": Decoder(in_file(PARTS), (parts,), weights.save_distributed),
        "adapter_config.json": Decoder(in_file("adapter_config.json"), _json(weights.ADAPTER), weights.save_adapter),
        "adapter's tensors": Decoder(_adapter_tensors, (weights.factors_header(),), weights.save_adapter),
    }


def _adapter_tensors(folder: Path, raw: bytes) -> None:
    (folder / "adapter_model.safetensors").write_bytes(safetensors_bytes(raw, bytes(weights.FACTORS_BYTES)))
    weights.read_values(folder)


def _campaign(folder: Path) -> CampaignFolder:
    return CampaignFolder.of(folder, "dio", "c1")


def _summarized(path: Path) -> None:
    extract(read_layer_stats(path))


def _archived(folder: Path, content: bytes) -> None:
    (folder / "a.json.gz").write_bytes(content)
    read_artifact(folder / "a.json")


SKILLS: Final = {
    "version": 1,
    "hero_id": "dio",
    "campaign_id": "c1",
    "skills": {"BIN": [{"step": 100, "score": 0.5, "num_samples": 10}, {"step": 200, "score": 0.75}]},
}
PROBES: Final = b'{"prompt": "What is 2 + 2?", "skill": "MATH"}\n\n{"text": "A sentence."}\n{"instruction": "Do."}\n'
CONFIG: Final = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "tie_word_embeddings": True,
    "text_config": {"tie_word_embeddings": False},
}
WEIGHT_MAP: Final = {
    "metadata": {"total_size": 10},
    "weight_map": {
        "model.norm.weight": "model-00001-of-00002.safetensors",
        "model.embed_tokens.weight": "model-00002-of-00002.safetensors",
    },
}


def _shards(folder: Path) -> None:
    write_checkpoint(folder, shards=2)


def _whole(folder: Path) -> None:
    write_checkpoint(folder)


def _event_seed() -> bytes:
    reason = EventError(code="message_invalid", message="wrong")
    return encode(refused(reason, request_id=RequestId("r"), body=b'{"a": [1, {"b": 2}]}', now=NOW))


def decoders() -> dict[str, Decoder]:
    """All of them by name."""
    stats, drift = (msgspec.json.encode(one) for one in (layer_stats(), layer_drift()))
    return {
        **{f"message {subject}": Decoder(_message(subject), _json(*MESSAGES[subject])) for subject in MESSAGES},
        "event of the Battle Log": Decoder(_event, (_event_seed(),)),
        "safetensors file": Decoder(_header, (safetensors_bytes(HEADER, bytes(23)),)),
        "safetensors header": Decoder(_parsed, _json(HEADER)),
        "sharded index": Decoder(_in_file(SHARDED, _checkpoint, of_folder=True), _json(WEIGHT_MAP), _shards),
        "config.json": Decoder(_in_file("config.json", _checkpoint, of_folder=True), _json(CONFIG), _whole),
        "trainer_state.json": Decoder(
            _in_file(TRAINER_STATE, step_of, of_folder=True),
            _json({"global_step": 100, "log_history": [{"loss": 1.5}]}),
        ),
        "probe set": Decoder(
            _in_file("mine.jsonl", lambda path: load_probes("mine", folder=path.parent)), (PROBES, *PROBES.splitlines())
        ),
        "sketch file": Decoder(_in_file("sketch", _read_sketch), (_sketch_bytes(),)),
        "sketch header": Decoder(_sketch_header, (_sketch_bytes()[8:-48],)),
        "layer_stats artifact": Decoder(_in_file("a.json", _summarized), (stats,)),
        "layer_drift artifact": Decoder(_in_file("a.json", read_layer_drift), (drift,)),
        "archived artifact": Decoder(_archived, tuple(gzip.compress(one, mtime=0) for one in (stats, drift))),
        "skills.json": Decoder(
            _in_file("campaigns/dio/c1/analysis/skills.json", lambda path: read_history(_campaign(path.parents[4]))),
            _json(SKILLS),
        ),
        "settings": Decoder(
            _in_file("settings.toml", lambda path: load_settings(config=path, environ={})),
            (EXAMPLE_SETTINGS.read_bytes(),),
        ),
        **_weights(),
    }
