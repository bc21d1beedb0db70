"""The draft engine: DiffusionGemma behind the router's DraftEngine protocol."""

import contextlib
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Protocol

from diffusion_engine.api import (
    CanvasUpdate,
    DraftDeadline,
    DraftEngineClosed,
    DraftError,
    DraftEvent,
    DraftFailed,
    DraftLoad,
    DraftOverloaded,
    DraftRequest,
    DraftResult,
    DraftSettings,
)
from diffusion_engine.reference import ReferenceDrafter
from engine_core.thread import EngineErrors, EngineThread

ERRORS = EngineErrors(DraftError, DraftOverloaded, DraftDeadline, DraftEngineClosed, DraftFailed)


class Drafter(Protocol):
    """What the worker thread runs: a loaded model that drafts one request at a time."""

    context_tokens: int

    def draft(self, request: DraftRequest, emit: Callable[[CanvasUpdate], None]) -> DraftResult:
        """Draft, calling `emit` after every step; what `emit` raises ends the work and passes through."""
        ...


class DiffusionEngine:
    """Serves one DiffusionGemma checkpoint."""

    def __init__(
        self, settings: DraftSettings, load: Callable[[DraftSettings], Drafter] = ReferenceDrafter.load
    ) -> None:
        """Remember the settings; `start` loads the weights."""
        self._thread = EngineThread("draft", partial(load, settings), ERRORS, settings.max_waiting)

    async def start(self) -> None:
        """Load the weights off the event loop. Raises DraftFailed when that can't be done."""
        await self._thread.start()

    async def draft(self, request: DraftRequest) -> AsyncGenerator[DraftEvent, None]:
        """Yield a CanvasUpdate after each denoising step, then one DraftResult. Raises DraftError."""
        events = self._thread.stream(lambda model, emit: model.draft(request, emit), request.deadline_s)
        async with contextlib.aclosing(events):
            async for event in events:
                yield event

    def load(self) -> DraftLoad:
        """How busy the engine is, read without a lock."""
        state, running, waiting, detail = self._thread.status()
        context = self._thread.model.context_tokens if self._thread.model else 0
        return DraftLoad(
            state=state, running=running, waiting=waiting, capacity=1, context_tokens=context, detail=detail
        )

    async def close(self) -> None:
        """Stop what runs, refuse what waits, end the thread."""
        await self._thread.close()
