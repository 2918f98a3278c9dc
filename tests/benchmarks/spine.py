"""Times the child against the specification's approach, side by side, and takes the child's memory.

``python -m tests.benchmarks.spine [--layers 28] [--rounds 3] [--folder DIR] [--only-ours]``. Makes a bfloat16
checkpoint of random weights in the shape of Qwen3-0.6B, one that has drifted from it, and the same four times as
large; times both approaches in turn in fresh processes; deletes what it made. Nothing is asserted.

Three ratios: of the work as each is written, after the libraries' import (the specification's first call loads the
model's class, ours finds the compiled code loaded); of the work alone, with the model's class taken out; and of the
processes from their start to their end.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace

from archaeologist.artifacts.store import read_layer_stats
from archaeologist.job import NICENESS
from contracts.messages import (
    ChildLine,
    Excavation,
    JobOptions,
    Succeeded,
)
from tests.fixtures.jobs import layer_stats_job, side


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """A Qwen3 with tied embeddings."""

    layers: int
    hidden: int
    heads: int
    intermediate: int
    key_value_heads: int = 8
    head_size: int = 128
    vocabulary: int = 151_936


SMALL = Shape(layers=28, hidden=1024, heads=16, intermediate=3072)
"""Qwen3-0.6B."""
LARGE = Shape(layers=36, hidden=2560, heads=32, intermediate=9728)
"""Qwen3-4B."""

# The specification's approach (its sections 5.3 and 5.4): the whole model, a norm and a cosine for each parameter.
SPECIFICATION = """
import json, sys, time
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
target, reference = sys.argv[1:]
started = time.perf_counter()
from transformers import Qwen3ForCausalLM
loaded = time.perf_counter()
model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.bfloat16)
model.eval()
norms = {name: parameter.data.norm(2).item() for name, parameter in model.named_parameters()}
state = load_file(reference + "/model.safetensors", device="cpu")
distances, cosines = {}, {}
for name, parameter in model.named_parameters():
    if name not in state:
        continue
    distances[name] = (parameter.data - state[name]).norm(2).item()
    mine, theirs = parameter.data.flatten().unsqueeze(0), state[name].flatten().unsqueeze(0)
    cosines[name] = torch.nn.functional.cosine_similarity(mine, theirs).item()
ended = time.perf_counter()
print(json.dumps({"written": ended - started, "work": ended - loaded, "tensors": len(distances)}))
"""


def shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """The parameters."""
    queries, keys = shape.heads * shape.head_size, shape.key_value_heads * shape.head_size
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (shape.vocabulary, shape.hidden),
        "model.norm.weight": (shape.hidden,),
    }
    for layer in range(shape.layers):
        found |= {
            f"model.layers.{layer}.{name}.weight": size
            for name, size in {
                "input_layernorm": (shape.hidden,),
                "self_attn.q_proj": (queries, shape.hidden),
                "self_attn.k_proj": (keys, shape.hidden),
                "self_attn.v_proj": (keys, shape.hidden),
                "self_attn.o_proj": (shape.hidden, queries),
                "self_attn.q_norm": (shape.head_size,),
                "self_attn.k_norm": (shape.head_size,),
                "post_attention_layernorm": (shape.hidden,),
                "mlp.gate_proj": (shape.intermediate, shape.hidden),
                "mlp.up_proj": (shape.intermediate, shape.hidden),
                "mlp.down_proj": (shape.hidden, shape.intermediate),
            }.items()
        }
    return found


def values(count: int, *, seed: int, moved: float) -> Iterator[bytes]:
    """Normal weights as bfloat16, a million at a time; ``moved``: how far from those of the same seed."""
    weights, steps = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    for start in range(0, count, 1 << 20):
        size = min(1 << 20, count - start)
        chunk = weights.standard_normal(size, np.float32)
        if moved:
            chunk += steps.standard_normal(size, np.float32) * np.float32(moved)
        yield ((chunk * np.float32(0.02)).view(np.uint32) >> 16).astype(np.uint16).tobytes()


def make(folder: Path, shape: Shape, *, moved: float) -> Path:
    """A checkpoint of random weights in one safetensors file."""
    folder.mkdir(parents=True)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, size in shapes(shape).items():
        start, end = end, end + 2 * int(np.prod(size))
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [start, end]}
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        for seed, size in enumerate(shapes(shape).values()):
            file.writelines(values(int(np.prod(size)), seed=2 * seed, moved=moved))
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_value_heads,
        "head_dim": shape.head_size,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


class Sampler(threading.Thread):
    """Follows a process's anonymous memory, and all that is resident, mapped files included."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._status = Path(f"/proc/{pid}/status")
        self.peak_mb = 0.0
        self.resident_mb = 0.0

    def run(self) -> None:
        try:
            while True:
                for line in self._status.read_text().splitlines():
                    if line.startswith("RssAnon:"):
                        self.peak_mb = max(self.peak_mb, int(line.split()[1]) / 1024)
                    elif line.startswith("VmRSS:"):
                        self.resident_mb = max(self.resident_mb, int(line.split()[1]) / 1024)
                time.sleep(0.005)
        except OSError:
            return  # the process has ended


def ours(asked: Excavation, folder: Path) -> dict[str, float]:
    """One run of the child: its own duration, the time from its start to its first line, its peak memory."""
    request = msgspec.json.encode(asked) + b"\n"
    reading, writing = os.pipe()
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "archaeologist.job", "--lines-fd", str(writing)],
        stdin=subprocess.PIPE,
        pass_fds=(writing,),
        env={**os.environ, "NUMBA_CACHE_DIR": str(folder / "numba")},
    )
    os.close(writing)
    sampler = Sampler(process.pid)
    sampler.start()
    assert process.stdin is not None
    process.stdin.write(request)
    process.stdin.flush()
    with os.fdopen(reading, "rb") as lines:
        first = lines.readline()
        first_line_seconds = time.perf_counter() - started
        last = first
        for line in lines:
            last = line
    process.wait()
    process_seconds = time.perf_counter() - started
    process.stdin.close()
    sampler.join()
    outcome = msgspec.json.decode(last, type=ChildLine)
    if not isinstance(outcome, Succeeded):
        raise SystemExit(str(outcome))
    artifact = read_layer_stats(folder / "artifact.tmp")
    return {
        "load": artifact.timings["load"],
        "work": artifact.compute_duration_sec - artifact.timings["load"],
        "process": process_seconds,
        "first_line": first_line_seconds,
        "peak_mb": sampler.peak_mb,
        "resident_mb": sampler.resident_mb,
    }


def theirs(target: Path, reference: Path) -> dict[str, float]:
    """One run of the specification's approach: its own duration and the process's."""
    # As nice as the child makes itself: on a machine that others use, priority would decide the comparison.
    command = [
        "nice",
        "-n",
        str(NICENESS),
        sys.executable,
        "-W",
        "ignore",
        "-c",
        SPECIFICATION,
        str(target),
        str(reference),
    ]
    started = time.perf_counter()
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    process_seconds = time.perf_counter() - started
    found = msgspec.json.decode(output.splitlines()[-1], type=dict[str, float])
    return found | {"process": process_seconds}


def excavation(target: Path, reference: Path, folder: Path) -> Excavation:
    """What the child is asked for: everything that there is, the sketch included."""
    options = JobOptions(compute_activations=False)
    job = layer_stats_job(side(target, 1), side(reference, 0), options=options)
    return Excavation(job=job, artifact_path=str(folder / "artifact.tmp"), sketch_path=str(folder / "sketch.tmp"))


def measure(folder: Path, shape: Shape, *, rounds: int, has_theirs: bool) -> None:
    """Makes a pair, times both approaches in turn, prints the figures."""
    base = make(folder / "base", shape, moved=0)
    target = make(folder / "target", shape, moved=0.05)
    gigabytes = 2 * (base / "model.safetensors").stat().st_size / 1e9
    asked = excavation(target, base, folder)
    ours(asked, folder)  # compiles where it must, and fills the page cache for both
    runs, other = [], []
    for _ in range(rounds):
        runs.append(ours(asked, folder))
        if has_theirs:
            other.append(theirs(target, base))
    mine = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    print(  # noqa: T201 - what it is for
        f"{shape.layers} layers, {gigabytes:.2f} GB in both: work {mine['work']:.3f} s"
        f" ({gigabytes / mine['work']:.1f} GB/s),"
        f" loading the compiled code {mine['load']:.2f} s, process {mine['process']:.2f} s (first line after"
        f" {mine['first_line']:.2f} s), peak {max(run['peak_mb'] for run in runs):.0f} MB anonymous",
    )
    if other:
        slow = {name: statistics.median(run[name] for run in other) for name in other[0]}
        print(  # noqa: T201
            f"  the specification's approach: {slow['written']:.3f} s as written, {slow['work']:.3f} s without loading"
            f" the model's class, process {slow['process']:.2f} s; ratios {slow['written'] / mine['work']:.1f},"
            f" {slow['work'] / mine['work']:.1f}, {slow['process'] / mine['process']:.1f}"
        )
    shutil.rmtree(base)
    shutil.rmtree(target)


def main() -> None:
    parser = argparse.ArgumentParser(description="Times the child against the specification's approach.")
    parser.add_argument("--layers", type=int, default=SMALL.layers)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the checkpoints are made; by default a temporary folder")
    parser.add_argument("--only-ours", action="store_true")
    parser.add_argument("--only-small", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for times in (1,) if arguments.only_small else (1, 4):
            measure(
                Path(folder),
                replace(SMALL, layers=arguments.layers * times, vocabulary=SMALL.vocabulary * times),
                rounds=arguments.rounds,
                has_theirs=times == 1 and not arguments.only_ours,
            )


if __name__ == "__main__":
    main()
