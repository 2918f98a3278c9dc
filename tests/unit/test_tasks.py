"""Ending tasks, also those that lose a cancellation."""

import asyncio

import pytest

from archaeologist import tasks


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "AGAIN_SECONDS", 0.05)


async def test_a_task_that_loses_its_first_cancellation_is_cancelled_again() -> None:
    """As asyncio.wait_for of Python 3.11 does when the result comes at the same moment."""
    lost = 0

    async def answer_for_ever() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                lost += 1
                if lost > 1:
                    raise

    task = asyncio.create_task(answer_for_ever())
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await tasks.end(task)
    assert task.cancelled()
    assert lost == 2


async def test_what_ended_before_or_fails_while_it_ends_raises_nothing() -> None:
    async def fail(while_ending: asyncio.Event) -> None:
        try:
            await while_ending.wait()
        finally:
            msg = "while ending"
            raise ValueError(msg)

    now, never = asyncio.Event(), asyncio.Event()
    now.set()
    failed, failing = asyncio.create_task(fail(now)), asyncio.create_task(fail(never))
    await asyncio.sleep(0)
    await tasks.end(failed, failing)
    assert (str(failed.exception()), str(failing.exception())) == ("while ending", "while ending")
    await tasks.end()


async def test_time_to_put_things_away_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "AGAIN_SECONDS", 5.0)
    put_away = False

    async def work() -> None:
        nonlocal put_away
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.05)
            put_away = True

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    await tasks.end(task)
    assert put_away
