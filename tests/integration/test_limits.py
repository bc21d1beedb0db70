"""Limits of a key that several gateways serve at once, and what a Redis or a gateway that fails does to them."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from router.errors import BudgetSpent, RateLimited
from router.serving.messages import Caller, Limits
from router.settings import RedisSettings
from router.state.limits import RateLimiter, spent_key
from router.state.store import Store
from tests.conftest import HANG_S, RedisServer

pytestmark = [pytest.mark.redis, pytest.mark.timeout(120)]
REPLICAS = 4

Replica = Callable[[RateLimiter], Awaitable[int]]


def on_replicas(server: RedisServer, work: Replica, count: int = REPLICAS) -> list[int]:
    """What came of the same work on several gateways at once, each with a thread, an event loop and connections of its own."""

    async def replica() -> int:
        store = Store(RedisSettings(url=server.url, timeout_s=5.0))
        try:
            return await work(RateLimiter(store))
        finally:
            await store.close()

    with ThreadPoolExecutor(count) as pool:
        return [done.result() for done in [pool.submit(asyncio.run, replica()) for _ in range(count)]]


async def until_granted(limiter: RateLimiter, caller: Caller) -> None:
    async with asyncio.timeout(HANG_S):
        while True:
            try:
                await (await limiter.admit(caller, 0, 60.0)).settle(0)
            except RateLimited:
                await asyncio.sleep(0.05)
            else:
                return


async def spent(store: Store, key_id: str) -> int:
    replies = await store.run(("GET", spent_key(key_id)))
    return int(replies[0] or 0) if replies else -1


def test_requests_of_a_minute_are_shared_exactly(redis_server: RedisServer) -> None:
    caller = Caller(key_id="k", limits=Limits(requests_per_min=300))

    async def hammer(limiter: RateLimiter) -> int:
        async def one() -> bool:
            try:
                grant = await limiter.admit(caller, 1, 60.0)
            except RateLimited:
                return False
            await grant.settle(1)
            return True

        return sum([sum(await asyncio.gather(*(one() for _ in range(20)))) for _ in range(10)])

    assert sum(on_replicas(redis_server, hammer)) == 300


def test_tokens_of_a_minute_are_shared_exactly(redis_server: RedisServer) -> None:
    caller = Caller(key_id="k", limits=Limits(tokens_per_min=5000))

    async def hammer(limiter: RateLimiter) -> int:
        dice = random.Random(0)
        used = 0
        for _ in range(150):
            tokens = dice.randint(1, 100)
            try:
                grant = await limiter.admit(caller, tokens, 60.0)
            except RateLimited:
                continue
            kept = dice.choice((0, tokens // 2, tokens))
            await grant.settle(kept)
            used += kept
        return used

    assert 4900 < sum(on_replicas(redis_server, hammer)) <= 5000


def test_requests_at_once_are_shared_exactly(redis_server: RedisServer) -> None:
    caller = Caller(key_id="k", limits=Limits(concurrency=5))
    under_way: list[int] = []
    most: list[int] = []

    async def hammer(limiter: RateLimiter) -> int:
        async def one() -> bool:
            try:
                grant = await limiter.admit(caller, 0, 60.0)
            except RateLimited:
                return False
            under_way.append(1)
            most.append(len(under_way))
            await asyncio.sleep(0.001)
            under_way.pop()
            await grant.settle(0)
            return True

        return sum([sum(await asyncio.gather(*(one() for _ in range(10)))) for _ in range(10)])

    assert sum(on_replicas(redis_server, hammer)) >= 5
    assert max(most) <= 5


def test_a_budget_is_shared_and_nothing_comes_after_it(redis_server: RedisServer) -> None:
    caller = Caller(key_id="k", limits=Limits(budget_tokens=1000))

    async def hammer(limiter: RateLimiter) -> int:
        used = 0
        for _ in range(100):
            try:
                grant = await limiter.admit(caller, 20, 60.0)
            except BudgetSpent:
                continue
            await grant.settle(10)
            used += 10
        return used

    assert 980 <= sum(on_replicas(redis_server, hammer)) <= 1000

    async def again(limiter: RateLimiter) -> int:
        with pytest.raises(BudgetSpent):
            await limiter.admit(caller, 0, 60.0)
        return 0

    on_replicas(redis_server, again)


HOLDER = """
import asyncio, sys
from router.serving.messages import Caller, Limits
from router.settings import RedisSettings
from router.state.limits import RateLimiter
from router.state.store import Store

async def hold():
    limiter = RateLimiter(Store(RedisSettings(url=sys.argv[1], timeout_s=5.0)))
    for _ in range(3):
        await limiter.admit(Caller(key_id="k", limits=Limits(concurrency=3)), 0, 3.0)
    print("held", flush=True)
    await asyncio.sleep(600)

asyncio.run(hold())
"""


def test_leases_of_a_killed_gateway_end(redis_server: RedisServer) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, redis_server.url], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    holder.kill()
    holder.wait()
    holder.stdout.close()
    caller = Caller(key_id="k", limits=Limits(concurrency=3))

    async def take_over(limiter: RateLimiter) -> int:
        with pytest.raises(RateLimited):
            await limiter.admit(caller, 0, 60.0)
        await until_granted(limiter, caller)
        return 0

    on_replicas(redis_server, take_over, 1)


def test_a_frozen_redis_leaves_the_limits_to_the_gateway_and_learns_what_was_used(redis_server: RedisServer) -> None:
    caller = Caller(key_id="k", limits=Limits(requests_per_min=10, budget_tokens=1000))
    assert redis_server.process is not None
    pid = redis_server.process.pid

    async def live_through() -> None:
        store = Store(RedisSettings(url=redis_server.url, timeout_s=0.2, retry_after_s=0.1))
        limiter = RateLimiter(store)
        grants = [await limiter.admit(caller, 100, 60.0) for _ in range(4)]
        os.kill(pid, signal.SIGSTOP)
        try:
            grants += [await limiter.admit(caller, 100, 60.0) for _ in range(5)]
            for grant in grants[:6]:
                await grant.settle(50)
            grants.append(await limiter.admit(caller, 0, 60.0))
            with pytest.raises(RateLimited, match="10 in a minute"):  # those that Redis granted count
                await limiter.admit(caller, 0, 60.0)
        finally:
            os.kill(pid, signal.SIGCONT)
        async with asyncio.timeout(HANG_S):
            while await store.run(("PING",)) is None:
                await asyncio.sleep(0.05)
            for grant in grants[6:]:
                await grant.settle(50)
            while await spent(store, "k") != 500:  # all that was used, each once
                await grants[0].settle(50)
                await asyncio.sleep(0.05)
        await store.close()

    asyncio.run(live_through())


def test_a_spent_budget_stays_spent_while_redis_is_gone(redis_server: RedisServer) -> None:
    caller = Caller(key_id="k", limits=Limits(budget_tokens=100))

    async def live_through() -> None:
        store = Store(RedisSettings(url=redis_server.url, timeout_s=0.2, retry_after_s=60.0))
        limiter = RateLimiter(store)
        await (await limiter.admit(caller, 10, 60.0)).settle(100)
        redis_server.kill()
        for _ in range(10):
            with pytest.raises(BudgetSpent):
                await limiter.admit(caller, 10, 60.0)
        assert store.state == "down"
        await store.close()

    asyncio.run(live_through())


def test_a_restarted_redis_is_given_the_script_again(redis_server: RedisServer) -> None:
    caller = Caller(key_id="k", limits=Limits(requests_per_min=2))

    async def live_through() -> None:
        store = Store(RedisSettings(url=redis_server.url, timeout_s=5.0, retry_after_s=0.05))
        limiter = RateLimiter(store)
        await (await limiter.admit(caller, 0, 60.0)).settle(0)
        redis_server.kill()
        redis_server.start()
        async with asyncio.timeout(HANG_S):
            while await store.run(("PING",)) is None:
                await asyncio.sleep(0.05)
        failures = store.failures
        grant = await limiter.admit(caller, 0, 60.0)
        assert grant.headers["x-ratelimit-remaining-requests"] == "1", "this Redis has seen none before"
        assert store.failures == failures
        await store.close()

    asyncio.run(live_through())
