"""The cache and its flights on a Redis that freezes, dies, comes back empty. Nothing fails, and nothing waits for longer than for a timeout."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

import msgspec
import pytest

from router.serving.messages import Ask, Kept
from router.settings import CacheSettings, PrivacySettings, RedisSettings, Settings
from router.state.cache import AnswerCache
from router.state.decisions import DecisionLog
from router.state.outbox import Outbox
from router.state.store import FAILURES_TO_OPEN, Store
from tests.conftest import Gateway, RedisServer

pytestmark = [pytest.mark.anyio, pytest.mark.redis, pytest.mark.timeout(60)]

ASK = Ask(request_id="r", model="draftgate", messages=({"role": "user", "content": "hello"},))
KEPT = Kept(request_id="r", complexity=None, complexity_version="")
PATIENT_S = 50.0


def named(name: str) -> Ask:
    return msgspec.structs.replace(ASK, messages=({"role": "user", "content": name},))


def always(_: Kept) -> bool:
    return True


@contextmanager
def frozen(server: RedisServer) -> Iterator[None]:
    """It takes connections and commands, and answers nothing."""
    assert server.process is not None
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.process.pid, signal.SIGCONT)


class Cached:
    """The part of a gateway that keeps answers."""

    def __init__(self, server: RedisServer, timeout_s: float = 5.0, retry_after_s: float = 60.0) -> None:
        self.store = Store(RedisSettings(url=server.url, timeout_s=timeout_s, retry_after_s=retry_after_s))
        self.outbox = Outbox(self.store)
        self.cache = AnswerCache(self.store, self.outbox, CacheSettings(), "n")

    async def ask(self, ask: Ask = ASK) -> bool:
        """Answer a request; tell whether it had to be worked out."""
        async with self.cache.board(ask, always, PATIENT_S) as flight:
            if flight.leads:
                await flight.land(KEPT)
            return flight.leads


@pytest.fixture
async def hasty(redis_server: RedisServer) -> AsyncIterator[Cached]:
    gateway = Cached(redis_server, timeout_s=0.05)
    await gateway.store.run(("PING",))
    yield gateway
    await gateway.store.close()


@pytest.fixture
async def two(redis_server: RedisServer) -> AsyncIterator[list[Cached]]:
    gateways = [Cached(redis_server), Cached(redis_server)]
    yield gateways
    for gateway in gateways:
        await gateway.store.close()


async def test_a_frozen_redis_costs_a_request_two_timeouts_and_soon_none(
    hasty: Cached, redis_server: RedisServer
) -> None:
    with frozen(redis_server):
        assert await hasty.ask(named("0"))
        assert hasty.store.failures == 2  # looking it up and keeping it; there is no lease to give back
        for number in range(1, 10):
            assert await hasty.ask(named(str(number)))
        assert hasty.store.failures == FAILURES_TO_OPEN
        assert [await hasty.ask(named(str(number))) for number in range(10)] == [False] * 10  # kept here


async def test_equal_requests_share_a_flight_while_redis_is_frozen(hasty: Cached, redis_server: RedisServer) -> None:
    with frozen(redis_server):
        led = await asyncio.gather(*(hasty.ask() for _ in range(20)))
    assert sum(led) == 1


async def test_a_redis_that_freezes_in_mid_flight_holds_nobody_up(hasty: Cached, redis_server: RedisServer) -> None:
    async with hasty.cache.board(ASK, always, PATIENT_S) as flight:
        assert flight.leads
        with frozen(redis_server):
            await flight.land(KEPT)
    assert not await hasty.ask()


async def test_deleting_from_a_frozen_redis_does_not_pretend(hasty: Cached, redis_server: RedisServer) -> None:
    await hasty.ask()
    log = DecisionLog(hasty.store, hasty.outbox, PrivacySettings())
    with frozen(redis_server):
        assert await hasty.cache.forget("", "r") is None
        assert await log.forget("", "r") is None
    assert not await hasty.ask()


async def test_what_was_kept_while_redis_was_frozen_can_be_deleted_afterwards(
    hasty: Cached, redis_server: RedisServer
) -> None:
    with frozen(redis_server):
        assert await hasty.ask()
        assert not await hasty.ask()
    assert await hasty.cache.forget("", "r")
    assert await hasty.ask()


async def test_one_who_waits_for_another_gateway_goes_on_alone_when_redis_dies(
    two: list[Cached], redis_server: RedisServer
) -> None:
    here, there = two
    async with here.cache.board(ASK, always, PATIENT_S) as flight:
        assert flight.leads
        waiting = asyncio.create_task(there.ask())
        await asyncio.sleep(0.2)
        assert not waiting.done()
        redis_server.kill()
        assert await waiting
        await flight.land(KEPT)
    assert not await here.ask()


async def test_a_redis_that_comes_back_empty_is_filled_again(redis_server: RedisServer) -> None:
    here, there = (Cached(redis_server, retry_after_s=0.01) for _ in range(2))
    assert await here.ask()
    redis_server.kill()
    while here.store.state != "down":
        assert await here.ask(named(str(here.store.failures)))
    redis_server.start()
    while here.store.state == "down":
        await here.store.run(("PING",))
    assert await here.ask(named("back"))
    assert not await there.ask(named("back"))
    assert await there.ask()  # what was kept before the restart is gone there
    await here.store.close()
    await there.store.close()


def test_freezing_redis_in_mid_traffic_fails_no_request(
    make_gateway: Callable[[Gateway], Gateway], redis_server: RedisServer
) -> None:
    settings = Settings(redis=RedisSettings(url=redis_server.url, timeout_s=0.05, retry_after_s=0.5))
    gateway = make_gateway(Gateway(settings))

    def ask(text: str) -> int:
        body = {"model": "draftgate", "messages": [{"role": "user", "content": text}]}
        return gateway.http.post("/v1/chat/completions", json=body).status_code

    statuses = [ask(f"before {i}") for i in range(5)]
    with frozen(redis_server):
        statuses += [ask(f"frozen {i}") for i in range(20)]
        assert gateway.http.get("/health/ready").json()["redis"] == "down"
    statuses += [ask(f"after {i}") for i in range(5)]
    assert statuses == [200] * 30
