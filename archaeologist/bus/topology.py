"""Every stream, bucket and durable consumer, declared once; ``ensure`` makes the server agree.

Limits and their reasons: retention of what happened is thirty days; the job queue holds one message a job; records hold
one value a key. Names are in ``contracts.subjects``.
"""

import logging
from typing import Any, Final, Literal, NamedTuple

import nats.errors
import nats.js.errors
from nats.js import api

from archaeologist.bus.connection import Bus
from archaeologist.errors import ArchaeologistError, BusUnavailable, TopologyConflict
from archaeologist.settings import Settings
from contracts import subjects

log = logging.getLogger(__name__)

HOUR: Final = 3600.0
DAY: Final = 24 * HOUR
MAX_QUEUED: Final = 10_000
"""The queue's hard ceiling, beyond which everything is refused."""

INTAKE_ACK_PENDING: Final = 512
"""Intake handles one message after the other; the rest of these are messages put off for a moment, most of them because
their checkpoint is still being written."""

JOBS_ACK_PENDING: Final = 1000
"""Jobs of one type and priority with workers at once, those that wait for memory included: far above any limit of ours.
The server counts each priority by itself, so ``max_running_cluster`` is kept elsewhere (``daemon.slots``)."""

NOTIFY_ACK_PENDING: Final = 64
"""Events that wait to be told again; as long as so many do, newer ones wait too."""

BUCKET_FIELDS: Final = ("max_age", "num_replicas", "max_msgs_per_subject")
STREAM_FIELDS: Final = (
    *BUCKET_FIELDS,
    "subjects",
    "retention",
    "storage",
    "discard",
    "discard_new_per_subject",
    "duplicate_window",
    "max_msgs",
    "allow_msg_ttl",
)
REMEDIES: Final = {
    10052: "it cannot be changed; save what the stream holds, delete it with `nats stream rm`, and ensure again",
    10065: "another stream captures our subjects; delete it or narrow its subjects",
    10074: "set bus.replicas to 1, or run as many servers in a cluster",
    10005: "set bus.replicas to at most the number of servers in the cluster",
    10099: "a consumer that is not ours reads the job queue; delete it with `nats consumer rm`",
    10100: "a consumer that is not ours reads the job queue; delete it with `nats consumer rm`",
}
"""The server's refusals that trying again does not cure."""


class Change(NamedTuple):
    """What ``ensure`` did to one asset."""

    kind: Literal["stream", "bucket", "consumer"]
    name: str
    action: Literal["created", "updated", "unchanged"]


class _Durable(NamedTuple):
    stream: str
    config: api.ConsumerConfig


def streams(settings: Settings) -> list[api.StreamConfig]:
    """The streams as they shall be."""
    replicas = settings.bus.replicas
    history: dict[str, Any] = {
        "retention": api.RetentionPolicy.LIMITS,
        "discard": api.DiscardPolicy.OLD,
        "max_age": 30 * DAY,
        "storage": api.StorageType.FILE,
        "num_replicas": replicas,
    }
    return [
        api.StreamConfig(
            name=subjects.CHECKPOINTS,
            subjects=list(subjects.CHECKPOINTS_SUBJECTS),
            duplicate_window=2 * HOUR,
            **history,
        ),
        api.StreamConfig(
            name=subjects.REQUESTS, subjects=list(subjects.REQUESTS_SUBJECTS), duplicate_window=2 * HOUR, **history
        ),
        # The default window of two minutes is as short as a lease: a late repeat would be stored twice.
        api.StreamConfig(
            name=subjects.BATTLE_LOG,
            subjects=list(subjects.BATTLE_LOG_SUBJECTS),
            duplicate_window=24 * HOUR,
            allow_msg_ttl=True,
            **history,
        ),
        api.StreamConfig(
            name=subjects.DEAD, subjects=list(subjects.DEAD_SUBJECTS), duplicate_window=24 * HOUR, **history
        ),
        # Work-queue retention cannot be changed once the stream is there.
        api.StreamConfig(
            name=subjects.JOBS,
            subjects=list(subjects.JOBS_SUBJECTS),
            retention=api.RetentionPolicy.WORK_QUEUE,
            discard=api.DiscardPolicy.NEW,
            discard_new_per_subject=True,
            max_msgs_per_subject=1,
            max_msgs=MAX_QUEUED,
            max_age=0.0,
            # Off in effect: the record decides what is a repeat, and a forced run may come within seconds.
            duplicate_window=1.0,
            storage=api.StorageType.FILE,
            num_replicas=replicas,
        ),
    ]


def buckets(settings: Settings) -> list[api.KeyValueConfig]:
    """The key-value buckets as they shall be."""
    return [
        api.KeyValueConfig(bucket=subjects.JOB_RECORDS, history=1, replicas=settings.bus.replicas),
        api.KeyValueConfig(bucket=subjects.REQUEST_RECORDS, history=1, ttl=30 * DAY, replicas=settings.bus.replicas),
        api.KeyValueConfig(bucket=subjects.CAMPAIGN_RECORDS, history=1, replicas=settings.bus.replicas),
        # A worker that vanished is shown as silent for a day.
        api.KeyValueConfig(bucket=subjects.WORKER_RECORDS, history=1, ttl=DAY, replicas=settings.bus.replicas),
        api.KeyValueConfig(bucket=subjects.SLOT_RECORDS, history=1, replicas=settings.bus.replicas),
    ]


def durables(settings: Settings) -> list[_Durable]:
    """The durable consumers as they shall be."""
    found = [
        _Durable(
            stream,
            api.ConsumerConfig(
                durable_name=name,
                ack_wait=settings.jobs.lease_seconds,
                max_deliver=-1,
                max_ack_pending=INTAKE_ACK_PENDING,
            ),
        )
        for stream, name in (
            (subjects.CHECKPOINTS, subjects.INTAKE_CHECKPOINTS),
            (subjects.REQUESTS, subjects.INTAKE_REQUESTS),
        )
    ]
    told = [name for name in subjects.BATTLE_LOG_SUBJECTS if name != subjects.ANALYSIS_PROGRESS]
    for name in (subjects.NOTIFY_COMMAND, subjects.NOTIFY_WEBHOOK):
        config = api.ConsumerConfig(
            durable_name=name,
            # Nobody is told of what happened before there was anybody to tell.
            deliver_policy=api.DeliverPolicy.NEW,
            filter_subjects=told,
            ack_wait=settings.jobs.lease_seconds,
            max_deliver=-1,
            max_ack_pending=NOTIFY_ACK_PENDING,
        )
        found.append(_Durable(subjects.BATTLE_LOG, config))
    for job_type in subjects.JOB_TYPES:
        for priority in subjects.PRIORITIES:
            config = api.ConsumerConfig(
                durable_name=subjects.job_durable(job_type, priority),
                filter_subject=subjects.job_filter(job_type, priority),
                ack_wait=settings.jobs.lease_seconds,
                # A wait for memory is a delivery too: the record counts, not the server.
                max_deliver=-1,
                max_ack_pending=JOBS_ACK_PENDING,
            )
            found.append(_Durable(subjects.JOBS, config))
    return found


async def ensure(bus: Bus, settings: Settings) -> list[Change]:
    """Makes every asset what it shall be.

    Raises:
        TopologyConflict: A stream differs in what cannot be changed.
        BusUnavailable: The server is away, or the identity may not create streams.
    """
    changes: list[Change] = []
    await bus.until_connected(settings.bus.connect_timeout_seconds)
    try:
        changes += [await _ensure_stream(bus, config) for config in streams(settings)]
        changes += [await _ensure_bucket(bus, bucket) for bucket in buckets(settings)]
        changes += [await _ensure_durable(bus, durable) for durable in durables(settings)]
    except nats.js.errors.APIError as error:
        raise _refusal(bus, error) from error
    except (nats.errors.Error, OSError, TimeoutError) as error:
        reason = bus.last_error or str(error) or type(error).__name__
        msg = (
            f"the bus at {bus.shown} could not be set up ({reason}); is JetStream on? Where roles are kept apart, run"
            " `archaeologist bus ensure` as admin, with the same settings"
        )
        raise BusUnavailable(msg) from error
    return changes


async def differences(bus: Bus, settings: Settings) -> list[str]:
    """What on the server is not as it shall be, as sentences; empty when all is right.

    Raises:
        BusUnavailable: The server is away.
    """
    found = []
    await bus.until_connected(settings.bus.connect_timeout_seconds)
    try:
        wanted = [*streams(settings), *(_bucket_stream(bucket) for bucket in buckets(settings))]
        for config in wanted:
            current = await _stream(bus, str(config.name))
            if current is None:
                found.append(f"stream {config.name} is missing")
            else:
                found += [f"stream {config.name}: {text}" for text in _stream_differences(current, config)]
        for durable in durables(settings):
            consumer = await _consumer(bus, durable)
            name = durable.config.durable_name
            if consumer is None:
                found.append(f"consumer {name} is missing")
            else:
                found += [f"consumer {name}: {text}" for text in _durable_differences(consumer, durable.config)]
    except (nats.errors.Error, OSError, TimeoutError) as error:
        msg = f"the bus at {bus.shown} could not be asked: {error}"
        raise BusUnavailable(msg) from error
    return found


async def _ensure_stream(bus: Bus, config: api.StreamConfig) -> Change:
    name = str(config.name)
    current = await _stream(bus, name)
    if current is None:
        await bus.jetstream.add_stream(config)
        return Change("stream", name, "created")
    if not _stream_differences(current, config):
        return Change("stream", name, "unchanged")
    if current.retention != config.retention:
        msg = (
            f"stream {name} has retention {_plain(current.retention)!r}, it must be {_plain(config.retention)!r}, which"
            f" a server never changes; save what it holds, delete it with `nats stream rm {name}` and ensure again"
        )
        raise TopologyConflict(msg)
    # What we do not set stays as whoever runs the server set it: placement, compression, limits in bytes.
    await bus.jetstream.update_stream(current.evolve(**_set_by(config)))
    return Change("stream", name, "updated")


async def _ensure_bucket(bus: Bus, config: api.KeyValueConfig) -> Change:
    stream = _bucket_stream(config)
    current = await _stream(bus, str(stream.name))
    if current is None:
        await bus.jetstream.create_key_value(config)
        return Change("bucket", config.bucket, "created")
    wrong = _stream_differences(current, stream)
    if not wrong:
        return Change("bucket", config.bucket, "unchanged")
    await bus.jetstream.update_stream(
        current.evolve(max_age=stream.max_age or 0, num_replicas=stream.num_replicas, max_msgs_per_subject=1)
    )
    return Change("bucket", config.bucket, "updated")


async def _ensure_durable(bus: Bus, durable: _Durable) -> Change:
    name = str(durable.config.durable_name)
    current = await _consumer(bus, durable)
    if current is not None and not _durable_differences(current, durable.config):
        return Change("consumer", name, "unchanged")
    await bus.jetstream.add_consumer(durable.stream, durable.config)
    return Change("consumer", name, "created" if current is None else "updated")


def _refusal(bus: Bus, error: nats.js.errors.APIError) -> ArchaeologistError:
    reason = f"{error.description or error} (code {error.err_code})"
    if remedy := REMEDIES.get(error.err_code or 0):
        return TopologyConflict(f"the bus at {bus.shown} refused its set-up: {reason}; {remedy}")
    return BusUnavailable(f"the bus at {bus.shown} refused its set-up: {reason}; is JetStream up and the role allowed?")


def _set_by(config: api.StreamConfig) -> dict[str, Any]:
    """The fields of a stream that we decide."""
    return {field: value for field in STREAM_FIELDS if (value := getattr(config, field)) is not None}


async def _stream(bus: Bus, name: str) -> api.StreamConfig | None:
    try:
        return (await bus.jetstream.stream_info(name)).config
    except nats.js.errors.NotFoundError:
        return None


async def _consumer(bus: Bus, durable: _Durable) -> api.ConsumerConfig | None:
    try:
        info = await bus.jetstream.consumer_info(durable.stream, str(durable.config.durable_name))
    except nats.js.errors.NotFoundError:
        return None
    config: api.ConsumerConfig = info.config
    return config


def _bucket_stream(config: api.KeyValueConfig) -> api.StreamConfig:
    """The part of a bucket's stream that is ours to say."""
    return api.StreamConfig(
        name=f"KV_{config.bucket}",
        max_msgs_per_subject=config.history,
        max_age=config.ttl,
        num_replicas=config.replicas,
    )


def _stream_differences(current: api.StreamConfig, wanted: api.StreamConfig) -> list[str]:
    fields = STREAM_FIELDS if wanted.subjects else BUCKET_FIELDS
    return [text for field in fields if (text := _difference(current, wanted, field))]


def _durable_differences(current: api.ConsumerConfig, wanted: api.ConsumerConfig) -> list[str]:
    fields = ("filter_subject", "filter_subjects", "ack_wait", "max_deliver", "max_ack_pending")
    return [text for field in fields if (text := _difference(current, wanted, field))]


def _difference(current: object, wanted: object, field: str) -> str | None:
    """A sentence where a field that we set is not what the server has; its zero and our None are the same."""
    has, shall = _plain(getattr(current, field, None)), _plain(getattr(wanted, field, None))
    if not shall and field in {"subjects", "retention", "max_msgs"}:
        return None
    return None if (has or None) == (shall or None) else f"{field} is {has!r}, it must be {shall!r}"


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)
