"""One worker thread that owns a model, behind an async API; both engines stand on it. Imports no torch.

Work waits in a bounded queue and runs one piece at a time. Events cross to the event loop as they happen; a cancelled
iterator, a deadline or `close` ends its work at the next `emit`.
"""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any, Generic, Literal, NamedTuple, TypeVar

Model = TypeVar("Model")
State = Literal["loading", "ready", "failed", "closed"]
Emit = Callable[[Any], None]
Work = Callable[[Model, Emit], Any]


# transformers imports model code on demand and patches torch (default dtype, init functions) while it loads a checkpoint
LOADING = threading.Lock()


class EngineErrors(NamedTuple):
    """The exceptions that an engine's callers know."""

    base: type[Exception]  # raised by work on purpose: passed on as it is
    overloaded: Callable[[str, float], Exception]  # message, retry_after_s
    deadline: Callable[[str], Exception]
    closed: Callable[[str], Exception]
    failed: Callable[[str], Exception]

    def told(self, name: str, error: Exception) -> Exception:
        """An error as the callers of the engine `name` know it: raised on purpose as it is, else as the cause of a `failed`."""
        if isinstance(error, self.base):
            return error
        failed = self.failed(f"the {name} engine failed with {type(error).__name__}")
        failed.__cause__ = error
        return failed


class ThreadStatus(NamedTuple):
    """The thread at one moment."""

    state: State
    running: int
    waiting: int
    detail: str  # why loading failed


class _Cancelled(Exception):
    """Nobody waits for this work any more."""


class _Done(NamedTuple):
    result: Any


class _Job(Generic[Model]):
    def __init__(self, work: Work[Model]) -> None:
        self.work = work
        self.loop = asyncio.get_running_loop()
        self.events: asyncio.Queue[Any] = asyncio.Queue()
        self.cancelled = False

    def emit(self, event: Any) -> None:
        """Hand an event to the event loop; called by the worker."""
        if self.cancelled:
            raise _Cancelled
        try:
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError as err:  # the event loop is gone, and whoever waited with it
            raise _Cancelled from err


class EngineThread(Generic[Model]):
    """Loads a model in a thread of its own and runs work on it, first come, first served."""

    def __init__(self, name: str, load: Callable[[], Model], errors: EngineErrors, max_waiting: int) -> None:
        """Remember what to load; `start` loads it."""
        self.name = name
        self.model: Model | None = None
        self._load = load
        self._errors = errors
        self._max_waiting = max_waiting
        self._state: State = "loading"
        self._detail = ""
        self._waiting: deque[_Job[Model]] = deque()
        self._running: _Job[Model] | None = None
        self._changed = threading.Condition()
        self._mean_s = 1.0  # moving average of a piece of work, for retry_after_s
        self._thread = threading.Thread(target=self._main, name=f"{name}-engine", daemon=True)

    async def start(self) -> None:
        """Load the model. Raises the engine's `failed` error when that can't be done."""
        loop = asyncio.get_running_loop()
        loaded: asyncio.Future[None] = loop.create_future()
        self._loaded = lambda: loop.call_soon_threadsafe(lambda: loaded.done() or loaded.set_result(None))
        self._thread.start()
        await loaded
        if self._state == "failed":
            raise self._errors.failed(f"the {self.name} model could not be loaded: {self._detail}")

    async def stream(self, work: Work[Model], deadline_s: float | None) -> AsyncGenerator[Any, None]:
        """Yield what `work(model, emit)` emits, then what it returns.

        Args:
            work: runs in the worker thread.
            deadline_s: seconds from now, None for no limit.
        """
        deadline = None if deadline_s is None else time.monotonic() + deadline_s
        job = self._submit(work)
        try:
            while True:
                try:
                    event = await asyncio.wait_for(job.events.get(), deadline and max(0.0, deadline - time.monotonic()))
                except TimeoutError:
                    message = f"expected a result of the {self.name} engine within {deadline_s} s, got none"
                    raise self._errors.deadline(message) from None
                if isinstance(event, Exception):
                    raise event
                if isinstance(event, _Done):
                    yield event.result
                    return
                yield event
        finally:
            self._cancel(job)

    def status(self) -> ThreadStatus:
        """How things stand, read without a lock."""
        return ThreadStatus(self._state, int(self._running is not None), len(self._waiting), self._detail)

    async def close(self) -> None:
        """Refuse what waits, stop what runs at its next event, and end the thread."""
        with self._changed:
            self._state = "closed"
            jobs = [*self._waiting, *([self._running] if self._running else [])]
            self._waiting.clear()
            self._changed.notify()
        for job in jobs:
            job.cancelled = True
            job.events.put_nowait(self._errors.closed(f"the {self.name} engine is shutting down"))
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    def _submit(self, work: Work[Model]) -> _Job[Model]:
        with self._changed:
            if self._state != "ready":
                raise self._errors.closed(f"expected a {self.name} engine that is ready, got one that is {self._state}")
            if len(self._waiting) >= self._max_waiting:
                message = (
                    f"expected at most {self._max_waiting} requests waiting for the {self.name} engine, got one more"
                )
                raise self._errors.overloaded(message, self._mean_s * len(self._waiting))
            job = _Job(work)
            self._waiting.append(job)
            self._changed.notify()
        return job

    def _cancel(self, job: _Job[Model]) -> None:
        job.cancelled = True
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)

    def _main(self) -> None:
        try:
            with LOADING:
                self.model = self._load()
        except Exception as err:  # noqa: BLE001 - whatever loading a checkpoint raises, callers must be told
            self._detail = f"{type(err).__name__}: {err}"
        with self._changed:
            if self._state == "loading":
                self._state = "failed" if self.model is None else "ready"
        self._loaded()
        while self.model is not None and (job := self._next()) is not None:
            started = time.monotonic()
            self._run(self.model, job)
            self._running = None
            self._mean_s += 0.1 * (time.monotonic() - started - self._mean_s)

    def _next(self) -> _Job[Model] | None:
        with self._changed:
            while not self._waiting and self._state == "ready":
                self._changed.wait()
            if self._state != "ready":
                return None
            self._running = self._waiting.popleft()
            return self._running

    def _run(self, model: Model, job: _Job[Model]) -> None:
        try:
            job.emit(_Done(job.work(model, job.emit)))
        except _Cancelled:
            return
        except Exception as err:  # noqa: BLE001 - a failed request must not take the engine with it
            with contextlib.suppress(_Cancelled):
                job.emit(self._errors.told(self.name, err))
