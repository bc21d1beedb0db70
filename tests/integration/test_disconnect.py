"""A client that leaves frees the engine, wherever its request stood."""

import asyncio
import socket
import threading
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from litestar.types import HTTPDisconnectEvent

import router.app
from router.api.stream import EventStream
from router.serving.messages import Limits
from router.serving.service import Service
from router.settings import ServerSettings, Settings
from router.state.keys import FileShelf, make_key
from tests.conftest import Gateway, eventually
from tests.fakes import HANG, FakeEngine
from tests.raw_client import answer_of, read_until, send

MANY = 100


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
    read_until(client, b"two")
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


# --- many at once: nothing that one of them held is lost ---


@dataclass
class Crowd:
    """A gateway with just as many places as there are clients, and who counts them."""

    gateway: Gateway
    service: Service
    key: str  # which takes as many requests at once

    def send(self, **fields: Any) -> list[socket.socket]:
        return [send(self.gateway, key=self.key, **fields) for _ in range(MANY)]

    def check_that_all_places_are_free(self) -> None:
        """As many requests as the gateway and the key take at once are let in again."""
        gateway, service = self.gateway, self.service
        eventually(lambda: gateway.draft.running == gateway.refine.running == 0)
        eventually(lambda: (service.requests, service.tokens) == (0, 0))
        gate = threading.Event()
        gateway.refine.script.clear()
        gateway.refine.enqueue(*[[gate, "fine"]] * MANY)
        clients = self.send(model="draftgate-refine", draftgate={"cache": False})
        eventually(lambda: gateway.refine.running == MANY)
        gate.set()
        assert {answer_of(client)[0] for client in clients} == {200}


@pytest.fixture
def crowd(make_gateway: Callable[[Gateway], Gateway], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Crowd:
    made: list[Service] = []

    def make(*parts: Any) -> Service:
        made.append(Service(*parts))
        return made[-1]

    monkeypatch.setattr(router.app, "Service", make)
    token, key = make_key("acme", (), Limits(concurrency=MANY))
    asyncio.run(FileShelf(tmp_path).put(key))
    server = ServerSettings(max_requests=MANY, data_dir=str(tmp_path))
    return Crowd(make_gateway(Gateway(Settings(server=server))), made[0], token)


@pytest.mark.parametrize("stream", [False, True])
def test_a_hundred_that_leave_before_the_first_byte(crowd: Crowd, stream: bool) -> None:
    crowd.gateway.refine.enqueue(*[HANG] * MANY)
    options = {"model": "draftgate-refine", "stream": stream, "draftgate": {"cache": False}}
    clients = crowd.send(**options)
    eventually(lambda: crowd.gateway.refine.running == MANY)
    for client in clients:
        client.close()
    crowd.check_that_all_places_are_free()
    assert crowd.gateway.refine.cancelled == MANY


def test_a_hundred_that_leave_in_the_middle_of_the_text(crowd: Crowd) -> None:
    crowd.gateway.refine.enqueue(*[["one two", HANG]] * MANY)
    options = {"model": "draftgate-refine", "stream": True, "draftgate": {"cache": False}}
    clients = crowd.send(**options)
    for client in clients:
        read_until(client, b"two")
        client.close()
    crowd.check_that_all_places_are_free()
    assert crowd.gateway.refine.cancelled == MANY


def test_a_hundred_that_leave_while_another_works_out_their_answer(crowd: Crowd) -> None:
    crowd.gateway.refine.enqueue(HANG)
    clients = crowd.send(model="draftgate-refine")
    eventually(lambda: crowd.service.requests == MANY)
    assert crowd.gateway.refine.running == 1  # the others wait for what comes of it
    for client in clients:
        client.close()
    crowd.check_that_all_places_are_free()


def test_a_hundred_that_leave_before_their_body_is_sent(crowd: Crowd) -> None:
    clients = crowd.send(cut=10)
    for client in clients:
        client.close()
    crowd.check_that_all_places_are_free()
    assert crowd.gateway.draft.requests == []


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
