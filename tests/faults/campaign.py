"""Runs a plan: sends its messages while its faults happen, waits until nothing is pending, and has it all checked."""

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import nats.errors
import nats.js.errors
from msgspec.structs import replace

from archaeologist import tasks
from archaeologist.bus.connection import Bus
from archaeologist.bus.publisher import publish
from archaeologist.daemon import control
from archaeologist.daemon.books import Books
from archaeologist.errors import ArchaeologistError, TemporaryError
from contracts import subjects
from contracts.records import FINISHED
from tests.faults.checker import Finding, History, check
from tests.faults.history import read_history, unheard
from tests.faults.plan import Fault, Plan, Tally
from tests.faults.stage import Stage
from tests.fixtures.waiting import until

MOST_PENDING: Final = 120
"""Requests under way at once: enough that every fault meets some."""
LOOK_EVERY: Final = 20
QUIET_SECONDS: Final = 420.0
"""A sweep comes every five minutes, and some things only a sweep brings to their end."""
POLL_SECONDS: Final = 0.5
HOUR_SECONDS: Final = 3600.0
SWEEP_SECONDS: Final = 120.0
TELL_EVERY: Final = 200


@dataclass
class Outcome:
    """What a campaign did and what came of it."""

    injected: Counter[str] = field(default_factory=Counter)
    """Faults by kind."""
    sent: int = 0
    """Messages."""
    seconds: float = 0.0
    history: History = field(default_factory=History)
    findings: list[Finding] = field(default_factory=list)


class Campaign:
    """One plan on one stage."""

    def __init__(self, plan: Plan, stage: Stage, *, tell: Callable[[str], None], limit_seconds: float) -> None:
        self._plan = plan
        self._stage = stage
        self._tell = tell
        self._limit_seconds = limit_seconds
        self._outcome = Outcome()
        self._happening: set[asyncio.Task[None]] = set()
        self._is_over = asyncio.Event()

    async def run(self) -> Outcome:
        """From the first message to the checker's findings."""
        started = time.monotonic()
        outcome = self._outcome
        async with self._stage.opened() as bus:
            watching = asyncio.create_task(self._watch())
            await self._send(bus, until=started + self._limit_seconds)
            await self._until_faults_are_over()
            await self._until_quiet(bus, Books.on(bus))
            self._is_over.set()
            await watching
            await self._tidy()
            sent = [self._plan.sent[key] for key in sorted(self._sent_ids())]
            outcome.history = await read_history(self._stage.server.url, self._stage.root, sent)
        outcome.findings += check(outcome.history)
        outcome.seconds = time.monotonic() - started
        return outcome

    def _sent_ids(self) -> set[str]:
        return {message.body["request_id"] for message in self._plan.messages[: self._outcome.sent]}

    # Messages, and faults between them.

    async def _send(self, bus: Bus, *, until: float) -> None:
        faults = list(reversed(self._plan.faults))
        tally = Tally()
        for place, message in enumerate(self._plan.messages):
            if time.monotonic() > until:
                self._tell(f"the time is up after {place} of {len(self._plan.messages)} messages")
                return
            while faults and faults[-1].after <= place:
                self._begin(bus, faults.pop())
            await publish(bus, message.subject, message.data, message_id=message.message_id)
            self._outcome.sent = place + 1
            self._outcome.injected.update(tally.kinds_of(message))
            if request_id := self._plan.cancellations.get(place):
                self._happening.add(asyncio.create_task(self._cancel(bus, request_id)))
            if place % LOOK_EVERY == 0:
                await self._breathe(bus, place)

    async def _breathe(self, bus: Bus, place: int) -> None:
        """Waits while too much is pending."""
        if place % TELL_EVERY == 0:
            self._tell(f"{place} of {len(self._plan.messages)} messages, {self._outcome.injected.total()} faults")
        while (pending := await self._pending(bus)) is None or pending > MOST_PENDING:  # noqa: ASYNC110 -- others' work
            await asyncio.sleep(POLL_SECONDS)

    async def _pending(self, bus: Bus) -> int | None:
        """Messages that nobody has dealt with; None while the server does not say."""
        try:
            stream = await bus.jetstream.stream_info(subjects.JOBS)
            return int(stream.state.messages) + sum((await unheard(bus.jetstream)).values())
        except (nats.errors.Error, nats.js.errors.APIError, OSError, TimeoutError):
            return None

    def _begin(self, bus: Bus, fault: Fault) -> None:
        self._outcome.injected[fault.kind] += 1
        done_to_machinery = self._stage.faults.get(fault.kind)
        work = done_to_machinery() if done_to_machinery else self._repeat_job(bus)
        self._happening.add(asyncio.create_task(work, name=fault.kind))

    async def _cancel(self, bus: Bus, request_id: str) -> None:
        """As a person does, who tries again while it does not work."""
        for _ in range(20):
            try:
                record = await control.cancel(bus, request_id, by="somebody")
            except ArchaeologistError:
                await asyncio.sleep(POLL_SECONDS)
            else:
                self._outcome.injected["job cancelled"] += record.cancelled_by is not None
                return

    async def _repeat_job(self, bus: Bus) -> None:
        """Puts a job's message on the queue once more, at another priority: finished, running or waiting."""
        chosen = self._stage.chance.choice(self._plan.messages[: self._outcome.sent + 1]).body["request_id"]
        with contextlib.suppress(TemporaryError):
            _, record = await control.find(bus, chosen)
            if record is not None:
                await Books.on(bus).queue.put(replace(record.job, priority="high"))

    async def _watch(self) -> None:
        """Daemons end when they are told to and never otherwise."""
        while not self._is_over.is_set():
            for box in self._stage.boxes:
                if box.has_died:
                    last = box.daemon.log().strip().splitlines()[-1:]
                    self._outcome.findings.append(Finding("wrong", f"daemon {box.name}", f"it ended by itself: {last}"))
                    await box.replace()
            await tasks.pause(POLL_SECONDS, until=self._is_over)

    # The end.

    async def _until_faults_are_over(self) -> None:
        for task, failure in zip(
            self._happening, await asyncio.gather(*self._happening, return_exceptions=True), strict=True
        ):
            if failure is not None:
                self._outcome.findings.append(Finding("wrong", f"fault {task.get_name()!r}", repr(failure)))

    async def _until_quiet(self, bus: Bus, books: Books) -> None:
        """Returns when every message is dealt with and every record finished and announced, or after a long wait."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(QUIET_SECONDS):
                while not await self._is_quiet(bus, books):  # noqa: ASYNC110 -- others' work
                    await asyncio.sleep(POLL_SECONDS)

    async def _is_quiet(self, bus: Bus, books: Books) -> bool:
        if await self._pending(bus) != 0:
            return False
        records = (await books.jobs.all()).values()
        return all(record.state in FINISHED and record.event_sequence is not None for record in records)

    async def _tidy(self) -> None:
        """What the passing of an hour does: all that waits for its time is old, and a new daemon sweeps."""
        for box in self._stage.boxes:
            await box.stop()
        campaigns = self._stage.root / "campaigns"
        _age([*campaigns.glob("*/*/.pins/*"), *campaigns.rglob(".*.tmp")])
        sweeper = self._stage.sweeper
        async with sweeper.daemon:
            await until(lambda: '"swept"' in sweeper.daemon.log(), seconds=SWEEP_SECONDS)
            await sweeper.stop()


def _age(paths: Iterable[Path]) -> None:
    """Sets the times back by an hour."""
    moment = time.time() - HOUR_SECONDS
    for path in paths:
        os.utime(path, (moment, moment), follow_symlinks=False)
