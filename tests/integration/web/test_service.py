"""Where the API listens, and the token that it asks for."""

import socket
from pathlib import Path

import pytest

from archaeologist.errors import ListenImpossible
from archaeologist.settings import Settings, WebSettings
from archaeologist.web.service import address_of, listen, token_for


def taken() -> socket.socket:
    """A port that somebody else listens on."""
    return socket.create_server(("127.0.0.1", 0))


def test_another_port_is_taken_only_where_that_will_do() -> None:
    with taken() as other:
        settings = WebSettings(port=other.getsockname()[1])
        with pytest.raises(ListenImpossible, match=str(settings.port)):
            listen(settings)
        with listen(settings, is_port_free_to_choose=True) as listener:
            assert listener.getsockname()[1] not in {0, settings.port}


@pytest.mark.parametrize("host", ["203.0.113.1", "2001:db8::1", "no.such.host.invalid", "", "a" * 300])
def test_an_address_that_is_not_this_machine_s_is_refused(host: str) -> None:
    if host:
        with pytest.raises(ListenImpossible, match="nothing can listen on"):
            listen(WebSettings(host=host, port=0), is_port_free_to_choose=True)
    else:
        with listen(WebSettings(host=host, port=0)) as listener:
            assert listener.getsockname()[0] == "0.0.0.0"  # noqa: S104 -- what an empty address means


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::1", "[::1]")])  # noqa: S104
def test_the_address_that_is_told_can_be_typed(host: str, shown: str) -> None:
    try:
        listener = listen(WebSettings(host=host, port=0))
    except ListenImpossible:
        pytest.skip("this machine has no IPv6")
    with listener:
        assert address_of(listener) == f"http://{shown}:{listener.getsockname()[1]}"


def test_connections_are_tcp_by_name_so_that_small_replies_go_at_once() -> None:
    """Asyncio turns Nagle's algorithm off for these only."""
    with listen(WebSettings(port=0)) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_only_where_other_machines_reach_it_a_token_is_made_and_kept(tmp_path: Path) -> None:
    def token(**web: str) -> str | None:
        return token_for(Settings(root=str(tmp_path), web=WebSettings(**web)))  # type: ignore[arg-type]

    assert token() is None
    assert token(host="::1") is None
    made = token(host="192.0.2.1")
    assert made is not None
    assert len(made) >= 32
    assert token(host="192.0.2.1") == made
    assert token(host="", token="0123456789abcdef") == "0123456789abcdef"  # noqa: S106 -- a test's
    assert token(token="0123456789abcdef") == "0123456789abcdef"  # noqa: S106 -- the same


def test_a_token_that_cannot_be_kept_is_an_error(tmp_path: Path) -> None:
    (tmp_path / ".archaeologist").write_text("a file where a folder should be")
    with pytest.raises(ListenImpossible, match=r"set web\.token"):
        token_for(Settings(root=str(tmp_path), web=WebSettings(host="192.0.2.1")))
