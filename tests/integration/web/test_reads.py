"""Artifacts and summaries over HTTP: the specification's section 8, and what it does not have."""

import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import msgspec
import numpy as np
import pytest
from litestar.types import ASGIApp

from archaeologist.artifacts.archive import archive, rule_of
from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.settings import ArchiveSettings, Settings, WebSettings
from archaeologist.web import listings
from contracts.artifacts import DriftTimeline, LayerStats, StabilityReport, SubmoduleDriftTimeline
from tests.fixtures.artifacts import layer_drift
from tests.fixtures.histories import folder_in, place_whole, put, put_all
from tests.fixtures.web import application, asking

STEPS = (100, 200, 300, 400)
TENSORS = ("model.layers.0.mlp.weight", "model.layers.1.mlp.weight", "lm_head.weight")


def weights(step: int) -> dict[str, Any]:
    """The first block moves the most, the head the least."""
    return {name: np.full(16, 1.0 + step * scale) for name, scale in zip(TENSORS, (3e-3, 2e-3, 1e-3), strict=True)}


def make(root: Path) -> CampaignFolder:
    found = folder_in(root)
    put_all(found, {step: weights(step) for step in STEPS})
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> CampaignFolder:
    """A campaign that no test changes."""
    return make(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module")
def shared(folder: CampaignFolder) -> ASGIApp:
    return application(Settings(root=str(folder.root)))


@pytest.fixture
async def client(shared: ASGIApp) -> AsyncIterator[httpx.AsyncClient]:
    async with asking(shared) as client:
        yield client


@pytest.fixture
def own_folder(tmp_path: Path) -> CampaignFolder:
    """A campaign of the test's own."""
    return make(tmp_path / "root")


@pytest.fixture
async def own_client(own_folder: CampaignFolder) -> AsyncIterator[httpx.AsyncClient]:
    async with asking(application(Settings(root=str(own_folder.root)))) as client:
        yield client


async def read(client: httpx.AsyncClient, address: str) -> Any:
    reply = await client.get(address)
    assert reply.status_code == 200, reply.text
    return reply.json()


async def refused(client: httpx.AsyncClient, address: str, status: int, code: str) -> str:
    """The message of a refusal."""
    reply = await client.get(address)
    assert (reply.status_code, reply.json()["code"]) == (status, code), reply.text
    assert reply.headers["content-type"] == "application/json"
    return str(reply.json()["error"])


# The specification's section 8.


async def test_the_list_has_the_specification_s_fields(client: httpx.AsyncClient, folder: CampaignFolder) -> None:
    found = await read(client, "/api/analysis/campaign/layer_stats?hero_id=hero")
    artifact = json.loads(folder.layer_stats(200).read_bytes())
    assert (found["count"], found["campaign_id"], found["hero_id"]) == (4, "campaign", "hero")
    assert [entry["checkpoint_step"] for entry in found["stats"]] == list(STEPS)
    second = found["stats"][1]
    assert second["created_at"] == artifact["created_at"]
    assert second["most_changed_layer"] == artifact["global_drift_stats"]["most_changed_layer"]
    assert second["avg_weight_norm"] == artifact["global_weight_stats"]["avg_weight_norm"]
    assert second["filename"] == "ckpt-000200.layer_stats.json"
    assert (second["has_drift"], second["has_activations"]) == (True, False)
    assert found["stats"][0]["has_drift"] is False


@pytest.mark.parametrize("query", ["", "?hero_id=hero", "?hero_id=nobody"])
async def test_the_list_of_an_unknown_campaign_is_the_empty_form(client: httpx.AsyncClient, query: str) -> None:
    assert await read(client, f"/api/analysis/elsewhere/layer_stats{query}") == {"stats": [], "count": 0}


@pytest.mark.parametrize("name", ["200", "000200", "ckpt-000200.layer_stats.json"])
async def test_an_artifact_comes_as_it_lies_on_the_disk(
    client: httpx.AsyncClient, folder: CampaignFolder, name: str
) -> None:
    reply = await client.get(f"/api/analysis/campaign/layer_stats/{name}?hero_id=hero")
    assert reply.status_code == 200
    assert reply.content == folder.layer_stats(200).read_bytes()


async def test_the_timeline_is_what_the_specification_s_loop_over_the_artifacts_gives(
    client: httpx.AsyncClient, folder: CampaignFolder
) -> None:
    found = await read(client, "/api/analysis/campaign/drift_timeline?hero_id=hero")
    artifacts = [json.loads(folder.layer_stats(step).read_bytes()) for step in STEPS[1:]]
    assert found["checkpoints"] == list(STEPS[1:])
    assert set(found["layers"]) == {"model.layers.0", "model.layers.1", "lm_head"}
    for name, layer in found["layers"].items():
        assert layer["name"] == name
        assert layer["drift_l2"] == [artifact["drift_stats"][name]["total_l2"] for artifact in artifacts]
        assert layer["drift_cosine"] == [artifact["drift_stats"][name]["total_cosine"] for artifact in artifacts]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("layers.1", {"model.layers.1"}),
        ("model,head", {"model.layers.0", "model.layers.1", "lm_head"}),
        ("layers.0,", {"model.layers.0"}),
        ("nothing", set()),
    ],
)
async def test_the_timeline_s_layers_are_filtered_by_parts_of_names(
    client: httpx.AsyncClient, layers: str, expected: set[str]
) -> None:
    found = await read(client, f"/api/analysis/campaign/drift_timeline?layers={layers}")
    assert set(found["layers"]) == expected


async def test_movers_are_the_sums_over_all_artifacts(client: httpx.AsyncClient, folder: CampaignFolder) -> None:
    found = await read(client, "/api/analysis/campaign/top_movers?hero_id=hero&n=2")
    totals: dict[str, float] = {}
    for step in STEPS[1:]:
        for name, drift in json.loads(folder.layer_stats(step).read_bytes())["drift_stats"].items():
            totals[name] = totals.get(name, 0.0) + drift["total_l2"]
    ranked = sorted(totals, key=lambda name: totals[name], reverse=True)
    assert [mover["layer"] for mover in found["top_movers"]] == ranked[:2]
    assert [mover["layer"] for mover in found["most_stable"]] == ranked[:-3:-1]
    assert found["top_movers"][0]["total_drift"] == pytest.approx(totals[ranked[0]], rel=1e-12)


@pytest.mark.parametrize(
    "page", ["drift_timeline", "top_movers", "stability", "skill_impact", "health_timeline", "layer_stats/100"]
)
async def test_what_is_not_there_is_404(client: httpx.AsyncClient, page: str) -> None:
    reply = await client.get(f"/api/analysis/elsewhere/{page}?hero_id=hero")
    assert reply.status_code == 404
    assert reply.json()["error"]


# Beyond it.


async def test_the_hero_may_be_left_out_where_only_one_has_the_campaign(
    own_client: httpx.AsyncClient, own_folder: CampaignFolder
) -> None:
    assert (await read(own_client, "/api/analysis/campaign/layer_stats"))["hero_id"] == "hero"
    (own_folder.root / "campaigns" / "other" / "campaign").mkdir(parents=True)
    message = await refused(own_client, "/api/analysis/campaign/layer_stats", 400, "hero_unclear")
    assert "hero, other" in message


async def test_campaigns_are_listed_page_by_page(own_client: httpx.AsyncClient, own_folder: CampaignFolder) -> None:
    (own_folder.root / "campaigns" / "other" / "empty").mkdir(parents=True)
    found = await read(own_client, "/api/campaigns")
    assert found["campaigns"] == [
        {"hero_id": "hero", "campaign_id": "campaign", "analyzed": 4, "latest_step": 400},
        {"hero_id": "other", "campaign_id": "empty", "analyzed": 0, "latest_step": None},
    ]
    first = await read(own_client, "/api/campaigns?limit=1")
    rest = await read(own_client, f"/api/campaigns?limit=1&offset={first['next_offset']}")
    assert first["campaigns"] + rest["campaigns"] == found["campaigns"]
    assert rest["next_offset"] is None


async def test_the_list_is_read_page_by_page(client: httpx.AsyncClient) -> None:
    address = "/api/analysis/campaign/layer_stats?limit=3"
    first = await read(client, address)
    rest = await read(client, f"{address}&offset={first['next_offset']}")
    assert [entry["checkpoint_step"] for entry in first["stats"] + rest["stats"]] == list(STEPS)
    assert (first["count"], rest["count"]) == (4, 4)
    assert "next_offset" not in rest


async def test_a_part_of_the_timeline_stays_aligned(client: httpx.AsyncClient) -> None:
    address = "/api/analysis/campaign/drift_timeline?fields=relative_l2&first_step=201&last_step=300"
    whole = await read(client, "/api/analysis/campaign/drift_timeline")
    found = await read(client, address)
    assert found["checkpoints"] == [300]
    assert found["reference_steps"] == [200]
    assert found["layers"]["lm_head"] == {
        "name": "lm_head",
        "layer_type": whole["layers"]["lm_head"]["layer_type"],
        "relative_l2": whole["layers"]["lm_head"]["relative_l2"][1:2],
    }


async def test_the_other_summaries_come_as_they_are(client: httpx.AsyncClient, folder: CampaignFolder) -> None:
    report = await read(client, "/api/analysis/campaign/stability")
    assert report == json.loads(folder.stability.read_bytes())
    assert msgspec.convert(report, StabilityReport).checkpoints
    assert await read(client, "/api/analysis/campaign/skill_impact") == json.loads(folder.skill_impact.read_bytes())
    assert await read(client, "/api/analysis/campaign/health_timeline") == json.loads(folder.health.read_bytes())
    assert (await read(client, "/api/analysis/campaign/health_timeline?first_step=400"))["checkpoints"] == [400]


async def test_comparisons_are_listed_and_read(own_client: httpx.AsyncClient, own_folder: CampaignFolder) -> None:
    for base, target in ((100, 400), (100, 300)):
        path = own_folder.layer_drift(base, target)
        path.parent.mkdir(exist_ok=True)
        place_whole(path, msgspec.json.encode(layer_drift(base=base, target=target)))
    place_whole(own_folder.layer_drift(1, 2), b"{")
    found = await read(own_client, "/api/analysis/campaign/layer_drift?hero_id=hero")
    pairs = [(entry["base_checkpoint_step"], entry["target_checkpoint_step"]) for entry in found["drifts"]]
    assert pairs == [(100, 300), (100, 400)]
    assert (found["count"], [left["file"] for left in found["left_out"]]) == (
        3,
        ["layer_drift/drift-000001-to-000002.json"],
    )
    for name in ("100-300", "drift-000100-to-000300.json"):
        reply = await own_client.get(f"/api/analysis/campaign/layer_drift/{name}")
        assert reply.content == own_folder.layer_drift(100, 300).read_bytes()


async def test_a_new_artifact_is_in_the_next_reply(own_client: httpx.AsyncClient, own_folder: CampaignFolder) -> None:
    before = await own_client.get("/api/analysis/campaign/layer_stats")
    put(own_folder, 500, weights(500), reference=(400, weights(400)))
    after = await own_client.get("/api/analysis/campaign/layer_stats")
    assert (before.json()["count"], after.json()["count"]) == (4, 5)
    assert before.headers["etag"] != after.headers["etag"]
    assert (await read(own_client, "/api/analysis/campaign/drift_timeline"))["checkpoints"][-1] == 500


# Sent once.


@pytest.mark.parametrize(
    "page",
    ["layer_stats", "layer_stats/200", "drift_timeline", "top_movers", "stability", "skill_impact", "health_timeline"],
)
async def test_what_has_not_changed_is_not_sent_again(client: httpx.AsyncClient, page: str) -> None:
    address = f"/api/analysis/campaign/{page}"
    first = await client.get(address)
    again = await client.get(address, headers={"If-None-Match": f'"other", {first.headers["etag"]}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])


async def test_an_unchanged_artifact_is_not_read_for_304(
    client: httpx.AsyncClient, folder: CampaignFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = "/api/analysis/campaign/layer_stats/200"
    etag = (await client.get(address)).headers["etag"]
    monkeypatch.delattr("archaeologist.web.analysis.read_checked")
    async with asking(application(Settings(root=str(folder.root)))) as fresh:
        assert (await fresh.get(address, headers={"If-None-Match": etag})).status_code == 304
        assert (await fresh.get(address)).status_code == 500, "here it would have been read"


async def test_a_replaced_artifact_has_another_etag(own_client: httpx.AsyncClient, own_folder: CampaignFolder) -> None:
    address = "/api/analysis/campaign/layer_stats/200"
    etag = (await own_client.get(address)).headers["etag"]
    put(own_folder, 200, weights(201), reference=(100, weights(100)))
    again = await own_client.get(address, headers={"If-None-Match": etag})
    assert again.status_code == 200
    assert again.content == own_folder.layer_stats(200).read_bytes()


@pytest.mark.parametrize(
    ("accepted", "encoding"), [("gzip, br", "gzip"), ("*", "gzip"), ("gzip;q=0", None), ("identity", None), ("", None)]
)
async def test_replies_are_compressed_for_whom_takes_it(
    client: httpx.AsyncClient, folder: CampaignFolder, accepted: str, encoding: str | None
) -> None:
    request = client.build_request(
        "GET", "/api/analysis/campaign/layer_stats/200", headers={"Accept-Encoding": accepted}
    )
    reply = await client.send(request, stream=True)
    raw = b"".join([part async for part in reply.aiter_raw()])
    assert reply.headers.get("content-encoding") == encoding
    assert "Accept-Encoding" in reply.headers["vary"]
    assert (gzip.decompress(raw) if encoding else raw) == folder.layer_stats(200).read_bytes()


async def test_a_cache_of_no_size_serves_the_same(folder: CampaignFolder) -> None:
    settings = Settings(root=str(folder.root), web=WebSettings(max_cache_bytes=0))
    async with asking(application(settings)) as client:
        for _ in range(2):
            found = await read(client, "/api/analysis/campaign/drift_timeline")
            assert msgspec.convert(found, DriftTimeline).checkpoints == STEPS[1:]


# Bad input.


@pytest.mark.parametrize("n", ["-1", "0", "1e9", "1000000000", "ten", "9" * 400])
async def test_a_number_of_movers_beyond_the_rule_is_refused_with_it(client: httpx.AsyncClient, n: str) -> None:
    message = await refused(client, f"/api/analysis/campaign/top_movers?n={n}", 400, "parameter_invalid")
    assert f"n={n[:100]!r}: Expected `int`" in message


@pytest.mark.parametrize("layers", ["x" * 10_000, ",".join("ab" for _ in range(200))])
async def test_a_list_of_layers_beyond_bounds_is_refused(client: httpx.AsyncClient, layers: str) -> None:
    await refused(client, f"/api/analysis/campaign/drift_timeline?layers={layers}", 400, "parameter_invalid")


async def test_an_unknown_field_is_refused_with_the_known(client: httpx.AsyncClient) -> None:
    message = await refused(client, "/api/analysis/campaign/drift_timeline?fields=l3", 400, "parameter_invalid")
    assert "drift_l2" in message


@pytest.mark.parametrize("name", ["..", ".hidden", "a..b", "-x", "a b", "<b>", "x" * 129, "%00", "a%0A"])
async def test_a_name_that_is_none_is_refused(client: httpx.AsyncClient, name: str) -> None:
    for address in (
        f"/api/analysis/{name}/layer_stats?hero_id=hero",
        f"/api/analysis/campaign/layer_stats?hero_id={name}",
    ):
        reply = await client.get(address)
        if reply.status_code == 404:
            assert reply.json()["code"] == "route_missing", "a path that the client itself has folded"
            continue
        assert (reply.status_code, reply.json()["code"]) == (400, "message_invalid"), address


@pytest.mark.parametrize(
    "name",
    [
        "..%2F..%2F..%2Fsecret.json",
        "%2e%2e%2f%2e%2e%2fsecret.json",
        "....%2F%2Fsecret.json",
        "secret.json",
        "ckpt-200.layer_stats.json",
        "ckpt-000200.layer_stats.json%00",
        "9" * 17,
        "-200",
        "٢٠٠",
        "%3Cscript%3E",
    ],
)
async def test_no_name_of_a_checkpoint_leads_out_of_its_folder(
    client: httpx.AsyncClient, folder: CampaignFolder, name: str
) -> None:
    for place in (folder.root, folder.analysis):
        (place / "secret.json").write_text('{"secret": true}')
    for kind in ("layer_stats", "layer_drift"):
        reply = await client.get(f"/api/analysis/campaign/{kind}/{name}")
        assert reply.status_code == 404, reply.text
        assert reply.headers["content-type"] == "application/json"


async def test_an_artifact_that_is_a_link_out_of_the_root_is_not_served(
    own_client: httpx.AsyncClient, own_folder: CampaignFolder, tmp_path: Path
) -> None:
    outside = tmp_path / "outside.json"
    outside.write_bytes(own_folder.layer_stats(200).read_bytes())
    own_folder.layer_stats(600).symlink_to(outside)
    await refused(own_client, "/api/analysis/campaign/layer_stats/600", 403, "path_outside_root")


async def test_a_damaged_and_a_future_artifact_are_reported_and_the_others_served(
    own_client: httpx.AsyncClient, own_folder: CampaignFolder
) -> None:
    future = json.loads(own_folder.layer_stats(300).read_bytes())
    place_whole(own_folder.layer_stats(200), b'{"version": 1, ')
    place_whole(own_folder.layer_stats(300), json.dumps({**future, "version": 99}).encode())
    found = await read(own_client, "/api/analysis/campaign/layer_stats")
    assert [entry["checkpoint_step"] for entry in found["stats"]] == [100, 400]
    reasons = {left["file"]: left["reason"] for left in found["left_out"]}
    assert set(reasons) == {f"layer_stats/ckpt-000{step}.layer_stats.json" for step in (200, 300)}
    assert "version 99" in reasons["layer_stats/ckpt-000300.layer_stats.json"]
    assert (await read(own_client, "/api/analysis/campaign/drift_timeline"))["checkpoints"] == [400]
    for step in (200, 300):
        await refused(own_client, f"/api/analysis/campaign/layer_stats/{step}", 500, "artifact_invalid")


async def test_a_damaged_summary_is_built_anew(own_client: httpx.AsyncClient, own_folder: CampaignFolder) -> None:
    whole = await read(own_client, "/api/analysis/campaign/drift_timeline")
    place_whole(own_folder.timeline, b"[]")
    assert await read(own_client, "/api/analysis/campaign/drift_timeline") == whole


async def test_the_list_outlives_the_loss_of_what_was_known(
    own_client: httpx.AsyncClient, own_folder: CampaignFolder
) -> None:
    whole = await read(own_client, "/api/analysis/campaign/layer_stats")
    (own_folder.summaries / ".extracts").write_bytes(b"half")
    assert await read(own_client, "/api/analysis/campaign/layer_stats") == whole


async def test_what_is_not_summarized_in_time_is_said_and_goes_on(
    own_client: httpx.AsyncClient, own_folder: CampaignFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("archaeologist.web.library.PATIENCE_SECONDS", -1.0)
    reply = await own_client.get("/api/analysis/campaign/stability")
    assert (reply.status_code, reply.json()["code"], reply.headers["retry-after"]) == (503, "summaries_late", "2")
    monkeypatch.undo()
    assert (await read(own_client, "/api/analysis/campaign/layer_stats"))["count"] == 4
    put(own_folder, 500, weights(500), reference=(400, weights(400)))
    monkeypatch.setattr("archaeologist.web.library.PATIENCE_SECONDS", -1.0)
    behind = await own_client.get("/api/analysis/campaign/drift_timeline")
    assert behind.headers["archaeologist-summaries"] == "behind"
    assert behind.json()["checkpoints"] == list(STEPS[1:])


async def test_a_summary_that_is_gone_is_made_again(own_client: httpx.AsyncClient, own_folder: CampaignFolder) -> None:
    whole = await read(own_client, "/api/analysis/campaign/stability")
    own_folder.stability.unlink()
    assert await read(own_client, "/api/analysis/campaign/stability") == whole


async def test_markup_in_an_artifact_stays_text(own_client: httpx.AsyncClient, own_folder: CampaignFolder) -> None:
    name = "<script>alert(1)</script>.weight"
    put(own_folder, 500, {**weights(500), name: np.ones(4)}, reference=(400, {**weights(400), name: np.zeros(4)}))
    reply = await own_client.get("/api/analysis/campaign/layer_stats/500")
    assert any("<script>" in block for block in msgspec.json.decode(reply.content, type=LayerStats).weight_stats)
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'self'" in reply.headers["content-security-policy"]


async def test_an_error_repeats_markup_as_json_text(client: httpx.AsyncClient) -> None:
    reply = await client.get("/api/analysis/campaign/top_movers?n=<script>alert(1)</script>")
    assert reply.headers["content-type"] == "application/json"
    assert "<script>" in reply.json()["error"]


@pytest.mark.parametrize(
    "address", ["/api", "/api/analysis", "/static/../../etc/passwd", "/api/analysis/campaign/nothing"]
)
async def test_what_is_not_served_says_so_as_json(client: httpx.AsyncClient, address: str) -> None:
    await refused(client, address, 404, "route_missing")


async def test_a_method_that_is_not_served_says_so(client: httpx.AsyncClient) -> None:
    reply = await client.put("/api/campaigns")
    assert (reply.status_code, reply.json()["code"]) == (405, "route_missing")


# The description.


async def test_the_api_describes_itself(client: httpx.AsyncClient) -> None:
    found = await read(client, "/schema/openapi.json")
    assert await read(client, "/schema") == found
    assert found["openapi"].startswith("3.1")
    assert set(found["paths"]) >= {
        "/api/campaigns",
        "/api/analysis/{campaign_id}/layer_stats",
        "/api/analysis/{campaign_id}/layer_stats/{checkpoint}",
        "/api/analysis/{campaign_id}/drift_timeline",
        "/api/analysis/{campaign_id}/top_movers",
        "/api/jobs",
        "/api/jobs/{job_id}",
        "/api/events",
    }
    assert "requestBody" in found["paths"]["/api/jobs"]["post"]
    movers = found["paths"]["/api/analysis/{campaign_id}/top_movers"]["get"]
    (n,) = [parameter for parameter in movers["parameters"] if parameter["name"] == "n"]
    assert (n["schema"]["minimum"], n["schema"]["maximum"], n["schema"]["default"]) == (1, 1000, 10)
    assert set(movers["responses"]) >= {"200", "304", "400", "404", "503"}


@pytest.mark.parametrize(
    ("route", "address"),
    [
        ("/api/campaigns", "/api/campaigns"),
        *(
            (f"/api/analysis/{{campaign_id}}/{page}", f"/api/analysis/campaign/{page}")
            for page in ("layer_stats", "drift_timeline", "health_timeline", "top_movers", "stability", "skill_impact")
        ),
        ("/api/analysis/{campaign_id}/layer_stats/{checkpoint}", "/api/analysis/campaign/layer_stats/200"),
        ("/api/analysis/{campaign_id}/layer_drift", "/api/analysis/campaign/layer_drift"),
        ("/api/analysis/{campaign_id}/top_movers", "/api/analysis/campaign/top_movers?n=0"),
        ("/api/analysis/{campaign_id}/layer_stats/{checkpoint}", "/api/analysis/campaign/layer_stats/1"),
        ("/api/jobs", "/api/jobs"),
        ("/api/jobs/{job_id}", "/api/jobs/x"),
        ("/api/status", "/api/status"),
        ("/health", "/health"),
        ("/ready", "/ready"),
    ],
)
async def test_replies_are_what_the_description_says(client: httpx.AsyncClient, route: str, address: str) -> None:
    description = await read(client, "/schema")
    reply = await client.get(address)
    described = description["paths"][route]["get"]["responses"][str(reply.status_code)]
    schema = described["content"]["application/json"]["schema"]
    jsonschema.validate(reply.json(), {**schema, "components": description["components"]})


async def test_archived_artifacts_are_served_as_before_and_said_to_be_away_with_their_disk(
    own_folder: CampaignFolder,
) -> None:
    own_folder.layer_drift(100, 200).parent.mkdir()
    place_whole(own_folder.layer_drift(100, 200), msgspec.json.encode(layer_drift()))
    warm = own_folder.root.with_name("warm")
    (warm / "campaigns").mkdir(parents=True)
    settings = Settings(root=str(own_folder.root), archive=ArchiveSettings(warm_root=str(warm), after_days=0))
    one = "/api/analysis/campaign/layer_stats/100"
    lists = ("/api/analysis/campaign/layer_stats", "/api/analysis/campaign/layer_drift")
    paths = (one, *lists, "/api/analysis/campaign/layer_drift/100-200", "/api/analysis/campaign/drift_timeline")
    async with asking(application(settings)) as client:
        before = [(await client.get(path)).content for path in paths]
        report = archive(own_folder, rule_of(settings))
        assert (report.archived, report.error) == (len(STEPS) + 1, None)
        assert [(await client.get(path)).content for path in paths] == before
    warm.rename(warm.with_name("away"))
    listings._head.cache_clear()  # as in a process that has not listed them before
    async with asking(application(settings)) as client:
        answer = await client.get(one)
        assert (answer.status_code, answer.json()["code"]) == (503, "archive_unavailable")
        assert (await client.get(lists[0])).json()["count"] == len(STEPS)
        assert [of["code"] for of in (await client.get(lists[1])).json()["left_out"]] == ["archive_unavailable"]
        warm.with_name("away").rename(warm)
        assert [(await client.get(path)).content for path in paths] == before


async def test_a_link_out_of_both_roots_in_an_archived_artifacts_place_is_refused(own_folder: CampaignFolder) -> None:
    secret = own_folder.root.with_name("secret.json.gz")
    secret.write_bytes(gzip.compress(own_folder.layer_stats(100).read_bytes()))
    (own_folder.layer_stats(0).parent / "ckpt-000900.layer_stats.json.gz").symlink_to(secret)
    async with asking(application(Settings(root=str(own_folder.root)))) as client:
        answer = await client.get("/api/analysis/campaign/layer_stats/900")
    assert (answer.status_code, answer.json()["code"]) == (403, "path_outside_root")


# The drift of submodules.


async def test_the_drift_of_submodules_is_the_artifacts(client: httpx.AsyncClient) -> None:
    found = await read(client, "/api/analysis/campaign/submodule_drift")
    decoded = msgspec.convert(found, SubmoduleDriftTimeline)
    assert list(decoded.checkpoints) == list(STEPS[1:])
    assert list(decoded.reference_steps) == list(STEPS[:-1])
    assert list(decoded.submodules) == list(TENSORS)
    newest = await read(client, f"/api/analysis/campaign/layer_stats/{STEPS[-1]}")
    for name, one in decoded.submodules.items():
        tensor = newest["drift_stats"][one.block]["tensors"][name.removeprefix(f"{one.block}.")]
        for field in ("l2", "relative_l2", "one_minus_cosine", "changed_fraction", "below_resolution"):
            assert getattr(one, field)[-1] == tensor[field]
            assert len(getattr(one, field)) == len(decoded.checkpoints)


async def test_a_part_of_the_drift_of_submodules_is_chosen(client: httpx.AsyncClient) -> None:
    address = "/api/analysis/campaign/submodule_drift?layers=lm_head&fields=l2&first_step=300&last_step=300"
    found = await read(client, address)
    assert found["checkpoints"] == [300]
    assert found["submodules"].keys() == {"lm_head.weight"}
    assert found["submodules"]["lm_head.weight"].keys() == {"name", "block", "l2"}
    first = await client.get(address)
    again = await client.get(address, headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304


async def test_too_much_for_one_reply_is_refused(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("archaeologist.web.submodules.MOST_VALUES", 3)
    said = await refused(
        client, "/api/analysis/campaign/submodule_drift?fields=l2,relative_l2", 400, "parameter_invalid"
    )
    assert "choose some by layers, fields" in said
