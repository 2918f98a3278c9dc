import asyncio
import json
from typing import Any

import pytest
from msgspec import Struct

from archaeologist.bus import reading, records
from archaeologist.bus.connection import Bus, connected
from archaeologist.bus.records import Records
from archaeologist.errors import BusUnavailable, TopologyMissing
from archaeologist.settings import Settings
from contracts import subjects
from tests.fixtures.servers import Server
from tests.fixtures.waiting import until


class Count(Struct, frozen=True, kw_only=True):
    number: int
    by: str = ""


KEY = "dio/tiny-1.2/record"


@pytest.fixture
def counts(bus: Bus) -> Records[Count]:
    return Records(bus, subjects.CAMPAIGN_RECORDS, Count)


def _one_more(count: Count | None) -> Count:
    return Count(number=(count.number if count else 0) + 1)


async def test_a_record_is_created_once(counts: Records[Count]) -> None:
    assert await counts.get(KEY) is None
    revision = await counts.create(KEY, Count(number=1))
    assert await counts.create(KEY, Count(number=2)) is None
    assert await counts.get(KEY) == (Count(number=1), revision)


async def test_an_update_needs_the_revision_that_stands(counts: Records[Count]) -> None:
    first = await counts.create(KEY, Count(number=1))
    assert first is not None
    second = await counts.update(KEY, Count(number=2), first)
    assert await counts.update(KEY, Count(number=3), first) is None
    assert await counts.get(KEY) == (Count(number=2), second)


async def test_a_deleted_key_is_no_record_and_can_be_created_again(bus: Bus, counts: Records[Count]) -> None:
    await counts.create(KEY, Count(number=1))
    store = await bus.jetstream.key_value(subjects.CAMPAIGN_RECORDS)
    await store.delete(KEY)
    assert await counts.get(KEY) is None
    assert await counts.all() == {}
    assert await counts.change(KEY, _one_more) == Count(number=1)
    assert (await store.get(KEY)).value == b'{"number":1,"by":""}'


async def test_twenty_changes_at_once_are_all_counted(counts: Records[Count]) -> None:
    await asyncio.gather(*(counts.change(KEY, _one_more) for _ in range(20)))
    entry = await counts.get(KEY)
    assert entry is not None
    assert entry.value == Count(number=20)


async def test_a_change_that_leaves_the_record_alone_writes_nothing(counts: Records[Count]) -> None:
    revision = await counts.create(KEY, Count(number=1))
    assert await counts.change(KEY, lambda _: None) == Count(number=1)
    assert await counts.change(KEY, lambda count: count) == Count(number=1)
    assert await counts.get(KEY) == (Count(number=1), revision)
    assert await counts.change("nothing", lambda _: None) is None


@pytest.mark.parametrize("key", ["", ".", "a.", ".a", "a b", "a*", ">", "é", "a\n"])
async def test_what_cannot_be_a_key_has_no_record_and_gets_none(counts: Records[Count], key: str) -> None:
    assert await counts.get(key) is None
    with pytest.raises(ValueError, match="cannot be a key"):
        await counts.create(key, Count(number=1))


async def test_all_records_are_listed_by_key_with_the_newest_value(bus: Bus, counts: Records[Count]) -> None:
    for number in range(150):
        await counts.create(f"a.b/c-{number}", Count(number=number))
    await counts.change("a.b/c-7", lambda _: Count(number=1000))
    await bus.client.publish(f"$KV.{subjects.CAMPAIGN_RECORDS}.broken", b"{")
    await bus.flush()
    found = await counts.all()
    assert found == {f"a.b/c-{number}": Count(number=1000 if number == 7 else number) for number in range(150)}
    assert sorted(await counts.keys()) == sorted([*found, "broken"])
    assert (await bus.jetstream.stream_info(f"KV_{subjects.CAMPAIGN_RECORDS}")).state.consumer_count == 0


@pytest.mark.parametrize("keys", [1, 7])
async def test_a_listing_misses_no_record_that_is_replaced_meanwhile(
    settings: Settings, bus: Bus, counts: Records[Count], keys: int
) -> None:
    """The server counts one message too few as pending while it replaces another."""
    expected = {f"key-{number}" for number in range(keys)}
    for key in expected:
        await counts.create(key, Count(number=0))

    is_over = asyncio.Event()

    async def replace_all() -> None:
        while not is_over.is_set():
            for key in expected:
                await counts.put(key, Count(number=1))

    async with connected(settings.bus, name="lister") as other:
        lister = Records(other, subjects.CAMPAIGN_RECORDS, Count)
        replacing = asyncio.create_task(replace_all())
        for _ in range(200):
            assert (await lister.all()).keys() == expected
        is_over.set()
        await replacing


async def test_keys_are_listed_also_where_the_server_does_not_name_them_all(
    counts: Records[Count], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        await counts.create(f"key-{number}", Count(number=number))

    async def named(_: str) -> set[str]:
        return {f"$KV.{subjects.CAMPAIGN_RECORDS}.key-0"}

    monkeypatch.setattr(counts, "_subjects", named)
    monkeypatch.setattr(records, "NAMED_AT_ONCE", 1)
    assert sorted(await counts.keys()) == [f"key-{number}" for number in range(5)]


async def test_a_record_that_was_deleted_is_not_listed_and_one_that_expires_meanwhile_is_not_waited_for(
    bus: Bus, counts: Records[Count], monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("kept", "deleted", "expires"):
        await counts.create(key, Count(number=1))
    await counts.remove("deleted")
    stream = f"KV_{subjects.CAMPAIGN_RECORDS}"
    ask = counts._subjects

    async def then_expires(wanted: str) -> set[str]:
        found = await ask(wanted)
        await bus.jetstream.purge_stream(stream, subject=f"$KV.{subjects.CAMPAIGN_RECORDS}.expires")
        return found

    monkeypatch.setattr(reading, "FETCH_SECONDS", 0.2)
    monkeypatch.setattr(counts, "_subjects", then_expires)
    assert await counts.keys() == ["kept"]


async def test_an_empty_bucket_has_no_keys(counts: Records[Count]) -> None:
    assert await counts.keys() == []


async def test_a_change_goes_on_when_the_server_is_back(server: Server, bus: Bus, counts: Records[Count]) -> None:
    await counts.create(KEY, Count(number=1))
    await server.kill()
    await until(lambda: not bus.is_connected)
    changing = asyncio.create_task(counts.change(KEY, _one_more))
    listing = asyncio.create_task(counts.all())
    done, _ = await asyncio.wait({changing, listing}, timeout=0.7)
    assert not done
    await server.start()
    assert await asyncio.wait_for(changing, timeout=15) == Count(number=2)
    assert set(await asyncio.wait_for(listing, timeout=15)) == {KEY}


async def test_changes_through_kills_are_each_made_once(server: Server, bus: Bus, counts: Records[Count]) -> None:
    async def count_to(goal: int) -> None:
        for _ in range(goal):
            await counts.change(KEY, _one_more)
            await asyncio.sleep(0.005)  # spread over the kills

    counting = asyncio.create_task(count_to(200))
    for _ in range(2):
        await asyncio.wait({counting}, timeout=0.5)
        await server.restart()
        await bus.until_connected(10)
    await asyncio.wait_for(counting, timeout=30)
    entry = await counts.get(KEY)
    assert entry is not None
    assert entry.value == Count(number=200)


async def test_a_write_whose_confirmation_was_lost_is_not_taken_for_somebody_elses(
    bus: Bus, counts: Records[Count], monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = bus.jetstream.publish
    lost: list[str] = []

    async def losing(subject: str, *arguments: Any, **options: Any) -> Any:
        acknowledged = await genuine(subject, *arguments, **options)
        if not lost:
            lost.append(subject)
            raise TimeoutError
        return acknowledged

    monkeypatch.setattr(bus.jetstream, "publish", losing)
    assert await counts.create(KEY, Count(number=1)) == 1
    assert lost == [f"$KV.{subjects.CAMPAIGN_RECORDS}.{KEY}"]
    lost.clear()
    assert await counts.update(KEY, Count(number=2), 1) == 2
    assert await counts.update(KEY, Count(number=3), 1) is None


async def test_a_deadline_ends_the_wait_for_a_server(server: Server, bus: Bus) -> None:
    await server.kill()
    await until(lambda: not bus.is_connected)
    hurried = Records(bus, subjects.CAMPAIGN_RECORDS, Count, deadline_seconds=0.3)
    async with asyncio.timeout(20):
        with pytest.raises(BusUnavailable):
            await hurried.get(KEY)


async def test_a_connection_closed_for_good_ends_every_wait(bus: Bus, counts: Records[Count]) -> None:
    await bus.close()
    for call in (counts.get(KEY), counts.create(KEY, Count(number=1)), counts.keys()):
        with pytest.raises(BusUnavailable, match="closed for good"):
            await asyncio.wait_for(call, timeout=20)


async def test_a_missing_bucket_is_told_with_the_remedy(bus: Bus) -> None:
    await bus.jetstream.delete_key_value(subjects.CAMPAIGN_RECORDS)
    hurried = Records(bus, subjects.CAMPAIGN_RECORDS, Count, deadline_seconds=0.2)
    for call in (hurried.get(KEY), hurried.create(KEY, Count(number=1)), hurried.keys()):
        with pytest.raises(TopologyMissing, match="bus ensure"):
            await asyncio.wait_for(call, timeout=20)


async def test_a_watcher_sees_the_present_value_and_each_later_one_through_a_kill(
    server: Server, settings: Settings, bus: Bus, counts: Records[Count]
) -> None:
    await counts.create(KEY, Count(number=1))
    seen: list[int] = []

    async def watch() -> None:
        async for count in counts.watch(KEY):
            seen.append(count.number)  # noqa: PERF401 -- seen while it goes on

    watching = asyncio.create_task(watch())
    await until(lambda: seen == [1])
    await server.restart()
    async with connected(settings.bus, name="other", wait=True) as other:
        await Records(other, subjects.CAMPAIGN_RECORDS, Count).change(KEY, _one_more)
    await until(lambda: seen == [1, 2])
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching


async def test_a_record_is_json_that_nats_kv_shows(bus: Bus, counts: Records[Count]) -> None:
    await counts.create(KEY, Count(number=1, by="a person"))
    store = await bus.jetstream.key_value(subjects.CAMPAIGN_RECORDS)
    assert json.loads((await store.get(KEY)).value or b"") == {"number": 1, "by": "a person"}
