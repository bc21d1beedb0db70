"""The refine engine: a causal language model behind the router's RefineEngine protocol."""

import contextlib
from collections.abc import AsyncGenerator, Callable
from functools import partial

import torch

from ar_engine.api import (
    MODES,
    DraftScore,
    RefineDeadline,
    RefineEngineClosed,
    RefineError,
    RefineEvent,
    RefineFailed,
    RefineLoad,
    RefineOverloaded,
    RefineRequest,
    RefineSettings,
    ScoreRequest,
)
from ar_engine.core import Core, Request
from ar_engine.load import load_core
from engine_core.loop import Company, EngineErrors, EngineLoop

NAME = "refine"
ERRORS = EngineErrors(RefineError, RefineOverloaded, RefineDeadline, RefineEngineClosed, RefineFailed)


class AutoregressiveEngine:
    """Serves one causal language model, many requests at once, step by step."""

    def __init__(
        self,
        settings: RefineSettings,
        load: Callable[[RefineSettings], Core] = load_core,
        company: Company | None = None,
    ) -> None:
        """Remember the settings; `start` loads the weights. `company`: the other engines on the device."""
        self._settings = settings
        self._loop: EngineLoop[Request] = EngineLoop(
            NAME, partial(_start, settings, load), ERRORS, settings.max_waiting, company
        )

    async def start(self) -> None:
        """Load the weights off the event loop. Raises RefineFailed when that can't be done."""
        await self._loop.start()

    async def refine(self, request: RefineRequest) -> AsyncGenerator[RefineEvent, None]:
        """Yield a RefineDelta for each piece of text, and one RefineResult for each choice. Raises RefineError."""
        events = self._loop.stream(request, request.deadline_s)
        async with contextlib.aclosing(events):
            async for event in events:
                yield event

    async def score(self, request: ScoreRequest) -> DraftScore:
        """Per-token log-probabilities of a draft, from one prefill. Raises RefineError."""
        events = self._loop.stream(request, request.deadline_s)
        async with contextlib.aclosing(events):
            return await anext(events)

    def load(self) -> RefineLoad:
        """How busy the engine is, read without a lock."""
        status = self._loop.status()
        core = self._loop.worker if isinstance(self._loop.worker, Core) else None
        return RefineLoad(
            state=status.state,
            running=status.running,
            waiting=status.waiting,
            capacity=self._settings.max_running,
            context_tokens=core.context_tokens if core else 0,
            modes=MODES,
            images=core.prompts.takes_images if core else False,
            step_s=status.step_s,
            background=core.background if core else 0,
            background_waiting=core.background_waiting if core else 0,
            detail=status.detail,
        )

    async def close(self, drain_s: float = 0.0) -> None:
        """Refuse what is new, let the rest run for at most `drain_s` seconds, end the thread."""
        await self._loop.close(drain_s)


def _start(settings: RefineSettings, load: Callable[[RefineSettings], Core]) -> Core:
    """Load in the engine's own thread, on a GPU with a stream of its own: on the default one each step would wait for the draft engine's work."""
    if torch.cuda.is_available():
        torch.cuda.set_stream(torch.cuda.Stream())
    return load(settings)
