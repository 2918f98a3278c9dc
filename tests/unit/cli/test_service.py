"""What `up` tells."""

from pathlib import Path

from archaeologist.cli.service import banner, outer_host


def test_commands_need_no_address_where_the_port_is_the_default() -> None:
    text = banner(root=Path("/r"), url="nats://127.0.0.1:4222", trainer_url="nats://127.0.0.1:4222")
    assert "--nats-url" not in text
    assert "ARCHAEOLOGIST_NATS_URL=nats://127.0.0.1:4222" in text


def test_commands_are_told_the_address_where_it_is_another() -> None:
    text = banner(root=Path("/r"), url="nats://t@127.0.0.1:4999", trainer_url="nats://t@box:4999")
    assert "archaeologist log --follow --nats-url nats://t@127.0.0.1:4999" in text
    assert "ARCHAEOLOGIST_NATS_URL=nats://t@box:4999" in text


def test_a_server_on_every_address_is_told_by_the_machines_name() -> None:
    assert outer_host("0.0.0.0") not in {"0.0.0.0", ""}  # noqa: S104 -- compared, not bound
    assert outer_host("192.168.1.5") == "192.168.1.5"
