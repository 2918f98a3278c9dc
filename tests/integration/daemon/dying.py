"""``python -m tests.integration.daemon.dying EVENT``: a daemon that dies by kill -9 once such an event is in the log.

Between the event and its sequence in the job's record lies the moment in which only the log knows of it. The server's
own memory of what was published is as short as it can be, so that whatever is not looked up is doubled.
"""

import asyncio
import os
import signal
import sys
from typing import Any, Final

from nats.js import api

from archaeologist import logs
from archaeologist.bus import topology
from archaeologist.bus.publisher import Published
from archaeologist.daemon import completion, herald, service
from archaeologist.settings import Settings, load
from contracts import subjects
from tests.fixtures.child import COMMAND

MEMORY_SECONDS: Final = 0.1
"""The least that a server takes."""

_streams = topology.streams


def forgetful_streams(settings: Settings) -> list[api.StreamConfig]:
    """The streams, with a Battle Log whose server knows a repetition for a moment only."""
    streams = _streams(settings)
    for stream in streams:
        if stream.name == subjects.BATTLE_LOG:
            stream.duplicate_window = MEMORY_SECONDS
    return streams


def main() -> None:
    """Serves until it dies."""

    async def announce(*arguments: Any, **named: Any) -> Published:
        published = await herald.announce(*arguments, **named)
        if arguments[1].type == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGKILL)
        return published

    topology.streams = forgetful_streams
    vars(completion)["announce"] = announce
    settings = load()
    logs.configure(settings.log)
    asyncio.run(service.run(settings, command=COMMAND))


if __name__ == "__main__":
    main()
