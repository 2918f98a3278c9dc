"""Limits that hold for all machines together (``max_running_cluster``).

The server's own limit counts each priority by itself and jobs that merely wait for memory as well, so who runs is kept
in a record of its own and changed by compare-and-set: two workers that take a job at once cannot both have the last
slot. A slot whose worker died is free again once its job's record says so, as late as the job itself.
"""

from datetime import UTC, datetime, timedelta

from archaeologist.daemon import lifecycle
from archaeologist.daemon.books import Books
from archaeologist.daemon.lifecycle import stamp
from archaeologist.moments import moment_or_epoch
from archaeologist.settings import JobsSettings
from contracts.messages import JobKey, JobType
from contracts.records import SlotHolder, SlotRecord


class Slots:
    """The cluster's slots, as one worker sees them.

    Args:
        books: Where they are kept.
        limits: How many there are of each job type; without a limit nothing is kept.
        owner: The worker.
    """

    def __init__(self, books: Books, limits: JobsSettings, *, owner: str) -> None:
        self._books = books
        self._limits = limits
        self._owner = owner

    async def are_taken(self, job_type: JobType) -> bool:
        """Whether there is none left now."""
        limit = self._limits.of(job_type).max_running_cluster
        if limit is None:
            return False
        entry = await self._books.slots.get(job_type)
        return entry is not None and len(await self._alive(entry.value)) >= limit

    async def acquire(self, job_type: JobType, job_key: JobKey) -> bool:
        """Takes a slot for a job; False where none is left."""
        limit = self._limits.of(job_type).max_running_cluster
        if limit is None:
            return True
        mine = SlotHolder(owner=self._owner, job_key=job_key, at=stamp(datetime.now(UTC)))
        while True:
            entry = await self._books.slots.get(job_type)
            others = [holder for holder in await self._alive(entry.value if entry else SlotRecord()) if holder != mine]
            if len(others) >= limit:
                return False
            wanted = SlotRecord(holders=(*others, mine))
            written = await (
                self._books.slots.update(job_type, wanted, entry.revision)
                if entry
                else self._books.slots.create(job_type, wanted)
            )
            if written is not None:
                return True

    async def release(self, job_type: JobType, job_key: JobKey) -> None:
        """Gives the job's slot back, if this worker has it."""
        if self._limits.of(job_type).max_running_cluster is None:
            return
        await self._books.slots.change(job_type, lambda record: _without(record, self._owner, job_key))

    async def _alive(self, record: SlotRecord) -> list[SlotHolder]:
        return [holder for holder in record.holders if await self._is_alive(holder)]

    async def _is_alive(self, holder: SlotHolder) -> bool:
        """Whether its job still runs there, or is about to: the slot comes first, then the claim."""
        now = datetime.now(UTC)
        if now - moment_or_epoch(holder.at) < timedelta(seconds=self._limits.lease_seconds):
            return True
        entry = await self._books.jobs.get(holder.job_key)
        return entry is not None and lifecycle.is_run_by(
            entry.value, holder.owner, now=now, lease_seconds=self._limits.lease_seconds
        )


def _without(record: SlotRecord | None, owner: str, job_key: JobKey) -> SlotRecord | None:
    if record is None:
        return None
    return SlotRecord(
        holders=tuple(holder for holder in record.holders if (holder.owner, holder.job_key) != (owner, job_key))
    )
