"""One contract, two backends: what the embedded Redis answers, a real Redis 7.0 answers too."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from router.settings import RedisSettings
from router.state.store import ALLOWED, FAILURES_TO_OPEN, Breaker, Store

pytestmark = pytest.mark.anyio


@pytest.fixture
async def store(redis_settings: RedisSettings) -> AsyncIterator[Store]:
    store = Store(redis_settings)
    yield store
    await store.close()


@pytest.fixture
def frozen_redis(tmp_path: Path) -> Iterator[RedisSettings]:
    """A server that takes connections and never answers."""
    path = str(tmp_path / "frozen.sock")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(64)
        yield RedisSettings(url=f"unix://{path}", timeout_s=0.05, retry_after_s=60.0)


async def test_every_allowed_command_answers_the_same_on_both(store: Store) -> None:
    commands = {
        "PING": ("PING",),
        "SET": ("SET", "a", b"\x00\xff", "EX", 60),
        "GET": ("GET", "a"),
        "DEL": ("DEL", "a"),
        "HINCRBY": ("HINCRBY", "h", "f", 2),
        "EXPIRE": ("EXPIRE", "h", 60),
        "HGETALL": ("HGETALL", "h"),
        "XADD": ("XADD", "s", "MAXLEN", "~", 10, "1-1", "f", b"v"),
        "XREVRANGE": ("XREVRANGE", "s", "+", "-", "COUNT", 5),
        "XRANGE": ("XRANGE", "s", "(1-0", "+"),
        "XTRIM": ("XTRIM", "s", "MINID", "=", 2),
        "XDEL": ("XDEL", "s", "1-1"),
        "PTTL": ("PTTL", "missing"),
        "DBSIZE": ("DBSIZE",),
    }
    assert set(commands) == ALLOWED
    replies = await store.run(*commands.values())
    assert replies == [
        True,
        True,
        b"\x00\xff",
        1,
        2,
        True,
        {b"f": b"2"},
        b"1-1",
        [(b"1-1", {b"f": b"v"})],
        [(b"1-1", {b"f": b"v"})],
        1,
        0,
        -2,
        2,
    ]


async def test_a_missing_key_is_none(store: Store) -> None:
    assert await store.run(("GET", "missing")) == [None]


async def test_commands_beyond_redis_7_0_are_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="HEXPIRE"):
        await store.run(("HEXPIRE", "h", 1, "FIELDS", 1, "f"))


async def test_nothing_to_do_is_no_round_trip(store: Store) -> None:
    assert await store.run() == []


async def test_embedded_stores_share_nothing() -> None:
    one, two = Store(RedisSettings()), Store(RedisSettings())
    await one.run(("SET", "a", "1"))
    assert await two.run(("GET", "a")) == [None]
    assert one.state == "embedded"


async def test_a_redis_that_is_gone_answers_none_and_is_counted() -> None:
    store = Store(RedisSettings(url="unix:///nowhere.sock", retry_after_s=60.0))
    for _ in range(FAILURES_TO_OPEN + 3):
        assert await store.run(("PING",)) is None
    assert store.state == "down"
    assert store.failures == FAILURES_TO_OPEN
    await store.close()


async def test_a_frozen_redis_opens_the_breaker(frozen_redis: RedisSettings) -> None:
    store = Store(frozen_redis)
    for _ in range(FAILURES_TO_OPEN + 3):
        assert await store.run(("GET", "a")) is None
    assert store.state == "down"
    assert store.failures == FAILURES_TO_OPEN
    await store.close()


async def test_more_calls_at_once_than_connections_all_answer(store: Store) -> None:
    replies = await asyncio.gather(*(store.run(("PING",)) for _ in range(200)))
    assert replies == [[True]] * 200
    assert store.failures == 0


class TestBreaker:
    def test_it_opens_after_failures_in_a_row_only(self) -> None:
        breaker = Breaker(5.0, clock=lambda: 0.0)
        for _ in range(FAILURES_TO_OPEN - 1):
            breaker.record(ok=False)
        breaker.record(ok=True)
        for _ in range(FAILURES_TO_OPEN - 1):
            breaker.record(ok=False)
        assert breaker.allows()
        breaker.record(ok=False)
        assert not breaker.allows()

    def test_while_open_one_call_per_period_tries_again(self) -> None:
        now = 0.0
        breaker = Breaker(5.0, clock=lambda: now)
        for _ in range(FAILURES_TO_OPEN):
            breaker.record(ok=False)
        now = 5.0
        assert [breaker.allows() for _ in range(3)] == [True, False, False]
        breaker.record(ok=False)
        assert not breaker.allows()
        now = 10.0
        assert breaker.allows()
        breaker.record(ok=True)
        assert [breaker.allows() for _ in range(3)] == [True, True, True]


async def test_a_cancellation_is_never_lost() -> None:
    """The client under it may lose one that comes together with a reply."""
    store = Store(RedisSettings())
    for turns in (1, 2, 3) * 10:
        task = asyncio.create_task(store.run(*[("XADD", "s", "MAXLEN", "~", 10, "*", "f", b"v")] * 100))
        for _ in range(turns):
            await asyncio.sleep(0)
        if task.cancel():
            with pytest.raises(asyncio.CancelledError):
                await task
