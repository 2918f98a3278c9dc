"""The child process of a fault campaign: does a job as its request's ``fate`` says, in a few milliseconds where it can.

``python -S tests/faults/child.py --lines-fd N`` speaks as ``archaeologist.job`` does and imports the standard library
alone, so that a campaign of thousands is one of the daemon and not of starting interpreters. What a fate of ``REAL``
asks for is done by ``archaeologist.job`` itself, in this process.
"""

import contextlib
import ctypes
import hashlib
import importlib
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final, NoReturn

REAL: Final = frozenset({"real", "starved", "deleted", "truncated", "overwritten"})
STARVED_BYTES: Final = 420 << 20
"""Of address space: enough for the interpreter, too little for the compiled kernels."""
PR_SET_PDEATHSIG: Final = 1
FIRST_READS: Final = 8
"""A checkpoint is tampered with before one of so many reads of the walk; there are more of them."""

Plain = dict[str, Any]


def main() -> None:
    """Does one job, or what its fate says instead."""
    descriptor = int(sys.argv[-1])
    line = bytearray()
    while not line.endswith(b"\n") and (part := os.read(0, 65_536)):
        line += part
    excavation = json.loads(line)
    fate = str(excavation["job"].get("request", {}).get("fate", ""))
    if fate in REAL:
        _be_real(bytes(line), excavation, fate)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _leave_orphaned()
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    _meet(fate, descriptor, excavation)
    _say(descriptor, _succeeded(excavation, pause_seconds=0.2 if fate == "slow" else 0.0))


def _meet(fate: str, descriptor: int, excavation: Plain) -> None:
    """Whatever a fate does before the artifact is written; most do not return."""
    temporary = Path(excavation["artifact_path"])
    if fate == "slow":
        nothing = {"block": 0, "blocks": 1, "bytes_read": 0, "bytes_total": 1}
        _say(descriptor, {"kind": "progress", "stage": "walk", **nothing})
        time.sleep(random.Random(excavation["job"]["job_key"]).uniform(0.2, 3.0))
    elif fate == "later" and temporary.suffixes[-2:-1] == [".1"]:  # its first claim
        error = {"code": "gpu_memory_short", "message": "1.0 GB may be used, 2.0 GB are needed"}
        _say(descriptor, {"kind": "failed", "error": error, "retryable": True})
        os._exit(75)
    elif fate == "killed":
        _write(temporary, _content(excavation)[:100])
        os.kill(os.getpid(), signal.SIGKILL)
    elif fate == "unsaid":
        _write(temporary, _content(excavation))
        os._exit(3)
    elif fate == "segfault":
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        ctypes.string_at(0)
    elif fate == "garbage":
        os.write(descriptor, b'{"kind": "succ\n')
        time.sleep(600)
    elif fate == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    elif fate == "frozen":
        os.kill(os.getpid(), signal.SIGSTOP)


def _succeeded(excavation: Plain, *, pause_seconds: float) -> Plain:
    content = _content(excavation)
    _write(Path(excavation["artifact_path"]), content, pause_seconds=pause_seconds)
    if excavation.get("sketch_path"):
        _write(Path(excavation["sketch_path"]), b"sketch")
    return {
        "kind": "succeeded",
        "artifact_sha256": hashlib.sha256(content).hexdigest(),
        "has_sketch": bool(excavation.get("sketch_path")),
        "has_drift": excavation["job"].get("reference") is not None,
        "most_changed_layer": "model.layers.1",
        "alerts": _alerts(excavation["job"]),
    }


def _alerts(job: Plain) -> list[Plain]:
    """None, one or two, as the job's key has it."""
    if job["job_type"] != "layer_stats":
        return []
    family = {"severity": "warning", "family": "representation", "value": 1.5, "message": "as if it collapsed"}
    number = int(job["job_key"][-1], 36) % 3
    return [{**family, "metric": "rankme", "block": f"model.layers.{block}"} for block in range(number)]


def _content(excavation: Plain) -> bytes:
    """An artifact with nothing in it but whose it is."""
    job = excavation["job"]
    target, reference = job["target"], job.get("reference") or {}
    coverage = {"tensors_listed": 0, "tensors_read": 0, "bytes_listed": 0, "bytes_read": 0}
    artifact = {name: job[name] for name in ("campaign_id", "hero_id", "created_at", "job_key", "job_id")}
    artifact |= {"version": 1, "versions": {"archaeologist": "test", "python": "3"}}
    if job["job_type"] == "layer_drift":
        artifact |= {
            "base_checkpoint": reference["path"],
            "target_checkpoint": target["path"],
            "base_checkpoint_step": reference["step"],
            "target_checkpoint_step": target["step"],
            "metrics": list(job["options"]["metrics"]),
            "global_drift_stats": {},
            "base_fingerprint": reference["fingerprint"],
            "target_fingerprint": target["fingerprint"],
            "base_coverage": coverage,
            "target_coverage": coverage,
            "comparison": {"compared": 0},
        }
    else:
        artifact |= {
            "checkpoint_path": target["path"],
            "checkpoint_step": target["step"],
            "global_weight_stats": {},
            "fingerprint": target["fingerprint"],
            "reference_fingerprint": reference.get("fingerprint"),
            "coverage": coverage,
            "alerts": _alerts(job),
        }
    return json.dumps(artifact).encode()


def _write(path: Path, content: bytes, *, pause_seconds: float = 0.0) -> None:
    """Writes in two halves, so that whoever looks or dies in between finds a torn file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = len(content) // 2
    with path.open("wb") as file:
        file.write(content[:half])
        file.flush()
        time.sleep(pause_seconds)
        file.write(content[half:])
        file.flush()
        os.fsync(file.fileno())


def _say(descriptor: int, line: Plain) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(descriptor, json.dumps(line).encode() + b"\n")


def _leave_orphaned() -> None:
    """A parent that died before the kernel was asked to tell of it: who freezes now would stay for ever."""
    watch = select.poll()
    watch.register(0, select.POLLHUP)
    if watch.poll(0):
        os._exit(75)


def _leave_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(75)


# The real job, and what is done to it.


def _be_real(line: bytes, excavation: Plain, fate: str) -> NoReturn:
    import site  # noqa: PLC0415 -- started without it

    site.main()
    sys.path.insert(0, str(Path(__file__).parents[2]))  # a daemon may have been started anywhere
    _give_back(line)
    if fate == "starved":
        resource.setrlimit(resource.RLIMIT_AS, (STARVED_BYTES, STARVED_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from archaeologist import job as real  # noqa: PLC0415
    from tests.faults.disk import limit_files  # noqa: PLC0415

    job = excavation["job"]
    limit_files(Path(excavation["artifact_path"]).parents[2])
    if fate in {"deleted", "truncated", "overwritten"}:
        _tamper_during_walk(Path(job["target"]["path"]), fate, seed=job["job_key"])
    sys.exit(real.main())


def _give_back(line: bytes) -> None:
    """Puts the line that was read back in front of standard input, whose end still means that the parent died."""
    original = os.dup(0)
    reading, writing = os.pipe()
    os.write(writing, line)
    os.dup2(reading, 0)
    os.close(reading)

    def follow() -> None:
        while os.read(original, 4096):
            pass
        os.close(writing)

    threading.Thread(target=follow, daemon=True).start()


def _tamper_during_walk(checkpoint: Path, fate: str, *, seed: str) -> None:
    """Changes the checkpoint between two reads of the walk, after it was opened and found to be the right one."""
    survey: Any = importlib.import_module("archaeologist.excavation.survey")
    left = random.Random(seed).randrange(1, FIRST_READS)
    plan_walk, preadv = survey.plan_walk, os.preadv

    def read(*arguments: Any) -> int:
        nonlocal left
        left -= 1
        if left == 0:
            tamper(checkpoint, fate)
        return preadv(*arguments)

    def plan(*arguments: Any, **named: Any) -> Any:
        os.preadv = read
        return plan_walk(*arguments, **named)

    survey.plan_walk = plan


def tamper(checkpoint: Path, fate: str) -> None:
    """What a trainer, or a person, does to a checkpoint that is being read."""
    weights = checkpoint / "model.safetensors"
    with contextlib.suppress(FileNotFoundError):  # done by an earlier run of the job
        size = weights.stat().st_size
        if fate == "deleted":
            shutil.rmtree(checkpoint)
        elif fate == "truncated":
            os.truncate(weights, size // 2)
        else:
            with weights.open("r+b") as file:
                file.seek(size // 2)
                file.write(os.urandom(size - size // 2))


if __name__ == "__main__":
    main()
