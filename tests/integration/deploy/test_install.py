"""``deploy/install.sh``, run for real into a folder, and the page that goes through it."""

import getpass
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from archaeologist.bus.keys import ROLES, inbox_prefix
from archaeologist.bus.server import find_binary
from archaeologist.cli.app import run
from tests.integration.deploy.conftest import DEPLOY, read_environment, systemd_analyze

REPOSITORY: Final = DEPLOY.parent
SCRIPT: Final = DEPLOY / "install.sh"
ROOT: Final = "/data/my runs"
"""Where the campaigns lie; with a blank, as on a disk that somebody named."""
PAGE: Final = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
pytestmark = pytest.mark.timeout(300)

OF_THE_SYSTEM: Final = frozenset({"systemctl", "journalctl", "install", "tar", "git"})


class Installed(NamedTuple):
    """What the script left, and what it printed."""

    root: Path
    said: str


def install(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the script. pip takes what is installed here for the packages that ours needs, and asks no index."""
    there = {name: value for name, value in os.environ.items() if not name.startswith(("ARCHAEOLOGIST_", "PYTHONPATH"))}
    offline = {
        "PYTHON": sys.executable,
        "PYTHONPATH": site.getsitepackages()[0],
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
    }
    return subprocess.run(
        [str(SCRIPT), *map(str, arguments)],
        env={**there, **offline, **environment},
        capture_output=True,
        check=False,
        text=True,
        timeout=110,
        umask=0o077,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our package as it would be published, built from a copy: the checkout stays clean."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("archaeologist", "contracts"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "-w", str(copy / "dist"), str(copy)], check=True, timeout=110)
    [built] = (copy / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """Everything, under a folder."""
    root = tmp_path_factory.mktemp("machine")
    done = install("--destdir", root, "--source", wheel, "--root", ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    yield Installed(root, done.stdout)
    shutil.rmtree(root)


def contents(root: Path) -> dict[str, bytes]:
    """Every file but the environment's, which pip may touch."""
    files = (path for path in root.rglob("*") if path.is_file() and "venv" not in path.parts)
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


# The script.


def test_everything_is_in_its_place(installed: Installed) -> None:
    found = contents(installed.root)
    settings = {"archaeologist.toml", "daemon.env", "web.env", "nats-server.conf", "nats-server-tls.conf"}
    keys = {f"keys/{role}.nk" for role in ROLES} | {"keys/nats.env"}
    assert {f"etc/archaeologist/{name}" for name in settings | keys} <= found.keys()
    assert {f"etc/systemd/system/{unit.name}" for unit in (DEPLOY / "systemd").iterdir()} <= found.keys()
    assert "opt/archaeologist/share/docs/operations.md" in found
    assert tomllib.loads(found["etc/archaeologist/archaeologist.toml"].decode())["root"] == ROOT
    assert (
        b'ReadWritePaths="/data/my runs"\n' in found["etc/systemd/system/archaeologist-daemon.service.d/install.conf"]
    )


def test_systemd_reads_a_root_with_a_blank_as_one_path(installed: Installed, tmp_path: Path) -> None:
    copy = tmp_path / "archaeologist-web.service"
    copy.write_text("[Service]\nExecStart=/bin/sh\n")
    there = installed.root / "etc/systemd/system" / f"{copy.name}.d"
    shutil.copytree(there, tmp_path / there.name)
    done = systemd_analyze("verify", "--man=no", copy)
    assert (done.returncode, done.stderr) == (0, "")
    dropin = tmp_path / there.name / "install.conf"
    dropin.write_text(dropin.read_text().replace('"', ""))
    assert "runs" in systemd_analyze("verify", "--man=no", copy).stderr


def test_whoever_installs_the_services_users_read_it(installed: Installed) -> None:
    # The script ran under umask 077.
    places = [installed.root / name for name in ("opt", "etc/systemd", "usr")]
    closed = [path for place in places for path in place.rglob("*") if not path.stat().st_mode & 0o004]
    assert closed == []


def test_only_whom_it_concerns_reads_a_key(installed: Installed) -> None:
    keys = installed.root / "etc/archaeologist/keys"
    modes = {path.stem: path.stat().st_mode & 0o777 for path in keys.glob("*.nk")}
    assert modes == {"admin": 0o600, "trainer": 0o600, "battle-log": 0o600, "worker": 0o640, "web": 0o640}


def test_the_installed_program_runs_with_what_the_package_holds(installed: Installed) -> None:
    program = installed.root / "opt/archaeologist/venv/bin/archaeologist"
    variables = {**os.environ, "PYTHONPATH": site.getsitepackages()[0]}
    command = [str(program), "contracts", "export", "--output", str(installed.root / "exported")]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=60, cwd="/")
    assert done.returncode == 0, done.stderr
    source = "import archaeologist; print(archaeologist.__file__)"
    where = subprocess.run(
        [program.with_name("python"), "-c", source], env=variables, capture_output=True, text=True, check=True, cwd="/"
    ).stdout
    assert str(installed.root) in where


def test_the_installed_server_starts_with_the_installed_keys(installed: Installed) -> None:
    etc = installed.root / "etc/archaeologist"
    variables = {**os.environ, **read_environment(etc / "keys/nats.env"), "NATS_STORE": str(installed.root / "store")}
    command = [find_binary(), "-c", str(etc / "nats-server.conf"), "-t"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 0, done.stderr


def test_a_second_time_changes_nothing_and_what_was_edited_stays(installed: Installed, wheel: Path) -> None:
    before = contents(installed.root)
    again = ("--destdir", installed.root, "--source", wheel, "--root", ROOT)
    name = "etc/archaeologist/archaeologist.toml"
    edited = before[name] + b"# mine\n"
    campaigns = installed.root / ROOT[1:] / "campaigns"
    campaigns.chmod(0o2775)
    (installed.root / name).write_bytes(edited)
    done = install(*again)
    assert done.returncode == 0
    assert contents(installed.root) == {**before, name: edited, f"{name}.new": before[name]}
    assert f"kept /{name}" in done.stdout
    assert campaigns.stat().st_mode & 0o7777 == 0o2775
    (installed.root / name).write_bytes(before[name])
    assert install(*again).returncode == 0
    assert contents(installed.root) == before


def test_a_dry_run_says_everything_and_does_nothing(tmp_path: Path, installed: Installed) -> None:
    done = install("--dry-run", "--destdir", tmp_path, "--root", ROOT)
    assert (done.returncode, list(tmp_path.iterdir())) == (0, [])
    said = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")}
    assert {"install", "cp", "chmod"} <= said
    assert "bus keys" in done.stdout


def test_a_root_that_is_there_keeps_its_owner_and_what_the_services_lack_is_told(tmp_path: Path) -> None:
    # Nobody may go through pytest's folders; who is not root has shut its own.
    user = "nobody" if os.geteuid() == 0 else getpass.getuser()
    (tmp_path / "campaigns").mkdir()
    (tmp_path / "campaigns").chmod(0o555)
    done = install("--dry-run", "--without-nats", "--root", tmp_path, "--user", user)
    assert done.returncode == 0, done.stderr
    folders = done.stdout.partition("Folders\n")[2].partition("Program\n")[0]
    assert "chown" not in folders
    assert f"install -d -m 0755 {tmp_path}" not in folders
    assert f"kept {tmp_path}\n  kept {tmp_path}/campaigns\n" in folders
    assert f"warning: {user} cannot write to {tmp_path}" in folders
    assert f"setfacl -R -m u:{user}:rwX,d:u:{user}:rwX {tmp_path}\n" in folders


def test_a_root_that_the_services_can_write_to_needs_no_words(tmp_path: Path) -> None:
    (tmp_path / "campaigns").mkdir()
    done = install("--dry-run", "--without-nats", "--root", tmp_path, "--user", getpass.getuser())
    assert (done.returncode, "warning" in done.stdout) == (0, False)


def test_without_a_server_there_are_neither_its_files_nor_keys(tmp_path: Path) -> None:
    done = install("--dry-run", "--destdir", tmp_path, "--without-nats")
    assert done.returncode == 0
    assert "nats-server" not in done.stdout
    assert "bus keys" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--frobnicate",), "no option"),
        (("--root",), "needs a value"),
        (("--root", "relative"), "write it from / on"),
        (("--root", '/data/"runs"'), "no quotes"),
        (("--root", "/data/100%"), "no quotes"),
        (("--user", "a b; rm -rf /"), "is not a user's name"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_done(
    arguments: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    done = install("--destdir", tmp_path, *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_python_that_is_missing_is_told(tmp_path: Path) -> None:
    done = install("--destdir", tmp_path, PYTHON="/no/such/python")
    assert (done.returncode, "PYTHON=python3.12" in done.stderr) == (1, True)


@pytest.mark.parametrize("role", ROLES)
def test_a_command_as_a_role_has_its_key_and_its_inbox(role: str, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text('#!/bin/sh\necho "$ARCHAEOLOGIST_BUS__NKEY_SEED $ARCHAEOLOGIST_BUS__INBOX_PREFIX" "$@"\n')
    program.chmod(0o755)
    text = (DEPLOY / "archaeologist-as").read_text().replace("/opt/archaeologist/venv/bin/archaeologist", str(program))
    script = tmp_path / "archaeologist-as"
    script.write_text(text)
    script.chmod(0o755)
    done = subprocess.run([str(script), role, "jobs", "a b"], capture_output=True, text=True, check=True)
    assert done.stdout == f"/etc/archaeologist/keys/{role}.nk {inbox_prefix(role)} jobs a b\n"


# The page.


def commands() -> list[str]:
    """Every line of the page's shell blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    return [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


@pytest.mark.parametrize("line", sorted(set(commands())))
def test_a_command_of_the_page_is_one_that_there_is(line: str, installed: Installed) -> None:
    first, *arguments = shlex.split(line)
    if first == "deploy/install.sh":
        assert install("--dry-run", "--destdir", "/nowhere", *arguments).returncode == 0
    elif first == "archaeologist-as":
        assert arguments[0] in ROLES
        assert run([*arguments[1:], "--help"]) == 0
    else:
        assert first in OF_THE_SYSTEM
    if first in {"systemctl", "journalctl"}:
        services = {argument for argument in arguments if argument.startswith("archaeologist-")}
        assert services
        assert services <= {unit.stem for unit in (DEPLOY / "systemd").iterdir()}


def test_the_page_names_no_file_of_an_installation_that_is_not_there(installed: Installed) -> None:
    made_by_hand = {"/etc/archaeologist/tls/server.pem", "/etc/archaeologist/tls/server.key"}
    named = set(re.findall(r"(/(?:etc|opt)/archaeologist(?:/[\w.-]+)*)", PAGE)) - made_by_hand
    assert named
    missing = {path for path in named if not (installed.root / path[1:]).exists()}
    assert missing <= {"/opt/archaeologist/venv/bin/nats-server"}  # of a package that this installation left out


def test_the_script_ends_with_the_page_s_next_commands(installed: Installed) -> None:
    told = [line.strip() for line in installed.said.partition("What comes next")[2].splitlines()[1:] if line.strip()]
    assert told == [line for line in commands() if not line.startswith("deploy/")][: len(told)]
