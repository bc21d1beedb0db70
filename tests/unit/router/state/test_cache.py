from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.serving.messages import Answer, Ask, Decision, Usage
from router.settings import CacheSettings, RedisSettings
from router.state.cache import AnswerCache, cache_key, fingerprint
from router.state.store import Store

pytestmark = pytest.mark.anyio

ASK = Ask(request_id="r", model="draftgate", messages=({"role": "user", "content": "hello"},))
ANSWER = Answer(
    text="hi",
    finish_reason="stop",
    usage=Usage(prompt_tokens=1, completion_tokens=1),
    decision=Decision(route="draft", reason="accepted"),
)


def but(**changes: Any) -> Ask:
    return msgspec.structs.replace(ASK, **changes)


@pytest.fixture
async def store(redis_settings: RedisSettings) -> AsyncIterator[Store]:
    store = Store(redis_settings)
    yield store
    await store.close()


def caches(store: Store, count: int = 2, **settings: int) -> list[AnswerCache]:
    """As many gateways would have on one Redis."""
    return [AnswerCache(store, CacheSettings(**settings), "n") for _ in range(count)]


async def test_an_answer_is_found_here_and_by_others(store: Store) -> None:
    here, there = caches(store)
    assert await here.get(ASK) is None
    await here.put(ASK, ANSWER)
    assert await here.get(ASK) == ANSWER
    assert await there.get(ASK) == ANSWER


async def test_entries_expire_in_redis(store: Store) -> None:
    (cache,) = caches(store, 1, ttl_s=1000)
    await cache.put(ASK, ANSWER)
    assert await store.run(("EXPIRE", cache_key("n", ASK), 0)) == [True]
    (other,) = caches(store, 1)
    assert await other.get(ASK) is None


@pytest.mark.parametrize("ask", [but(use_cache=False), but(temperature=0.5)])
async def test_what_must_not_be_reused_is_neither_kept_nor_found(store: Store, ask: Ask) -> None:
    here, there = caches(store)
    await here.put(ask, ANSWER)
    assert await there.get(msgspec.structs.replace(ask, use_cache=True, temperature=0.0)) is None
    await here.put(ASK, ANSWER)
    assert await here.get(ask) is None


async def test_a_seeded_sample_is_kept(store: Store) -> None:
    (cache,) = caches(store, 1)
    await cache.put(but(temperature=0.5, seed=1), ANSWER)
    assert await cache.get(but(temperature=0.5, seed=1)) == ANSWER
    assert await cache.get(but(temperature=0.5, seed=2)) is None


async def test_long_answers_are_not_kept(store: Store) -> None:
    here, there = caches(store, max_entry_bytes=1000)
    long = msgspec.structs.replace(ANSWER, text="x" * 1000)
    await here.put(ASK, long)
    assert await here.get(ASK) is None
    assert await there.get(ASK) is None


async def test_an_entry_of_another_version_is_a_miss(store: Store) -> None:
    (cache,) = caches(store, 1)
    await store.run(("SET", cache_key("n", ASK), b"\xc1 not ours"))
    assert await cache.get(ASK) is None


async def test_without_redis_the_local_cache_serves() -> None:
    gone = Store(RedisSettings(url="unix:///nowhere.sock"))
    (cache,) = caches(gone, 1)
    await cache.put(ASK, ANSWER)
    assert await cache.get(ASK) == ANSWER


async def test_local_entries_expire_too() -> None:
    now = 0.0
    gone = Store(RedisSettings(url="unix:///nowhere.sock"))
    cache = AnswerCache(gone, CacheSettings(ttl_s=10), "n", clock=lambda: now)
    await cache.put(ASK, ANSWER)
    now = 10.0
    assert await cache.get(ASK) is None


async def test_the_local_cache_is_bounded_and_drops_what_was_not_used_longest() -> None:
    gone = Store(RedisSettings(url="unix:///nowhere.sock"))
    size = len(msgspec.msgpack.encode(ANSWER))
    (cache,) = caches(gone, 1, local_bytes=size * 3)
    asks = [but(seed=seed) for seed in range(4)]
    for ask in asks[:3]:
        await cache.put(ask, ANSWER)
    await cache.get(asks[0])
    await cache.put(asks[3], ANSWER)
    found = [await cache.get(ask) is not None for ask in asks]
    assert found == [True, False, True, True]


@pytest.mark.parametrize(
    "other",
    [
        but(wanted="draft"),
        but(max_tokens=5),
        but(temperature=0.1),
        but(top_p=0.9),
        but(seed=0),
        but(stop=("x",)),
        but(max_steps=3),
        but(messages=({"role": "system", "content": "hello"},)),
        but(messages=({"role": "user", "content": "hello "},)),
        but(messages=ASK.messages * 2),
    ],
)
def test_everything_that_can_change_an_answer_is_in_the_key(other: Ask) -> None:
    assert cache_key("n", other) != cache_key("n", ASK)


def test_models_and_policy_are_in_the_key_and_the_request_id_is_not() -> None:
    assert cache_key("other", ASK) != cache_key("n", ASK)
    assert cache_key("n", but(request_id="other")) == cache_key("n", ASK)


def test_the_key_shows_nothing_of_the_prompt() -> None:
    key = cache_key("n", but(messages=({"role": "user", "content": "canary"},)))
    assert "canary" not in key
    assert len(key) < 100


@given(st.lists(st.lists(st.text(max_size=3), max_size=3), min_size=2, max_size=2))
def test_lists_never_run_together(pair: list[list[str]]) -> None:
    one, two = pair
    assert (fingerprint(one) == fingerprint(two)) == (one == two)
