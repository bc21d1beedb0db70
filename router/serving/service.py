"""The way in: how much is under way, what the caller may use, then the pipeline.

Who comes in and who leaves is all in one generator, so whatever ends it gives back what it held.
"""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Generator
from contextlib import aclosing, contextmanager
from typing import Any, Protocol

from ar_engine.api import RefineDeadline
from diffusion_engine.api import DraftDeadline
from router.errors import DeadlinePassed, Overloaded
from router.serving.messages import BACKGROUND, Admitted, Ask, Caller, Decided, Event, Finished
from router.serving.pipeline import Pipeline
from router.settings import ServerSettings

CHARS_PER_TOKEN = 4  # of English text, nearly; used where nothing is counted yet
USUAL_ANSWER = 256  # tokens reserved where a request sets no limit; settled afterwards
MARGIN = (
    1.2  # on an estimated wait: of those let in too late, half would be begun and not finished, time that others lack
)
GRACE_S = 5.0  # a lease outlives its request's deadline by this


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


class Service:
    """Lets requests into the pipeline, as many as can be answered."""

    def __init__(self, pipeline: Pipeline, limiter: Limiter, settings: ServerSettings) -> None:
        self._pipeline = pipeline
        self._limiter = limiter
        self._settings = settings
        self._settling: set[asyncio.Task[None]] = set()
        self.requests = 0  # under way, those of batches not counted
        self.tokens = 0  # of their prompts, estimated

    async def answer(self, ask: Ask, caller: Caller) -> AsyncGenerator[Event, None]:
        """Admitted, perhaps Provisional, then Decided, Delta and ChoiceEnd of each choice, Finished.

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
            used = 0  # a request that fails before its answer costs nothing
            try:
                yield Admitted(grant.headers)
                async with aclosing(self._pipeline.answer(ask, timeout_s)) as events:
                    async for event in events:
                        if isinstance(event, Decided) and event.decision.route != "cache":
                            used = reserved  # unless the end comes, which knows better
                        elif isinstance(event, Finished):
                            cached = event.decision.route == "cache"
                            used = 0 if cached else event.usage.prompt_tokens + event.usage.completion_tokens
                        yield event
            except (DraftDeadline, RefineDeadline):
                if timeout_s < self._settings.request_timeout_s:
                    raise DeadlinePassed(f"No answer within deadline_ms: {round(1000 * timeout_s)}.") from None
                raise
            finally:
                self._later(grant.settle(used))  # the client need not wait for it

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
