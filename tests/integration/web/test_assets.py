"""The page's files: all from here, cached as long as they last, allowed by a policy that knows no inline script."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

import archaeologist.web
from archaeologist.figures.grid import METRICS
from archaeologist.figures.themes import DARK, LIGHT
from archaeologist.settings import LinkSettings, Settings, WebSettings
from archaeologist.web.page import FILES
from tests.fixtures.web import application, asking
from tests.integration.web.test_reads import refused

MARKUP = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|https?://(?!www\.w3)")
"""What could turn data into markup, or ask for something elsewhere."""
ASSETS = Path(archaeologist.web.__file__).parent / "assets"
TEXTS = {"page.html.jinja", "document.html.jinja", "statistics.md"}
"""What is rendered before it is served."""


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with asking(application(Settings(root=str(tmp_path)))) as client:
        yield client


@pytest.mark.parametrize("address", ["/", "/analysis"])
async def test_the_page_allows_scripts_of_this_server_only(client: httpx.AsyncClient, address: str) -> None:
    reply = await client.get(address)
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    rules = dict(rule.strip().split(" ", 1) for rule in reply.headers["content-security-policy"].split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["connect-src"] == "'self'"
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|style=", reply.text)


async def test_whatever_the_page_names_is_served_here_and_kept(client: httpx.AsyncClient) -> None:
    page = (await client.get("/")).text
    named = re.findall(r'(?:src|href)="([^"#]*)"', page)
    files = [address for address in named if not address.startswith(("data:", "/docs/"))]
    assert len(files) == 5
    for address in files:
        assert address.startswith("/assets/")
        reply = await client.get(address)
        again = await client.get(address, headers={"If-None-Match": reply.headers["etag"]})
        assert (reply.status_code, again.status_code, again.content) == (200, 304, b"")
        is_plotly = "plotly" in address
        assert ("immutable" in reply.headers["cache-control"]) is is_plotly
        assert (len(reply.content) > 1_000_000) is is_plotly


async def test_every_module_that_another_one_imports_is_served(client: httpx.AsyncClient) -> None:
    assert {path.name for path in ASSETS.iterdir()} - TEXTS == set(FILES)
    for name in (name for name in FILES if name.endswith(".js")):
        text = (await client.get(f"/assets/{name}")).text
        assert set(re.findall(r'from "\./([^"]+)"', text)) <= set(FILES), name
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|https?://(?!www\.w3)", text
        )


async def test_the_readers_choice_of_a_theme_comes_before_the_systems(client: httpx.AsyncClient) -> None:
    style = (await client.get("/assets/base.css")).text
    assert (
        style.index(DARK.ground)
        < style.index(":root:not([data-theme='dark'])")
        < style.index(":root[data-theme='light']")
    )
    assert style.count(LIGHT.ground) == 2
    themes = (await client.get("/assets/themes.json")).json()
    assert themes["light"]["layout"]["font"]["color"] == LIGHT.text


@pytest.mark.parametrize("name", ["page.html.jinja", "statistics.md", "nothing.js", "..%2Fpage.py", "%2Fetc%2Fpasswd"])
async def test_nothing_else_is_served(client: httpx.AsyncClient, name: str) -> None:
    await refused(client, f"/assets/{name}", 404, "route_missing")


async def test_the_header_links_to_the_pages_that_the_settings_name(tmp_path: Path) -> None:
    links = (LinkSettings(title="Tavern <b>", address="http://tavern.local/?a=1&b=2"),)
    settings = Settings(root=str(tmp_path), web=WebSettings(links=links))
    async with asking(application(settings)) as client:
        page = (await client.get("/analysis")).text
    assert '<a href="http://tavern.local/?a=1&amp;b=2">Tavern &lt;b&gt;</a>' in page


async def test_what_the_numbers_are_is_read_on_this_server(client: httpx.AsyncClient) -> None:
    reply = await client.get("/docs/statistics")
    assert reply.status_code == 200
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    ids = re.findall(r'<h\d id="([^"]+)">', reply.text)
    assert len(ids) == len(set(ids))
    assert {metric.section for metric in METRICS.values()} <= set(ids)
    assert "<script" not in reply.text.split("<main", 1)[1]
    assert "<td>√Σ(x-y)²</td>" in reply.text


async def test_every_field_that_the_page_explains_has_a_definition(client: httpx.AsyncClient) -> None:
    known = (await client.get("/assets/definitions.json")).json()
    ids = re.findall(r'<h\d id="([^"]+)">', (await client.get("/docs/statistics")).text)
    for section, fields in known.items():
        assert section in ids
        assert {field["address"] for field in fields.values()} == {f"/docs/statistics#{section}"}
        assert all(field["text"] for field in fields.values())
    assert known["weight-drift"]["l2"]["text"] == "√Σ(x-y)²"
    assert known["weight-health"]["l2"]["text"] == "√Σx², √(Σx²/n)"
    for name, section in (("MOVED", "weight-drift"), ("ACTIVE", "activations")):
        listed = re.search(rf"const {name} = \[(.*?)\]", (ASSETS / "sections.js").read_text(encoding="utf-8"))
        assert listed is not None
        fields = set(re.findall(r'"(\w+)"', listed[1]))
        assert fields <= known[section].keys() | known["representation"].keys()


@pytest.mark.parametrize("name", ["odd", "swagger", "..%2Fopenapi.json"])
async def test_beside_the_description_nothing_is_served(client: httpx.AsyncClient, name: str) -> None:
    await refused(client, f"/schema/{name}", 404, "route_missing")
