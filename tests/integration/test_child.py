"""run_child against real processes that end in every way a process can end."""

import asyncio
import shutil
import sys
import time
from pathlib import Path

import pytest

from archaeologist.daemon import child
from archaeologist.daemon.child import ChildLimits, Stopped, child_environment, kernels_folder, run_child
from contracts.messages import (
    CampaignId,
    Excavation,
    Failed,
    HeroId,
    Job,
    JobKey,
    Progress,
    RequestId,
    Side,
    Succeeded,
)
from tests.fixtures.waiting import until

PRELUDE = """\
import json, os, signal, subprocess, sys, time
lines = int(sys.argv[sys.argv.index("--lines-fd") + 1])
def say(**line):
    os.write(lines, json.dumps(line).encode() + b"\\n")
def read_excavation():
    return json.loads(sys.stdin.readline())
def succeed():
    say(kind="succeeded", artifact_sha256="ab")
"""
HANG = "time.sleep(600)\n"
DEAF = """\
signal.signal(signal.SIGTERM, signal.SIG_IGN)
say(kind="progress", stage="deaf", block=0, blocks=1, bytes_read=0, bytes_total=0)
"""


def excavation(path: Path, *, note: str = "") -> Excavation:
    side = Side(path="/c/checkpoint-1", step=1, read_path="/c/checkpoint-1", fingerprint="f")
    job = Job(
        job_key=JobKey("k" * 32),
        job_id=RequestId("R"),
        job_type="layer_drift",
        priority="normal",
        hero_id=HeroId("dio"),
        campaign_id=CampaignId("c1"),
        target=side,
        created_at="2026-01-01T00:00:00Z",
        request={"note": note},
    )
    return Excavation(job=job, artifact_path=str(path / "artifact.json"))


async def run(
    tmp_path: Path,
    body: str,
    *,
    time_limit_seconds: float = 60.0,
    kill_after_seconds: float = 20.0,
    stop: asyncio.Event | None = None,
    told: list[Progress] | None = None,
    note: str = "",
) -> Succeeded | Failed | Stopped:
    return await run_child(
        excavation(tmp_path, note=note),
        limits=ChildLimits(time_limit_seconds=time_limit_seconds, kill_after_seconds=kill_after_seconds),
        on_progress=(told if told is not None else []).append,
        stop=stop,
        cache=tmp_path / "cache",
        command=(sys.executable, "-c", PRELUDE + body),
    )


def failed(outcome: Succeeded | Failed | Stopped) -> Failed:
    assert isinstance(outcome, Failed), outcome
    return outcome


def is_there(pid: int) -> bool:
    """Whether a process exists, be it only unreaped."""
    return Path(f"/proc/{pid}").exists()


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def is_running(pid: int) -> bool:
    """Whether a process is there and not a zombie: a grandchild's reaper may not be us."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


async def pid_in(path: Path) -> int:
    """The number that a process writes into a file, once it is there."""
    await until(lambda: text_in(path) != "", seconds=20)
    return int(text_in(path))


def text_in(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


# The good way.


async def test_progress_lines_come_in_order_and_the_outcome_ends_them(tmp_path: Path) -> None:
    told: list[Progress] = []
    body = """
job = read_excavation()["job"]
for block in range(3):
    say(kind="progress", stage=job["job_type"], block=block, blocks=3, bytes_read=block, bytes_total=2)
say(kind="succeeded", artifact_sha256="ab", most_changed_layer="model.norm", findings=["x"])
"""
    outcome = await run(tmp_path, body, told=told)
    assert outcome == Succeeded(artifact_sha256="ab", most_changed_layer="model.norm", findings=("x",))
    assert [(line.stage, line.block) for line in told] == [("layer_drift", 0), ("layer_drift", 1), ("layer_drift", 2)]


async def test_an_excavation_larger_than_a_pipe_arrives_whole(tmp_path: Path) -> None:
    body = 'assert len(read_excavation()["job"]["request"]["note"]) == 300_000\nsucceed()\n'
    assert isinstance(await run(tmp_path, body, note="x" * 300_000), Succeeded)


async def test_standard_input_stays_open_while_the_child_works(tmp_path: Path) -> None:
    body = """
import select
read_excavation()
readable, _, _ = select.select([0], [], [], 0.3)
say(kind="succeeded", artifact_sha256="eof" if readable else "open")
"""
    assert await run(tmp_path, body) == Succeeded(artifact_sha256="open")


async def test_a_flood_on_standard_error_stops_nobody(tmp_path: Path) -> None:
    body = 'read_excavation()\nfor _ in range(300): sys.stderr.write("x" * 10_000 + "\\n")\nsucceed()\n'
    assert isinstance(await run(tmp_path, body), Succeeded)


async def test_an_artifact_that_is_whole_survives_a_crash_at_exit(tmp_path: Path) -> None:
    assert isinstance(await run(tmp_path, "succeed()\nos.abort()\n"), Succeeded)


async def test_a_grandchild_is_killed_and_keeps_nobody_waiting(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    body = f"""
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], pass_fds=[lines])
open({str(pid_file)!r}, "w").write(str(child.pid))
succeed()
"""
    started = time.monotonic()
    assert isinstance(await run(tmp_path, body), Succeeded)
    assert time.monotonic() - started < 30
    grandchild = int(pid_file.read_text())
    await until(lambda: not is_running(grandchild), seconds=20)


# The child's own word.


@pytest.mark.parametrize(("retryable", "exit_code"), [(False, 1), (True, 75)])
async def test_a_failed_line_is_passed_on_as_it_is(tmp_path: Path, *, retryable: bool, exit_code: int) -> None:
    body = (
        f'say(kind="failed", error={{"code": "shard_missing", "message": "m"}}, retryable={retryable})\n'
        f"sys.exit({exit_code})\n"
    )
    outcome = failed(await run(tmp_path, body))
    assert (outcome.error.code, outcome.error.message, outcome.retryable) == ("shard_missing", "m", retryable)


async def test_exit_code_75_alone_is_retryable(tmp_path: Path) -> None:
    assert failed(await run(tmp_path, "sys.exit(75)\n")).retryable


# Crashes.


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)\n", "killed (signal 9); out of memory?"),
        ("os.kill(os.getpid(), signal.SIGSEGV)\n", "signal 11 (SIGSEGV)"),
        ("os._exit(0)\n", "without an outcome (exit code 0)"),
        ("os._exit(3)\n", "exit code 3"),
        ("os.write(lines, b'garbage\\n')\n" + HANG, "no line of ours"),
        ("os.write(lines, b'x' * (3 << 20))\n" + HANG, "no line of ours"),
        ('os.write(lines, b\'{"kind": "succeeded", "artif\')\nos._exit(0)\n', "without an outcome"),
        ("say(kind='unheard of')\n" + HANG, "no line of ours"),
    ],
)
async def test_a_crash_is_named(tmp_path: Path, body: str, words: str) -> None:
    outcome = failed(await run(tmp_path, body))
    assert outcome.error.code == "job_crashed"
    assert words in outcome.error.message
    assert not outcome.retryable


async def test_the_last_words_of_a_crash_are_told_and_bounded(tmp_path: Path) -> None:
    body = 'sys.stderr.write("y" * 200_000 + "\\n")\nraise RuntimeError("the reason")\n'
    message = failed(await run(tmp_path, body)).error.message
    assert message.endswith("RuntimeError: the reason")
    assert len(message) < 2000


# Limits, stop, cancellation.


async def test_a_child_past_its_limit_ends_on_sigterm_and_the_setting_is_named(tmp_path: Path) -> None:
    outcome = failed(await run(tmp_path, HANG, time_limit_seconds=0.5))
    assert outcome.error.code == "job_timed_out"
    assert "0.5 s" in outcome.error.message
    assert "jobs.layer_drift.time_limit_seconds" in outcome.error.message


async def test_a_child_deaf_to_sigterm_is_killed(tmp_path: Path) -> None:
    outcome = failed(await run(tmp_path, DEAF + HANG, time_limit_seconds=2.0, kill_after_seconds=0.2))
    assert outcome.error.code == "job_timed_out"


async def test_a_stopped_child_is_gone_when_the_call_returns(tmp_path: Path) -> None:
    stop, pid_file = asyncio.Event(), tmp_path / "pid"
    body = f'{DEAF}open({str(pid_file)!r}, "w").write(str(os.getpid()))\n{HANG}'
    task = asyncio.create_task(run(tmp_path, body, kill_after_seconds=0.2, stop=stop))
    pid = await pid_in(pid_file)
    stop.set()
    assert await task == Stopped()
    assert not is_there(pid)


async def test_a_stop_set_before_the_start_still_ends_in_stopped(tmp_path: Path) -> None:
    stop = asyncio.Event()
    stop.set()
    assert await run(tmp_path, HANG, stop=stop) == Stopped()


async def test_a_cancelled_call_leaves_no_process(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    body = f'{DEAF}open({str(pid_file)!r}, "w").write(str(os.getpid()))\n{HANG}'
    task = asyncio.create_task(run(tmp_path, body))
    pid = await pid_in(pid_file)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not is_there(pid)


async def test_an_error_in_the_progress_callback_comes_out_and_leaves_no_process(tmp_path: Path) -> None:
    def fail(_: Progress) -> None:
        msg = "broken callback"
        raise RuntimeError(msg)

    pid_file = tmp_path / "pid"
    body = f'open({str(pid_file)!r}, "w").write(str(os.getpid()))\n{DEAF}{HANG}'
    with pytest.raises(RuntimeError, match="broken callback"):
        await run_child(
            excavation(tmp_path),
            limits=ChildLimits(time_limit_seconds=60, kill_after_seconds=1),
            on_progress=fail,
            cache=tmp_path / "cache",
            command=(sys.executable, "-c", PRELUDE + body),
        )
    assert not is_there(int(pid_file.read_text()))


async def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    await run(tmp_path, "succeed()\n")
    before = open_descriptors()
    for _ in range(3):
        await run(tmp_path, "succeed()\n")
    assert open_descriptors() <= before


# The environment.


def test_compiled_code_is_kept_for_just_the_sources_that_it_was_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "archaeologist"
    shutil.copytree(Path(child.__file__).parents[1] / "statistics", package / "statistics")
    before = kernels_folder(tmp_path)
    monkeypatch.setattr(child, "__file__", str(package / "daemon" / "child.py"))
    assert kernels_folder(tmp_path) == before, "the same sources elsewhere"
    (package / "statistics" / "kernels_lanes.py").write_bytes(b"# changed")
    assert kernels_folder(tmp_path).parent == before.parent
    assert kernels_folder(tmp_path) != before


def test_the_child_gets_the_kernel_cache_and_no_credentials(tmp_path: Path) -> None:
    environ = {
        "PATH": "/bin",
        "ARCHAEOLOGIST_NATS_URL": "nats://token@h",
        "ARCHAEOLOGIST_BUS__TOKEN": "secret",
        "ARCHAEOLOGIST_bus__password": "secret",
        "ARCHAEOLOGIST_WEB__TOKEN": "secret",
        "HF_TOKEN": "secret",
    }
    assert child_environment(environ, cache=tmp_path) == {
        "PATH": "/bin",
        "NUMBA_CACHE_DIR": str(kernels_folder(tmp_path)),
        "PYTHONFAULTHANDLER": "1",
    }
