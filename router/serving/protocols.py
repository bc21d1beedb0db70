"""What the gateway asks of its engines. Implementations satisfy these by shape, not by inheritance.

Closing an iterator cancels its work: a slot is free within one step.
"""

from collections.abc import AsyncGenerator
from typing import Protocol

from ar_engine.api import DraftScore, RefineEvent, RefineLoad, RefineRequest, ScoreRequest
from diffusion_engine.api import DraftEvent, DraftLoad, DraftRequest


class DraftEngine(Protocol):
    """Answers fast."""

    async def start(self) -> None:
        """Load the weights, off the event loop; returns when ready."""
        ...

    def draft(self, request: DraftRequest) -> AsyncGenerator[DraftEvent, None]:
        """Canvas updates, then one DraftResult. Raises DraftError."""
        ...

    def load(self) -> DraftLoad:
        """Cheap and lock-free; answers while the weights load."""
        ...

    async def close(self) -> None:
        """Free everything; requests still running fail with DraftEngineClosed."""
        ...


class RefineEngine(Protocol):
    """Answers well."""

    async def start(self) -> None:
        """Load the weights, off the event loop; returns when ready."""
        ...

    def refine(self, request: RefineRequest) -> AsyncGenerator[RefineEvent, None]:
        """Deltas, then one RefineResult. Raises RefineError."""
        ...

    async def score(self, request: ScoreRequest) -> DraftScore:
        """What the model thinks of a draft, from one prefill. Raises RefineError."""
        ...

    def load(self) -> RefineLoad:
        """Cheap and lock-free; answers while the weights load."""
        ...

    async def close(self) -> None:
        """Free everything; requests still running fail with RefineEngineClosed."""
        ...
