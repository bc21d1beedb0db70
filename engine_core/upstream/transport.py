"""HTTP to one upstream: pooled connections, every wait and all that is read bounded, one retry, a circuit breaker.

What is tried again, once: a request whose connection could not be made, or broke before the status line, while the
retry budget lasts. A 429, 502 or 503 is passed on at once: a draft can stand in sooner than a busy upstream recovers,
and more requests don't help it.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, TypeVar, cast

import httpx
import msgspec

from engine_core.upstream import wire
from engine_core.upstream.breaker import CircuitBreaker, RetryBudget
from engine_core.upstream.errors import (
    UpstreamClosed,
    UpstreamError,
    UpstreamFailed,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
    of_status,
)
from engine_core.upstream.settings import Upstream

SILENT_S = 5.0  # a deadline that cut off a silence shorter than this says nothing of the upstream
MOST_BODY_BYTES = 64_000_000  # of a whole answer; the log-probabilities of 100,000 prompt tokens are some 20 MB
MOST_ERROR_BYTES = 64_000

T = TypeVar("T")


class Transport:
    """Connections to one upstream."""

    def __init__(self, settings: Upstream, environ: Mapping[str, str]) -> None:
        """Make the pool; no connection is made yet.

        Raises:
            UpstreamFailed: a base_url that is no URL, or a key that can't be sent.
        """
        self.settings = settings
        self.breaker = CircuitBreaker()
        self.closed = False
        self._budget = RetryBudget()
        self._waits: set[asyncio.Timeout] = set()  # under way; `close` ends them
        self._key = environ.get(settings.api_key_env, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):  # httpx would repeat it in its error
            raise UpstreamFailed(
                f"expected printable ASCII in the environment variable {settings.api_key_env}, got other characters"
            )
        try:
            secure = httpx.URL(settings.base_url).scheme == "https"
        except httpx.InvalidURL as error:
            raise UpstreamFailed(f"expected a URL as base_url, got {settings.base_url!r}: {error}") from None
        # Of every request httpx logs a line, which the decision log has already.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        most = settings.max_connections
        self._http = httpx.AsyncClient(
            headers={
                "accept-encoding": "identity",  # or the bound on what is read would be one on compressed bytes
                "content-type": "application/json",
                **({"authorization": f"Bearer {self._key}"} if self._key else {}),
            },
            timeout=httpx.Timeout(None, connect=settings.connect_timeout_s),
            limits=httpx.Limits(max_connections=most, max_keepalive_connections=most),
            verify=secure,  # certificates take long to load
        )

    def cleaned(self, text: str) -> str:
        """A text of the upstream's, which may repeat our key."""
        return text.replace(self._key, "[key]") if self._key else text

    async def wait(self, awaited: Awaitable[T], limit_s: float | None, deadline: float | None, what: str) -> T:
        """Await it.

        Args:
            awaited: is cancelled when the time is up.
            limit_s: seconds from now.
            deadline: of the whole request, on time.monotonic.
            what: is awaited, for the message.

        Raises:
            UpstreamTimeout: the time is up.
            UpstreamClosed: `close` was called meanwhile.
        """
        began = time.monotonic()
        ends = [end for end in (limit_s and began + limit_s, deadline) if end is not None]
        scope = asyncio.timeout(min(ends) - began if ends else None)
        try:
            async with scope:
                self._waits.add(scope)
                return await awaited
        except TimeoutError:
            if self.closed:
                raise UpstreamClosed("the upstream's client is shutting down") from None
            now = time.monotonic()
            if deadline is None or now < deadline:
                raise UpstreamTimeout(
                    f"expected {what} from {self.settings.base_url} within {limit_s} s, got none", failure=True
                ) from None
            silent = limit_s is not None and now - began >= min(SILENT_S, limit_s / 2)
            words = f"expected {what} from {self.settings.base_url} before the deadline, got none"
            raise UpstreamTimeout(words, failure=True if silent else None) from None
        finally:
            self._waits.discard(scope)

    @asynccontextmanager
    async def judged(self) -> AsyncGenerator[None, None]:
        """Tell the circuit breaker what comes of what is done within. Raises UpstreamUnavailable while it is open."""
        self.check()
        period, failed = self.breaker.begin(), None
        try:
            yield
            failed = False
        except UpstreamError as error:
            failed = error.failure
            raise
        finally:
            self.breaker.end(period, failed)

    def check(self) -> None:
        """Raise UpstreamUnavailable while the circuit is open, UpstreamClosed once this is closed."""
        if self.closed:
            raise UpstreamClosed("the upstream's client is shutting down")
        if wait_s := self.breaker.wait_s:
            where = f"{self.settings.base_url}, which failed too often, and is tried again in {wait_s:.1f} s"
            words = f"expected an upstream that answers, got {where}"
            raise UpstreamUnavailable(words, wait_s, failure=None)

    @asynccontextmanager
    async def opened(
        self, method: str, url: str, body: dict[str, Any] | None, deadline: float | None
    ) -> AsyncGenerator[httpx.Response, None]:
        """The answer to a request, its status line read and good. Raises UpstreamError."""
        try:
            content = None if body is None else msgspec.json.encode(body)
        except (TypeError, ValueError) as error:  # half of a surrogate pair, say
            raise UpstreamRejected(f"expected a request that JSON can hold, got {type(error).__name__}") from None
        response = await self._sent(method, url, content, deadline)
        try:
            if response.status_code != 200:
                raise await self._refusal(response, url, deadline)
            if (encoding := response.headers.get("content-encoding", "identity")) != "identity":
                raise UpstreamFailed(f"expected a body from {url} as it is, got one in {encoding[:40]!r}")
            yield response
        finally:
            await response.aclose()

    async def _sent(self, method: str, url: str, content: bytes | None, deadline: float | None) -> httpx.Response:
        self._budget.deposit()
        limit_s, what = self.settings.first_byte_timeout_s, "the first byte of an answer"
        retried = False
        while True:
            if self.closed:
                raise UpstreamClosed("the upstream's client is shutting down")
            request = self._http.build_request(method, url, content=content)
            try:
                return await self.wait(self._http.send(request, stream=True), limit_s, deadline, what)
            except httpx.ConnectTimeout:
                words = f"expected a connection to {url} within {self.settings.connect_timeout_s} s, got none"
                raise UpstreamUnavailable(words) from None
            except httpx.TransportError as error:
                if self.closed:
                    raise UpstreamClosed("the upstream's client is shutting down") from None
                if retried or not self._budget.withdraw():
                    said = self.cleaned(str(error))
                    raise UpstreamUnavailable(
                        f"expected an answer from {url}, got {type(error).__name__}: {said}"
                    ) from error
                retried = True

    async def pieces(
        self, response: httpx.Response, deadline: float | None, most: int = MOST_BODY_BYTES
    ) -> AsyncGenerator[bytes, None]:
        """A body of at most so many bytes, as it comes. Raises UpstreamError: it is longer, or doesn't come whole."""
        size, limit_s, what = 0, self.settings.first_byte_timeout_s, "the first byte of an answer"
        async with aclosing(cast("AsyncGenerator[bytes, None]", response.aiter_raw())) as chunks:
            while True:
                try:
                    chunk = await self.wait(anext(chunks, None), limit_s, deadline, what)
                except httpx.TransportError as error:
                    if self.closed:
                        raise UpstreamClosed("the upstream's client is shutting down") from None
                    words = f"expected the rest of an answer, got {type(error).__name__} after {size} bytes"
                    raise UpstreamUnavailable(f"{words}: {self.cleaned(str(error))}") from error
                if chunk is None:
                    return
                size += len(chunk)
                if size > most:
                    raise UpstreamFailed(f"expected an answer of at most {most} bytes, got more")
                yield chunk
                limit_s, what = self.settings.idle_timeout_s, "more of an answer"

    async def _refusal(self, response: httpx.Response, url: str, deadline: float | None) -> UpstreamError:
        body = bytearray()
        with suppress(UpstreamError):  # the status says enough
            async with aclosing(self.pieces(response, deadline, MOST_ERROR_BYTES)) as pieces:
                async for piece in pieces:
                    body += piece
        again_s = wire.retry_after_s(response.headers.get("retry-after"), time.time())
        return self.told(response.status_code, wire.message_of(bytes(body)), url, again_s)

    def told(self, status: int, said: str, where: str, retry_after_s: float = 1.0) -> UpstreamError:
        """An error that the upstream tells of."""
        state = "is set" if self._key else "is not set"
        key = f"the environment variable {self.settings.api_key_env}, which {state}"
        return of_status(status, self.cleaned(said), where, retry_after_s, key)

    async def close(self) -> None:
        """End all waits, which raise UpstreamClosed, and all connections."""
        self.closed = True
        for scope in self._waits:
            if not scope.expired():
                scope.reschedule(0.0)
        await self._http.aclose()
