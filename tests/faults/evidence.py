"""What a run left, as plain data, and what can be found wrong with it.

``history`` reads it, ``checker`` judges it; both know JSON, bytes and names, and nothing of the daemon.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, NamedTuple

import msgspec

Plain = dict[str, Any]

STARTED: Final = "analysis.started"
COMPLETED: Final = "analysis.completed"
FAILED: Final = "analysis.failed"
CANCELLED: Final = "analysis.cancelled"
ALERT: Final = "analysis.alert"
TERMINAL: Final = frozenset({COMPLETED, FAILED, CANCELLED})

KINDS: Final = ("lost", "doubled", "torn", "left_over", "wrong")


class Finding(NamedTuple):
    """Something that must not be."""

    kind: str
    """One of ``KINDS``."""
    what: str
    why: str


@dataclass(frozen=True)
class Sent:
    """A request that was published."""

    request_id: str
    endings: frozenset[str]
    """How it may end: completed, cancelled, skipped, or an error's code."""
    subject: str
    data: bytes
    """Its body, as it was published."""

    @cached_property
    def asks(self) -> Plain:
        """Its fields."""
        return dict(msgspec.json.decode(self.data))


class Told(NamedTuple):
    """A message of the Battle Log."""

    sequence: int
    message_id: str
    event: Plain


class Letter(NamedTuple):
    """A dead letter: why, and the message as it came, with where that lay."""

    code: str
    subject: str
    stream: str
    sequence: int
    data: bytes


@dataclass(kw_only=True)
class History:
    """What a run left, as it was found."""

    sent: list[Sent] = field(default_factory=list)
    log: list[Told] = field(default_factory=list)
    """The Battle Log, in order."""
    letters: list[Letter] = field(default_factory=list)
    requests: dict[str, Plain] = field(default_factory=dict)
    """The request records by id."""
    jobs: dict[str, Plain] = field(default_factory=dict)
    """The job records by key."""
    campaigns: dict[str, Plain] = field(default_factory=dict)
    """The campaign records by ``hero/campaign``."""
    queue: list[str] = field(default_factory=list)
    """Subjects of the messages that still lie on the job queue."""
    unheard: dict[str, int] = field(default_factory=dict)
    """Messages by consumer that were never acknowledged."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Everything in the folders of artifacts, by path."""
    sketches: dict[str, bytes] = field(default_factory=dict)
    """By path."""
    summaries: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """By ``hero/campaign`` the summaries' files and the scores', by name."""
    strays: list[str] = field(default_factory=list)
    """Temporary files, anywhere under the root."""
    pins: dict[str, list[str]] = field(default_factory=dict)
    """Names of the pins by ``hero/campaign``."""
    processes: dict[int, str] = field(default_factory=dict)
    """Processes of the run that are still there, by number: their command lines."""
    gpu_processes: list[int] = field(default_factory=list)
    """Those of them that hold memory of a GPU."""

    defects: list[str] = field(default_factory=list)
    """What the daemons logged of errors that they did not expect: the event, and the traceback's last line."""

    @property
    def events(self) -> list[Plain]:
        """Bodies of the terminal events, in order."""
        return [told.event for told in self.log if told.event["type"] in TERMINAL]


def by_job(told: list[Told]) -> dict[str, list[Told]]:
    """Messages of the log by the key of their job, where they are of one."""
    found: dict[str, list[Told]] = defaultdict(list)
    for message in told:
        if (key := message.event["data"].get("job_key")) is not None:
            found[key].append(message)
    return found
