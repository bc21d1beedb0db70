"""A TCP proxy that breaks what passes through it, as networks and load balancers do."""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

HTML = b"<!doctype html><title>502</title><h1>Bad Gateway</h1>"


@dataclass(frozen=True)
class Fault:
    """What happens to one connection; the defaults do it no harm."""

    answer: bytes | None = None  # in place of the upstream's, then the connection is closed
    passes: int | None = None  # bytes of the upstream's answer that pass; then it is ...
    then: str = "close"  # ... "close"d, "reset", or left to "hang"


def http(body: bytes, kind: str = "text/html", status: str = "200 OK") -> bytes:
    """A whole answer."""
    return f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


GOOD = Fault()
DROP = Fault(passes=0)
RESET = Fault(passes=0, then="reset")
BLACK_HOLE = Fault(passes=0, then="hang")
GARBAGE = Fault(answer=bytes(range(256)))
WEB_PAGE = Fault(answer=http(HTML))


@dataclass
class Proxy:
    """Connections get the faults of `faults`, one each, and then `fault`."""

    target: int
    port: int = 0
    fault: Fault = GOOD
    faults: deque[Fault] = field(default_factory=deque)
    connections: int = 0

    @asynccontextmanager
    async def running(self) -> AsyncGenerator["Proxy", None]:
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self._server.close()
            await self.hang_up()

    async def hang_up(self) -> None:
        """Close all connections, as a server does that restarts."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def stop(self) -> None:
        """Listen no more."""
        self._server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        fault = self.faults.popleft() if self.faults else self.fault
        task = asyncio.create_task(self._serve(fault, reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with suppress(asyncio.CancelledError):
            await task

    async def _serve(self, fault: Fault, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection("127.0.0.1", self.target)
        sending = asyncio.create_task(_copy(reader, forth))
        try:
            if fault.answer is not None:
                await reader.read(1)  # a request has come
                writer.write(fault.answer)
                await writer.drain()
                return
            passed = 0
            while data := await back.read(65_536):
                if fault.passes is not None:
                    data = data[: fault.passes - passed]
                writer.write(data)
                await writer.drain()
                passed += len(data)
                if fault.passes is not None and passed >= fault.passes:
                    await self._end(fault, writer)
                    return
        except ConnectionError:
            return
        finally:
            sending.cancel()
            forth.close()
            writer.close()

    async def _end(self, fault: Fault, writer: asyncio.StreamWriter) -> None:
        if fault.then == "hang":
            await asyncio.Event().wait()
        if fault.then == "reset":
            raw: socket.socket = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.close()  # who left is gone for the other side, too
