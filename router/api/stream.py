"""Connections that end early: the work behind a response ends with them."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

import msgspec
from anyio import CancelScope
from litestar import Request
from litestar.response.base import ASGIResponse
from litestar.response.streaming import ASGIStreamingResponse, Stream
from litestar.types import Receive, Send

from router.errors import ClientGone

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"


def request_id_of(request: Request[Any, Any, Any]) -> str:
    """The id that the guard gave the request, or a new one where there is no guard."""
    return request.scope["state"].get("request_id") or uuid.uuid4().hex


async def unless_gone(request: Request[Any, Any, Any], work: Coroutine[Any, Any, T]) -> T:
    """Do the work, but cancel it when the client leaves.

    No server cancels a handler for that (Litestar on uvicorn, granian and hypercorn were tried).

    Raises:
        ClientGone: the client left first.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_wait_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone("The client closed the connection.")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _wait_gone(request: Request[Any, Any, Any]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def sse(event: object) -> bytes:
    """One server-sent event."""
    return b"data: " + msgspec.json.encode(event) + b"\n\n"


class EventStream(Stream):
    """Server-sent events whose source is closed with the connection, wherever it stood.

    Litestar's own stream leaves a generator that is cancelled between two items, or before its
    first, to the garbage collector.
    """

    def __init__(
        self,
        chunks: AsyncGenerator[bytes, None],
        source: AsyncGenerator[Any, None],
        headers: dict[str, str],
    ) -> None:
        super().__init__(chunks, headers=headers, media_type="text/event-stream")
        self._chunks = chunks
        self._source = source

    def to_asgi_response(self, *args: Any, **kwargs: Any) -> ASGIResponse:
        """Make the response that sends and then closes; called by Litestar."""
        response = _ClosingResponse(
            iterator=self._chunks,
            headers={**self.headers, "cache-control": "no-cache"},
            media_type=self.media_type,
            status_code=200,
        )
        response.to_close = (self._chunks, self._source)
        return response


class _ClosingResponse(ASGIStreamingResponse):
    to_close: tuple[AsyncGenerator[Any, None], ...] = ()

    async def send_body(self, send: Send, receive: Receive) -> None:
        try:
            await super().send_body(send, receive)
        finally:
            with CancelScope(shield=True):
                for generator in self.to_close:
                    await generator.aclose()
