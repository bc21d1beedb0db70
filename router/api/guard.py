"""What holds for every request, whatever handles it: an id, a body that arrives in time, an envelope around every error.

Plain ASGI around the whole application: Litestar's own middleware doesn't see paths that don't exist.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, cast

import msgspec
from litestar.types import ASGIApp, HTTPReceiveMessage, Message, Receive, Scope, Send

from router.errors import BodyTimeout, ClientGone, describe
from router.settings import ServerSettings

REQUEST_ID = b"x-draftgate-request-id"
BODY_BYTES_PER_S = 500_000  # a body that comes faster may take longer than body_timeout_s, as files do
CLOSE = (b"connection", b"close")
NO_SNIFF = (b"x-content-type-options", b"nosniff")

HttpReceive = Callable[[], Awaitable[HTTPReceiveMessage]]


class Guard:
    """The outermost application. Handlers find `request_id` and `draining` in the state of the scope."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, on_drain: Callable[[], None] = lambda: None) -> None:
        self._app = app
        self._on_drain = on_drain
        self._body_timeout_s = settings.body_timeout_s
        self.draining = False  # the server is about to stop; who asks whether it is ready is told so

    def drain(self) -> None:
        """Say from now on that the server is about to stop, and stop what nobody waits for."""
        self.draining = True
        self._on_drain()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request; called by the server."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id = uuid.uuid4().hex
        state["draining"] = self.draining
        exchange = Exchange(cast("HttpReceive", receive), send, request_id, self._body_timeout_s, closes=self.draining)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception as error:
            if exchange.answered:
                raise  # the server breaks the connection off: the client must not take this for the end of its answer
            await exchange.refuse(error)


class Exchange:
    """One request and its response."""

    __slots__ = ("_closes", "_deadline", "_patience_s", "_receive", "_request_id", "_send", "_whole", "answered")

    def __init__(self, receive: HttpReceive, send: Send, request_id: str, patience_s: float, *, closes: bool) -> None:
        self._receive = receive
        self._send = send
        self._request_id = request_id.encode()
        self._patience_s = patience_s
        self._deadline = 0.0  # 0: nobody has asked for the body yet
        self._whole = False
        self._closes = closes  # the connection, after the response
        self.answered = False

    async def receive(self) -> HTTPReceiveMessage:
        """More of the body; after its end, what the server says.

        Raises:
            BodyTimeout: it takes too long.
            ClientGone: the client left in the middle of it.
        """
        if self._whole:
            return await self._receive()
        if not self._deadline:
            self._deadline = asyncio.get_running_loop().time() + self._patience_s
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            self._closes = True
            raise BodyTimeout(f"The body did not arrive within {self._patience_s:g} s.") from None
        if message["type"] == "http.disconnect":
            raise ClientGone("The client left before its request was complete.")
        self._deadline += len(message.get("body", b"")) / BODY_BYTES_PER_S
        self._whole = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Pass a part of the response on."""
        if message["type"] == "http.response.start":
            self.answered = True
            headers = [*message["headers"], NO_SNIFF]
            if all(name != REQUEST_ID for name, _ in headers):
                headers.append((REQUEST_ID, self._request_id))
            if self._closes:
                headers.append(CLOSE)
            message = {**message, "headers": headers}
        await self._send(message)

    async def refuse(self, error: Exception) -> None:
        """Answer with what went wrong."""
        wire, body, headers = describe(error)
        content = msgspec.json.encode(body)
        pairs = {**headers, "content-type": "application/json", "content-length": str(len(content))}
        raw = [(name.encode(), value.encode()) for name, value in pairs.items()]
        await self.send({"type": "http.response.start", "status": wire.status, "headers": raw})
        await self.send({"type": "http.response.body", "body": content, "more_body": False})
