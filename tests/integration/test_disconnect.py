"""A client that leaves frees the engine, wherever its request stood."""

import json
import socket
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from litestar.types import HTTPDisconnectEvent

from router.api.stream import EventStream
from tests.conftest import HANG_S, Gateway, eventually
from tests.fakes import HANG, FakeEngine


def send(gateway: Gateway, **fields: Any) -> socket.socket:
    """A request whose answer nobody has read yet."""
    message = {"messages": [{"role": "user", "content": "hello"}]}
    body = json.dumps({"model": "draftgate"} | message | fields)
    client = socket.create_connection(("127.0.0.1", gateway.address[1]), timeout=HANG_S)
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    client.sendall(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
    return client


def leave(engine: FakeEngine, client: socket.socket) -> None:
    eventually(lambda: engine.running == 1)
    client.close()
    eventually(lambda: engine.running == 0)
    assert engine.cancelled == 1


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_while_the_draft_is_made_frees_the_draft_engine(gateway: Gateway, stream: bool) -> None:
    gateway.draft.enqueue(HANG)
    leave(gateway.draft, send(gateway, stream=stream))
    assert gateway.refine.requests == []


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_while_the_refiner_works_frees_the_refiner(gateway: Gateway, stream: bool) -> None:
    gateway.refine.enqueue(HANG)
    leave(gateway.refine, send(gateway, model="draftgate-refine", stream=stream))


def test_leaving_in_mid_stream_frees_the_refiner(gateway: Gateway) -> None:
    gateway.refine.enqueue(["one two", HANG])
    client = send(gateway, model="draftgate-refine", stream=True)
    received = b""
    while b"two" not in received:
        received += client.recv(4096)
    leave(gateway.refine, client)


def test_a_client_that_stops_reading_and_leaves_frees_the_refiner(gateway: Gateway) -> None:
    # More than the socket buffers hold: the server is stuck in sending, not in generating.
    gateway.refine.enqueue(["x" * 20_000_000, HANG])
    client = send(gateway, model="draftgate-refine", stream=True)
    client.recv(1000)
    leave(gateway.refine, client)


def test_other_requests_go_on_when_one_client_leaves(gateway: Gateway) -> None:
    gateway.refine.enqueue(HANG, HANG)
    first, second = (send(gateway, model="draftgate-refine", draftgate={"cache": False}) for _ in range(2))
    eventually(lambda: gateway.refine.running == 2)
    first.close()
    eventually(lambda: gateway.refine.running == 1)
    assert gateway.refine.cancelled == 1
    second.close()
    eventually(lambda: gateway.refine.running == 0)


@pytest.mark.anyio
async def test_a_stream_whose_client_left_before_it_began_closes_its_source() -> None:
    closed = False

    async def source() -> AsyncGenerator[str, None]:
        nonlocal closed
        try:
            yield "first"
            yield "second"
        finally:
            closed = True

    async def chunks() -> AsyncGenerator[bytes, None]:
        yield b"never"

    async def gone() -> HTTPDisconnectEvent:
        return {"type": "http.disconnect"}

    async def send(_: object) -> None:
        pass

    events = source()
    await anext(events)
    response = EventStream(chunks(), events, {}).to_asgi_response()
    await response.send_body(send, gone)
    assert closed
