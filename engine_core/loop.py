"""One worker thread that owns an engine and runs it step by step, behind an async API. Imports no torch.

Requests reach the thread through a mailbox that it empties before every step; events cross to the event loop as they happen. A closed iterator
cancels its request: it is gone before the next step.
"""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

State = Literal["loading", "ready", "failed", "closed"]

# transformers imports model code on demand and patches torch (default dtype, init functions) while it loads a checkpoint
LOADING = threading.Lock()

HOLD_S = 0.005  # background gives way to another engine for so long at a time ...
MOST_HELD = 16  # ... and so many times in a row, then it does a step
GRACE_S = 1.0  # a step may take this long beyond a deadline

Request = TypeVar("Request")
Request_contra = TypeVar("Request_contra", contravariant=True)


class EngineErrors(NamedTuple):
    """The exceptions that an engine's callers know."""

    base: type[Exception]  # raised on purpose: passed on as it is
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


class LoopStatus(NamedTuple):
    """The engine at one moment."""

    state: State
    running: int
    waiting: int
    detail: str  # why it failed
    step_s: float  # seconds that a step takes, a moving average; 0: none was made yet


class Ticket:
    """A request on its way through the engine; its methods are called by the worker thread."""

    def __init__(self, deadline: float | None) -> None:
        self.deadline = deadline  # of time.monotonic()
        self.events: asyncio.Queue[Any] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def send(self, *events: Any) -> None:
        """Hand events to whoever waits."""
        with contextlib.suppress(RuntimeError):  # the event loop is gone, and whoever waited with it
            self._loop.call_soon_threadsafe(lambda: [self.events.put_nowait(event) for event in events])

    def end(self, *events: Any) -> None:
        """The last events."""
        self.send(*events, _END)

    def fail(self, error: Exception) -> None:
        """No result; `error` is raised where the request came from, as the cause of the engine's `failed` unless it is one of its own."""
        self.send(error)


_END = object()


class Worker(Protocol[Request_contra]):
    """What the thread drives. All of it is called by that thread, but for the properties, which others may read."""

    @property
    def running(self) -> int:
        """Requests or parts of them that take part in steps."""
        ...

    @property
    def waiting(self) -> int:
        """Requests taken in, not yet running."""
        ...

    @property
    def background(self) -> int:
        """Of those that run and wait, how many nobody waits for."""
        ...

    def add(self, request: Request_contra, ticket: Ticket) -> None:
        """Take a request in; raises the engine's own errors where it can't be served."""
        ...

    def cancel(self, ticket: Ticket) -> None:
        """Forget a request, if it is still there."""
        ...

    def step(self) -> bool:
        """Do some work; says whether there is more. A failed step tells its requests and raises."""
        ...

    def probe(self) -> None:
        """Raise if the engine can't work any more."""
        ...


class Company:
    """Engines on one device. Background of one gives way while another works for somebody who waits."""

    def __init__(self) -> None:
        """Nobody is there yet; loops join as they are made."""
        self._loops: list[EngineLoop[Any]] = []

    def join(self, loop: "EngineLoop[Any]") -> None:
        """Take an engine in."""
        self._loops.append(loop)

    def is_waited_for(self, apart_from: "EngineLoop[Any]") -> bool:
        """Does another engine work for somebody who waits? Read without a lock."""
        return any(loop.foreground for loop in self._loops if loop is not apart_from)


class EngineLoop(Generic[Request]):
    """Loads a worker in a thread of its own and keeps it stepping while there is work."""

    def __init__(
        self,
        name: str,
        load: Callable[[], Worker[Request]],
        errors: EngineErrors,
        max_waiting: int,
        company: Company | None = None,
    ) -> None:
        """Remember what to load; `start` loads it. Without `company` the engine has its device to itself."""
        self._company = company or Company()
        self._company.join(self)
        self.foreground = False  # somebody waits for what runs here
        self.name = name
        self.worker: Worker[Request] | None = None
        self._load = load
        self._errors = errors
        self._max_waiting = max_waiting
        self._state: State = "loading"
        self._detail = ""
        self._arrived: deque[tuple[Request, Ticket]] = deque()
        self._left: deque[Ticket] = deque()
        self._open: set[Ticket] = set()
        self._changed = threading.Condition()
        self._mean_gap_s = 1.0  # moving average of the time between two answers while busy
        self._last_answer: float | None = None
        self._step_s = 0.0
        self._stopping = False
        self._thread = threading.Thread(target=self._main, name=f"{name}-engine", daemon=True)

    async def start(self) -> None:
        """Load the worker. Raises the engine's `failed` error when that can't be done."""
        loop = asyncio.get_running_loop()
        loaded: asyncio.Future[None] = loop.create_future()
        self._loaded = lambda: loop.call_soon_threadsafe(lambda: loaded.done() or loaded.set_result(None))
        self._thread.start()
        await loaded
        if self._state == "failed":
            raise self._errors.failed(f"the {self.name} model could not be loaded: {self._detail}")

    async def stream(self, request: Request, deadline_s: float | None) -> AsyncGenerator[Any, None]:
        """Yield what the worker sends for a request. Raises what it fails with, or the engine's own errors.

        Args:
            request: for the worker.
            deadline_s: seconds from now, None for no limit; the worker ends the request then.
        """
        ticket = self._submit(request, None if deadline_s is None else time.monotonic() + deadline_s)
        try:
            while (event := await self._next(ticket, deadline_s)) is not _END:
                if isinstance(event, Exception):
                    raise self._errors.told(self.name, event)
                yield event
            self._answered()
        finally:
            with self._changed:
                self._open.discard(ticket)
                self._left.append(ticket)
                self._changed.notify()

    def status(self) -> LoopStatus:
        """How things stand, read without a lock."""
        worker = self.worker
        running, waiting = (worker.running, worker.waiting) if worker else (0, 0)
        return LoopStatus(self._state, running, waiting + len(self._arrived), self._detail, self._step_s)

    async def close(self, drain_s: float = 0.0) -> None:
        """Refuse what is new, let the rest run for at most `drain_s` seconds, and end the thread."""
        with self._changed:
            if self._state != "failed":
                self._state = "closed"
            self._changed.notify()
        end = time.monotonic() + drain_s
        # by looking again and again, because the last request may end in another event loop, and the thread by itself
        while self._open and time.monotonic() < end and self._thread.is_alive():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        self._stop()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    def _submit(self, request: Request, deadline: float | None) -> Ticket:
        with self._changed:
            if self._state != "ready":
                raise self._errors.closed(f"expected a {self.name} engine that is ready, got one that is {self._state}")
            if (waiting := self.status().waiting) >= self._max_waiting:
                message = (
                    f"expected at most {self._max_waiting} requests waiting for the {self.name} engine, got one more"
                )
                raise self._errors.overloaded(message, self._mean_gap_s * waiting)
            ticket = Ticket(deadline)
            self._arrived.append((request, ticket))
            self._open.add(ticket)
            self._changed.notify()
        return ticket

    async def _next(self, ticket: Ticket, deadline_s: float | None) -> Any:
        """The next event. The worker keeps deadlines; this one is for a step that takes too long."""
        if ticket.deadline is None or not ticket.events.empty():  # what is there already is never too late
            return await ticket.events.get()
        try:
            async with asyncio.timeout(ticket.deadline - time.monotonic() + GRACE_S):
                return await ticket.events.get()
        except TimeoutError:
            message = f"expected a result of the {self.name} engine within {deadline_s} s, got none"
            raise self._errors.deadline(message) from None

    def _answered(self) -> None:
        """Learn the time between two answers, where the second was already in work when the first came."""
        now = time.monotonic()
        if self._last_answer is not None:
            self._mean_gap_s += 0.1 * (now - self._last_answer - self._mean_gap_s)
        self._last_answer = now if len(self._open) > 1 else None

    def _main(self) -> None:
        try:
            with LOADING:
                self.worker = self._load()
        except Exception as err:  # noqa: BLE001 - whatever loading a checkpoint raises, callers must be told
            self._detail = f"{type(err).__name__}: {err}"
        with self._changed:
            if self._state == "loading":
                self._state = "failed" if self.worker is None else "ready"
        with contextlib.suppress(RuntimeError):  # the event loop is gone, and whoever waited with it
            self._loaded()
        if self.worker is not None:
            try:
                self._run(self.worker)
            except Exception as err:  # noqa: BLE001 - whoever waits for a thread that ends must be told
                self._break(f"{type(err).__name__}: {err}")

    def _run(self, worker: Worker[Request]) -> None:
        more, held = False, 0
        while self._take_in(worker, wait=not more):
            self.foreground = worker.running + worker.waiting > worker.background
            if worker.background and not self.foreground and held < MOST_HELD and self._company.is_waited_for(self):
                held, more = held + 1, True
                self._hold()
                continue
            held = 0
            work = worker.running + worker.waiting  # a cancellation wakes the thread too, and leaves nothing to measure
            began = time.monotonic()
            try:
                more = worker.step()
            except Exception as err:  # noqa: BLE001 - a failed step must not take the engine with it
                more = True
                try:
                    worker.probe()
                except Exception:  # noqa: BLE001
                    self._break(f"{type(err).__name__}: {err}")
                    return
            else:
                if work:
                    self._stepped(time.monotonic() - began)
            self.foreground = worker.running + worker.waiting > worker.background

    def _hold(self) -> None:
        """Leave the device to another engine for a moment, or until there is news."""
        with self._changed:
            if not (self._arrived or self._left or self._stopping):
                self._changed.wait(HOLD_S)

    def _stepped(self, seconds: float) -> None:
        """Learn how long a step takes."""
        self._step_s = self._step_s + 0.1 * (seconds - self._step_s) if self._step_s else seconds

    def _take_in(self, worker: Worker[Request], wait: bool) -> bool:
        """Empty the mailbox, waiting for something in it if told to; says whether to go on."""
        with self._changed:
            while wait and not self._arrived and not self._left and not self._stopping:
                self._changed.wait()
            if self._stopping:
                return False
            arrived, left = len(self._arrived), list(self._left)
            self._left.clear()
        gone = set(left)
        for _ in range(arrived):
            if self._arrived[0][1] not in gone:
                self._add(worker, *self._arrived[0])
            self._arrived.popleft()  # only now: until the worker counts it, it waits here
        for ticket in left:
            worker.cancel(ticket)
        return True

    def _add(self, worker: Worker[Request], request: Request, ticket: Ticket) -> None:
        try:
            worker.add(request, ticket)
        except Exception as err:  # noqa: BLE001 - one bad request must not take the engine with it
            ticket.fail(err)

    def _break(self, detail: str) -> None:
        with self._changed:
            self._state, self._detail = "failed", detail
        self.foreground = False  # nobody need give way to it any more
        self._end_all(self._errors.failed, f"the {self.name} engine broke: {detail}")

    def _stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._end_all(self._errors.closed, f"the {self.name} engine is shutting down")

    def _end_all(self, error: Callable[[str], Exception], message: str) -> None:
        with self._changed:
            tickets = list(self._open)
        for ticket in tickets:
            ticket.fail(error(message))  # each its own: an exception that is raised twice mixes up its tracebacks
