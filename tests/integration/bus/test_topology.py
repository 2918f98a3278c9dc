from collections.abc import AsyncIterator

import msgspec
import pytest
from nats.js import api

from archaeologist.bus.connection import Bus, connected
from archaeologist.bus.publisher import publish
from archaeologist.bus.topology import differences, ensure
from archaeologist.errors import BusUnavailable, TopologyConflict
from archaeologist.settings import BusSettings, Settings
from contracts import subjects
from tests.fixtures.servers import Server
from tests.fixtures.waiting import until, until_asked

DAY = 86_400.0


@pytest.fixture
async def bare(server: Server, settings: Settings) -> AsyncIterator[Bus]:
    """A connection without the topology."""
    async with connected(settings.bus, name="test") as bus:
        yield bus


async def test_everything_is_created_once_and_then_left_alone(bare: Bus, settings: Settings) -> None:
    created = await ensure(bare, settings)
    assert {change.action for change in created} == {"created"}
    assert {change.action for change in await ensure(bare, settings)} == {"unchanged"}
    kinds = [change.kind for change in created]
    assert (kinds.count("stream"), kinds.count("bucket"), kinds.count("consumer")) == (5, 5, 10)
    assert await differences(bare, settings) == []


async def test_the_job_queue_refuses_a_second_message_on_a_subject_and_keeps_nothing_acknowledged(bus: Bus) -> None:
    config = (await bus.jetstream.stream_info(subjects.JOBS)).config
    assert config.retention == "workqueue"
    assert config.discard == "new"
    assert (config.max_msgs_per_subject, config.discard_new_per_subject, config.max_msgs) == (1, True, 10_000)
    assert config.storage == "file"


@pytest.mark.parametrize(
    ("stream", "window"), [(subjects.CHECKPOINTS, 7200), (subjects.REQUESTS, 7200), (subjects.BATTLE_LOG, DAY)]
)
async def test_what_happened_is_kept_thirty_days(bus: Bus, stream: str, window: float) -> None:
    config = (await bus.jetstream.stream_info(stream)).config
    assert (config.retention, config.max_age, config.duplicate_window) == ("limits", 30 * DAY, window)


async def test_requests_and_workers_expire_and_job_records_do_not(bus: Bus) -> None:
    buckets = (subjects.REQUEST_RECORDS, subjects.WORKER_RECORDS, subjects.JOB_RECORDS)
    ages = [(await bus.jetstream.stream_info(f"KV_{bucket}")).config.max_age for bucket in buckets]
    assert ages == [30 * DAY, DAY, 0]


async def test_durables_follow_the_settings(bus: Bus, settings: Settings) -> None:
    shorter = msgspec.structs.replace(
        settings,
        jobs=msgspec.structs.replace(
            settings.jobs,
            lease_seconds=7.0,
        ),
    )
    assert any("ack_wait is 0.6, it must be 7.0" in text for text in await differences(bus, shorter))
    updated = {change.name for change in await ensure(bus, shorter) if change.action == "updated"}
    assert len(updated) == 10
    assert await differences(bus, shorter) == []
    name = subjects.job_durable("layer_drift", "high")
    config = (await bus.jetstream.consumer_info(subjects.JOBS, name)).config
    assert (config.ack_wait, config.max_ack_pending, config.max_deliver) == (7.0, 1000, -1)
    assert config.filter_subject == "archaeologist.jobs.layer_drift.high.*"


async def test_a_stream_that_drifted_is_put_right_and_keeps_what_is_not_ours(bus: Bus, settings: Settings) -> None:
    config = (await bus.jetstream.stream_info(subjects.BATTLE_LOG)).config
    await bus.jetstream.update_stream(
        config.evolve(max_age=2 * DAY, max_bytes=12_345_678, description="ours to keep", subjects=["analysis.started"])
    )
    wrong = await differences(bus, settings)
    assert any(text.startswith("stream BATTLE_LOG: max_age is 172800.0") for text in wrong)
    changes = {change.name: change.action for change in await ensure(bus, settings)}
    assert changes[subjects.BATTLE_LOG] == "updated"
    config = (await bus.jetstream.stream_info(subjects.BATTLE_LOG)).config
    assert (config.max_age, config.max_bytes, config.description) == (30 * DAY, 12_345_678, "ours to keep")
    assert await differences(bus, settings) == []


async def test_a_deleted_consumer_and_a_deleted_bucket_are_missed_and_made_again(bus: Bus, settings: Settings) -> None:
    await bus.jetstream.delete_consumer(subjects.REQUESTS, subjects.INTAKE_REQUESTS)
    await bus.jetstream.delete_key_value(subjects.CAMPAIGN_RECORDS)
    assert sorted(await differences(bus, settings)) == [
        f"consumer {subjects.INTAKE_REQUESTS} is missing",
        f"stream KV_{subjects.CAMPAIGN_RECORDS} is missing",
    ]
    created = {change.name for change in await ensure(bus, settings) if change.action == "created"}
    assert created == {subjects.INTAKE_REQUESTS, subjects.CAMPAIGN_RECORDS}


async def test_a_retention_that_cannot_change_is_a_conflict_with_the_remedy(bare: Bus, settings: Settings) -> None:
    await bare.jetstream.add_stream(name=subjects.JOBS, subjects=list(subjects.JOBS_SUBJECTS))
    with pytest.raises(TopologyConflict, match=r"retention 'limits'.*'workqueue'.*nats stream rm ARCHAEOLOGIST_JOBS"):
        await ensure(bare, settings)


async def test_a_storage_that_cannot_change_is_a_conflict_with_the_remedy(bare: Bus, settings: Settings) -> None:
    await bare.jetstream.add_stream(
        name=subjects.DEAD, subjects=list(subjects.DEAD_SUBJECTS), storage=api.StorageType.MEMORY
    )
    with pytest.raises(TopologyConflict, match=r"cannot be changed.*nats stream rm"):
        await ensure(bare, settings)


async def test_a_foreign_stream_on_our_subjects_is_a_conflict_with_the_remedy(bare: Bus, settings: Settings) -> None:
    await bare.jetstream.add_stream(name="EVERYTHING", subjects=["analysis.>"])
    with pytest.raises(TopologyConflict, match=r"10065.*narrow its subjects"):
        await ensure(bare, settings)


async def test_a_foreign_consumer_on_the_queue_is_a_conflict_with_the_remedy(bare: Bus, settings: Settings) -> None:
    await ensure(bare, settings)
    name = subjects.job_durable("layer_stats", "high")
    await bare.jetstream.delete_consumer(subjects.JOBS, name)
    await bare.jetstream.add_consumer(
        subjects.JOBS, durable_name="foreign", filter_subject=subjects.job_filter("layer_stats", "high")
    )
    with pytest.raises(TopologyConflict, match="nats consumer rm"):
        await ensure(bare, settings)


async def test_more_replicas_than_servers_are_a_conflict_with_the_remedy(bare: Bus, server: Server) -> None:
    settings = Settings(bus=BusSettings(url=server.url, replicas=3))
    with pytest.raises(TopologyConflict, match=r"bus\.replicas"):
        await ensure(bare, settings)


async def test_a_server_that_went_away_is_told(server: Server, bus: Bus) -> None:
    await server.kill()
    await until(lambda: not bus.is_connected)
    settings = Settings(bus=BusSettings(url=server.url, connect_timeout_seconds=0.2))
    with pytest.raises(BusUnavailable):
        await ensure(bus, settings)
    with pytest.raises(BusUnavailable):
        await differences(bus, settings)


async def test_a_progress_event_is_forgotten_after_its_time(bus: Bus) -> None:
    kept = await publish(bus, subjects.ANALYSIS_STARTED, b"{}", message_id="kept")
    await publish(bus, subjects.ANALYSIS_PROGRESS, b"{}", message_id="passing", ttl_seconds=1)

    async def is_gone() -> bool:
        return (await bus.jetstream.stream_info(subjects.BATTLE_LOG)).state.messages == 1

    await until_asked(is_gone)
    assert (await bus.jetstream.stream_info(subjects.BATTLE_LOG)).state.first_seq == kept.sequence
