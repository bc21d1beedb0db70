"""Every request has an id and an end, every response an envelope; connections that waste our time are closed."""

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn

from router.api import guard
from router.api.guard import Guard
from router.connections import MOST_HEAD_BYTES, Connection, Server
from router.errors import BodyTimeout, ClientGone
from router.settings import ServerSettings

HANG_S = 30.0
pytestmark = pytest.mark.timeout(2 * HANG_S)
ID = re.compile(rb"[0-9a-f]{32}")
PATIENT = ServerSettings(body_timeout_s=HANG_S)
HASTY = ServerSettings(body_timeout_s=0.05)


class App:
    """Reads the body and answers with what it found in its scope."""

    def __init__(self, error: Exception | None = None, *, then: Exception | None = None, headers: Any = ()) -> None:
        self.error, self.then, self.headers = error, then, headers
        self.states: list[dict[str, Any]] = []
        self.body = b""
        self.raised: Exception | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http", "uvicorn takes this for: no lifespan"
        self.states.append(scope["state"])
        if self.error:
            raise self.error
        more = True
        try:
            while more:
                message = await receive()
                self.body += message["body"]
                more = message["more_body"]
        except Exception as error:
            self.raised = error
            raise
        headers = [(b"content-type", b"text/plain"), *self.headers]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if self.then:
            raise self.then
        await send({"type": "http.response.body", "body": b"ok", "more_body": False})


class Exchanged:
    """A request to a guarded application without a server: `messages` come one by one, then nothing does."""

    def __init__(self, app: Any, *messages: Any, settings: ServerSettings = PATIENT) -> None:
        self.guard = Guard(app, settings)
        self.messages = [*messages]
        self.sent: list[Any] = []

    async def receive(self) -> Any:
        if not self.messages:
            await asyncio.Event().wait()
        return self.messages.pop(0)

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def run(self, **scope: Any) -> "Exchanged":
        await self.guard({"type": "http", **scope}, self.receive, self.send)  # pyright: ignore[reportArgumentType]
        return self

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    @property
    def headers(self) -> dict[bytes, bytes]:
        pairs = self.sent[0]["headers"]
        assert len(dict(pairs)) == len(pairs), "a header is there twice"
        return dict(pairs)

    @property
    def error(self) -> dict[str, Any]:
        return json.loads(b"".join(message["body"] for message in self.sent[1:]))["error"]


def part(body: bytes = b"", *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


GONE = {"type": "http.disconnect"}


@pytest.mark.anyio
async def test_every_response_has_the_id_that_handlers_see() -> None:
    app = App()
    exchanged = await Exchanged(app, part()).run()
    assert exchanged.headers[b"x-draftgate-request-id"].decode() == app.states[0]["request_id"]
    assert ID.fullmatch(exchanged.headers[b"x-draftgate-request-id"])
    assert exchanged.headers[b"x-content-type-options"] == b"nosniff"
    other = await Exchanged(App(), part()).run()
    assert other.headers[b"x-draftgate-request-id"] != exchanged.headers[b"x-draftgate-request-id"]


@pytest.mark.anyio
async def test_an_id_that_the_handler_gave_stays() -> None:
    exchanged = await Exchanged(App(headers=[(b"x-draftgate-request-id", b"mine")]), part()).run()
    assert exchanged.headers[b"x-draftgate-request-id"] == b"mine"


@pytest.mark.anyio
async def test_what_the_server_put_into_the_state_stays() -> None:
    app = App()
    await Exchanged(app, part()).run(state={"of": "the server"})
    assert app.states[0]["of"] == "the server"


@pytest.mark.anyio
async def test_an_exception_from_anywhere_is_answered_in_the_envelope() -> None:
    exchanged = await Exchanged(App(RuntimeError("/secret/path"))).run()
    assert exchanged.status == 500
    assert exchanged.error["code"] == "internal_error"
    assert "secret" not in str(exchanged.sent)
    assert ID.fullmatch(exchanged.headers[b"x-draftgate-request-id"])


@pytest.mark.anyio
async def test_an_exception_in_the_middle_of_a_response_breaks_it_off() -> None:
    exchanged = Exchanged(App(then=RuntimeError()), part())
    with pytest.raises(RuntimeError):
        await exchanged.run()
    assert [message["type"] for message in exchanged.sent] == ["http.response.start"]


@pytest.mark.anyio
async def test_what_is_no_request_passes() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    await Guard(app, PATIENT)({"type": "lifespan"}, None, None)  # pyright: ignore[reportArgumentType]
    assert seen == ["lifespan"]


@pytest.mark.anyio
async def test_a_body_in_pieces_arrives_whole() -> None:
    app = App()
    exchanged = await Exchanged(app, part(b"a", more=True), part(b"b", more=True), part(b"c")).run()
    assert (exchanged.status, app.body) == (200, b"abc")


@pytest.mark.anyio
@pytest.mark.parametrize("messages", [[], [part(b"a", more=True)]])
async def test_a_body_that_does_not_arrive_is_408_and_the_connection_closes(messages: list[Any]) -> None:
    app = App()
    exchanged = await Exchanged(app, *messages, settings=HASTY).run()
    assert isinstance(app.raised, BodyTimeout)
    assert (exchanged.status, exchanged.error["code"]) == (408, "request_timeout")
    assert exchanged.headers[b"connection"] == b"close"


@pytest.mark.anyio
async def test_a_body_that_comes_fast_may_be_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_BYTES_PER_S", 1)
    app = App()
    pieces = iter([part(b"x" * 60, more=True), part()])

    async def receive() -> Any:
        piece = next(pieces)
        await asyncio.sleep(0 if piece["more_body"] else 2 * HASTY.body_timeout_s)
        return piece

    exchanged = Exchanged(app, settings=HASTY)
    exchanged.receive = receive
    assert (await exchanged.run()).status == 200


@pytest.mark.anyio
async def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_failure_of_ours() -> None:
    app = App()
    await Exchanged(app, part(b"a", more=True), GONE).run()
    assert isinstance(app.raised, ClientGone)


@pytest.mark.anyio
async def test_after_the_body_the_server_is_heard_without_a_limit() -> None:
    heard: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        heard.append(await receive())
        await asyncio.sleep(2 * HASTY.body_timeout_s)
        heard.append(await receive())

    await Exchanged(app, part(b"a"), GONE, settings=HASTY).run()
    assert heard == [part(b"a"), GONE]


@pytest.mark.anyio
async def test_while_it_drains_handlers_know_and_connections_close() -> None:
    app = App()
    exchanged = Exchanged(app, part())
    exchanged.guard.draining = True
    await exchanged.run()
    assert app.states[0]["draining"]
    assert exchanged.headers[b"connection"] == b"close"


class Hasty(Connection):
    head_s = 0.5
    unread_s = 1.0


class Serving:
    """A guarded application under uvicorn, in a thread of its own."""

    def __init__(self, app: Any, http: type[Connection]) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(
            Guard(app, HASTY), http=http, loop="uvloop", lifespan="off", log_config=None, proxy_headers=False, ws="none"
        )
        self.server = Server(config)
        self.server.linger_s = 0.0
        self.thread = threading.Thread(target=self.server.run, args=([self.listening],))
        self.thread.start()
        until(lambda: self.server.started)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.listening.getsockname(), timeout=HANG_S)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(HANG_S)
        self.listening.close()
        assert not self.thread.is_alive()


@pytest.fixture
def serving() -> Iterator[Callable[..., Serving]]:
    running: list[Serving] = []

    def start(app: Any, http: type[Connection] = Hasty) -> Serving:
        running.append(Serving(app, http))
        return running[-1]

    yield start
    for one in running:
        one.stop()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < end, "the condition never came true"
        time.sleep(0.01)


def all_of(client: socket.socket) -> bytes:
    """What comes until the server closes the connection; the socket's timeout is against hangs."""
    found = b""
    while data := client.recv(65_536):
        found += data
    return found


GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.mark.parametrize("head", [b"", b"GET", b"GET / HTTP/1.1\r\nhost: x\r\n", b"\r\n"])
def test_a_head_that_does_not_come_closes_the_connection(serving: Callable[..., Serving], head: bytes) -> None:
    with serving(App()).connect() as client:
        client.sendall(head)
        assert all_of(client) == b""


@pytest.mark.parametrize("drop", [b"x-more: x\r\n", b"\r\n"])
def test_trickling_does_not_help(serving: Callable[..., Serving], drop: bytes) -> None:
    with serving(App()).connect() as client:
        client.sendall(b"" if drop == b"\r\n" else b"GET / HTTP/1.1\r\n")
        closed = threading.Event()
        waiting = threading.Thread(target=lambda: (all_of(client), closed.set()))
        waiting.start()
        until(lambda: _trickled(client, drop, closed))
        waiting.join(HANG_S)


def _trickled(client: socket.socket, drop: bytes, closed: threading.Event) -> bool:
    try:
        client.sendall(drop)
    except OSError:
        return True
    return closed.is_set()


def test_the_next_head_on_a_connection_is_awaited_no_longer(serving: Callable[..., Serving]) -> None:
    with serving(App()).connect() as client:
        client.sendall(GET + GET[:20])
        assert all_of(client).count(b"HTTP/1.1 200 OK") == 1


def test_an_endless_head_is_refused(serving: Callable[..., Serving]) -> None:
    app = App()
    with serving(app, Connection).connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\n" + b"x" * MOST_HEAD_BYTES)
        answer = all_of(client)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
    assert app.states == []


def test_what_is_no_http_is_refused_in_the_envelope(serving: Callable[..., Serving]) -> None:
    with serving(App(), Connection).connect() as client:
        client.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        answer = all_of(client)
    assert b"x-draftgate-request-id: " in answer
    assert set(json.loads(answer.partition(b"\r\n\r\n")[2])["error"]) == {"message", "type", "param", "code"}


def test_requests_in_one_packet_are_all_answered(serving: Callable[..., Serving]) -> None:
    app = App()
    with serving(app, Connection).connect() as client:
        client.sendall(GET * 5 + GET.replace(b"host", b"connection: close\r\nhost"))
        assert all_of(client).count(b"HTTP/1.1 200 OK") == 6
    assert len({state["request_id"] for state in app.states}) == 6


def test_a_slow_answer_is_waited_for(serving: Callable[..., Serving]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(3 * Hasty.head_s)
        await App()(scope, receive, send)

    with serving(app).connect() as client:
        client.sendall(GET)
        assert all_of(client).endswith(b"ok\r\n0\r\n\r\n")


def test_a_body_that_trickles_is_408(serving: Callable[..., Serving]) -> None:
    with serving(App(), Connection).connect() as client:
        client.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc")
        assert all_of(client).startswith(b"HTTP/1.1 408 ")


class Flood:
    """Sends without end, and says when it was stopped."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        leaving = asyncio.create_task(receive())
        while not leaving.done():
            await send({"type": "http.response.body", "body": bytes(65_536), "more_body": True})
            await asyncio.sleep(0)
        self.ended.set()


def test_a_client_that_does_not_read_is_let_go(serving: Callable[..., Serving]) -> None:
    flood = Flood()
    with serving(flood).connect() as client:
        client.sendall(GET)
        assert flood.ended.wait(HANG_S)


def test_a_client_that_reads_slowly_is_not(serving: Callable[..., Serving]) -> None:
    size = 30_000_000  # more than the kernel takes

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
        await send({"type": "http.response.body", "body": bytes(size), "more_body": False})

    with serving(app).connect() as client:
        client.sendall(GET.replace(b"host", b"connection: close\r\nhost"))
        got = 0
        while data := client.recv(1_000_000):
            got += len(data)
            time.sleep(0.08)  # longer in all than the server waits for one that doesn't read
    assert got > size


def test_many_slow_connections_are_closed_and_others_served(serving: Callable[..., Serving]) -> None:
    one = serving(App())
    slow = [one.connect() for _ in range(300)]
    for client in slow:
        client.sendall(b"POST / HTTP/1.1\r\nx: ")
    with one.connect() as client:
        client.sendall(GET)
        assert client.recv(100).startswith(b"HTTP/1.1 200 OK")
    for client in slow:
        assert all_of(client) == b""
        client.close()
