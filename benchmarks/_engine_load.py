"""Many clients at once: each system as a service, arrivals that are the same for all of them, and what they need of memory."""

import asyncio
import multiprocessing
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

from benchmarks._engine_systems import Answer, Checkpoint, Theirs
from demo_models.tasks import Conversation
from demo_models.train import keep_freed_memory
from diffusion_engine.api import DraftRequest, DraftResult
from diffusion_engine.engine import DiffusionEngine
from diffusion_engine.runner import Runner
from diffusion_engine.scheduler import Plan, Scheduler

BATCH = 16  # of the static way
AS_SHIPPED = "ours, as shipped (gives up)"
OURS, ONE_BY_ONE, STATIC = "ours", "transformers, one by one", f"transformers, batches of {BATCH}"
Ask = Callable[[Conversation, int], Awaitable[Answer]]  # a conversation and its seed


class Done(NamedTuple):
    """One request: its answer, and seconds from its arrival to its text and from the start of all to its text."""

    answer: Answer
    seconds: float
    at: float


class Service:
    """A system that takes requests; `forwards` counts its decoder's."""

    def __init__(self, ask: Ask, forwards: Callable[[], int]) -> None:
        self.ask, self.forwards = ask, forwards


@asynccontextmanager
async def our_service(checkpoint: Checkpoint, waiting: int, give_up: bool) -> AsyncIterator[Service]:
    """`DiffusionEngine` with its default settings, but for a queue that refuses nobody; giving up canvases or not."""
    engine = DiffusionEngine(checkpoint.settings(max_waiting=waiting))
    await engine.start()

    async def ask(case: Conversation, seed: int) -> Answer:
        request = DraftRequest(
            request_id="",
            messages=case.messages,
            seed=seed,
            max_steps=checkpoint.steps,
            give_up=give_up,
            prefix_key=None,
        )
        results = [event async for event in engine.draft(request) if isinstance(event, DraftResult)]
        return Answer(results[0].text, sum(results[0].signals.steps))

    try:
        with counted_forwards() as forwards:
            yield Service(ask, lambda: len(forwards))
    finally:
        await engine.close()


@contextmanager
def counted_forwards() -> Iterator[list[int]]:
    """How many canvases each forward of our engine denoises."""
    counts: list[int] = []
    run = Runner.run

    def counting(self: Runner, plan: Plan, scheduler: Scheduler) -> Any:
        counts.append(len(plan.canvases))
        return run(self, plan, scheduler)

    with mock.patch.object(Runner, "run", counting):
        yield counts


@asynccontextmanager
async def one_by_one(theirs: Theirs, steps: int) -> AsyncIterator[Service]:
    """`generate` for one request after the other, first come, first served."""
    before = theirs.forwards
    with ThreadPoolExecutor(1) as worker:

        async def ask(case: Conversation, seed: int) -> Answer:
            return await asyncio.get_running_loop().run_in_executor(worker, theirs.answer, case, seed, steps)

        yield Service(ask, lambda: theirs.forwards - before)


@asynccontextmanager
async def static_batches(theirs: Theirs, steps: int, total: int) -> AsyncIterator[Service]:
    """`generate` for `BATCH` requests at a time: each waits until so many have arrived, or all of the `total`."""
    before, arrived = theirs.forwards, 0
    waiting: list[tuple[Conversation, asyncio.Future[Answer]]] = []
    with ThreadPoolExecutor(1) as worker:

        async def ask(case: Conversation, seed: int) -> Answer:
            nonlocal arrived
            arrived += 1
            answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            waiting.append((case, answer))
            if len(waiting) == BATCH or arrived == total:
                batch = list(waiting)
                waiting.clear()
                cases = [case for case, _ in batch]
                found = await asyncio.get_running_loop().run_in_executor(worker, theirs.answers, cases, seed, steps)
                for (_, future), one in zip(batch, found, strict=True):
                    future.set_result(one)
            return await answer

        yield Service(ask, lambda: theirs.forwards - before)


def poisson(rate: float, count: int, seed: int) -> list[float]:
    """Arrival times in seconds; the first is 0."""
    rng = random.Random(seed)
    times = [0.0]
    while len(times) < count:
        times.append(times[-1] + rng.expovariate(rate))
    return times


async def open_loop(ask: Ask, cases: Sequence[Conversation], arrivals: Sequence[float]) -> list[Done]:
    """Requests come when they come, however slow the answers."""
    started = time.perf_counter()

    async def one(seed: int, case: Conversation, arrival: float) -> Done:
        await asyncio.sleep(max(0.0, started + arrival - time.perf_counter()))
        answer = await ask(case, seed)
        at = time.perf_counter() - started
        return Done(answer, at - arrival, at)

    asked = zip(cases, arrivals, strict=True)
    return await asyncio.gather(*(one(seed, case, arrival) for seed, (case, arrival) in enumerate(asked)))


async def closed_loop(ask: Ask, cases: Sequence[Conversation], clients: int) -> list[Done]:
    """Each client asks its next request as soon as it has the answer to the last."""
    started = time.perf_counter()
    line, done = enumerate(cases), []

    async def client() -> None:
        for seed, case in line:
            asked = time.perf_counter()
            answer = await ask(case, seed)
            now = time.perf_counter()
            done.append(Done(answer, now - asked, now - started))

    await asyncio.gather(*(client() for _ in range(clients)))
    return done


def peaks(checkpoint: Checkpoint, cases: Sequence[Conversation], threads: int) -> dict[str, dict[str, float]]:
    """Memory of each system under 16 clients, each in a process of its own, so that no high-water mark hides another's."""
    found = {}
    for name in (OURS, ONE_BY_ONE, STATIC):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as child:
            found[name] = child.submit(peak, name, checkpoint, list(cases), threads).result()
    return found


def peak(name: str, checkpoint: Checkpoint, cases: list[Conversation], threads: int) -> dict[str, float]:
    """Resident megabytes of this process: when everything is imported, when the weights are loaded, and at most."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    imported = resident("VmRSS")

    async def serve() -> float:
        async with service(name, checkpoint, None, len(cases)) as served:
            loaded = resident("VmRSS")
            await closed_loop(served.ask, cases, BATCH)
        return loaded

    loaded = asyncio.run(serve())
    return {"imported_mb": imported, "loaded_mb": loaded, "peak_mb": resident("VmHWM")}


def service(
    name: str, checkpoint: Checkpoint, theirs: Theirs | None, total: int
) -> AbstractAsyncContextManager[Service]:
    """A system by its name, for so many requests; transformers' model is loaded unless it is given."""
    if name in (OURS, AS_SHIPPED):
        return our_service(checkpoint, waiting=total, give_up=name == AS_SHIPPED)
    theirs = theirs or Theirs(checkpoint)
    if name == ONE_BY_ONE:
        return one_by_one(theirs, checkpoint.steps)
    return static_batches(theirs, checkpoint.steps, total)


def resident(what: str) -> float:
    """VmRSS, or VmHWM, the most it ever was, in MB. (getrusage's mark of a child begins at its parent's.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024
