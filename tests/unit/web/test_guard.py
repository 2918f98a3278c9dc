"""Who may ask: names, origins, tokens."""

import pytest

from archaeologist.errors import ArchaeologistError, HostRefused, OriginRefused, ParameterInvalid, TokenWrong
from archaeologist.web.guard import LOOPBACK_NAMES, Rules, check_text, is_loopback

TOKEN = "0123456789abcdef"  # noqa: S105 -- a test's
RULES = Rules(names=LOOPBACK_NAMES | {"tavern.example"})
GUARDED = Rules(names=LOOPBACK_NAMES, token=TOKEN)


def verdict(
    *, rules: Rules = RULES, method: str = "GET", host: str | None = "127.0.0.1:8767", **headers: str
) -> type[ArchaeologistError] | None:
    """How a request is refused; None: it passes."""
    named = {"host": host, **{name.replace("_", "-"): value for name, value in headers.items()}}
    raw = [(name.encode(), value.encode()) for name, value in named.items() if value is not None]
    try:
        rules.check(method, raw)
    except ArchaeologistError as error:
        return type(error)
    return None


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:8767",
        "localhost",
        "LOCALHOST:8767",
        "[::1]:8767",
        "192.168.1.7:8767",
        "tavern.example",
        "tavern.example.",
    ],
)
def test_our_names_and_any_address_pass(host: str) -> None:
    assert verdict(host=host) is None


@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "evil.example",
        "evil.example:8767",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "evil@127.0.0.1",
        "127.0.0.1/evil",
        "127.0.0.1:8767, evil.example",
        "127.0.0.1\\evil",
        "[::1",
        "localhost:999999",
        "xn--lcalhost-dzb",
    ],
)
def test_a_foreign_name_is_refused(host: str | None) -> None:
    assert verdict(host=host) is HostRefused


def test_two_hosts_are_refused() -> None:
    with pytest.raises(HostRefused):
        RULES.check("GET", [(b"host", b"localhost"), (b"Host", b"evil.example")])


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "http://localhost:3000",
        "https://127.0.0.1",
        "null",
        "",
        "file://",
        "http://127.0.0.1:8767.evil.example",
    ],
)
def test_another_site_s_page_is_refused(method: str, origin: str) -> None:
    assert verdict(method=method, origin=origin) is OriginRefused


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("127.0.0.1:8767", "http://127.0.0.1:8767"),
        ("localhost:8767", "http://LOCALHOST:8767"),
        ("[::1]:8767", "http://[::1]:8767"),
        ("tavern.example", "https://tavern.example"),
        ("127.0.0.1:8767", "https://tavern.example"),
    ],
)
def test_our_own_page_and_one_behind_a_named_proxy_pass(host: str, origin: str) -> None:
    assert verdict(method="POST", host=host, origin=origin) is None


@pytest.mark.parametrize(
    ("site", "mode", "expected"),
    [
        ("same-origin", "cors", None),
        ("none", "navigate", None),
        ("cross-site", "navigate", None),
        ("cross-site", "no-cors", OriginRefused),
        ("same-site", "no-cors", OriginRefused),
    ],
)
def test_what_a_browser_fetches_for_another_site_is_refused(
    site: str, mode: str, expected: type[ArchaeologistError] | None
) -> None:
    assert verdict(sec_fetch_site=site, sec_fetch_mode=mode) is expected


@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT", "PATCH", "get"])
@pytest.mark.parametrize(
    "authorization",
    [None, "", TOKEN, f"Basic {TOKEN}", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer ü"],
)
def test_what_changes_something_needs_the_token(method: str, authorization: str | None) -> None:
    given = {} if authorization is None else {"authorization": authorization}
    assert verdict(rules=GUARDED, method=method, **given) is TokenWrong


@pytest.mark.parametrize("authorization", [f"Bearer {TOKEN}", f"bearer  {TOKEN} "])
def test_the_token_opens(authorization: str) -> None:
    assert verdict(rules=GUARDED, method="POST", authorization=authorization) is None


def test_reading_needs_no_token() -> None:
    assert verdict(rules=GUARDED) is None


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("192.168.1.7", False),
        ("box", False),
    ],
)
def test_which_addresses_only_this_machine_reaches(host: str, *, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(("path", "query"), [("/api/\ud800", b""), ("/api", b"a=\xff")])
def test_an_address_that_cannot_be_written_down_is_refused(path: str, query: bytes) -> None:
    with pytest.raises(ParameterInvalid, match="as %XX"):
        check_text(path, query)


def test_an_address_of_any_script_passes() -> None:
    check_text("/api/analysis/kampagne-ü", b"layers=%C3%BC")
