"""The machinery of a campaign: a server, daemons each behind a proxy of its own, a small disk, and checkpoints."""

import asyncio
import contextlib
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from pathlib import Path
from typing import Final

from archaeologist.bus.connection import Bus, connected
from archaeologist.bus.topology import ensure
from archaeologist.settings import BusSettings, JobsSettings, Settings
from tests.faults.disk import Disk
from tests.faults.plan import CAMPAIGNS, HERO, SMALL, VICTIMS, Plan
from tests.faults.proxy import Proxy
from tests.fixtures.checkpoints import write_checkpoint
from tests.fixtures.kernels import share_kernels
from tests.fixtures.programs import UNMEASURED, Daemon
from tests.fixtures.servers import Server
from tests.fixtures.waiting import until

LEASE_SECONDS: Final = 5.0
SMALL_STEPS: Final = range(100, 120)
HOUR_SECONDS: Final = 3600.0
SWEEP_SECONDS: Final = 120.0

ENVIRONMENT: Final = {
    **UNMEASURED,  # thousands of starts
    "ARCHAEOLOGIST_JOBS__POLL_SECONDS": "0.5",
    "ARCHAEOLOGIST_JOBS__RETRY_DELAY_SECONDS": "1",
    "ARCHAEOLOGIST_JOBS__GRACE_SECONDS": "2",
    "ARCHAEOLOGIST_JOBS__KILL_AFTER_SECONDS": "1",
    "ARCHAEOLOGIST_JOBS__MAX_LOST_WORKERS": "6",
    "ARCHAEOLOGIST_JOBS__LAYER_STATS__MAX_RUNNING": "3",
    "ARCHAEOLOGIST_JOBS__LAYER_STATS__TIME_LIMIT_SECONDS": "90",
    "ARCHAEOLOGIST_JOBS__LAYER_STATS__WHEN_FULL": "allow",
    "ARCHAEOLOGIST_JOBS__LAYER_DRIFT__MAX_RUNNING": "4",
    "ARCHAEOLOGIST_JOBS__LAYER_DRIFT__TIME_LIMIT_SECONDS": "20",
    "ARCHAEOLOGIST_POLICY__EVERY": "1",
    "ARCHAEOLOGIST_READINESS__QUIET_SECONDS": "0",
    "ARCHAEOLOGIST_READINESS__IDLE_SECONDS": "1",
    "ARCHAEOLOGIST_POLICY__COMPUTE_ACTIVATIONS": "false",
    "ARCHAEOLOGIST_WORKER__THREADS": "1",
}


class Box:
    """One worker: a daemon and the proxy through which it reaches the server."""

    def __init__(self, name: str, *, root: Path, server: Server, **more: str) -> None:
        self.name = name
        self.proxy = Proxy(server.port)
        self._lock = asyncio.Lock()
        self._is_wanted = True
        environment = {**ENVIRONMENT, "ARCHAEOLOGIST_WORKER__NAME": name, **more}
        self.daemon = Daemon(
            root=root,
            url=self.proxy.url,
            environment=environment,
            command=(sys.executable, "-m", "tests.faults.daemon"),
            log=f"{name}.log",
        )

    @property
    def has_died(self) -> bool:
        """Whether it ended although nobody here told it to."""
        return self._is_wanted and not self.daemon.is_running

    async def replace(self) -> None:
        """Kill -9 and a new one."""
        async with self._lock:
            self._is_wanted = False
            await self.daemon.kill()
            await self.daemon.start()
            self._is_wanted = True

    async def stop(self) -> None:
        """SIGTERM, and waits until it is gone; it is thawed first if it is frozen, for a frozen one hears nothing.

        Raises:
            TimeoutError: It did not end.
        """
        async with self._lock:
            self._is_wanted = False
            if self.daemon.is_running:
                await self.daemon.signal(signal.SIGCONT)
                await self.daemon.stop()

    async def freeze(self) -> int:
        """SIGSTOP to the daemon, to a new one where another fault has just ended it; its number."""
        async with self._lock:
            if not self.daemon.is_running:
                await self.daemon.start()
                self._is_wanted = True
            await self.daemon.signal(signal.SIGSTOP)
            return self.daemon.pid

    async def refuse(self, seconds: float) -> None:
        """Lets no connection through for a while."""
        async with self._lock:
            await self.proxy.refuse()
            await asyncio.sleep(seconds)
            await self.proxy.listen()


class Stage:
    """Everything that faults are done to."""

    def __init__(
        self, folder: Path, plan: Plan, *, boxes: int, may_mount: bool, seed: int, lease_seconds: float = LEASE_SECONDS
    ) -> None:
        self.lease_seconds = lease_seconds
        self.root = (folder / "root").resolve()
        self.server = Server(folder / "nats")
        self.settings = Settings(
            root=str(self.root), bus=BusSettings(url=self.server.url), jobs=JobsSettings(lease_seconds=lease_seconds)
        )
        times = {
            "ARCHAEOLOGIST_JOBS__LEASE_SECONDS": str(lease_seconds),
            "ARCHAEOLOGIST_JOBS__HEARTBEAT_SECONDS": str(lease_seconds / 4),
        }
        self.boxes = [Box(f"box-{number}", root=self.root, server=self.server, **times) for number in range(boxes)]
        self.sweeper = Box("sweeper", root=self.root, server=self.server, ARCHAEOLOGIST_LOG__LEVEL="debug", **times)
        """Comes last, when everything is old."""
        self.chance = random.Random(seed)
        self.disk = Disk(self.root / "campaigns" / HERO / SMALL, may_mount=may_mount)
        self._plan = plan
        self._server_lock, self._disk_lock = asyncio.Lock(), asyncio.Lock()
        self.faults: dict[str, Callable[[], Coroutine[None, None, None]]] = {
            "daemon killed": self._kill_daemon,
            "daemon frozen past its lease": self._freeze_daemon,
            "daemon told to stop": self._stop_daemon,
            "server killed": self._kill_server,
            "server restarted": self._restart_server,
            "connection cut": self._cut,
            "connection refused": self._refuse,
            "connection stalled": self._stall,
            "connection slow": self._slow_down,
            "disk full": self._fill_disk,
            "disk read-only": self._forbid_disk,
        }

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Bus]:
        """Everything runs for the length of a block; gives a connection of one's own, around the proxies."""
        await asyncio.to_thread(self._write_checkpoints)
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self.server)
            bus = await stack.enter_async_context(connected(self.settings.bus, name="campaign", wait=True))
            await ensure(bus, self.settings)
            for box in self.boxes:
                await stack.enter_async_context(box.proxy)
                await stack.enter_async_context(box.daemon)
            await stack.enter_async_context(self.sweeper.proxy)
            yield bus

    async def tidy(self) -> None:
        """What the passing of an hour does: all that waits for its time is old, and a new daemon sweeps."""
        for box in self.boxes:
            await box.stop()
        campaigns = self.root / "campaigns"
        _age([*campaigns.glob("*/*/.pins/*"), *campaigns.rglob(".*.tmp")])
        async with self.sweeper.daemon:
            await until(lambda: '"swept"' in self.sweeper.daemon.log(), seconds=SWEEP_SECONDS)
            await self.sweeper.stop()

    def _write_checkpoints(self) -> None:
        share_kernels(self.root)
        heroes = self.root / "campaigns" / HERO
        kinds = [write_checkpoint(self.root.parent / "kinds" / str(seed), seed=seed) for seed in range(20)]
        wanted = [(campaign, step) for campaign in CAMPAIGNS for step in self._plan.steps]
        wanted += [(VICTIMS, step) for step in self._plan.victims] + [(SMALL, step) for step in SMALL_STEPS]
        for number, (campaign, step) in enumerate(wanted):
            folder = heroes / campaign / "checkpoints" / f"checkpoint-{step}"
            shutil.copytree(kinds[number % len(kinds)], folder)

    def _box(self) -> Box:
        return self.chance.choice(self.boxes)

    def _seconds(self, least: float, most: float) -> float:
        return self.chance.uniform(least, most)

    # What is done to daemons.

    async def _kill_daemon(self) -> None:
        await self._box().replace()

    async def _freeze_daemon(self) -> None:
        box = self._box()
        pid = await box.freeze()
        await asyncio.sleep(self.lease_seconds + self._seconds(0.5, 8.0))
        if box.daemon.is_running and box.daemon.pid == pid:  # nobody killed it meanwhile
            os.kill(pid, signal.SIGCONT)

    async def _stop_daemon(self) -> None:
        box = self._box()
        await box.stop()
        await box.replace()

    # To the server and the way there.

    async def _kill_server(self) -> None:
        async with self._server_lock:
            await self.server.kill()
            await asyncio.sleep(self._seconds(0.0, 3.0))
            await self.server.start()

    async def _restart_server(self) -> None:
        async with self._server_lock:
            await self.server.stop()
            # Sometimes longer than a lease.
            await asyncio.sleep(self.chance.choice([0.0, 1.0, self.lease_seconds + 2]))
            await self.server.start()

    async def _cut(self) -> None:
        self._box().proxy.cut()

    async def _refuse(self) -> None:
        await self._box().refuse(self._seconds(0.5, self.lease_seconds + 2))

    async def _stall(self) -> None:
        proxy = self._box().proxy
        proxy.stall()
        await asyncio.sleep(self._seconds(1.0, self.lease_seconds + 2))
        proxy.flow()

    async def _slow_down(self) -> None:
        proxy = self._box().proxy
        proxy.delay_seconds = self.chance.choice([0.02, 0.2, 0.8])
        proxy.bytes_per_second = self.chance.choice([None, 20_000.0])
        await asyncio.sleep(self._seconds(2.0, 6.0))
        proxy.flow()

    # To the small disk.

    async def _fill_disk(self) -> None:
        async with self._disk_lock:
            await asyncio.to_thread(self.disk.fill)
            await asyncio.sleep(self._seconds(1.0, 4.0))
            self.disk.free()

    async def _forbid_disk(self) -> None:
        async with self._disk_lock:
            await asyncio.to_thread(self.disk.forbid)
            await asyncio.sleep(self._seconds(1.0, 4.0))
            await asyncio.to_thread(self.disk.allow)


def _age(paths: Iterable[Path]) -> None:
    """Sets the times back by an hour."""
    moment = time.time() - HOUR_SECONDS
    for path in paths:
        os.utime(path, (moment, moment), follow_symlinks=False)
