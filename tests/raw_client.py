"""Requests on bare sockets: whose answer nobody reads, or that are left in the middle."""

import json
import socket
from http.client import HTTPResponse
from typing import Any

from tests.conftest import HANG_S, Gateway

CHAT = "/v1/chat/completions"


def send(gateway: Gateway, *, key: str = "", cut: int = 0, **fields: Any) -> socket.socket:
    """A request whose answer nobody has read yet.

    Args:
        gateway: to ask.
        key: to ask with.
        cut: so many bytes of the body are not sent.
        fields: of the body.
    """
    messages = [{"role": "user", "content": "hello"}]
    body = json.dumps({"model": "draftgate", "messages": messages} | fields).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    )
    if key:
        head += f"authorization: Bearer {key}\r\n"
    client = socket.create_connection(("127.0.0.1", gateway.address[1]), timeout=HANG_S)
    client.sendall(f"{head}\r\n".encode() + body[: len(body) - cut])
    return client


def read_until(client: socket.socket, text: bytes) -> bytes:
    """What comes up to a text. Raises AssertionError: the connection ended before."""
    found = b""
    while text not in found:
        piece = client.recv(4096)
        assert piece, f"the connection ended after {found!r}"
        found += piece
    return found


def answer_of(client: socket.socket) -> tuple[int, Any]:
    """The status, and the body as JSON; hangs up."""
    with client, HTTPResponse(client) as response:
        response.begin()
        return response.status, json.loads(response.read())
