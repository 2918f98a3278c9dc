"""The child as its parent sees it: a line of JSON in, lines of JSON and an artifact out."""

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pytest
import torch
from msgspec.structs import replace
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from archaeologist.artifacts.store import read_layer_drift, read_layer_stats
from archaeologist.statistics.sketch import decode_sketch, distance
from contracts.artifacts import LayerStats
from contracts.messages import (
    CampaignId,
    ChildLine,
    DriftMetric,
    Excavation,
    Failed,
    JobOptions,
    Progress,
    RequestId,
    Side,
    Succeeded,
)
from tests.fixtures.jobs import layer_stats_job, side

EXACT = 1e-9

FORKING = """
import subprocess, sys
command = [sys.executable, "-m", "archaeologist.job", "--lines-fd", sys.argv[1]]
child = subprocess.Popen(command, pass_fds=(int(sys.argv[1]),))
print(child.pid, flush=True)
child.wait()
"""
"""A parent whose child has the parent's own standard input."""


class Child:
    """A started child."""

    def __init__(self) -> None:
        reading, writing = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "archaeologist.job", "--lines-fd", str(writing)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(writing,),
        )
        os.close(writing)
        self.lines = os.fdopen(reading, "rb")

    def send(self, content: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(content)
        self.process.stdin.flush()

    def finish(self) -> tuple[int, list[ChildLine], str]:
        """Exit code, every line, standard error."""
        said = [msgspec.json.decode(line, type=ChildLine) for line in self.lines]
        code = self.process.wait(timeout=60)
        assert self.process.stderr is not None
        return code, said, self.process.stderr.read().decode()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.lines.close()
        for stream in (self.process.stdin, self.process.stderr):
            if stream is not None:
                stream.close()


@pytest.fixture
def start(kernels: Path) -> Iterator[Callable[[], Child]]:
    children: list[Child] = []

    def started() -> Child:
        children.append(Child())
        return children[-1]

    yield started
    for child in children:
        child.close()


@pytest.fixture
def run(start: Callable[[], Child]) -> Callable[[Excavation], tuple[int, list[ChildLine], str]]:
    def ran(excavation: Excavation) -> tuple[int, list[ChildLine], str]:
        child = start()
        child.send(msgspec.json.encode(excavation) + b"\n")
        return child.finish()

    return ran


def excavation(
    folder: Path,
    target: Side,
    reference: Side | None = None,
    *,
    job_type: Literal["layer_stats", "layer_drift"] = "layer_stats",
    options: JobOptions | None = None,
    reference_is_explicit: bool = False,
) -> Excavation:
    return Excavation(
        job=layer_stats_job(
            target,
            reference,
            job_id=RequestId("asked"),
            job_type=job_type,
            campaign_id=CampaignId("one"),
            reference_is_explicit=reference_is_explicit,
            options=options or JobOptions(),
            notes=("a note",),
        ),
        artifact_path=str(folder / "artifact.tmp"),
        sketch_path=str(folder / "sketches" / "sketch.tmp") if job_type == "layer_stats" else None,
        worker="here",
    )


def outcome(said: list[ChildLine]) -> Succeeded:
    assert isinstance(said[-1], Succeeded), said[-1]
    return said[-1]


def failure(said: list[ChildLine]) -> Failed:
    assert isinstance(said[-1], Failed), said[-1]
    return said[-1]


def qwen3(seed: int, dtype: torch.dtype) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=False,
    )
    model: PreTrainedModel = Qwen3ForCausalLM(config)
    model.to(dtype)  # type: ignore[arg-type]  # decorated without types
    return model


def gpt2(seed: int, dtype: torch.dtype) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_positions=40, n_embd=48, n_layer=2, n_head=4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    model.to(dtype)  # type: ignore[arg-type]  # decorated without types
    return model


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a saved model in float64."""
    return {
        name: tensor.double() for file in folder.glob("*.safetensors") for name, tensor in load_torch(str(file)).items()
    }


def flat(artifact: LayerStats, kind: str) -> dict[str, Any]:
    """Tensors by full name."""
    blocks = getattr(artifact, kind)
    return {
        within if within.startswith(name) else f"{name}.{within}": tensor
        for name, block in blocks.items()
        for within, tensor in block.tensors.items()
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "float32"])
@pytest.mark.parametrize("build", [qwen3, gpt2])
def test_statistics_of_a_saved_model_equal_float64_torch(
    tmp_path: Path,
    run: Callable[..., tuple[int, list[ChildLine], str]],
    build: Callable[[int, torch.dtype], PreTrainedModel],
    dtype: torch.dtype,
) -> None:
    target, reference = tmp_path / "checkpoint-20", tmp_path / "checkpoint-10"
    build(1, dtype).save_pretrained(target, max_shard_size="100KB")
    build(2, dtype).save_pretrained(reference)
    code, said, _ = run(excavation(tmp_path, side(target, 20), side(reference, 10)))
    assert code == 0
    artifact = read_layer_stats(tmp_path / "artifact.tmp")
    ours, theirs = stored(target), stored(reference)
    weights, drift = flat(artifact, "weight_stats"), flat(artifact, "drift_stats")
    assert weights.keys() == ours.keys() == drift.keys()
    for name, x in ours.items():
        y, found, moved = theirs[name], weights[name], drift[name]
        assert found.l2 == pytest.approx(x.norm().item(), rel=EXACT)
        assert found.mean == pytest.approx(x.mean().item(), rel=EXACT, abs=EXACT)
        assert found.std == pytest.approx(x.std(correction=0).item(), rel=EXACT, abs=1e-15)
        assert (found.min, found.max) == (x.min().item(), x.max().item())
        assert moved.l2 == pytest.approx((x - y).norm().item(), rel=EXACT)
        cosine = torch.nn.functional.cosine_similarity(x.flatten(), y.flatten(), dim=0).item()
        assert moved.cosine == pytest.approx(cosine, abs=EXACT)
        if dtype == torch.bfloat16:
            assert found.percentile_95 == np.percentile(x.numpy(), 95)
    whole, before = (torch.cat([tensor.flatten() for tensor in side.values()]) for side in (ours, theirs))
    assert artifact.global_weight_stats.l2 == pytest.approx(whole.norm().item(), rel=EXACT)
    assert artifact.global_weight_stats.param_count == whole.numel()
    assert artifact.global_drift_stats is not None
    difference = torch.cat([(ours[name] - theirs[name]).flatten() for name in ours]).norm().item()
    assert artifact.global_drift_stats.l2 == pytest.approx(difference, rel=EXACT)
    assert artifact.global_drift_stats.relative_l2 == pytest.approx(difference / before.norm().item(), rel=EXACT)
    by_total = {name: block.total_l2 for name, block in artifact.drift_stats.items()}
    assert artifact.global_drift_stats.most_changed_layer == max(by_total, key=lambda name: by_total[name] or 0)
    assert outcome(said).most_changed_layer == artifact.global_drift_stats.most_changed_layer
    assert artifact.coverage.bytes_read == artifact.coverage.bytes_listed
    assert artifact.coverage.tensors_read == len(ours)


def test_an_artifact_says_what_it_is_of_and_what_it_lacks(
    tmp_path: Path, run: Callable[..., tuple[int, list[ChildLine], str]]
) -> None:
    model = gpt2(1, torch.bfloat16)
    model.save_pretrained(tmp_path / "checkpoint-20")
    code, said, _ = run(excavation(tmp_path, side(tmp_path / "checkpoint-20", 20)))
    content = (tmp_path / "artifact.tmp").read_bytes()
    artifact = read_layer_stats(tmp_path / "artifact.tmp")
    assert code == 0
    assert outcome(said).artifact_sha256 == hashlib.sha256(content).hexdigest()
    assert outcome(said).findings
    assert isinstance(said[0], Progress)
    assert (artifact.checkpoint_step, artifact.worker, artifact.architecture) == (20, "here", "GPT2LMHeadModel")
    assert set(artifact.weight_stats) == {
        "transformer.wte",
        "transformer.wpe",
        "transformer.h.0",
        "transformer.h.1",
        "transformer.ln_f",
    }
    assert "attn.c_attn.bias" in artifact.weight_stats["transformer.h.0"].bias_norms
    assert "attn.c_attn.weight" in artifact.weight_stats["transformer.h.0"].weight_norms
    assert set(artifact.not_computed) == {"activations"}
    assert artifact.warnings[0] == "a note"
    assert artifact.drift_stats == {}
    assert artifact.global_drift_stats is None


def test_a_sketch_file_is_safetensors_and_gives_the_distance_between_checkpoints(
    tmp_path: Path, run: Callable[..., tuple[int, list[ChildLine], str]]
) -> None:
    sketches, artifacts = [], []
    found: tuple[str, ...] = ()
    reference = tmp_path / "checkpoint-1"
    qwen3(1, torch.float32).save_pretrained(reference)
    for step in (1, 2):
        folder = tmp_path / f"checkpoint-{step}"
        qwen3(step, torch.float32).save_pretrained(folder)
        code, said, _ = run(excavation(tmp_path / str(step), side(folder, step), side(reference, 1)))
        assert code == 0
        assert outcome(said).has_sketch
        found = outcome(said).findings
        path = tmp_path / str(step) / "sketches" / "sketch.tmp"
        sketches.append(decode_sketch(path.read_bytes()))
        artifacts.append(read_layer_stats(tmp_path / str(step) / "artifact.tmp"))
        for name, values in load_file(str(path)).items():
            assert np.array_equal(values, sketches[-1].tensors[name])
    assert sketches[1].header.step == 2
    assert sketches[1].header.fingerprint == artifacts[1].fingerprint
    assert artifacts[1].global_drift_stats is not None
    assert distance(sketches[1], sketches[0]) == pytest.approx(artifacts[1].global_drift_stats.l2, rel=0.05)
    assert "the median" in found[1]


@pytest.mark.parametrize("metrics", [("l2",), ("cosine",), ("frobenius", "cosine")], ids=str)
def test_layer_drift_has_what_was_asked_for_and_nulls_elsewhere(
    tmp_path: Path, run: Callable[..., tuple[int, list[ChildLine], str]], metrics: tuple[DriftMetric, ...]
) -> None:
    for step in (1, 2):
        qwen3(step, torch.bfloat16).save_pretrained(tmp_path / str(step))
    asked = excavation(
        tmp_path,
        side(tmp_path / "2", 2),
        side(tmp_path / "1", 1),
        job_type="layer_drift",
        options=JobOptions(metrics=metrics),
    )
    code, _, _ = run(asked)
    artifact = read_layer_drift(tmp_path / "artifact.tmp")
    assert code == 0
    ours, theirs = stored(tmp_path / "2"), stored(tmp_path / "1")
    block = artifact.layer_drift["model.layers.0"]
    stats = artifact.drift_stats["model.layers.0"]
    name = "model.layers.0.mlp.up_proj.weight"
    if metrics == ("cosine",):
        assert (block.params, stats.weight_l2, stats.l2, artifact.avg_drift_l2) == ({}, {}, None, None)
        assert artifact.most_changed_layer is None
    else:
        assert block.params[name] == pytest.approx((ours[name] - theirs[name]).norm().item(), rel=EXACT)
        assert block.l2_total == pytest.approx(sum(value or 0 for value in block.params.values()))
        assert artifact.most_changed_layer in artifact.drift_stats
    assert bool(stats.weight_cosine) == ("cosine" in metrics)
    assert (stats.cosine is not None) == ("cosine" in metrics)
    assert stats.changed_fraction is not None
    assert (artifact.base_checkpoint_step, artifact.target_checkpoint_step) == (1, 2)


def _with_head(folder: Path, *, is_equal: bool) -> Path:
    model = gpt2(1, torch.bfloat16)
    model.save_pretrained(folder)
    tensors = load_torch(str(folder / "model.safetensors"))
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    if not is_equal:
        tensors["lm_head.weight"][-1, -1] += 1
    save_file(tensors, str(folder / "model.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    return folder


def test_a_tied_head_is_counted_once_and_a_diverged_one_is_flagged(
    tmp_path: Path, run: Callable[..., tuple[int, list[ChildLine], str]]
) -> None:
    tied, untied = _with_head(tmp_path / "tied", is_equal=True), _with_head(tmp_path / "untied", is_equal=False)
    run(excavation(tmp_path / "a", side(tied, 1)))
    run(excavation(tmp_path / "b", side(untied, 1)))
    once, twice = (read_layer_stats(tmp_path / name / "artifact.tmp") for name in "ab")
    assert once.coverage.tied == {"lm_head.weight": "transformer.wte.weight"}
    assert "lm_head" not in once.weight_stats
    assert twice.coverage.untied == ("lm_head.weight",)
    assert "lm_head" in twice.weight_stats
    assert any("tied" in warning for warning in twice.warnings)
    assert twice.global_weight_stats.param_count == once.global_weight_stats.param_count + 300 * 48


@pytest.mark.parametrize("is_explicit", [True, False])
def test_a_reference_that_changed_fails_the_job_only_when_it_was_named(
    tmp_path: Path, run: Callable[..., tuple[int, list[ChildLine], str]], *, is_explicit: bool
) -> None:
    for step in (1, 2):
        qwen3(step, torch.bfloat16).save_pretrained(tmp_path / str(step))
    reference = msgspec.structs.replace(side(tmp_path / "1", 1), fingerprint="0" * 32)
    code, said, _ = run(excavation(tmp_path, side(tmp_path / "2", 2), reference, reference_is_explicit=is_explicit))
    if is_explicit:
        assert code == 1
        assert failure(said).error.code == "checkpoint_changed"
        return
    assert code == 0
    artifact = read_layer_stats(tmp_path / "artifact.tmp")
    assert artifact.reference_checkpoint_path is None
    assert any("left out" in warning for warning in artifact.warnings)
    assert not outcome(said).has_drift


def test_checkpoints_of_two_models_have_nothing_to_compare(
    tmp_path: Path, run: Callable[..., tuple[int, list[ChildLine], str]]
) -> None:
    qwen3(1, torch.bfloat16).save_pretrained(tmp_path / "1")
    gpt2(1, torch.bfloat16).save_pretrained(tmp_path / "2")
    code, said, _ = run(excavation(tmp_path, side(tmp_path / "2", 2), side(tmp_path / "1", 1), job_type="layer_drift"))
    assert code == 1
    assert failure(said).error.code == "nothing_comparable"


def test_nan_becomes_a_count_a_null_and_a_warning(
    tmp_path: Path, run: Callable[..., tuple[int, list[ChildLine], str]]
) -> None:
    model = qwen3(1, torch.bfloat16)
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    model.save_pretrained(tmp_path / "1")
    code, said, _ = run(excavation(tmp_path, side(tmp_path / "1", 1)))
    artifact = read_layer_stats(tmp_path / "artifact.tmp")
    assert code == 0
    assert artifact.weight_stats["model.norm"].nan_count == 64
    assert artifact.weight_stats["model.norm"].l2 is None
    assert any("NaN" in warning for warning in outcome(said).warnings)


def test_an_artifact_that_cannot_be_written_fails_the_job_with_a_code(
    tmp_path: Path, run: Callable[..., tuple[int, list[ChildLine], str]]
) -> None:
    qwen3(1, torch.bfloat16).save_pretrained(tmp_path / "1")
    (tmp_path / "file").write_text("no folder")
    code, said, _ = run(excavation(tmp_path / "file", side(tmp_path / "1", 1)))
    assert code == 1
    assert failure(said).error.code == "artifact_unwritable"


@pytest.mark.parametrize(("threads", "tokens"), [(-1, 1), (0, 0)])
def test_a_number_below_its_limit_is_refused_instead_of_run(
    tmp_path: Path, run: Callable[..., tuple[int, list[ChildLine], str]], threads: int, tokens: int
) -> None:
    nowhere = Side(path="/c/checkpoint-1", step=1, read_path="/c/checkpoint-1", fingerprint="f")
    asked = excavation(tmp_path, nowhere, options=JobOptions(max_probe_tokens=tokens))
    code, said, _ = run(replace(asked, threads=threads))
    assert (code, failure(said).error.code) == (1, "message_malformed")


@pytest.mark.parametrize("line", [b"\n", b"{\n", b'{"job": 1}\n', b"\xff\n"])
def test_a_line_that_is_no_excavation_is_refused_with_a_code(start: Callable[[], Child], line: bytes) -> None:
    child = start()
    child.send(line)
    code, said, errors = child.finish()
    assert code == 1
    assert failure(said).error.code == "message_malformed"
    assert "Traceback" not in errors


SHORT = "ImportError('mtrand.so: failed to map segment from shared object')"


@pytest.mark.parametrize(
    ("limit", "raised", "expected"),
    [
        (4 << 30, "SystemError('error return without exception set')", "memory_capped"),
        (-1, "SystemError('error return without exception set')", "internal_error"),
        (-1, "OSError(12, 'Cannot allocate memory')", "memory_capped"),
        (-1, "OSError(5, 'Input/output error')", "internal_error"),
        (-1, f"ImportError('Numba could not be imported') from {SHORT}", "memory_capped"),
        (-1, 'RuntimeError("can\'t start new thread")', "memory_capped"),
        (-1, "ValueError('a defect')", "internal_error"),
    ],
)
def test_what_is_raised_for_want_of_memory_has_that_code(limit: int, raised: str, expected: str) -> None:
    # When an import gets no memory cannot be brought about at will.
    program = (
        "import resource, sys; from archaeologist import job\n"
        f"resource.setrlimit(resource.RLIMIT_DATA, ({limit}, {limit}))\n"
        f"def fail(): raise {raised}\n"
        "job._read_excavation = fail\n"
        "sys.exit(job.main())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, "--lines-fd", "1"], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    assert ended.returncode == 1
    assert msgspec.json.decode(ended.stdout)["error"]["code"] == expected


def test_a_child_leaves_when_its_parent_is_gone(tmp_path: Path, start: Callable[[], Child]) -> None:
    qwen3(1, torch.bfloat16).save_pretrained(tmp_path / "1")
    child = start()
    # A pipe instead of the artifact: the child waits there until somebody reads, and nobody does.
    os.mkfifo(tmp_path / "artifact.tmp")
    asked = excavation(tmp_path, side(tmp_path / "1", 1))
    child.send(msgspec.json.encode(asked) + b"\n")
    assert b'"progress"' in child.lines.readline()
    assert child.process.stdin is not None
    child.process.stdin.close()
    assert child.process.wait(timeout=30) != 0


def test_a_frozen_child_dies_with_its_parent(tmp_path: Path, kernels: Path) -> None:
    qwen3(1, torch.bfloat16).save_pretrained(tmp_path / "1")
    os.mkfifo(tmp_path / "artifact.tmp")
    reading, writing = os.pipe()
    command = [sys.executable, "-c", FORKING, str(writing)]
    with (
        os.fdopen(reading, "rb") as lines,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(writing,)) as parent,
    ):
        os.close(writing)
        assert parent.stdin is not None
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.stdin.write(msgspec.json.encode(excavation(tmp_path, side(tmp_path / "1", 1))) + b"\n")
        parent.stdin.flush()
        assert b'"progress"' in lines.readline()
        os.kill(child, signal.SIGSTOP)
        parent.kill()
        # Its standard input stays open, and a frozen process would not look at it. The end of its lines is its own.
        assert b'"succeeded"' not in lines.read()


def test_sigterm_ends_a_child_at_once(tmp_path: Path, start: Callable[[], Child]) -> None:
    qwen3(1, torch.bfloat16).save_pretrained(tmp_path / "1")
    child = start()
    asked = excavation(tmp_path, side(tmp_path / "1", 1))
    os.mkfifo(tmp_path / "artifact.tmp")
    child.send(msgspec.json.encode(asked) + b"\n")
    assert b'"progress"' in child.lines.readline()
    child.process.send_signal(signal.SIGTERM)
    assert child.process.wait(timeout=30) == 128 + signal.SIGTERM
