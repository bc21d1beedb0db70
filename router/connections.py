"""Connections under uvicorn: what it leaves unbounded, and a stop that others hear of first.

uvicorn waits forever for a request's head, of any length, and for a client to read its answer; what follows a chunked body it keeps, however long. It
drops the body of a request that offers another protocol, as those of Java's HttpClient do.
"""

import asyncio
import socket
import uuid
from typing import cast

import httptools
import msgspec
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from router.api.guard import Guard
from router.errors import BadRequest, describe

MOST_HEAD_BYTES = 65_536


class Connection(HttpToolsProtocol):
    """Closes itself when a head doesn't come in time, is too long, or nobody reads what was written."""

    head_s = 15.0  # from the connection, or the answer before, to a whole head; after an answer, longer than a silent one is kept
    unread_s = 30.0  # a client that takes nothing of its answer for so long is gone

    _timer: asyncio.TimerHandle | None = None  # for a head
    _reading: asyncio.TimerHandle | None = None  # for the client to read
    _in_head = False
    _in_message = False
    _bodily = False  # what has just come: some of it belongs to a body
    _bare_bytes = 0  # of a message so far that belong to none: its head, or what stands between and behind the chunks

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._bodily = False
        self._parse(data)
        if not self._in_message or self._bodily or self.transport.is_closing():
            return
        self._bare_bytes += len(data)
        if self._bare_bytes > MOST_HEAD_BYTES:
            if self._in_head:
                self.send_400_response(f"expected a head of at most {MOST_HEAD_BYTES} bytes, got more.")
            else:
                self.transport.abort()

    def _parse(self, data: bytes) -> None:
        """Feed the parser. A request that offers another protocol is read again as one that doesn't: HTTP lets an offer be declined so."""
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            method, version = self.parser.get_method(), self.parser.get_http_version().encode()
            if method == b"CONNECT":
                self.send_400_response("expected a request, got CONNECT.")
                return
            kept = [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
            head = b"\r\n".join([b"%b %b HTTP/%b" % (method, self.url, version), *kept, b"", b""])
            self.parser = httptools.HttpRequestParser(self)
            self._parse(head + data[offer.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("expected an HTTP/1.1 request, got something else.")

    def on_message_begin(self) -> None:
        self._in_head = self._in_message = True
        self._bare_bytes = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # nobody reads what comes behind a body
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._in_head = False
        self._bare_bytes = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._bodily = True
        self._bare_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._in_message = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.timeout_keep_alive_task is not None:  # nothing else is asked for yet
            self._await_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reader(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, in the same words as all else."""
        _, body, _ = describe(BadRequest(msg))
        content = msgspec.json.encode(body)
        head = (
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\nx-content-type-options: nosniff\r\n"
            f"x-draftgate-request-id: {uuid.uuid4().hex}\r\ncontent-length: {len(content)}\r\n\r\n"
        )
        self.transport.write(head.encode() + content)
        self.transport.close()

    def _await_head(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(self.head_s, self.transport.close)

    def _await_reader(self, unread: int) -> None:
        self._reading = self.loop.call_later(self.unread_s, self._look_whether_read, unread)

    def _look_whether_read(self, before: int) -> None:
        unread = self.transport.get_write_buffer_size()
        if unread < before:
            self._await_reader(unread)
        else:
            self.transport.abort()  # a close would wait until all is read

    def _cancel_timers(self) -> None:
        for timer in (self._timer, self._reading):
            if timer is not None:
                timer.cancel()


class Server(uvicorn.Server):
    """Says that it isn't ready before it stops to listen, so that who balances the load has time to go elsewhere.

    Until then new requests are served, each on a connection that is closed after it.
    """

    linger_s = 1.0

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        guard = cast("object", self.config.app)
        assert isinstance(guard, Guard), "server_config puts it around the application"
        guard.drain()
        await asyncio.sleep(self.linger_s)
        await super().shutdown(sockets)
