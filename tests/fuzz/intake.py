"""Malformed messages through a real daemon's intake over a real nats-server: each ends in one event or one record."""

import asyncio
import os
import random
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any, Final

from archaeologist.bus.log import events
from archaeologist.errors import InternalError
from contracts import subjects
from tests.fuzz.decoders import MESSAGES, _json
from tests.fuzz.mutations import mutated
from tests.fuzz.running import Tally, resident_bytes
from tests.integration.daemon.house import House, opened

NAME: Final = "intake over nats-server"
PATIENCE_SECONDS: Final = 900.0


async def run(place: Path, *, inputs: int, seed: int) -> Tally:
    """Sends so many messages to a daemon; how each was answered.

    One that is refused has exactly one failed event and one dead letter. Those that are taken ask for checkpoints
    that are not there, so that no job is made.
    """
    tally = Tally()
    os.environ.setdefault("XDG_CACHE_HOME", str(place / "cache"))  # of kernels, which no job of ours will need
    async with opened(place) as house:
        async with house.daemon():
            before = resident_bytes()
            started = time.perf_counter()
            for number in range(inputs):
                subject, body = message(seed, number)
                await house.say_raw(subject, body)
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not await _is_settled(house):  # noqa: ASYNC110 -- another process's streams
                    await asyncio.sleep(0.1)
            seconds = time.perf_counter() - started
            tally.growth_bytes = resident_bytes() - before
        failed = await _failed(house)
        codes = [data["error"]["code"] for data in failed]
        for number, data in enumerate(data for data in failed if data["error"]["code"] == InternalError.code):
            tally.shown.append(f"defect {number}: {data['error']['message']}; {str(data['request'])[:500]}")
        buried = int((await house.bus.jetstream.stream_info(subjects.DEAD)).state.messages)
        tally.codes = Counter(codes)
        tally.codes["taken"] = inputs - len(codes)
        tally.inputs, tally.slowest_seconds = inputs, seconds / inputs
        tally.crashes = codes.count(InternalError.code) + abs(buried - len(codes))
    return tally


def message(seed: int, number: int) -> tuple[str, bytes]:
    """Subject and body of the message of this number."""
    chance = random.Random(zlib.crc32(f"{NAME}:{seed}:{number}".encode()))
    subject = chance.choice(list(MESSAGES))
    fields: dict[str, Any] = {**chance.choice(MESSAGES[subject])}
    fields.pop("request_id", None)  # many messages of one id would be one request
    (body,) = _json(fields)
    return subject, mutated(chance, body)


async def _is_settled(house: House) -> bool:
    """Whether every message was handled and acknowledged."""
    for stream in (subjects.CHECKPOINTS, subjects.REQUESTS):
        for consumer in await house.bus.jetstream.consumers_info(stream):
            if consumer.num_pending or consumer.num_ack_pending:
                return False
    return True


async def _failed(house: House) -> list[dict[str, Any]]:
    """What each failed event says, one for each request."""
    found = [logged.event async for logged in events(house.bus, follow=False)]
    failed = [event.data for event in found if event.type == "analysis.failed"]
    assert len({data["job_id"] for data in failed}) == len(failed), "two events of one request"
    return failed
