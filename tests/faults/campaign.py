"""Runs a plan: sends its messages while its faults happen, waits until nothing is pending, and has it all checked."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from msgspec.structs import replace

from archaeologist import tasks
from archaeologist.bus.connection import Bus
from archaeologist.bus.publisher import publish
from archaeologist.daemon import control
from archaeologist.daemon.books import Books
from archaeologist.errors import ArchaeologistError, TemporaryError
from tests.faults.checker import check
from tests.faults.evidence import Finding, History
from tests.faults.history import read_history
from tests.faults.plan import Fault, Plan, Tally
from tests.faults.quiet import pending, until_quiet
from tests.faults.stage import Stage

MOST_PENDING: Final = 120
"""Requests under way at once: enough that every fault meets some."""
LOOK_EVERY: Final = 20
POLL_SECONDS: Final = 0.5
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
            await until_quiet(bus)
            self._is_over.set()
            await watching
            await self._stage.tidy()
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
        while (count := await pending(bus)) is None or count > MOST_PENDING:  # noqa: ASYNC110 -- others' work
            await asyncio.sleep(POLL_SECONDS)

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
