"""Deadlines of async generators."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

T = TypeVar("T")


async def within(time_s: float, late: Exception, events: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """`events` until the time is up, then `late`. Always closes `events`.

    The timeout is entered and left between two yields: a generator may be resumed by another
    task than the one that started it, and a timeout cancels the task that entered it.
    """
    deadline = asyncio.get_running_loop().time() + time_s
    async with aclosing(events):
        while True:
            scope = asyncio.timeout_at(deadline)
            try:
                async with scope:
                    event = await anext(events)
            except StopAsyncIteration:
                return
            except TimeoutError:
                if not scope.expired():
                    raise
                raise late from None
            yield event


def sooner(time_s: float) -> float:
    """A little less time for the engine, so that it can hand over what is finished when its own deadline comes."""
    return time_s - min(0.5, 0.1 * time_s)
