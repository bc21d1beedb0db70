"""The refine engine: a causal language model behind the router's RefineEngine protocol."""

import contextlib
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Protocol

from ar_engine.api import (
    DraftScore,
    RefineDeadline,
    RefineDelta,
    RefineEngineClosed,
    RefineError,
    RefineEvent,
    RefineFailed,
    RefineLoad,
    RefineOverloaded,
    RefineRequest,
    RefineResult,
    RefineSettings,
    ScoreRequest,
)
from ar_engine.refiner import CausalRefiner
from engine_core.thread import EngineErrors, EngineThread

ERRORS = EngineErrors(RefineError, RefineOverloaded, RefineDeadline, RefineEngineClosed, RefineFailed)


class Refiner(Protocol):
    """What the worker thread runs: a loaded model that answers one request at a time."""

    context_tokens: int

    def refine(self, request: RefineRequest, emit: Callable[[RefineDelta], None]) -> RefineResult:
        """Answer, calling `emit` with each piece of text; what `emit` raises ends the work and passes through."""
        ...

    def score(self, request: ScoreRequest) -> DraftScore:
        """Score a draft in one prefill."""
        ...


class AutoregressiveEngine:
    """Serves one causal language model."""

    def __init__(
        self, settings: RefineSettings, load: Callable[[RefineSettings], Refiner] = CausalRefiner.load
    ) -> None:
        """Remember the settings; `start` loads the weights."""
        self._thread = EngineThread("refine", partial(load, settings), ERRORS, settings.max_waiting)

    async def start(self) -> None:
        """Load the weights off the event loop. Raises RefineFailed when that can't be done."""
        await self._thread.start()

    async def refine(self, request: RefineRequest) -> AsyncGenerator[RefineEvent, None]:
        """Yield a RefineDelta for each piece of text, then one RefineResult. Raises RefineError."""
        events = self._thread.stream(lambda model, emit: model.refine(request, emit), request.deadline_s)
        async with contextlib.aclosing(events):
            async for event in events:
                yield event

    async def score(self, request: ScoreRequest) -> DraftScore:
        """Per-token log-probabilities of a draft, from one prefill. Raises RefineError."""
        events = self._thread.stream(lambda model, _: model.score(request), request.deadline_s)
        async with contextlib.aclosing(events):
            return await anext(events)

    def load(self) -> RefineLoad:
        """How busy the engine is, read without a lock."""
        state, running, waiting, detail = self._thread.status()
        context = self._thread.model.context_tokens if self._thread.model else 0
        return RefineLoad(
            state=state, running=running, waiting=waiting, capacity=1, context_tokens=context, detail=detail
        )

    async def close(self) -> None:
        """Stop what runs, refuse what waits, end the thread."""
        await self._thread.close()
