"""The machines of a team as ``devices.json`` names them: this one's name and roles.

The file belongs to other programs as well and is only read: each name with an object that has ``hostname``, a name or
an address, and ``roles``. Which entry this machine is, a setting says, or its ``hostname`` does. ``settings`` calls it.
"""

import ipaddress
import json
import socket
from pathlib import Path
from typing import Any, Final, NamedTuple

from archaeologist.errors import DeviceUnknown, SettingInvalid

MAX_BYTES: Final = 4 * 1024 * 1024
LOOPBACK: Final = "localhost"


class Device(NamedTuple):
    """An entry of the file."""

    name: str
    hostname: str | None
    roles: tuple[str, ...]


def read_device(path: Path, name: str | None) -> Device:
    """This machine's entry.

    Args:
        path: Of ``devices.json``.
        name: Of the entry; None: the one whose ``hostname`` is this machine's.

    Raises:
        SettingInvalid: The file cannot be read, is no JSON, or an entry is not what it must be.
        DeviceUnknown: No entry, or more than one, is this machine's.
    """
    devices = read_devices(path)
    if name is not None:
        if name in devices:
            return devices[name]
        msg = f"worker.device {name!r} is not in {str(path)!r}; it has {_listed(devices)}"
        raise DeviceUnknown(msg)
    own = [device for device in devices.values() if device.hostname and is_own(device.hostname)]
    if len(own) == 1:
        return own[0]
    found = f"{', '.join(device.name for device in own)} all are" if own else "none is"
    msg = (
        f"which device of {str(path)!r} this machine ({socket.gethostname()}) is cannot be told by hostname: {found};"
        f" set worker.device to one of {_listed(devices)}"
    )
    raise DeviceUnknown(msg)


def read_devices(path: Path) -> dict[str, Device]:
    """Every entry by name; what is no object is passed over.

    Raises:
        SettingInvalid: The file cannot be read, is no JSON, or an entry is not what it must be.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        msg = f"worker.devices {str(path)!r} cannot be read: {error.strerror or error}; name an existing file"
        raise SettingInvalid(msg) from error
    if len(content) > MAX_BYTES:
        msg = f"worker.devices {str(path)!r} has more than {MAX_BYTES} bytes; it must be a list of machines"
        raise SettingInvalid(msg)
    entries = _decoded(content, path)
    return {name: _device(name, entry, path) for name, entry in entries.items() if isinstance(entry, dict)}


def is_own(hostname: str) -> bool:
    """Whether a host's name or address is this machine's."""
    try:
        address = ipaddress.ip_address(hostname)
    except ValueError:
        names = {socket.gethostname().lower(), socket.getfqdn().lower()}
        return hostname.lower() in {*names, *(name.partition(".")[0] for name in names), LOOPBACK}
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6  # noqa: PLR2004 -- the version of IP
    try:
        # Only an address of this machine can be bound to.
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return not address.is_unspecified


def _decoded(content: bytes, path: Path) -> dict[str, Any]:
    try:
        entries = json.loads(content)
    except json.JSONDecodeError as error:
        line = content.decode("utf-8", "replace").split("\n")[error.lineno - 1].strip()[:80]
        hint = "JSON has no comments, take them out" if any(mark in line for mark in ("//", "/*", "#")) else "mend it"
        msg = f"worker.devices {str(path)!r} is not JSON: line {error.lineno}, {line!r} ({error.msg}); {hint}"
        raise SettingInvalid(msg) from error
    except (UnicodeDecodeError, RecursionError) as error:
        msg = f"worker.devices {str(path)!r} is not JSON: {error}; write it as UTF-8, flat"
        raise SettingInvalid(msg) from error
    if not isinstance(entries, dict):
        msg = f"worker.devices {str(path)!r} must be an object with a name for each machine"
        raise SettingInvalid(msg)
    return entries


def _device(name: str, entry: dict[str, Any], path: Path) -> Device:
    hostname, roles = entry.get("hostname"), entry.get("roles", [])
    if not isinstance(roles, list) or not all(isinstance(role, str) for role in roles):
        msg = f"worker.devices {str(path)!r}: roles of {name!r} are {roles!r}, they must be a list of names"
        raise SettingInvalid(msg)
    return Device(name, hostname if isinstance(hostname, str) else None, tuple(roles))


def _listed(devices: dict[str, Device]) -> str:
    """The entries with their host names, for somebody who must choose one."""
    shown = [f"{device.name} ({device.hostname})" if device.hostname else device.name for device in devices.values()]
    return ", ".join(shown) or "none"
