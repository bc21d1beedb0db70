import logging
import math
import random
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.serving.messages import Answer, AnswerChoice, Ask, Decision, Kept, Usage
from router.settings import CacheSettings, RedisSettings
from router.state.cache import KEYED, NOT_KEYED, AnswerCache, cache_key, entry_key, fingerprint
from router.state.local import OVERHEAD, LocalCache
from router.state.outbox import Outbox
from router.state.store import Store

pytestmark = pytest.mark.anyio

ASK = Ask(request_id="r", model="draftgate", messages=({"role": "user", "content": "hello"},))
ANSWER = Answer(
    choices=(AnswerChoice(text="hi", finish_reason="stop"),),
    usage=Usage(prompt_tokens=1, completion_tokens=1),
    decision=Decision(route="direct", reason="complexity"),
)
KEPT = Kept(request_id="r", complexity=0.5, complexity_version="c", refined=ANSWER)
GONE = RedisSettings(url="unix:///nowhere.sock")


def but(**changes: Any) -> Ask:
    return msgspec.structs.replace(ASK, **changes)


def said(*contents: str) -> Ask:
    return but(messages=tuple({"role": "user", "content": content} for content in contents))


def always(_: Kept) -> bool:
    return True


def never(_: Kept) -> bool:
    return False


def cache_on(store: Store, **settings: Any) -> AnswerCache:
    return AnswerCache(store, Outbox(store), CacheSettings(**settings), "n")


async def look(cache: AnswerCache, ask: Ask = ASK) -> Kept | None:
    """What is known, and nothing found out."""
    async with cache.board(ask, always, 1.0) as flight:
        return flight.kept


async def keep(cache: AnswerCache, ask: Ask = ASK, kept: Kept = KEPT) -> None:
    async with cache.board(ask, never, 1.0) as flight:
        assert flight.leads
        await flight.land(kept)


@pytest.fixture
async def store(redis_settings: RedisSettings) -> AsyncIterator[Store]:
    store = Store(redis_settings)
    yield store
    await store.close()


@pytest.fixture
async def shared(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """A real Redis."""
    store = Store(RedisSettings(url=request.getfixturevalue("redis_server").url, timeout_s=5.0))
    yield store
    await store.close()


async def test_what_was_found_out_is_found_again(store: Store) -> None:
    cache = cache_on(store)
    assert await look(cache) is None
    await keep(cache)
    assert await look(cache) == KEPT


@pytest.mark.redis
async def test_others_find_it_too_and_for_no_longer(shared: Store) -> None:
    await keep(cache_on(shared))
    now = 0.0
    there = AnswerCache(shared, Outbox(shared), CacheSettings(), "n", clock=lambda: now)
    await shared.run(("EXPIRE", entry_key(cache_key("n", ASK)), 100))
    assert await look(there) == KEPT
    await shared.run(("DEL", entry_key(cache_key("n", ASK))))
    now = 99.0
    assert await look(there) == KEPT
    now = 100.0
    assert await look(there) is None


async def test_what_is_not_enough_goes_along(store: Store) -> None:
    cache = cache_on(store)
    await keep(cache)
    async with cache.board(ASK, never, 1.0) as flight:
        assert flight.leads
        assert flight.kept == KEPT


@pytest.mark.parametrize(
    ("mode", "asked", "temperature", "kept"),
    [
        ("deterministic", None, 0.0, True),
        ("deterministic", None, 0.5, False),
        ("deterministic", True, 0.5, True),
        ("deterministic", False, 0.0, False),
        ("all", None, 0.5, True),
        ("all", False, 0.0, False),
        ("nothing", None, 0.0, False),
        ("nothing", True, 0.5, True),
        ("nothing", False, 0.0, False),
    ],
)
async def test_what_may_be_kept(mode: str, asked: bool | None, temperature: float, kept: bool) -> None:
    store = Store(RedisSettings())
    cache, ask = cache_on(store, keep=mode), but(cache=asked, temperature=temperature)
    await keep(cache, ask)
    assert (await look(cache, ask) is not None) == kept
    if not kept:  # nor is it read
        await keep(cache, but(cache=True, temperature=temperature))
        assert await look(cache, ask) is None


async def test_a_seeded_sample_is_kept(store: Store) -> None:
    cache = cache_on(store)
    await keep(cache, but(temperature=0.5, seed=1))
    assert await look(cache, but(temperature=0.5, seed=1)) == KEPT
    assert await look(cache, but(temperature=0.5, seed=2)) is None


async def test_what_is_too_long_is_not_kept(store: Store) -> None:
    here, there = cache_on(store, max_entry_bytes=1000), cache_on(store)
    await keep(here, kept=msgspec.structs.replace(KEPT, complexity_version="x" * 1000))
    assert await look(here) is None
    assert await look(there) is None


@pytest.mark.redis
async def test_an_entry_that_is_not_ours_is_a_miss(shared: Store) -> None:
    await shared.run(("SET", entry_key(cache_key("n", ASK)), b"\xc1 not ours", "EX", 60))
    assert await look(cache_on(shared)) is None


async def test_without_redis_the_local_cache_serves() -> None:
    cache = cache_on(Store(GONE))
    await keep(cache)
    assert await look(cache) == KEPT


async def test_local_entries_expire() -> None:
    now = 0.0
    store = Store(GONE)
    cache = AnswerCache(store, Outbox(store), CacheSettings(ttl_s=10), "n", clock=lambda: now)
    await keep(cache)
    now = 10.0
    assert await look(cache) is None


def test_the_local_cache_is_bounded_and_drops_what_was_not_used_longest() -> None:
    local = LocalCache(3 * (10 + OVERHEAD), clock=lambda: 0.0)
    for key in "abc":
        local.put(key, b"x" * 10, 1.0)
    local.put("a", b"y" * 10, 1.0)  # in place of the old one
    local.get("b")
    local.put("d", b"x" * 10, 1.0)
    assert [local.get(key) is not None for key in "abcd"] == [True, True, False, True]
    local.put("big", b"x" * 1000, 1.0)
    assert [local.get(key) for key in ("a", "b", "d", "big")] == [None] * 4


# deletion


async def test_a_deletion_reaches_what_a_request_made_or_was_served_from(store: Store) -> None:
    cache = cache_on(store)
    for request_id in ("made", "served"):
        await keep(cache, but(request_id="made", tenant="t"))
        assert await look(cache, but(request_id="served", tenant="t")) == KEPT
        assert await cache.forget("other", request_id) is False
        assert await look(cache, but(tenant="t", request_id="later")) == KEPT
        assert await cache.forget("t", request_id) is True
        assert await look(cache, but(tenant="t", request_id="later")) is None
        assert await cache.forget("t", request_id) is False


@pytest.mark.redis
async def test_other_gateways_follow_a_deletion(shared: Store) -> None:
    here, there = cache_on(shared), cache_on(shared)
    await keep(here)
    assert await look(there) == KEPT
    seen = await there.watch("-")
    assert await here.forget("", "r")
    assert await look(there, but(request_id="still")) == KEPT
    seen = await there.watch(seen)
    assert await look(there) is None
    await keep(there)
    assert await there.watch(seen) == seen
    assert await look(there) == KEPT


async def test_what_is_found_out_during_a_deletion_is_not_stored(store: Store) -> None:
    cache = cache_on(store)
    await keep(cache)
    async with cache.board(ASK, never, 1.0) as flight:
        assert await cache.forget("", "r")
        await flight.land(KEPT)
    assert await look(cache) is None


async def test_deleting_does_not_pretend_while_redis_is_away() -> None:
    cache = cache_on(Store(GONE))
    await keep(cache)
    assert await cache.forget("", "r") is None


async def test_requests_that_only_this_process_knows_are_forgotten_at_once() -> None:
    store = Store(RedisSettings())
    cache = cache_on(store)
    await keep(cache)
    assert await cache.forget("", "another") is False
    assert await cache.forget("other", "r") is False
    assert await cache.forget("", "r") is True
    assert await look(cache) is None
    assert await cache.forget("", "r") is False


# keys


CHANGES: dict[str, Any] = {
    "tenant": "t",
    "wanted": "draft",
    "needs": ("tools",),
    "max_tokens": 5,
    "temperature": 0.1,
    "top_p": 0.9,
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "seed": 0,
    "stop": ("x",),
    "n": 2,
    "logprobs": 0,
    "tools": ({"type": "function"},),
    "tool_choice": "none",
    "response_format": {"type": "json_object"},
    "reasoning": True,
    "template": ("a", 3),
    "max_steps": 3,
    "candidates": 2,
    "refine_mode": "fresh",
    "messages": ({"role": "system", "content": "hello"},),
}
OTHERS: dict[str, Any] = {
    "request_id": "x",
    "model": "x",
    "conversation": "x",
    "quality_target": 0.1,
    "cache": True,
    "provisional": True,
    "priority": 1,
    "timeout_s": 1.0,
}


def test_every_field_of_a_request_is_either_in_the_key_or_not() -> None:
    assert {name for name, _ in KEYED} == set(CHANGES)
    assert set(OTHERS) == NOT_KEYED
    assert all(cache_key("n", but(**{name: value})) != cache_key("n", ASK) for name, value in CHANGES.items())
    assert all(cache_key("n", but(**{name: value})) == cache_key("n", ASK) for name, value in OTHERS.items())
    assert cache_key("other", ASK) != cache_key("n", ASK)
    assert len({cache_key("n", but(**{name: value})) for name, value in CHANGES.items()}) == len(CHANGES)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (said("ab", "c"), said("a", "bc")),
        (said("abc"), said("ab", "c")),
        (said("hello"), said("hello ")),
        (said("é"), said("e\u0301")),  # composed or not, a tokenizer sees two texts
        (said("ﬁ"), said("fi")),
        (said(""), but(messages=())),
        (but(stop=("a", "b")), but(stop=("ab",))),
        (but(stop=("a",), messages=()), but(stop=(), messages=({"role": "a"},))),
        (but(template=("3",)), but(template=(3,))),
        (but(tool_choice="auto"), but(tool_choice={"auto": None})),
        (but(tools=({"a": 1},)), but(tools=({"a": 1.0},))),
        (but(tools=({"a": 1},)), but(tools=({"a": True},))),
        (but(tools=({"a": 1},)), but(tools=({"a": "1"},))),
        (but(tools=({"a": None},)), but(tools=({},))),
        (but(tenant="a"), but(tenant="a\x00")),
        (but(seed=None), but(seed=0)),
        (but(max_tokens=1, max_steps=2), but(max_tokens=2, max_steps=1)),
        (but(messages=({"role": "user", "content": "a", "name": "b"},)), said("a")),
    ],
)
def test_near_misses_have_keys_of_their_own(one: Ask, other: Ask) -> None:
    assert cache_key("n", one) != cache_key("n", other)


def test_what_means_the_same_has_one_key() -> None:
    one = but(messages=({"role": "user", "content": "a"},), tools=({"x": {"b": 1, "a": 2}, "y": 1},))
    other = but(messages=({"content": "a", "role": "user"},), tools=({"y": 1, "x": {"a": 2, "b": 1}},))
    assert cache_key("n", one) == cache_key("n", other)
    assert cache_key("n", but(temperature=0)) == cache_key("n", but(temperature=-0.0)) == cache_key("n", ASK)
    assert cache_key("n", but(top_p=1)) == cache_key("n", ASK)


def test_a_namespace_never_runs_into_the_tenant() -> None:
    assert cache_key("na", but(tenant="b")) != cache_key("n", but(tenant="ab"))


Json = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-3, 3).filter(math.isfinite) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


def told_apart(value: Any) -> str:
    """A form in which 1, 1.0 and True differ and the order of keys does not."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key!r}:{told_apart(value[key])}" for key in sorted(value)) + "}"
    return "[" + ",".join(map(told_apart, value)) + "]" if isinstance(value, list) else repr(value)


@given(st.lists(Json, max_size=3), st.lists(Json, max_size=3))
def test_fingerprints_are_equal_only_of_equals(one: list[Any], other: list[Any]) -> None:
    assert (fingerprint(one) == fingerprint(other)) == (told_apart(one) == told_apart(other))


@pytest.mark.timeout(120)
async def test_no_two_tenants_share_a_key_or_an_answer() -> None:
    """10,000 pairs of requests that differ in their tenants only, of few and similar ones, so that keys of other fields would collide."""
    rng, store = random.Random(7), Store(RedisSettings())
    cache = cache_on(store, local_bytes=100_000_000)
    words, tenants = ("a", "b", "ab", "", "a\x00", "|"), ("", "a", "b", "ab", "a:b", "b:a", "|")
    owner: dict[str, str] = {}
    for number in range(10_000):
        one, other = rng.sample(tenants, 2)
        ask = but(
            request_id=str(number),
            messages=tuple({"role": rng.choice(("user", "a")), "content": rng.choice(words)} for _ in range(3)),
            stop=tuple(rng.sample(words, 2)),
            seed=rng.choice((None, 0, 1)),
        )
        mine, theirs = (msgspec.structs.replace(ask, tenant=tenant) for tenant in (one, other))
        await keep(cache, mine, msgspec.structs.replace(KEPT, request_id=one))
        found = [await look(cache, mine), await look(cache, theirs)]
        assert found[0] is not None
        assert found[0].request_id == one
        assert found[1] is None or found[1].request_id == other
        for asked in (mine, theirs):
            assert owner.setdefault(cache_key("n", asked), asked.tenant) == asked.tenant


# what may be seen


async def test_a_prompt_is_nowhere_to_be_read(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """Redis holds hashes of what was asked, and answers."""
    outbox = Outbox(store)
    cache = AnswerCache(store, outbox, CacheSettings(), "n")
    ask = but(messages=({"role": "user", "content": "canary"},), tools=({"name": "canary"},), stop=("canary",))
    with caplog.at_level(logging.DEBUG):
        await keep(cache, ask)
        assert await look(cache, msgspec.structs.replace(ask, request_id="again")) == KEPT
        await outbox.flush()
        await cache.forget("", "again")
    assert "canary" not in caplog.text
    redis: Any = store._redis
    keys = await redis.keys("*")
    assert len(keys) >= 2 * (store.state != "embedded")  # there it is all kept in the process
    for key in keys:
        assert b"canary" not in await redis.dump(key)
        assert b"canary" not in key
