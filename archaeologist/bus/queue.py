"""The job queue: one message a job, by type and priority.

The message is a token that leads a worker to the job's record; the record decides.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple

import nats.errors
import nats.js.errors
from nats.js.api import ConsumerInfo

from archaeologist.bus.connection import Bus, subscribe_core
from archaeologist.bus.consumer import Puller, Received
from archaeologist.bus.publisher import SubjectOccupied, publish
from archaeologist.errors import BusUnavailable, TopologyMissing
from contracts import subjects
from contracts.messages import Job, JobType, Priority, encode
from contracts.ulid import new_ulid

CALL_SECONDS: Final = 5.0

JOB_TYPES: Final[tuple[JobType, ...]] = ("layer_stats", "layer_drift")
PRIORITIES: Final[tuple[Priority, ...]] = ("high", "normal", "low")


class Backlog(NamedTuple):
    """Messages of one type and priority."""

    waiting: int
    """Never handed to a worker."""
    in_flight: int
    """Handed to a worker and not acknowledged. One that was handed back, or whose lease ran out, stays among these and
    is not counted as waiting, so a worker that looked at ``waiting`` alone would never fetch it again."""


class JobQueue:
    """The stream of waiting and running jobs."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._pullers: dict[tuple[JobType, Priority], Puller] = {}

    async def put(self, job: Job) -> bool:
        """Queues a job's message; False where it already lies there.

        Raises:
            QueueFull: The stream is at its ceiling.
            BusUnavailable: The connection is closed for good.
        """
        subject = subjects.job_subject(job.job_type, job.priority, job.job_key)
        # An id of this call alone: one of the job's would make the server swallow a job that is queued again within the
        # stream's duplicate window, and say that it was stored.
        message_id = f"{job.job_key}:{new_ulid()}"
        try:
            await publish(self._bus, subject, encode(job), message_id=message_id)
        except SubjectOccupied:
            return False
        return True

    async def take(self, job_type: JobType, priority: Priority, *, timeout_seconds: float) -> Received | None:
        """The next message of a type and priority, or None."""
        key = (job_type, priority)
        if key not in self._pullers:
            self._pullers[key] = Puller(self._bus, subjects.JOBS, subjects.job_durable(job_type, priority))
        return await self._pullers[key].take(timeout_seconds=timeout_seconds)

    async def backlog(self) -> dict[tuple[JobType, Priority], Backlog]:
        """What lies on the queue, by type and priority.

        Raises:
            TopologyMissing: A consumer is not there.
            BusUnavailable: The server is away.
        """
        found = {}
        for job_type in JOB_TYPES:
            for priority, line in (await self.lines(job_type)).items():
                found[job_type, priority] = line
        return found

    async def lines(self, job_type: JobType) -> dict[Priority, Backlog]:
        """What lies on the queue of one type, by priority; errors as for ``backlog``."""
        lines = (self._backlog(subjects.job_durable(job_type, priority)) for priority in PRIORITIES)
        return dict(zip(PRIORITIES, await asyncio.gather(*lines), strict=True))

    async def remove(self, job_type: JobType, priority: Priority, job_key: str) -> None:
        """Takes a job's message off the queue."""
        await self._purge(subjects.job_subject(job_type, priority, job_key))

    async def subjects(self) -> list[tuple[str, str, str]]:
        """Job type, priority and key of every message on the queue, waiting or running."""
        try:
            info = await self._bus.jetstream.stream_info(subjects.JOBS, subjects_filter=subjects.JOBS_SUBJECTS[0])
        except (nats.errors.Error, OSError, TimeoutError) as error:
            msg = f"the queue cannot be listed: {error}"
            raise BusUnavailable(msg) from error
        parts = [subject.split(".", 4) for subject in (info.state.subjects or {})]
        return [(part[2], part[3], part[4]) for part in parts if len(part) == 5]  # noqa: PLR2004 -- archaeologist.jobs.type.priority.key

    async def drop_forgotten(self) -> None:
        """Removes messages that lie on the queue and come to nobody any more.

        A server that was killed can forget, when it is back, that it had handed a message out: the consumer takes what
        lies at or below its floor for acknowledged, and an acknowledged message lies on no queue.

        Raises:
            BusUnavailable: The server is away.
        """
        lying = Counter((job_type, priority) for job_type, priority, _ in await self.subjects())
        for (job_type, priority), count in lying.items():
            info = await self._info(subjects.job_durable(job_type, priority))
            if info.ack_floor is None or count <= (info.num_pending or 0) + (info.num_ack_pending or 0):
                continue
            await self._purge(subjects.job_subject(job_type, priority, "*"), below=info.ack_floor.stream_seq + 1)

    async def on_arrival(self, callback: Callable[[], None]) -> None:
        """Calls back when a message is published: 0.2 ms instead of a poll. It may be missed; poll as well."""
        await subscribe_core(self._bus, subjects.JOBS_SUBJECTS[0], lambda _subject: callback())

    async def _purge(self, subject: str, *, below: int | None = None) -> None:
        """Removes the messages of a subject, those below a sequence where one is given."""
        try:
            await self._bus.jetstream.purge_stream(subjects.JOBS, seq=below, subject=subject)
        except (nats.errors.Error, OSError, TimeoutError) as error:
            msg = f"{subject!r} could not be taken off the queue: {error}; its record decides all the same"
            raise BusUnavailable(msg) from error

    async def _backlog(self, durable: str) -> Backlog:
        info = await self._info(durable)
        return Backlog(waiting=int(info.num_pending or 0), in_flight=int(info.num_ack_pending or 0))

    async def _info(self, durable: str) -> ConsumerInfo:
        try:
            info: ConsumerInfo = await self._bus.jetstream.consumer_info(subjects.JOBS, durable, timeout=CALL_SECONDS)
        except nats.js.errors.NotFoundError as error:
            msg = f"consumer {durable!r} is not there; run `archaeologist bus ensure`"
            raise TopologyMissing(msg) from error
        except (nats.errors.Error, OSError, TimeoutError) as error:
            msg = f"consumer {durable!r} cannot be asked: {error}; the bus at {self._bus.shown} is away"
            raise BusUnavailable(msg) from error
        return info
