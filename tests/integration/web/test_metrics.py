"""What Prometheus gets from a running web edge and a running daemon."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.fixtures.programs import Daemon
from tests.fixtures.servers import Server, free_port
from tests.fixtures.waiting import until, until_asked
from tests.integration.daemon.house import House, of, with_quick_children
from tests.integration.web.conftest import until_ready


async def scraped(client: httpx.AsyncClient) -> dict[tuple[str, tuple[str, ...]], float]:
    """Every value by its name and the values of its labels."""
    reply = await client.get("/metrics")
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(reply.text)
    return {(s.name, tuple(s.labels.values())): s.value for family in families for s in family.samples}


async def test_a_job_s_way_shows_in_the_queue_and_at_its_end(
    house: House, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_quick_children(monkeypatch, alerts=2)
    waiting = ("archaeologist_queue_jobs", ("layer_stats", "normal", "waiting"))
    finished = ("archaeologist_job_duration_seconds_count", ("layer_stats", "done"))
    completed = ("archaeologist_events_published_total", ("analysis.completed",))
    before = await scraped(api)
    assert before[waiting] == 0
    house.save(100)
    async with house.daemon():
        await house.request("first", checkpoint_step=100)
        await house.until_event(of("first", "alert"))
        await house.until_ended("first")
        after = await scraped(api)
    assert after[finished] == before[finished] + 1
    assert after[completed] == before[completed] + 1
    assert after["archaeologist_last_analysed_step", ("c1", "dio")] == 100
    assert after["archaeologist_bus_connected", ("web",)] == 1
    name = "archaeologist_alerts_total"
    alerts = sum(value - before.get(key, 0) for key, value in after.items() if key[0] == name)
    assert alerts == 2


async def test_without_the_bus_the_measures_are_there_and_the_queue_is_not(
    house: House, api: httpx.AsyncClient
) -> None:
    await house.server.kill()
    await until_ready(api, status=503)
    found = await scraped(api)
    assert found["archaeologist_bus_connected", ("web",)] == 0
    assert not [key for key in found if key[0] == "archaeologist_queue_jobs"]


async def test_a_name_that_is_not_this_server_s_gets_no_measures(api: httpx.AsyncClient) -> None:
    assert (await api.get("/metrics", headers={"Host": "evil.example"})).status_code == 403


# The daemon's own listener.


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{free_port()}", trust_env=False) as client:
        yield client


async def test_a_daemon_tells_prometheus_and_whoever_asks_how_it_is(tmp_path: Path, client: httpx.AsyncClient) -> None:
    async def answers(status: int) -> bool:
        try:
            return (await client.get("/ready")).status_code == status
        except httpx.ConnectError:
            return False

    variables = {"ARCHAEOLOGIST_METRICS__PORT": str(client.base_url.port)}
    async with (
        Server(tmp_path / "nats") as server,
        Daemon(root=tmp_path / "root", url=server.url, environment=variables) as daemon,
    ):
        await until_asked(lambda: answers(200), seconds=30)
        found = await scraped(client)
        assert found["archaeologist_bus_connected", ("daemon",)] == 1
        assert found["archaeologist_job_slots", ("layer_drift",)] == 2
        assert found["archaeologist_queue_jobs", ("layer_stats", "high", "waiting")] == 0
        assert (await client.get("/metrics", headers={"Host": "evil.example"})).status_code == 403
        assert (await client.get("/elsewhere")).json()["code"] == "route_missing"
        await server.kill()
        await until_asked(lambda: answers(503))
        reply = (await client.get("/ready")).json()
        assert (reply["status"], "no connection to the bus" in reply["reason"]) == ("degraded", True)
        assert (await client.get("/health")).json()["status"] == "ok"
        assert await daemon.stop() == 0


async def test_a_daemon_whose_port_is_taken_says_which_setting_chooses_another(tmp_path: Path) -> None:
    async with Server(tmp_path / "nats") as server:
        variables = {"ARCHAEOLOGIST_METRICS__PORT": str(server.port)}
        async with Daemon(root=tmp_path / "root", url=server.url, environment=variables) as daemon:
            await until(lambda: not daemon.is_running, seconds=30)
            assert "listen_impossible" in daemon.log()
            assert "metrics.port" in daemon.log()
