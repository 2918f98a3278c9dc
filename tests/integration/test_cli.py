"""The command line as its users run it: real processes, a real server, real checkpoints."""

import asyncio
import hashlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec
import pytest

from archaeologist.bus.connection import connected
from archaeologist.daemon.admission import Admission
from archaeologist.daemon.books import Books
from archaeologist.settings import BusSettings, Settings
from contracts.artifacts import LayerDrift, LayerStats
from contracts.messages import AnalysisRequested, CampaignId, Event, HeroId
from contracts.records import JobRecord
from tests.fixtures.checkpoints import drifted, qwen3_tensors, write_checkpoint
from tests.fixtures.kernels import share_kernels
from tests.fixtures.programs import Daemon
from tests.fixtures.servers import Server, free_port
from tests.fixtures.waiting import until
from tests.integration.daemon.house import queue_job

STEPS = (100, 200, 300)
WHOSE = ("--hero", "h", "--campaign", "c")
BUS_CHECKS = {"bus", "streams", "clock", "pins"}


class Done(NamedTuple):
    code: int
    out: str
    err: str

    def json(self) -> Any:
        """What it printed on standard output."""
        return json.loads(self.out)


def environment(root: Path, url: str | None = None, **more: str) -> dict[str, str]:
    """The test's own environment without settings of the person who runs it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ARCHAEOLOGIST_")}
    bus = {"ARCHAEOLOGIST_NATS_URL": url} if url else {}
    return {**kept, "ARCHAEOLOGIST_ROOT": str(root), "NO_COLOR": "1", **bus, **more}


async def cli(*arguments: object, env: dict[str, str], cwd: Path | None = None) -> Done:
    """Runs ``archaeologist`` to its end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "archaeologist",
        *map(str, arguments),
        env={**env, "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=cwd,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(100):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Done(process.returncode or 0, out.decode(), err.decode())


def is_one_line(text: str) -> bool:
    return text.count("\n") == 1 and text.endswith("\n")


@pytest.fixture
def root(tmp_path: Path, kernels: Path) -> Path:
    """A root with one campaign of three checkpoints, each a little further."""
    root = tmp_path / "root"
    share_kernels(root)
    tensors = qwen3_tensors(seed=1)
    for number, step in enumerate(STEPS):
        tensors = drifted(tensors, seed=number, relative=0.01)
        folder = write_checkpoint(checkpoint(root, step), tensors=tensors, step=step)
        # No tokenizer, no activations: no job here spends seconds on importing torch.
        (folder / "tokenizer.json").unlink()
    return root


def checkpoint(root: Path, step: int) -> Path:
    return root / "campaigns" / "dio" / "c1" / "checkpoints" / f"checkpoint-{step}"


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """The address of a server that runs."""
    async with Server(tmp_path / "nats") as server:
        yield server.url


# Without a bus.


async def test_analyze_as_json_prints_exactly_the_artifact(root: Path, tmp_path: Path) -> None:
    output = tmp_path / "found"
    done = await cli(
        "analyze",
        checkpoint(root, 200),
        "--reference",
        checkpoint(root, 100),
        "--no-activations",
        "--json",
        "--output",
        output,
        env=environment(root),
    )
    assert (done.code, done.err) == (0, "")
    stats = msgspec.json.decode(done.out, type=LayerStats)
    assert (stats.hero_id, stats.campaign_id, stats.checkpoint_step) == ("dio", "c1", 200)
    assert stats.reference_checkpoint_step == 100
    assert stats.drift_stats["model.layers.0"].relative_l2 == pytest.approx(0.01, rel=0.1)
    artifact = output / "ckpt-000200.layer_stats.json"
    assert sorted(path.name for path in output.iterdir()) == [artifact.name, "ckpt-000200.sketch.safetensors"]
    assert hashlib.sha256(artifact.read_bytes()).digest() == hashlib.sha256(done.out.encode()).digest()


async def test_analyze_without_output_writes_nothing_beside_the_checkpoint(root: Path, tmp_path: Path) -> None:
    before = sorted(root.rglob("*"))
    done = await cli("analyze", checkpoint(root, 100), "--no-activations", env=environment(root), cwd=tmp_path)
    assert done.code == 0
    assert "model.layers.1" in done.out
    assert sorted(root.rglob("*")) == before


async def test_analyze_reads_a_checkpoint_outside_every_campaign(root: Path, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "somewhere")
    done = await cli("analyze", folder, "--no-activations", "--json", env=environment(root))
    stats = msgspec.json.decode(done.out, type=LayerStats)
    assert (stats.hero_id, stats.campaign_id, stats.checkpoint_step) == ("", "", 0)


async def test_drift_prints_its_artifact_and_writes_the_same(root: Path, tmp_path: Path) -> None:
    output = tmp_path / "drift.json"
    done = await cli(
        "drift", checkpoint(root, 100), checkpoint(root, 300), "--json", "--output", output, env=environment(root)
    )
    assert (done.code, done.err) == (0, "")
    drift = msgspec.json.decode(done.out, type=LayerDrift)
    assert (drift.base_checkpoint_step, drift.target_checkpoint_step) == (100, 300)
    assert output.read_text() == done.out


async def test_output_replaces_no_file_that_is_not_an_artifact(root: Path) -> None:
    precious = checkpoint(root, 100) / "config.json"
    before = precious.read_bytes()
    done = await cli("drift", checkpoint(root, 100), checkpoint(root, 200), "--output", precious, env=environment(root))
    assert done.code == 1
    assert done.err.startswith("error: artifact_unwritable: ")
    assert precious.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("analyze", "/nowhere"), 1, "error: checkpoint_missing: checkpoint '/nowhere' is not there"),
        (("drift", "/nowhere", "/neither"), 1, "error: checkpoint_missing: "),
        (("drift", "/a", "/b", "--metrics", "l3"), 2, "error: usage: metric 'l3' is not known"),
        (("analyze",), 2, "error: usage: Missing argument"),
        (("analyze", "/x", "--device", "tpu"), 2, "error: usage: device 'tpu' is not known; use auto, cpu, cuda"),
        (("analyze", "/x", "--with", "speed"), 2, "error: usage: --with: analysis 'speed' is not known; use any of"),
        (("analyze", "/x", "--probes", "typo"), 1, "error: probes_missing: probe set 'typo' is none of the package's"),
        (("excavate",), 2, "error: usage: No such command"),
        (("analyze", "/x", "--config", "/none.toml"), 2, "error: setting_invalid: "),
        (("request", "--step", "1"), 2, "error: usage: hero and campaign are unknown"),
        (("request", "--hero", "h", "--campaign", "c", "--steps", "9:1:1"), 2, "error: usage: --steps '9:1:1'"),
        (("log", "--since", "soon"), 2, "error: usage: --since 'soon'"),
        (("request", "/x/checkpoint-300", "--step", "500", *WHOSE), 2, "error: usage: --step 500 contradicts "),
        (("request", "--base", "1", "--target", "2", "--step", "3", *WHOSE), 2, "error: usage: --base and --target"),
        (("jobs", "list", "--state", "nope"), 2, "error: usage: --state 'nope' is not known; use one of: queued, "),
        (("jobs", "dead", "--code", "nope"), 2, "error: usage: --code 'nope' is not known; use one of: adapter_"),
        (("jobs", "requeue"), 2, "error: usage: name dead letters or jobs"),
        (("jobs", "requeue", "7", "--all"), 2, "error: usage: name dead letters or jobs"),
    ],
)
async def test_an_error_is_one_line_with_its_code_and_its_exit_code(
    tmp_path: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    done = await cli(*arguments, env=environment(tmp_path))
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith(words)
    assert is_one_line(done.err)


async def test_a_wrong_settings_name_is_named(tmp_path: Path) -> None:
    done = await cli("jobs", "list", env=environment(tmp_path, ARCHAEOLOGIST_POLICY__EVRY="1"))
    assert done.code == 2
    assert "ARCHAEOLOGIST_POLICY__EVRY" in done.err
    assert is_one_line(done.err)


async def test_debug_shows_where_an_error_arose(tmp_path: Path) -> None:
    done = await cli("--debug", "analyze", "/nowhere", env=environment(tmp_path))
    assert done.code == 1
    assert "Traceback" in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("jobs", "list"),
        ("jobs", "show", "x"),
        ("jobs", "cancel", "x"),
        ("jobs", "requeue", "--all"),
        ("workers",),
        ("log",),
        ("bus", "ensure"),
        ("request", "--hero", "h", "--campaign", "c", "--step", "1"),
    ],
)
async def test_without_a_bus_a_command_ends_within_seconds_and_says_what_to_do(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    async with asyncio.timeout(15):  # 5 s for the connection, the rest for a busy machine's interpreter
        done = await cli(*arguments, env=environment(tmp_path, f"nats://127.0.0.1:{free_port()}"))
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: bus_unavailable: ")
    assert "archaeologist up" in done.err
    assert is_one_line(done.err)


async def test_an_interrupted_analysis_exits_130_and_leaves_nothing(root: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "archaeologist", "analyze", str(checkpoint(root, 100)), "--no-activations", "--json"),
        env=environment(root, TMPDIR=str(scratch), NUMBA_DISABLE_JIT="1"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    # From its scratch folder on there is something to leave behind.
    await until(lambda: any(scratch.iterdir()), seconds=60)
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    assert (process.returncode, out, err) == (130, b"", b"")
    assert list(scratch.iterdir()) == []


async def test_the_parent_of_an_analysis_imports_neither_torch_nor_numba(root: Path) -> None:
    program = (
        "import sys; from archaeologist.cli.app import run;"
        f"code = run(['analyze', {str(checkpoint(root, 100))!r}, '--no-activations', '--json']);"
        "sys.exit(code or any(name in sys.modules for name in ('torch', 'numba', 'safetensors', 'transformers')))"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, env=environment(root), stdout=asyncio.subprocess.DEVNULL
    )
    assert await process.wait() == 0


async def test_contracts_are_exported_as_they_are_checked_in(tmp_path: Path) -> None:
    done = await cli("contracts", "export", "--output", tmp_path / "out", env=environment(tmp_path))
    assert done.code == 0
    checked_in = Path(__file__).parents[2] / "contracts" / "schemas"
    exported = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert exported == {path.name: path.read_bytes() for path in checked_in.iterdir()}


# With a bus.


async def test_ensure_creates_everything_once(tmp_path: Path, url: str) -> None:
    first = await cli("bus", "ensure", "--json", env=environment(tmp_path, url))
    second = await cli("bus", "ensure", "--json", env=environment(tmp_path, url))
    assert {change["action"] for change in first.json()} == {"created"}
    assert {change["action"] for change in second.json()} == {"unchanged"}
    assert {"REQUESTS", "BATTLE_LOG"} <= {change["name"] for change in first.json()}


async def test_doctor_finds_a_server_without_streams_and_is_content_after_ensure(root: Path, url: str) -> None:
    before = await cli("doctor", "--json", env=environment(root, url))
    await cli("bus", "ensure", env=environment(root, url))
    after = await cli("doctor", "--json", env=environment(root, url))
    assert {check["name"] for check in before.json() if check["status"] != "ok"} >= {"streams"}
    assert (after.code, {check["status"] for check in after.json() if check["name"] in BUS_CHECKS}) == (0, {"ok"})
    assert not list(root.rglob(".doctor-*"))


async def test_doctor_exits_1_when_there_is_no_bus(root: Path) -> None:
    done = await cli("doctor", "--json", env=environment(root, f"nats://127.0.0.1:{free_port()}"))
    assert done.code == 1
    assert [check["name"] for check in done.json() if check["status"] == "error"] == ["bus"]


async def test_a_request_without_a_daemon_is_kept_and_its_id_printed(root: Path, url: str) -> None:
    env = environment(root, url)
    await cli("bus", "ensure", env=env)
    done = await cli("request", checkpoint(root, 100), env=env)
    assert (done.code, len(done.out.strip())) == (0, 26)
    async with Daemon(root=root, url=url):
        again = await cli("request", checkpoint(root, 200), "--reference", "100", "--wait", env=env)
        assert again.code == 0, again.err
        shown = (await cli("jobs", "show", done.out.strip(), "--json", env=env)).json()
    assert shown["request"]["state"] == "accepted"
    assert shown["job"]["job"]["target"]["step"] == 100


async def test_a_backfill_is_followed_to_its_end_and_read_back(root: Path, url: str) -> None:
    env = environment(root, url)
    await cli("bus", "ensure", env=env)
    async with Daemon(root=root, url=url):
        asked = await cli(
            "request", "--hero", "dio", "--campaign", "c1", "--steps", "1:999:1", "--wait", "--json", env=env
        )
        assert asked.code == 0, asked.err
        # A repeat of a finished job brings no new event; the record answers.
        repeated = await cli("request", checkpoint(root, 300), "--wait", env=env)
        assert repeated.code == 0, repeated.err
        log = await cli("log", "--json", "--campaign", "dio/c1", env=env)
        listed = await cli("jobs", "list", "--json", env=env)
        table = await cli("jobs", "list", env=env)
        late = await cli("jobs", "cancel", json.loads(asked.out.splitlines()[0])["request_id"], env=env)
    endings = [json.loads(line) for line in asked.out.splitlines()]
    assert [ending["state"] for ending in endings] == ["done"] * 3
    assert all(Path(ending["artifact_path"]).is_file() for ending in endings)
    events = [msgspec.json.decode(line, type=Event) for line in log.out.splitlines()]
    completed = [event.data["checkpoint_step"] for event in events if event.type == "analysis.completed"]
    assert completed == list(STEPS)
    assert "analysis.progress" not in {event.type for event in events}
    records = msgspec.convert(listed.json(), list[JobRecord])
    assert [(record.job.target.step, record.state) for record in records] == [(step, "done") for step in STEPS]
    assert all(record.job.job_key in table.out for record in records)
    assert "nothing to cancel" in late.out


async def test_waiting_for_what_is_refused_exits_1_with_the_reason(root: Path, url: str) -> None:
    env = environment(root, url)
    await cli("bus", "ensure", env=env)
    async with Daemon(root=root, url=url):
        done = await cli("request", "--hero", "dio", "--campaign", "c1", "--step", "999", "--wait", env=env)
        log = await cli("log", "--last", "1", env=env)
    assert done.code == 1
    assert done.err.startswith("error: checkpoint_missing: ")
    assert "error    dio/c1  checkpoint_missing: " in log.out


async def test_a_waiting_job_is_cancelled_at_once_and_the_log_says_by_whom(root: Path, url: str) -> None:
    env = environment(root, url)
    await cli("bus", "ensure", env=env)
    key = await queue_a_job(root, url)
    cancelled = await cli("jobs", "cancel", key, env=env)
    assert (cancelled.code, cancelled.out) == (0, f"job {key} is cancelled\n")
    shown = (await cli("jobs", "show", key, "--json", env=env)).json()
    assert shown["job"]["state"] == "cancelled"
    log = await cli("log", "--json", env=env)
    (event,) = (msgspec.json.decode(line, type=Event) for line in log.out.splitlines())
    assert (event.type, event.data["by"]) == ("analysis.cancelled", shown["job"]["cancelled_by"])


async def queue_a_job(root: Path, url: str) -> str:
    """The key of a job that intake queued and no worker takes."""
    settings = Settings(root=str(root), bus=BusSettings(url=url))
    request = AnalysisRequested(hero_id=HeroId("dio"), campaign_id=CampaignId("c1"), checkpoint_step=100)
    async with connected(settings.bus, name="test") as bus:
        admission = Admission(Books.on(bus), settings)
        return (await queue_job(admission, request, request_id="R1")).job.job_key


# up.


async def test_up_serves_an_analysis_and_ends_cleanly_on_ctrl_c(root: Path) -> None:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "archaeologist",
        "up",
        "--port",
        str(port),
        "--web-port",
        "0",
        env=environment(root),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            told = [(await process.stdout.readline()).decode() for _ in range(8)]
        assert f"nats://127.0.0.1:{port}" in told[0]
        kind, address = told[7].split()
        assert kind == "web"
        async with httpx.AsyncClient(base_url=address, trust_env=False) as client:
            assert (await client.get("/health")).status_code == 200
        done = await cli("request", checkpoint(root, 100), "--wait", env=environment(root, f"nats://127.0.0.1:{port}"))
        assert done.code == 0, done.err
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(60):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    with pytest.raises(OSError, match="Connect call failed"):
        await asyncio.open_connection("127.0.0.1", port)


async def test_web_serves_a_root_and_ends_cleanly_on_sigterm(root: Path) -> None:
    """It listens on every address, so it makes a token; there is no bus."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "archaeologist", "web", "--host", "0.0.0.0", "--port", "0"),  # noqa: S104 -- what is tested
        env=environment(root, f"nats://127.0.0.1:{free_port()}"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            address = (await process.stdout.readline()).decode().split()[-1]
            token = (await process.stdout.readline()).decode().split()[-1]
        async with httpx.AsyncClient(base_url=address, trust_env=False) as client:
            assert (await client.get("/api/campaigns")).json()["campaigns"][0]["campaign_id"] == "c1"
            assert (await client.post("/api/jobs", json={})).status_code == 401
            with_token = await client.post("/api/jobs", json={}, headers={"Authorization": f"Bearer {token}"})
            assert with_token.json()["code"] == "message_invalid"
        kept = root / ".archaeologist" / "web.token"
        assert (kept.read_text().strip(), kept.stat().st_mode & 0o777) == (token, 0o600)
        process.terminate()
        async with asyncio.timeout(60):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_web_on_a_port_that_is_taken_says_so(root: Path, url: str) -> None:
    port = url.rpartition(":")[2]
    done = await cli("web", "--port", port, env=environment(root, url))
    assert done.code == 1
    assert done.err.startswith("error: listen_impossible: nothing can listen on '127.0.0.1', port " + port)
    assert is_one_line(done.err)


async def test_up_on_a_port_that_is_taken_says_so(root: Path, url: str) -> None:
    port = url.rpartition(":")[2]
    done = await cli("up", "--port", port, env=environment(root))
    assert done.code == 1
    assert done.err.startswith(f"error: bus_unavailable: port {port} ")


async def test_up_on_a_web_port_that_is_taken_names_the_option_that_changes_it(root: Path, url: str) -> None:
    port = url.rpartition(":")[2]
    done = await cli("up", "--port", str(free_port()), "--web-port", port, env=environment(root))
    assert done.code == 1
    assert done.err.startswith(f"error: listen_impossible: nothing can listen on '127.0.0.1', port {port}")
    assert done.err.endswith("choose another with --web-port or web.port\n")


async def test_a_root_without_campaigns_is_told_once(tmp_path: Path, url: str) -> None:
    async with Daemon(root=tmp_path / "typo", url=url) as daemon:
        await until(lambda: '"ready"' in daemon.log(), seconds=30)
        await until(lambda: "no campaigns folder under the root yet" in daemon.log(), seconds=30)
        assert await daemon.stop() == 0
    (line,) = [line for line in daemon.log().splitlines() if "no campaigns folder" in line]
    assert str(tmp_path / "typo") in line
