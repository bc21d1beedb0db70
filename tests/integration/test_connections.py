"""What uvicorn alone would keep without a bound, or drop."""

import json
import socket
from collections.abc import Callable
from http.client import HTTPResponse

import pytest

from router.settings import ServerSettings, Settings
from tests.conftest import HANG_S, Gateway

BODY = json.dumps({"model": "draftgate", "messages": [{"role": "user", "content": "hello"}]}).encode()
CHUNKED = b"%x\r\n%b\r\n0\r\n" % (len(BODY), BODY)


def head(method: str = "POST", **fields: str) -> bytes:
    lines = [f"{method} /v1/chat/completions HTTP/1.1", "host: localhost", "content-type: application/json"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def connected(gateway: Gateway) -> socket.socket:
    return socket.create_connection(("127.0.0.1", gateway.address[1]), timeout=HANG_S)


def status_of(client: socket.socket) -> int:
    """The status of the next answer, which is read to its end."""
    response = HTTPResponse(client)
    response.begin()
    response.read()
    return response.status


def flood(client: socket.socket, filler: bytes) -> None:
    """Send more than any buffers on the way hold."""
    for _ in range(5_000):
        client.sendall(filler)


OFFER = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2_settings": "AAEAAEAAAAIAAAAB"}


@pytest.mark.parametrize(
    ("length", "body"),
    [
        ({"content_length": str(len(BODY))}, BODY),
        ({"transfer_encoding": "chunked"}, CHUNKED + b"\r\n"),
    ],
    ids=["length", "chunked"],
)
@pytest.mark.parametrize("piece_bytes", [1, 7, 1 << 16])
def test_a_request_that_offers_another_protocol_keeps_its_body(
    gateway: Gateway, length: dict[str, str], body: bytes, piece_bytes: int
) -> None:
    sent = head(**length, **OFFER) + body
    with connected(gateway) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(2):  # the connection is good for another one
            for at in range(0, len(sent), piece_bytes):
                client.sendall(sent[at : at + piece_bytes])
            assert status_of(client) == 200


def test_a_websocket_is_declined(gateway: Gateway) -> None:
    with connected(gateway) as client:
        client.sendall(head("GET", connection="Upgrade", upgrade="websocket"))
        assert status_of(client) == 405


def test_connect_is_refused(gateway: Gateway) -> None:
    with connected(gateway) as client:
        client.sendall(b"CONNECT localhost:443 HTTP/1.1\r\nhost: localhost:443\r\n\r\n")
        assert status_of(client) == 400


def test_what_follows_a_chunked_body_is_no_header(gateway: Gateway) -> None:
    trailer = b"origin: http://elsewhere.example\r\nhost: elsewhere.example\r\nx-note: read by nobody\r\n\r\n"
    with connected(gateway) as client:
        client.sendall(head(transfer_encoding="chunked") + CHUNKED + trailer)
        assert status_of(client) == 200


@pytest.mark.parametrize(
    "filler", [b"x-note: v\r\n" * 1000, b"x-note: " + b"a" * 10_000, b"a" * 10_000], ids=["many", "long", "extension"]
)
def test_what_follows_a_chunked_body_has_an_end(make_gateway: Callable[[Gateway], Gateway], filler: bytes) -> None:
    gateway = make_gateway(Gateway(Settings(server=ServerSettings(body_timeout_s=10 * HANG_S))))
    begun = CHUNKED if filler.startswith(b"x-note") else b"1\r\n{\r\n1;"  # else an extension of a chunk
    with connected(gateway) as client:
        client.sendall(head(transfer_encoding="chunked") + begun)
        with pytest.raises(ConnectionError):  # broken off
            flood(client, filler)
