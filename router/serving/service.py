"""The way in: how much is under way, what the caller may use, then the pipeline.

Who comes in and who leaves is all in one generator, so whatever ends it gives back what it held.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from contextlib import aclosing, contextmanager
from typing import Any, Protocol

from ar_engine.api import RefineDeadline
from diffusion_engine.api import DraftDeadline
from router.errors import DeadlinePassed, Overloaded
from router.serving.messages import (
    BACKGROUND,
    Admitted,
    Ask,
    Caller,
    ChoiceEnd,
    Decided,
    Delta,
    Event,
    Finished,
    Provisional,
)
from router.serving.pipeline import Pipeline
from router.serving.within import in_time
from router.settings import ServerSettings

CHARS_PER_TOKEN = 4  # of English text, nearly; used where nothing is counted yet
USUAL_ANSWER = 256  # tokens reserved where a request sets no limit; settled afterwards
MARGIN = (
    1.2  # on an estimated wait: of those let in too late, half would be begun and not finished, time that others lack
)
GRACE_S = 5.0  # a lease outlives its request's deadline by this


Prepare = Callable[[Ask], Awaitable[Ask]]


class Grant(Protocol):
    """What a caller was let in with."""

    headers: dict[str, str]  # what is left of the limits, as OpenAI's API says it

    async def settle(self, tokens: int) -> None:
        """The request is over and took so many tokens; the rest of what was reserved is free again."""
        ...


class Limiter(Protocol):
    """Counts what callers use."""

    async def admit(self, caller: Caller, tokens: int, lease_s: float) -> Grant:
        """Reserve a request and so many tokens, for so long at most. Raises RateLimited, BudgetSpent."""
        ...


class _Bill:
    """What a request costs so far: nothing before its answer begins, then what was told of it, in the end what it took. A cached answer costs nothing."""

    def __init__(self, prompt: int, most: int) -> None:
        self.tokens = 0
        self._prompt, self._most = prompt, most
        self._chars = 0  # of the answer
        self._free = False

    def add(self, event: Event) -> None:
        """Take note of what the client is told."""
        if isinstance(event, Decided):
            self._free = event.decision.route == "cache"
        if self._free or isinstance(event, Admitted | Provisional | ChoiceEnd):
            return
        if isinstance(event, Finished):
            self.tokens = event.usage.prompt_tokens + event.usage.completion_tokens
            return
        if isinstance(event, Delta):
            self._chars += len(event.text) + len(event.reasoning)
        self.tokens = min(self._most, self._prompt + -(-self._chars // CHARS_PER_TOKEN))


class Service:
    """Lets requests into the pipeline, as many as can be answered."""

    def __init__(self, pipeline: Pipeline, limiter: Limiter, settings: ServerSettings) -> None:
        self._pipeline = pipeline
        self._limiter = limiter
        self._settings = settings
        self._settling: set[asyncio.Task[None]] = set()
        self.requests = 0  # under way, those of batches not counted
        self.tokens = 0  # of their prompts, estimated

    async def answer(self, ask: Ask, caller: Caller, prepare: Prepare | None = None) -> AsyncGenerator[Event, None]:
        """Admitted, perhaps Provisional, then Decided, Delta and ChoiceEnd of each choice, Finished.

        Args:
            ask: what is asked for.
            caller: by whom.
            prepare: what is still to be checked or fetched for it, within its limits and its deadline.

        Raises:
            Overloaded: enough is under way.
            RateLimited, BudgetSpent: the caller's limits.
            DeadlinePassed: no answer in the time that the request itself allows.
            FormatUnmet, DraftError, RefineError: no engine could serve the request.
        """
        prompt = ask.prompt_chars // CHARS_PER_TOKEN + 1
        timeout_s = self._settings.request_timeout_s if ask.timeout_s is None else ask.timeout_s
        with self._place(ask, prompt, timeout_s):
            reserved = prompt + ask.n * (ask.max_tokens or USUAL_ANSWER)
            grant = await self._limiter.admit(caller, reserved, timeout_s + GRACE_S)
            bill, settled = _Bill(prompt, reserved), False
            try:
                yield Admitted(grant.headers)
                began = time.perf_counter()
                if prepare is not None:
                    late = RefineDeadline("no answer before the deadline")
                    ask = await in_time(asyncio.get_running_loop().time() + timeout_s, late, prepare(ask))
                left_s = timeout_s - (time.perf_counter() - began)
                async with aclosing(self._pipeline.answer(ask, left_s)) as events:
                    async for event in events:
                        bill.add(event)
                        if isinstance(event, Finished):
                            # before the client knows: its next request must not find the place taken
                            settled = True
                            await grant.settle(bill.tokens)
                        yield event
            except (DraftDeadline, RefineDeadline):
                if timeout_s < self._settings.request_timeout_s:
                    raise DeadlinePassed(f"No answer within deadline_ms: {round(1000 * timeout_s)}.") from None
                raise
            finally:
                if not settled:
                    self._later(grant.settle(bill.tokens))  # who ends it must not wait for Redis

    @property
    def canvas_tokens(self) -> int:
        """Positions of the draft engine's canvas; 0: it doesn't say."""
        return self._pipeline.canvas_tokens

    async def close(self) -> None:
        """Wait until everything is settled."""
        await asyncio.gather(*self._settling, return_exceptions=True)

    @contextmanager
    def _place(self, ask: Ask, tokens: int, timeout_s: float) -> Generator[None]:
        if ask.priority >= BACKGROUND:  # bounded by whoever sends them
            yield
            return
        wait_s, work_s = self._pipeline.expect(ask.wanted)
        if self.requests >= self._settings.max_requests:
            raise Overloaded(f"The server has {self.requests} requests to answer; try again.", retry_after_s=wait_s)
        # a prompt that is too long even for an idle gateway was refused before
        if self.requests and self.tokens + tokens > self._settings.max_pending_tokens:
            raise Overloaded("The server has enough to read; try again shortly.", retry_after_s=wait_s)
        late_s = MARGIN * wait_s + work_s - timeout_s
        if wait_s and late_s > 0:
            raise Overloaded("The server can't answer in time; try again shortly.", retry_after_s=late_s / MARGIN)
        self.requests += 1
        self.tokens += tokens
        try:
            yield
        finally:
            self.requests -= 1
            self.tokens -= tokens

    def _later(self, settling: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(settling)
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)
