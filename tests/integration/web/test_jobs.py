"""Jobs over HTTP: a real server, a real bus, daemons with quick children."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from archaeologist.bus.log import events
from archaeologist.bus.reading import reading
from archaeologist.settings import Settings
from contracts import subjects
from tests.fixtures.checkpoints import write_checkpoint
from tests.fixtures.servers import free_port
from tests.fixtures.waiting import until_asked
from tests.fixtures.web import application, asking, served
from tests.integration.daemon.house import CAMPAIGN, HERO, House, with_quick_children
from tests.integration.web.conftest import until_ready

TOKEN = "0123456789abcdef"  # noqa: S105 -- a test's
WHOSE = {"hero_id": HERO, "campaign_id": CAMPAIGN}
SCRIPT = Path(__file__).parent / "script" / "run_layer_stats.txt"
"""The specification's 11.2, unchanged."""


async def ask(api: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    """The answer to a request for a job of the house's campaign."""
    reply = await api.post("/api/jobs", json={**WHOSE, **fields})
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


async def status(api: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    reply = await api.get(f"/api/jobs/{job_id}")
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


async def published(house: House) -> list[dict[str, Any]]:
    """Every request on the bus."""
    found = []
    async with reading(house.bus, subjects.REQUESTS) as reader:
        while not await reader.is_at_end():
            found += [json.loads(message.data) for message in await reader.batch()]
    return found


async def test_a_job_asked_for_over_http_runs_and_is_seen_to_its_end(
    house: House, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch)
    house.save(100)
    async with house.daemon():
        answer = await ask(api, checkpoint_step=100, priority="high")
        assert answer["accepted"] is True
        assert answer["status"] in {"queued", "running", "done"}, "intake has answered"
        await house.until_ended(answer["job_id"])
    found = await status(api, answer["job_id"])
    assert (found["status"], found["checkpoint_step"], found["priority"]) == ("done", 100, "high")
    assert found["artifact_path"].endswith("ckpt-000100.layer_stats.json")
    by_key = await status(api, found["job_key"])
    assert {**by_key, "job_id": found["job_id"]} == found
    listed = (await api.get("/api/jobs", params={"status": "done", **WHOSE})).json()
    assert [job["job_id"] for job in listed["jobs"]] == [answer["job_id"]]
    assert (await api.get("/api/jobs", params={"status": "failed"})).json()["jobs"] == []
    assert (await api.get("/api/jobs", params={"campaign_id": "other"})).json()["count"] == 0


async def submit(api: httpx.AsyncClient, checkpoint: str) -> subprocess.CompletedProcess[str]:
    """Runs the specification's script."""
    server = str(api.base_url).rstrip("/")
    arguments = ["--checkpoint", checkpoint, "--campaign", CAMPAIGN, "--hero", HERO, "--server", server]
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parent)},
    )


async def test_the_specification_s_client_script_submits_a_job_that_runs(
    house: House, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch)
    checkpoint = str(house.save(100))
    async with house.daemon():
        done = await submit(api, checkpoint)
        assert done.returncode == 0, done.stdout + done.stderr
        job_id = done.stdout.removeprefix("Job submitted: ").strip()
        assert job_id
        await house.until_ended(job_id)
    assert (await status(api, job_id))["status"] == "done"
    (request,) = await published(house)
    assert request == {**WHOSE, "job_type": "layer_stats", "checkpoint_path": checkpoint, "request_id": job_id}
    refused = await submit(api, "/etc")
    assert (refused.returncode, refused.stdout.startswith("Failed: path '/etc'")) == (1, True)


async def test_the_specification_s_page_is_told_the_rule_that_its_path_breaks(
    house: House, api: httpx.AsyncClient
) -> None:
    path = f"/path/to/campaigns/{HERO}/{CAMPAIGN}/checkpoints/checkpoint-100"
    body = {"job_type": "layer_stats", "payload": {**WHOSE, "checkpoint_path": path}}
    reply = await api.post("/api/jobs", json=body)
    assert reply.status_code == 200
    assert (reply.json()["accepted"], reply.json()["code"]) == (False, "path_outside_root")
    assert "allowed roots" in reply.json()["message"]
    assert await published(house) == []


async def test_without_a_daemon_a_request_is_received_and_waits(house: House, api: httpx.AsyncClient) -> None:
    answer = await ask(api, checkpoint_step=100)
    assert (answer["accepted"], answer["status"]) == (True, "received")
    assert (await status(api, answer["job_id"]))["status"] == "received"
    assert [request["request_id"] for request in await published(house)] == [answer["job_id"]]


async def test_what_intake_refuses_is_answered_with_the_rule(house: House, api: httpx.AsyncClient) -> None:
    async with house.daemon():
        answer = await ask(api, checkpoint_step=999)
    assert (answer["accepted"], answer["status"], answer["code"]) == (False, "refused", "checkpoint_missing")
    assert (await status(api, answer["job_id"]))["error"]["code"] == "checkpoint_missing"


async def test_the_same_request_twice_is_one(house: House, api: httpx.AsyncClient) -> None:
    answers = [await ask(api, checkpoint_step=100, request_id="mine") for _ in range(2)]
    assert [answer["job_id"] for answer in answers] == ["mine", "mine"]
    assert len(await published(house)) == 1


async def test_another_request_under_a_used_id_is_refused_and_told(
    house: House, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch)
    for step in (100, 200):
        house.save(step)
    async with house.daemon():
        first = await ask(api, checkpoint_step=100, priority="high", request_id="mine")
        await house.until_ended("mine")
        other = await ask(api, checkpoint_step=200, priority="high", request_id="mine")
        same = await ask(api, request_id="mine", priority="high", checkpoint_step=100)
    assert [answer["accepted"] for answer in (first, other, same)] == [True, False, True]
    assert (other["job_id"], other["code"]) == (None, "request_id_reused")
    assert [event.type for event in await house.log()].count("analysis.failed") == 1


async def test_a_hero_that_is_left_out_is_the_campaign_s_only_one(house: House, api: httpx.AsyncClient) -> None:
    house.save(100)
    reply = await api.post("/api/jobs", json={"campaign_id": CAMPAIGN, "checkpoint_step": 100})
    assert reply.json()["accepted"] is True
    assert [request["hero_id"] for request in await published(house)] == [HERO]
    write_checkpoint(house.folder.root / "campaigns" / "other" / CAMPAIGN / "checkpoints" / "checkpoint-1", seed=1)
    reply = await api.post("/api/jobs", json={"campaign_id": CAMPAIGN, "checkpoint_step": 100})
    assert (reply.status_code, reply.json()["code"], reply.json()["accepted"]) == (400, "hero_unclear", False)


async def test_a_waiting_job_is_taken_back(
    house: House, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch, seconds=60)
    for step in (100, 200):
        house.save(step)
    async with house.daemon():
        first, second = [await ask(api, checkpoint_step=step) for step in (100, 200)]
        for answer in (second, first):
            reply = await api.delete(f"/api/jobs/{answer['job_id']}")
            assert (reply.status_code, reply.json()["accepted"]) == (200, True)
            await house.until_ended(answer["job_id"])
            found = await status(api, answer["job_id"])
            assert (found["status"], found["cancelled_by"]) == ("cancelled", "http:127.0.0.1")
        again = (await api.delete(f"/api/jobs/{first['job_id']}")).json()
        assert again["status"] == "cancelled"
    cancelled = [logged.event async for logged in events(house.bus, follow=False) if "cancelled" in logged.event.type]
    assert len(cancelled) == 2


async def test_a_finished_job_is_not_taken_back(
    house: House, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch)
    house.save(100)
    async with house.daemon():
        answer = await ask(api, checkpoint_step=100)
        await house.until_ended(answer["job_id"])
    reply = await api.delete(f"/api/jobs/{answer['job_id']}")
    assert (reply.status_code, reply.json()["accepted"], reply.json()["status"]) == (200, False, "done")


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_an_unknown_job_is_404(api: httpx.AsyncClient, method: str) -> None:
    for job_id in ("nobody", "a b", "x" * 200, "..", "*", ">", "%00"):
        reply = await api.request(method, f"/api/jobs/{job_id}")
        assert reply.status_code in {404, 405}, (job_id, reply.text)
        assert reply.json()["code"] in {"job_unknown", "route_missing"}
        assert "archaeologist jobs" not in reply.json()["error"], "the web's own words"


async def test_a_request_without_a_job_yet_is_told_as_such(house: House, api: httpx.AsyncClient) -> None:
    answer = await ask(api, checkpoint_step=100)
    reply = await api.delete(f"/api/jobs/{answer['job_id']}")
    assert reply.status_code == 404
    assert "until a daemon takes it and its checkpoint is whole (readiness.wait_seconds at most)" in reply.text
    assert len(await published(house)) == 1


@pytest.mark.parametrize(
    ("fields", "code"),
    [({"request_id": ""}, "message_invalid"), ({"output_path": "../outside"}, "path_outside_root")],
)
async def test_what_the_bus_refuses_is_refused_here_already(
    house: House, api: httpx.AsyncClient, fields: dict[str, str], code: str
) -> None:
    answer = await ask(api, checkpoint_step=100, **fields)
    assert (answer["accepted"], answer["code"]) == (False, code)
    assert await published(house) == []


async def test_an_output_path_is_relative_to_the_root(house: House, api: httpx.AsyncClient) -> None:
    inside = house.folder.root.name
    answer = await ask(api, checkpoint_step=100, output_path=f"../{inside}/elsewhere")
    assert answer["accepted"] is True, "above the root and back into it"


async def test_jobs_are_listed_newest_first_page_by_page(
    house: House, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch)
    for step in (1, 2, 3):
        house.save(step)
    async with house.daemon():
        asked = [await ask(api, checkpoint_step=step) for step in (1, 2, 3)]
        for answer in asked:
            await house.until_ended(answer["job_id"])
    first = (await api.get("/api/jobs", params={"limit": 2})).json()
    rest = (await api.get("/api/jobs", params={"limit": 2, "offset": first["next_offset"]})).json()
    assert [job["checkpoint_step"] for job in first["jobs"] + rest["jobs"]] == [3, 2, 1]
    assert (first["count"], rest["next_offset"]) == (3, None)


async def test_workers_are_seen_with_what_they_do(house: House, api: httpx.AsyncClient) -> None:
    assert (await api.get("/api/workers")).json() == {"workers": [], "count": 0}
    async with house.daemon(name="a"), house.daemon(name="b", roles=("eval_worker",)):

        async def are_there() -> bool:
            return bool((await api.get("/api/workers")).json()["count"] == 2)

        await until_asked(are_there)
        found = (await api.get("/api/workers")).json()["workers"]
        assert [(one["name"], one["condition"], one["slots"]["layer_drift"]["free"]) for one in found] == [
            ("a", "idle", 2),
            ("b", "idle", 0),
        ]
        assert "eval_worker" in found[1]["note"]
        counts = (await api.get("/api/status")).json()["workers"]
    assert counts == {"idle": 2, "busy": 0, "draining": 0, "silent": 0}


# A bus that is down.


async def test_with_the_bus_down_a_job_is_refused_and_artifacts_are_read(house: House, api: httpx.AsyncClient) -> None:
    await house.server.kill()
    await until_ready(api, status=503)
    reply = await api.post("/api/jobs", json={**WHOSE, "checkpoint_step": 100})
    assert (reply.status_code, reply.json()["accepted"], reply.json()["code"]) == (503, False, "bus_unavailable")
    assert reply.headers["retry-after"]
    assert "nothing was sent" in reply.json()["error"]
    for address in ("/api/jobs", "/api/jobs/x"):
        assert (await api.get(address)).json()["code"] == "bus_unavailable"
    assert (await api.get(f"/api/analysis/{CAMPAIGN}/layer_stats")).status_code == 200
    assert (await api.get("/health")).json() == {"status": "ok", "reason": None}
    told = (await api.get("/api/status")).json()
    assert (told["bus"]["connected"], told["queue"], told["workers"]) == (False, None, None)
    assert (await api.get("/api/workers")).json()["code"] == "bus_unavailable"
    await house.server.start()
    await until_ready(api)
    assert (await ask(api, checkpoint_step=100))["accepted"] is True
    assert (await api.get("/api/status")).json()["queue"]["layer_stats"] == {"waiting": 0, "in_flight": 0}


async def test_the_api_starts_without_a_bus(tmp_path: Path) -> None:
    settings = Settings(root=str(tmp_path))
    nowhere = f"nats://user:secret@127.0.0.1:{free_port()}"
    async with served(with_bus(settings, nowhere)) as api:
        reply = await api.post("/api/jobs", json={**WHOSE, "checkpoint_step": 100})
        assert (reply.status_code, reply.json()["code"]) == (503, "bus_unavailable")
        assert "secret" not in reply.text + (await api.get("/api/status")).text
        assert (await api.get("/api/campaigns")).json()["campaigns"] == []


def with_bus(settings: Settings, url: str) -> Settings:
    from msgspec.structs import replace  # noqa: PLC0415

    return replace(settings, bus=replace(settings.bus, url=url))


# Bad bodies.


async def test_a_body_that_is_no_request_is_refused(tmp_path: Path) -> None:
    deep = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    cases: list[tuple[bytes, int, str]] = [
        (b"", 400, "message_malformed"),
        (b"{", 400, "message_malformed"),
        (b"[]", 400, "message_malformed"),
        (b"\xff\xfe", 400, "message_malformed"),
        (b'{"campaign_id": NaN}', 400, "message_malformed"),
        (deep[:250_000], 400, "message_malformed"),
        (b"[" * 200_000, 400, "message_malformed"),
        (b'{"a": [[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]}', 400, "message_malformed"),
        (b" " * 300_000, 413, "body_too_large"),
        (b"{}", 200, "message_invalid"),
        (b'{"payload": []}', 200, "message_invalid"),
        (b'{"campaign_id": "../x", "checkpoint_step": 1}', 200, "message_invalid"),
        (b'{"hero_id": "..", "campaign_id": "c1", "checkpoint_step": 1}', 200, "message_invalid"),
        (b'{"hero_id": "dio", "campaign_id": "c1"}', 200, "message_invalid"),
        (b'{"hero_id": "dio", "campaign_id": "c1", "checkpoint_step": -1}', 200, "message_invalid"),
        (b'{"hero_id": "dio", "campaign_id": "c1", "checkpoint_step": 1, "request_id": "a b"}', 200, "message_invalid"),
        (b'{"hero_id": "dio", "campaign_id": "c1", "checkpoint_step": 1, "request_id": 7}', 200, "message_invalid"),
        (b'{"hero_id": "dio", "campaign_id": "c1", "job_type": "x"}', 200, "job_type_unknown"),
        (b'{"hero_id": "dio", "campaign_id": "c1", "checkpoint_path": "../../../../../etc"}', 200, "path_outside_root"),
        (b'{"campaign_id": "nowhere", "checkpoint_step": 1}', 400, "campaign_missing"),
    ]
    async with asking(application(Settings(root=str(tmp_path)))) as api:
        for body, code, name in cases:
            reply = await api.post("/api/jobs", content=body, headers={"Content-Type": "application/json"})
            assert (reply.status_code, reply.json()["code"]) == (code, name), (body[:80], reply.text)
            assert reply.json()["error"]
            assert reply.json().get("accepted", False) is False


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
async def test_a_form_of_another_site_cannot_ask(tmp_path: Path, kind: str) -> None:
    async with asking(application(Settings(root=str(tmp_path)))) as api:
        reply = await api.post("/api/jobs", content=b"{}", headers={"Content-Type": kind})
        assert (reply.status_code, reply.json()["code"]) == (415, "media_type_unsupported")


# Elsewhere.


async def test_where_other_machines_reach_it_a_job_needs_the_token(tmp_path: Path) -> None:
    async with asking(application(Settings(root=str(tmp_path)), token=TOKEN)) as api:
        for method in ("POST", "DELETE"):
            reply = await api.request(method, "/api/jobs", json={})
            assert (reply.status_code, reply.json()["code"]) == (401, "token_wrong")
            assert reply.headers["www-authenticate"] == "Bearer"
        with_token = await api.post("/api/jobs", json={}, headers={"Authorization": f"Bearer {TOKEN}"})
        assert with_token.json()["code"] == "message_invalid"
        assert (await api.get("/api/campaigns")).status_code == 200


async def test_a_foreign_host_and_a_foreign_origin_reach_nothing(tmp_path: Path) -> None:
    hostile = application(Settings(root=str(tmp_path)))
    async with asking(hostile, host="evil.example") as api:
        for address in ("/api/campaigns", "/schema", "/nothing"):
            reply = await api.get(address)
            assert (reply.status_code, reply.json()["code"]) == (403, "host_refused")
    async with asking(hostile) as api:
        reply = await api.post("/api/jobs", json={}, headers={"Origin": "http://evil.example"})
        assert (reply.status_code, reply.json()["code"]) == (403, "origin_refused")
        assert "access-control-allow-origin" not in reply.headers


async def test_a_request_that_is_not_http_harms_nobody(api: httpx.AsyncClient) -> None:
    address = (str(api.base_url.host), api.base_url.port or 0)
    for raw in (
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /api/jobs HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    ):

        def talk(said: bytes = raw) -> None:
            with socket.create_connection(address, timeout=10) as connection:
                connection.sendall(said)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass

        await asyncio.to_thread(talk)
    assert (await api.get("/health")).status_code == 200
