import asyncio
import base64
import json
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import nkeys
import pytest

from archaeologist.bus import connection
from archaeologist.bus.connection import Bus, connect, connected, publish_core, shown_address, subscribe_core
from archaeologist.errors import BusUnavailable, SettingInvalid
from archaeologist.settings import BusSettings
from tests.fixtures.certificates import make_certificate
from tests.fixtures.servers import Server, free_port
from tests.fixtures.waiting import until, until_asked

PASSWORD = "only-for-this-test"  # noqa: S105 -- as it says


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Server]:
    """A server that wants a user and a password."""
    config = f'authorization {{ user: "trainer", password: "{PASSWORD}" }}'
    async with Server(tmp_path / "guarded", config=config) as server:
        yield server


async def test_nobody_at_the_address_is_told_within_the_time_limit_with_the_remedy() -> None:
    url = f"nats://127.0.0.1:{free_port()}"
    async with asyncio.timeout(20):
        with pytest.raises(BusUnavailable, match=rf"{url} within 0.5 s .*`archaeologist up`.*ARCHAEOLOGIST_NATS_URL"):
            await connect(BusSettings(url=url, connect_timeout_seconds=0.5), name="test")


async def test_a_waiting_connection_succeeds_once_the_server_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "RETRY_SECONDS", 0.2)
    server = Server(tmp_path / "late")
    settings = BusSettings(url=server.url, connect_timeout_seconds=0.3)
    waiting = asyncio.create_task(connect(settings, name="test", wait=True))
    try:
        await server.start()
        bus = await asyncio.wait_for(waiting, timeout=10)
        assert bus.is_connected
        await bus.close()
    finally:
        await server.kill()


async def test_waiting_for_a_server_can_be_cancelled() -> None:
    settings = BusSettings(url=f"nats://127.0.0.1:{free_port()}", connect_timeout_seconds=0.2)
    waiting = asyncio.create_task(connect(settings, name="test", wait=True))
    done, _ = await asyncio.wait({waiting}, timeout=0.5)
    assert not done
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_the_second_of_two_servers_is_used_when_the_first_is_not_there(server: Server) -> None:
    url = f"nats://127.0.0.1:{free_port()}, {server.url}"
    async with connected(BusSettings(url=url), name="test") as bus:
        assert bus.is_connected


async def test_refused_credentials_are_told_at_once_and_never_shown(guarded: Server) -> None:
    url = guarded.url.replace("//", "//trainer:wrong-secret@")
    async with asyncio.timeout(20):
        with pytest.raises(BusUnavailable, match="Authorization Violation") as raised:
            await connect(BusSettings(url=url, connect_timeout_seconds=60), name="test")
    assert "wrong-secret" not in str(raised.value)
    assert guarded.url in str(raised.value)


async def test_user_and_password_are_taken_from_the_settings_or_the_address(guarded: Server) -> None:
    by_settings = BusSettings(url=guarded.url, user="trainer", password=PASSWORD)
    by_address = BusSettings(url=guarded.url.replace("//", f"//trainer:{PASSWORD}@"))
    for settings in (by_settings, by_address):
        async with connected(settings, name="test") as bus:
            assert bus.is_connected
            assert bus.shown == guarded.url


async def test_an_nkey_seed_opens_the_server_that_knows_its_public_key(tmp_path: Path) -> None:
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    seed_file = tmp_path / "trainer.nk"
    seed_file.write_bytes(seed)
    public = nkeys.from_seed(bytearray(seed)).public_key.decode()
    async with Server(tmp_path / "nats", config=f"authorization {{ users: [ {{ nkey: {public} }} ] }}") as server:
        async with connected(BusSettings(url=server.url, nkey_seed=str(seed_file)), name="test") as bus:
            assert bus.is_connected
        with pytest.raises(BusUnavailable, match="Authorization"):
            await connect(BusSettings(url=server.url), name="test")


@pytest.mark.parametrize("setting", ["credentials", "nkey_seed", "tls_ca"])
async def test_a_file_that_is_not_there_is_a_wrong_setting_with_its_path(setting: str, tmp_path: Path) -> None:
    path = str(tmp_path / "nowhere")
    with pytest.raises(SettingInvalid, match=rf"bus\.{setting} = '{path}': no such file"):
        await connect(msgspec.convert({setting: path}, BusSettings), name="test")


@pytest.mark.parametrize(
    "url",
    [
        "nats://user:pa/ss@host:4222",
        "nats://user:1/ss@host:4222",
        "http://user:pass@host",
        "nats://host:port",
        "nats://user:pass@",
        "",
    ],
)
async def test_what_is_no_address_is_a_wrong_setting_and_shows_nothing_of_it(url: str) -> None:
    with pytest.raises(SettingInvalid, match="not an address") as raised:
        await connect(BusSettings(url=url), name="test")
    assert "user" not in str(raised.value)
    assert "pass@" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("nats://user:secret@host:4222", "nats://host:4222"),
        ("tls://token@a:1,wss://user:secret@b", "tls://a:1,wss://b"),
        ("host:4222", "nats://host:4222"),
        ("nats://[::1]:4222", "nats://[::1]:4222"),
    ],
)
def test_an_address_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert shown_address(url) == shown


async def test_the_connection_comes_back_after_the_server_was_killed(server: Server, bus: Bus) -> None:
    heard: list[str] = []
    await subscribe_core(bus, "greetings.*", heard.append)
    await server.kill()
    await until(lambda: not bus.is_connected)
    with pytest.raises(BusUnavailable, match="is lost; is the server up"):
        await bus.until_connected(0.1)
    await server.start()
    await bus.until_connected(10)
    assert bus.reconnects == 1
    assert not bus.closed.is_set()
    await publish_core(bus, "greetings.hello", b"")
    await until(lambda: heard == ["greetings.hello"])


async def test_publishing_outside_a_stream_fails_while_the_server_is_away(server: Server, bus: Bus) -> None:
    await server.kill()
    await until(lambda: not bus.is_connected)
    with pytest.raises(BusUnavailable, match="is lost"):
        await publish_core(bus, "greetings.hello", b"")


async def test_closing_while_the_server_is_away_ends_soon_and_raises_nothing(server: Server, bus: Bus) -> None:
    await server.kill()
    await until(lambda: not bus.is_connected)
    async with asyncio.timeout(20):
        await bus.close()
    assert bus.closed.is_set()
    with pytest.raises(BusUnavailable, match="closed for good"):
        await bus.until_connected(0.1)


async def test_a_connection_that_the_client_gives_up_sets_closed(bus: Bus) -> None:
    await bus.client.close()
    await asyncio.wait_for(bus.closed.wait(), timeout=20)


async def test_a_denied_publish_is_logged_with_its_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = 'authorization { users: [ { user: t, password: t, permissions: { publish: { deny: "secret.>" } } } ] }'
    async with (
        Server(tmp_path / "nats", config=config) as server,
        connected(BusSettings(url=server.url, user="t", password="t"), name="test") as bus,  # noqa: S106 -- a test's
    ):
        with caplog.at_level(logging.WARNING):
            await publish_core(bus, "secret.plan", b"")
            await until(lambda: bus.last_error is not None)
        assert "permissions violation for publish" in str(bus.last_error).lower()
        assert any("secret.plan" in str(getattr(record, "reason", "")) for record in caplog.records)


async def test_tls_is_spoken_with_the_given_authority_only(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    config = f'tls {{ cert_file: "{certificate}", key_file: "{key}" }}'
    async with Server(tmp_path / "nats", config=config) as server:
        url = server.url.replace("nats://", "tls://")
        async with connected(BusSettings(url=url, tls_ca=str(certificate)), name="test") as bus:
            assert bus.is_connected
        with pytest.raises(BusUnavailable, match="certificate"):
            await connect(BusSettings(url=url, connect_timeout_seconds=3.0), name="test")


async def test_credentials_files_are_passed_through(tmp_path: Path) -> None:
    authority = _Authority()
    credentials = tmp_path / "worker.creds"
    credentials.write_text(authority.credentials())
    async with Server(tmp_path / "nats", config=authority.config()) as server:

        async def is_welcome() -> bool:
            async with connected(BusSettings(url=server.url, credentials=str(credentials)), name="test") as bus:
                return bus.is_connected

        await until_asked(is_welcome)
        with pytest.raises(BusUnavailable, match="Authorization"):
            await connect(BusSettings(url=server.url), name="test")


@pytest.mark.parametrize("setting", ["credentials", "nkey_seed", "tls_ca"])
async def test_a_file_that_holds_something_else_is_a_wrong_setting_and_not_shown(setting: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("XECRET")
    with pytest.raises(SettingInvalid, match=rf"bus\.{setting}") as raised:
        await connect(msgspec.convert({setting: str(path)}, BusSettings), name="test")
    assert "XECRET" not in str(raised.value)


@pytest.mark.parametrize("module", ["connection", "publisher"])
def test_what_a_trainer_imports_needs_only_nats_and_msgspec(module: str) -> None:
    program = (
        f"import sys, archaeologist.bus.{module}\n"
        "print(*sorted({'structlog', 'typer', 'rich', 'numpy', 'torch', 'numba'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


class _Authority:
    """An operator, an account and a user, as ``nsc`` would make them."""

    def __init__(self) -> None:
        self._operator = _key(nkeys.PREFIX_BYTE_OPERATOR)
        self._account = _key(nkeys.PREFIX_BYTE_ACCOUNT)
        self._user_seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)

    def config(self) -> str:
        operator = _token(self._operator, _name(self._operator), {"type": "operator", "version": 2})
        unlimited = {"subs": -1, "data": -1, "payload": -1, "conn": -1, "leaf": -1, "imports": -1, "exports": -1}
        account = _token(self._operator, _name(self._account), {"type": "account", "version": 2, "limits": unlimited})
        preload = f"resolver: MEMORY\nresolver_preload: {{ {_name(self._account)}: {account} }}"
        # An operator's server needs a system account before JetStream starts.
        return f"operator: {operator}\nsystem_account: {_name(self._account)}\n{preload}"

    def credentials(self) -> str:
        user = nkeys.from_seed(bytearray(self._user_seed))
        limits = {"subs": -1, "data": -1, "payload": -1, "pub": {}, "sub": {}}
        token = _token(self._account, _name(user), {"type": "user", "version": 2, **limits})
        parts = [("NATS USER JWT", token), ("USER NKEY SEED", self._user_seed.decode())]
        return "\n".join(f"-----BEGIN {name}-----\n{text}\n------END {name}------\n" for name, text in parts)


def _key(prefix: int) -> nkeys.KeyPair:
    return nkeys.from_seed(bytearray(nkeys.encode_seed(os.urandom(32), prefix)))


def _name(key: nkeys.KeyPair) -> str:
    return str(key.public_key.decode())


def _token(signer: nkeys.KeyPair, subject: str, claims: dict[str, object]) -> str:
    """A JWT as NATS signs it: Ed25519 by an nkey."""
    body = {"jti": subject, "iat": 1_700_000_000, "iss": _name(signer), "name": "test", "sub": subject, "nats": claims}
    text = f"{_encoded({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_encoded(body)}"
    return f"{text}.{_base64(signer.sign(text.encode()))}"


def _encoded(part: dict[str, object]) -> str:
    return _base64(json.dumps(part).encode())


def _base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")
