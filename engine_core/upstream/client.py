"""OpenAI's API over a transport: a bounded number of requests at a time, JSON in one piece, and streams of chunks."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, nullcontext, suppress
from typing import Any, Literal, TypeVar

import msgspec

from engine_core.upstream import wire
from engine_core.upstream.errors import (
    UpstreamClosed,
    UpstreamError,
    UpstreamFailed,
    UpstreamOverloaded,
    UpstreamRejected,
    UpstreamUnavailable,
)
from engine_core.upstream.settings import Upstream
from engine_core.upstream.sse import EventParser, TooLong
from engine_core.upstream.transport import Transport

logger = logging.getLogger("draftgate")

PROBE_S = 5.0  # between two looks at an upstream that isn't there yet
MARGIN_S = 0.1  # before a deadline, at most
DRAIN_S = 1.0  # for the end of a stream after its [DONE]: only then its connection can be used again
MOST_EVENT_BYTES = 4_000_000

# Fields that some servers refuse, and what these take in their place. A server that names one in a refusal gets the
# request once more without it; if that is taken, no later request has the field.
REFUSABLE: dict[str, str | None] = {
    "stream_options": None,
    "return_token_ids": None,
    # OpenAI's reasoning models know the new name alone, others may not know it, and would write on without a limit.
    "max_tokens": "max_completion_tokens",
}

Answer = TypeVar("Answer")


class UpstreamClient:
    """One upstream. Requests above `max_connections` wait in a bounded queue, first come, first served."""

    def __init__(self, name: str, settings: Upstream, max_waiting: int, environ: Mapping[str, str]) -> None:
        """Remember whom to ask; `start` asks.

        Args:
            name: of the engine, for messages.
            settings: where the upstream is.
            max_waiting: requests that may wait for a connection.
            environ: holds the key.
        """
        self.name = name
        self.settings = settings
        self.api = settings.base_url.rstrip("/")
        self.root = self.api.removesuffix("/v1")  # vLLM's own endpoints are here
        self.model = settings.model
        self.context_tokens = settings.context_tokens
        self.state: Literal["loading", "ready", "failed", "closed"] = "loading"
        self.running = 0
        self.waiting = 0
        self.transport: Transport | None = None
        self._environ = environ
        self._detail = f"{settings.base_url} has not been asked yet"
        self._max_waiting = max_waiting
        self._refused: set[str] = set()
        self._free = asyncio.Semaphore(settings.max_connections)
        self._mean_s = 1.0  # moving average of a request, for retry_after_s
        self._closing = asyncio.Event()

    @property
    def detail(self) -> str:
        """Why it is not ready, or is not asked; "" when it is."""
        if self.state == "ready" and self.transport is not None and self.transport.breaker.is_open:
            return f"{self.settings.base_url} is left alone after many failures"
        return "" if self.state == "ready" else self._detail

    async def start(self, learn: Callable[[], Awaitable[None]]) -> None:
        """Look every 5 s whether the upstream lists its models; when it does, `learn` what else it can, and be ready.

        Where `learn` raises an UpstreamError, that was another look in vain.

        Raises:
            UpstreamFailed: settings that can never work.
            UpstreamClosed: `close` came first.
        """
        try:
            self.transport = Transport(self.settings, self._environ)
        except UpstreamFailed as error:
            self.state, self._detail = "failed", str(error)
            raise
        while not await self._found(learn):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), PROBE_S)
        if self._closing.is_set():
            raise UpstreamClosed("the upstream's client is shutting down")
        self.state = "ready"

    async def _found(self, learn: Callable[[], Awaitable[None]]) -> bool:
        """Whether the upstream answers; then its model and context are known, and what `learn` learns."""
        try:
            async with self.session(None, probe=True) as session:
                listed = (await session.ask("GET", f"{self.api}/models", None, wire.Models)).data
            self._choose(listed)
            await learn()
        except UpstreamClosed:
            raise
        except UpstreamError as error:
            if str(error) != self._detail:
                self._detail = str(error)
                logger.warning("the %s engine waits for its upstream: %s", self.name, error)
            return False
        return True

    def _choose(self, listed: list[wire.Model]) -> None:
        if not listed and not self.settings.model:
            raise UpstreamFailed(f"expected {self.settings.base_url} to list a model, got none")
        self.model = self.settings.model or listed[0].id
        mine = [model for model in listed if model.id == self.model]
        if not mine:  # servers that load models on demand don't list them all
            names = ", ".join(model.id for model in listed[:5]) or "nothing"
            logger.warning("%s lists %s, not the model %s", self.settings.base_url, names, self.model)
        self.context_tokens = self.settings.context_tokens or (mine[0].max_model_len if mine else None) or 0

    @asynccontextmanager
    async def session(self, deadline_s: float | None, *, probe: bool = False) -> AsyncGenerator["Session", None]:
        """A connection for one request of ours, which may take several of the upstream's.

        Args:
            deadline_s: seconds from now; None for no limit.
            probe: a request before there are others; the circuit breaker doesn't count it.

        Raises:
            UpstreamOverloaded: too many wait already. UpstreamUnavailable: the upstream isn't there yet, or its circuit
            is open; then nobody waits for a connection. UpstreamTimeout: the deadline passed while waiting.
            UpstreamClosed: not started, or shutting down.
        """
        if self.transport is None or self.state in ("failed", "closed"):
            raise UpstreamClosed(
                f"expected a {self.name} engine that is started, got one that is not, or is shutting down"
            )
        if self.state == "loading" and not probe:
            raise UpstreamUnavailable(f"the upstream isn't there yet: {self._detail}", PROBE_S)
        self.transport.check()
        if self._free.locked() and self.waiting >= self._max_waiting:
            words = f"expected at most {self._max_waiting} requests waiting for the {self.name} upstream, got one more"
            raise UpstreamOverloaded(words, self._mean_s * (1 + self.waiting / self.settings.max_connections))
        deadline = None if deadline_s is None else give_up_at(time.monotonic(), deadline_s)
        self.waiting += 1
        try:
            await self.transport.wait(self._free.acquire(), None, deadline, "a free connection")
        finally:
            self.waiting -= 1
        began = time.monotonic()
        self.running += 1
        try:
            # Judged as a whole: a server whose tokenizer works and whose model doesn't has failed.
            async with nullcontext() if probe else self.transport.judged():
                yield Session(self, self.transport, deadline)
        finally:
            self.running -= 1
            self._free.release()
            self._mean_s += 0.1 * (time.monotonic() - began - self._mean_s)

    def adapted(self, body: dict[str, Any], refused: str | None = None) -> dict[str, Any]:
        """A body without the fields that this upstream has refused, or those and one more."""
        fields = self._refused | {refused}
        kept = {name: value for name, value in body.items() if name not in fields}
        instead = {new: body[old] for old, new in REFUSABLE.items() if new and old in fields and old in body}
        return kept | instead

    def learn_refused(self, field: str) -> None:
        """Leave a field out from now on."""
        logger.info("the %s upstream does not take %s; it is left out from now on", self.name, field)
        self._refused.add(field)

    async def close(self) -> None:
        """End all requests, which raise UpstreamClosed, and all connections."""
        self.state, self._detail = "closed", ""
        self._closing.set()
        if self.transport is not None:
            await self.transport.close()


def give_up_at(now: float, deadline_s: float) -> float:
    """A little before the deadline, on the clock of `now`.

    Who calls watches the same deadline. Were it first, it would cancel us, and as any client may do that, the circuit
    breaker would never hear of an upstream that lets all deadlines pass.
    """
    return now + max(deadline_s - MARGIN_S, 0.9 * deadline_s)


class Session:
    """A place among those whom an upstream serves, up to a deadline."""

    def __init__(self, client: UpstreamClient, transport: Transport, deadline: float | None) -> None:
        """`UpstreamClient.session` makes them."""
        self.client = client
        self._transport = transport
        self._deadline = deadline

    async def ask(self, method: str, url: str, body: dict[str, Any] | None, kind: type[Answer]) -> Answer:
        """A request with one JSON answer of that kind. Raises UpstreamError."""
        found = bytearray()
        async with self._transport.opened(method, url, body, self._deadline) as response:
            async with aclosing(self._transport.pieces(response, self._deadline)) as pieces:
                async for piece in pieces:
                    found += piece
            try:
                return msgspec.json.decode(found, type=kind)
            except wire.NO_JSON as error:
                form = response.headers.get("content-type", "no type")[:40]
                raise UpstreamFailed(
                    f"expected {kind.__name__} from {url}, got {len(found)} bytes of {form!r}: {error}"
                ) from None

    async def stream(self, url: str, body: dict[str, Any]) -> AsyncGenerator[wire.Chunk, None]:
        """Chat or a completion, chunk by chunk, until each of its `n` choices has said why it ended.

        Raises:
            UpstreamError: an answer that is refused, breaks off, holds an error, or makes no sense.
        """
        refused, chunk = None, None
        while True:
            try:
                async with aclosing(self._stream(url, self.client.adapted(body, refused))) as chunks:
                    async for chunk in chunks:
                        yield chunk
            except UpstreamRejected as error:
                fields = (field for field in REFUSABLE if field in body and field in str(error))
                if chunk is not None or refused or not (refused := next(fields, None)):
                    raise
            else:
                if refused:
                    self.client.learn_refused(refused)
                return

    async def _stream(self, url: str, body: dict[str, Any]) -> AsyncGenerator[wire.Chunk, None]:
        ended = set[int]()
        sent = body | {"stream": True}
        async with self._transport.opened("POST", url, sent, self._deadline) as response:
            form = response.headers.get("content-type", "no type")
            if not form.startswith("text/event-stream"):
                raise UpstreamFailed(f"expected text/event-stream from {url}, got {form[:40]!r}")
            async with (
                aclosing(self._transport.pieces(response, self._deadline)) as pieces,
                aclosing(_events(pieces)) as events,
            ):
                async for data in events:
                    chunk = self._chunk(data, url)
                    ended |= {choice.index for choice in chunk.choices if choice.finish_reason is not None}
                    yield chunk
            if len(ended) < body.get("n", 1):
                words = f"expected {body.get('n', 1)} choices to their end from {url}, got {len(ended)}"
                raise UpstreamUnavailable(f"{words}: the stream broke off")

    def _chunk(self, data: bytes, url: str) -> wire.Chunk:
        try:
            chunk = wire.CHUNK.decode(data)
        except wire.NO_JSON as error:
            raise UpstreamFailed(f"expected a chunk from {url}, got {len(data)} bytes that are none: {error}") from None
        if chunk.error is not None:
            code = chunk.error.get("code") if isinstance(chunk.error, dict) else None
            raise self._transport.told(
                code if isinstance(code, int) else 500, wire.words_of(chunk.error), f"within the stream of {url}"
            )
        for choice in chunk.choices:
            if choice.finish_reason in ("abort", "error"):  # what vLLM says of an answer that it broke off
                raise UpstreamUnavailable(f"expected an answer to its end from {url}, got {choice.finish_reason!r}")
        return chunk


async def _events(pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The data of a stream's events up to [DONE], or to where the stream ends."""
    parser = EventParser(MOST_EVENT_BYTES)
    async for piece in pieces:
        try:
            events = parser.feed(piece)
        except TooLong as error:
            raise UpstreamFailed(str(error)) from None
        for data in events:
            if data == b"[DONE]":
                with suppress(UpstreamError, TimeoutError):  # the answer is complete
                    async with asyncio.timeout(DRAIN_S):
                        async for _ in pieces:
                            pass
                return
            yield data
