"""The draft engine: DiffusionGemma behind the router's DraftEngine protocol."""

import contextlib
from collections.abc import AsyncGenerator, Callable

import torch

from diffusion_engine.api import (
    DraftDeadline,
    DraftEngineClosed,
    DraftError,
    DraftEvent,
    DraftFailed,
    DraftLoad,
    DraftOverloaded,
    DraftRequest,
    DraftSettings,
)
from diffusion_engine.core import Core, Job
from diffusion_engine.load import load_core
from engine_core.loop import Company, EngineErrors, EngineLoop, Ticket

NAME = "draft"
ERRORS = EngineErrors(DraftError, DraftOverloaded, DraftDeadline, DraftEngineClosed, DraftFailed)


class DiffusionEngine:
    """Serves one DiffusionGemma checkpoint."""

    def __init__(
        self,
        settings: DraftSettings,
        load: Callable[[DraftSettings], Core] = load_core,
        company: Company | None = None,
    ) -> None:
        """Remember the settings; `start` loads the weights. `company`: the other engines on the device."""
        self._slots = settings.max_running
        self._loop: EngineLoop[DraftRequest] = EngineLoop(
            NAME, lambda: _start_worker(settings, load), ERRORS, settings.max_waiting, company
        )

    async def start(self) -> None:
        """Load the weights off the event loop. Raises DraftFailed when that can't be done."""
        await self._loop.start()

    async def draft(self, request: DraftRequest) -> AsyncGenerator[DraftEvent, None]:
        """Yield a CanvasUpdate after each denoising step if asked to, then a DraftResult for each candidate, best first.

        Raises:
            DraftError: the request can't be served, or not now, or the engine failed.
        """
        events = self._loop.stream(request, request.deadline_s)
        async with contextlib.aclosing(events):
            async for event in events:
                yield event

    def load(self) -> DraftLoad:
        """How busy the engine is, read without a lock."""
        status, worker = self._loop.status(), self._loop.worker
        core = worker.core if isinstance(worker, _Worker) else None
        return DraftLoad(
            state=status.state,
            running=status.running,
            waiting=status.waiting,
            capacity=self._slots,
            context_tokens=core.context_tokens if core else 0,
            step_s=status.step_s,
            canvas_tokens=core.canvas_tokens if core else 0,
            background=core.background if core else 0,
            background_waiting=core.background_waiting if core else 0,
            detail=status.detail,
        )

    async def close(self, drain_s: float = 0.0) -> None:
        """Refuse what is new, let the rest run for at most `drain_s` seconds, end the thread."""
        await self._loop.close(drain_s)


def _start_worker(settings: DraftSettings, load: Callable[[DraftSettings], Core]) -> "_Worker":
    """Load in the engine's own thread, on a GPU with a stream of its own: on the default one each step would wait for the refiner's work."""
    if torch.cuda.is_available():
        torch.cuda.set_stream(torch.cuda.Stream())
    return _Worker(load(settings))


class _Worker:
    """A core, as the loop drives it."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self._jobs: dict[Ticket, Job] = {}

    @property
    def running(self) -> int:
        return self.core.running

    @property
    def waiting(self) -> int:
        return self.core.waiting

    @property
    def background(self) -> int:
        return self.core.background

    def add(self, request: DraftRequest, ticket: Ticket) -> None:
        self._jobs[ticket] = self.core.add(
            request,
            update=ticket.send,
            done=lambda results: ticket.end(*results),
            failed=ticket.fail,
            deadline=ticket.deadline,
        )

    def cancel(self, ticket: Ticket) -> None:
        if job := self._jobs.pop(ticket, None):
            self.core.drop(job)

    def step(self) -> bool:
        self.core.step()
        return self.core.busy

    def probe(self) -> None:
        self.core.probe()
