import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest

from router.policy import DecisionRecord
from router.settings import RedisSettings
from router.state.metrics import Metrics, bin_of, bucket_key, seconds_of
from router.state.outbox import Outbox
from router.state.store import Store
from tests.fakes import decision_record

pytestmark = pytest.mark.anyio
AT = 1_800_000_000.0
RECORD = decision_record(
    at_unix_s=AT, reason="verifier:arithmetic", prompt_tokens=10, completion_tokens=5, elapsed_s=0.25
)


def but(**changes: Any) -> DecisionRecord:
    return msgspec.structs.replace(RECORD, **changes)


@pytest.fixture
async def store(redis_settings: RedisSettings) -> AsyncIterator[Store]:
    store = Store(redis_settings)
    yield store
    await store.close()


async def test_two_gateways_add_up_in_redis(store: Store) -> None:
    for count in (2, 3):
        outbox = Outbox(store)
        metrics = Metrics(store, outbox, {})
        for _ in range(count):
            metrics.observe(RECORD)
        metrics.observe(but(route="direct", reason="complexity", elapsed_s=2.0))
        await outbox.flush()
    minute = await Metrics(store, Outbox(store), {}).minute(AT)
    assert minute is not None
    assert minute.requests == {
        ("draft", "verifier:arithmetic", 200): 5,
        ("direct", "complexity", 200): 2,
    }
    assert minute.latency == {"draft": {bin_of(0.25): 5}, "direct": {bin_of(2.0): 2}}


async def test_nothing_is_written_on_the_request_path(store: Store) -> None:
    metrics = Metrics(store, Outbox(store), {})
    metrics.observe(RECORD)
    minute = await metrics.minute(AT)
    assert minute is not None
    assert minute.requests == {}


async def test_every_minute_expires(store: Store) -> None:
    outbox = Outbox(store)
    metrics = Metrics(store, outbox, {})
    for minute in range(3):
        metrics.observe(but(at_unix_s=AT + 60 * minute))
    await outbox.flush()
    for minute in range(3):
        # EXPIRE ... LT succeeds only on a key that has a longer life to shorten.
        assert await store.run(("EXPIRE", bucket_key(AT + 60 * minute), 5, "LT")) == [True]


async def test_what_has_ended_takes_no_memory_where_redis_is_in_process() -> None:
    store = Store(RedisSettings())
    outbox = Outbox(store)
    await store.run(("SET", "ended", "x", "PX", 1))
    await asyncio.sleep(0.01)
    database = store._redis.connection_pool.connection_kwargs["server"].dbs[0]
    assert b"ended" in database._dict
    Metrics(store, outbox, {}).observe(RECORD)
    await outbox.flush()
    assert b"ended" not in database._dict


async def test_a_minute_without_redis_is_unknown() -> None:
    gone = Store(RedisSettings(url="unix:///nowhere.sock"))
    assert await Metrics(gone, Outbox(gone), {}).minute(AT) is None


async def test_prometheus_sees_the_same() -> None:
    store = Store(RedisSettings())
    metrics = Metrics(store, Outbox(store), {})
    metrics.observe(but(kept_tokens=3))
    text = generate_latest(metrics.registry).decode()
    for line in (
        'draftgate_requests_total{reason="verifier:arithmetic",route="draft",status="200"} 1.0',
        'draftgate_request_seconds_sum{route="draft"} 0.25',
        'draftgate_tokens_total{kind="prompt"} 10.0',
        'draftgate_tokens_total{kind="kept"} 3.0',
    ):
        assert line in text.splitlines()


@given(st.floats(1e-6, 1e4))
def test_a_bin_tells_a_duration_to_one_percent(seconds: float) -> None:
    assert math.isclose(seconds_of(bin_of(seconds)), seconds, rel_tol=0.0101)


def test_no_duration_is_too_short_for_a_bin() -> None:
    assert bin_of(0.0) == bin_of(-1.0) == bin_of(1e-6)
