"""``devices.json``: which entry this machine is, and what is said where none is."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from archaeologist.devices import is_own, read_device, read_devices
from archaeologist.errors import DeviceUnknown, SettingInvalid
from archaeologist.settings import load

SPECIFICATION = """{
  "inference3090": {
    "hostname": "192.168.x.x",
    "description": "Inference server with RTX 3090 - also handles analytics",
    "roles": [
      "inference",
      "eval_worker",
      "analytics",       // <-- ADD THIS
      "storage_hot"
    ],
    "gpus": [{"name": "RTX 3090", "count": 1, "vram_gb": 24}]
  }
}"""


def devices_in(tmp_path: Path, entries: dict[str, Any]) -> Path:
    path = tmp_path / "devices.json"
    path.write_text(json.dumps(entries))
    return path


def loaded(tmp_path: Path, toml: str, **environ: str) -> Any:
    config = tmp_path / "archaeologist.toml"
    config.write_text(toml)
    return load(config=config, environ=environ, is_worker=True).worker


@pytest.fixture
def path(tmp_path: Path) -> Path:
    entries = {
        "_note": "not a device",
        "trainer4090": {"hostname": "198.51.100.1", "roles": ["trainer"]},
        "inference3090": {"hostname": socket.gethostname(), "roles": ["inference", "analytics"], "gpus": []},
        "bare": {},
    }
    return devices_in(tmp_path, entries)


def test_an_entry_is_found_by_its_name_or_by_this_machines_own(path: Path) -> None:
    assert read_device(path, "trainer4090").roles == ("trainer",)
    assert read_device(path, None) == ("inference3090", socket.gethostname(), ("inference", "analytics"))
    assert read_device(path, "bare") == ("bare", None, ())
    assert set(read_devices(path)) == {"trainer4090", "inference3090", "bare"}


@pytest.mark.parametrize(
    ("hostname", "expected"),
    [
        (socket.gethostname(), True),
        (socket.gethostname().upper(), True),
        ("127.0.0.1", True),
        ("localhost", True),
        ("198.51.100.1", False),
        ("0.0.0.0", False),  # noqa: S104 -- compared, not bound
        ("192.168.x.x", False),
        ("elsewhere.example", False),
    ],
)
def test_a_name_or_an_address_is_this_machines_or_not(hostname: str, *, expected: bool) -> None:
    assert is_own(hostname) is expected


def test_an_unknown_device_is_refused_with_those_that_are_there(path: Path) -> None:
    with pytest.raises(
        DeviceUnknown, match=r"'box9' is not in .*trainer4090 \(198\.51\.100\.1\), inference3090 \(.*bare"
    ):
        read_device(path, "box9")


@pytest.mark.parametrize(
    ("hostnames", "says"),
    [(["198.51.100.1", "198.51.100.2"], "none is"), (["127.0.0.1", "localhost"], "d0, d1 all are")],
)
def test_a_machine_that_is_none_or_several_of_them_must_be_told_which(
    tmp_path: Path, hostnames: list[str], says: str
) -> None:
    path = devices_in(tmp_path, {f"d{number}": {"hostname": name} for number, name in enumerate(hostnames)})
    with pytest.raises(DeviceUnknown, match=rf"{says}; set worker\.device to one of d0 \("):
        read_device(path, None)


def test_comments_are_not_json_and_the_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "devices.json"
    path.write_text(SPECIFICATION)
    with pytest.raises(SettingInvalid, match=r"line 8, .*ADD THIS.*JSON has no comments, take them out"):
        read_device(path, "inference3090")
    path.write_text(SPECIFICATION.replace("// <-- ADD THIS", ""))
    assert read_device(path, "inference3090").roles == ("inference", "eval_worker", "analytics", "storage_hot")


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff{}", b'{"a": {"roles": "analytics"}}', b"[" * 100_000])
def test_what_is_no_list_of_devices_is_a_wrong_setting(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "devices.json"
    path.write_bytes(content)
    with pytest.raises(SettingInvalid, match=r"worker\.devices"):
        read_device(path, "a")
    with pytest.raises(SettingInvalid, match="cannot be read"):
        read_device(tmp_path / "none.json", "a")


def test_name_and_roles_come_from_the_device_where_they_are_not_set(tmp_path: Path, path: Path) -> None:
    named = loaded(tmp_path, f'[worker]\ndevices = "{path}"\ndevice = "trainer4090"\n')
    assert (named.name, named.roles) == ("trainer4090", ("trainer",))
    own = loaded(tmp_path, f'[worker]\ndevices = "{path}"\nroles = ["analytics"]\n')
    assert (own.name, own.roles) == ("inference3090", ("analytics",))
    told = loaded(tmp_path, f'[worker]\ndevices = "{path}"\n', ARCHAEOLOGIST_WORKER__DEVICE="bare")
    assert (told.name, told.roles) == ("bare", ())


def test_a_device_whose_name_is_no_workers_is_a_wrong_setting(tmp_path: Path) -> None:
    path = devices_in(tmp_path, {"box 9": {"hostname": "127.0.0.1"}})
    with pytest.raises(SettingInvalid, match="box 9"):
        loaded(tmp_path, f'[worker]\ndevices = "{path}"\n')


def test_a_command_that_is_no_worker_does_without_the_file(tmp_path: Path) -> None:
    config = tmp_path / "archaeologist.toml"
    config.write_text('[worker]\nname = "box"\ndevices = "/nowhere/devices.json"\n')
    assert load(config=config, environ={}).worker.name == "box"
    with pytest.raises(SettingInvalid, match="cannot be read"):
        load(config=config, environ={}, is_worker=True)
