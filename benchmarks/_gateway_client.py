"""A load client in a process of its own: `python -m benchmarks._gateway_client` reads a Job from stdin and writes a Load to stdout, as JSON.

Open loop: requests come as a Poisson process, however slow the answers, and a latency counts from when the request was due: a server that
stalls is charged for all who had to wait. Closed loop: each connection asks again as soon as it has its answer.

The loop waits with select(), whose timeouts have microseconds; those of epoll and uvloop have whole milliseconds, as long as a request takes.
"""

import asyncio
import os
import random
import re
import selectors
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import httptools
import msgspec
import numpy as np
from msgspec import Struct

from benchmarks._gateway_processes import Usage, usage

MOST_CONNECTIONS = 512  # select() takes no more than 1,024 files
DRAIN_S = 10.0  # what has no answer by then counts as unanswered
TEXTS = 256  # prompts that are made beforehand; a number makes each request's its own
PROMPT_WORDS = 60
WORDS = (
    *(
        "please",
        "tell",
        "me",
        "because",
        "a",
        "friend",
        "would",
        "like",
        "to",
        "buy",
        "something",
        "nice",
        "for",
        "the",
    ),
    *(
        "new",
        "kitchen",
        "and",
        "asked",
        "whether",
        "you",
        "could",
        "help",
        "us",
        "today",
        "with",
        "one",
        "small",
        "thing",
    ),
)
QUESTION = "How much is the lamp?"
CONTENT = re.compile(rb'"content": ?"[^"]')
ROUTE = b"x-draftgate-route"


class Asking(Struct, frozen=True, kw_only=True):
    """What each request asks for."""

    model: str = "draftgate"
    repeated: bool = False  # one prompt again and again, instead of a new one each time
    stream: bool = False
    body: dict[str, Any] = {}  # further fields
    headers: dict[str, str] = {}
    get: str = ""  # a path to GET instead


class Job(Struct, frozen=True, kw_only=True):
    """One measurement."""

    port: int
    asking: Asking
    pids: dict[str, int]  # whose use of the machine is wanted: by name
    rate: float | None  # requests per second; None: closed loop
    connections: int
    seconds: float
    warm_up_s: float
    seed: int


class Reply(NamedTuple):
    """What became of a request; times are of the loop's clock."""

    due: float
    sent: float
    first: float  # the first content of a stream; of another answer, its end
    end: float
    status: int  # 0: the connection was closed
    route: str  # as the server says


class Used(Struct, frozen=True, kw_only=True):
    """Of the machine, while all requests were answered."""

    cpu_s: float
    cpu_us_per_request: float
    cores: float  # CPU seconds per second
    waited_us_per_request: float  # ready to run, but others had the cores


class Load(Struct, frozen=True, kw_only=True):
    """What came of a Job."""

    requests: int
    answers: dict[str, int]  # by status and route
    unanswered: int
    requests_per_s: float
    latency_ms: dict[str, float] | None  # from when the request was due to its whole answer; None: none was answered
    first_ms: dict[str, float] | None  # likewise, to the first content of a stream; None: no streams
    sent_late_ms: dict[str, float]  # the client's own fault
    used: dict[str, Used]  # by name; "client" is this process


def quantiles(milliseconds: Sequence[float]) -> dict[str, float]:
    """Mean, median, 90 % and 99 %."""
    cuts = np.quantile(milliseconds, [0.5, 0.9, 0.99])
    return {"mean": float(np.mean(milliseconds)), **dict(zip(("p50", "p90", "p99"), cuts.tolist(), strict=True))}


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Arrival times within so many seconds, at least one."""
    rng = random.Random(seed)
    times = [0.0]
    while (following := times[-1] + rng.expovariate(rate)) < seconds:
        times.append(following)
    return times


def requests(asking: Asking, port: int, seed: int) -> Iterator[bytes]:
    """Whole HTTP requests, without end."""
    head = "".join(f"{name}: {value}\r\n" for name, value in asking.headers.items())
    if asking.get:
        request = f"GET {asking.get} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n{head}\r\n".encode()
        while True:
            yield request
    head += f"host: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
    rng, number = random.Random(seed), 0
    texts = [" ".join(rng.choices(WORDS, k=PROMPT_WORDS - 8)) for _ in range(1 if asking.repeated else TEXTS)]
    while True:
        name = "again" if asking.repeated else f"{seed}.{number}"
        content = f"Request {name}: {texts[number % len(texts)]}. {QUESTION}"
        body = msgspec.json.encode(
            {"model": asking.model, "messages": [{"role": "user", "content": content}], "stream": asking.stream}
            | asking.body
        )
        yield f"POST /v1/chat/completions HTTP/1.1\r\n{head}content-length: {len(body)}\r\n\r\n".encode() + body
        number += 1


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection, one request at a time."""

    def __init__(self, free: Callable[["Connection", Reply | None], None]) -> None:
        self._free = free  # told of each answer, and with None that the connection is gone
        self._transport: asyncio.Transport | None = None
        self._due: float | None = None  # of the request under way
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def ask(self, due: float, request: bytes) -> None:
        assert self._transport is not None, "connected"
        assert self._due is None, "free"
        self._due, self._sent, self._first, self._route = due, time.perf_counter(), 0.0, ""
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(request)

    def close(self) -> None:
        assert self._transport is not None, "connected"
        self._due = None  # nobody waits for its answer any more
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == ROUTE:
            self._route = value.decode()

    def on_body(self, body: bytes) -> None:
        if not self._first and CONTENT.search(body):
            self._first = time.perf_counter()

    def on_message_complete(self) -> None:
        self._end(self._parser.get_status_code())

    def connection_lost(self, exc: Exception | None) -> None:
        if self._due is not None:
            self._end(0)
        self._free(self, None)

    def _end(self, status: int) -> None:
        assert self._due is not None
        now = time.perf_counter()
        reply = Reply(self._due, self._sent, self._first or now, now, status, self._route)
        self._due = None
        self._free(self, reply)


class Client:
    """Connections, closed with the context, and what is still to be asked."""

    def __init__(self, port: int, asked: Iterator[bytes]) -> None:
        self._port, self._asked = port, asked
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._due: deque[float] = deque()  # requests that wait for a connection
        self._under_way = 0
        self._again_until: float | None = None
        self.replies: list[Reply] = []

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        self._due.clear()
        for connection in list(self._open):
            connection.close()
        while self._open:  # noqa: ASYNC110 - over within a turn of the loop or two
            await asyncio.sleep(0)

    async def open_loop(self, arrivals: Sequence[float]) -> int:
        """Ask at these times; returns how many got no answer."""
        await self._connect()
        start = time.perf_counter() + 0.01
        for arrival in arrivals:
            if (wait := start + arrival - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            self._due.append(start + arrival)
            self._send()
            if self._due and len(self._open) < MOST_CONNECTIONS:
                await self._connect()
        return await self._drain()

    async def closed_loop(self, connections: int, seconds: float) -> int:
        """Ask on so many connections without a pause; returns how many got no answer."""
        while len(self._open) < connections:
            await self._connect()
        now = time.perf_counter()
        self._again_until = now + seconds
        self._due.extend([now] * connections)
        self._send()
        await asyncio.sleep(seconds)
        self._again_until = None
        return await self._drain()

    async def _connect(self) -> None:
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(self._freed), "127.0.0.1", self._port
        )
        self._open.add(connection)
        self._idle.append(connection)
        self._send()

    def _send(self) -> None:
        while self._due and self._idle:
            self._under_way += 1
            self._idle.pop().ask(self._due.popleft(), next(self._asked))

    def _freed(self, connection: Connection, reply: Reply | None) -> None:
        if reply is None:
            self._open.discard(connection)
            if connection in self._idle:
                self._idle.remove(connection)
            return
        self._under_way -= 1
        self.replies.append(reply)
        if reply.status:
            self._idle.append(connection)
        if self._again_until is not None and reply.end < self._again_until:
            self._due.append(reply.end)
        self._send()

    async def _drain(self) -> int:
        end = time.perf_counter() + DRAIN_S
        while (self._under_way or self._due) and time.perf_counter() < end:  # noqa: ASYNC110 - an event for each reply would cost the client more
            await asyncio.sleep(0.001)
        return self._under_way + len(self._due)


async def measure(job: Job) -> Load:
    """Warm up, then ask."""
    pids = {**job.pids, "client": os.getpid()}
    asked = requests(job.asking, job.port, job.seed)
    async with Client(job.port, asked) as client:

        async def run(seconds: float, seed: int) -> int:
            if job.rate is None:
                return await client.closed_loop(job.connections, seconds)
            return await client.open_loop(poisson(job.rate, seconds, seed))

        await run(job.warm_up_s, job.seed + 1)
        client.replies.clear()
        before, started = {name: usage(pid) for name, pid in pids.items()}, time.perf_counter()
        unanswered = await run(job.seconds, job.seed)
        seconds = time.perf_counter() - started
        used = {name: usage(pid).since(before[name]) for name, pid in pids.items()}
    return summary(client.replies, unanswered, seconds, used, stream=job.asking.stream)


def summary(replies: Sequence[Reply], unanswered: int, seconds: float, used: dict[str, Usage], *, stream: bool) -> Load:
    """The numbers of so many seconds; latencies are of requests that were answered with 200."""
    good, count = [reply for reply in replies if reply.status == 200], max(1, len(replies))
    return Load(
        requests=len(replies) + unanswered,
        answers=dict(Counter(f"{reply.status} {reply.route}".strip() for reply in replies)),
        unanswered=unanswered,
        requests_per_s=len(replies) / seconds,
        latency_ms=quantiles([1e3 * (reply.end - reply.due) for reply in good]) if good else None,
        first_ms=quantiles([1e3 * (reply.first - reply.due) for reply in good]) if good and stream else None,
        sent_late_ms=quantiles([1e3 * (reply.sent - reply.due) for reply in replies] or [0.0]),
        used={
            name: Used(
                cpu_s=one.cpu_s,
                cpu_us_per_request=1e6 * one.cpu_s / count,
                cores=one.cpu_s / seconds,
                waited_us_per_request=1e6 * one.waited_s / count,
            )
            for name, one in used.items()
        },
    )


def run(job: Job) -> Load:
    """In this process, on a loop whose timeouts have microseconds."""
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        return runner.run(measure(job))


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(run(msgspec.json.decode(sys.stdin.buffer.read(), type=Job))))
