"""Equal requests at the same time. `gateways` are caches on one Redis, as processes of their own would have."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import msgspec
import pytest

from router.serving.messages import BACKGROUND, Ask, Kept
from router.settings import CacheSettings, RedisSettings
from router.state import flights
from router.state.cache import AnswerCache, cache_key
from router.state.outbox import Outbox
from router.state.store import Store

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

ASK = Ask(request_id="r", model="draftgate", messages=({"role": "user", "content": "hello"},))
LEASE = f"draftgate:flight:{cache_key('n', ASK)}"
PATIENT_S = 50.0


def kept(name: str) -> Kept:
    return Kept(request_id=name, complexity=None, complexity_version="")


def always(_: Kept) -> bool:
    return True


class Gateways:
    """Caches with stores of their own."""

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        self.stores: list[Store] = []

    def add(self, **settings: Any) -> AnswerCache:
        store = Store(self._settings)
        self.stores.append(store)
        return AnswerCache(store, Outbox(store), CacheSettings(**settings), "n")


@pytest.fixture
async def gateways(request: pytest.FixtureRequest) -> AsyncIterator[Gateways]:
    made = Gateways(RedisSettings(url=request.getfixturevalue("redis_server").url, timeout_s=5.0))
    yield made
    for store in made.stores:
        await store.close()


@pytest.fixture(params=["embedded", "away", pytest.param("redis", marks=pytest.mark.redis)])
async def cache(request: pytest.FixtureRequest) -> AsyncIterator[AnswerCache]:
    """What holds in one process holds with and without Redis."""
    urls = {"embedded": None, "away": "unix:///nowhere.sock"}
    url = urls[request.param] if request.param in urls else request.getfixturevalue("redis_server").url
    made = Gateways(RedisSettings(url=url, timeout_s=5.0))
    yield made.add()
    await made.stores[0].close()


class Work:
    """What is to be done once: counts how often it is, and waits until it is let go on."""

    def __init__(self) -> None:
        self.runs = 0
        self.begun = asyncio.Event()
        self.go = asyncio.Event()

    async def request(
        self, cache: AnswerCache, name: str = "r", enough: Callable[[Kept], bool] = always, wait_s: float = PATIENT_S
    ) -> str:
        async with cache.board(msgspec.structs.replace(ASK, request_id=name), enough, wait_s) as flight:
            if not flight.leads:
                assert flight.kept is not None
                return flight.kept.request_id
            self.runs += 1
            self.begun.set()
            await self.go.wait()
            await flight.land(kept(name))
            return name

    def start(self, cache: AnswerCache, count: int, **options: Any) -> list[asyncio.Task[str]]:
        return [asyncio.create_task(self.request(cache, f"r{i}", **options)) for i in range(count)]


def nothing_left(cache: AnswerCache) -> bool:
    lines, held = cache._lines._lines, cache._leases._held
    return not lines and not held


async def others_wait() -> None:
    """Let everybody else come as far as they can without news."""
    for _ in range(20):
        await asyncio.sleep(0.005)


async def test_equal_requests_are_worked_out_once(cache: AnswerCache) -> None:
    work = Work()
    tasks = work.start(cache, 50)
    await others_wait()
    assert work.runs == 1
    work.go.set()
    assert set(await asyncio.gather(*tasks)) == {"r0"}
    assert work.runs == 1
    assert nothing_left(cache)


async def test_other_requests_do_not_wait(cache: AnswerCache) -> None:
    work = Work()
    tasks = work.start(cache, 2)
    async with cache.board(msgspec.structs.replace(ASK, tenant="other"), always, PATIENT_S) as flight:
        assert flight.leads
    work.go.set()
    await asyncio.gather(*tasks)


async def test_who_is_waited_for_never_waits_for_one_that_nobody_waits_for(cache: AnswerCache) -> None:
    background = msgspec.structs.replace(ASK, request_id="batch", priority=BACKGROUND)
    async with cache.board(background, always, PATIENT_S) as slow:
        assert slow.leads
        async with cache.board(ASK, always, PATIENT_S) as flight:
            assert flight.leads
            await flight.land(kept("r"))
        await slow.land(kept("batch"))
    async with cache.board(background, always, PATIENT_S) as again:
        assert again.kept == kept("batch")
        assert not again.leads
    assert nothing_left(cache)


async def test_what_is_not_kept_waits_for_nobody(cache: AnswerCache) -> None:
    ask = msgspec.structs.replace(ASK, cache=False)
    async with cache.board(ask, always, PATIENT_S) as one, cache.board(ask, always, PATIENT_S) as other:
        assert one.leads
        assert other.leads
        await one.land(kept("one"))
        await other.land(kept("other"))
    async with cache.board(ASK, always, PATIENT_S) as flight:
        assert flight.kept is None


async def test_a_leader_that_is_cancelled_makes_room_for_the_next(cache: AnswerCache) -> None:
    work = Work()
    tasks = work.start(cache, 5)
    await work.begun.wait()
    for number in range(3):
        await others_wait()
        assert work.runs == number + 1
        tasks[number].cancel()
    await others_wait()
    work.go.set()
    assert await asyncio.gather(*tasks[3:]) == ["r3", "r3"]
    assert work.runs == 4
    assert nothing_left(cache)


async def test_a_leader_that_fails_makes_room_for_the_next(cache: AnswerCache) -> None:
    async def failing() -> None:
        async with cache.board(ASK, always, PATIENT_S) as flight:
            assert flight.leads
            await others_wait()
            raise RuntimeError("engine")

    work = Work()
    work.go.set()
    results = await asyncio.gather(failing(), work.request(cache, "next"), return_exceptions=True)
    assert isinstance(results[0], RuntimeError)
    assert results[1] == "next"
    assert nothing_left(cache)


async def test_a_generator_closed_between_two_events_makes_room_for_the_next(cache: AnswerCache) -> None:
    async def events() -> AsyncGenerator[int, None]:
        async with cache.board(ASK, always, PATIENT_S) as flight:
            assert flight.leads
            yield 1
            yield 2

    work = Work()
    work.go.set()
    async with aclosing(events()) as answer:
        assert await anext(answer) == 1
        tasks = work.start(cache, 2)
        await others_wait()
        assert work.runs == 0
    assert await asyncio.gather(*tasks) == ["r0", "r0"]
    assert nothing_left(cache)


async def test_those_who_wait_may_leave(cache: AnswerCache) -> None:
    work = Work()
    tasks = work.start(cache, 10)
    await others_wait()
    for task in tasks[1:9]:
        task.cancel()
    tasks[0].cancel()  # at the same moment, so that those who are woken are already gone
    await others_wait()
    work.go.set()
    assert await tasks[9] == "r9"
    assert work.runs == 2
    assert nothing_left(cache)


async def test_one_who_waited_half_its_time_goes_on_alone(cache: AnswerCache) -> None:
    slow, quick = Work(), Work()
    quick.go.set()
    (leader,) = slow.start(cache, 1)
    await slow.begun.wait()
    assert await quick.request(cache, "alone", wait_s=0.2) == "alone"
    assert not leader.done()
    slow.go.set()
    await leader
    assert nothing_left(cache)


async def test_what_is_too_long_to_be_kept_is_shared_all_the_same() -> None:
    cache = Gateways(RedisSettings()).add(max_entry_bytes=1)
    work = Work()
    tasks = work.start(cache, 5)
    await others_wait()
    work.go.set()
    assert set(await asyncio.gather(*tasks)) == {"r0"}
    assert await work.request(cache, "later") == "later"


async def test_those_for_whom_it_is_not_enough_lead_one_after_the_other(cache: AnswerCache) -> None:
    work = Work()
    lenient, strict = work.start(cache, 2), work.start(cache, 3, enough=lambda known: known.complexity_version == "s")

    async def landing_more() -> str:
        async with cache.board(ASK, lambda known: known.complexity_version == "s", PATIENT_S) as flight:
            assert flight.leads
            assert flight.kept == kept("r0")
            await flight.land(msgspec.structs.replace(kept("more"), complexity_version="s"))
            return "more"

    await others_wait()
    for task in strict:
        task.cancel()
    more = [asyncio.create_task(landing_more()), work.start(cache, 1, enough=lambda k: k.complexity_version == "s")[0]]
    await others_wait()
    work.go.set()
    assert await asyncio.gather(*lenient, *more) == ["r0", "r0", "more", "more"]
    assert work.runs == 1


@pytest.mark.redis
async def test_two_gateways_work_equal_requests_out_once(gateways: Gateways) -> None:
    work = Work()
    caches = [gateways.add(), gateways.add()]
    tasks = [task for cache in caches for task in work.start(cache, 25)]
    await work.begun.wait()
    await others_wait()
    assert work.runs == 1
    work.go.set()
    assert set(await asyncio.gather(*tasks)) == {"r0"}
    assert work.runs == 1
    assert all(nothing_left(cache) for cache in caches)
    assert await gateways.stores[0].run(("GET", LEASE)) == [None]


@pytest.mark.redis
async def test_a_gateway_that_dies_is_followed_by_another(gateways: Gateways) -> None:
    """Its lease is all that is left of it."""
    here = gateways.add()
    assert await gateways.stores[0].run(("SET", LEASE, "dead", "NX", "EX", 1)) == [True]
    work = Work()
    work.go.set()
    assert await work.request(here, "next") == "next"


@pytest.mark.redis
async def test_a_leader_that_is_cancelled_gives_its_lease_back(gateways: Gateways) -> None:
    here, there = gateways.add(), gateways.add()
    work = Work()
    (leader,) = work.start(here, 1)
    await work.begun.wait()
    (follower,) = work.start(there, 1)
    await others_wait()
    assert work.runs == 1
    leader.cancel()
    await asyncio.gather(leader, return_exceptions=True)
    work.go.set()
    assert await follower == "r0"
    assert work.runs == 2


@pytest.mark.redis
async def test_a_lease_lasts_as_long_as_its_holder_says_so(gateways: Gateways) -> None:
    here = gateways.add()
    work = Work()
    (leader,) = work.start(here, 1)
    await work.begun.wait()
    store = gateways.stores[0]
    await store.run(("EXPIRE", LEASE, 1))
    await here.watch("-")
    left = await store.run(("PTTL", LEASE))
    assert left is not None
    assert 1000 < left[0] <= flights.LEASE_S * 1000
    work.go.set()
    await leader


@pytest.mark.redis
async def test_a_lease_that_was_lost_is_not_taken_from_its_new_holder(gateways: Gateways) -> None:
    here = gateways.add()
    work = Work()
    (leader,) = work.start(here, 1)
    await work.begun.wait()
    await gateways.stores[0].run(("SET", LEASE, "another's", "EX", 60))
    work.go.set()
    await leader
    assert await gateways.stores[0].run(("GET", LEASE)) == [b"another's"]


@pytest.mark.redis
@pytest.mark.parametrize("carried_out", [True, False])
async def test_a_request_that_is_cancelled_as_it_takes_a_lease_leaves_none(
    gateways: Gateways, monkeypatch: pytest.MonkeyPatch, carried_out: bool
) -> None:
    here = gateways.add()
    store = gateways.stores[0]
    asked, run = asyncio.Event(), store.run

    async def hanging(*commands: Any) -> Any:
        if carried_out:
            await run(*commands)
        asked.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(store, "run", hanging)
    task = asyncio.create_task(Work().request(here))
    await asked.wait()
    monkeypatch.setattr(store, "run", run)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert nothing_left(here)
    assert await store.run(("GET", LEASE)) == [None]


async def test_any_order_of_coming_leaving_and_failing_leaves_nothing_behind(cache: AnswerCache) -> None:
    """Requests are cancelled at every point that a request can be at: after so many turns of the event loop."""
    for turns in range(40):
        work = Work()
        tasks = work.start(cache, 4, enough=lambda _: False)
        for _ in range(turns):
            await asyncio.sleep(0)
        tasks[turns % 3].cancel()
        work.go.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(result, str) for result in results) >= 3
        assert nothing_left(cache)
