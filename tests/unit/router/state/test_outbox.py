import asyncio

import pytest

from router.settings import RedisSettings
from router.state.outbox import MOST_PENDING, MOST_PER_TRIP, Outbox
from router.state.store import Command, Store

pytestmark = pytest.mark.anyio


class FlakyStore(Store):
    """Remembers what it was sent, and can be switched off."""

    def __init__(self) -> None:
        super().__init__(RedisSettings())
        self.up = True
        self.trips: list[tuple[Command, ...]] = []

    async def run(self, *commands: Command) -> list[object] | None:
        if not self.up:
            return None
        self.trips.append(commands)
        return await super().run(*commands)


async def test_counts_of_the_same_field_are_one_command() -> None:
    store = FlakyStore()
    outbox = Outbox(store)
    for _ in range(1000):
        outbox.count("h", "f")
    await outbox.flush()
    assert store.trips == [(("HINCRBY", "h", "f", 1000),)]


async def test_what_was_not_sent_is_sent_later() -> None:
    store = FlakyStore()
    outbox = Outbox(store)
    store.up = False
    outbox.count("h", "f")
    outbox.add(("SET", "a", "1"))
    await outbox.flush()
    outbox.count("h", "f")
    store.up = True
    await outbox.flush()
    assert await store.run(("HGETALL", "h"), ("GET", "a")) == [{b"f": b"2"}, b"1"]


async def test_many_commands_go_in_several_trips() -> None:
    store = FlakyStore()
    outbox = Outbox(store)
    for i in range(MOST_PER_TRIP + 1):
        outbox.add(("SET", "a", i))
    await outbox.flush()
    assert [len(trip) for trip in store.trips] == [MOST_PER_TRIP, 1]


async def test_an_outage_costs_the_oldest_commands_not_the_memory() -> None:
    store = FlakyStore()
    outbox = Outbox(store)
    store.up = False
    for i in range(MOST_PENDING + 10):
        outbox.add(("SET", "a", i))
    await outbox.flush()
    outbox.count("h", "f")
    await outbox.flush()
    store.up = True
    await outbox.flush()
    sent = [command for trip in store.trips for command in trip]
    assert len(sent) == MOST_PENDING
    assert sent[-1] == ("SET", "a", MOST_PENDING + 9)


class SlowStore(FlakyStore):
    """Answers once it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.asked = asyncio.Event()

    async def run(self, *commands: Command) -> list[object] | None:
        self.asked.set()
        await self.go.wait()
        return await super().run(*commands)


async def test_what_is_on_its_way_is_waited_for() -> None:
    store = SlowStore()
    outbox = Outbox(store)
    outbox.add(("SET", "a", "1"))
    first = asyncio.create_task(outbox.flush())
    await store.asked.wait()
    second = asyncio.create_task(outbox.flush())
    await asyncio.sleep(0)
    assert not second.done()
    store.go.set()
    await second
    assert first.done()
    assert len(store.trips) == 1


async def test_what_was_cancelled_on_its_way_is_sent_again() -> None:
    store = SlowStore()
    outbox = Outbox(store)
    outbox.add(("SET", "a", "1"))
    flushing = asyncio.create_task(outbox.flush())
    await store.asked.wait()
    flushing.cancel()
    await asyncio.gather(flushing, return_exceptions=True)
    store.go.set()
    await outbox.flush()
    assert store.trips == [(("SET", "a", "1"),)]
