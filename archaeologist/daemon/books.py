"""The daemon's memory on the bus: the buckets of records and the queue."""

from dataclasses import dataclass
from typing import Self

from archaeologist.bus.connection import Bus
from archaeologist.bus.queue import JobQueue
from archaeologist.bus.records import Records
from contracts import subjects
from contracts.records import CampaignRecord, JobRecord, RequestRecord, SlotRecord, WorkerRecord


@dataclass(frozen=True, kw_only=True)
class Books:
    """Records of jobs, requests, campaigns, workers and cluster-wide slots, and the job queue."""

    jobs: Records[JobRecord]
    requests: Records[RequestRecord]
    campaigns: Records[CampaignRecord]
    workers: Records[WorkerRecord]
    slots: Records[SlotRecord]
    queue: JobQueue

    @classmethod
    def on(cls, bus: Bus, *, deadline_seconds: float | None = None) -> Self:
        """The books of a bus.

        Args:
            bus: The connection.
            deadline_seconds: How long a call tries while the server is away; None: until it is closed for good.
        """
        return cls(
            jobs=Records(bus, subjects.JOB_RECORDS, JobRecord, deadline_seconds=deadline_seconds),
            requests=Records(bus, subjects.REQUEST_RECORDS, RequestRecord, deadline_seconds=deadline_seconds),
            campaigns=Records(bus, subjects.CAMPAIGN_RECORDS, CampaignRecord, deadline_seconds=deadline_seconds),
            workers=Records(bus, subjects.WORKER_RECORDS, WorkerRecord, deadline_seconds=deadline_seconds),
            slots=Records(bus, subjects.SLOT_RECORDS, SlotRecord, deadline_seconds=deadline_seconds),
            queue=JobQueue(bus),
        )


def campaign_key(hero_id: str, campaign_id: str) -> str:
    """Key of a campaign's record. The last part keeps a name that ends in a dot from making an invalid key."""
    return f"{hero_id}/{campaign_id}/record"
