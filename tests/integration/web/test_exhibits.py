"""What the page shows, over HTTP: figures with the summaries' numbers, the tables behind them, findings and cards."""

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.settings import Settings
from tests.fixtures.histories import CAMPAIGN, artifact, folder_in, put, put_all, with_activations
from tests.fixtures.web import application, asking
from tests.integration.web.test_reads import STEPS, read, refused, weights

ADDRESS = f"/api/analysis/{CAMPAIGN}"
BLOCKS = ["model.layers.0", "model.layers.1", "lm_head"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> CampaignFolder:
    """A campaign that no test changes; its newest checkpoint was run on probes."""
    found = folder_in(tmp_path_factory.mktemp("exhibits"))
    put_all(found, {step: weights(step) for step in STEPS})
    newest = with_activations(artifact(500, weights(500), reference=(400, weights(400))), std=1.5, entropy=2.5)
    fields = {name: getattr(newest, name) for name in ("activation_stats", "probe_info", "output_stats")}
    put(found, 500, weights(500), reference=(400, weights(400)), **fields)
    return found


@pytest.fixture
async def client(folder: CampaignFolder) -> AsyncIterator[httpx.AsyncClient]:
    async with asking(application(Settings(root=str(folder.root)))) as client:
        yield client


def values(array: Any) -> Any:
    """What a figure holds, as plotly sends arrays."""
    if isinstance(array, dict):
        flat = np.frombuffer(base64.b64decode(array["bdata"]), array["dtype"])
        return flat.reshape([int(size) for size in array["shape"].split(",")]) if "shape" in array else flat
    return np.array(array, float)


async def test_contents_say_what_there_is_to_choose(client: httpx.AsyncClient) -> None:
    found = await read(client, f"{ADDRESS}/contents")
    assert found["blocks"] == BLOCKS
    assert found["checkpoints"] == 5
    assert [metric["name"] for metric in found["metrics"]] == [
        "relative_l2",
        "l2",
        "one_minus_cosine",
        "changed_fraction",
        "activation_std",
        "rankme",
    ]
    assert found["has_movers"]
    assert found["has_probes"]
    assert found["skills"] == []
    assert ["campaign", "hero/campaign"] in found["provenance"]


async def test_the_strata_have_the_timelines_numbers(client: httpx.AsyncClient) -> None:
    found = await read(client, f"{ADDRESS}/figures/strata?metric=l2")
    timeline = await read(client, f"{ADDRESS}/drift_timeline")
    layout = found["figure"]["layout"]
    assert layout["meta"]["blocks"] == BLOCKS
    assert layout["meta"]["steps"] == [[step, step] for step in (*STEPS, 500)]
    drawn = values(found["figure"]["data"][0]["customdata"])
    expected = [timeline["layers"][block]["l2"] for block in BLOCKS]
    assert np.isnan(drawn[:, 0]).all()
    np.testing.assert_allclose(drawn[:, 1:], expected, rtol=1e-6)
    assert found["title"] == "L2"
    assert found["table"]["head"] == ["L2", "100", "200", "300", "400", "500"]
    assert [row[0] for row in found["table"]["rows"]] == BLOCKS[::-1]


async def test_the_strata_have_a_row_a_submodule_where_they_are_asked_for(client: httpx.AsyncClient) -> None:
    found = await read(client, f"{ADDRESS}/figures/strata?metric=l2&rows=submodule")
    meta = found["figure"]["layout"]["meta"]
    assert list(dict.fromkeys(meta["blocks"])) == BLOCKS
    assert len(meta["rows"]) == len(set(meta["rows"])) == len(weights(100))
    artifacts = [await read(client, f"{ADDRESS}/layer_stats/{step}") for step in (*STEPS, 500)]
    drawn = values(found["figure"]["data"][0]["customdata"])
    for row, (name, block) in enumerate(zip(meta["rows"], meta["blocks"], strict=True)):
        tensor = name.removeprefix(f"{block}.")
        expected = [one["drift_stats"][block]["tensors"][tensor]["l2"] for one in artifacts[1:]]
        assert drawn[row, 1:].tolist() == pytest.approx(expected, rel=1e-6)
    assert [row[0] for row in found["table"]["rows"]] == meta["rows"][::-1]


async def test_a_block_over_time_has_all_comparisons_of_its_parts(client: httpx.AsyncClient) -> None:
    found = await read(client, f"{ADDRESS}/figures/layer?block=model.layers.0&metric=l2")
    assert found["table"]["head"][:2] == ["step", "L2"]
    assert found["table"]["head"][5:] == ["mlp.weight"]
    assert [row[0] for row in found["table"]["rows"]] == ["100", "200", "300", "400", "500"]
    assert all(cell != "\N{EN DASH}" for row in found["table"]["rows"][1:] for cell in row[5:])


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("strata?metric=activation_std&rows=submodule", "of submodules there are relative_l2, l2"),
        ("strata?rows=tensor", "rows"),
        ("layer?block=lm_head&metric=cka", "of a block over time there are relative_l2"),
    ],
)
async def test_rows_and_metrics_that_do_not_go_together_are_refused(
    client: httpx.AsyncClient, query: str, says: str
) -> None:
    reply = await client.get(f"{ADDRESS}/figures/{query}")
    assert reply.status_code == 400
    assert says in reply.json()["error"]


@pytest.mark.parametrize(
    "figure", ["strata", "movers", "layer?block=lm_head", "health", "strata?metric=activation_std"]
)
async def test_every_figure_has_data_and_a_table(client: httpx.AsyncClient, figure: str) -> None:
    found = await read(client, f"{ADDRESS}/figures/{figure}")
    assert found["figure"]["data"]
    assert found["table"]["rows"]
    assert "template" not in found["figure"]["layout"]


async def test_a_figure_is_sent_once(client: httpx.AsyncClient) -> None:
    address = f"{ADDRESS}/figures/strata"
    first = await client.get(address)
    again = await client.get(address, headers={"If-None-Match": first.headers["etag"]})
    other = await client.get(f"{address}?metric=l2", headers={"If-None-Match": first.headers["etag"]})
    assert (first.status_code, again.status_code, other.status_code) == (200, 304, 200)


async def test_findings_say_where_their_numbers_are(client: httpx.AsyncClient) -> None:
    found = (await read(client, f"{ADDRESS}/findings"))["findings"]
    assert 1 <= len(found) <= 6
    sections = {"skills", "provenance", "health", "movers", "layers", "strata", "checkpoints"}
    assert {one["section"] for one in found} <= sections
    assert all(one["text"] and one["severity"] in {"critical", "warning", "success", "info"} for one in found)


async def test_the_cards_are_the_specifications_four(client: httpx.AsyncClient) -> None:
    cards = (await read(client, f"{ADDRESS}/cards"))["cards"]
    assert [card["title"] for card in cards] == [
        "Checkpoints analysed",
        "Most changed",
        "Most stable",
        "Average drift",
    ]
    assert cards[0]["value"] == "5"
    assert cards[1]["block"] == "model.layers.0"


async def test_checkpoints_stand_newest_first(client: httpx.AsyncClient) -> None:
    found = await read(client, f"{ADDRESS}/tables/checkpoints")
    assert [row[0] for row in found["rows"]] == ["500", "400", "300", "200", "100"]
    assert (await read(client, f"{ADDRESS}/tables/alerts"))["rows"] == []


async def test_what_is_not_there_is_named(client: httpx.AsyncClient) -> None:
    assert "relative_l2" in await refused(client, f"{ADDRESS}/figures/strata?metric=beauty", 400, "parameter_invalid")
    assert "not measured" in await refused(client, f"{ADDRESS}/figures/strata?metric=cka", 404, "artifact_missing")
    assert "'nowhere'" in await refused(client, f"{ADDRESS}/figures/layer?block=nowhere", 400, "parameter_invalid")
    await refused(client, f"{ADDRESS}/figures/layer", 400, "parameter_invalid")
    await refused(client, f"{ADDRESS}/figures/scores?skill=%3Cb%3E", 400, "parameter_invalid")
    await refused(client, f"{ADDRESS}/figures/mona-lisa", 400, "parameter_invalid")
    await refused(client, f"{ADDRESS}/tables/periodic", 400, "parameter_invalid")
    await refused(client, f"{ADDRESS}/figures/layer?block={'x' * 2000}", 400, "parameter_invalid")
    await refused(client, "/api/analysis/nothing/contents", 404, "campaign_missing")


async def test_a_campaign_without_a_comparison_says_that_nothing_was_measured(tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    put(folder, 100, weights(100))
    async with asking(application(Settings(root=str(folder.root)))) as client:
        contents = await read(client, f"{ADDRESS}/contents")
        assert (contents["metrics"], contents["has_movers"]) == ([], False)
        assert "not measured" in await refused(client, f"{ADDRESS}/figures/strata", 404, "artifact_missing")
        assert (await read(client, f"{ADDRESS}/cards"))["cards"][1]["value"] == "not measured"
