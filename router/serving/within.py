"""Deadlines of what is awaited, and of async generators."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import TypeVar

T = TypeVar("T")


async def in_time(deadline: float, late: Exception, work: Awaitable[T]) -> T:
    """What `work` gives, or `late` once it is `deadline` in the event loop's time."""
    scope = asyncio.timeout_at(deadline)
    try:
        async with scope:
            return await work
    except TimeoutError:
        if not scope.expired():
            raise
        raise late from None


async def within(time_s: float, late: Exception, events: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """`events` until the time is up, then `late`. Always closes `events`.

    The timeout is entered and left between two yields: a generator may be resumed by another
    task than the one that started it, and a timeout cancels the task that entered it.
    """
    deadline = asyncio.get_running_loop().time() + time_s
    async with aclosing(events):
        while True:
            try:
                event = await in_time(deadline, late, anext(events))
            except StopAsyncIteration:
                return
            yield event


def sooner(time_s: float) -> float:
    """A little less time for the engine, so that it can hand over what is finished when its own deadline comes."""
    return time_s - min(0.5, 0.1 * time_s)
