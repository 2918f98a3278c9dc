"""What `up` tells."""

from pathlib import Path

import pytest

from archaeologist.cli.service import banner, outer_host, port_line


def test_commands_need_no_address_where_the_port_is_the_default() -> None:
    text = banner(root=Path("/r"), url="nats://127.0.0.1:4222", trainer_url="nats://127.0.0.1:4222")
    assert "--nats-url" not in text
    assert "ARCHAEOLOGIST_NATS_URL=nats://127.0.0.1:4222" in text


def test_commands_are_told_the_address_where_it_is_another() -> None:
    text = banner(root=Path("/r"), url="nats://t@127.0.0.1:4999", trainer_url="nats://t@box:4999")
    assert "archaeologist log --follow --nats-url nats://t@127.0.0.1:4999" in text
    assert "ARCHAEOLOGIST_NATS_URL=nats://t@box:4999" in text


@pytest.mark.parametrize(
    ("port", "earlier", "line"),
    [
        (4222, None, None),
        (4222, 4222, None),
        (18224, 18224, "the server keeps port 18224, which this store had before; --port 4222 changes it"),
        (40000, None, "port 4222 is taken; the server has 40000 and keeps it"),
        (40000, 4222, "port 4222, which this store had before, is taken; the server has 40000 and keeps it"),
        (4222, 18224, "port 18224, which this store had before, is taken; the server has 4222 and keeps it"),
    ],
)
def test_a_port_that_nobody_chose_is_explained_by_what_was_so(port: int, earlier: int | None, line: str | None) -> None:
    assert port_line(port, earlier=earlier) == line


def test_a_server_on_every_address_is_told_by_the_machines_name() -> None:
    assert outer_host("0.0.0.0") not in {"0.0.0.0", ""}  # noqa: S104 -- compared, not bound
    assert outer_host("192.168.1.5") == "192.168.1.5"
