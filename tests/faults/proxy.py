"""A TCP proxy between a daemon and its server, that can cut, refuse, stall, delay and throttle."""

import asyncio
import contextlib
from types import TracebackType
from typing import Final, Self

from tests.fixtures.servers import free_port

CHUNK_BYTES: Final = 16 << 10


class Proxy:
    """Listens on a port of its own and passes everything on to another."""

    def __init__(self, to_port: int) -> None:
        self._to_port = to_port
        self.port = free_port()
        self.delay_seconds = 0.0
        """Each piece waits so long."""
        self.bytes_per_second: float | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._listener: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        """Its address, for a client of the server."""
        return f"nats://127.0.0.1:{self.port}"

    async def listen(self) -> None:
        """Takes connections, from now on or again."""
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def refuse(self) -> None:
        """Takes no more connections and cuts those that there are."""
        if self._listener is not None:
            self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Ends every connection in the middle of whatever it carries."""
        for writer in self._open:
            writer.transport.abort()

    def stall(self) -> None:
        """Nothing passes, and nobody is told."""
        self._flowing.clear()

    def flow(self) -> None:
        """Everything passes as it comes."""
        self.delay_seconds, self.bytes_per_second = 0.0, None
        self._flowing.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._to_port)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, there_writer}
        self._open |= both
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, there_writer))
                group.create_task(self._pump(there_reader, writer))
        except* OSError:
            pass
        finally:
            self._open -= both
            for end in both:
                end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while content := await reader.read(CHUNK_BYTES):
            await self._flowing.wait()
            await asyncio.sleep(self.delay_seconds)
            if self.bytes_per_second is not None:
                await asyncio.sleep(len(content) / self.bytes_per_second)
            writer.write(content)
            await writer.drain()
        # One side is done: so is the connection.
        raise ConnectionResetError

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.refuse()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                while self._open:
                    self.flow()
                    self.cut()
                    await asyncio.sleep(0.01)
