"""Announcing saved checkpoints from inside a trainer, without ever being in its way.

Messages wait in a bounded queue; a daemon thread with an event loop of its own delivers them. The thread and its
connection live only while there is something to deliver: between saves nothing runs, and a fork or a pickle of the
trainer finds nothing to break. A bus that is away costs one warning; the same message goes out under the same id later.

Imports nats-py and msgspec and no more, because trainers have no more. Retrying after the process has ended is not
covered: what is left then is named, with the command that makes up for it.
"""

import asyncio
import atexit
import logging
import os
import shlex
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from archaeologist.bus.connection import Bus, connected
from archaeologist.bus.publisher import publish
from archaeologist.errors import SettingInvalid
from archaeologist.settings import BusSettings
from contracts import subjects
from contracts.messages import CheckpointSaved, encode

log = logging.getLogger(__name__)

CAPACITY: Final = 100
"""Announcements that may wait; the policy needs the newest, so the oldest is dropped beyond that."""
ATTEMPT_SECONDS: Final = 5.0
FIRST_RETRY_SECONDS: Final = 1.0
LONGEST_RETRY_SECONDS: Final = 30.0
MAX_STEPS_SHOWN: Final = 10


def bus_settings(environ: Mapping[str, str], **given: Any) -> BusSettings:
    """The bus settings of a trainer: what is given, else the environment, else the defaults.

    No settings file is read: one that lies around on a training machine is the daemon's and holds its credentials.

    Args:
        environ: ``ARCHAEOLOGIST_NATS_URL`` and ``ARCHAEOLOGIST_BUS__{FIELD}`` count.
        **given: Fields of ``BusSettings``; None is as good as left out.

    Raises:
        SettingInvalid: An unknown field or a wrong value.
    """
    variables = {name: f"ARCHAEOLOGIST_BUS__{name.upper()}" for name in BusSettings.__struct_fields__}
    values: dict[str, Any] = {name: environ[key] for name, key in variables.items() if key in environ}
    if url := environ.get("ARCHAEOLOGIST_NATS_URL"):
        values["url"] = url
    values |= {name: value for name, value in given.items() if value is not None}
    try:
        return msgspec.convert(values, BusSettings, strict=False)
    except msgspec.ValidationError as error:
        msg = f"bus settings: {error}; the known ones are {', '.join(variables)}"
        raise SettingInvalid(msg) from error


class CheckpointPublisher:
    """Takes announcements at once and delivers them when it can.

    Args:
        settings: How to reach the bus.
        capacity: How many announcements may wait.
    """

    def __init__(self, settings: BusSettings, *, capacity: int = CAPACITY) -> None:
        self._settings = settings
        self._capacity = capacity
        self._begin()

    def _begin(self) -> None:
        self._waiting: deque[CheckpointSaved] = deque()
        self._changed = threading.Condition()
        self._is_running = False
        self._is_flushing = False
        self._is_exit_watched = False
        self._process_id = os.getpid()

    @property
    def waiting(self) -> tuple[CheckpointSaved, ...]:
        """What has not been delivered, the oldest first."""
        with self._changed:
            return tuple(self._waiting)

    def put(self, message: CheckpointSaved) -> None:
        """Queues an announcement, which needs a ``request_id``; returns at once."""
        if self._process_id != os.getpid():
            # A forked child inherits the queue but not the thread that empties it; the parent delivers its own.
            self._begin()
        with self._changed:
            if len(self._waiting) >= self._capacity:
                dropped = self._waiting.popleft()
                log.warning("%d announcements wait already; dropped the oldest: %s", self._capacity, remedy([dropped]))
            self._waiting.append(message)
            self._changed.notify_all()
            if not self._is_running:
                self._start()

    def flush(self, timeout_seconds: float) -> tuple[CheckpointSaved, ...]:
        """Waits until everything is delivered or the time is over.

        Returns:
            What has not been delivered; the thread goes on trying while the process lives.
        """
        if self._process_id != os.getpid():
            return ()
        with self._changed:
            self._is_flushing = True
            # Wakes a thread that pauses between two tries: now is the time for one more.
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._waiting, timeout=timeout_seconds)
            self._is_flushing = False
            return tuple(self._waiting)

    def finish(self, timeout_seconds: float) -> None:
        """Flushes, and says what was not delivered."""
        if self._process_id == os.getpid():
            atexit.unregister(self._at_exit)
            self._is_exit_watched = False
        if left := self.flush(timeout_seconds):
            log.warning("%d checkpoint(s) were not announced on the bus: %s", len(left), remedy(left))

    def cancel(self) -> None:
        """Gives up what was not delivered."""
        atexit.unregister(self._at_exit)
        with self._changed:
            self._waiting.clear()
            self._changed.notify_all()

    def _at_exit(self) -> None:
        self.finish(ATTEMPT_SECONDS)

    def _start(self) -> None:
        self._is_running = True
        threading.Thread(target=self._run, name="archaeologist-publisher", daemon=True).start()
        if not self._is_exit_watched:
            # For a training that ends by an exception, without on_train_end.
            self._is_exit_watched = True
            atexit.register(self._at_exit)

    def _run(self) -> None:
        pause = FIRST_RETRY_SECONDS
        has_warned = False
        while not self._is_done():
            try:
                asyncio.run(self._deliver())
            except Exception as error:  # noqa: BLE001 -- whatever it is, training goes on and a later try may succeed
                if self.waiting and not has_warned:
                    log.warning("checkpoint not announced yet, trying again: %s", error)
                    has_warned = True
                self._wait(pause)
                pause = min(2 * pause, LONGEST_RETRY_SECONDS)
            else:
                if has_warned:
                    log.info("the bus answers again; all checkpoints are announced")
                pause, has_warned = FIRST_RETRY_SECONDS, False

    def _is_done(self) -> bool:
        """Whether the thread may end; decided under the lock, so that no announcement is left without a thread."""
        with self._changed:
            self._is_running = bool(self._waiting)
            return not self._is_running

    def _wait(self, seconds: float) -> None:
        with self._changed:
            # While somebody waits in flush(), tries follow each other closely.
            self._changed.wait(min(seconds, 0.2) if self._is_flushing else seconds)

    async def _deliver(self) -> None:
        async with connected(self._settings, name="archaeologist-trainer") as bus:
            while waiting := self.waiting:
                await _publish(bus, waiting[0])
                self._delivered(waiting[0])

    def _delivered(self, message: CheckpointSaved) -> None:
        with self._changed:
            # It may have been dropped as the oldest meanwhile.
            if self._waiting and self._waiting[0] is message:
                self._waiting.popleft()
            self._changed.notify_all()

    def __reduce__(self) -> tuple[type[Self], tuple[BusSettings], dict[str, int]]:
        """A copy has the settings, and neither the queue nor the thread."""
        return (type(self), (self._settings,), {"_capacity": self._capacity})


def remedy(messages: Sequence[CheckpointSaved]) -> str:
    """Which checkpoints they were and the command that asks for their analysis by hand."""
    first, last = messages[0], messages[-1]
    command = f"archaeologist request --hero {first.hero_id} --campaign {first.campaign_id}"
    steps = [str(message.checkpoint_step) for message in messages]
    shown = ", ".join(steps[:MAX_STEPS_SHOWN]) + (", …" if len(steps) > MAX_STEPS_SHOWN else "")
    if len(messages) > 1 and _is_in_campaign(first):
        return f"step {shown}; ask for them with `{command} --steps {first.checkpoint_step}:{last.checkpoint_step}:1`"
    return f"step {shown}; ask for each with `{command} {shlex.quote(first.checkpoint_path)}`"


def _is_in_campaign(message: CheckpointSaved) -> bool:
    """Whether the command line finds the checkpoint by its step alone."""
    folders = ("campaigns", message.hero_id, message.campaign_id, "checkpoints")
    return Path(message.checkpoint_path).parts[-5:-1] == folders


async def _publish(bus: Bus, message: CheckpointSaved) -> None:
    await publish(
        bus,
        subjects.CHECKPOINT_SAVED,
        encode(message),
        message_id=str(message.request_id),
        deadline_seconds=ATTEMPT_SECONDS,
    )
